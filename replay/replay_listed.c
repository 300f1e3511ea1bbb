/* replay_listed.c - what indexers chose, for the rows of a micro-batch: planned from records, handed out,
 * taken back. Owns: which row looks at what by which indexer. Refuses: the experts' routes (replay_rows.c,
 * replay_store.c), whose modes and whose policy for missing rows these follow. */
#include "replay_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The rows that a call is about. */
typedef struct listed_rows {
    micro_batch *batch;
    int32_t index;
    uint32_t column, layer; /* of the model's layers: that which has the indexer */
    uint32_t row, rows;
    listed_cell *cells; /* [rows] */
} listed_rows;

/* The model layer of a column. */
static uint32_t layer_of(const wb_route_model *m, uint32_t column) {
    return m->indexer_layers[wb_indexer_layer(m, column)];
}

static wb_indexer_choice choice_of(const micro_batch *b, const listed_cell *cell) {
    return (wb_indexer_choice){cell->count, cell->is_kept ? b->kept + cell->kept_at : cell->positions};
}

/* ---- the plan -------------------------------------------------------------------------------- */

wb_status wb_replay_resolve_listed(const wb_replay *r, const wb_segment *s, const wb_record *record,
                                   uint32_t end, uint32_t *missing_out) {
    const wb_indexer_rows *run = record->indexer;
    const uint32_t first = run && run->start > s->start ? run->start : s->start;
    uint32_t last = run ? run->start + run->rows : s->start;
    if (r->n_columns == 0) return WB_OK;
    if (last > end) last = end;
    const uint32_t known = last > first ? last - first : 0, missing = end - s->start - known;
    *missing_out = missing;
    if (missing == 0 || r->options.missing != WB_MISSING_STRICT) return WB_OK;
    return wb_fail(WB_MISSING_ROUTES,
                   "replay: request %s: the record does not say what indexers chose at position %" PRIu32
                   ", model layer %" PRIu32 "; %" PRIu32 " of the segment's %" PRIu32 " rows are missing",
                   s->rid, known > 0 && first == s->start ? last : s->start, layer_of(&r->model, 0), missing,
                   s->rows);
}

wb_status wb_replay_reserve_listed(wb_replay *r, micro_batch *b, uint32_t T) {
    return wb_host_reserve(&r->memory, &b->listed, (size_t)r->n_columns * T, sizeof(listed_cell),
                           "replay: what indexers chose");
}

/* The cell of one row of a segment. A row of padding looks at nothing, and is told of by nobody. */
static listed_cell plan_cell(const wb_replay *r, const segment_plan *s, uint32_t i, uint32_t column) {
    wb_indexer_choice choice;
    if (s->kind == WB_SEGMENT_PADDING)
        return (listed_cell){.direction = WB_ROW_PADDING, .noted = NOTED_FOLLOWED};
    if (s->kind == WB_SEGMENT_RECORD) return (listed_cell){.direction = WB_ROW_NATIVE};
    /* What a row chose that the record lacks is no measure of the record. */
    if (!wb_indexer_at(&r->model, s->record->indexer, s->start + i, column, &choice))
        return (listed_cell){.direction = WB_ROW_NATIVE, .noted = NOTED_MEASURED};
    return (listed_cell){.positions = choice.positions,
                         .count = choice.count,
                         .direction = r->mode == WB_REPLAY_OFF ? WB_ROW_NATIVE : WB_ROW_FORCED,
                         .has_plan = true};
}

void wb_replay_fill_listed(const wb_replay *r, micro_batch *b) {
    const segment_plan *segments = b->segments.data;
    listed_cell *cell = b->listed.data;
    b->n_kept = 0;
    for (uint32_t column = 0; column < r->n_columns; column++)
        for (int32_t s = 0; s < b->n_segments; s++)
            for (uint32_t i = 0; i < segments[s].rows; i++) *cell++ = plan_cell(r, &segments[s], i, column);
}

/* ---- use ------------------------------------------------------------------------------------- */

