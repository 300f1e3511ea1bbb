/* placement_core.h - what broadcast and comparison of placements must do, and what dispatch makes of it:
 * one test core for self, threads and MPI.
 *
 * placement_core_run is called by each rank with the same seed and returns its number of failed checks. It
 * never leaves early, so that ranks stay in step. What a rank should hold is computed, not communicated. */
#ifndef WB_PLACEMENT_CORE_H
#define WB_PLACEMENT_CORE_H

#include "placement/placement_internal.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct core {
    wb_comm *comm;
    int rank, ranks;
    uint64_t seed;
    int failures;
} core;

#define CHECK(c, condition) core_check(c, condition, #condition, __LINE__)

static inline void core_check(core *c, bool held, const char *what, int line) {
    if (held) return;
    fprintf(stderr, "%s: rank %d of %d, seed %" PRIu64 ", placement_core.h:%d: %s (last message: %s)\n",
            wb_comm_name(c->comm), c->rank, c->ranks, c->seed, line, what, wb_error_message());
    c->failures++;
}

/* PEER, with `what` and the rank in the message. */
static inline bool core_names(wb_status found, const char *what, int rank) {
    char name[32];
    snprintf(name, sizeof name, "rank %d ", rank);
    return found == WB_PEER && strstr(wb_error_message(), what) && strstr(wb_error_message(), name);
}

/* ---- a transport that lets a test interfere -------------------------------------------------- */

typedef struct relay {
    wb_comm *inner;
    void (*before)(struct relay *relay);                            /* a call */
    void (*after)(struct relay *relay, void *buffer, size_t bytes); /* it; buffer is what arrived */
    void *ctx;
} relay;

static inline wb_status relay_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    relay *r = wb_comm_state(comm);
    if (r->before) r->before(r);
    wb_status status = wb_comm_broadcast(r->inner, buffer, bytes, root);
    if (r->after) r->after(r, buffer, bytes);
    return status;
}

static inline wb_status relay_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    relay *r = wb_comm_state(comm);
    if (r->before) r->before(r);
    wb_status status = wb_comm_all_gather(r->inner, send, bytes, recv);
    if (r->after) r->after(r, recv, bytes * (size_t)wb_comm_size(comm));
    return status;
}

static inline wb_status relay_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                           const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                           const size_t *recv_offsets) {
    const relay *r = wb_comm_state(comm);
    return wb_comm_all_to_all_v(r->inner, send, send_bytes, send_offsets, recv, recv_bytes, recv_offsets);
}

static inline wb_status relay_barrier(wb_comm *comm) {
    const relay *r = wb_comm_state(comm);
    return wb_comm_barrier(r->inner);
}

static inline void relay_abort(wb_comm *comm) {
    const relay *r = wb_comm_state(comm);
    wb_comm_abort(r->inner);
}

static const wb_comm_ops relay_ops = {.size = sizeof(wb_comm_ops),
                                      .name = "relay",
                                      .broadcast = relay_broadcast,
                                      .all_gather = relay_all_gather,
                                      .all_to_all_v = relay_all_to_all_v,
                                      .barrier = relay_barrier,
                                      .abort = relay_abort,
                                      .close = wb_comm_delete};

static inline wb_comm *relay_open(relay *r) {
    wb_comm *comm = NULL;
    if (wb_comm_new(&relay_ops, wb_comm_rank(r->inner), wb_comm_size(r->inner), r, &comm) != WB_OK) abort();
    return comm;
}

/* ---- placements every rank can compute ------------------------------------------------------- */

enum { CORE_L = 4, CORE_E = 9, CORE_P = 5, CORE_R = 23 };

static const uint32_t core_slots[CORE_P] = {7, 0, 5, 6, 5};
static const uint8_t core_dead[CORE_P] = {0, 0, 0, 1, 0};

static inline wb_topology core_topology(void) {
    return (wb_topology){
        .n_ranks = CORE_P, .n_nodes = 2, .n_slots = CORE_R, .slots_of_rank = core_slots, .dead = core_dead};
}

