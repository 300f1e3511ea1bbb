/* step_forcing.h - the tokens of a step that are fed again, after a preemption: they go where their rows say.
 *
 * The keys and values that a prefill rebuilds must be those of the experts that the record names: a request
 * was answered with them, and a trainer replays them. By itself a token chooses otherwise as soon as the
 * weights have changed. Refuses: which tokens a step feeds (scheduler.c). */
#ifndef WB_STEP_FORCING_H
#define WB_STEP_FORCING_H

#include "filing.h"
#include "results.h"
#include "step_batch.h"

typedef struct wb_step_forcing {
    uint8_t *host;    /* [max_tokens] wb_row_direction */
    wb_buffer device; /* the same */
} wb_step_forcing;

/* Makes the memory, which belongs to `workspace`, in a zeroed struct whose address stays. */
wb_status wb_step_forcing_open(wb_workspace *workspace, size_t max_tokens, wb_step_forcing *forcing);

/* Puts the rows of all tokens of `batch` that were fed before into the rows of `results` on the device; where
 * there are any, the latest step is filed first, since they may be its own. *direction_out: which they are,
 * device [n_tokens], or NULL when there are none and all choose natively. */
wb_status wb_step_force(wb_step_forcing *forcing, wb_device *device, const wb_step_batch *batch,
                        const wb_step_results *results, wb_filing *filing, const uint8_t **direction_out);

#endif
