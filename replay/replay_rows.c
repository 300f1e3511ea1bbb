/* replay_rows.c - handing out the plan: how a forward is to route the rows of a slice, what it must bring
 * back, the counts known before it runs, and at the end whether every row followed it. Refuses: a cursor; any
 * order of use is fine. */
#include "replay_state.h"

#include <inttypes.h>
#include <string.h>

/* Where a micro-batch has no plan, which only mode OFF allows, all rows choose. */
static wb_replay_slice unplanned(uint32_t rows) {
    return (wb_replay_slice){.rows = rows, .any_native = rows > 0};
}

static void look_at_directions(wb_replay_slice *slice) {
    for (uint32_t i = 0; i < slice->rows; i++) {
        slice->any_native |= slice->direction[i] == WB_ROW_NATIVE;
        slice->any_forced |= slice->direction[i] != WB_ROW_NATIVE;
    }
}

/* Whether some row of the layer is not known to follow the plan. */
static bool unfollowed(const layer_rows *s) {
    if (s->batch->followed[s->stage_layer] == s->batch->T) return false;
    for (uint32_t i = 0; i < s->rows; i++)
        if ((s->noted[i] & NOTED_FOLLOWED) == 0) return true;
    return false;
}

wb_status wb_replay_rows(wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                         wb_replay_slice *slice_out) {
    if (r && r->mode == WB_REPLAY_OFF && !wb_replay_planned(r, index)) {
        *slice_out = unplanned(rows);
        return WB_OK;
    }
    layer_rows s = {0};
    uint32_t n_layers = 0;
    WB_TRY(wb_replay_find_rows(r, index, layer, row, rows, &s, &n_layers));
    bool all = layer == WB_ALL_LAYERS;
    wb_replay_slice slice = {.rows = rows,
                             .ids = all ? s.batch->ids + row * r->row_bytes : s.ids,
                             .stride = (int64_t)wb_route_row_ids(&r->model),
                             .direction = all ? s.batch->direction + row : s.direction};
    look_at_directions(&slice);
    bool measurable = false, unknown = false;
    for (uint32_t l = 0; !(measurable && unknown) && l < n_layers; l++, wb_replay_next_layer(r, &s)) {
        measurable = measurable || wb_replay_unmeasured(&s);
        unknown = unknown || unfollowed(&s);
    }
    bool off = r->mode == WB_REPLAY_OFF;
    slice.undecided = !off && slice.any_native;
    slice.want_chosen = off ? measurable : slice.any_native;
    slice.want_used = off ? measurable : unknown;
    slice.want_native = !off && measurable;
    *slice_out = slice;
    return WB_OK;
}

wb_status wb_replay_counts(const wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                           int64_t *counts_out) {
    layer_rows s = {0};
    uint32_t n_layers = 0;
    WB_TRY(wb_replay_find_rows(r, index, layer, row, rows, &s, &n_layers));
    memset(counts_out, 0, r->model.num_experts * sizeof *counts_out);
    for (uint32_t l = 0; l < n_layers; l++, wb_replay_next_layer(r, &s))
        for (uint32_t i = 0; i < rows; i++) {
            if (s.direction[i] != WB_ROW_FORCED) continue;
            for (uint32_t k = 0; k < s.K; k++)
                counts_out[wb_route_id(s.ids + i * r->row_bytes, r->dtype, k)]++;
        }
    return WB_OK;
}

static wb_status check_followed(const wb_replay *r, int32_t index) {
    const micro_batch *b = &r->micro_batches[index];
    if (!b->planned) return wb_fail(WB_MISMATCH, "replay: micro-batch %" PRId32 " was not planned", index);
    for (int32_t l = 0; l < r->options.n_layers; l++) {
        if (b->followed[l] == b->T) continue;
        int32_t layer = r->options.first_layer + l;
        const uint8_t *noted = b->noted + (size_t)l * b->T;
        uint32_t first = 0;
        while ((noted[first] & NOTED_FOLLOWED) != 0) first++;
        return wb_fail(WB_MISMATCH,
                       "replay: micro-batch %" PRId32 ", MoE layer %" PRId32 " (model layer %" PRIu32
                       "): expected to be told where all %" PRIu32 " rows went, found %" PRIu32
                       " untold, the first is row %" PRIu32,
                       index, layer, r->model.moe_layers[layer], b->T, b->T - b->followed[l], first);
    }
    return WB_OK;
}

wb_status wb_replay_end(wb_replay *r) {
    if (!r || !r->in_step)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: end: %s", r ? "no step is open" : "handle is NULL");
    for (int32_t i = 0; r->mode != WB_REPLAY_OFF && i < r->n_micro_batches; i++) {
        WB_TRY(check_followed(r, i));
        WB_TRY(wb_replay_check_listed(r, i));
    }
    r->in_step = false;
    return WB_OK;
}
