/* replay_state.c - what the other files of this room ask of the handle: sums, micro-batches and slices of
 * their rows; and dropping a plan. Refuses: an index, layer or row outside of the plan. */
#include "replay_state.h"

#include <inttypes.h>
#include <string.h>

size_t wb_replay_sums_count(const wb_replay *r) {
    return SUMS_FIXED + ((size_t)r->model.n_moe_layers + r->n_columns) * SUMS_PER_LAYER;
}

/* The micro-batches keep their memory. */
void wb_replay_abort(wb_replay *r) {
    for (int32_t i = 0; i < r->n_micro_batches; i++) {
        r->micro_batches[i].planned = false;
        r->micro_batches[i].n_layer_plans = 0;
    }
    r->n_micro_batches = 0;
    r->in_step = false;
    memset(r->sums, 0, wb_replay_sums_count(r) * sizeof *r->sums);
}

bool wb_replay_planned(const wb_replay *r, int32_t micro_batch_index) {
    return r && micro_batch_index >= 0 && micro_batch_index < r->n_micro_batches &&
           r->micro_batches[micro_batch_index].planned;
}

void wb_replay_stage(const wb_replay *r, int32_t *first_out, int32_t *n_out) {
    *first_out = r->options.first_layer;
    *n_out = r->options.n_layers;
}

uint32_t wb_replay_micro_batch_rows(const wb_replay *r, int32_t micro_batch_index) {
    return wb_replay_planned(r, micro_batch_index) ? r->micro_batches[micro_batch_index].T : 0;
}

wb_status wb_replay_check_index(const wb_replay *r, int32_t index) {
    if (!r) return wb_fail(WB_INVALID_ARGUMENT, "replay: handle is NULL");
    if (index < 0 || index >= r->n_micro_batches)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: micro-batch %" PRId32 ": the plan was begun with %" PRId32, index,
                       r->n_micro_batches);
    return WB_OK;
}

/* ---- slices ---------------------------------------------------------------------------------- */

static wb_status check_rows(const wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows) {
    const micro_batch *b = &r->micro_batches[index];
    int32_t first = r->options.first_layer, n = r->options.n_layers;
    if (!b->planned)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: micro-batch %" PRId32 " was not planned", index);
    if (layer != WB_ALL_LAYERS && (layer < first || layer >= first + n))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: MoE layer %" PRId32 " is outside this stage's [%" PRId32 ", %" PRId32 ")",
                       layer, first, first + n);
    if (row > b->T || rows > b->T - row)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: micro-batch %" PRId32 ": %" PRIu32 " rows from row %" PRIu32
                       " go beyond its %" PRIu32,
                       index, rows, row, b->T);
    return WB_OK;
}

/* What hangs on the layer, from its number; `ids` are those of layer 0. */
static void set_layer(const wb_replay *r, layer_rows *rows) {
    rows->K = wb_route_layer_k(&r->model, rows->layer);
    rows->layer_bytes = r->layer_at[rows->layer + 1] - r->layer_at[rows->layer];
    rows->ids += r->layer_at[rows->layer];
}

wb_status wb_replay_find_rows(const wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                              layer_rows *first_out, uint32_t *n_layers_out) {
    WB_TRY(wb_replay_check_index(r, index));
    WB_TRY(check_rows(r, index, layer, row, rows));
    micro_batch *b = &r->micro_batches[index];
    bool all = layer == WB_ALL_LAYERS;
    uint32_t stage_layer = all ? 0 : (uint32_t)(layer - r->options.first_layer);
    uint32_t model_layer = (uint32_t)r->options.first_layer + stage_layer;
    *first_out = (layer_rows){.batch = b,
                              .index = index,
                              .layer = model_layer,
                              .stage_layer = stage_layer,
                              .row = row,
                              .rows = rows,
                              .direction = b->by_layer + (size_t)stage_layer * b->T + row,
                              .noted = b->noted + (size_t)stage_layer * b->T + row,
                              .ids = b->ids + row * r->row_bytes};
    set_layer(r, first_out);
    *n_layers_out = all ? (uint32_t)r->options.n_layers : 1;
    return WB_OK;
}

void wb_replay_next_layer(const wb_replay *r, layer_rows *rows) {
    rows->ids -= r->layer_at[rows->layer];
    rows->layer++;
    rows->stage_layer++;
    rows->direction += rows->batch->T;
    rows->noted += rows->batch->T;
    /* Behind the last layer there is nothing to look at. */
    if (rows->layer < r->model.n_moe_layers) set_layer(r, rows);
}
