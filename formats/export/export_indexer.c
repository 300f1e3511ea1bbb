/* export_indexer.c - what indexers chose, in the layouts that have a place for it: of each layer that uses an
 * indexer indexer_k positions as int32, -1 behind the last one. Refuses: choices that are not known, for
 * which there is no number. */
#include "export/export_out.h"
#include "wb_check.h"

#include <inttypes.h>

bool wb_export_keeps_indexer(wb_export_layout layout) {
    return layout == WB_EXPORT_SGLANG || layout == WB_EXPORT_SLIME;
}

wb_status wb_export_check_indexer(const wb_record *r, uint32_t first) {
    const wb_indexer_rows *run = r->indexer;
    const uint32_t fed = r->n_tokens > 0 ? r->n_tokens - 1 : 0;
    if (!run || (run->start <= first && run->start + run->rows == fed)) return WB_OK;
    return wb_fail(WB_UNSUPPORTED,
                   "record %s: expected what indexers chose at positions %" PRIu32 "..%" PRIu32
                   ", found it at %" PRIu32 "..%" PRIu32 ": the layout cannot say that it is not known",
                   r->rid, first, fed, run->start, run->start + run->rows);
}

static void put_choice(export_out *out, const wb_indexer_choice *choice, uint32_t k, export_put *put) {
    for (uint32_t j = 0; j < k; j++) {
        const uint32_t position = j < choice->count ? wb_indexer_position(choice, j) : UINT32_MAX;
        const uint8_t bytes[4] = {(uint8_t)position, (uint8_t)(position >> 8), (uint8_t)(position >> 16),
                                  (uint8_t)(position >> 24)};
        put(out, bytes, sizeof bytes);
    }
}

void wb_export_indexer(export_job *job, const wb_record *r, uint32_t first, export_put *put) {
    const wb_route_model *m = job->model;
    for (uint32_t p = first; p + 1 < r->n_tokens; p++)
        for (uint32_t i = 0; i < m->n_indexer_layers; i++) {
            wb_indexer_choice choice = {0};
            (void)wb_indexer_at(m, r->indexer, p, wb_indexer_column(m, i), &choice);
            put_choice(job->out, &choice, m->indexer_k, put);
        }
}
