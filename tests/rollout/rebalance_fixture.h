/* rebalance_fixture.h - ranks that are threads, each with an engine whose experts move while it generates. */
#ifndef WB_REBALANCE_FIXTURE_H
#define WB_REBALANCE_FIXTURE_H

#include "engine_fixture.h"
#include "support/mailbox_ops.h"

#include <pthread.h>
#include <unistd.h>

enum { MAX_RANKS = 4, N_EXPERTS = 12, N_LAYERS = 3 };

static inline wb_config moving_config(void) {
    return tiny_config(WB_FAMILY_QWEN3_MOE, N_EXPERTS, 3, N_LAYERS + 1, 2);
}

/* A vocabulary of few tokens, of which a random MTP layer guesses some: latent attention, or a gated delta
 * net, whose state goes back when a guess is wrong. N_LAYERS of its layers are MoE. */
static inline wb_config guessing_config(wb_family family) {
    const bool all_moe = family == WB_FAMILY_QWEN3_5_MOE;
    wb_config c = tiny_config(family, N_EXPERTS, 3, N_LAYERS + !all_moe, !all_moe);
    c.vocab_size = 7;
    c.n_mtp_layers = family == WB_FAMILY_DEEPSEEK_V3 ? 2 : 1;
    return c;
}

static const wb_family guessing_families[] = {WB_FAMILY_DEEPSEEK_V3, WB_FAMILY_QWEN3_NEXT,
                                              WB_FAMILY_QWEN3_5_MOE};
enum { N_GUESSING = sizeof guessing_families / sizeof guessing_families[0] };

/* Two layers that are routed by a table of few tokens, whose load is far from even, and one that is not. */
static inline wb_config hashing_config(void) {
    wb_config c = tiny_config(WB_FAMILY_DEEPSEEK_V4, N_EXPERTS, 3, N_LAYERS, 0);
    c.vocab_size = 7;
    c.hash_layer_mask[0] = 3;
    return c;
}

/* One rank of a job; what is above the line is set by whoever runs it. */
typedef struct mover {
    wb_comm *comm;
    uint64_t seed;
    uint8_t dead[MAX_RANKS]; /* nonzero: the rank has no expert, and requests of its own like any other */
    wb_rebalance_options options;
    wb_config config; /* n_layers 0: moving_config; of N_LAYERS MoE layers and N_EXPERTS experts */
    int32_t max_drafts;
    bool feeds_once; /* no token of few requests is taken over or fed again */
    void (*play)(struct mover *);
    void *context;
    bool shares; /* devices reach each other: rows go by mailboxes, experts are put */
    /* ---- */
    wb_device *device;
    wb_model *model;
    wb_engine *engine;
    wb_rebalance *manager;
    uint64_t counts[N_LAYERS][N_EXPERTS]; /* of this rank's answers */
    wb_rebalance_stats stats;             /* at the end */
} mover;

static inline int rank_of(const mover *m) {
    return wb_comm_rank(m->comm);
}

/* Uneven numbers of slots, which all ranks make of one seed: one a rank at least, and E that live. */
static inline wb_placement *uneven_placement(dice *d, int R, uint32_t n_layers, const uint8_t *dead) {
    uint32_t slots_of_rank[MAX_RANKS];
    uint32_t S = 0, live = 0;
    for (int r = 0; r < R; r++) {
        S += slots_of_rank[r] = pick(d, 1, 2 * N_EXPERTS / (uint32_t)R);
        live += dead[r] ? 0 : slots_of_rank[r];
    }
    while (live < N_EXPERTS) {
        const uint32_t r = pick(d, 0, (uint32_t)R - 1);
        if (!dead[r]) slots_of_rank[r]++, S++, live++;
    }
    const wb_topology topology = {.n_ranks = (uint32_t)R,
                                  .n_nodes = R % 2 == 0 ? (uint32_t)R / 2 : 1,
                                  .n_slots = S,
                                  .slots_of_rank = slots_of_rank,
                                  .dead = dead};
    wb_placement *placement;
    must(wb_placement_open(&topology, n_layers, N_EXPERTS, &placement), "placement");
    return placement;
}

/* Every rank has every expert, so that it can give any engine its weights. */
static inline wb_placement *full_placement(int R, uint32_t n_layers) {
    const wb_topology topology = {.n_ranks = (uint32_t)R, .n_nodes = 1, .n_slots = (uint32_t)R * N_EXPERTS};
    wb_placement *placement;
    must(wb_placement_open(&topology, n_layers, N_EXPERTS, &placement), "placement");
    return placement;
}

