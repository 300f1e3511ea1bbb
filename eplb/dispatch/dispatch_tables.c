/* dispatch_tables.c - what one rank dispatches by, made from a layer's map: its table, for kernels too
 * (static, dynamic), the slots that it takes in turn (fake), or its parts of the shares (quota). Refuses:
 * rows (dispatch_rows.c), how shares are found (dispatch_quota.c). */
#include "dispatch/dispatch_handle.h"

#include <inttypes.h>

/* ---- tables ---------------------------------------------------------------------------------- */

/* Every slot fits: there are 2^24 at most. */
static void fill_static(wb_dispatch_frame *frame, uint32_t rank, uint32_t layer, int32_t *table) {
    wb_dispatch_frame_read(frame, layer);
    for (uint32_t e = 0; e < frame->placement->n_experts; e++)
        table[e] = (int32_t)wb_static_slot(frame, e, rank);
}

static void fill_dynamic(const wb_placement *placement, uint32_t layer, int32_t *table) {
    uint32_t E = placement->n_experts, S = placement->topology.n_slots;
    wb_layer_map map = wb_placement_layer(placement, layer);
    int32_t *slots = table + E + 1;
    for (uint32_t e = 0; e <= E; e++) table[e] = (int32_t)map.replica_begin[e];
    for (uint32_t j = 0; j < S; j++) slots[j] = j < map.replica_begin[E] ? (int32_t)map.replicas[j].slot : -1;
}

wb_status wb_dispatch_fill_table(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                                 uint32_t layer, int32_t *table_out) {
    size_t length = 0;
    wb_owner scratch = {0};
    wb_dispatch_frame frame = {0};
    WB_TRY(wb_dispatch_table_length(placement, policy, &length));
    WB_TRY(wb_dispatch_check_rank(placement, rank));
    WB_TRY(wb_dispatch_check_layer(placement, layer));
    if (policy == WB_DISPATCH_DYNAMIC) {
        fill_dynamic(placement, layer, table_out);
        return WB_OK;
    }
    wb_status status = wb_dispatch_frame_open(placement, &scratch, &frame);
    if (status == WB_OK) fill_static(&frame, rank, layer, table_out);
    wb_owner_close(&scratch);
    return status;
}

static void list_filled_slots(const wb_placement *placement, const int32_t *expert_of_slot,
                              wb_dispatch_layer *state) {
    uint32_t n = 0;
    state->n_ranks = 0;
    for (uint32_t rank = 0; rank < placement->topology.n_ranks; rank++) {
        uint32_t begin = n;
        for (uint32_t slot = placement->first_slot[rank]; slot < placement->first_slot[rank + 1]; slot++)
            if (expert_of_slot[slot] != WB_NO_EXPERT) state->table[n++] = (int32_t)slot;
        if (n > begin) state->rank_begin[state->n_ranks++] = begin;
    }
    state->rank_begin[state->n_ranks] = n;
}

const wb_dispatch_layer *wb_dispatch_layer_table(wb_dispatch *d, uint32_t layer) {
    wb_dispatch_layer *state = &d->layers[layer];
    if (state->made && state->version == d->placement->version[layer]) return state;
    state->made = true;
    state->version = d->placement->version[layer];
    if (d->policy == WB_DISPATCH_STATIC)
        fill_static(&d->frame, d->rank, layer, state->table);
    else if (d->policy == WB_DISPATCH_DYNAMIC)
        fill_dynamic(d->placement, layer, state->table);
    else
        list_filled_slots(d->placement, wb_placement_layer(d->placement, layer).expert_of_slot, state);
    return state;
}

wb_status wb_dispatch_table(wb_dispatch *dispatch, uint32_t layer, const wb_physical_id **table_out) {
    if (dispatch->policy != WB_DISPATCH_STATIC)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch table: expected policy static, found %s",
                       wb_dispatch_policy_name(dispatch->policy));
    WB_TRY(wb_dispatch_check_layer(dispatch->placement, layer));
    /* A physical id is its slot and nothing else, and no slot is negative. */
    _Static_assert(sizeof(wb_physical_id) == sizeof(int32_t), "a table is an array of ids");
    *table_out = (const wb_physical_id *)wb_dispatch_layer_table(dispatch, layer)->table;
    return WB_OK;
}

/* ---- quota: this rank's parts ---------------------------------------------------------------- */

typedef struct own_parts {
    uint32_t rank;
    wb_quota_part *parts;
} own_parts;

static void keep_own(void *ctx, uint32_t from_rank, uint32_t j, uint32_t tokens) {
    own_parts *own = ctx;
    if (from_rank == own->rank) own->parts[j].tokens += tokens;
}

/* Cuts shares [S] into those of each source rank and keeps this rank's. */
static void cut_shares(wb_dispatch *d, uint32_t layer, const uint32_t *counts, uint32_t *shares,
                       uint32_t *columns) {
    const wb_dispatch_frame *frame = &d->frame;
    uint32_t R = d->placement->topology.n_ranks, E = d->placement->n_experts;
    wb_dispatch_layer *state = &d->layers[layer];
    own_parts own = {d->rank, state->parts};
    for (uint32_t j = 0; j < frame->begin[E]; j++) state->parts[j] = (wb_quota_part){frame->slots[j], 0};
    for (uint32_t first = 0; first < E; first += WB_COLUMN_BLOCK) {
        uint32_t n = E - first < WB_COLUMN_BLOCK ? E - first : WB_COLUMN_BLOCK;
        wb_dispatch_columns(d->placement, counts, first, n, columns);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t e = first + i, announced = counts[(size_t)d->rank * E + e], at = frame->begin[e];
            if (announced > 0) wb_quota_split(frame, e, columns + (size_t)i * R, shares, keep_own, &own);
            state->progress[e] = (wb_quota_progress){at, state->parts[at].tokens, announced, announced};
        }
    }
    state->made = true;
    state->version = d->placement->version[layer];
}

static wb_status make_parts(wb_dispatch *d, uint32_t layer, const uint32_t *counts, wb_owner *scratch) {
    const wb_placement *placement = d->placement;
    uint64_t *tokens = NULL;
    uint32_t *shares = NULL, *columns = NULL;
    size_t R = placement->topology.n_ranks;
    WB_TRY(WB_OWN(scratch, tokens, placement->n_experts, "dispatch counts"));
    WB_TRY(WB_OWN(scratch, shares, placement->topology.n_slots, "quota"));
    WB_TRY(WB_OWN(scratch, columns, R * WB_COLUMN_BLOCK, "columns of counts"));
    WB_TRY(wb_dispatch_sum_counts(placement, layer, counts, tokens));
    wb_dispatch_frame_read(&d->frame, layer);
    WB_TRY(wb_quota_shares(&d->frame, counts, tokens, shares));
    cut_shares(d, layer, counts, shares, columns);
    return WB_OK;
}

wb_status wb_dispatch_set_counts(wb_dispatch *dispatch, uint32_t layer, const uint32_t *counts) {
    wb_owner scratch = {0};
    if (dispatch->policy != WB_DISPATCH_QUOTA)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch counts: expected policy quota, found %s",
                       wb_dispatch_policy_name(dispatch->policy));
    WB_TRY(wb_dispatch_check_layer(dispatch->placement, layer));
    wb_status status = make_parts(dispatch, layer, counts, &scratch);
    wb_owner_close(&scratch);
    return status;
}
