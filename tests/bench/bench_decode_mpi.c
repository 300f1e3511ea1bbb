/* bench_decode_mpi.c - decoding with the experts on several GPUs, under mpirun, a GPU a rank: rows of experts
 * by mailboxes in graphs, by mailboxes op by op, and by the exchange (NCCL, with counts), in turns and with
 * the same tokens; then with weights of experts that travel meanwhile, by the exchange and by copy engines.
 *
 *     mpirun -n 2 bench_decode_mpi [LAYERS [BATCH...]]       4 layers; 16, 64 and 128 requests a rank
 *
 * A qwen3_moe of Qwen3-30B-A3B's sizes with random weights, bf16, prompts of 1024 tokens, greedy. Printed are
 * rank 0's clocks: medians of decoding steps that every rank makes with its whole batch. What moves is in
 * each step a group of so many experts to the next rank, started before the step: as a group of the exchange,
 * waited for behind it, or put into that rank's memory (wb_shared_memory.h), by the device's clock. Beside it
 * the same alone, and raw sends and receives of as many bytes alone. Where the ranks have no GPUs of their
 * own they share them, and the exchange is MPI's: of that the tokens are worth looking at, and no time.
 * Refuses: which experts move (bench_rebalance_mpi). */
#include "support/usage.h"

#ifdef WB_HAVE_NCCL
#include "bench/bench_q30.h"
#include "bench/bench_raw_nccl.h"
#include "cuda/cuda_device.h"
#include "exchange_memory.h"
#include "model_weights.h"
#include "wb_comm_mpi.h"
#include "wb_comm_nccl.h"
#include "wb_rollout.h"
#endif

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef WB_HAVE_NCCL
enum { CONTEXT = 1024, NEW_TOKENS = 40, VOCABULARY = 32768, BLOCK = 64, MAX_BATCH = 128, MAX_MOVED = 64 };

typedef struct bench {
    wb_comm *control, *comm;
    wb_device *device;
    wb_model *model;
    wb_engine *engine;
    wb_exchange *moves;
    char *from, *to;     /* device, [R][MAX_MOVED experts] */
    wb_shared_area area; /* MAX_MOVED experts */
    raw_nccl raw;
    size_t expert_bytes;
    cudaEvent_t begin, end; /* of puts */
    int rank, ranks;
    uint64_t digest; /* of all that was decoded */
} bench;

/* How rows of experts travel. */
typedef enum way { MAILBOX_GRAPHS, MAILBOXES, EXCHANGE, WAYS } way;
static const char *const way_names[WAYS] = {"mailboxes, graphs", "mailboxes, op by op", "exchange"};

/* ---- groups that move ---------------------------------------------------------------------------- */

static uint64_t start_move(bench *b, size_t experts) {
    const int to = (b->rank + 1) % b->ranks, from = (b->rank - 1 + b->ranks) % b->ranks;
    wb_transfer transfers[2 * MAX_MOVED];
    uint64_t work;
    for (size_t i = 0; i < experts; i++) {
        transfers[2 * i] = (wb_transfer){to, false, b->from + i * b->expert_bytes, b->expert_bytes};
        transfers[2 * i + 1] = (wb_transfer){from, true, b->to + i * b->expert_bytes, b->expert_bytes};
    }
    must(wb_exchange_start_group(b->moves, transfers, 2 * experts, &work));
    return work;
}

/* The stream that puts lie on, which the first one makes. */
static cudaStream_t puts_of(const bench *b) {
    return ((const wb_cuda_device *)(const void *)b->device)->puts;
}

/* Between two events on their stream: what they take is the device's time, and no thread of the host has to
 * wait for them while the step needs it. */
static void start_puts(bench *b, size_t experts) {
    char *const there = b->area.of_rank[(b->rank + 1) % b->ranks];
    raw_must(cudaEventRecord(b->begin, puts_of(b)) == cudaSuccess, "event");
    for (size_t i = 0; i < experts; i++)
        must(b->device->memory_put(b->device, there + i * b->expert_bytes, b->from + i * b->expert_bytes,
                                   b->expert_bytes));
    raw_must(cudaEventRecord(b->end, puts_of(b)) == cudaSuccess, "event");
}

