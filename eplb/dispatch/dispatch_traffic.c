/* dispatch_traffic.c - what a policy makes of the counts of one layer: tokens of each slot, and tokens
 * between ranks and nodes. Exact for static and quota, the expectation for dynamic and fake. Refuses:
 * single tokens, the handle. */
#include "dispatch/dispatch_internal.h"

#include <string.h>

/* Tokens that leave or enter each rank, by how far they go. */
typedef struct tally {
    const wb_dispatch_frame *frame;
    double *slot_tokens;                                       /* [S] */
    double *node_sent, *node_got, *network_sent, *network_got; /* [R] each */
} tally;

static void send(tally *t, uint32_t from, uint32_t slot, double tokens) {
    const wb_placement *placement = t->frame->placement;
    const uint32_t *node_of = placement->topology.node_of_rank;
    uint32_t to = placement->rank_of_slot[slot];
    t->slot_tokens[slot] += tokens;
    if (to == from) return;
    bool inside = node_of[to] == node_of[from];
    (inside ? t->node_sent : t->network_sent)[from] += tokens;
    (inside ? t->node_got : t->network_got)[to] += tokens;
}

/* ---- the policies: one expert each, column [R] its tokens by source rank --------------------- */

static void send_static(tally *t, uint32_t expert, const uint32_t *column, uint32_t *slots) {
    wb_static_slots(t->frame, expert, slots);
    for (uint32_t rank = 0; rank < t->frame->placement->topology.n_ranks; rank++)
        if (column[rank] > 0) send(t, rank, slots[rank], column[rank]);
}

static void send_quota(void *ctx, uint32_t from_rank, uint32_t j, uint32_t tokens) {
    tally *t = ctx;
    send(t, from_rank, t->frame->slots[j], tokens);
}

/* Every source rank's tokens in equal parts to each of the slots, which ascend. */
static void send_evenly(tally *t, const double *column, const uint32_t *slots, uint32_t n) {
    const wb_placement *placement = t->frame->placement;
    double total = 0;
    for (uint32_t rank = 0; rank < placement->topology.n_ranks; rank++) total += column[rank];
    if (total == 0) return;
    uint32_t j = 0;
    for (uint32_t node = 0; node < placement->topology.n_nodes; node++) {
        uint32_t first = t->frame->node_begin[node], end = t->frame->node_begin[node + 1], near = j;
        double node_tokens = 0;
        for (uint32_t rank = first; rank < end; rank++) node_tokens += column[rank];
        while (j < n && placement->rank_of_slot[slots[j]] < end) t->slot_tokens[slots[j++]] += total / n;
        uint32_t on_node = j - near;
        for (uint32_t rank = first; rank < end; rank++) {
            uint32_t own = near;
            while (near < j && placement->rank_of_slot[slots[near]] == rank) near++;
            own = near - own;
            t->node_sent[rank] += column[rank] * (on_node - own) / n;
            t->network_sent[rank] += column[rank] * (n - on_node) / n;
            t->node_got[rank] += (node_tokens - column[rank]) * own / n;
            t->network_got[rank] += (total - node_tokens) * own / n;
        }
    }
}

/* ---- all experts ----------------------------------------------------------------------------- */

typedef struct workspace {
    wb_owner memory;
    wb_dispatch_frame frame;
    tally tally;
    uint64_t *tokens;     /* [E] */
    uint32_t *shares;     /* [S] quota's */
    uint32_t *columns;    /* [WB_COLUMN_BLOCK][R] */
    uint32_t *rank_slots; /* [R] static: the slot of each; fake: how many of its slots hold an expert */
    double *column;       /* [R] */
} workspace;

static wb_status open_workspace(const wb_placement *placement, workspace *w) {
    size_t R = placement->topology.n_ranks, S = placement->topology.n_slots, E = placement->n_experts;
    const char *what = "dispatch loads";
    WB_TRY(wb_dispatch_frame_open(placement, &w->memory, &w->frame));
    WB_TRY(WB_OWN(&w->memory, w->tally.slot_tokens, S, what));
    WB_TRY(WB_OWN(&w->memory, w->tally.node_sent, R, what));
    WB_TRY(WB_OWN(&w->memory, w->tally.node_got, R, what));
    WB_TRY(WB_OWN(&w->memory, w->tally.network_sent, R, what));
    WB_TRY(WB_OWN(&w->memory, w->tally.network_got, R, what));
    WB_TRY(WB_OWN(&w->memory, w->tokens, E, what));
    WB_TRY(WB_OWN(&w->memory, w->shares, S, what));
    WB_TRY(WB_OWN(&w->memory, w->columns, R * WB_COLUMN_BLOCK, what));
    WB_TRY(WB_OWN(&w->memory, w->rank_slots, R, what));
    WB_TRY(WB_OWN(&w->memory, w->column, R, what));
    w->tally.frame = &w->frame;
    return WB_OK;
}

static void send_expert(workspace *w, wb_dispatch_policy policy, uint32_t expert, uint32_t *column) {
    const wb_dispatch_frame *frame = &w->frame;
    uint32_t R = frame->placement->topology.n_ranks;
    if (w->tokens[expert] == 0) return;
    if (policy == WB_DISPATCH_STATIC) {
        send_static(&w->tally, expert, column, w->rank_slots);
    } else if (policy == WB_DISPATCH_QUOTA) {
        wb_quota_split(frame, expert, column, w->shares, send_quota, &w->tally);
    } else {
        for (uint32_t rank = 0; rank < R; rank++) w->column[rank] = column[rank];
        send_evenly(&w->tally, w->column, frame->slots + frame->begin[expert],
                    frame->begin[expert + 1] - frame->begin[expert]);
    }
}

