/* cells.c - see cells.h. */
#include "cells.h"
#include "wb_check.h"

#include <inttypes.h>
#include <string.h>

wb_status wb_cells_open(wb_cells *cells, uint32_t n_tokens) {
    const uint64_t n_whole = wb_cells_n_whole(cells->model);
    const uint64_t rows = n_tokens > n_whole ? n_tokens - n_whole : 0;
    const size_t room = (size_t)(rows * cells->n_columns * cells->model->indexer_k);
    return room == 0 ? WB_OK : WB_GROW(cells->positions, room, &cells->room, "request indexer cells");
}

uint64_t wb_cells_n_positions(const wb_cells *cells) {
    const size_t n = (size_t)cells->n_rows * cells->n_columns;
    return n > 0 ? cells->ends[n - 1] : 0;
}

/* The next cell. */
static void append(wb_cells *cells, size_t cell, wb_indexer_choice choice) {
    const uint64_t from = cell > 0 ? cells->ends[cell - 1] : 0;
    cells->counts[cell] = choice.count;
    cells->ends[cell] = from + (choice.positions ? choice.count : 0);
    if (choice.positions)
        memcpy(cells->positions + from, choice.positions, choice.count * sizeof *choice.positions);
}

void wb_cells_append(wb_cells *cells, const int32_t *lists, size_t stride, uint32_t n) {
    const uint32_t n_columns = cells->n_columns, k = cells->model->indexer_k;
    size_t cell = (size_t)cells->n_rows * n_columns;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t column = 0; column < n_columns; column++, cell++)
            append(cells, cell, wb_indexer_of_list(lists + ((size_t)column * stride + i) * k, k));
    cells->n_rows += n;
}

void wb_cells_append_whole(wb_cells *cells, uint32_t n) {
    const uint32_t n_columns = cells->n_columns;
    for (uint32_t i = 0; i < n; i++, cells->n_rows++)
        for (uint32_t column = 0; column < n_columns; column++)
            append(cells, (size_t)cells->n_rows * n_columns + column,
                   (wb_indexer_choice){wb_indexer_count(cells->model, cells->n_rows), NULL});
}

void wb_cells_append_record(wb_cells *cells, const wb_record *record, uint32_t n) {
    const uint32_t n_columns = cells->n_columns;
    for (uint32_t t = 0; t < n; t++, cells->n_rows++)
        for (uint32_t column = 0; column < n_columns; column++) {
            wb_indexer_choice choice = {0};
            wb_indexer_at(cells->model, record->indexer, t, column, &choice);
            append(cells, (size_t)t * n_columns + column, choice);
        }
}

wb_status wb_cells_check(const wb_route_model *model, const wb_record *record, uint32_t n, const char *rid) {
    const uint32_t n_columns = wb_indexer_columns(model);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t column = 0; column < n_columns; column++) {
            wb_indexer_choice choice;
            const char *fault = NULL;
            if (!wb_indexer_at(model, record->indexer, t, column, &choice))
                fault = "no choice of its indexers";
            else if (choice.positions && choice.count == wb_indexer_seen(model, t))
                fault = "its positions one by one, which are all";
            if (fault)
                return wb_fail(WB_INVALID_ARGUMENT,
                               "request %s: it continues %s: expected what indexers chose for all %" PRIu32
                               " tokens that were fed, found at position %" PRIu32 ", indexer %" PRIu32
                               ": %s",
                               rid, record->rid, n, t, column, fault);
        }
    return WB_OK;
}

void wb_cells_list(const wb_cells *cells, uint32_t token, uint32_t column, int32_t *list_out) {
    const size_t cell = (size_t)token * cells->n_columns + column;
    const uint64_t from = cell > 0 ? cells->ends[cell - 1] : 0;
    const bool whole = cells->ends[cell] == from;
    const wb_indexer_choice choice = {cells->counts[cell], whole ? NULL : cells->positions + from};
    wb_indexer_to_list(&choice, cells->model->indexer_k, list_out);
}

const wb_indexer_rows *wb_cells_return(wb_cells *cells, uint32_t start) {
    const size_t first = (size_t)start * cells->n_columns, n = (size_t)cells->n_rows * cells->n_columns;
    if (first >= n) return NULL;
    const uint64_t before = first > 0 ? cells->ends[first - 1] : 0;
    for (size_t cell = first; cell < n; cell++) cells->ends[cell] -= before;
    cells->returned = (wb_indexer_rows){.start = start,
                                        .rows = cells->n_rows - start,
                                        .counts = cells->counts + first,
                                        .ends = cells->ends + first};
    if (cells->positions) cells->returned.positions = cells->positions + before;
    return &cells->returned;
}
