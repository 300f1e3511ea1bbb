/* bench_packed.h - a replayed step of one rank as its sequences came, and packed, placed and planned from
 * its own routes: collectives, bytes, balancedness and time, in turns. Rank 0 prints.
 *
 * Routes are made up, and forced: a sequence is about one of 4 topics, which has its own popular experts;
 * lengths are log-normal. A step is what waybill-grpo does with a batch: a forward of all micro-batches,
 * then a forward and a backward of each, and the sum of the gradients. Beside the time of a step stands
 * the sum over its passes of the slowest rank's processor time, which on a machine with fewer cores than
 * ranks is nearer to what ranks with processors of their own would take (between threads; MPI's ranks
 * spin). Experts have the same number of slots in both, 5 for each 4, and in the first lie as a placement
 * begins. */
#ifndef BENCH_PACKED_H
#define BENCH_PACKED_H

#include "wb_eplb.h"
#include "wb_model.h"
#include "wb_pack.h"
#include "wb_random.h"
#include "wb_replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OF_RANK = 24, GROUP = 8, TOPICS = 4, MIN_SEQ = 8, MAX_SEQ = 256, BATCH_ROWS = 512, MAX_REPEATS = 99 };
enum { L = 4, E = 32, K = 4, VOCABULARY = 512, MAX_BATCHES = 64 };

static const wb_config config = {
    .family = WB_FAMILY_QWEN3_MOE,
    .hidden_size = 128,
    .n_layers = L,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 32,
    .expert_width = 256,
    .dense_width = 64,
    .vocab_size = VOCABULARY,
    .max_positions = 2048,
    .norm_eps = 1e-6F,
    .rope_theta = 10000,
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = E, .top_k = K, .scale = 1},
    .moe_layer_mask = {(1 << L) - 1}};

/* What travels with a record. */
typedef struct baggage {
    float logprobs[MAX_SEQ]; /* of the step as it came */
} baggage;

/* A micro-batch of this rank. */
typedef struct fed {
    int32_t T, n;
    int32_t tokens[BATCH_ROWS], targets[BATCH_ROWS], start[BATCH_ROWS + 1];
    const wb_record *records[BATCH_ROWS];
    float *logprobs[BATCH_ROWS]; /* [n] where those of each sequence go, or are expected */
} fed;

/* One way to run the step. */
typedef struct way {
    const char *name;
    bool planned;
    int32_t M;
    fed *batches; /* [M] */
    wb_model *model;
    wb_train *train;
    wb_replay *replay;
    double seconds[MAX_REPEATS], planning; /* of the latest plan */
    /* Of threads: processor seconds of each pass of the latest step on this rank, [2 * M], and of each step
     * the sum over passes of the slowest rank's. */
    double passes[2 * MAX_BATCHES], slowest[MAX_REPEATS];
    uint64_t comm_calls, exchange_calls, exchange_bytes;
} way;

typedef struct bench {
    wb_comm *comm;
    wb_device *device;
    wb_record records[OF_RANK];
    wb_route_rows runs[OF_RANK];
    wb_pack_sequence sequences[OF_RANK];
    baggage *bags; /* [OF_RANK] */
    wb_pack *pack;
    uint64_t pack_calls; /* collectives of the packing */
    uint8_t *ids;        /* [BATCH_ROWS] rows of routes */
    way ways[3];
} bench;

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "bench_packed: %s\n", wb_error_message());
    exit(1);
}

static void *take(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) abort();
    return memory;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- sequences ----------------------------------------------------------------------------------- */

static double uniform(uint64_t *state) {
    return ((double)(wb_random(state) >> 11) + 0.5) * 0x1p-53;
}

static double normal(uint64_t *state) {
    const double u = uniform(state);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * uniform(state));
}

/* K distinct experts, each as likely as its weight among those that are left: the largest of log weight plus
 * a Gumbel number. */
static void choose(const double *log_weights, uint64_t *state, uint8_t *ids_out) {
    double key[E];
    for (int e = 0; e < E; e++) key[e] = log_weights[e] - log(-log(uniform(state)));
    for (int k = 0; k < K; k++) {
        int best = 0;
        for (int e = 1; e < E; e++)
            if (key[e] > key[best]) best = e;
        ids_out[k] = (uint8_t)best;
        key[best] = -INFINITY;
    }
}

