/* bench_engine_cuda.c - tokens/s of the rollout engine on CUDA in bf16: a qwen3_moe of Qwen3-30B-A3B's sizes
 * with random weights and as many layers as asked for, prompts of 1024 tokens, greedy decoding, with routes
 * recorded and without, in turns.
 *
 *     bench_engine_cuda [LAYERS [BATCH...]]        2 layers; 64, 128 and 256 requests
 *
 * Prints for each batch: prefill beside the time of its operations at the data sheet's rate; a decoding step
 * beside the time in which the weights that are read and the keys and values would cross memory, at the rate
 * of copies in the same run; and what recording costs, by the medians of steps. Ends with 1 when recording
 * changes a token. Prompts are known from the first run of a batch on, so that the other ones only decode.
 * Refuses: peers (peer_model_cuda.py). */
#include "bench/bench_q30.h"
#include "support/usage.h"
#include "wb_hash.h"
#include "wb_rollout.h"

enum { CONTEXT = 1024, NEW_TOKENS = 40, BLOCK = 64, ROUNDS = 3, MAX_STEPS = 4 * NEW_TOKENS };

typedef struct bench {
    wb_config config;
    wb_engine *engine;
    double bytes_per_second;
} bench;

/* Of one run. */
typedef struct outcome {
    double prefill, decode; /* seconds: of all prompts, and the median of the steps that decode all */
    uint64_t tokens;        /* digest of what was generated */
} outcome;

/* Each number has a prompt of its own. */
static void submit(const bench *b, int32_t number, bool routes) {
    static uint32_t prompt[CONTEXT];
    char rid[32];
    for (uint32_t t = 0; t < CONTEXT; t++)
        prompt[t] = (((uint32_t)number * 4096 + t + 1) * 2654435761U >> 8) % Q30_VOCABULARY;
    snprintf(rid, sizeof rid, "request-%d", number);
    wb_request request = wb_request_default();
    request.rid = rid;
    request.n_tokens = CONTEXT;
    request.tokens = prompt;
    request.max_tokens = 1 + NEW_TOKENS;
    request.temperature = 0;
    request.return_routes = routes;
    must(wb_engine_submit(b->engine, &request));
}

/* What a decoding step reads: weights of the layers and the head, all experts once, and keys and values. */
static double floor_of_decode(const bench *b, int32_t batch) {
    const wb_config *c = &b->config;
    const double H = c->hidden_size, D = c->head_dim;
    const double attention = H * D * (2.0 * c->n_heads + 2.0 * c->n_kv_heads);
    const double experts = 3.0 * c->router.n_experts * c->expert_width * H;
    const double keys = 2.0 * batch * CONTEXT * c->n_kv_heads * D;
    return 2 * (c->n_layers * (attention + experts + keys) + H * c->vocab_size) / b->bytes_per_second;
}

static double floor_of_prefill(const bench *b, int32_t batch) {
    return q30_forward_flops(&b->config, batch, CONTEXT, batch) / peak_flops;
}

/* Order of completion is not looked at. */
static uint64_t poll_tokens(const bench *b) {
    uint64_t sum = 0;
    for (wb_completion *done; (done = wb_engine_poll(b->engine)); wb_completion_free(done)) {
        const wb_record *record = &done->record;
        sum += wb_hash64(record->tokens, record->n_tokens * sizeof *record->tokens) ^
               wb_hash64(record->logprobs, NEW_TOKENS * sizeof *record->logprobs);
    }
    return sum;
}

