/* rebalance_core.h - a manager over experts that are plain bytes, one core for threads and MPI: what each
 * slot holds can be computed, so that every map can be compared with the memory that it names. */
#ifndef WB_REBALANCE_CORE_H
#define WB_REBALANCE_CORE_H

#include "wb_check.h"
#include "wb_hash.h"
#include "wb_memory.h"
#include "wb_random.h"
#include "wb_rebalance.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CORE_LAYERS = 4, CORE_EXPERTS = 16, CORE_K = 2, MAX_KINDS = 4, MAX_CORE_RANKS = 4 };

/* Tensors of an expert: [slots of this rank][bytes] of each layer. */
typedef struct core_kind {
    size_t bytes;
    unsigned char *slots[CORE_LAYERS];
} core_kind;

typedef struct core_put {
    unsigned char *to;
    const void *from;
    size_t bytes;
} core_put;

typedef struct core {
    wb_comm *comm;
    uint64_t seed;
    uint8_t dead[MAX_CORE_RANKS]; /* of the placement's topology */
    wb_exchange *exchange;
    wb_placement *placement; /* in force; before core_open NULL, or one to begin with */
    core_kind kinds[MAX_KINDS];
    int n_kinds;
    uint64_t version; /* of the bytes: weights are replaced by another one */
    void *shadow;
    size_t shadow_bytes;
    /* Ranks are threads, of which so many in a row reach each other's shadow memory; 0: none does. Puts are
     * made by settle, so that who does not wait for it finds nothing. */
    int host_ranks;
    bool halves;     /* boundaries are begun and ended, with a pass between */
    bool pass_fails; /* on rank 1, of which the others hear before anything is exchanged */
    int n_failed_beside_moves;
    unsigned char *shadow_of[MAX_CORE_RANKS];
    core_put *puts; /* [n_puts] */
    size_t n_puts, max_puts;
    uint64_t n_put; /* so far */
    wb_rebalance *manager;
    int failures;
    /* ---- faults ---- */
    long damage_copy; /* counts down with each byte range that arrives; at 1 one byte is changed; 0: never */
    bool refuse_slots, refuse_puts, damage_put;
    /* Counts down with the slots that are asked for; at 1 the process kills itself; 0: never. */
    long dies_after;
    uint64_t latest_moves, most_moves; /* of one boundary */
    uint64_t latest_groups;
} core;

static inline void core_fail(core *c, const char *what, int line) {
    fprintf(stderr, "rank %d of %d, seed %" PRIu64 ", line %d: %s (last message: %s)\n",
            wb_comm_rank(c->comm), wb_comm_size(c->comm), c->seed, line, what, wb_error_message());
    c->failures++;
}
#define CORE_CHECK(c, held) ((held) ? (void)0 : core_fail(c, #held, __LINE__))
#define CORE_OK(c, call) CORE_CHECK(c, (call) == WB_OK)

/* ---- the store --------------------------------------------------------------------------------- */

static inline wb_status core_host_alloc(void *context, size_t bytes, void **host_out) {
    (void)context;
    *host_out = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return *host_out ? WB_OK : wb_fail(WB_OUT_OF_MEMORY, "host_alloc: %zu bytes", bytes);
}
static inline void core_host_free(void *context, void *host) {
    (void)context;
    free(host);
}
static inline wb_status core_to_host(void *context, void *host, const void *device, size_t bytes) {
    (void)context;
    if (bytes > 0) memcpy(host, device, bytes);
    return WB_OK;
}
static inline wb_status core_to_device(void *context, void *device, const void *host, size_t bytes) {
    (void)context;
    if (bytes > 0) memcpy(device, host, bytes);
    return WB_OK;
}
static inline wb_status core_copy(void *context, void *to, const void *from, size_t bytes) {
    (void)context;
    if (bytes > 0) memcpy(to, from, bytes);
    return WB_OK;
}
static inline wb_status core_add(void *context, size_t n, const float *x, float *y) {
    (void)context;
    for (size_t i = 0; i < n; i++) y[i] += x[i];
    return WB_OK;
}

