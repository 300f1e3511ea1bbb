/* bench_packed_case.h - the sequences of bench_packed, which are made up, in micro-batches as they come
 * and as they are packed, and a model for each way.
 *
 * Routes are forced: a sequence is about one of 4 topics, which has its own popular experts; lengths are
 * log-normal. Experts have the same number of slots in all ways, 5 for each 4, and as sequences come they
 * lie as a placement begins. */
#ifndef BENCH_PACKED_CASE_H
#define BENCH_PACKED_CASE_H

#include "bench/bench_tools.h"
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

/* ---- sequences ----------------------------------------------------------------------------------- */

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

#endif
