/* test_missing_op.c - inference and training refuse a device that lacks an op when they are opened, by the
 * op's name; and a device with the ops that they ask for, and no other one, carries whole passes of models
 * with every optional step. */
#include "model/model_fixture.h"
#include "support/missing_op.h"
#include "wb_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Tokens of a pass, and bytes enough for their routes. */
enum { T = 3, ROUTE_BYTES = 64 };

typedef struct rig {
    wb_device *device;
    wb_comm *comm;
    wb_model *model;
} rig;

static rig rig_open(variant v, wb_dtype dtype) {
    rig r;
    const wb_config config = variant_config(v);
    MUST(wb_device_open_cpu(1, &r.device));
    MUST(wb_comm_open_self(&r.comm));
    wb_model_options options = wb_model_options_default();
    options.device = r.device;
    options.comm = r.comm;
    options.dtype = options.activations = dtype;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &r.model));
    return r;
}

static void rig_close(rig *r) {
    wb_model_close(r->model);
    wb_comm_close(r->comm);
    wb_device_close(r->device);
}

static wb_infer_options infer_options(void) {
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = T;
    options.block_size = 1;
    return options;
}

static wb_status open_infer(void *model) {
    wb_infer *infer = NULL;
    const wb_infer_options options = infer_options();
    WB_TRY(wb_infer_open(model, &options, &infer));
    wb_infer_close(infer);
    return WB_OK;
}

static wb_status open_train(void *model) {
    wb_train *train = NULL;
    WB_TRY(wb_train_open(model, NULL, &train));
    wb_train_close(train);
    return WB_OK;
}

static wb_train_options forwards_only(void) {
    wb_train_options options = wb_train_options_default();
    options.forward_only = true;
    return options;
}

static wb_status open_forwards(void *model) {
    wb_train *train = NULL;
    const wb_train_options options = forwards_only();
    WB_TRY(wb_train_open(model, &options, &train));
    wb_train_close(train);
    return WB_OK;
}

static void infer_pass(const rig *r) {
    const int32_t tokens[T] = {1, 2, 3}, pos[T] = {0, 1, 2}, seq[T] = {0}, blocks[T] = {0, 1, 2}, row = T - 1;
    uint8_t ids[ROUTE_BYTES];
    const wb_infer_batch batch = {T, tokens, pos, seq, 1, T, blocks, fixture_states, 1, &row};
    const float *logits = NULL;
    wb_infer *infer = NULL;
    const wb_infer_options options = infer_options();
    MUST(wb_infer_open(r->model, &options, &infer));
    MUST(wb_infer_forward(infer, &batch, &(wb_routing){.ids = ids}, &logits));
    wb_infer_close(infer);
}

/* `options` NULL: with a backward. */
static void train_pass_with(const rig *r, const wb_train_options *options) {
    const int32_t tokens[T] = {1, 2, 3}, targets[T] = {2, 3, -1}, start[2] = {0, T};
    const float dlogprobs[T] = {1, 1, 0};
    uint8_t ids[ROUTE_BYTES];
    float logprobs[T];
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = start};
    const wb_routing routing = {.ids = ids};
    wb_train *train = NULL;
    MUST(wb_train_open(r->model, options, &train));
    if (!options) MUST(wb_train_zero_grads(train));
    MUST(wb_train_forward(train, &batch, &routing, NULL, logprobs));
    if (!options) MUST(wb_train_backward(train, dlogprobs));
    if (!options) MUST(wb_train_reduce_grads(train));
    wb_train_close(train);
}

static void train_pass_of(const rig *r) {
    train_pass_with(r, NULL);
}

static void forward_pass_of(const rig *r) {
    const wb_train_options options = forwards_only();
    train_pass_with(r, &options);
}

static void check(const char *who, wb_status (*open)(void *model), void (*pass)(const rig *r),
                  bool backward) {
    static const variant with_every_step[] = {VARIANT_QWEN3,   VARIANT_OLMOE_CLIP, VARIANT_QWEN2,
                                              VARIANT_GPT_OSS, VARIANT_DELTA,      VARIANT_ENTRIES};
    for (size_t i = 0; i < 2 * sizeof with_every_step / sizeof *with_every_step; i++) {
        rig r = rig_open(with_every_step[i / 2], i % 2 == 0 ? WB_F32 : WB_BF16);
        bool needed[WB_OP_COUNT];
        missing_op_try_all(r.device, who, open, r.model, needed);
        assert_true(needed[WB_OP_matmul] && needed[WB_OP_topk] && !needed[WB_OP_sample]);
        assert_true(needed[WB_OP_attention_backward] == backward && needed[WB_OP_scatter_rows] == backward);
        const wb_device whole = *r.device;
        missing_op_keep(r.device, needed);
        pass(&r);
        *r.device = whole;
        rig_close(&r);
    }
}

static void test_inference(void **state) {
    (void)state;
    check("inference", open_infer, infer_pass, false);
}

static void test_training(void **state) {
    (void)state;
    check("training", open_train, train_pass_of, true);
}

static void test_training_without_a_backward(void **state) {
    (void)state;
    check("training", open_forwards, forward_pass_of, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inference),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_training_without_a_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