static void make_sequence(bench *b, int i, const double *log_weights, uint64_t *state) {
    const int rank = wb_comm_rank(b->comm), number = (rank * OF_RANK + i) / GROUP;
    const double *topic = log_weights + number % TOPICS * L * E;
    const uint32_t rows = (uint32_t)fmin(MAX_SEQ, fmax(MIN_SEQ, 64 * exp(0.8 * normal(state))));
    uint32_t *tokens = take(rows + 1, sizeof *tokens);
    uint8_t *ids = take(rows, L * K);
    char *rid = take(32, 1);
    snprintf(rid, 32, "r%d-%d", rank, i);
    for (uint32_t t = 0; t <= rows; t++) tokens[t] = wb_random_below(state, VOCABULARY);
    for (uint32_t t = 0; t < rows; t++)
        for (int l = 0; l < L; l++) choose(topic + l * E, state, ids + (t * L + (uint32_t)l) * K);
    b->runs[i] = (wb_route_rows){0, rows, ids, NULL};
    b->records[i] =
        (wb_record){.rid = rid, .n_tokens = rows + 1, .tokens = tokens, .n_routes = 1, .routes = &b->runs[i]};
    b->sequences[i] = (wb_pack_sequence){&b->records[i], rows, 0};
}

static void make_sequences(bench *b) {
    double log_weights[TOPICS * L * E];
    uint64_t shared = wb_mix64(1), own = wb_mix64(2 + (uint64_t)wb_comm_rank(b->comm));
    for (int i = 0; i < TOPICS * L * E; i++) log_weights[i] = 1.2 * normal(&shared);
    for (int i = 0; i < OF_RANK; i++) make_sequence(b, i, log_weights, &own);
}

/* ---- micro-batches ------------------------------------------------------------------------------- */

static void add(fed *f, const wb_record *record, float *logprobs) {
    f->records[f->n] = record;
    f->logprobs[f->n] = logprobs;
    for (uint32_t t = 0; t + 1 < record->n_tokens; t++, f->T++) {
        f->tokens[f->T] = (int32_t)record->tokens[t];
        f->targets[f->T] = (int32_t)record->tokens[t + 1];
    }
    f->start[++f->n] = f->T;
}

/* As packing.c of waybill-grpo has it: in their order, as many as fit. */
static void as_it_comes(bench *b, way *w) {
    uint64_t M = 1;
    w->batches = take(MAX_BATCHES, sizeof *w->batches);
    for (int i = 0; i < OF_RANK; i++) {
        if (w->batches[M - 1].T + (int32_t)b->sequences[i].rows > BATCH_ROWS) M++;
        add(&w->batches[M - 1], &b->records[i], b->bags[i].logprobs);
    }
    must(wb_comm_all_reduce_max_u64(b->comm, &M));
    w->M = (int32_t)M;
}

static uint64_t comm_calls(const bench *b) {
    const wb_comm_count c = wb_comm_stats(b->comm);
    return c.all_gathers + c.all_to_alls + c.broadcasts + c.barriers;
}

/* Seconds of it; needs the log-probabilities of the step as it came. */
static double pack(bench *b) {
    wb_pack_options options = wb_pack_options_default();
    options.max_rows = BATCH_ROWS;
    options.cost = wb_pack_cost_of((uint32_t)config.hidden_size, 128, 64, (uint32_t)config.expert_width, L);
    const uint64_t calls = comm_calls(b);
    const double begin = now();
    must(wb_pack_open(b->comm, wb_model_routes(b->ways[0].model), &options, OF_RANK, b->sequences, &b->pack));
    must(wb_pack_move(b->pack, b->comm, sizeof *b->bags, b->bags));
    b->pack_calls = comm_calls(b) - calls;
    return now() - begin;
}

static void as_packed(bench *b, way *w) {
    w->M = wb_pack_micro_batches(b->pack);
    w->batches = take((size_t)w->M, sizeof *w->batches);
    for (int32_t m = 0; m < w->M; m++) {
        uint32_t n;
        const wb_pack_item *items = wb_pack_items(b->pack, m, &n);
        for (uint32_t i = 0; i < n; i++)
            add(&w->batches[m], items[i].record, ((baggage *)(uintptr_t)items[i].extra)->logprobs);
    }
}

/* ---- models -------------------------------------------------------------------------------------- */