/* A valid map at random, replicas in any order: a slot in ten stays empty where there are slots to spare. */
static inline void core_random_map(const wb_placement *p, uint64_t seed, int32_t *experts,
                                   uint32_t *replicas) {
    const uint32_t S = p->topology.n_slots, E = p->n_experts;
    uint64_t rng = wb_mix64(seed);
    uint32_t *live = malloc(S * sizeof *live), *count = calloc(E, sizeof *count), n = 0;
    if (!live || !count) abort();
    for (uint32_t s = 0; s < S; s++) {
        experts[s] = WB_NO_EXPERT;
        replicas[s] = 0;
        if (!p->dead[p->rank_of_slot[s]]) live[n++] = s;
    }
    for (uint32_t i = 0; i < n;
         i++) { /* shuffled as it goes: slots in random order, replica numbers with them */
        uint32_t j = i + wb_random_below(&rng, n - i), s = live[j];
        live[j] = live[i];
        if (i >= E && wb_random_below(&rng, 10) == 0) continue;
        experts[s] = (int32_t)(i < E ? i : wb_random_below(&rng, E));
        replicas[s] = count[experts[s]]++;
    }
    free(live);
    free(count);
}

/* Fills all layers and epochs of `p` with what `stream` says. */
static inline void core_fill(wb_placement *p, uint64_t stream) {
    const uint32_t S = p->topology.n_slots;
    int32_t *experts = malloc(S * sizeof *experts);
    uint32_t *replicas = malloc(S * sizeof *replicas);
    if (!experts || !replicas) abort();
    for (uint32_t l = 0; l < p->n_layers; l++) {
        core_random_map(p, stream * 1000 + l, experts, replicas);
        if (wb_placement_set_layer(p, l, experts, replicas, stream % 100 + l) != WB_OK) abort();
    }
    free(replicas);
    free(experts);
}

static inline wb_placement *core_open(const wb_topology *topology, uint32_t L, uint32_t E, uint64_t stream) {
    wb_placement *p = NULL;
    if (wb_placement_open(topology, L, E, &p) != WB_OK) abort();
    core_fill(p, stream);
    return p;
}

/* Every array bit for bit, derived ones and epochs too. */
static inline bool core_same(const wb_placement *a, const wb_placement *b) {
    const size_t S = a->topology.n_slots;
    for (uint32_t l = 0; l < a->n_layers; l++) {
        wb_layer_map x = wb_placement_layer(a, l), y = wb_placement_layer(b, l);
        if (x.epoch != y.epoch || memcmp(x.expert_of_slot, y.expert_of_slot, S * 4) != 0 ||
            memcmp(x.replica_of_slot, y.replica_of_slot, S * 4) != 0 ||
            memcmp(x.replica_begin, y.replica_begin, (a->n_experts + 1u) * 4) != 0 ||
            memcmp(x.replicas, y.replicas, x.replica_begin[a->n_experts] * sizeof *x.replicas) != 0)
            return false;
    }
    return wb_placement_hash(a) == wb_placement_hash(b);
}

static inline wb_placement *core_mine(const core *c, int rank) {
    const wb_topology topology = core_topology();
    return core_open(&topology, CORE_L, CORE_E, c->seed * 64 + (uint64_t)rank);
}

/* ---- what goes well -------------------------------------------------------------------------- */

static inline void core_broadcast(core *c) {
    for (int root = 0; root < c->ranks; root++) {
        wb_placement *mine = core_mine(c, c->rank), *expected = core_mine(c, root);
        const wb_layer_map before = wb_placement_layer(mine, CORE_L - 1);
        CHECK(c, wb_placement_broadcast(mine, c->comm, root) == WB_OK);
        CHECK(c, core_same(mine, expected));
        CHECK(c, before.expert_of_slot == wb_placement_layer(mine, CORE_L - 1).expert_of_slot); /* in place */
        CHECK(c, wb_placement_check_equal(mine, c->comm) == WB_OK);
        wb_placement_close(mine);
        wb_placement_close(expected);
    }
}

