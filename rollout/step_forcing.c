/* step_forcing.c - see step_forcing.h. */
#include "step_forcing.h"
#include "sequence.h"
#include "wb_check.h"

#include <string.h>

wb_status wb_step_forcing_open(wb_workspace *workspace, size_t max_tokens, wb_step_forcing *forcing) {
    WB_TRY(WB_OWN(&workspace->host, forcing->host, max_tokens, "engine row directions"));
    return wb_reserve(workspace, &forcing->device, (int64_t)max_tokens, 1, 1);
}

static int64_t count_refed(const wb_step_batch *batch) {
    int64_t n = 0;
    for (int32_t i = 0; i < batch->n_entries; i++) {
        const wb_sched_entry *entry = batch->entries[i];
        n += wb_sequence_n_refed(wb_sequence_of(batch->entries[i]), entry->n_in_pool, wb_sched_n_fed(entry));
    }
    return n;
}

/* Directions and forced rows of the batch on the host, where the fetched rows will lie later. */
static void gather_forced(const wb_step_forcing *forcing, const wb_step_batch *batch,
                          const wb_step_results *results) {
    uint8_t *rows = wb_step_results_on_host(results).rows, *direction = forcing->host;
    for (int32_t i = 0; i < batch->n_entries; i++) {
        const wb_sched_entry *entry = batch->entries[i];
        const wb_sequence *s = wb_sequence_of(batch->entries[i]);
        const uint32_t start = entry->n_in_pool, n = wb_sched_n_fed(entry);
        const uint32_t refed = wb_sequence_n_refed(s, start, n);
        memset(direction, WB_ROW_FORCED, refed);
        memset(direction + refed, WB_ROW_NATIVE, n - refed);
        memcpy(rows, s->rows + start * s->row_bytes, refed * s->row_bytes);
        direction += n;
        rows += n * s->row_bytes;
    }
}

wb_status wb_step_force(wb_step_forcing *forcing, wb_device *device, const wb_step_batch *batch,
                        const wb_step_results *results, wb_filing *filing, const uint8_t **direction_out) {
    const size_t n = (size_t)batch->n_tokens;
    if (count_refed(batch) == 0) {
        *direction_out = NULL;
        return WB_OK;
    }
    wb_filing_finish(filing);
    gather_forced(forcing, batch, results);
    WB_TRY(device->to_device(device, wb_step_results_on_device(results).rows,
                             wb_step_results_on_host(results).rows, n * results->row_bytes));
    WB_TRY(device->to_device(device, forcing->device.data, forcing->host, n));
    *direction_out = forcing->device.data;
    return WB_OK;
}
