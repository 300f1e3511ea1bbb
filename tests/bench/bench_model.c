/* bench_model.c - tokens/s of a whole model on the CPU: prefill, decode through the rollout engine,
 * training.
 *
 *   bench_model [--threads N] [--repeats N] [--cpu-time] [--save DIR] [CASE...]
 *
 * Without a case all run, --repeats times each (5), in turns, and the median and range are printed. The
 * case "-" reads cases from standard input instead, a line each, and answers each with a line "CASE
 * TOKENS_PER_SECOND CHECK", so that a peer can be run in turns with it (compare_model.sh). CHECK is a
 * number that the peer must reproduce: prefill, the largest logit of the last token; decode, the
 * log-probability of the first request's first token; training, the mean log-probability. --cpu-time
 * divides by the process's CPU time instead of the wall's: with one thread, what a busy machine would do
 * if it were idle. --save writes the f32 model as a Hugging Face checkpoint; with it, no case is run
 * unless one is named. */
#include "wb_device.h"
#include "wb_rollout.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CONTEXT = 128,
    NEW_TOKENS = 16,
    PREFILL = 1024,
    SEQS = 4,
    SEQ_LEN = 256,
    MAX_BATCH = 64,
    MAX_REPEATS = 99
};

static const wb_config config = {
    .family = WB_FAMILY_QWEN3_MOE,
    .hidden_size = 512,
    .n_layers = 8,
    .n_heads = 8,
    .n_kv_heads = 2,
    .head_dim = 64,
    .expert_width = 192,
    .dense_width = 1024,
    .vocab_size = 8192,
    .max_positions = 2048,
    .norm_eps = 1e-6F,
    .rope_theta = 10000,
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 32, .top_k = 4, .scale = 1},
    .moe_layer_mask = {255}};

/* What trainers keep for the backward: a layer; half the bytes of all; all. */
enum { KEEP_ONE, KEEP_HALF, KEEP_ALL, N_TRAINERS };

typedef struct bench {
    wb_device *device;
    wb_comm *comm;
    wb_model *models[2];   /* f32, bf16 */
    wb_model *rollouts[2]; /* clones of them for inference only, as the rollout of a run has one */
    wb_infer *infers[2];   /* over these */
    wb_engine *engines[2]; /* over the clones */
    wb_train *trains[N_TRAINERS];
    void *ids; /* [PREFILL or SEQS * SEQ_LEN] rows of routes */
} bench;

typedef struct bench_case {
    const char *name;
    double (*run)(bench *b, const struct bench_case *c, double *check_out); /* tokens/s */
    int32_t bf16, batch;
    bool routes;
    int kept;
} bench_case;

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "bench_model: %s\n", wb_error_message());
    exit(1);
}

static clockid_t timer = CLOCK_MONOTONIC;

