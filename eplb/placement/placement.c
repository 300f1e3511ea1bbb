/* placement.c - topologies and the maps between logical experts and physical slots: opening, checking,
 * changing a layer in place, and what follows from a map (rank loads, eplb.py's tables). Refuses: choosing
 * placements (solve.c), files, other ranks. */
#include "placement/placement_internal.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 65536, MAX_EXPERTS = 65536, MAX_SLOTS = 1 << 24, FREE_SLOT = WB_NO_EXPERT - 1 };

/* ---- topology -------------------------------------------------------------------------------- */

/* Members of part `i` when `n` things are dealt to `parts` as evenly as can be, the first ones getting one
 * more. */
static uint32_t even_share(uint32_t n, uint32_t parts, uint32_t i) {
    return n / parts + (i < n % parts);
}

static uint32_t slots_of(const wb_topology *t, uint32_t rank) {
    return t->slots_of_rank ? t->slots_of_rank[rank] : even_share(t->n_slots, t->n_ranks, rank);
}

static wb_status check_nodes(const wb_topology *t) {
    if (!t->node_of_rank) return WB_OK;
    uint32_t node = 0;
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        uint32_t found = t->node_of_rank[r];
        if (found != node && !(r > 0 && found == node + 1))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "topology: rank %" PRIu32 " is on node %" PRIu32
                           ", expected nodes ascending from 0",
                           r, found);
        node = found;
    }
    if (node + 1 != t->n_nodes)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: node_of_rank names %" PRIu32 " nodes, expected n_nodes = %" PRIu32,
                       node + 1, t->n_nodes);
    return WB_OK;
}

wb_status wb_topology_check(const wb_topology *t, uint32_t n_experts) {
    if (!t) return wb_fail(WB_INVALID_ARGUMENT, "topology: NULL");
    if (n_experts < 1 || n_experts > MAX_EXPERTS)
        return wb_fail(WB_INVALID_ARGUMENT, "topology: %" PRIu32 " experts, expected 1..%d", n_experts,
                       MAX_EXPERTS);
    if (t->n_ranks < 1 || t->n_ranks > MAX_RANKS)
        return wb_fail(WB_INVALID_ARGUMENT, "topology: %" PRIu32 " ranks, expected 1..%d", t->n_ranks,
                       MAX_RANKS);
    if (t->n_nodes < 1 || t->n_nodes > t->n_ranks)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: %" PRIu32 " nodes, expected 1..%" PRIu32 " (the ranks)", t->n_nodes,
                       t->n_ranks);
    if (t->n_slots < 1 || t->n_slots > MAX_SLOTS)
        return wb_fail(WB_INVALID_ARGUMENT, "topology: %" PRIu32 " slots, expected 1..%d", t->n_slots,
                       MAX_SLOTS);
    WB_TRY(check_nodes(t));
    uint64_t all = 0, live = 0;
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        all += slots_of(t, r);
        if (!t->dead || !t->dead[r]) live += slots_of(t, r);
    }
    if (all != t->n_slots)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: slots_of_rank adds up to %" PRIu64 ", expected n_slots = %" PRIu32, all,
                       t->n_slots);
    if (live < n_experts)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: %" PRIu64 " slots on live ranks (%" PRIu32
                       " in all), expected one for each of "
                       "%" PRIu32 " experts at least",
                       live, t->n_slots, n_experts);
    return WB_OK;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static wb_status allocate(wb_placement *p) {
    size_t R = p->topology.n_ranks, S = p->topology.n_slots, L = p->n_layers, E = p->n_experts;
    WB_TRY(WB_NEW(p->slots_of_rank, R, "placement"));
    WB_TRY(WB_NEW(p->node_of_rank, R, "placement"));
    WB_TRY(WB_NEW(p->dead, R, "placement"));
    WB_TRY(WB_NEW(p->first_slot, R + 1, "placement"));
    WB_TRY(WB_NEW(p->rank_of_slot, S, "placement"));
    WB_TRY(WB_ALLOC(p->expert_of_slot, L, S * sizeof *p->expert_of_slot, "placement"));
    WB_TRY(WB_ALLOC(p->replica_of_slot, L, S * sizeof *p->replica_of_slot, "placement"));
    WB_TRY(WB_ALLOC(p->replica_begin, L, (E + 1) * sizeof *p->replica_begin, "placement"));
    WB_TRY(WB_ALLOC(p->replicas, L, S * sizeof *p->replicas, "placement"));
    WB_TRY(WB_NEW(p->epoch, L, "placement"));
    return WB_NEW(p->version, L, "placement");
}