static wb_placement *place(bench *b, double *seconds_out) {
    const uint32_t R = (uint32_t)wb_comm_size(b->comm);
    const wb_topology topology = {.n_ranks = R, .n_nodes = 1, .n_slots = E + E / 4};
    wb_eplb_options options = wb_eplb_options_default();
    wb_placement *placement;
    const double begin = now();
    options.algorithm = WB_EPLB_MICROBATCH;
    options.threads = 1;
    options.trials = 1000 * topology.n_slots; /* as waybill-grpo */
    if (b->pack)
        must(wb_eplb_solve(&topology, L, E, (uint32_t)wb_pack_micro_batches(b->pack), wb_pack_loads(b->pack),
                           &options, &placement));
    else
        must(wb_placement_open(&topology, L, E, &placement));
    *seconds_out = now() - begin;
    return placement;
}

/* The same weights under any placement. */
static void open_way(bench *b, way *w, const wb_placement *placement) {
    wb_model_options model = wb_model_options_default();
    wb_train_options train = wb_train_options_default();
    wb_replay_options replay = wb_replay_options_default();
    model.device = b->device;
    model.comm = b->comm;
    model.placement = placement;
    model.dispatch = replay.dispatch = WB_DISPATCH_DYNAMIC;
    train.max_tokens = BATCH_ROWS;
    must(wb_model_create(&config, 1, 0.05F, &model, &w->model));
    must(wb_train_open(w->model, &train, &w->train));
    replay.placement = wb_model_placement(w->model);
    must(wb_replay_open(wb_model_routes(w->model), &replay, &w->replay));
}

/* ---- the step ------------------------------------------------------------------------------------ */

static void plan(bench *b, way *w) {
    int64_t n;
    wb_segment segments[BATCH_ROWS];
    must(wb_comm_barrier(b->comm));
    const double begin = now();
    wb_replay_clear(w->replay);
    for (int32_t m = 0; m < w->M; m++)
        for (int32_t i = 0; i < w->batches[m].n; i++)
            must(wb_replay_add(w->replay, wb_model_routes(w->model), w->batches[m].records[i]));
    must(wb_replay_begin(w->replay, WB_REPLAY_ROLLOUT, w->M));
    for (int32_t m = 0; m < w->M; m++) {
        const fed *f = &w->batches[m];
        for (int32_t i = 0; i < f->n; i++) {
            const wb_record *r = f->records[i];
            segments[i] = wb_replay_segment(w->replay, r->rid, 0, r->n_tokens - 1, r->tokens);
        }
        must(wb_replay_plan(w->replay, m, f->n, segments));
    }
    if (w->planned) must(wb_replay_plan_dispatch(w->replay, b->comm, &n));
    w->planning = now() - begin;
}

static void forward(bench *b, way *w, int32_t m, float *logprobs_out) {
    const fed *f = &w->batches[m];
    wb_replay_slice rows;
    must(wb_replay_rows(w->replay, m, WB_ALL_LAYERS, 0, (uint32_t)f->T, &rows));
    if (f->T > 0) memcpy(b->ids, rows.ids, (size_t)f->T * L * K);
    const wb_train_batch batch = {
        .T = f->T, .tokens = f->tokens, .targets = f->targets, .n_seqs = f->n, .seq_start = f->start};
    const wb_routing routing = {.ids = b->ids,
                                .direction = rows.direction,
                                .planned = wb_replay_layer_plan(w->replay, m, WB_ALL_LAYERS)};
    must(wb_train_forward(w->train, &batch, &routing, NULL, logprobs_out));
}

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_step(bench *b, way *w) {
    float logprobs[BATCH_ROWS], dlogprobs[BATCH_ROWS];
    double begin;
    for (int i = 0; i < BATCH_ROWS; i++) dlogprobs[i] = -1.0F / BATCH_ROWS;
    for (int32_t m = 0; m < w->M; m++) {
        begin = processor_seconds();
        forward(b, w, m, logprobs);
        w->passes[m] = processor_seconds() - begin;
    }
    must(wb_train_zero_grads(w->train));
    for (int32_t m = 0; m < w->M; m++) {
        begin = processor_seconds();
        forward(b, w, m, logprobs);
        must(m + 1 < w->M ? wb_train_backward(w->train, dlogprobs)
                          : wb_train_backward_last(w->train, dlogprobs));
        w->passes[w->M + m] = processor_seconds() - begin;
    }
}