static double now(void) {
    struct timespec t;
    clock_gettime(timer, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The peer makes the same ones. */
static int32_t token(int32_t sequence, int32_t position) {
    const uint32_t i = (uint32_t)sequence * 4096 + (uint32_t)position + 1;
    return (int32_t)((i * 2654435761U >> 16) % (uint32_t)config.vocab_size);
}

/* ---- the cases ----------------------------------------------------------------------------------- */

static double run_prefill(bench *b, const bench_case *c, double *check_out) {
    static int32_t tokens[PREFILL], pos[PREFILL], seq[PREFILL], blocks[PREFILL / 16];
    for (int32_t t = 0; t < PREFILL; t++) {
        tokens[t] = token(0, t);
        pos[t] = t;
        blocks[t / 16] = t / 16;
    }
    const int32_t last = PREFILL - 1;
    const wb_infer_batch batch = {PREFILL, tokens, pos, seq, 1, PREFILL / 16, blocks, NULL, 1, &last};
    const wb_routing routing = {.ids = b->ids};
    const float *logits;
    const double begin = now();
    must(wb_infer_forward(b->infers[c->bf16], &batch, &routing, &logits));
    const double rate = PREFILL / (now() - begin);
    float largest = logits[0];
    for (int32_t v = 1; v < config.vocab_size; v++) largest = logits[v] > largest ? logits[v] : largest;
    *check_out = (double)largest;
    return rate;
}

static void submit(wb_engine *engine, const bench_case *c, int32_t i) {
    uint32_t prompt[CONTEXT];
    char rid[32];
    for (int32_t t = 0; t < CONTEXT; t++) prompt[t] = (uint32_t)token(i, t);
    snprintf(rid, sizeof rid, "request-%d", i);
    wb_request request = wb_request_default();
    request.rid = rid;
    request.n_tokens = CONTEXT;
    request.tokens = prompt;
    request.max_tokens = 1 + NEW_TOKENS;
    request.temperature = 0;
    request.return_routes = c->routes;
    must(wb_engine_submit(engine, &request));
}

/* Prefills all requests first; then NEW_TOKENS steps of all of them are timed. */
static double run_decode(bench *b, const bench_case *c, double *check_out) {
    wb_engine *engine = b->engines[c->bf16];
    bool busy;
    for (int32_t i = 0; i < c->batch; i++) submit(engine, c, i);
    const uint64_t fed = wb_engine_get_stats(engine).prefill_tokens + (uint64_t)c->batch * CONTEXT;
    while (wb_engine_get_stats(engine).prefill_tokens < fed) must(wb_engine_step(engine, &busy));
    const uint64_t before = wb_engine_get_stats(engine).decode_tokens;
    const double begin = now();
    do must(wb_engine_step(engine, &busy));
    while (busy);
    const double elapsed = now() - begin;
    for (wb_completion *done; (done = wb_engine_poll(engine)); wb_completion_free(done))
        if (strcmp(done->record.rid, "request-0") == 0) *check_out = (double)done->record.logprobs[0];
    const uint64_t made = wb_engine_get_stats(engine).decode_tokens - before;
    if (made != (uint64_t)c->batch * NEW_TOKENS) {
        fprintf(stderr, "bench_model: %s: expected %d steps of %d requests, found %" PRIu64 " tokens\n",
                c->name, NEW_TOKENS, c->batch, made);
        exit(1);
    }
    return (double)made / elapsed;
}

/* Forward, backward and zeroing of the gradients; no optimizer. */
static double run_train(bench *b, const bench_case *c, double *check_out) {
    wb_train *train = b->trains[c->kept];
    enum { T = SEQS * SEQ_LEN };
    static int32_t tokens[T], targets[T], start[SEQS + 1];
    static float logprobs[T], dlogprobs[T];
    for (int32_t t = 0; t < T; t++) {
        tokens[t] = token(t / SEQ_LEN, t % SEQ_LEN);
        targets[t] = (t + 1) % SEQ_LEN == 0 ? -1 : token(t / SEQ_LEN, t % SEQ_LEN + 1);
        dlogprobs[t] = -1.0F / T;
    }
    for (int32_t s = 0; s <= SEQS; s++) start[s] = s * SEQ_LEN;
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = SEQS, .seq_start = start};
    const wb_routing routing = {.ids = b->ids};
    const double begin = now();
    must(wb_train_zero_grads(train));
    must(wb_train_forward(train, &batch, &routing, NULL, logprobs));
    must(wb_train_backward(train, dlogprobs));
    const double rate = T / (now() - begin);
    double sum = 0;
    for (int32_t t = 0; t < T; t++) sum += (double)logprobs[t];
    *check_out = sum / (SEQS * (SEQ_LEN - 1));
    return rate;
}

static const bench_case cases[] = {
    {"prefill", run_prefill, 0, 1, true, 0},         {"prefill_bf16", run_prefill, 1, 1, true, 0},
    {"decode_1", run_decode, 0, 1, true, 0},         {"decode_1_no_routes", run_decode, 0, 1, false, 0},
    {"decode_16", run_decode, 0, 16, true, 0},       {"decode_16_no_routes", run_decode, 0, 16, false, 0},
    {"decode_16_bf16", run_decode, 1, 16, true, 0},  {"decode_64_bf16", run_decode, 1, 64, true, 0},
    {"decode_64", run_decode, 0, 64, true, 0},       {"decode_64_no_routes", run_decode, 0, 64, false, 0},
    {"train", run_train, 0, 0, true, KEEP_ONE},      {"train_half_kept", run_train, 0, 0, true, KEEP_HALF},
    {"train_kept", run_train, 0, 0, true, KEEP_ALL},
};
enum { N_CASES = sizeof cases / sizeof cases[0] };

static const bench_case *find_case(const char *name) {
    for (size_t i = 0; i < N_CASES; i++)
        if (strcmp(cases[i].name, name) == 0) return &cases[i];
    fprintf(stderr, "bench_model: no case %s; there are", name);
    for (size_t i = 0; i < N_CASES; i++) fprintf(stderr, " %s", cases[i].name);
    fprintf(stderr, "\n");
    exit(2);
}

/* ---- the program --------------------------------------------------------------------------------- */

static size_t trainer_bytes(const wb_train_options *options) {
    const wb_model_options model = wb_model_options_default();
    wb_memory memory;
    must(wb_train_measure(&config, &model, options, 1, 0, &memory));
    return memory.device_bytes;
}

static void open_trainer(bench *b, int kept) {
    wb_train_options options = wb_train_options_default();
    options.max_tokens = SEQS * SEQ_LEN;
    const size_t one = trainer_bytes(&options);
    if (kept != KEEP_ONE) options.keep_bytes = UINT64_MAX;
    if (kept == KEEP_HALF) options.keep_bytes = (trainer_bytes(&options) - one) / 2;
    must(wb_train_open(b->models[0], &options, &b->trains[kept]));
}

static bench open_bench(int threads) {
    bench b = {0};
    must(wb_device_open_cpu(threads, &b.device));
    must(wb_comm_open_self(&b.comm));
    for (int i = 0; i < 2; i++) {
        wb_model_options options = wb_model_options_default();
        options.device = b.device;
        options.comm = b.comm;
        options.dtype = i == 0 ? WB_F32 : WB_BF16;
        must(wb_model_create(&config, 1, 0.02F, &options, &b.models[i]));
        options.inference_only = true;
        must(wb_model_clone(b.models[i], &options, &b.rollouts[i]));
        wb_infer_options infer = wb_infer_options_default();
        infer.n_blocks = PREFILL / infer.block_size;
        infer.max_tokens = PREFILL;
        must(wb_infer_open(b.rollouts[i], &infer, &b.infers[i]));
        wb_engine_options engine = wb_engine_options_default();
        /* One step prefills all prompts. In several, requests of the first ones decode beside those of the
         * last ones, and end before them: what is timed is then a smaller batch. */
        engine.max_batch_tokens = MAX_BATCH * CONTEXT;
        must(wb_engine_open(b.rollouts[i], &engine, &b.engines[i]));
    }
    for (int i = 0; i < N_TRAINERS; i++) open_trainer(&b, i);
    must(b.device->mem_alloc(b.device, PREFILL * wb_route_row_bytes(wb_model_routes(b.models[0])), &b.ids));
    return b;
}

static void close_bench(bench *b) {
    b->device->mem_free(b->device, b->ids);
    for (int i = 0; i < N_TRAINERS; i++) wb_train_close(b->trains[i]);
    for (int i = 0; i < 2; i++) {
        wb_engine_close(b->engines[i]);
        wb_infer_close(b->infers[i]);
        wb_model_close(b->rollouts[i]);
        wb_model_close(b->models[i]);
    }
    wb_comm_close(b->comm);
    wb_device_close(b->device);
}

static void serve(bench *b) {
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = '\0';
        const bench_case *c = find_case(line);
        double check = 0;
        const double rate = c->run(b, c, &check);
        printf("%s %.2f %.6f\n", c->name, rate, check);
        fflush(stdout);
    }
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Cases in turns, after one warm-up of each. */
static void run_all(bench *b, int repeats, int n, const bench_case *const *chosen) {
    static double rates[N_CASES][MAX_REPEATS];
    double check = 0;
    for (int r = -1; r < repeats; r++)
        for (int i = 0; i < n; i++) {
            const double rate = chosen[i]->run(b, chosen[i], &check);
            if (r >= 0) rates[i][r] = rate;
        }
    printf("%-22s %10s %21s\n", "tokens/s", "median", "min - max");
    for (int i = 0; i < n; i++) {
        qsort(rates[i], (size_t)repeats, sizeof(double), ascending);
        printf("%-22s %10.1f %10.1f - %8.1f\n", chosen[i]->name, rates[i][repeats / 2], rates[i][0],
               rates[i][repeats - 1]);
    }
}

static void say_what_runs(const bench *b) {
    int64_t parameters = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(b->models[0]); i++)
        parameters += wb_model_tensor(b->models[0], i).n;
    fprintf(stderr, "waybill %s, %s, %d threads, qwen3_moe of %.1fM parameters\n", wb_version(),
            b->device->name, b->device->threads, (double)parameters * 1e-6);
}