static void fill_topology(wb_placement *p, const wb_topology *t) {
    uint32_t node = 0, node_ends = even_share(t->n_ranks, t->n_nodes, 0);
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        if (r == node_ends) node_ends += even_share(t->n_ranks, t->n_nodes, ++node);
        p->slots_of_rank[r] = slots_of(t, r);
        p->node_of_rank[r] = t->node_of_rank ? t->node_of_rank[r] : node;
        p->dead[r] = t->dead && t->dead[r];
        p->first_slot[r + 1] = p->first_slot[r] + p->slots_of_rank[r];
        for (uint32_t s = p->first_slot[r]; s < p->first_slot[r + 1]; s++) p->rank_of_slot[s] = r;
    }
    p->topology.slots_of_rank = p->slots_of_rank;
    p->topology.node_of_rank = p->node_of_rank;
    p->topology.dead = p->dead;
}

/* The logical -> physical side of a layer from the other; the map has been checked. */
static void index_layer(wb_placement *p, uint32_t layer) {
    uint32_t S = p->topology.n_slots, E = p->n_experts;
    const int32_t *experts = p->expert_of_slot + (size_t)layer * S;
    const uint32_t *replica = p->replica_of_slot + (size_t)layer * S;
    uint32_t *begin = p->replica_begin + (size_t)layer * (E + 1);
    wb_physical_id *replicas = p->replicas + (size_t)layer * S;
    memset(begin, 0, (E + 1) * sizeof *begin);
    for (uint32_t s = 0; s < S; s++)
        if (experts[s] >= 0) begin[experts[s] + 1]++;
    for (uint32_t e = 0; e < E; e++) begin[e + 1] += begin[e];
    for (uint32_t s = 0; s < S; s++)
        if (experts[s] >= 0) replicas[begin[experts[s]] + replica[s]].slot = s;
    p->version[layer]++;
}

/* Replicas in slot order; `count` [E] is scratch. */
static void number_replicas(uint32_t S, uint32_t E, const int32_t *experts, uint32_t *count,
                            uint32_t *replica_out) {
    memset(count, 0, E * sizeof *count);
    for (uint32_t s = 0; s < S; s++) replica_out[s] = experts[s] >= 0 ? count[experts[s]]++ : 0;
}

/* Layer 0; a rank has E slots or more: its further ones stay empty. */
static void place_trivially(wb_placement *p) {
    const wb_topology *t = &p->topology;
    uint32_t i = 0, E = p->n_experts;
    for (uint32_t r = 0; r < t->n_ranks; r++)
        for (uint32_t s = p->first_slot[r]; s < p->first_slot[r + 1]; s++) {
            bool empty = p->dead[r] || s - p->first_slot[r] >= E;
            p->expert_of_slot[s] = empty ? WB_NO_EXPERT : (int32_t)(i++ % E);
        }
    number_replicas(t->n_slots, E, p->expert_of_slot, p->replica_begin, p->replica_of_slot);
}

wb_status wb_placement_open(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                            wb_placement **placement_out) {
    WB_TRY(wb_topology_check(topology, n_experts));
    if (n_layers < 1) return wb_fail(WB_INVALID_ARGUMENT, "placement: 0 layers, expected 1 or more");
    wb_placement *p = NULL;
    WB_TRY(WB_NEW(p, 1, "placement"));
    p->topology = *topology;
    p->n_layers = n_layers;
    p->n_experts = n_experts;
    wb_status status = allocate(p);
    if (status != WB_OK) {
        wb_placement_close(p);
        return status;
    }
    fill_topology(p, topology);
    place_trivially(p);
    size_t S = topology->n_slots;
    for (uint32_t l = 0; l < n_layers; l++) {
        if (l > 0) memcpy(p->expert_of_slot + l * S, p->expert_of_slot, S * sizeof *p->expert_of_slot);
        if (l > 0) memcpy(p->replica_of_slot + l * S, p->replica_of_slot, S * sizeof *p->replica_of_slot);
        index_layer(p, l);
    }
    *placement_out = p;
    return WB_OK;
}

static void copy_layer(wb_placement *to, const wb_placement *from, uint32_t layer) {
    size_t S = to->topology.n_slots, E = to->n_experts;
    memcpy(to->expert_of_slot + layer * S, from->expert_of_slot + layer * S, S * sizeof *to->expert_of_slot);
    memcpy(to->replica_of_slot + layer * S, from->replica_of_slot + layer * S,
           S * sizeof *to->replica_of_slot);
    memcpy(to->replica_begin + layer * (E + 1), from->replica_begin + layer * (E + 1),
           (E + 1) * sizeof *to->replica_begin);
    memcpy(to->replicas + layer * S, from->replicas + layer * S, S * sizeof *to->replicas);
    to->version[layer]++;
}