static wb_exchange_count exchanged(const way *w) {
    wb_exchange_count sum = {0}, count;
    for (int kind = 0; kind < WB_EXCHANGE_KINDS; kind++) {
        must(wb_exchange_stats(wb_model_exchange(w->model), (wb_exchange_kind)kind, &count));
        sum.calls += count.calls;
        sum.bytes += count.bytes;
    }
    return sum;
}

/* Sum over ranks and the maximum of them. */
static void over_ranks(bench *b, double value, double *sum_out, double *max_out) {
    double all[64];
    *sum_out = *max_out = 0;
    must(wb_comm_all_gather(b->comm, &value, sizeof value, all));
    for (int r = 0; r < wb_comm_size(b->comm); r++) {
        *sum_out += all[r];
        *max_out = fmax(*max_out, all[r]);
    }
}

static void timed_step(bench *b, way *w, int repeat) {
    must(wb_comm_barrier(b->comm));
    const uint64_t calls = comm_calls(b);
    const wb_exchange_count before = exchanged(w);
    const double begin = now();
    run_step(b, w);
    w->comm_calls = comm_calls(b) - calls;
    must(wb_comm_barrier(b->comm));
    w->seconds[repeat] = now() - begin;
    w->slowest[repeat] = 0;
    for (int32_t i = 0; i < 2 * w->M; i++) {
        double sum, max;
        over_ranks(b, w->passes[i], &sum, &max);
        w->slowest[repeat] += max;
    }
    const wb_exchange_count after = exchanged(w);
    w->exchange_calls = after.calls - before.calls;
    w->exchange_bytes = after.bytes - before.bytes;
}

/* The log-probabilities of each sequence are kept, or expected to be those that were. */
static bool first_forward(bench *b, way *w, bool keep) {
    float logprobs[BATCH_ROWS];
    bool same = true;
    for (int32_t m = 0; m < w->M; m++) {
        const fed *f = &w->batches[m];
        forward(b, w, m, logprobs);
        for (int32_t i = 0; i < f->n; i++) {
            const size_t bytes = (size_t)(f->start[i + 1] - f->start[i]) * sizeof(float);
            if (keep)
                memcpy(f->logprobs[i], logprobs + f->start[i], bytes);
            else
                same = same && memcmp(f->logprobs[i], logprobs + f->start[i], bytes) == 0;
        }
    }
    return same;
}

/* ---- figures ------------------------------------------------------------------------------------- */

/* Sum of means over sum of maxima, of the rows of experts in each (micro-batch, layer), and of attention in
 * each micro-batch: a rank's sum of T (T + 1) / 2. The way needs plans for it. */