static inline wb_exchange_memory core_memory(core *c) {
    return (wb_exchange_memory){.size = sizeof(wb_exchange_memory),
                                .context = c,
                                .host_access = true,
                                .host_alloc = core_host_alloc,
                                .host_free = core_host_free,
                                .to_host = core_to_host,
                                .to_device = core_to_device,
                                .copy = core_copy,
                                .add = core_add};
}

static inline const wb_placement *core_placement(void *context) {
    return ((core *)context)->placement;
}

static inline uint32_t core_first_slot(const core *c) {
    return wb_placement_first_slot(c->placement, (uint32_t)wb_comm_rank(c->comm));
}

static inline uint32_t core_n_slots(const core *c) {
    return wb_placement_first_slot(c->placement, (uint32_t)wb_comm_rank(c->comm) + 1) - core_first_slot(c);
}

static inline wb_status core_slot(void *context, uint32_t layer, wb_physical_id slot, size_t max,
                                  wb_expert_part *parts_out, size_t *n_out) {
    core *c = context;
    const uint32_t at = slot.slot - core_first_slot(c);
    if (c->refuse_slots) return WB_DEVICE;
    if (c->dies_after > 0 && --c->dies_after == 0) raise(SIGKILL);
    for (int i = 0; i < c->n_kinds && (size_t)i < max; i++)
        parts_out[i] = (wb_expert_part){c->kinds[i].slots[layer] + at * c->kinds[i].bytes, c->kinds[i].bytes};
    *n_out = (size_t)c->n_kinds;
    return WB_OK;
}

static inline wb_status core_shadow(void *context, size_t bytes, void **shadow_out, bool *reached_out) {
    core *c = context;
    const int R = wb_comm_size(c->comm);
    const int own = wb_comm_rank(c->comm);
    for (int r = 0; r < R; r++)
        reached_out[r] = c->host_ranks > 0 && r != own && r / c->host_ranks == own / c->host_ranks;
    if (bytes > c->shadow_bytes) {
        void *more = malloc(bytes);
        if (!more) return wb_fail(WB_OUT_OF_MEMORY, "shadow slots: no memory for %zu bytes", bytes);
        free(c->shadow);
        c->shadow = more;
        c->shadow_bytes = bytes;
    }
    *shadow_out = c->shadow;
    return c->host_ranks > 0 ? wb_comm_all_gather(c->comm, &c->shadow, sizeof c->shadow, c->shadow_of)
                             : WB_OK;
}

static inline wb_status core_put_part(void *context, uint32_t rank, size_t offset, const void *data,
                                      size_t bytes) {
    core *c = context;
    WB_TRY(WB_GROW(c->puts, c->n_puts + 1, &c->max_puts, "puts"));
    c->puts[c->n_puts++] = (core_put){c->shadow_of[rank] + offset, data, bytes};
    c->n_put++;
    return WB_OK;
}

static inline wb_status core_settle(void *context) {
    core *c = context;
    const size_t n = c->n_puts;
    c->n_puts = 0;
    if (c->refuse_puts) return wb_fail(WB_DEVICE, "settle: made to fail");
    for (size_t i = 0; i < n; i++) {
        core_copy(c, c->puts[i].to, c->puts[i].from, c->puts[i].bytes);
        if (c->damage_put && c->puts[i].bytes > 0) c->puts[i].to[c->puts[i].bytes / 2] ^= 1;
    }
    return WB_OK;
}

/* ---- what slots hold ---------------------------------------------------------------------------- */

static inline unsigned char core_byte(const core *c, int kind, uint32_t layer, int32_t expert, size_t i) {
    const uint64_t name = c->version << 40 | (uint64_t)kind << 32 | (uint64_t)layer << 16 | (uint32_t)expert;
    return (unsigned char)(wb_mix64(name) >> i % 57 ^ i * 31);
}