static outcome run(const bench *b, int32_t batch, bool routes) {
    double steps[MAX_STEPS];
    int n = 0;
    bool busy = true;
    outcome out = {0};
    for (int32_t i = 0; i < batch; i++) submit(b, 1000 * batch + i, routes);
    wb_engine_stats before = wb_engine_get_stats(b->engine);
    while (busy) {
        const double begin = now();
        must(wb_engine_step(b->engine, &busy));
        const double seconds = now() - begin;
        const wb_engine_stats after = wb_engine_get_stats(b->engine);
        if (after.prefill_tokens > before.prefill_tokens)
            out.prefill += seconds;
        else if (after.decode_tokens - before.decode_tokens == (uint64_t)batch && n < MAX_STEPS)
            steps[n++] = seconds;
        before = after;
    }
    out.decode = n > 0 ? median(steps, n) : NAN;
    out.tokens = poll_tokens(b);
    return out;
}

/* Whether recording changed no token. */
static bool run_batch(const bench *b, int32_t batch) {
    double on[ROUNDS], off[ROUNDS];
    bool same = true;
    const outcome first = run(b, batch, true);
    for (int i = 0; i < ROUNDS; i++) {
        for (int k = 0; k < 2; k++) {
            const bool routes = k == i % 2;
            const outcome out = run(b, batch, routes);
            *(routes ? &on[i] : &off[i]) = out.decode;
            same = same && out.tokens == first.tokens;
        }
    }
    const double recorded = median(on, ROUNDS), plain = median(off, ROUNDS);
    printf("batch %4d, prefill %8.0f tok/s, of its floor %.2f, decode %7.0f tok/s, a step %7.0f us, of its "
           "floor %.2f, recording %+5.2f %%, %s\n",
           batch, (double)batch * CONTEXT / first.prefill, floor_of_prefill(b, batch) / first.prefill,
           batch / recorded, 1e6 * recorded, floor_of_decode(b, batch) / recorded,
           100 * (recorded / plain - 1), same ? "same tokens" : "OTHER TOKENS");
    fflush(stdout);
    return same;
}

static void open_engine(bench *b, wb_model *model, int32_t most) {
    wb_engine_options options = wb_engine_options_default();
    options.block_size = BLOCK;
    options.n_blocks = most * ((CONTEXT + NEW_TOKENS) / BLOCK + 1);
    options.max_running = most;
    options.max_batch_tokens = 8192;
    options.prefix_cache = true;
    must(wb_engine_open(model, &options, &b->engine));
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 64, "usage: bench_engine_cuda [LAYERS [BATCH...]]\n", &code)) return code;
    const int32_t usual[] = {64, 128, 256}, n = argc > 2 ? argc - 2 : 3;
    bench b = {.config = q30_config(argc > 1 ? atoi(argv[1]) : 2)};
    wb_model_options model_options = wb_model_options_default();
    wb_device *device = NULL;
    wb_comm *comm = NULL;
    wb_model *model = NULL;
    int32_t batches[64], most = 0;
    bool same = true;
    if (wb_device_open_cuda(0, NULL, &device) != WB_OK) {
        printf("no CUDA device: %s\n", wb_error_message());
        return 77;
    }
    for (int32_t i = 0; i < n; i++) {
        batches[i] = argc > 2 ? atoi(argv[2 + i]) : usual[i];
        most = batches[i] > most ? batches[i] : most;
    }
    b.bytes_per_second = copy_rate(device);
    must(wb_comm_open_self(&comm));
    model_options.device = device;
    model_options.comm = comm;
    model_options.dtype = model_options.activations = WB_BF16;
    const double begin = now();
    must(wb_model_create(&b.config, 1, 0.02F, &model_options, &model));
    open_engine(&b, model, most);
    printf(
        "qwen3_moe, %d layers of Qwen3-30B-A3B, vocabulary %d, prompts of %d, copies at %.0f GB/s, made in "
        "%.1f s\n",
        b.config.n_layers, Q30_VOCABULARY, CONTEXT, b.bytes_per_second * 1e-9, now() - begin);
    (void)run(&b, 4, true); /* to warm up */
    for (int32_t i = 0; i < n; i++) same = run_batch(&b, batches[i]) && same;
    wb_engine_close(b.engine);
    wb_model_close(model);
    wb_comm_close(comm);
    wb_device_close(device);
    return same ? 0 : 1;
}
