/* scheduler.h - who is fed in a step, and whose keys are in the KV pool.
 *
 * Owns: the line of unfinished requests, who holds which block of the KV pool and which state of fixed size,
 * the batch of the present step.
 * Refuses: the model, the device, and what a request's tokens are.
 *
 * All unfinished requests stand in one line in order of arrival. Those that hold KV blocks ("running") are
 * a prefix of it: the first waiting request is admitted, the last running one is preempted, so that
 * nothing is ever overtaken. */
#ifndef WB_SCHEDULER_H
#define WB_SCHEDULER_H

#include "kv_blocks.h"
#include "step_batch.h"

typedef struct wb_scheduler {
    int32_t max_batch_tokens, block_size;
    wb_kv_blocks blocks; /* of the KV pool */
    wb_free_list states; /* one for each request that runs; none is free: no further one is admitted */
    wb_sched_entry *first, *last, *first_waiting; /* in order of arrival */
    wb_sched_entry *next_decode; /* whose turn it is when a step cannot hold all decodes; NULL: the first's */
    int32_t running, waiting;    /* requests */
    uint64_t preemptions;        /* since open */
    wb_step_batch batch;
    int32_t max_entries; /* of a step */
    wb_owner memory;
} wb_scheduler;

/* States that the running requests hold at most, which is how many they are. */
int32_t wb_scheduler_n_states(int32_t n_blocks, int32_t max_running);

/* Requests that a step has at most. */
int32_t wb_scheduler_max_entries(int32_t n_blocks, int32_t max_batch_tokens, int32_t max_running);

/* Numbers are at least 1, but for row_bytes. */
typedef struct wb_scheduler_sizes {
    int32_t n_blocks, block_size, max_batch_tokens, max_running;
    int32_t max_positions; /* tokens of the longest request */
    bool prefix_cache;     /* full blocks become known, with their rows of row_bytes a token */
    size_t row_bytes;
} wb_scheduler_sizes;

/* Makes the lists and the batch in a zeroed struct. On failure too the struct is to be closed. */
wb_status wb_scheduler_open(wb_scheduler *scheduler, const wb_scheduler_sizes *sizes);
void wb_scheduler_close(wb_scheduler *scheduler); /* the entries are their owners' */

/* Puts a zeroed entry with `record` and `blocks` at the end of the line. The caller has checked that the
 * pool holds the request at its longest. */
void wb_scheduler_add(wb_scheduler *scheduler, wb_sched_entry *entry);

/* Takes an entry out of the line, wherever it stands; its blocks and its state become free. */
void wb_scheduler_remove(wb_scheduler *scheduler, wb_sched_entry *entry);

/* Puts the next step's tokens into scheduler->batch, which may be empty; preempts and admits. The known
 * blocks that an entry is admitted with are in the pool from then on, whether the step is made or not. */
void wb_scheduler_plan(wb_scheduler *scheduler);

/* The planned tokens of an entry have been fed, and their keys are in the pool. rows: of all its tokens so
 * far; where the entry shares, its blocks that are full now become known with them. */
void wb_scheduler_fed(wb_scheduler *scheduler, wb_sched_entry *entry, const uint8_t *rows);

/* The step was not made: an empty batch. The next plan feeds the same tokens. */
void wb_scheduler_drop_plan(wb_scheduler *scheduler);

/* The step was not made, but what the running requests keep is not what it was before: all are preempted. */
void wb_scheduler_preempt_all(wb_scheduler *scheduler);

#endif