static void send_experts(workspace *w, wb_dispatch_policy policy, const uint32_t *counts) {
    const wb_placement *placement = w->frame.placement;
    uint32_t R = placement->topology.n_ranks, E = placement->n_experts;
    for (uint32_t first = 0; first < E; first += WB_COLUMN_BLOCK) {
        uint32_t n = E - first < WB_COLUMN_BLOCK ? E - first : WB_COLUMN_BLOCK;
        wb_dispatch_columns(placement, counts, first, n, w->columns);
        for (uint32_t i = 0; i < n; i++) send_expert(w, policy, first + i, w->columns + (size_t)i * R);
    }
}

static uint32_t count_filled(const wb_placement *placement, const int32_t *expert_of_slot, uint32_t rank) {
    uint32_t n = 0;
    for (uint32_t slot = placement->first_slot[rank]; slot < placement->first_slot[rank + 1]; slot++)
        n += expert_of_slot[slot] != WB_NO_EXPERT;
    return n;
}

/* fake, one node: its ranks that hold any expert get the same part of all tokens; column [R] tokens of
 * each rank. */
static void send_fake_to(workspace *w, const int32_t *expert_of_slot, uint32_t node, double all,
                         double n_ranks) {
    const wb_placement *placement = w->frame.placement;
    tally *t = &w->tally;
    uint32_t begin = w->frame.node_begin[node], end = w->frame.node_begin[node + 1];
    double here = 0, ranks_here = 0;
    for (uint32_t rank = begin; rank < end; rank++) {
        here += w->column[rank];
        ranks_here += w->rank_slots[rank] > 0;
    }
    for (uint32_t rank = begin; rank < end; rank++) {
        double own = w->column[rank] / n_ranks, filled = w->rank_slots[rank];
        t->node_sent[rank] = own * (ranks_here - (filled > 0));
        t->network_sent[rank] = own * (n_ranks - ranks_here);
        if (filled == 0) continue;
        t->node_got[rank] = here / n_ranks - own;
        t->network_got[rank] = (all - here) / n_ranks;
        for (uint32_t slot = placement->first_slot[rank]; slot < placement->first_slot[rank + 1]; slot++)
            if (expert_of_slot[slot] != WB_NO_EXPERT) t->slot_tokens[slot] = all / n_ranks / filled;
    }
}

/* fake: whatever the expert, ranks in turn and the slots of each in turn. */
static void send_fake(workspace *w, uint32_t layer, const uint32_t *counts) {
    const wb_placement *placement = w->frame.placement;
    const int32_t *expert_of_slot = wb_placement_experts_of(placement, layer);
    uint32_t E = placement->n_experts;
    double all = 0, n_ranks = 0;
    for (uint32_t rank = 0; rank < placement->topology.n_ranks; rank++) {
        for (uint32_t e = 0; e < E; e++) w->column[rank] += counts[(size_t)rank * E + e];
        all += w->column[rank];
        w->rank_slots[rank] = count_filled(placement, expert_of_slot, rank);
        n_ranks += w->rank_slots[rank] > 0;
    }
    for (uint32_t node = 0; node < placement->topology.n_nodes; node++)
        send_fake_to(w, expert_of_slot, node, all, n_ranks);
}

static wb_dispatch_traffic sum_traffic(const tally *t) {
    wb_dispatch_traffic sum = {0};
    for (uint32_t rank = 0; rank < t->frame->placement->topology.n_ranks; rank++) {
        const double node[] = {t->node_sent[rank], t->node_got[rank]};
        const double network[] = {t->network_sent[rank], t->network_got[rank]};
        sum.node_tokens += node[0];
        sum.network_tokens += network[0];
        for (int way = 0; way < 2; way++) {
            if (node[way] > sum.max_rank_node) sum.max_rank_node = node[way];
            if (network[way] > sum.max_rank_network) sum.max_rank_network = network[way];
        }
    }
    return sum;
}

wb_status wb_dispatch_loads(const wb_placement *placement, wb_dispatch_policy policy, uint32_t layer,
                            const uint32_t *counts, double *slot_tokens_out,
                            wb_dispatch_traffic *traffic_out) {
    workspace w = {0};
    wb_status status = WB_OK;
    if ((unsigned)policy > WB_DISPATCH_FAKE)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch loads: policy: expected 0..%d, found %d",
                       WB_DISPATCH_FAKE, (int)policy);
    WB_TRY(wb_dispatch_check_layer(placement, layer));
    WB_GOTO(open_workspace(placement, &w), close);
    WB_GOTO(wb_dispatch_sum_counts(placement, layer, counts, w.tokens), close);
    wb_dispatch_frame_read(&w.frame, layer);
    if (policy == WB_DISPATCH_QUOTA) WB_GOTO(wb_quota_shares(&w.frame, counts, w.tokens, w.shares), close);
    if (policy == WB_DISPATCH_FAKE)
        send_fake(&w, layer, counts);
    else
        send_experts(&w, policy, counts);
    memcpy(slot_tokens_out, w.tally.slot_tokens, placement->topology.n_slots * sizeof *slot_tokens_out);
    *traffic_out = sum_traffic(&w.tally);
close:
    wb_owner_close(&w.memory);
    return status;
}