/* How experts travel beside a step. */
typedef enum road { BY_EXCHANGE, BY_PUTS } road;

static uint64_t set_out(bench *b, road by, size_t experts) {
    if (experts == 0) return 0;
    if (by == BY_EXCHANGE) return start_move(b, experts);
    start_puts(b, experts);
    return 0;
}

/* Returns when it has all come: how long it took, which is set out at `begin`. */
static double arrive(bench *b, road by, uint64_t work, double begin) {
    float ms = 0;
    if (by == BY_PUTS) {
        must(b->device->memory_settle(b->device));
        raw_must(cudaEventElapsedTime(&ms, b->begin, b->end) == cudaSuccess, "event");
        return 1e-3 * (double)ms;
    }
    must(wb_exchange_wait(b->moves, work));
    must(b->device->to_host(b->device, NULL, NULL, 0));
    return MPI_Wtime() - begin;
}

/* ---- steps --------------------------------------------------------------------------------------- */

static void submit(bench *b, int32_t number) {
    static uint32_t prompt[CONTEXT];
    char rid[32];
    for (uint32_t t = 0; t < CONTEXT; t++)
        prompt[t] =
            (((uint32_t)(number * b->ranks + b->rank) * 4096 + t + 1) * 2654435761U >> 16) % VOCABULARY;
    snprintf(rid, sizeof rid, "request-%d", number);
    wb_request request = wb_request_default();
    request.rid = rid;
    request.n_tokens = CONTEXT;
    request.tokens = prompt;
    request.max_tokens = NEW_TOKENS;
    request.temperature = 0;
    must(wb_engine_submit(b->engine, &request));
}

static void take_way(bench *b, way w, const wb_device *whole, int64_t max_tokens) {
    b->device->graph_begin = w == MAILBOXES ? NULL : whole->graph_begin;
    b->model->mailboxes.max_tokens = w == EXCHANGE ? -1 : max_tokens;
}

static void digest_completions(bench *b) {
    for (wb_completion *c; (c = wb_engine_poll(b->engine));) {
        const wb_record *r = &c->record;
        uint64_t hash = 14695981039346656037U;
        for (uint32_t i = r->prompt_len; i < r->n_tokens; i++) {
            uint32_t bits;
            memcpy(&bits, &r->logprobs[i - r->prompt_len], sizeof bits);
            hash = ((hash ^ r->tokens[i]) * 1099511628211U ^ bits) * 1099511628211U;
        }
        b->digest += hash;
        wb_completion_free(c);
    }
}

/* Seconds of a decoding step of `batch` requests on each rank, the median; `moved` experts travel in each,
 * and take *moving_out, the median. */
static double decode(bench *b, int32_t batch, road by, size_t moved, double *moving_out) {
    double samples[2 * NEW_TOKENS], moving[2 * NEW_TOKENS];
    int n = 0;
    b->digest = 0;
    for (int32_t i = 0; i < batch; i++) submit(b, i);
    for (bool busy = true; busy;) {
        const wb_engine_stats before = wb_engine_get_stats(b->engine);
        const double begin = MPI_Wtime();
        const uint64_t work = set_out(b, by, moved);
        must(wb_engine_step(b->engine, &busy));
        const double travelled = moved > 0 ? arrive(b, by, work, begin) : 0, took = MPI_Wtime() - begin;
        const wb_engine_stats after = wb_engine_get_stats(b->engine);
        const bool whole = after.decode_tokens - before.decode_tokens == (uint64_t)batch;
        if (!whole || after.prefill_tokens != before.prefill_tokens || n == 2 * NEW_TOKENS) continue;
        moving[n] = travelled;
        samples[n++] = took;
    }
    digest_completions(b);
    if (moving_out) *moving_out = n > 0 ? median(moving, n) : 0;
    return n > 0 ? median(samples, n) : 0;
}

/* Seconds of as many alone, the median. */
static double move_alone(bench *b, road by, size_t moved) {
    double samples[NEW_TOKENS];
    for (int i = 0; i < NEW_TOKENS; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        const double begin = MPI_Wtime();
        samples[i] = arrive(b, by, set_out(b, by, moved), begin);
    }
    return median(samples, NEW_TOKENS);
}

