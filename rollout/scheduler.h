/* scheduler.h - who is fed in a step, and whose keys are in the KV pool.
 *
 * Owns: the line of unfinished requests, who holds which block of the KV pool and which state of fixed size,
 * the batch of the present step.
 * Refuses: the model, the device, and what a request's tokens are.
 *
 * All unfinished requests stand in one line. Those that hold KV blocks ("running") are a prefix of it: the
 * first waiting request is admitted, the last running one is preempted. A new one stands behind all that run
 * and behind the waiting ones whose place, a number that its owner gave it, is not beyond its own, but before
 * those of its place that are expected to be shorter: nothing that runs is overtaken, and where places grow
 * with time, nothing is overtaken for ever. */
#ifndef WB_SCHEDULER_H
#define WB_SCHEDULER_H

#include "kv_blocks.h"
#include "state_pool.h"
#include "step_batch.h"

typedef struct wb_scheduler {
    int32_t max_batch_tokens, block_size;
    int32_t max_prefill_tokens; /* of a step: from open on max_batch_tokens, between steps the owner's */
    wb_kv_blocks blocks;        /* of the KV pool */
    int32_t max_running;
    bool has_states; /* whether a request has a state of fixed size at all */
    wb_state_pool states;
    wb_sched_entry *first, *last, *first_waiting; /* in the order of the line */
    wb_sched_entry *next_decode; /* whose turn it is when a step cannot hold all decodes; NULL: the first's */
    int32_t running, waiting;    /* requests */
    uint64_t preemptions;        /* since open */
    wb_step_batch batch;
    int32_t max_entries; /* of a step */
    wb_owner memory;
} wb_scheduler;

/* In the order of the line; NULL: there is none, or none further. */
static inline wb_sched_entry *wb_sched_first_running(const wb_scheduler *scheduler) {
    return scheduler->first && scheduler->first->running ? scheduler->first : NULL;
}

static inline wb_sched_entry *wb_sched_next_running(const wb_sched_entry *entry) {
    return entry->next && entry->next->running ? entry->next : NULL;
}

/* Requests that run at most, each of which has a state. */
int32_t wb_scheduler_max_running(int32_t n_blocks, int32_t max_running);

/* Requests that a step has at most. */
int32_t wb_scheduler_max_entries(int32_t n_blocks, int32_t max_batch_tokens, int32_t max_running);

/* Tokens that are sampled in a step at most: one for each of its requests, and one for each draft. */
int32_t wb_scheduler_max_sampled(int32_t max_entries, int32_t max_batch_tokens, int32_t max_drafts);

/* Numbers are at least 1, if nothing else is said. */
typedef struct wb_scheduler_sizes {
    int32_t n_blocks, block_size, max_batch_tokens, max_running;
    int32_t max_drafts;    /* of an entry in a step, at least 0 */
    int32_t max_positions; /* tokens of the longest request */
    int32_t n_states;      /* as many as run, and with prefix_cache or drafts more */
    bool has_states;       /* of a fixed size */
    bool prefix_cache;     /* full blocks become known, with their rows of row_bytes, 0 or more, a token */
    size_t row_bytes;
} wb_scheduler_sizes;

/* Makes the lists and the batch in a zeroed struct. On failure too the struct is to be closed. */
wb_status wb_scheduler_open(wb_scheduler *scheduler, const wb_scheduler_sizes *sizes);
void wb_scheduler_close(wb_scheduler *scheduler); /* the entries are their owners' */

/* Puts a zeroed entry with `record`, `blocks`, `place` and `expected_tokens` into the line. The caller has
 * checked that the pool holds the request at its longest. */
void wb_scheduler_add(wb_scheduler *scheduler, wb_sched_entry *entry);

/* Takes an entry out of the line, wherever it stands; its blocks and its state become free. */
void wb_scheduler_remove(wb_scheduler *scheduler, wb_sched_entry *entry);

/* Puts the next step's tokens into scheduler->batch, which may be empty; preempts and admits. The known
 * blocks that an entry is admitted with are in the pool from then on, whether the step is made or not. */
void wb_scheduler_plan(wb_scheduler *scheduler);

/* The entry's tokens of this step have been fed, and the keys of those that are kept are in the pool. Blocks
 * that only rejected drafts filled become free. */
void wb_scheduler_fed(wb_scheduler *scheduler, wb_sched_entry *entry);

/* Blocks for the keys of `end` tokens, as far as nobody holds them, whether anybody knows them or not. */
void wb_scheduler_reach(wb_scheduler *scheduler, wb_sched_entry *entry, uint32_t end);

/* Blocks of the step's entries beyond those that their tokens fill become free. */
void wb_scheduler_trim(wb_scheduler *scheduler);

/* The last tokens of a running entry, which a step fed before its state went back, have been taken out of its
 * record: they are not fed again, and the blocks that they alone filled become free. */
void wb_scheduler_taken_back(wb_scheduler *scheduler, wb_sched_entry *entry);

/* Running requests whose next token is sampled after the tokens that are planned, or lacks no others: what
 * the next step decodes, but for those that end with the present one. */
uint64_t wb_scheduler_n_decodes(const wb_scheduler *scheduler);

/* The step was not made: an empty batch. The next plan feeds the same tokens. */
void wb_scheduler_drop_plan(wb_scheduler *scheduler);

/* What the running requests keep is not what their next step is to find: all are preempted. */
void wb_scheduler_preempt_all(wb_scheduler *scheduler);

/* The step was not made, and states are not what they were before: all are preempted, and no snapshot
 * stays. */
void wb_scheduler_forget_states(wb_scheduler *scheduler);

#endif
