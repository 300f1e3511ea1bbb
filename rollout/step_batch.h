/* step_batch.h - what one step feeds. Refuses: which requests are fed (scheduler.c). */
#ifndef WB_STEP_BATCH_H
#define WB_STEP_BATCH_H

#include "sched_entry.h"
#include "wb_memory.h"

/* The planned tokens and drafts of the entries of one step. Host arrays, made at open for the largest
 * step. */
typedef struct wb_step_batch {
    int64_t n_tokens;
    int64_t n_rows;              /* n_tokens, and padding */
    int32_t *tokens, *pos, *seq; /* [n_rows] token id, absolute position, row of `entries` */
    int32_t n_entries;
    wb_sched_entry **entries; /* [n_entries] in order of arrival */
    int32_t max_blocks;       /* of an entry of this step */
    int32_t *blocks;          /* [n_entries, max_blocks]; what lies beyond an entry's own is 0 */
    int32_t *states;          /* [n_entries] */
    int64_t n_sampled;
    /* [n_sampled] those after whose tokens one is sampled, in the same order, each once and once a draft */
    wb_sched_entry **sampled;
    int32_t *logit_rows; /* [n_sampled] index into `tokens` of the token after which */
} wb_step_batch;

wb_status wb_step_batch_open(wb_owner *owner, size_t max_tokens, size_t max_entries, size_t max_sampled,
                             size_t max_blocks, wb_step_batch *batch);
void wb_step_batch_clear(wb_step_batch *batch);
void wb_step_batch_add(wb_step_batch *batch, wb_sched_entry *entry);

/* Rows of padding (wb_infer_batch) behind the tokens, up to n, which the largest step holds. */
void wb_step_batch_pad(wb_step_batch *batch, int64_t n);

/* Position of the i-th sampled token. */
static inline uint32_t wb_step_batch_position(const wb_step_batch *batch, int64_t i) {
    return (uint32_t)batch->pos[batch->logit_rows[i]] + 1;
}

/* Fills `blocks` and `states`, once all entries have been added. */
void wb_step_batch_fill_held(wb_step_batch *batch);

#endif