/* And of one raw send and receive of the same bytes; of more than two ranks with each other one. */
static double raw_alone(bench *b, size_t moved) {
    const size_t bytes = moved * b->expert_bytes / (size_t)(b->ranks - 1);
    double samples[NEW_TOKENS];
    for (int i = 0; i < NEW_TOKENS; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        const double begin = MPI_Wtime();
        raw_call(&b->raw, b->from, b->to, bytes);
        raw_wait(&b->raw);
        samples[i] = MPI_Wtime() - begin;
    }
    return median(samples, NEW_TOKENS);
}

/* ---- what is printed ----------------------------------------------------------------------------- */

static void compare_ways(bench *b, int32_t batch) {
    const wb_device whole = *b->device;
    const int64_t max_tokens = b->model->mailboxes.max_tokens;
    uint64_t digests[WAYS];
    for (int w = 0; w < WAYS; w++) {
        take_way(b, (way)w, &whole, max_tokens);
        must(decode(b, batch, BY_EXCHANGE, 0, NULL) > 0
                 ? WB_OK
                 : wb_fail(WB_INVALID_ARGUMENT, "no step of a whole batch"));
        const double step = decode(b, batch, BY_EXCHANGE, 0, NULL);
        digests[w] = b->digest;
        if (b->rank == 0)
            printf("batch %4d a rank, %-20s a step %8.1f us, a layer %7.1f us, %8.0f tok/s of all ranks\n",
                   batch, way_names[w], 1e6 * step, 1e6 * step / b->model->config.n_layers,
                   batch * b->ranks / step);
    }
    take_way(b, MAILBOX_GRAPHS, &whole, max_tokens);
    for (int w = 1; w < WAYS; w++)
        must(digests[w] == digests[0]
                 ? WB_OK
                 : wb_fail(WB_CORRUPT, "%s: other tokens or log-probabilities than by %s", way_names[w],
                           way_names[0]));
}

/* `moved` experts in each step, one way. raw, still: seconds. */
static void compare_road(bench *b, int32_t batch, road by, size_t moved, double raw, double still) {
    const double gb = 1e-9 * (double)(moved * b->expert_bytes), alone = move_alone(b, by, moved);
    double moving = 0;
    const double step = decode(b, batch, by, moved, &moving);
    if (b->rank == 0)
        printf("  %-11s alone %6.1f GB/s; beside the step %6.1f GB/s, of raw %.2f; the step %8.1f us, of one "
               "that moves nothing %.3f\n",
               by == BY_PUTS ? "by puts" : "by exchange", gb / alone, gb / moving, raw / moving, 1e6 * step,
               step / still);
}

static void compare_moves(bench *b, int32_t batch) {
    static const size_t moved[] = {1, 2, 8, 16, 32, 64};
    for (size_t i = 0; i < sizeof moved / sizeof moved[0]; i++) {
        const double raw = raw_alone(b, moved[i]), gb = 1e-9 * (double)(moved[i] * b->expert_bytes);
        const double still = decode(b, batch, BY_EXCHANGE, 0, NULL);
        if (b->rank == 0)
            printf(
                "batch %4d a rank, %2zu experts a step, raw send and receive %6.1f GB/s, a step that moves "
                "nothing %8.1f us\n",
                batch, moved[i], gb / raw, 1e6 * still);
        compare_road(b, batch, BY_EXCHANGE, moved[i], raw, still);
        if (b->area.of_rank[(b->rank + 1) % b->ranks]) compare_road(b, batch, BY_PUTS, moved[i], raw, still);
    }
}

/* ---- opening ------------------------------------------------------------------------------------- */

static int rank_of_host(void) {
    MPI_Comm host;
    int rank = 0;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &rank);
    MPI_Comm_free(&host);
    return rank;
}

