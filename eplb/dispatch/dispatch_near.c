/* dispatch_near.c - which replicas are near a rank: the replicas of a layer by rank and node, the rule of
 * `static`, and the counts of source ranks as dispatch reads them. Refuses: the handle, flows. */
#include "dispatch/dispatch_internal.h"
#include "wb_random.h"

#include <inttypes.h>

wb_status wb_dispatch_frame_open(const wb_placement *placement, wb_owner *memory,
                                 wb_dispatch_frame *frame_out) {
    const wb_topology *topology = &placement->topology;
    uint32_t R = topology->n_ranks, N = topology->n_nodes;
    wb_dispatch_frame f = {.placement = placement};
    WB_TRY(WB_OWN(memory, f.slots, topology->n_slots, "slots by expert"));
    WB_TRY(WB_OWN(memory, f.next, placement->n_experts, "slots by expert"));
    WB_TRY(WB_OWN(memory, f.node_begin, N + 1, "ranks by node"));
    WB_TRY(WB_OWN(memory, f.live_before, (size_t)R + 1, "live ranks"));
    for (uint32_t rank = 0; rank < R; rank++) {
        f.node_begin[topology->node_of_rank[rank] + 1] = rank + 1;
        f.live_before[rank + 1] = f.live_before[rank] + (topology->dead[rank] ? 0 : 1);
    }
    *frame_out = f;
    return WB_OK;
}

void wb_dispatch_frame_read(wb_dispatch_frame *frame, uint32_t layer) {
    wb_layer_map map = wb_placement_layer(frame->placement, layer);
    frame->layer = layer;
    frame->begin = map.replica_begin;
    for (uint32_t e = 0; e < frame->placement->n_experts; e++) frame->next[e] = map.replica_begin[e];
    for (uint32_t slot = 0; slot < frame->placement->topology.n_slots; slot++) {
        int32_t expert = map.expert_of_slot[slot];
        if (expert != WB_NO_EXPERT) frame->slots[frame->next[expert]++] = slot;
    }
}

wb_status wb_dispatch_check_layer(const wb_placement *placement, uint32_t layer) {
    if (layer < placement->n_layers) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "dispatch: layer: expected 0..%" PRIu32 ", found %" PRIu32,
                   placement->n_layers - 1, layer);
}

wb_status wb_dispatch_check_rank(const wb_placement *placement, uint32_t rank) {
    const wb_topology *topology = &placement->topology;
    if (rank >= topology->n_ranks)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch: rank: expected 0..%" PRIu32 ", found %" PRIu32,
                       topology->n_ranks - 1, rank);
    return WB_OK;
}

wb_status wb_dispatch_sum_counts(const wb_placement *placement, uint32_t layer, const uint32_t *counts,
                                 uint64_t *tokens_out) {
    uint32_t E = placement->n_experts;
    WB_TRY(wb_dispatch_check_layer(placement, layer));
    for (uint32_t e = 0; e < E; e++) tokens_out[e] = 0;
    for (uint32_t rank = 0; rank < placement->topology.n_ranks; rank++) {
        const uint32_t *row = counts + (size_t)rank * E;
        uint32_t any = 0;
        for (uint32_t e = 0; e < E; e++) {
            tokens_out[e] += row[e];
            any |= row[e];
        }
        if (any && placement->topology.dead[rank])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "dispatch: layer %" PRIu32 ": counts: rank %" PRIu32
                           " is dead and has tokens: expected none",
                           layer, rank);
    }
    return WB_OK;
}

void wb_dispatch_columns(const wb_placement *placement, const uint32_t *counts, uint32_t first, uint32_t n,
                         uint32_t *columns_out) {
    uint32_t R = placement->topology.n_ranks;
    size_t E = placement->n_experts;
    /* In square blocks. With a power of two of ranks, the rows that are written lie in the same sets of the
     * cache: whole rows at a time would drop each other's lines before these are full. */
    for (uint32_t begin = 0; begin < R; begin += WB_COLUMN_BLOCK) {
        uint32_t end = R - begin < WB_COLUMN_BLOCK ? R : begin + WB_COLUMN_BLOCK;
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t rank = begin; rank < end; rank++)
                columns_out[(size_t)i * R + rank] = counts[rank * E + first + i];
    }
}

/* ---- static ---------------------------------------------------------------------------------- */

