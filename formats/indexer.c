/* indexer.c - what indexers chose, in a record: where a cell lies, what two choices share, and what makes
 * such rows well formed. Refuses: files (dump_indexer.c), models (route_model.c). */
#include "indexer.h"
#include "wb_check.h"

#include <inttypes.h>

uint32_t wb_indexer_columns(const wb_route_model *model) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < model->n_indexer_layers; i++)
        n += model->indexer_source[i] == model->indexer_layers[i];
    return n;
}

uint32_t wb_indexer_column(const wb_route_model *model, uint32_t i) {
    uint32_t column = 0;
    for (uint32_t j = 0; model->indexer_layers[j] != model->indexer_source[i]; j++)
        column += model->indexer_source[j] == model->indexer_layers[j];
    return column;
}

uint32_t wb_indexer_layer(const wb_route_model *model, uint32_t column) {
    uint32_t i = 0;
    while (model->indexer_source[i] != model->indexer_layers[i] || column-- > 0) i++;
    return i;
}

/* Cell `cell` of rows that are well formed. */
static wb_indexer_choice choice_of(const wb_indexer_rows *run, size_t cell) {
    const uint64_t from = cell > 0 ? run->ends[cell - 1] : 0;
    return (wb_indexer_choice){run->counts[cell], run->ends[cell] > from ? run->positions + from : NULL};
}

bool wb_indexer_at(const wb_route_model *model, const wb_indexer_rows *run, uint32_t position,
                   uint32_t column, wb_indexer_choice *choice_out) {
    if (!run || position < run->start || position - run->start >= run->rows) return false;
    *choice_out = choice_of(run, (size_t)(position - run->start) * wb_indexer_columns(model) + column);
    return true;
}

uint32_t wb_indexer_seen(const wb_route_model *model, uint32_t position) {
    return (position + 1) / (model->indexer_rate > 0 ? model->indexer_rate : 1);
}

uint32_t wb_indexer_count(const wb_route_model *model, uint32_t position) {
    const uint32_t seen = wb_indexer_seen(model, position);
    return seen < model->indexer_k ? seen : model->indexer_k;
}

uint32_t wb_indexer_common(wb_indexer_choice a, wb_indexer_choice b) {
    uint32_t n = 0;
    for (uint32_t i = 0, j = 0; i < a.count && j < b.count;) {
        const uint32_t x = wb_indexer_position(&a, i), y = wb_indexer_position(&b, j);
        n += x == y;
        i += x <= y;
        j += y <= x;
    }
    return n;
}

bool wb_indexer_same(wb_indexer_choice a, wb_indexer_choice b) {
    if (a.count != b.count) return false;
    for (uint32_t j = 0; j < a.count; j++)
        if (wb_indexer_position(&a, j) != wb_indexer_position(&b, j)) return false;
    return true;
}

wb_indexer_choice wb_indexer_of_list(const int32_t *list, uint32_t k) {
    uint32_t n = 0;
    while (n < k && list[n] >= 0) n++;
    /* Ascending, so that the last one says whether any was left out. */
    const bool all = n == 0 || (uint32_t)list[n - 1] == n - 1;
    /* Positions that are not negative are the same as u32. */
    return (wb_indexer_choice){n, all ? NULL : (const uint32_t *)list};
}

void wb_indexer_to_list(const wb_indexer_choice *choice, uint32_t k, int32_t *list_out) {
    for (uint32_t j = 0; j < choice->count; j++) list_out[j] = (int32_t)wb_indexer_position(choice, j);
    for (uint32_t j = choice->count; j < k; j++) list_out[j] = -1;
}

/* ---- checking ----------------------------------------------------------------------------------- */

static wb_status cell_fail(const wb_route_model *m, const wb_record *r, size_t cell, const char *expected,
                           uint64_t bound, uint64_t found) {
    const uint32_t columns = wb_indexer_columns(m);
    const uint32_t layer = m->indexer_layers[wb_indexer_layer(m, (uint32_t)(cell % columns))];
    return wb_fail(WB_INVALID_ARGUMENT,
                   "record %s: indexer: position %" PRIu64 ", model layer %" PRIu32 ": expected %s %" PRIu64
                   ", found %" PRIu64,
                   r->rid, r->indexer->start + (uint64_t)(cell / columns), layer, expected, bound, found);
}

/* `total`: the last cell's end. There are as many positions, so that none is read beyond it. */
static wb_status cell_check(const wb_route_model *m, const wb_record *r, size_t cell, uint32_t position,
                            uint64_t total) {
    const wb_indexer_rows *run = r->indexer;
    const uint64_t from = cell > 0 ? run->ends[cell - 1] : 0, end = run->ends[cell];
    const uint32_t count = run->counts[cell];
    const uint32_t seen = wb_indexer_seen(m, position), most = wb_indexer_count(m, position);
    if (m->indexer_rate > 0 && count != most) return cell_fail(m, r, cell, "a count of", most, count);
    if (count > most) return cell_fail(m, r, cell, "a count of at most", most, count);
    if (end != from && (end < from || end - from != count))
        return cell_fail(m, r, cell, "an end of", from + count, end);
    if (end > total) return cell_fail(m, r, cell, "an end of at most that of the last cell,", total, end);
    for (uint64_t i = from; i < end; i++) {
        if (run->positions[i] >= seen)
            return cell_fail(m, r, cell, "positions below", seen, run->positions[i]);
        if (i > from && run->positions[i] <= run->positions[i - 1])
            return cell_fail(m, r, cell, "a position above", run->positions[i - 1], run->positions[i]);
    }
    return WB_OK;
}

wb_status wb_indexer_check(const wb_route_model *m, const wb_record *r) {
    const wb_indexer_rows *run = r->indexer;
    const uint32_t columns = wb_indexer_columns(m), limit = r->n_tokens > 0 ? r->n_tokens - 1 : 0;
    if (!run) return WB_OK;
    if (columns == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "record %s: indexer: the model has no layer with an indexer",
                       r->rid);
    if (run->start > limit || run->rows > limit - run->start)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "record %s: indexer: %" PRIu32 " rows from position %" PRIu32
                       " must be inside [0, %" PRIu32 ")",
                       r->rid, run->rows, run->start, limit);
    const size_t cells = (size_t)run->rows * columns;
    const uint64_t total = cells > 0 && run->ends ? run->ends[cells - 1] : 0;
    if (cells > 0 && (!run->counts || !run->ends || (total > 0 && !run->positions)))
        return wb_fail(WB_INVALID_ARGUMENT, "record %s: indexer: counts, ends or positions NULL", r->rid);
    for (size_t cell = 0; cell < cells; cell++)
        WB_TRY(cell_check(m, r, cell, run->start + (uint32_t)(cell / columns), total));
    return WB_OK;
}
