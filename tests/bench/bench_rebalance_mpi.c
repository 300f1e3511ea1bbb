/* bench_rebalance_mpi.c - how long generation waits while experts move between MPI processes: the pause of
 * one group of moves, and all pauses of a whole rebalance, beside a step that moves nothing.
 *
 * Usage: mpirun -n 2 bench_rebalance_mpi [rounds [cpu|cuda [check every]]]
 *
 * An engine on each rank answers `rounds` (12) batches of requests, whose prompts are of another part of the
 * vocabulary in each, so that the load changes; decisions are made every 16 steps, and whatever evens out the
 * load moves, one layer after the other. Printed are figures of rank 0 and the longest pause of any rank. On
 * CUDA, a GPU a rank, the sizes of a layer are Qwen3-30B-A3B's in bf16, and there are more requests. */
#include "support/usage.h"
#include "wb_comm_mpi.h"
#include "wb_rollout.h"
#ifdef WB_HAVE_NCCL
#include "wb_comm_nccl.h"
#endif

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_FIGURES = 1 << 16, REQUESTS = 16, PROMPT = 32, ANSWER = 32, PARTS = 4 };

static wb_config config = {
    .family = WB_FAMILY_QWEN3_MOE,
    .hidden_size = 256,
    .n_layers = 8,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 32,
    .expert_width = 128,
    .dense_width = 256,
    .vocab_size = 1024,
    .max_positions = 512,
    .norm_eps = 1e-6F,
    .rope_theta = 10000,
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 64, .top_k = 4, .normalize = true, .scale = 1},
    .moe_layer_mask = {255}};

typedef struct figures {
    int n;
    double values[MAX_FIGURES];
} figures;

static const wb_config config_cuda = {
    .family = WB_FAMILY_QWEN3_MOE,
    .hidden_size = 2048,
    .n_layers = 2,
    .n_heads = 32,
    .n_kv_heads = 4,
    .head_dim = 128,
    .expert_width = 768,
    .dense_width = 6144,
    .vocab_size = 1024,
    .max_positions = 512,
    .norm_eps = 1e-6F,
    .rope_theta = 10000,
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 128, .top_k = 8, .normalize = true, .scale = 1},
    .moe_layer_mask = {3}};
static int requests = REQUESTS;
static uint32_t check_every = 1;

typedef struct bench {
    wb_comm *control, *comm;
    wb_device *device;
    wb_model *model;
    wb_rebalance *manager;
    wb_engine *engine;
    uint64_t n_requests; /* so far */
    double waited;       /* in pauses of the rebalance that goes on */
    figures still, moving, pauses, rebalances;
} bench;

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "bench_rebalance_mpi: %s\n", wb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void add(figures *f, double seconds) {
    if (f->n < MAX_FIGURES) f->values[f->n++] = 1e3 * seconds;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_figures(const char *what, figures *f) {
    qsort(f->values, (size_t)f->n, sizeof f->values[0], by_value);
    if (f->n == 0)
        printf("%-34s none\n", what);
    else
        printf("%-34s %4d, ms: min %8.3f, median %8.3f, nine of ten below %8.3f, max %8.3f\n", what, f->n,
               f->values[0], f->values[f->n / 2], f->values[f->n * 9 / 10], f->values[f->n - 1]);
}

/* ---- the engine ---------------------------------------------------------------------------------- */

static wb_rebalance_options manager_options(void) {
    wb_rebalance_options o = wb_rebalance_options_default();
    o.every = 16;
    o.load.window = 16;
    o.sigmas = 0;
    o.horizon_passes = 1e18;
    o.layers_per_chunk = 1;
    o.check_every = check_every;
    return o;
}

static void open_plane(bench *b, bool cuda) {
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &b->control));
    b->comm = b->control;
    if (!cuda) {
        must(wb_device_open_cpu(1, &b->device));
        return;
    }
    const int rank = wb_comm_rank(b->control);
    must(wb_device_open_cuda(rank, NULL, &b->device));
#ifdef WB_HAVE_NCCL
    must(wb_comm_open_nccl(b->control, rank, false, &b->comm));
#endif
    config = config_cuda;
    requests = 4 * REQUESTS;
}

