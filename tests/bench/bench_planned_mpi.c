/* bench_planned_mpi.c - a replayed training step between MPI processes: with the plans that replay made
 * before it, and without them, when each layer tells its counts on the way.
 *
 * Usage: mpirun -n 2 bench_planned_mpi [repeats]
 *
 * For each size of micro-batch the two run in turns, each first in every other round. Printed are medians
 * over `repeats` (31), and minima, which a busy machine disturbs least, of the time of a step's forwards and
 * backwards, and the median of the planning. The model is so small that its products do not hide an
 * exchange. */
#include "support/usage.h"
#include "wb_comm_mpi.h"
#include "wb_model.h"
#include "wb_replay.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_TOKENS = 256, MAX_REPEATS = 99, SEQ_LEN = 128 };

static const wb_config config = {
    .family = WB_FAMILY_QWEN3_MOE,
    .hidden_size = 64,
    .n_layers = 8,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 16,
    .expert_width = 32,
    .dense_width = 64,
    .vocab_size = 512,
    .max_positions = 2048,
    .norm_eps = 1e-6F,
    .rope_theta = 10000,
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 32, .top_k = 4, .scale = 1},
    .moe_layer_mask = {255}};

typedef struct bench {
    wb_comm *comm;
    wb_device *device;
    wb_model *model;
    wb_train *train;
    wb_replay *replay;
    int32_t n, T; /* micro-batches of a step, tokens of one */
    int32_t tokens[MAX_TOKENS + 1], targets[MAX_TOKENS], start[MAX_TOKENS / SEQ_LEN + 2];
    float logprobs[MAX_TOKENS], dlogprobs[MAX_TOKENS];
    uint8_t *ids; /* [MAX_TOKENS] rows of routes */
} bench;

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "bench_planned_mpi: %s\n", wb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

static void open_bench(bench *b) {
    wb_model_options model = wb_model_options_default();
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &b->comm));
    must(wb_device_open_cpu(1, &b->device));
    model.device = b->device;
    model.comm = b->comm;
    must(wb_model_create(&config, 1, 0.05F, &model, &b->model));
    must(wb_train_open(b->model, NULL, &b->train));
    wb_replay_options replay = wb_replay_options_default();
    replay.placement = wb_model_placement(b->model);
    must(wb_replay_open(wb_model_routes(b->model), &replay, &b->replay));
    b->ids = calloc(MAX_TOKENS, wb_route_row_bytes(wb_model_routes(b->model)));
    if (!b->ids) abort();
}

static void close_bench(bench *b) {
    free(b->ids);
    wb_replay_close(b->replay);
    wb_train_close(b->train);
    wb_model_close(b->model);
    wb_device_close(b->device);
    wb_comm_close(b->comm);
}

/* Sequences of SEQ_LEN tokens, the last one shorter. */
static wb_train_batch batch_of(bench *b) {
    int32_t n = 0;
    for (int32_t t = 0; t < b->T; t += SEQ_LEN) b->start[n++] = t;
    b->start[n] = b->T;
    for (int32_t t = 0; t <= b->T; t++)
        b->tokens[t] = (int32_t)(((uint32_t)t * 2654435761U + (uint32_t)wb_comm_rank(b->comm)) >> 16) %
                       config.vocab_size;
    for (int32_t t = 0; t < b->T; t++) {
        b->targets[t] = b->tokens[t + 1];
        b->dlogprobs[t] = -1.0F / (float)b->T;
    }
    return (wb_train_batch){
        .T = b->T, .tokens = b->tokens, .targets = b->targets, .n_seqs = n, .seq_start = b->start};
}