int main(int argc, char **argv) {
    int threads = 0, repeats = 5, n = 0;
    const char *save = NULL;
    bool from_stdin = false;
    const bench_case *chosen[N_CASES];
    for (int i = 1; i < argc; i++) {
        const bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--threads") == 0 && has_value)
            threads = atoi(argv[++i]);
        else if (strcmp(argv[i], "--repeats") == 0 && has_value)
            repeats = atoi(argv[++i]);
        else if (strcmp(argv[i], "--save") == 0 && has_value)
            save = argv[++i];
        else if (strcmp(argv[i], "--cpu-time") == 0)
            timer = CLOCK_PROCESS_CPUTIME_ID;
        else if (strcmp(argv[i], "-") == 0)
            from_stdin = true;
        else if (strcmp(argv[i], "--help") == 0)
            return printf("usage: bench_model [--threads N] [--repeats N] [--cpu-time] [--save DIR] "
                          "[CASE...]\n") < 0;
        else if (n < N_CASES)
            chosen[n++] = find_case(argv[i]);
    }
    if (repeats < 1 || repeats > MAX_REPEATS) {
        fprintf(stderr, "bench_model: --repeats: expected 1..%d\n", MAX_REPEATS);
        return 2;
    }
    bench b = open_bench(threads);
    if (save) must(wb_model_save(b.models[0], save));
    if (n == 0 && !save)
        for (; n < N_CASES; n++) chosen[n] = &cases[n];
    say_what_runs(&b);
    if (from_stdin)
        serve(&b);
    else if (n > 0)
        run_all(&b, repeats, n, chosen);
    close_bench(&b);
    return 0;
}