static void balancedness(bench *b, const way *w, double *experts_out, double *attention_out) {
    const int R = wb_comm_size(b->comm);
    const uint32_t rank = (uint32_t)wb_comm_rank(b->comm);
    const wb_placement *p = wb_model_placement(w->model);
    const uint32_t here = wb_placement_first_slot(p, rank + 1) - wb_placement_first_slot(p, rank);
    double means = 0, maxima = 0, sum, max, attention_means = 0, attention_maxima = 0;
    for (int32_t m = 0; m < w->M; m++) {
        double pairs = 0;
        for (int32_t i = 0; i < w->batches[m].n; i++) {
            const double T = w->batches[m].start[i + 1] - w->batches[m].start[i];
            pairs += T * (T + 1) / 2;
        }
        over_ranks(b, pairs, &sum, &max);
        attention_means += sum / R;
        attention_maxima += max;
        for (int l = 0; l < L; l++) {
            const wb_planned_layer *plan = wb_replay_layer_plan(w->replay, m, l);
            double rows = 0;
            for (uint32_t i = 0; i < (uint32_t)R * here; i++) rows += plan->received[i];
            over_ranks(b, rows, &sum, &max);
            means += sum / R;
            maxima += max;
        }
    }
    *experts_out = means / maxima;
    *attention_out = attention_means / attention_maxima;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_way(bench *b, way *w, int repeats, double preparing) {
    double experts, attention, bytes, most;
    const bool planned = w->planned;
    w->planned = true;
    wb_replay_abort(w->replay);
    plan(b, w);
    w->planned = planned;
    balancedness(b, w, &experts, &attention);
    over_ranks(b, (double)w->exchange_bytes, &bytes, &most);
    double rows = (double)wb_replay_max_expert_rows(w->replay), sum;
    over_ranks(b, rows, &sum, &rows);
    if (wb_comm_rank(b->comm) != 0) return;
    qsort(w->seconds, (size_t)repeats, sizeof *w->seconds, by_value);
    qsort(w->slowest, (size_t)repeats, sizeof *w->slowest, by_value);
    printf("| %s | %d | %.3f | %.3f | %llu | %llu | %.2f | %.2f | %.0f | %.1f (%.1f) | %.1f (%.1f) | %.2f | "
           "%.2f |\n",
           w->name, w->M, attention, experts, (unsigned long long)w->comm_calls,
           (unsigned long long)w->exchange_calls, bytes / 1e6, most / 1e6, rows,
           1e3 * w->seconds[repeats / 2], 1e3 * w->seconds[0], 1e3 * w->slowest[repeats / 2],
           1e3 * w->slowest[0], 1e3 * w->planning, 1e3 * preparing);
    fflush(stdout);
}

static void close_bench(bench *b) {
    for (int i = 0; i < 3; i++) {
        wb_replay_close(b->ways[i].replay);
        wb_train_close(b->ways[i].train);
        wb_model_close(b->ways[i].model);
        free(b->ways[i].batches);
    }
    wb_pack_close(b->pack);
    for (int i = 0; i < OF_RANK; i++) {
        free((void *)(uintptr_t)b->records[i].rid);
        free((void *)(uintptr_t)b->records[i].tokens);
        free((void *)(uintptr_t)b->runs[i].ids);
    }
    free(b->bags);
    free(b->ids);
    wb_device_close(b->device);
}

static void open_bench(bench *b, double *packing_out, double *solving_out) {
    static const char *const names[] = {"as it comes", "as it comes, planned", "packed, placed, planned"};
    b->bags = take(OF_RANK, sizeof *b->bags);
    b->ids = take(BATCH_ROWS, L * K);
    must(wb_device_open_cpu(1, &b->device));
    make_sequences(b);
    wb_placement *placement = place(b, solving_out);
    for (int i = 0; i < 2; i++) {
        b->ways[i].planned = i > 0;
        open_way(b, &b->ways[i], placement);
        as_it_comes(b, &b->ways[i]);
        plan(b, &b->ways[i]);
    }
    first_forward(b, &b->ways[0], true);
    *packing_out = pack(b);
    wb_placement_close(placement);
    placement = place(b, solving_out);
    b->ways[2].planned = true;
    open_way(b, &b->ways[2], placement);
    as_packed(b, &b->ways[2]);
    plan(b, &b->ways[2]);
    wb_placement_close(placement);
    for (int i = 0; i < 3; i++) b->ways[i].name = names[i];
}

/* One rank's part. */
static void bench_run(wb_comm *comm, int repeats) {
    bench *b = take(1, sizeof *b);
    double packing, solving, moved, most;
    b->comm = comm;
    open_bench(b, &packing, &solving);
    const bool same = first_forward(b, &b->ways[1], false) & first_forward(b, &b->ways[2], false);
    double differ = !same, ranks;
    over_ranks(b, differ, &ranks, &differ);
    for (int i = -1; i < repeats; i++)
        for (int j = 0; j < 3; j++) timed_step(b, &b->ways[(i + 1 + j) % 3], i < 0 ? 0 : i);
    const wb_pack_stats stats = wb_pack_get_stats(b->pack);
    over_ranks(b, (double)stats.moved_bytes, &moved, &most);
    if (wb_comm_rank(comm) == 0)
        printf("%s, %d ranks, %d repeats; log-probabilities: %s; packing: %llu collectives, %.3f MB gathered "
               "a rank, %llu of "
               "%d sequences moved, %.2f MB\n\n"
               "| step | M | attention | experts | comm calls | exchanges | MB, all ranks | MB, most "
               "| rows, most | ms, median (min) | slowest ranks, ms | planning ms | packing, solving ms |\n"
               "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
               wb_comm_name(comm), wb_comm_size(comm), repeats, differ > 0 ? "DIFFERENT" : "the same bits",
               (unsigned long long)b->pack_calls, (double)stats.gathered_bytes / 1e6,
               (unsigned long long)stats.moved_sequences, OF_RANK * wb_comm_size(comm), moved / 1e6);
    for (int i = 0; i < 3; i++) print_way(b, &b->ways[i], repeats, i == 2 ? packing + solving : 0);
    close_bench(b);
    free(b);
}

#endif