static wb_status find_rows(wb_replay *r, int32_t index, uint32_t i, uint32_t row, uint32_t rows,
                           listed_rows *out) {
    if (r && (r->n_columns == 0 || i >= r->model.n_indexer_layers))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: indexer layer %" PRIu32 ": the replay was opened with %" PRIu32, i,
                       r->n_columns > 0 ? r->model.n_indexer_layers : 0);
    layer_rows s = {0};
    uint32_t n_layers = 0;
    /* Index and rows are checked as any layer's. */
    WB_TRY(wb_replay_find_rows(r, index, WB_ALL_LAYERS, row, rows, &s, &n_layers));
    const uint32_t column = wb_indexer_column(&r->model, i);
    *out = (listed_rows){.batch = s.batch,
                         .index = index,
                         .column = column,
                         .layer = r->model.indexer_source[i],
                         .row = row,
                         .rows = rows,
                         .cells = (listed_cell *)s.batch->listed.data + (size_t)column * s.batch->T + row};
    return WB_OK;
}

static bool unmeasured(const listed_cell *cell) {
    return cell->has_plan && (cell->noted & NOTED_MEASURED) == 0;
}

static void list(const micro_batch *b, const listed_cell *cell, uint32_t k, int32_t *listed_out) {
    const wb_indexer_choice none = {0}, choice = choice_of(b, cell);
    wb_indexer_to_list(cell->direction == WB_ROW_FORCED ? &choice : &none, k, listed_out);
}

/* Where a micro-batch has no plan, which only mode OFF allows. */
static wb_replay_indexer_slice unplanned(const wb_replay *r, uint32_t rows, int32_t *listed_out,
                                         uint8_t *direction_out) {
    for (size_t j = 0; j < (size_t)rows * r->model.indexer_k; j++) listed_out[j] = -1;
    memset(direction_out, WB_ROW_NATIVE, rows);
    return (wb_replay_indexer_slice){.any_native = rows > 0};
}

