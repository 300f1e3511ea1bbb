/* placement_change.c - another map in one layer, or other layers from another placement: checked first, then
 * changed in place. Refuses: choosing places (solve/), telling other ranks (placement_sync.c). */
#include "placement/placement_internal.h"

#include <inttypes.h>
#include <string.h>

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

static wb_status check_map(const wb_placement *p, const char *what, uint32_t layer, const int32_t *experts,
                           const uint32_t *replica, wb_owner *scratch) {
    uint32_t E = p->n_experts, *begin = NULL;
    uint8_t *seen = NULL;
    WB_TRY(WB_OWN(scratch, begin, (size_t)E + 1, what));
    WB_TRY(WB_OWN(scratch, seen, p->topology.n_slots, what));
    WB_TRY(check_slots(p, what, layer, experts, begin));
    for (uint32_t e = 0; e < E; e++) {
        if (begin[e + 1] == 0)
            return wb_fail(WB_INVALID_ARGUMENT, "%s: layer %" PRIu32 " has no slot for expert %" PRIu32, what,
                           layer, e);
        begin[e + 1] += begin[e];
    }
    return replica ? check_replicas(p, what, layer, experts, replica, begin, seen) : WB_OK;
}

wb_status wb_placement_check_map(const wb_placement *p, const char *what, uint32_t layer,
                                 const int32_t *experts, const uint32_t *replica) {
    wb_owner scratch = {0};
    wb_status status = check_map(p, what, layer, experts, replica, &scratch);
    wb_owner_close(&scratch);
    return status;
}

wb_status wb_placement_set_layer(wb_placement *p, uint32_t layer, const int32_t *expert_of_slot,
                                 const uint32_t *replica_of_slot, uint64_t epoch) {
    if (layer >= p->n_layers)
        return wb_fail(WB_INVALID_ARGUMENT, "placement: layer: expected 0..%" PRIu32 ", found %" PRIu32,
                       p->n_layers - 1, layer);
    WB_TRY(wb_placement_check_map(p, "placement", layer, expert_of_slot, replica_of_slot));
    size_t S = p->topology.n_slots, E = p->n_experts;
    uint32_t *replica = p->replica_of_slot + layer * S;
    memmove(p->expert_of_slot + layer * S, expert_of_slot, S * sizeof *expert_of_slot);
    if (replica_of_slot)
        memmove(replica, replica_of_slot, S * sizeof *replica);
    else
        wb_placement_number_replicas((uint32_t)S, (uint32_t)E, expert_of_slot,
                                     p->replica_begin + layer * (E + 1), replica);
    for (size_t s = 0; s < S; s++)
        if (p->expert_of_slot[layer * S + s] < 0) replica[s] = 0;
    wb_placement_index_layer(p, layer);
    p->epoch[layer] = epoch;
    return WB_OK;
}

wb_status wb_placement_check_size(const wb_placement *placement, uint32_t L, uint32_t E, const char *what) {
    if (wb_placement_layers(placement) == L && wb_placement_experts(placement) == E) return WB_OK;
    return wb_fail(WB_MISMATCH,
                   "%s has L %" PRIu32 " and E %" PRIu32 ", the placement L %" PRIu32 " and E %" PRIu32, what,
                   L, E, wb_placement_layers(placement), wb_placement_experts(placement));
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
                           "placement: slots of rank %" PRIu32 ": expected %" PRIu32 ", found %" PRIu32, r,
                           a->slots_of_rank[r], b->slots_of_rank[r]);
    return WB_OK;
}

wb_status wb_placement_copy_layers(wb_placement *p, const wb_placement *from, uint32_t n,
                                   const uint32_t *layers, uint64_t epoch) {
    WB_TRY(wb_placement_check_shape(p, from));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t l = layers ? layers[i] : i;
        if (l >= p->n_layers)
            return wb_fail(WB_INVALID_ARGUMENT, "placement: layer: expected 0..%" PRIu32 ", found %" PRIu32,
                           p->n_layers - 1, l);
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
        wb_placement_copy_layer(p, from, l);
        p->epoch[l] = epoch;
    }
    return WB_OK;
}