static inline void core_fill_kind(core *c, int kind) {
    for (uint32_t l = 0; l < CORE_LAYERS; l++) {
        const wb_layer_map map = wb_placement_layer(c->placement, l);
        for (uint32_t s = 0; s < core_n_slots(c); s++) {
            const int32_t e = map.expert_of_slot[core_first_slot(c) + s];
            for (size_t i = 0; i < c->kinds[kind].bytes && e >= 0; i++)
                c->kinds[kind].slots[l][s * c->kinds[kind].bytes + i] = core_byte(c, kind, l, e, i);
        }
    }
}

/* The registry gains a tensor. */
static inline void core_add_kind(core *c, size_t bytes) {
    core_kind *kind = &c->kinds[c->n_kinds];
    kind->bytes = bytes;
    for (uint32_t l = 0; l < CORE_LAYERS; l++) kind->slots[l] = calloc(core_n_slots(c) + 1, bytes + 1);
    core_fill_kind(c, c->n_kinds++);
}

/* Weights are replaced, in other memory. */
static inline void core_replace(core *c) {
    c->version++;
    for (int k = 0; k < c->n_kinds; k++) {
        for (uint32_t l = 0; l < CORE_LAYERS; l++) {
            free(c->kinds[k].slots[l]);
            c->kinds[k].slots[l] = calloc(core_n_slots(c) + 1, c->kinds[k].bytes + 1);
        }
        core_fill_kind(c, k);
    }
}

/* Every slot that the map in force names holds its expert. */
static inline void core_check_slots(core *c) {
    for (int k = 0; k < c->n_kinds; k++)
        for (uint32_t l = 0; l < CORE_LAYERS; l++) {
            const wb_layer_map map = wb_placement_layer(c->placement, l);
            for (uint32_t s = 0; s < core_n_slots(c); s++) {
                const int32_t e = map.expert_of_slot[core_first_slot(c) + s];
                const unsigned char *at = c->kinds[k].slots[l] + s * c->kinds[k].bytes;
                for (size_t i = 0; i < c->kinds[k].bytes && e >= 0; i++)
                    if (at[i] != core_byte(c, k, l, e, i)) {
                        core_fail(c, "a slot holds what its map does not say", __LINE__);
                        return;
                    }
            }
        }
}

static inline wb_status core_take(void *context, const wb_placement *placement) {
    core *c = context;
    WB_TRY(wb_placement_check_equal(placement, c->comm));
    for (uint32_t l = 0; l < CORE_LAYERS; l++) {
        const uint64_t epoch = wb_placement_layer(placement, l).epoch;
        if (epoch > wb_placement_layer(c->placement, l).epoch)
            WB_TRY(wb_placement_copy_layers(c->placement, placement, 1, &l, epoch));
    }
    core_check_slots(c);
    return WB_OK;
}

/* ---- life -------------------------------------------------------------------------------------- */

static inline wb_placement *core_topology(int R, uint32_t n_slots, const uint8_t *dead) {
    const wb_topology topology = {.n_ranks = (uint32_t)R,
                                  .n_nodes = R % 2 == 0 ? (uint32_t)R / 2 : 1,
                                  .n_slots = n_slots,
                                  .dead = dead};
    wb_placement *placement = NULL;
    if (wb_placement_open(&topology, CORE_LAYERS, CORE_EXPERTS, &placement) != WB_OK) abort();
    return placement;
}

static inline wb_status core_digest(void *context, const void *data, size_t bytes, uint64_t *digest_out) {
    (void)context;
    *digest_out = wb_hash64(data, bytes);
    return WB_OK;
}

static inline wb_expert_store core_store(core *c) {
    return (wb_expert_store){.size = sizeof(wb_expert_store),
                             .context = c,
                             .exchange = c->exchange,
                             .memory = core_memory(c),
                             .placement = core_placement,
                             .slot = core_slot,
                             .shadow = core_shadow,
                             .put = core_put_part,
                             .settle = core_settle,
                             .digest = core_digest,
                             .take = core_take};
}