static void open_bench(bench *b, const wb_config *config) {
    wb_model_options model = wb_model_options_default();
    wb_engine_options engine = wb_engine_options_default();
    const int gpu = rank_of_host(), gpus = wb_device_count_cuda();
    void *memory[2];
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &b->control));
    must(wb_comm_set_timeout(b->control, 20));
    b->rank = wb_comm_rank(b->control);
    b->ranks = wb_comm_size(b->control);
    if (gpus == 0) must(wb_fail(WB_UNSUPPORTED, "no CUDA device"));
    must(wb_device_open_cuda(gpu % gpus, NULL, &b->device));
    const wb_status nccl = wb_comm_open_nccl(b->control, gpu, false, &b->comm);
    if (nccl == WB_UNSUPPORTED) b->comm = b->control;
    must(nccl == WB_UNSUPPORTED ? WB_OK : nccl);
    model.device = b->device;
    model.comm = b->comm;
    model.dtype = model.activations = WB_BF16;
    must(wb_model_create(config, 1, 0.02F, &model, &b->model));
    engine.block_size = BLOCK;
    engine.n_blocks = MAX_BATCH * (CONTEXT / BLOCK + 1);
    engine.max_running = MAX_BATCH;
    engine.max_batch_tokens = 8192;
    must(wb_engine_open(b->model, &engine, &b->engine));
    b->expert_bytes = (size_t)3 * 768 * 2048 * 2;
    for (int i = 0; i < 2; i++)
        must(wb_device_alloc(b->device, (size_t)b->ranks * MAX_MOVED * b->expert_bytes, &memory[i]));
    b->from = memory[0], b->to = memory[1];
    const wb_exchange_memory exchange = wb_device_exchange_memory(b->device);
    must(wb_exchange_open(b->comm, &exchange, &b->moves));
    must(wb_exchange_reserve(b->moves, 2 * MAX_MOVED));
    must(wb_shared_area_open(&b->area, b->device, b->comm, MAX_MOVED * b->expert_bytes));
    raw_must(cudaEventCreate(&b->begin) == cudaSuccess && cudaEventCreate(&b->end) == cudaSuccess, "event");
    if (b->area.of_rank[(b->rank + 1) % b->ranks]) /* which makes their stream */
        must(b->device->memory_put(b->device, b->area.of_rank[(b->rank + 1) % b->ranks], b->from, 16));
    if (b->comm != b->control) raw_open(&b->raw);
}

static void close_bench(bench *b) {
    raw_must(cudaEventDestroy(b->begin) == cudaSuccess && cudaEventDestroy(b->end) == cudaSuccess, "event");
    if (b->comm != b->control) raw_close(&b->raw);
    wb_shared_area_close(&b->area);
    wb_exchange_close(b->moves);
    wb_device_free(b->device, b->from);
    wb_device_free(b->device, b->to);
    wb_engine_close(b->engine);
    wb_model_close(b->model);
    if (b->comm != b->control) wb_comm_close(b->comm);
    wb_comm_close(b->control);
    wb_device_close(b->device);
}

static void run(int argc, char **argv) {
    static bench b;
    static const int32_t usual[] = {16, 64, 128};
    wb_config config = q30_config(argc > 1 ? atoi(argv[1]) : 4);
    const int n = argc > 2 ? argc - 2 : 3;
    config.vocab_size = VOCABULARY;
    open_bench(&b, &config);
    if (b.rank == 0)
        printf("qwen3_moe, %d layers of Qwen3-30B-A3B, vocabulary %d, prompts of %d, %d ranks, exchange: %s, "
               "mailboxes: %s\n",
               config.n_layers, VOCABULARY, CONTEXT, b.ranks, wb_comm_name(b.comm),
               wb_has_mailboxes(&b.model->mailboxes) ? "yes" : "no");
    decode(&b, 16, BY_EXCHANGE, 0, NULL); /* to warm up */
    for (int i = 0; i < n; i++) compare_ways(&b, argc > 2 ? atoi(argv[2 + i]) : usual[i]);
    if (b.comm != b.control) compare_moves(&b, argc > 2 ? atoi(argv[2]) : 64);
    close_bench(&b);
}
#else
static void run(int argc, char **argv) {
    (void)argc, (void)argv;
    printf("skip: built without NCCL\n");
}
#endif

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 64, "usage: mpirun -n RANKS bench_decode_mpi [LAYERS [BATCH...]]\n", &code))
        return code;
    MPI_Init(&argc, &argv);
    run(argc, argv);
    MPI_Finalize();
    return 0;
}