wb_status wb_placement_clone(const wb_placement *placement, wb_placement **placement_out) {
    wb_placement *p = NULL;
    WB_TRY(wb_placement_open(&placement->topology, placement->n_layers, placement->n_experts, &p));
    for (uint32_t l = 0; l < p->n_layers; l++) copy_layer(p, placement, l);
    memcpy(p->epoch, placement->epoch, p->n_layers * sizeof *p->epoch);
    *placement_out = p;
    return WB_OK;
}

void wb_placement_close(wb_placement *p) {
    if (!p) return;
    free(p->slots_of_rank);
    free(p->node_of_rank);
    free(p->dead);
    free(p->first_slot);
    free(p->rank_of_slot);
    free(p->expert_of_slot);
    free(p->replica_of_slot);
    free(p->replica_begin);
    free(p->replicas);
    free(p->version);
    free(p->epoch);
    free(p);
}

/* ---- reading --------------------------------------------------------------------------------- */

uint32_t wb_placement_layers(const wb_placement *placement) {
    return placement->n_layers;
}

uint32_t wb_placement_experts(const wb_placement *placement) {
    return placement->n_experts;
}

const wb_topology *wb_placement_topology(const wb_placement *placement) {
    return &placement->topology;
}

uint32_t wb_placement_rank_of(const wb_placement *placement, wb_physical_id id) {
    return placement->rank_of_slot[id.slot];
}

uint32_t wb_placement_first_slot(const wb_placement *placement, uint32_t rank) {
    return placement->first_slot[rank];
}

wb_layer_map wb_placement_layer(const wb_placement *p, uint32_t layer) {
    size_t S = p->topology.n_slots;
    return (wb_layer_map){.expert_of_slot = p->expert_of_slot + layer * S,
                          .replica_of_slot = p->replica_of_slot + layer * S,
                          .replica_begin = p->replica_begin + (size_t)layer * (p->n_experts + 1),
                          .replicas = p->replicas + layer * S,
                          .epoch = p->epoch[layer]};
}

uint32_t wb_placement_max_replicas(const wb_placement *p) {
    uint32_t most = 0;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        for (uint32_t e = 0; e < p->n_experts; e++) {
            uint32_t n = map.replica_begin[e + 1] - map.replica_begin[e];
            if (n > most) most = n;
        }
    }
    return most;
}

void wb_placement_export(const wb_placement *p, int32_t *log2phy_out, int32_t *logcnt_out) {
    size_t X = wb_placement_max_replicas(p), E = p->n_experts;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        for (uint32_t e = 0; e < E; e++) {
            uint32_t begin = map.replica_begin[e], n = map.replica_begin[e + 1] - begin;
            if (logcnt_out) logcnt_out[l * E + e] = (int32_t)n;
            for (uint32_t i = 0; log2phy_out && i < X; i++)
                log2phy_out[(l * E + e) * X + i] = i < n ? (int32_t)map.replicas[begin + i].slot : -1;
        }
    }
}

void wb_placement_rank_loads(const wb_placement *p, uint32_t layer, const double *loads,
                             double *rank_loads_out) {
    wb_layer_map map = wb_placement_layer(p, layer);
    memset(rank_loads_out, 0, p->topology.n_ranks * sizeof *rank_loads_out);
    for (uint32_t s = 0; s < p->topology.n_slots; s++) {
        int32_t e = map.expert_of_slot[s];
        if (e < 0) continue;
        rank_loads_out[p->rank_of_slot[s]] += loads[e] / (map.replica_begin[e + 1] - map.replica_begin[e]);
    }
}

double wb_placement_balancedness(const wb_placement *p, const double *rank_loads) {
    double sum = 0, most = 0;
    uint32_t live = 0;
    for (uint32_t r = 0; r < p->topology.n_ranks; r++) {
        if (p->dead[r]) continue;
        sum += rank_loads[r];
        if (rank_loads[r] > most) most = rank_loads[r];
        live++;
    }
    return most > 0 ? sum / live / most : 1;
}

/* ---- changing -------------------------------------------------------------------------------- */

