/* bench_train_cuda.c - a training step on CUDA in bf16: forward and backward of a qwen3_moe of
 * Qwen3-30B-A3B's sizes with random weights and as many layers as asked for, over packed sequences of 4096
 * tokens, gradients of all weights, routes chosen on the way or replayed and planned, in turns.
 *
 *     bench_train_cuda [LAYERS [TOKENS [RANKS]]]      8 layers, 16384 tokens a rank, 1 rank
 *
 * Rank r is a thread with GPU r; ranks exchange by NCCL. Prints tokens/s of all ranks, operations a second
 * and rank, where a backward counts twice its forward and what is computed again counts for nothing, and the
 * device memory. Ends with 1 when a replayed step's log-probabilities are not those of the native one, bit
 * for bit. Refuses: an optimizer, whose state does not fit beside 8 layers on one GPU; peers
 * (peer_model_cuda.py). */
#include "bench/bench_q30.h"
#include "support/usage.h"
#include "wb_replay.h"

#ifdef WB_HAVE_NCCL
#include "wb_comm_nccl.h"
#else
static wb_status wb_comm_open_nccl(wb_comm *control, int gpu, bool check_sizes, wb_comm **comm_out) {
    (void)control, (void)gpu, (void)check_sizes, (void)comm_out;
    return wb_fail(WB_UNSUPPORTED, "this program was built without NCCL");
}
#endif

#include <pthread.h>
#include <string.h>

enum { SEQUENCE = 4096, ROUNDS = 15, MAX_RANKS = 8 };

typedef struct bench {
    wb_config config;
    int64_t T; /* tokens of a rank's micro-batch */
    wb_comm *control, *comm;
    wb_device *device;
    wb_model *model;
    wb_train *train;
    wb_replay *replay;
    wb_record *records; /* [sequences] */
    wb_route_rows *rows;
    int32_t *tokens, *targets, *start;
    float *logprobs, *native_logprobs, *dlogprobs;
    void *ids, *device_ids, *direction; /* host, and device: routes [T][L][K]; device [T] all forced */
    bool same;
} bench;

/* ---- what is trained on -------------------------------------------------------------------------- */

static size_t row_bytes(const bench *b) {
    return wb_route_row_bytes(wb_model_routes(b->model));
}

static int32_t sequences(const bench *b) {
    return (int32_t)((b->T + SEQUENCE - 1) / SEQUENCE);
}

/* The last token of a sequence has no target. */
static void make_batch(bench *b) {
    const uint32_t salt = (uint32_t)wb_comm_rank(b->comm) << 20;
    b->tokens = take((size_t)b->T + 1, sizeof *b->tokens);
    b->targets = take((size_t)b->T, sizeof *b->targets);
    b->start = take((size_t)sequences(b) + 1, sizeof *b->start);
    b->logprobs = take((size_t)b->T, sizeof *b->logprobs);
    b->native_logprobs = take((size_t)b->T, sizeof *b->native_logprobs);
    b->dlogprobs = take((size_t)b->T, sizeof *b->dlogprobs);
    for (int64_t t = 0; t < b->T; t++) {
        b->tokens[t] = (int32_t)(((salt + (uint32_t)t + 1) * 2654435761U >> 8) % Q30_VOCABULARY);
        b->dlogprobs[t] = -1.0F / (float)b->T;
    }
    for (int64_t t = 0; t < b->T; t++)
        b->targets[t] = (t + 1) % SEQUENCE == 0 || t + 1 == b->T ? -1 : b->tokens[t + 1];
    for (int32_t s = 0; s <= sequences(b); s++)
        b->start[s] = (int32_t)(s == sequences(b) ? b->T : (int64_t)s * SEQUENCE);
}

static wb_train_batch batch_of(const bench *b) {
    return (wb_train_batch){
        .T = b->T, .tokens = b->tokens, .targets = b->targets, .n_seqs = sequences(b), .seq_start = b->start};
}

/* ---- routes -------------------------------------------------------------------------------------- */

