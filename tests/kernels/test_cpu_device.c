/* test_cpu_device.c - memory of a CPU device, and ops with nothing to do. */
#include "ops_test.h"

static void test_device(void **state) {
    (void)state;
    wb_device *dev = open_cpu(0);
    assert_int_equal(dev->backend, WB_BACKEND_CPU);
    assert_true(dev->threads >= 1);
    void *memory = NULL;
    char host[100], back[100];
    memset(host, 0x5a, sizeof host);
    assert_ok(dev->mem_alloc(dev, 0, &memory));
    assert_non_null(memory);
    dev->mem_free(dev, memory);
    assert_ok(dev->mem_alloc(dev, 100, &memory));
    assert_int_equal((uintptr_t)memory % 64, 0);
    assert_ok(dev->to_device(dev, memory, host, 100));
    assert_ok(dev->zero(dev, (char *)memory + 10, 5));
    assert_ok(dev->copy(dev, memory, (char *)memory + 10, 2));
    assert_ok(dev->to_host(dev, back, memory, 100));
    memset(host + 10, 0, 5), memset(host, 0, 2);
    assert_memory_equal(host, back, 100);
    void *event = NULL;
    memset(back, 0, sizeof back);
    assert_ok(dev->event_open(dev, &event));
    assert_ok(dev->start_to_host(dev, back, memory, 100, event));
    assert_ok(dev->event_wait(dev, event));
    assert_memory_equal(host, back, 100);
    dev->event_close(dev, event);
    dev->event_close(dev, NULL);
    dev->mem_free(dev, memory);
    dev->mem_free(dev, NULL);
    assert_ok(dev->host_alloc(dev, 0, &memory));
    assert_non_null(memory);
    dev->host_free(dev, memory);
    assert_ok(dev->host_alloc(dev, 100, &memory));
    assert_int_equal((uintptr_t)memory % 64, 0);
    memcpy(memory, back, 100);
    dev->host_free(dev, memory);
    dev->host_free(dev, NULL);
    memory = host;
    assert_int_equal(dev->mem_alloc(dev, SIZE_MAX, &memory), WB_OUT_OF_MEMORY);
    assert_int_equal(dev->host_alloc(dev, SIZE_MAX, &memory), WB_OUT_OF_MEMORY);
    assert_ptr_equal(memory, host);
    wb_device_close(dev);
    wb_device_close(NULL);
    dev = NULL;
    assert_int_equal(wb_device_open_cpu(-1, &dev), WB_INVALID_ARGUMENT);
    assert_null(dev);
}