/* One record of all T tokens, which chose as the model does now, is every micro-batch's. */
static void record(bench *b, const wb_train_batch *batch) {
    static wb_route_rows run;
    static wb_record all;
    const wb_routing routing = {.ids = b->ids};
    must(wb_train_forward(b->train, batch, &routing, NULL, b->logprobs));
    run = (wb_route_rows){0, (uint32_t)b->T, b->ids, NULL};
    all = (wb_record){.rid = "request",
                      .n_tokens = (uint32_t)b->T + 1,
                      .tokens = (const uint32_t *)b->tokens,
                      .n_routes = 1,
                      .routes = &run};
    wb_replay_clear(b->replay);
    must(wb_replay_add(b->replay, wb_model_routes(b->model), &all));
}

/* Seconds of wb_replay_plan_dispatch. */
static double plan_step(bench *b) {
    int64_t planned;
    must(wb_replay_begin(b->replay, WB_REPLAY_ROLLOUT, b->n));
    for (int32_t m = 0; m < b->n; m++) {
        const wb_segment segment =
            wb_replay_segment(b->replay, "request", 0, (uint32_t)b->T, (const uint32_t *)b->tokens);
        must(wb_replay_plan(b->replay, m, 1, &segment));
    }
    must(wb_comm_barrier(b->comm));
    const double begin = now();
    must(wb_replay_plan_dispatch(b->replay, b->comm, &planned));
    return now() - begin;
}

/* Seconds of the forwards and backwards. */
static double run_step(bench *b, const wb_train_batch *batch, bool planned) {
    must(wb_comm_barrier(b->comm));
    const double begin = now();
    for (int32_t m = 0; m < b->n; m++) {
        wb_replay_slice rows;
        must(wb_replay_rows(b->replay, m, WB_ALL_LAYERS, 0, (uint32_t)b->T, &rows));
        const wb_routing routing = {.ids = b->ids,
                                    .direction = rows.direction,
                                    .planned =
                                        planned ? wb_replay_layer_plan(b->replay, m, WB_ALL_LAYERS) : NULL};
        must(wb_train_forward(b->train, batch, &routing, NULL, b->logprobs));
        must(wb_train_backward(b->train, b->dlogprobs));
    }
    must(wb_comm_barrier(b->comm));
    return now() - begin;
}

static void run_case(bench *b, int32_t n, int32_t T, int repeats) {
    double native[MAX_REPEATS], planned[MAX_REPEATS], planning[MAX_REPEATS];
    b->n = n;
    b->T = T;
    const wb_train_batch batch = batch_of(b);
    record(b, &batch);
    for (int i = -1; i < repeats; i++) {
        const int at = i < 0 ? 0 : i; /* the first round warms up */
        planning[at] = plan_step(b);
        const bool first = i % 2 == 0;
        *(first ? &planned[at] : &native[at]) = run_step(b, &batch, first);
        *(first ? &native[at] : &planned[at]) = run_step(b, &batch, !first);
        wb_replay_abort(b->replay);
    }
    if (wb_comm_rank(b->comm) != 0) return;
    const double slow = median(native, repeats), fast = median(planned, repeats);
    printf("%3d micro-batches of %4d tokens, median (min) of %d: native %8.2f (%8.2f) ms, planned %8.2f "
           "(%8.2f) ms, "
           "planning %6.3f ms\n",
           n, T, repeats, 1e3 * slow, 1e3 * native[0], 1e3 * fast, 1e3 * planned[0],
           1e3 * median(planning, repeats));
    fflush(stdout);
}

int main(int argc, char **argv) {
    static bench b;
    int code;
    if (usage_ends(argc, argv, 0, 1, "usage: mpirun -n RANKS bench_planned_mpi [REPEATS]\n", &code))
        return code;
    MPI_Init(&argc, &argv);
    int repeats = argc > 1 ? atoi(argv[1]) : 31;
    if (repeats < 1 || repeats > MAX_REPEATS) repeats = 31;
    open_bench(&b);
    run_case(&b, 32, 4, repeats);
    run_case(&b, 8, 32, repeats);
    run_case(&b, 4, MAX_TOKENS, repeats);
    close_bench(&b);
    MPI_Finalize();
    return 0;
}