static inline void core_open(core *c, const wb_rebalance_options *options) {
    const wb_exchange_memory memory = core_memory(c);
    const uint32_t R = (uint32_t)wb_comm_size(c->comm);
    if (!c->placement) c->placement = core_topology((int)R, CORE_EXPERTS + 4 * R, c->dead);
    CORE_OK(c, wb_exchange_open(c->comm, &memory, &c->exchange));
    core_add_kind(c, 300);
    core_add_kind(c, 7);
    const wb_expert_store store = core_store(c);
    CORE_OK(c, wb_rebalance_open(&store, options, &c->manager));
}

static inline void core_close(core *c) {
    wb_rebalance_close(c->manager);
    wb_exchange_close(c->exchange);
    wb_placement_close(c->placement);
    for (int k = 0; k < c->n_kinds; k++)
        for (uint32_t l = 0; l < CORE_LAYERS; l++) free(c->kinds[k].slots[l]);
    free(c->shadow);
    free(c->puts);
}

/* ---- passes ------------------------------------------------------------------------------------- */

/* T tokens of one layer, of which expert e gets a part that grows with `weights`[e]. */
static inline void core_record(core *c, uint32_t layer, uint32_t T, const double *weights, uint64_t *state) {
    uint8_t ids[512 * CORE_K];
    double sum = 0;
    for (int e = 0; e < CORE_EXPERTS; e++) sum += weights[e];
    for (uint32_t i = 0; i < T * CORE_K; i++) {
        double at = (double)(wb_random(state) >> 11) / 9007199254740992.0 * sum;
        int e = 0;
        while (e < CORE_EXPERTS - 1 && at >= weights[e]) at -= weights[e++];
        ids[i] = (uint8_t)e;
    }
    const wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = T, .K = CORE_K};
    CORE_OK(c, wb_rebalance_record(c->manager, WB_PHASE_DECODE, (int32_t)layer, &rows));
}

/* Each layer another permutation of the same skew. */
static inline void core_skewed_pass(core *c, double skew, uint64_t *state) {
    for (uint32_t l = 0; l < CORE_LAYERS; l++) {
        double weights[CORE_EXPERTS];
        for (uint32_t e = 0; e < CORE_EXPERTS; e++)
            weights[e] = 1 + skew * (double)((e * 7 + l * 3) % CORE_EXPERTS) / CORE_EXPERTS;
        core_record(c, l, 200, weights, state);
    }
}

/* What a pass does with the exchange of the store while experts are under way. */
static inline void core_pass_between(core *c) {
    const wb_status own =
        c->pass_fails && wb_comm_rank(c->comm) == 1 ? wb_fail(WB_DEVICE, "pass: made to fail") : WB_OK;
    if (wb_comm_agree(c->comm, own) != WB_OK) {
        const bool moving = wb_rebalance_get_stats(c->manager).stage == WB_REBALANCE_MOVING;
        c->n_failed_beside_moves += moving;
        core_check_slots(c);
        return;
    }
    const size_t R = (size_t)wb_comm_size(c->comm);
    float sums[3 * MAX_CORE_RANKS], scratch[64];
    uint64_t work;
    const size_t n = 2 * R + 1;
    for (size_t i = 0; i < n; i++) sums[i] = (float)(i + 1);
    CORE_CHECK(c, wb_exchange_all_reduce_scratch(c->exchange, n) <= 64);
    CORE_OK(c, wb_exchange_start_all_reduce(c->exchange, sums, n, scratch, &work));
    CORE_OK(c, wb_exchange_wait(c->exchange, work));
    for (size_t i = 0; i < n; i++) CORE_CHECK(c, sums[i] == (float)((i + 1) * R));
    core_check_slots(c);
}

static inline wb_status core_halves(core *c) {
    WB_TRY(wb_rebalance_begin_boundary(c->manager));
    CORE_CHECK(c, wb_rebalance_begin_boundary(c->manager) == WB_INVALID_ARGUMENT);
    core_pass_between(c);
    WB_TRY(wb_rebalance_end_boundary(c->manager));
    CORE_CHECK(c, wb_rebalance_end_boundary(c->manager) == WB_INVALID_ARGUMENT);
    return WB_OK;
}

