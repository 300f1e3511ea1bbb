/* step_cells.c - see step_cells.h. */
#include "step_cells.h"
#include "wb_check.h"

#include <string.h>

/* Lists of all columns for so many tokens. */
static size_t n_lists(const wb_step_cells *cells, size_t n_tokens) {
    return (size_t)cells->n_columns * n_tokens;
}

static size_t list_bytes(uint32_t k) {
    return (size_t)k * sizeof(int32_t);
}

wb_status wb_step_cells_bytes(uint32_t n_columns, uint32_t k, size_t max_tokens, size_t *bytes_out) {
    return wb_workspace_bytes((int64_t)(n_columns * max_tokens), (int64_t)list_bytes(k) + 1, 1, bytes_out);
}

wb_status wb_step_cells_open(wb_workspace *workspace, uint32_t n_columns, uint32_t k, size_t max_tokens,
                             wb_step_cells *cells) {
    wb_device *dev = workspace->device;
    void *host = NULL;
    cells->workspace = workspace;
    cells->n_columns = n_columns;
    cells->k = k;
    if (n_columns == 0) return WB_OK;
    const size_t n = n_lists(cells, max_tokens), bytes = n * list_bytes(k);
    WB_TRY(wb_reserve(workspace, &cells->listed, (int64_t)n, k, sizeof(int32_t)));
    WB_TRY(wb_reserve(workspace, &cells->direction, (int64_t)n, 1, 1));
    WB_TRY(WB_OWN(&workspace->host, cells->host_direction, n, "engine indexer directions"));
    WB_TRY(dev->event_open(dev, &cells->arrival));
    WB_TRY(dev->host_alloc(dev, bytes, &host));
    memset(host, 0, bytes);
    cells->host = host;
    return WB_OK;
}

void wb_step_cells_close(wb_step_cells *cells) {
    if (!cells->workspace) return;
    wb_device *dev = cells->workspace->device;
    dev->event_close(dev, cells->arrival);
    dev->host_free(dev, cells->host);
}

/* ---- a step -------------------------------------------------------------------------------------- */

/* Tokens of entry i that are fed again, of a request that asks. */
static uint32_t n_forced(const wb_step_batch *batch, int32_t i) {
    const wb_sched_entry *entry = batch->entries[i];
    const wb_sequence *s = wb_sequence_of(batch->entries[i]);
    if (s->cells.n_columns == 0) return 0;
    return wb_sequence_n_refed(s, entry->n_in_pool, wb_sched_n_fed(entry));
}

/* Directions of all tokens in all columns, and the lists of those that are fed again. */
static void gather_forced(wb_step_cells *cells, const wb_step_batch *batch) {
    const size_t k = cells->k;
    size_t row = 0;
    memset(cells->host_direction, WB_ROW_NATIVE, n_lists(cells, cells->n_rows));
    for (int32_t i = 0; i < batch->n_entries; i++) {
        const wb_sched_entry *entry = batch->entries[i];
        const wb_sequence *s = wb_sequence_of(batch->entries[i]);
        const uint32_t n = n_forced(batch, i);
        for (uint32_t column = 0; column < cells->n_columns; column++)
            for (uint32_t j = 0; j < n; j++) {
                const size_t at = column * cells->n_rows + row + j;
                cells->host_direction[at] = WB_ROW_FORCED;
                wb_cells_list(&s->cells, entry->n_in_pool + j, column, cells->host + at * k);
            }
        row += wb_sched_n_fed(entry);
    }
}

wb_status wb_step_cells_begin(wb_step_cells *cells, const wb_step_batch *batch) {
    wb_device *dev = cells->workspace->device;
    cells->wanted = cells->forced = false;
    cells->n_rows = (size_t)batch->n_tokens;
    for (int32_t i = 0; i < batch->n_entries; i++) {
        cells->wanted |= wb_sequence_of(batch->entries[i])->cells.n_columns > 0;
        cells->forced |= n_forced(batch, i) > 0;
    }
    /* Of a step that failed. */
    WB_TRY(wb_step_cells_wait(cells));
    if (!cells->forced) return WB_OK;
    gather_forced(cells, batch);
    const size_t n = n_lists(cells, cells->n_rows);
    WB_TRY(dev->to_device(dev, cells->listed.data, cells->host, n * list_bytes(cells->k)));
    return dev->to_device(dev, cells->direction.data, cells->host_direction, n);
}

void wb_step_cells_route(const wb_step_cells *cells, wb_routing *routing) {
    if (!cells->wanted) return;
    routing->listed = cells->listed.data;
    if (cells->forced) routing->listed_direction = cells->direction.data;
}

wb_status wb_step_cells_start(wb_step_cells *cells) {
    wb_device *dev = cells->workspace->device;
    if (!cells->wanted) return WB_OK;
    cells->started = true;
    return dev->start_to_host(dev, cells->host, cells->listed.data,
                              n_lists(cells, cells->n_rows) * list_bytes(cells->k), cells->arrival);
}

wb_status wb_step_cells_wait(wb_step_cells *cells) {
    wb_device *dev = cells->workspace->device;
    if (!cells->started) return WB_OK;
    cells->started = false;
    return dev->event_wait(dev, cells->arrival);
}

void wb_step_cells_take(const wb_step_cells *cells, wb_sequence *s, size_t row, uint32_t n) {
    if (s->cells.n_columns == 0) return;
    wb_cells_append(&s->cells, cells->host + row * cells->k, cells->n_rows, n);
}
