/* load_count.h - a step's rows, counted by phase for a manager of experts (wb_rebalance.h). Refuses: what is
 * made of the counts. */
#ifndef WB_LOAD_COUNT_H
#define WB_LOAD_COUNT_H

#include "step_batch.h"
#include "wb_model.h"

typedef struct wb_load_count {
    wb_rebalance *manager;     /* NULL: nobody counts */
    uint8_t *prefill, *decode; /* [(max_tokens + 7) / 8] a bit a row of the step */
} wb_load_count;

/* MISMATCH for a manager of other experts than the model's, of which a step's rows could not be counted. */
wb_status wb_load_count_open(wb_owner *owner, wb_rebalance *manager, const wb_route_model *routes,
                             size_t max_tokens, wb_load_count *count);

/* Counts the rows [n_tokens][L][K] of a step that is to be committed. */
wb_status wb_load_count_step(const wb_load_count *count, const wb_route_model *routes,
                             const wb_step_batch *batch, const uint8_t *rows);

#endif