/* A redundant slot for each four experts. */
static void open_bench(bench *b, bool cuda) {
    wb_model_options model = wb_model_options_default();
    wb_engine_options engine = wb_engine_options_default();
    const wb_rebalance_options options = manager_options();
    open_plane(b, cuda);
    const uint32_t E = (uint32_t)config.router.n_experts;
    wb_placement *placement;
    const wb_topology topology = {
        .n_ranks = (uint32_t)wb_comm_size(b->comm), .n_nodes = 1, .n_slots = E + E / 4};
    must(wb_placement_open(&topology, (uint32_t)config.n_layers, E, &placement));
    model.device = b->device;
    if (cuda) model.dtype = model.activations = WB_BF16;
    model.comm = b->comm;
    model.placement = placement;
    must(wb_model_create(&config, 1, 0.05F, &model, &b->model));
    const wb_expert_store store = wb_model_expert_store(b->model);
    must(wb_rebalance_open(&store, &options, &b->manager));
    engine.max_running = requests;
    engine.rebalance = b->manager;
    must(wb_engine_open(b->model, &engine, &b->engine));
    wb_placement_close(placement);
}

static void close_bench(bench *b) {
    wb_engine_close(b->engine);
    wb_rebalance_close(b->manager);
    wb_model_close(b->model);
    if (b->comm != b->control) wb_comm_close(b->comm);
    wb_comm_close(b->control);
    wb_device_close(b->device);
}

static void submit(bench *b, int round) {
    for (int i = 0; i < requests; i++, b->n_requests++) {
        char rid[32];
        uint32_t tokens[PROMPT];
        wb_request request = wb_request_default();
        snprintf(rid, sizeof rid, "%" PRIu64, b->n_requests);
        for (uint32_t t = 0; t < PROMPT; t++) {
            const uint64_t at = b->n_requests * PROMPT + t + (uint64_t)wb_comm_rank(b->comm) * 1000003;
            const uint32_t part = (uint32_t)config.vocab_size / PARTS;
            tokens[t] = (uint32_t)(round % PARTS) * part + (uint32_t)((at * 2654435761U >> 8) % part);
        }
        request.rid = rid;
        request.tokens = tokens;
        request.n_tokens = PROMPT;
        request.max_tokens = ANSWER;
        request.seed = b->n_requests;
        must(wb_engine_submit(b->engine, &request));
    }
}

/* ---- steps --------------------------------------------------------------------------------------- */

static bool step(bench *b) {
    bool busy;
    const wb_rebalance_stats before = wb_rebalance_get_stats(b->manager);
    const double begin = now();
    must(wb_engine_step(b->engine, &busy));
    const double took = now() - begin;
    const wb_rebalance_stats after = wb_rebalance_get_stats(b->manager);
    const double pause = after.seconds - before.seconds;
    add(after.groups > before.groups ? &b->moving : &b->still, took);
    if (after.groups > before.groups) add(&b->pauses, pause);
    b->waited += pause;
    if (after.rebalances == before.rebalances) return busy;
    add(&b->rebalances, b->waited);
    b->waited = 0;
    return busy;
}

static void run(bench *b, int rounds) {
    for (int round = 0; round < rounds; round++) {
        submit(b, round);
        while (step(b)) {
        }
        for (wb_completion *c; (c = wb_engine_poll(b->engine));) wb_completion_free(c);
    }
}

static void report(bench *b) {
    const wb_rebalance_stats stats = wb_rebalance_get_stats(b->manager);
    uint64_t longest = (uint64_t)(1e9 * stats.longest_pause);
    must(wb_comm_all_reduce_max_u64(b->comm, &longest));
    if (wb_comm_rank(b->comm) != 0) return;
    printf("%d ranks: %" PRIu64 " rebalances, %" PRIu64 " groups, %" PRIu64
           " experts moved, %.2f MB to rank 0; longest pause of any rank %.3f ms\n",
           wb_comm_size(b->comm), stats.rebalances, stats.groups, stats.moves, 1e-6 * (double)stats.bytes,
           1e-6 * (double)longest);
    print_figures("steps that move nothing", &b->still);
    print_figures("steps that move a group", &b->moving);
    if (b->still.n > 0 && b->moving.n > 0)
        printf("of the medians: a step that moves a group takes %.3f of one that moves nothing\n",
               b->moving.values[b->moving.n / 2] / b->still.values[b->still.n / 2]);
    print_figures("  of these the pause of the group", &b->pauses);
    print_figures("all pauses of a rebalance", &b->rebalances);
}

int main(int argc, char **argv) {
    static bench b;
    int code;
    if (usage_ends(argc, argv, 0, 3,
                   "usage: mpirun -n RANKS bench_rebalance_mpi [ROUNDS [cpu|cuda [CHECK_EVERY]]]\n", &code))
        return code;
    MPI_Init(&argc, &argv);
    int rounds = argc > 1 ? atoi(argv[1]) : 12;
    if (rounds < 1) rounds = 12;
    if (argc > 3) check_every = (uint32_t)atoi(argv[3]);
    open_bench(&b, argc > 2 && argv[2][0] == 'c' && argv[2][1] == 'u');
    run(&b, rounds);
    report(&b);
    close_bench(&b);
    MPI_Finalize();
    return 0;
}