/* Ids in range and none on a dead rank; count_out[e + 1] is raised by each slot of expert e. */
static wb_status check_slots(const wb_placement *p, const char *what, uint32_t layer, const int32_t *experts,
                             uint32_t *count_out) {
    uint32_t E = p->n_experts;
    for (uint32_t s = 0; s < p->topology.n_slots; s++) {
        if (experts[s] < WB_NO_EXPERT || experts[s] >= (int64_t)E)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "%s: layer %" PRIu32 " slot %" PRIu32 " holds expert %" PRId32
                           ", expected 0..%" PRIu32 " or -1",
                           what, layer, s, experts[s], E - 1);
        if (experts[s] >= 0 && p->dead[p->rank_of_slot[s]])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "%s: layer %" PRIu32 " slot %" PRIu32 " holds expert %" PRId32
                           ", expected -1: its rank %" PRIu32 " is dead",
                           what, layer, s, experts[s], p->rank_of_slot[s]);
        if (experts[s] >= 0) count_out[experts[s] + 1]++;
    }
    return WB_OK;
}

/* Each expert's replica numbers are 0..count-1; begin[e]: where expert e's are in `seen` [S], zeroed. */
static wb_status check_replicas(const wb_placement *p, const char *what, uint32_t layer,
                                const int32_t *experts, const uint32_t *replica, const uint32_t *begin,
                                uint8_t *seen) {
    for (uint32_t s = 0; s < p->topology.n_slots; s++) {
        if (experts[s] < 0) continue;
        uint32_t first = begin[experts[s]], n = begin[experts[s] + 1] - first;
        if (replica[s] >= n || seen[first + replica[s]]++)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "%s: layer %" PRIu32 " slot %" PRIu32 " is replica %" PRIu32 " of expert %" PRId32
                           ", expected each of 0..%" PRIu32 " once",
                           what, layer, s, replica[s], experts[s], n - 1);
    }
    return WB_OK;
}

wb_status wb_placement_check_map(const wb_placement *p, const char *what, uint32_t layer,
                                 const int32_t *experts, const uint32_t *replica) {
    uint32_t E = p->n_experts;
    uint32_t *begin = NULL;
    uint8_t *seen = NULL;
    wb_status status;
    WB_GOTO(WB_NEW(begin, (size_t)E + 1, what), done);
    WB_GOTO(WB_NEW(seen, p->topology.n_slots, what), done);
    WB_GOTO(check_slots(p, what, layer, experts, begin), done);
    for (uint32_t e = 0; e < E; e++) {
        if (begin[e + 1] == 0) {
            status = wb_fail(WB_INVALID_ARGUMENT, "%s: layer %" PRIu32 " has no slot for expert %" PRIu32,
                             what, layer, e);
            goto done;
        }
        begin[e + 1] += begin[e];
    }
    if (replica) status = check_replicas(p, what, layer, experts, replica, begin, seen);
done:
    free(seen);
    free(begin);
    return status;
}

wb_status wb_placement_set_layer(wb_placement *p, uint32_t layer, const int32_t *expert_of_slot,
                                 const uint32_t *replica_of_slot, uint64_t epoch) {
    if (layer >= p->n_layers)
        return wb_fail(WB_INVALID_ARGUMENT, "placement: layer %" PRIu32 ", expected 0..%" PRIu32, layer,
                       p->n_layers - 1);
    WB_TRY(wb_placement_check_map(p, "placement", layer, expert_of_slot, replica_of_slot));
    size_t S = p->topology.n_slots, E = p->n_experts;
    uint32_t *replica = p->replica_of_slot + layer * S;
    memmove(p->expert_of_slot + layer * S, expert_of_slot, S * sizeof *expert_of_slot);
    if (replica_of_slot)
        memmove(replica, replica_of_slot, S * sizeof *replica);
    else
        number_replicas((uint32_t)S, (uint32_t)E, expert_of_slot, p->replica_begin + layer * (E + 1),
                        replica);
    for (size_t s = 0; s < S; s++)
        if (p->expert_of_slot[layer * S + s] < 0) replica[s] = 0;
    index_layer(p, layer);
    p->epoch[layer] = epoch;
    return WB_OK;
}

wb_status wb_placement_check_shape(const wb_placement *expected, const wb_placement *found) {
    const wb_topology *a = &expected->topology, *b = &found->topology;
    if (expected->n_layers != found->n_layers || expected->n_experts != found->n_experts ||
        a->n_ranks != b->n_ranks || a->n_slots != b->n_slots)
        return wb_fail(WB_MISMATCH,
                       "placement: %" PRIu32 " layers, %" PRIu32 " experts, %" PRIu32 " ranks, %" PRIu32
                       " slots, expected %" PRIu32 ", %" PRIu32 ", %" PRIu32 ", %" PRIu32,
                       found->n_layers, found->n_experts, b->n_ranks, b->n_slots, expected->n_layers,
                       expected->n_experts, a->n_ranks, a->n_slots);
    for (uint32_t r = 0; r < a->n_ranks; r++)
        if (a->slots_of_rank[r] != b->slots_of_rank[r])
            return wb_fail(WB_MISMATCH,
                           "placement: rank %" PRIu32 " has %" PRIu32 " slots, expected %" PRIu32, r,
                           b->slots_of_rank[r], a->slots_of_rank[r]);
    return WB_OK;
}

