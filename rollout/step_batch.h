/* step_batch.h - what the scheduler knows of a request, and what one step feeds. Refuses: which requests
 * are fed (scheduler.c). */
#ifndef WB_STEP_BATCH_H
#define WB_STEP_BATCH_H

#include "wb_formats.h"
#include "wb_memory.h"

/* A request as the scheduler sees it: a growing list of tokens, of which [0, n_in_pool) have keys in the KV
 * pool. The request's owner embeds it, and appends the tokens that are sampled. */
typedef struct wb_sched_entry {
    const wb_record *record; /* its tokens so far, [record->n_tokens] */
    int32_t *blocks;         /* [n_blocks] held; room for all that the request can come to need */
    int32_t n_blocks;
    bool running;                           /* holds blocks */
    uint32_t n_in_pool;                     /* 0 unless running */
    uint32_t n_planned;                     /* tokens from n_in_pool on that this step feeds */
    struct wb_sched_entry *previous, *next; /* in order of arrival */
} wb_sched_entry;

/* True when the planned tokens end with the last one that exists: a token is sampled after it. */
static inline bool wb_sched_samples(const wb_sched_entry *entry) {
    return entry->n_in_pool + entry->n_planned == entry->record->n_tokens;
}

/* The planned tokens of the entries of one step. Host arrays, made at open for the largest step. */
typedef struct wb_step_batch {
    int64_t n_tokens;
    int32_t *tokens, *pos, *seq; /* [n_tokens] token id, absolute position, row of `entries` */
    int32_t n_entries;
    wb_sched_entry **entries; /* [n_entries] in order of arrival */
    int32_t max_blocks;       /* of an entry of this step */
    int32_t *blocks;          /* [n_entries, max_blocks]; what lies beyond an entry's own is 0 */
    int64_t n_sampled;
    wb_sched_entry **sampled; /* [n_sampled] those after which a token is sampled, in the same order */
    int32_t *logit_rows;      /* [n_sampled] index into `tokens` of the last one of each */
} wb_step_batch;

wb_status wb_step_batch_open(wb_owner *owner, size_t max_tokens, size_t max_entries, size_t max_blocks,
                             wb_step_batch *batch);
void wb_step_batch_clear(wb_step_batch *batch);
void wb_step_batch_add(wb_step_batch *batch, wb_sched_entry *entry);

/* Fills `blocks`, once all entries have been added. */
void wb_step_batch_fill_blocks(wb_step_batch *batch);

#endif