/* The ids that the device has become those of a record a sequence. */
static void record(bench *b) {
    static const char *const names[] = {"0", "1", "2", "3", "4", "5", "6", "7"};
    must(wb_device_download(b->device, b->ids, b->device_ids, (size_t)b->T * row_bytes(b)));
    wb_replay_clear(b->replay);
    for (int32_t s = 0; s < sequences(b); s++) {
        const uint32_t n = (uint32_t)(b->start[s + 1] - b->start[s]);
        b->rows[s] = (wb_route_rows){0, n, (char *)b->ids + (size_t)b->start[s] * row_bytes(b), NULL};
        /* The record has a token more than it has rows; the one behind it is as good as any. */
        b->records[s] = (wb_record){.rid = names[s],
                                    .n_tokens = n + 1,
                                    .tokens = (const uint32_t *)b->tokens + b->start[s],
                                    .n_routes = 1,
                                    .routes = &b->rows[s]};
        must(wb_replay_add(b->replay, wb_model_routes(b->model), &b->records[s]));
    }
}

static void plan(bench *b) {
    wb_segment segments[8];
    int64_t planned;
    must(wb_replay_begin(b->replay, WB_REPLAY_ROLLOUT, 1));
    for (int32_t s = 0; s < sequences(b); s++)
        segments[s] = wb_replay_segment(b->replay, b->records[s].rid, 0,
                                        (uint32_t)(b->start[s + 1] - b->start[s]), b->records[s].tokens);
    must(wb_replay_plan(b->replay, 0, sequences(b), segments));
    must(wb_replay_plan_dispatch(b->replay, b->control, &planned));
}

/* ---- a step -------------------------------------------------------------------------------------- */

/* Seconds, from all ranks ready to all ranks done. */
static double step(bench *b, bool planned) {
    const wb_train_batch batch = batch_of(b);
    const wb_routing routing = {.ids = b->device_ids,
                                .direction = planned ? b->direction : NULL,
                                .planned =
                                    planned ? wb_replay_layer_plan(b->replay, 0, WB_ALL_LAYERS) : NULL};
    float word;
    must(wb_train_zero_grads(b->train));
    must(wb_device_download(b->device, &word, b->device_ids, 1));
    must(wb_comm_barrier(b->control));
    const double begin = now();
    must(wb_train_forward(b->train, &batch, &routing, NULL, b->logprobs));
    must(wb_train_backward_last(b->train, b->dlogprobs));
    must(wb_device_download(b->device, &word, b->device_ids, 1));
    must(wb_comm_barrier(b->control));
    const double seconds = now() - begin;
    if (!planned) memcpy(b->native_logprobs, b->logprobs, (size_t)b->T * sizeof(float));
    b->same = b->same && memcmp(b->native_logprobs, b->logprobs, (size_t)b->T * sizeof(float)) == 0;
    return seconds;
}

static void print_case(const bench *b, const char *name, double seconds) {
    const double R = wb_comm_size(b->control), n = SEQUENCE < b->T ? SEQUENCE : (double)b->T;
    const double flops = 3 * q30_forward_flops(&b->config, (double)b->T / n, n, (double)b->T);
    printf("%s: %8.0f tok/s, %8.2f ms, %6.1f TFLOP/s\n", name, R * (double)b->T / seconds, 1e3 * seconds,
           flops / seconds * 1e-12);
}

static void run(bench *b) {
    double native[ROUNDS], replayed[ROUNDS], planning[ROUNDS];
    (void)step(b, false);
    record(b);
    for (int i = -1; i < ROUNDS; i++) { /* the first round warms up */
        const int at = i < 0 ? 0 : i;
        const double begin = now();
        plan(b);
        planning[at] = now() - begin;
        for (int k = 0; k < 2; k++) {
            const bool planned = (k + at) % 2 == 1;
            *(planned ? &replayed[at] : &native[at]) = step(b, planned);
        }
        wb_replay_abort(b->replay);
    }
    if (wb_comm_rank(b->control) != 0) return;
    print_case(b, "step, native  ", median(native, ROUNDS));
    print_case(b, "step, replayed", median(replayed, ROUNDS));
    printf("planning on the host: %.2f ms; %s\n", 1e3 * median(planning, ROUNDS),
           b->same ? "the same log-probabilities" : "OTHER LOG-PROBABILITIES");
    fflush(stdout);
}

