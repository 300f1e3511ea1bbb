/* topology.c - ranks, nodes and slots: the check of what a caller describes, and the arrays that it may leave
 * out. */
#include "placement/placement_internal.h"

#include <inttypes.h>

enum { MAX_RANKS = 65536, MAX_EXPERTS = 65536, MAX_SLOTS = 1 << 24 };

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
                           "topology: node_of_rank[%" PRIu32
                           "]: expected nodes ascending from 0, found %" PRIu32,
                           r, found);
        node = found;
    }
    if (node + 1 != t->n_nodes)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: node_of_rank: expected n_nodes = %" PRIu32 " nodes, found %" PRIu32,
                       t->n_nodes, node + 1);
    return WB_OK;
}

wb_status wb_topology_check(const wb_topology *t, uint32_t n_experts) {
    if (!t) return wb_fail(WB_INVALID_ARGUMENT, "topology: NULL");
    if (n_experts < 1 || n_experts > MAX_EXPERTS)
        return wb_fail(WB_INVALID_ARGUMENT, "topology: experts: expected 1..%d, found %" PRIu32, MAX_EXPERTS,
                       n_experts);
    if (t->n_ranks < 1 || t->n_ranks > MAX_RANKS)
        return wb_fail(WB_INVALID_ARGUMENT, "topology: n_ranks: expected 1..%d, found %" PRIu32, MAX_RANKS,
                       t->n_ranks);
    if (t->n_nodes < 1 || t->n_nodes > t->n_ranks)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: n_nodes: expected 1..%" PRIu32 " (the ranks), found %" PRIu32, t->n_ranks,
                       t->n_nodes);
    if (t->n_slots < 1 || t->n_slots > MAX_SLOTS)
        return wb_fail(WB_INVALID_ARGUMENT, "topology: n_slots: expected 1..%d, found %" PRIu32, MAX_SLOTS,
                       t->n_slots);
    WB_TRY(check_nodes(t));
    uint64_t all = 0, live = 0;
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        all += slots_of(t, r);
        if (!t->dead || !t->dead[r]) live += slots_of(t, r);
    }
    if (all != t->n_slots)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: slots_of_rank: expected a sum of n_slots = %" PRIu32 ", found %" PRIu64,
                       t->n_slots, all);
    if (live < n_experts)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "topology: slots on live ranks: expected one for each of %" PRIu32
                       " experts at least, found %" PRIu64 " (of %" PRIu32 " in all)",
                       n_experts, live, t->n_slots);
    return WB_OK;
}

void wb_topology_fill(wb_placement *p, const wb_topology *t) {
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