/* More than one message's worth. */
static inline void core_broadcast_large(core *c) {
    const wb_topology topology = {.n_ranks = 3, .n_nodes = 1, .n_slots = 70001};
    wb_placement *mine = core_open(&topology, 2, 300, c->seed + (uint64_t)c->rank);
    wb_placement *expected = core_open(&topology, 2, 300, c->seed);
    CHECK(c, wb_placement_broadcast(mine, c->comm, 0) == WB_OK);
    CHECK(c, core_same(mine, expected));
    wb_placement_close(mine);
    wb_placement_close(expected);
}

/* ---- what is in use while it changes ----------------------------------------------------------- */

/* A token of each expert, on rank 0 of the topology. */
static inline wb_status core_dispatch(wb_dispatch *d, uint32_t layer, wb_physical_id out[CORE_E]) {
    uint8_t ids[CORE_E];
    for (uint8_t e = 0; e < CORE_E; e++) ids[e] = e;
    const wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = 1, .K = CORE_E};
    return wb_dispatch_rows(d, layer, &rows, NULL, out);
}

static inline wb_dispatch *core_dispatch_open(const wb_placement *p, wb_dispatch_policy policy) {
    wb_dispatch *d = NULL;
    if (wb_dispatch_open(p, policy, 0, &d) != WB_OK) abort();
    return d;
}

static inline void core_set_counts(core *c, wb_dispatch *quota, uint32_t layer) {
    uint32_t counts[CORE_P * CORE_E];
    for (uint32_t i = 0; i < CORE_P * CORE_E; i++) counts[i] = core_dead[i / CORE_E] ? 0 : 1;
    CHECK(c, wb_dispatch_set_counts(quota, layer, counts) == WB_OK);
}

/* Layer `layer` of what is in use, after a change: static goes by the new map, as a handle opened now does;
 * quota refuses to split by shares of the map before, and goes by the new one after new counts. */
static inline void core_check_dispatch(core *c, const wb_placement *p, wb_dispatch *fixed, wb_dispatch *quota,
                                       uint32_t layer) {
    wb_physical_id found[CORE_E], expected[CORE_E];
    wb_dispatch *fresh = core_dispatch_open(p, WB_DISPATCH_STATIC);
    CHECK(c, core_dispatch(fresh, layer, expected) == WB_OK);
    CHECK(c, core_dispatch(fixed, layer, found) == WB_OK);
    CHECK(c, memcmp(found, expected, sizeof found) == 0);
    CHECK(c, core_dispatch(quota, layer, found) == WB_MISMATCH);
    core_set_counts(c, quota, layer);
    CHECK(c, core_dispatch(quota, layer, found) == WB_OK);
    for (int32_t e = 0; e < CORE_E; e++)
        CHECK(c, wb_placement_layer(p, layer).expert_of_slot[found[e].slot] == e);
    wb_dispatch_close(fresh);
}

/* A broadcast, or a copy of layers, under open dispatch handles. */
static inline void core_change_in_use(core *c, bool broadcast) {
    wb_placement *mine = core_mine(c, c->rank), *other = core_mine(c, c->ranks);
    wb_dispatch *fixed = core_dispatch_open(mine, WB_DISPATCH_STATIC);
    wb_dispatch *quota = core_dispatch_open(mine, WB_DISPATCH_QUOTA);
    wb_physical_id out[CORE_E];
    for (uint32_t l = 0; l < CORE_L; l++) {
        CHECK(c, core_dispatch(fixed, l, out) == WB_OK);
        core_set_counts(c, quota, l);
    }
    if (broadcast)
        CHECK(c, wb_placement_broadcast(mine, c->comm, c->ranks - 1) == WB_OK);
    else
        CHECK(c, wb_placement_copy_layers(mine, other, CORE_L, NULL, 1000) == WB_OK);
    for (uint32_t l = 0; l < CORE_L; l++) core_check_dispatch(c, mine, fixed, quota, l);
    wb_dispatch_close(quota);
    wb_dispatch_close(fixed);
    wb_placement_close(other);
    wb_placement_close(mine);
}