/* ---- a rank -------------------------------------------------------------------------------------- */

static void open_routes(bench *b) {
    const size_t bytes = (size_t)b->T * row_bytes(b);
    wb_replay_options options = wb_replay_options_default();
    uint8_t *forced = take((size_t)b->T, 1);
    options.placement = wb_model_placement(b->model);
    must(wb_replay_open(wb_model_routes(b->model), &options, &b->replay));
    b->records = take((size_t)sequences(b), sizeof *b->records);
    b->rows = take((size_t)sequences(b), sizeof *b->rows);
    b->ids = take(bytes, 1);
    must(wb_device_alloc(b->device, bytes, &b->device_ids));
    must(wb_device_alloc(b->device, (size_t)b->T, &b->direction));
    memset(forced, WB_ROW_FORCED, (size_t)b->T);
    must(wb_device_upload(b->device, b->direction, forced, (size_t)b->T));
    free(forced);
}

static void open_bench(bench *b) {
    const int rank = wb_comm_rank(b->control);
    wb_model_options model = wb_model_options_default();
    wb_train_options train = wb_train_options_default();
    must(wb_device_open_cuda(rank, NULL, &b->device));
    if (wb_comm_size(b->control) == 1)
        b->comm = b->control;
    else
        must(wb_comm_open_nccl(b->control, rank, false, &b->comm));
    model.device = b->device;
    model.comm = b->comm;
    model.dtype = model.activations = WB_BF16;
    must(wb_model_create(&b->config, 1, 0.02F, &model, &b->model));
    train.max_tokens = b->T;
    train.keep_bytes = (uint64_t)1 << 40; /* all that there is to keep */
    must(wb_train_open(b->model, &train, &b->train));
    make_batch(b);
    open_routes(b);
}

static void close_bench(bench *b) {
    void *const host[] = {b->records,         b->rows,      b->tokens, b->targets, b->start, b->logprobs,
                          b->native_logprobs, b->dlogprobs, b->ids};
    wb_device_free(b->device, b->device_ids);
    wb_device_free(b->device, b->direction);
    wb_replay_close(b->replay);
    wb_train_close(b->train);
    wb_model_close(b->model);
    for (size_t i = 0; i < sizeof host / sizeof host[0]; i++) free(host[i]);
    if (b->comm != b->control) wb_comm_close(b->comm);
    wb_device_close(b->device);
    wb_comm_close(b->control);
}

static void *run_rank(void *argument) {
    bench *b = argument;
    const double begin = now();
    open_bench(b);
    if (wb_comm_rank(b->control) == 0)
        printf(
            "qwen3_moe, %d layers of Qwen3-30B-A3B, vocabulary %d, %lld tokens in sequences of %d, %d ranks; "
            "%.1f GiB of each device; made in %.1f s\n",
            b->config.n_layers, Q30_VOCABULARY, (long long)b->T, SEQUENCE, wb_comm_size(b->control),
            (double)b->device->peak_bytes / 1073741824.0, now() - begin);
    run(b);
    close_bench(b);
    return NULL;
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 3, "usage: bench_train_cuda [LAYERS [TOKENS [RANKS]]]\n", &code))
        return code;
    const int ranks = argc > 3 ? atoi(argv[3]) : 1;
    static bench benches[MAX_RANKS];
    wb_comm *controls[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    bool same = true;
    if (ranks < 1 || ranks > MAX_RANKS || wb_device_count_cuda() < ranks) {
        printf("%d CUDA devices, %d wanted\n", wb_device_count_cuda(), ranks);
        return 77;
    }
    must(wb_comm_open_threads(ranks, controls));
    for (int r = 0; r < ranks; r++) {
        benches[r] = (bench){.config = q30_config(argc > 1 ? atoi(argv[1]) : 8),
                             .T = argc > 2 ? atoll(argv[2]) : 16384,
                             .control = controls[r],
                             .same = true};
        if (pthread_create(&threads[r], NULL, run_rank, &benches[r]) != 0) abort();
    }
    for (int r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++) same = same && benches[r].same;
    return same ? 0 : 1;
}