wb_status wb_placement_copy_layers(wb_placement *p, const wb_placement *from, uint32_t n,
                                   const uint32_t *layers, uint64_t epoch) {
    WB_TRY(wb_placement_check_shape(p, from));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t l = layers ? layers[i] : i;
        if (l >= p->n_layers)
            return wb_fail(WB_INVALID_ARGUMENT, "placement: layer %" PRIu32 ", expected 0..%" PRIu32, l,
                           p->n_layers - 1);
        if (epoch <= p->epoch[l])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "placement: layer %" PRIu32 " is at epoch %" PRIu64
                           ", expected a later one, found %" PRIu64,
                           l, p->epoch[l], epoch);
        const int32_t *experts = wb_placement_experts_of(from, l);
        for (uint32_t s = 0; s < p->topology.n_slots; s++)
            if (experts[s] >= 0 && p->dead[p->rank_of_slot[s]])
                return wb_fail(WB_MISMATCH,
                               "placement: layer %" PRIu32 " slot %" PRIu32 " would hold expert %" PRId32
                               ", but its rank %" PRIu32 " is dead",
                               l, s, experts[s], p->rank_of_slot[s]);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t l = layers ? layers[i] : i;
        copy_layer(p, from, l);
        p->epoch[l] = epoch;
    }
    return WB_OK;
}

/* Memory of keep_slots for one layer. */
typedef struct keeper {
    int32_t *experts;  /* [S] as they were */
    uint32_t *replica; /* [S] */
    uint32_t *head;  /* [E] first slot of a rank with the expert that has found no place yet, or WB_NO_SLOT */
    uint32_t *next;  /* [S] the next such slot */
    uint8_t *placed; /* [S] */
} keeper;

/* Reorders the slots [first, last) of one rank: where `current` has an expert that the rank keeps, it
 * stays; the rest fill up in order. */
static void keep_slots_of_rank(keeper *k, uint32_t first, uint32_t last, const int32_t *current,
                               int32_t *experts, uint32_t *replica) {
    for (uint32_t s = last; s-- > first;) {
        k->placed[s] = 0;
        if (k->experts[s] < 0) continue;
        k->next[s] = k->head[k->experts[s]];
        k->head[k->experts[s]] = s;
    }
    for (uint32_t d = first; d < last; d++) {
        uint32_t s = current[d] < 0 ? WB_NO_SLOT : k->head[current[d]];
        experts[d] = FREE_SLOT;
        if (s == WB_NO_SLOT) continue;
        k->head[current[d]] = k->next[s];
        k->placed[s] = 1;
        experts[d] = k->experts[s];
        replica[d] = k->replica[s];
    }
    for (uint32_t s = first, d = first; s < last; s++) {
        if (k->experts[s] >= 0) k->head[k->experts[s]] = WB_NO_SLOT;
        if (k->placed[s]) continue;
        while (experts[d] != FREE_SLOT) d++;
        experts[d] = k->experts[s];
        replica[d] = k->replica[s];
    }
}

wb_status wb_placement_keep_slots(wb_placement *p, const wb_placement *current) {
    WB_TRY(wb_placement_check_shape(p, current));
    size_t S = p->topology.n_slots;
    keeper k = {0};
    wb_status status;
    WB_GOTO(WB_NEW(k.experts, S, "placement"), done);
    WB_GOTO(WB_NEW(k.replica, S, "placement"), done);
    WB_GOTO(WB_NEW(k.head, p->n_experts, "placement"), done);
    WB_GOTO(WB_NEW(k.next, S, "placement"), done);
    WB_GOTO(WB_NEW(k.placed, S, "placement"), done);
    for (uint32_t e = 0; e < p->n_experts; e++) k.head[e] = WB_NO_SLOT;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        memcpy(k.experts, p->expert_of_slot + l * S, S * sizeof *k.experts);
        memcpy(k.replica, p->replica_of_slot + l * S, S * sizeof *k.replica);
        for (uint32_t r = 0; r < p->topology.n_ranks; r++)
            keep_slots_of_rank(&k, p->first_slot[r], p->first_slot[r + 1],
                               wb_placement_experts_of(current, l), p->expert_of_slot + l * S,
                               p->replica_of_slot + l * S);
        index_layer(p, l);
    }
done:
    free(k.placed);
    free(k.next);
    free(k.head);
    free(k.replica);
    free(k.experts);
    return status;
}