/* Ranks that are equally near several replicas of an expert take these replicas in turn, in rank order. A
 * dead rank goes where the next live one goes and takes no turn from it: it has no tokens as a rule, and a
 * turn of nobody would leave a replica with less. The turn begins at a replica that a hash of layer and
 * expert picks. If it began with the first replica always, ranks that do not divide evenly over replicas
 * would leave the odd one there for every expert, and the first slots of a node would get more tokens than
 * the others. */
static uint32_t first_turn(const wb_dispatch_frame *frame, uint32_t expert, uint32_t n) {
    uint64_t hash = wb_mix64((uint64_t)frame->layer << 32 | expert) >> 32;
    return (uint32_t)(hash * n >> 32);
}

uint32_t wb_static_slot(const wb_dispatch_frame *frame, uint32_t expert, uint32_t rank) {
    const uint32_t *node_of = frame->placement->topology.node_of_rank;
    const uint32_t *slots = frame->slots + frame->begin[expert];
    uint32_t n = frame->begin[expert + 1] - frame->begin[expert];
    uint32_t node = node_of[rank], node_first = frame->node_begin[node];
    uint32_t before = 0;  /* replicas on lower nodes */
    uint32_t holders = 0; /* ranks of this node below this one that have a replica */
    uint32_t n_near = 0;  /* replicas on this node */
    uint32_t live_on_holding_nodes = 0, last_rank = UINT32_MAX, last_node = UINT32_MAX;
    for (uint32_t j = 0; j < n; j++) {
        uint32_t at = frame->placement->rank_of_slot[slots[j]];
        if (at == rank) return slots[j];
        if (node_of[at] > node) break;
        if (node_of[at] == node) {
            holders += at != last_rank && at < rank;
            n_near++;
        } else {
            before++;
            if (node_of[at] != last_node)
                live_on_holding_nodes += frame->live_before[frame->node_begin[node_of[at] + 1]] -
                                         frame->live_before[frame->node_begin[node_of[at]]];
        }
        last_rank = at;
        last_node = node_of[at];
    }
    if (n_near > 0) {
        uint32_t place = frame->live_before[rank] - frame->live_before[node_first] - holders;
        return slots[before + (place + first_turn(frame, expert, n_near)) % n_near];
    }
    uint32_t place = frame->live_before[rank] - live_on_holding_nodes;
    return slots[(place + first_turn(frame, expert, n)) % n];
}

/* The ranks of a node among whose slots are near[0..n - 1]. */
static void node_slots(const wb_dispatch_frame *frame, uint32_t expert, uint32_t node, const uint32_t *near,
                       uint32_t n, uint32_t *slots_out) {
    const uint8_t *dead = frame->placement->topology.dead;
    uint32_t turn = first_turn(frame, expert, n), j = 0;
    for (uint32_t rank = frame->node_begin[node]; rank < frame->node_begin[node + 1]; rank++) {
        while (j < n && frame->placement->rank_of_slot[near[j]] < rank) j++;
        if (dead[rank]) {
            slots_out[rank] = WB_NO_SLOT;
        } else if (j < n && frame->placement->rank_of_slot[near[j]] == rank) {
            slots_out[rank] = near[j];
        } else {
            slots_out[rank] = near[turn];
            turn = turn + 1 < n ? turn + 1 : 0;
        }
    }
}

void wb_static_slots(const wb_dispatch_frame *frame, uint32_t expert, uint32_t *slots_out) {
    const wb_topology *topology = &frame->placement->topology;
    const uint32_t *slots = frame->slots + frame->begin[expert];
    uint32_t n = frame->begin[expert + 1] - frame->begin[expert];
    uint32_t turn = first_turn(frame, expert, n), j = 0;
    for (uint32_t node = 0; node < topology->n_nodes; node++) {
        uint32_t near = j;
        while (j < n && frame->placement->rank_of_slot[slots[j]] < frame->node_begin[node + 1]) j++;
        if (j > near) {
            node_slots(frame, expert, node, slots + near, j - near, slots_out);
            continue;
        }
        for (uint32_t rank = frame->node_begin[node]; rank < frame->node_begin[node + 1]; rank++) {
            slots_out[rank] = topology->dead[rank] ? WB_NO_SLOT : slots[turn];
            if (!topology->dead[rank]) turn = turn + 1 < n ? turn + 1 : 0;
        }
    }
}