/* ---- one rank differs ------------------------------------------------------------------------ */

/* Rank `odd` swaps two slots of one layer, or is an epoch ahead. */
static inline void core_check_equal(core *c) {
    for (int odd = 1; odd < c->ranks; odd++) {
        wb_placement *mine = core_mine(c, 0);
        int32_t experts[CORE_R];
        wb_layer_map map = wb_placement_layer(mine, 2);
        memcpy(experts, map.expert_of_slot, sizeof experts);
        uint32_t first = 0, other;
        while (experts[first] < 0) first++;
        for (other = first + 1; experts[other] < 0 || experts[other] == experts[first];) other++;
        if (c->rank == odd) {
            experts[first] = map.expert_of_slot[other];
            experts[other] = map.expert_of_slot[first];
        }
        CHECK(c, wb_placement_check_equal(mine, c->comm) == WB_OK);
        CHECK(c, wb_placement_set_layer(mine, 2, experts, NULL, map.epoch) == WB_OK);
        CHECK(c, core_names(wb_placement_check_equal(mine, c->comm), "placement maps", odd));
        core_fill(mine, c->seed * 64);
        if (c->rank == odd) mine->epoch[CORE_L - 1]++;
        CHECK(c, core_names(wb_placement_check_equal(mine, c->comm), "placement epochs", odd));
        wb_placement_close(mine);
    }
}

/* Rank `odd` has opened another shape: all learn it, and nothing has changed anywhere. */
static inline void core_other_shape(core *c, int odd, wb_topology topology, uint32_t L, uint32_t E) {
    const wb_topology usual = core_topology();
    const uint64_t stream = c->seed * 64 + (uint64_t)c->rank;
    const bool other = c->rank == odd;
    wb_placement *mine =
        core_open(other ? &topology : &usual, other ? L : CORE_L, other ? E : CORE_E, stream);
    wb_placement *before = NULL;
    if (wb_placement_clone(mine, &before) != WB_OK) abort();
    CHECK(c, core_names(wb_placement_broadcast(mine, c->comm, 0), "placement shape", odd));
    CHECK(c, core_names(wb_placement_check_equal(mine, c->comm), "placement maps", 1)); /* all differ */
    CHECK(c, core_same(mine, before));
    wb_placement_close(before);
    wb_placement_close(mine);
}

static inline void core_shapes(core *c) {
    static const uint32_t slots[CORE_P] = {7, 1, 4, 6, 5}, nodes[CORE_P] = {0, 1, 1, 1, 1};
    for (int odd = 1; odd < c->ranks; odd++) {
        wb_topology t = core_topology();
        core_other_shape(c, odd, t, CORE_L + 1, CORE_E);
        core_other_shape(c, odd, t, CORE_L, CORE_E - 1);
        t.n_slots++, t.slots_of_rank = NULL;
        core_other_shape(c, odd, t, CORE_L, CORE_E);
        t = core_topology(), t.slots_of_rank = slots;
        core_other_shape(c, odd, t, CORE_L, CORE_E);
        t = core_topology(), t.node_of_rank = nodes;
        core_other_shape(c, odd, t, CORE_L, CORE_E);
        t = core_topology(), t.dead = NULL;
        core_other_shape(c, odd, t, CORE_L, CORE_E);
    }
}

/* Ranks name different roots. */
static inline void core_roots(core *c) {
    for (int odd = 1; odd < c->ranks; odd++) {
        wb_placement *mine = core_mine(c, c->rank), *before = core_mine(c, c->rank);
        CHECK(c, core_names(wb_placement_broadcast(mine, c->comm, c->rank == odd), "root", odd));
        CHECK(c, core_same(mine, before));
        wb_placement_close(before);
        wb_placement_close(mine);
    }
    wb_placement *mine = core_mine(c, 0);
    CHECK(c, wb_placement_broadcast(mine, c->comm, c->ranks) == WB_INVALID_ARGUMENT);
    CHECK(c, wb_placement_broadcast(mine, c->comm, -1) == WB_INVALID_ARGUMENT);
    wb_placement_close(mine);
}