static inline wb_config config_of(const mover *m) {
    return m->config.n_layers > 0 ? m->config : moving_config();
}

static inline wb_model *moving_model(mover *m, uint64_t seed, const wb_placement *placement,
                                     bool inference_only) {
    const wb_config config = config_of(m);
    wb_model_options options = wb_model_options_default();
    options.device = m->device;
    options.comm = m->comm;
    options.placement = placement;
    options.inference_only = inference_only;
    options.dispatch = m->seed % 2 == 0 ? WB_DISPATCH_STATIC : WB_DISPATCH_DYNAMIC;
    wb_model *model;
    must(wb_model_create(&config, seed, 0.4f, &options, &model), "model");
    return model;
}

static void *run_mover(void *arg) {
    mover *m = arg;
    dice d = {m->seed};
    must(wb_device_open_cpu(1, &m->device), "device");
    if (m->shares) mailbox_ops_give(m->device);
    wb_placement *placement = uneven_placement(&d, wb_comm_size(m->comm), N_LAYERS, m->dead);
    m->model = moving_model(m, 5, placement, m->seed / 2 % 2 == 0);
    const wb_expert_store store = wb_model_expert_store(m->model);
    must(wb_rebalance_open(&store, &m->options, &m->manager), "manager");
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 64, options.block_size = 4, options.max_batch_tokens = 16, options.max_running = 6;
    options.rebalance = m->manager;
    options.max_drafts = m->max_drafts;
    if (m->feeds_once) options.n_blocks = 256, options.prefix_cache = false;
    must(wb_engine_open(m->model, &options, &m->engine), "engine");
    m->play(m);
    m->stats = wb_rebalance_get_stats(m->manager);
    wb_engine_close(m->engine);
    wb_rebalance_close(m->manager);
    wb_model_close(m->model);
    wb_placement_close(placement);
    wb_device_close(m->device);
    return NULL;
}

/* `movers` [n], filled above the line but for the communicators. */
static inline void run_movers(int n, mover *movers) {
    wb_comm *comms[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    must(wb_comm_open_threads(n, comms), "comms");
    for (int r = 0; r < n; r++) {
        movers[r].comm = comms[r];
        if (pthread_create(&threads[r], NULL, run_mover, &movers[r]) != 0) abort();
    }
    for (int r = 0; r < n; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < n; r++) wb_comm_close(comms[r]);
}

/* Decides often, on whatever was counted, and moves whatever changes. */
static inline wb_rebalance_options eager_options(void) {
    wb_rebalance_options o = wb_rebalance_options_default();
    o.every = 3;
    o.sigmas = 0;
    o.horizon_passes = 1e18;
    o.load.window = 8;
    o.solver.trials = 200;
    return o;
}

/* ---- what a run answers ------------------------------------------------------------------------ */

/* Asks number first .. first + n - 1, all at once; each answer is what the request alone gets of a model of
 * one rank with the weights of `seed`. */
static inline void answer_as_alone(mover *m, uint64_t seed, uint32_t first, uint32_t n) {
    const wb_config config = config_of(m);
    rig alone = rig_open(&config, seed, 1, NULL);
    ask *asks = take(n, sizeof *asks);
    for (uint32_t i = 0; i < n; i++) {
        dice d = {m->seed + 1000 * (uint64_t)rank_of(m) + first + i};
        asks[i] = ask_random(&d, first + i, (uint32_t)config.vocab_size, 20, 24);
        must(wb_engine_submit(m->engine, ask_request(&asks[i])), "submit");
    }
    run_dry(m->engine, 5000);
    for (uint32_t i = 0; i < n; i++) {
        wb_completion *found = wb_engine_poll(m->engine);
        if (!found) abort();
        ask *a = asks;
        while (strcmp(a->rid, found->record.rid) != 0) a++;
        wb_completion *expected = run_alone(alone.model, a);
        /* The version is a name that the two engines need not share. */
        const char *what = difference(wb_model_routes(alone.model), expected, found);
        if (what && strcmp(what, "spans") != 0) {
            fprintf(stderr, "seed %" PRIu64 ", rank %d of %d: request %s: %s differ\n", m->seed, rank_of(m),
                    wb_comm_size(m->comm), a->rid, what);
            abort();
        }
        wb_record_count(wb_model_routes(alone.model), &found->record, 0, UINT32_MAX, &m->counts[0][0]);
        wb_completion_free(expected);
        wb_completion_free(found);
    }
    free(asks);
    rig_close(&alone);
}

#endif