/* One boundary; what it moved is one round's at most: each rank receives for one group. */
static inline wb_status core_boundary(core *c) {
    const wb_status status = c->halves ? core_halves(c) : wb_rebalance_boundary(c->manager);
    const wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    const uint64_t moved = stats.moves - c->latest_moves;
    /* As a pass would take its time: tests count boundaries, and on a busy machine the solver waits for its
     * turn. */
    if (stats.stage == WB_REBALANCE_SOLVING) usleep(2000);
    if (moved > c->most_moves) c->most_moves = moved;
    CORE_CHECK(c, stats.groups - c->latest_groups <= CORE_LAYERS);
    c->latest_moves = stats.moves;
    c->latest_groups = stats.groups;
    return status;
}

static inline wb_rebalance_options core_options(void) {
    wb_rebalance_options o = wb_rebalance_options_default();
    o.every = 4;
    o.horizon_passes = 1e18;
    o.load.window = 8;
    o.patience = 100000;
    return o;
}

/* Passes until a rebalance has ended, all layers with the same load. */
static inline void core_rebalance(core *c, uint64_t *state) {
    const uint64_t before = wb_rebalance_get_stats(c->manager).rebalances;
    for (int i = 0; i < 2000 && wb_rebalance_get_stats(c->manager).rebalances == before; i++) {
        core_skewed_pass(c, 20, state);
        if (core_boundary(c) != WB_OK) break;
    }
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).rebalances > before);
    core_check_slots(c);
}

/* Tokens of a dead rank are counted like any other's, and no expert goes there. */
static inline void core_check_dead(core *c) {
    if (!c->dead[wb_comm_rank(c->comm)]) return;
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).bytes == 0);
    for (uint32_t l = 0; l < CORE_LAYERS; l++)
        for (uint32_t s = 0; s < core_n_slots(c); s++)
            CORE_CHECK(c, wb_placement_layer(c->placement, l).expert_of_slot[core_first_slot(c) + s] ==
                              WB_NO_EXPERT);
}

/* The whole of it: a rebalance, weights replaced, a tensor gained, and another load; rank `dead` is so, and
 * host_ranks in a row reach each other, whose boundaries have two halves. */
static inline int core_life(wb_comm *comm, uint64_t seed, int dead, int host_ranks) {
    core state = {.comm = comm, .seed = seed, .host_ranks = host_ranks, .halves = host_ranks > 0},
         *c = &state;
    if (dead >= 0) c->dead[dead] = 1;
    uint64_t random = seed * 64 + (uint64_t)wb_comm_rank(comm);
    const wb_rebalance_options options = core_options();
    core_open(c, &options);
    if (wb_comm_size(comm) > 1) {
        core_rebalance(c, &random);
        core_replace(c);
        core_add_kind(c, 1000);
        /* One expert a layer that is as hot as all others: of several ranks' slots too few were its own. */
        for (int i = 0; i < 60; i++) {
            for (uint32_t l = 0; l < CORE_LAYERS; l++) {
                double weights[CORE_EXPERTS];
                for (uint32_t e = 0; e < CORE_EXPERTS; e++) weights[e] = e == l ? 20 : 1;
                core_record(c, l, 200, weights, &random);
            }
            CORE_OK(c, core_boundary(c));
            core_check_slots(c);
        }
        CORE_CHECK(c, c->most_moves <= (uint64_t)wb_comm_size(comm));
        CORE_CHECK(c, wb_rebalance_get_stats(c->manager).failures == 0);
        core_check_dead(c);
        uint64_t put = c->n_put;
        CORE_OK(c, wb_comm_all_reduce_max_u64(comm, &put));
        CORE_CHECK(c, (put > 0) == (host_ranks > 1));
    }
    core_close(c);
    return c->failures;
}

/* Two live ranks at least, or there is nothing to balance. */
static inline int rebalance_core_run(wb_comm *comm, uint64_t seed) {
    const int R = wb_comm_size(comm);
    const int failures = core_life(comm, seed, -1, 0);
    return R < 3 ? failures : failures + core_life(comm, seed + 1, (int)(seed % (uint64_t)R), 0);
}

#endif
