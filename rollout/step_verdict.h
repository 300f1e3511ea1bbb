/* step_verdict.h - what the ranks tell each other of a step before any of them commits it: whether it
 * failed, by which weights it was computed, how much a step may feed, whether work is left. Refuses: what
 * a step does. */
#ifndef WB_STEP_VERDICT_H
#define WB_STEP_VERDICT_H

#include "wb_comm.h"

/* One rank's part. */
typedef struct wb_step_word {
    uint64_t status; /* wb_status */
    uint64_t weight_version, weights_digest;
    uint64_t max_batch_tokens, max_prefill_tokens;
    uint64_t mtp_drafts; /* max_drafts where MTP layers guess, and are fed behind each step; else 0 */
    /* Once the step has been committed: unfinished requests, and those of them that decode next. */
    uint64_t work_left, decodes;
    uint64_t pauses;  /* 1: this rank asks that the next step feeds nothing */
    uint64_t indexer; /* 1: its requests may ask for what indexers chose */
    /* What travels before the next step (lending.h), 0 where nothing does: whether ranks lend; then, once
     * the step has been committed, all that this rank's line holds, requests that it could lend, and how
     * many more could run where nobody waits; letters that it has; and its KV pool. */
    uint64_t lending, load, lends, room, letters, n_blocks, block_size;
} wb_step_word;

/* OK on all ranks, with *sum_out: the own word, with the work, the decodes and the pauses of all ranks; or
 * a failure on all of them: a rank's own failure with its message, PEER where another rank failed or where
 * two ranks have other weights or other sizes of a step. words: [R], for the words of all ranks.
 * Collective. */
wb_status wb_step_agree(wb_comm *comm, const wb_step_word *own, wb_step_word *words, wb_step_word *sum_out);

#endif