/* ---- damage ---------------------------------------------------------------------------------- */

/* What arrives as the first map of rank `odd` is another one: one that is none, or one that is valid. */
typedef struct damage {
    bool valid, done;
} damage;

static inline void damage_map(relay *r, void *buffer, size_t bytes) {
    damage *d = r->ctx;
    int32_t *experts = buffer;
    if (d->done || bytes != sizeof(int32_t) * CORE_L * CORE_R) return;
    d->done = true;
    const int32_t first = experts[0];
    experts[0] = CORE_E;
    for (uint32_t s = 1; d->valid && s < CORE_E; s++)
        if (experts[s] >= 0 && experts[s] != first) {
            experts[0] = experts[s];
            experts[s] = first;
            break;
        }
}

/* Every expert once, so that a swap of two slots is a map too. */
static inline wb_placement *core_permutation(uint64_t stream) {
    static const uint32_t slots[CORE_P] = {4, 3, 2, CORE_R - 9, 0};
    wb_topology t = core_topology();
    t.slots_of_rank = slots;
    return core_open(&t, CORE_L, CORE_E, stream);
}

/* A map that is none: refused on that rank, with nothing changed anywhere. A valid one: found by the
 * hashes. */
static inline void core_damage(core *c, int odd, bool valid) {
    damage state = {valid, false};
    relay r = {.inner = c->comm, .after = c->rank == odd ? damage_map : NULL, .ctx = &state};
    wb_comm *comm = relay_open(&r);
    wb_placement *mine = core_permutation(c->seed + (uint64_t)c->rank);
    wb_placement *before = core_permutation(c->seed + (uint64_t)c->rank);
    wb_status status = wb_placement_broadcast(mine, comm, 0);
    if (valid) {
        CHECK(c, core_names(status, "placement maps", odd));
        CHECK(c, core_names(wb_placement_check_equal(mine, c->comm), "placement maps", odd));
    } else {
        CHECK(c, c->rank == odd
                     ? status == WB_INVALID_ARGUMENT && strstr(wb_error_message(), "layer 0 slot 0")
                     : core_names(status, wb_status_string(WB_INVALID_ARGUMENT), odd));
        CHECK(c, core_same(mine, before));
    }
    CHECK(c, state.done == (c->rank == odd));
    wb_placement_close(before);
    wb_placement_close(mine);
    wb_comm_close(comm);
}

/* The root's own maps are damaged: nobody takes them. */
static inline void core_damaged_root(core *c) {
    for (int root = 0; root < c->ranks; root++) {
        wb_placement *mine = core_mine(c, c->rank), *before = NULL;
        if (c->rank == root) mine->replica_of_slot[CORE_R] += CORE_R;
        if (c->rank == root) mine->expert_of_slot[CORE_R] = 0;
        CHECK(c, wb_placement_clone(mine, &before) == WB_OK);
        CHECK(c, wb_placement_broadcast(mine, c->comm, root) == WB_INVALID_ARGUMENT);
        CHECK(c, core_same(mine, before));
        wb_placement_close(before);
        wb_placement_close(mine);
    }
}

/* ---- all ------------------------------------------------------------------------------------- */

static inline int placement_core_run(wb_comm *comm, uint64_t seed) {
    core state = {comm, wb_comm_rank(comm), wb_comm_size(comm), seed, 0};
    core *c = &state;
    core_broadcast(c);
    core_broadcast_large(c);
    core_change_in_use(c, true);
    core_change_in_use(c, false);
    core_check_equal(c);
    core_shapes(c);
    core_roots(c);
    for (int odd = 1; odd < c->ranks; odd++) {
        core_damage(c, odd, false);
        core_damage(c, odd, true);
    }
    core_damaged_root(c);
    CHECK(c, wb_comm_barrier(comm) == WB_OK);
    return c->failures;
}

#endif