wb_status wb_replay_indexer_rows(wb_replay *r, int32_t index, uint32_t i, uint32_t row, uint32_t rows,
                                 int32_t *listed_out, uint8_t *direction_out,
                                 wb_replay_indexer_slice *slice_out) {
    if (r && r->n_columns > 0 && r->mode == WB_REPLAY_OFF && !wb_replay_planned(r, index)) {
        *slice_out = unplanned(r, rows, listed_out, direction_out);
        return WB_OK;
    }
    listed_rows s;
    wb_replay_indexer_slice slice = {0};
    WB_TRY(find_rows(r, index, i, row, rows, &s));
    const bool off = r->mode == WB_REPLAY_OFF;
    bool measurable = false, unknown = false;
    for (uint32_t t = 0; t < rows; t++) {
        const listed_cell *cell = &s.cells[t];
        list(s.batch, cell, r->model.indexer_k, listed_out + (size_t)t * r->model.indexer_k);
        direction_out[t] = cell->direction;
        slice.any_forced |= cell->direction == WB_ROW_FORCED;
        slice.any_native |= cell->direction == WB_ROW_NATIVE;
        measurable |= unmeasured(cell);
        unknown |= (cell->noted & NOTED_FOLLOWED) == 0;
    }
    slice.want_used = off ? measurable : unknown;
    slice.want_native = !off && measurable;
    *slice_out = slice;
    return WB_OK;
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* Says of which row this thread's message is: its place in the micro-batch and, where it is of a request,
 * whose token that is. */
static wb_status row_fail(const listed_rows *s, uint32_t t, wb_status status) {
    const segment_plan *segment = s->batch->segments.data;
    uint32_t i = s->row + t;
    for (; i >= segment->rows; segment++) i -= segment->rows;
    if (segment->rid)
        wb_fail_context(status, "request %s, position %" PRIu32, segment->rid, segment->start + i);
    return wb_fail_context(
        status, "replay: micro-batch %" PRId32 ", indexer of model layer %" PRIu32 ", row %" PRIu32, s->index,
        s->layer, s->row + t);
}

/* Number j of the row's list is another than the rule `expected` says, of which `bound` is part. */
static wb_status place_fail(const listed_rows *s, uint32_t t, uint32_t j, const char *expected, int64_t bound,
                            int32_t found) {
    wb_fail(WB_INVALID_ARGUMENT, "number %" PRIu32 " of its list: expected %s %" PRId64 ", found %" PRId32, j,
            expected, bound, found);
    return row_fail(s, t, WB_INVALID_ARGUMENT);
}

static wb_status check_listed(const wb_replay *r, const listed_rows *s, uint32_t t, const int32_t *listed) {
    const uint32_t k = r->model.indexer_k, n = wb_indexer_of_list(listed, k).count;
    for (uint32_t j = 1; j < n; j++)
        if (listed[j] <= listed[j - 1])
            return place_fail(s, t, j, "a position above", listed[j - 1], listed[j]);
    for (uint32_t j = n; j < k; j++)
        if (listed[j] != -1) return place_fail(s, t, j, "behind the last position", -1, listed[j]);
    if (!s->batch->all_tokens) return WB_OK;
    const uint32_t pos = (uint32_t)s->batch->pos[s->row + t], seen = wb_indexer_seen(&r->model, pos);
    if (n > 0 && (uint32_t)listed[n - 1] >= seen)
        return place_fail(s, t, n - 1, "a position below", seen, listed[n - 1]);
    const uint32_t count = wb_indexer_count(&r->model, pos);
    if (r->model.indexer_rate == 0 || n == count) return WB_OK;
    wb_fail(WB_INVALID_ARGUMENT, "expected a count of %" PRIu32 ", found %" PRIu32, count, n);
    return row_fail(s, t, WB_INVALID_ARGUMENT);
}

/* That a forced row looked where it was planned to, by a list that check_listed has passed. */
static wb_status check_planned(const listed_rows *s, uint32_t t, const int32_t *listed, uint32_t k) {
    const wb_indexer_choice planned = choice_of(s->batch, &s->cells[t]),
                            found = wb_indexer_of_list(listed, k);
    uint32_t j = 0;
    if (wb_indexer_same(planned, found)) return WB_OK;
    while (j < planned.count && j < found.count &&
           wb_indexer_position(&planned, j) == wb_indexer_position(&found, j))
        j++;
    wb_fail(WB_MISMATCH,
            "number %" PRIu32 " of its list: expected as planned %" PRId64 " of %" PRIu32
            " positions, found %" PRId64 " of %" PRIu32,
            j, j < planned.count ? (int64_t)wb_indexer_position(&planned, j) : -1, planned.count,
            j < found.count ? (int64_t)wb_indexer_position(&found, j) : -1, found.count);
    return row_fail(s, t, WB_MISMATCH);
}

static wb_status check_told(const wb_replay *r, const listed_rows *s, const int32_t *used,
                            const int32_t *native) {
    const uint32_t k = r->model.indexer_k;
    for (uint32_t t = 0; t < s->rows; t++) {
        const listed_cell *cell = &s->cells[t];
        const size_t at = (size_t)t * k;
        if (cell->direction == WB_ROW_PADDING) continue;
        if (native) WB_TRY(check_listed(r, s, t, native + at));
        if (used) WB_TRY(check_listed(r, s, t, used + at));
        if (cell->direction == WB_ROW_FORCED && used) WB_TRY(check_planned(s, t, used + at, k));
        if (cell->direction == WB_ROW_NATIVE && !used && r->mode != WB_REPLAY_OFF) {
            wb_fail(WB_INVALID_ARGUMENT,
                    "it chose natively: expected the positions that it used, found NULL");
            return row_fail(s, t, WB_INVALID_ARGUMENT);
        }
    }
    return WB_OK;
}

/* ---- changes --------------------------------------------------------------------------------- */

static void measure(wb_replay *r, const listed_rows *s, uint32_t t, const int32_t *native) {
    listed_cell *cell = &s->cells[t];
    double *sums = r->sums + SUMS_FIXED + ((size_t)r->model.n_moe_layers + s->column) * SUMS_PER_LAYER;
    if (!unmeasured(cell)) return;
    const wb_indexer_choice mine = choice_of(s->batch, cell);
    const wb_indexer_choice theirs = wb_indexer_of_list(native, r->model.indexer_k);
    const uint32_t common = wb_indexer_common(mine, theirs);
    cell->noted |= NOTED_MEASURED;
    sums[LAYER_TOKENS] += 1;
    sums[LAYER_OVERLAP] += mine.count > 0 ? (double)common / mine.count : 1;
    sums[LAYER_DIFFER] += common != mine.count || common != theirs.count;
}

/* Room for what the rows that choose have chosen, before anything is changed. */
static wb_status reserve_kept(const wb_replay *r, const listed_rows *s, const int32_t *used) {
    micro_batch *b = s->batch;
    size_t more = 0;
    if (!used || r->mode == WB_REPLAY_OFF) return WB_OK;
    for (uint32_t t = 0; t < s->rows; t++)
        if (s->cells[t].direction == WB_ROW_NATIVE)
            more += wb_indexer_of_list(used + (size_t)t * r->model.indexer_k, r->model.indexer_k).count;
    return WB_GROW(b->kept, b->n_kept + more, &b->kept_capacity, "replay: what indexers chose");
}

static void keep(const wb_replay *r, micro_batch *b, listed_cell *cell, const int32_t *used) {
    const wb_indexer_choice choice = wb_indexer_of_list(used, r->model.indexer_k);
    cell->count = choice.count;
    cell->positions = NULL;
    cell->is_kept = choice.positions != NULL;
    cell->kept_at = b->n_kept;
    for (uint32_t j = 0; choice.positions && j < choice.count; j++)
        b->kept[b->n_kept++] = choice.positions[j];
    cell->direction = WB_ROW_FORCED;
    cell->has_plan = true;
}

wb_status wb_replay_indexer_store(wb_replay *r, int32_t index, uint32_t i, uint32_t row, uint32_t rows,
                                  const int32_t *used, const int32_t *native) {
    listed_rows s;
    if (r && r->n_columns > 0 && r->mode == WB_REPLAY_OFF && !wb_replay_planned(r, index)) return WB_OK;
    WB_TRY(find_rows(r, index, i, row, rows, &s));
    WB_TRY(check_told(r, &s, used, native));
    WB_TRY(reserve_kept(r, &s, used));
    if (r->mode == WB_REPLAY_OFF && !native) native = used;
    for (uint32_t t = 0; t < rows; t++) {
        listed_cell *cell = &s.cells[t];
        const size_t at = (size_t)t * r->model.indexer_k;
        if (cell->direction == WB_ROW_PADDING) continue;
        if (native) measure(r, &s, t, native + at);
        if (!used || r->mode == WB_REPLAY_OFF) continue;
        if (cell->direction == WB_ROW_NATIVE) keep(r, s.batch, cell, used + at);
        cell->noted |= NOTED_FOLLOWED;
    }
    return WB_OK;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Whether the stage has this layer of the model. */
static bool in_stage(const wb_replay *r, uint32_t layer) {
    const uint32_t first = (uint32_t)r->options.first_layer, end = first + (uint32_t)r->options.n_layers;
    const wb_route_model *m = &r->model;
    return (first == 0 || layer >= m->moe_layers[first]) &&
           (end == m->n_moe_layers || layer < m->moe_layers[end]);
}

wb_status wb_replay_check_listed(const wb_replay *r, int32_t index) {
    const micro_batch *b = &r->micro_batches[index];
    const listed_cell *cells = b->listed.data;
    for (uint32_t column = 0; column < r->n_columns; column++, cells += b->T) {
        const uint32_t layer = layer_of(&r->model, column);
        for (uint32_t t = 0; in_stage(r, layer) && t < b->T; t++)
            if ((cells[t].noted & NOTED_FOLLOWED) == 0)
                return wb_fail(WB_MISMATCH,
                               "replay: micro-batch %" PRId32 ", indexer of model layer %" PRIu32
                               ": expected to be told where all %" PRIu32 " rows looked, found row %" PRIu32
                               " untold",
                               index, layer, b->T, t);
    }
    return WB_OK;
}
