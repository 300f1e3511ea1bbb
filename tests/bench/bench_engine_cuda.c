/* bench_engine_cuda.c - tokens/s of the rollout engine on CUDA in bf16: a qwen3_moe of Qwen3-30B-A3B's sizes
 * with random weights and as many layers as asked for, prompts of 1024 tokens, greedy decoding, routes
 * recorded or not.
 *
 *     bench_engine_cuda [LAYERS [BATCH...]]        2 layers; 64, 128 and 256 requests
 *
 * Prints microseconds of a decoding step and of a layer of it, beside the time in which the weights that are
 * read and the keys and values would cross memory at 4.0 TB/s. Refuses: peers. */
#include "support/usage.h"
#include "wb_device.h"
#include "wb_rollout.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CONTEXT = 1024, NEW_TOKENS = 24, VOCABULARY = 32768, BLOCK = 64, MAX_BATCH = 256 };

static const double bytes_per_second = 4.0e12;

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "bench_engine_cuda: %s\n", wb_error_message());
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static wb_config make_config(int32_t layers) {
    const wb_config config = {
        .family = WB_FAMILY_QWEN3_MOE,
        .hidden_size = 2048,
        .n_layers = layers,
        .n_heads = 32,
        .n_kv_heads = 4,
        .head_dim = 128,
        .expert_width = 768,
        .dense_width = 6144,
        .vocab_size = VOCABULARY,
        .max_positions = 4096,
        .norm_eps = 1e-6F,
        .rope_theta = 1000000,
        .qk_norm = WB_QK_NORM_PER_HEAD,
        .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 128, .top_k = 8, .scale = 1},
        .moe_layer_mask = {(1ULL << layers) - 1}};
    return config;
}

static void submit(wb_engine *engine, int32_t number, bool routes) {
    static uint32_t prompt[CONTEXT];
    char rid[32];
    for (uint32_t t = 0; t < CONTEXT; t++)
        prompt[t] = (((uint32_t)number * 4096 + t + 1) * 2654435761U >> 16) % VOCABULARY;
    snprintf(rid, sizeof rid, "request-%d", number);
    wb_request request = wb_request_default();
    request.rid = rid;
    request.n_tokens = CONTEXT;
    request.tokens = prompt;
    request.max_tokens = 1 + NEW_TOKENS;
    request.temperature = 0;
    request.return_routes = routes;
    must(wb_engine_submit(engine, &request));
}

/* What a decoding step reads: weights of the layers and the head, all experts once, and keys and values. */
static double floor_seconds(const wb_config *c, int32_t batch) {
    const double H = c->hidden_size, D = c->head_dim;
    const double attention = H * D * (2.0 * c->n_heads + 2.0 * c->n_kv_heads);
    const double experts = 3.0 * c->router.n_experts * c->expert_width * H;
    const double keys = 2.0 * batch * CONTEXT * c->n_kv_heads * D;
    return 2 * (c->n_layers * (attention + experts + keys) + H * c->vocab_size) / bytes_per_second;
}

static void run(wb_engine *engine, const wb_config *config, int32_t batch, bool routes) {
    bool busy = true;
    const uint64_t fed = wb_engine_get_stats(engine).prefill_tokens + (uint64_t)batch * CONTEXT;
    double begin = now();
    for (int32_t i = 0; i < batch; i++) submit(engine, i, routes);
    while (wb_engine_get_stats(engine).prefill_tokens < fed) must(wb_engine_step(engine, &busy));
    const double prefill = now() - begin;
    const wb_engine_stats before = wb_engine_get_stats(engine);
    begin = now();
    do must(wb_engine_step(engine, &busy));
    while (busy);
    const double elapsed = now() - begin;
    const wb_engine_stats after = wb_engine_get_stats(engine);
    for (wb_completion *done; (done = wb_engine_poll(engine));) wb_completion_free(done);
    const double step = elapsed / (double)(after.steps - before.steps), least = floor_seconds(config, batch);
    printf("batch %4d, routes %-3s prefill %9.0f tok/s, decode %8.0f tok/s, a step %7.0f us, of its floor "
           "%.2f\n",
           batch, routes ? "on," : "off,", (double)batch * CONTEXT / prefill,
           (double)(after.decode_tokens - before.decode_tokens) / elapsed, 1e6 * step, least / step);
    fflush(stdout);
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 64, "usage: bench_engine_cuda [LAYERS [BATCH...]]\n", &code)) return code;
    const wb_config config = make_config(argc > 1 ? atoi(argv[1]) : 2);
    const int32_t usual[] = {64, 128, 256};
    wb_model_options model_options = wb_model_options_default();
    wb_engine_options options = wb_engine_options_default();
    wb_device *device = NULL;
    wb_comm *comm = NULL;
    wb_model *model = NULL;
    wb_engine *engine = NULL;
    if (wb_device_open_cuda(0, NULL, &device) != WB_OK) {
        printf("no CUDA device: %s\n", wb_error_message());
        return 77;
    }
    must(wb_comm_open_self(&comm));
    model_options.device = device;
    model_options.comm = comm;
    model_options.dtype = model_options.activations = WB_BF16;
    must(wb_model_create(&config, 1, 0.02F, &model_options, &model));
    options.block_size = BLOCK;
    options.n_blocks = MAX_BATCH * (CONTEXT / BLOCK + 1);
    options.max_running = MAX_BATCH;
    options.max_batch_tokens = 8192;
    must(wb_engine_open(model, &options, &engine));
    printf("qwen3_moe, %d layers of Qwen3-30B-A3B, vocabulary %d, prompts of %d\n", config.n_layers,
           VOCABULARY, CONTEXT);
    run(engine, &config, 64, true); /* to warm up */
    for (int i = 0; i < (argc > 2 ? argc - 2 : 3); i++)
        for (int routes = 0; routes < 2; routes++)
            run(engine, &config, argc > 2 ? atoi(argv[2 + i]) : usual[i], routes);
    wb_engine_close(engine);
    wb_model_close(model);
    wb_comm_close(comm);
    wb_device_close(device);
    return 0;
}