/* T = 0 is valid everywhere and touches nothing. */
static void test_nothing_to_do(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    float x[4] = {1, 2, 3, 4};
    int32_t index[4] = {0};
    uint8_t ids[4] = {0};
    int64_t counts[2] = {5, 5};
    double sum = 9.0;
    wb_router router = {WB_ROUTER_SOFTMAX_NORM, 2, 1, 0, 0, true, 1.0f};
    wb_ids view = {ids, WB_U8, 1};
    wb_topk topk = {.router = router, .logits = x, .ids = view};
    const wb_attention attention = {.n_heads = 1,
                                    .n_kv_heads = 1,
                                    .head_dim = 4,
                                    .value_dim = 4,
                                    .scale = 1,
                                    .sinks = x,
                                    .q = wb_f32_rows(x),
                                    .k = wb_f32_rows(x),
                                    .v = wb_f32_rows(x),
                                    .seq = index,
                                    .pos = index,
                                    .blocks = index,
                                    .max_blocks = 1,
                                    .block_size = 1};
    wb_adamw hyper = {.step = 1};
    assert_ok(dev->embed_forward(dev, 0, index, matrix(x, WB_F32, 1, 4), wb_f32_rows(x)));
    assert_ok(dev->embed_backward(dev, 0, 4, index, wb_f32_rows(x), x));
    assert_ok(dev->rmsnorm_forward(dev, 0, 4, wb_f32_rows(x), norm_of(x, false), wb_f32_rows(x)));
    assert_ok(dev->rmsnorm_backward(dev, 0, 4, wb_f32_rows(x), norm_of(x, false), wb_f32_rows(x),
                                    wb_f32_rows(x), x));
    const wb_rope rope = {.n_heads = 1,
                          .head_dim = 4,
                          .rot_dim = 4,
                          .pos = index,
                          .cos_table = x,
                          .sin_table = x,
                          .x = wb_f32_rows(x)};
    assert_ok(dev->rope(dev, &rope));
    assert_ok(dev->copy_columns(dev, 0, 4, wb_f32_rows(x), 4, wb_f32_rows(x), 4));
    const wb_copy_heads heads = {.n_heads = 2, .width = 4, .from = wb_f32_rows(x), .to = wb_f32_rows(x)};
    assert_ok(dev->copy_heads(dev, &heads));
    assert_ok(dev->add_rmsnorm(dev, 0, 4, wb_f32_rows(x), wb_f32_rows(x), norm_of(x, false), wb_f32_rows(x)));
    assert_ok(dev->gated_rmsnorm_forward(dev, 0, 4, wb_f32_rows(x), norm_of(x, false), wb_f32_rows(x),
                                         wb_f32_rows(x)));
    assert_ok(dev->gated_rmsnorm_backward(dev, 0, 4, wb_f32_rows(x), norm_of(x, false), wb_f32_rows(x),
                                          wb_f32_rows(x), wb_f32_rows(x), wb_f32_rows(x), x));
    assert_ok(dev->sigmoid_gate_forward(dev, 0, 4, wb_f32_rows(x), wb_f32_rows(x), 4, wb_f32_rows(x)));
    assert_ok(dev->sigmoid_gate_backward(dev, 0, 4, wb_f32_rows(x), wb_f32_rows(x), 4, wb_f32_rows(x),
                                         wb_f32_rows(x), wb_f32_rows(x)));
    const wb_short_conv conv = {.channels = 1, .width = 1, .w = x, .x = wb_f32_rows(x)};
    assert_ok(dev->short_conv_forward(dev, &conv, wb_f32_rows(x)));
    assert_ok(dev->short_conv_backward(dev, &conv, wb_f32_rows(x), wb_f32_rows(x), x));
    const wb_gated_delta delta = {.heads = {1, 1, 1, 1},
                                  .qkv = wb_f32_rows(x),
                                  .b = wb_f32_rows(x),
                                  .a = wb_f32_rows(x),
                                  .A_log = x,
                                  .dt_bias = x,
                                  .checkpoints = x};
    assert_ok(dev->gated_delta_forward(dev, &delta, wb_f32_rows(x)));
    assert_ok(dev->gated_delta_backward(dev, &delta, wb_f32_rows(x), wb_f32_rows(x), wb_f32_rows(x),
                                        wb_f32_rows(x), x, x));
    assert_ok(dev->kv_write(dev, 0, 4, wb_f32_rows(x), counts, (wb_rows){x, WB_F32}));
    assert_ok(dev->attention_forward(dev, &attention, wb_f32_rows(x)));
    assert_ok(dev->attention_backward(dev, &attention, wb_f32_rows(x), wb_f32_rows(x), wb_f32_rows(x),
                                      wb_f32_rows(x), x));
    assert_ok(dev->topk(dev, &topk));
    assert_ok(dev->gate_forward(dev, &router, 0, x, NULL, view, x));
    assert_ok(dev->gate_backward(dev, &router, 0, x, NULL, view, x, x));
    int32_t offsets[3] = {5, 5, 5};
    const wb_moe_plan plan = {.top_k = 1, .n_experts = 2, .n_slots = 2, .ids = view, .offsets = offsets};
    const wb_grouped grouped = {.n_groups = 2, .offsets = offsets, .w = {x, WB_F32, 2, 2, false}};
    assert_ok(dev->moe_plan(dev, &plan));
    assert_int_equal(offsets[0] + offsets[1] + offsets[2], 0);
    const wb_rows rows = wb_f32_rows(x);
    assert_ok(dev->grouped_matmul(dev, &grouped, rows, rows, rows));
    assert_ok(dev->grouped_matmul_backward(dev, &grouped, rows, rows, x, rows, rows));
    assert_ok(dev->gather_rows(dev, 0, 4, index, rows, rows));
    assert_ok(dev->moe_combine(dev, 0, 1, 4, rows, index, x, rows));
    assert_ok(dev->moe_combine_backward(dev, 0, 1, 4, rows, index, x, rows, rows, x));
    assert_ok(dev->scatter_rows(dev, 0, 4, index, wb_f32_rows(x), wb_f32_rows(x)));
    assert_ok(dev->swiglu_forward(dev, 0, 2, wb_f32_rows(x), wb_f32_rows(x)));
    assert_ok(dev->swiglu_backward(dev, 0, 2, wb_f32_rows(x), wb_f32_rows(x), wb_f32_rows(x)));
    assert_ok(dev->add(dev, 0, wb_f32_rows(x), wb_f32_rows(x)));
    assert_ok(dev->clamp(dev, 0, 0.5f, wb_f32_rows(x)));
    assert_ok(dev->clamp_backward(dev, 0, 0.5f, wb_f32_rows(x), wb_f32_rows(x)));
    assert_ok(dev->logprob_forward(dev, 0, 4, x, index, NULL, x));
    assert_ok(dev->logprob_backward(dev, 0, 4, x, index, NULL, x, x));
    assert_ok(dev->sample(dev, 0, 4, x, NULL, NULL, index, x));
    assert_ok(dev->sum_squares(dev, 1, 0, wb_f32_rows(x), &sum));
    assert_ok(dev->adamw(dev, 0, &hyper, x, x, x, x, (uint16_t *)x));
    assert_ok(dev->cast(dev, 0, (wb_rows){x, WB_F32}, (wb_rows){x, WB_BF16}));
    for (int i = 0; i < 4; i++) assert_true(x[i] == (float)(i + 1));
    assert_true(sum == 0.0);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_nothing_to_do),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
