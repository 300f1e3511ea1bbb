/* sched_known.h - what requests of the line can have of each other's prefills: known blocks, and where
 * layers keep states of a fixed size, snapshots behind them. Refuses: who is admitted when (scheduler.c). */
#ifndef WB_SCHED_KNOWN_H
#define WB_SCHED_KNOWN_H

#include "scheduler.h"

/* Full blocks that others could take over of an entry at most: its last token is always fed, since the next
 * one is sampled after it. */
int32_t wb_sched_n_sharable(const wb_scheduler *scheduler, const wb_sched_entry *entry);

/* Likewise that the entry could take over of others: within its take_limit. */
int32_t wb_sched_n_takable(const wb_scheduler *scheduler, const wb_sched_entry *entry);

/* Known blocks with the entry's first tokens into its `blocks`; returns how many it can go on behind, within
 * its take_limit: where it has a state, one with a snapshot is the last. */
int32_t wb_sched_find_known(const wb_scheduler *scheduler, wb_sched_entry *entry);

/* Whether a running request is about to make more of the entry's blocks known than the n_known that are.
 * The samples of a group come side by side: the others wait for the prefill of the first, and have it for
 * nothing. It cannot last: whom they wait for is older, and its prefill goes on in each step that has
 * room. */
bool wb_sched_is_worth_waiting(const wb_scheduler *scheduler, const wb_sched_entry *entry, int32_t n_known);

/* Makes the next full block of an entry known whose keys are in the pool, if there is one and the entry
 * shares. *start_out: its first token; *rows_out: where the rows of its block_size tokens are to be put,
 * or NULL where another block is known by these tokens, which the entry holds from then on: keys and rows
 * are the same. */
bool wb_sched_know_next(wb_scheduler *scheduler, wb_sched_entry *entry, uint32_t *start_out,
                        uint8_t **rows_out);

/* Snapshots of the states that stand behind a known block which has none. Those of prompts, which other
 * requests begin with, end older ones; those of texts that grow take what is free. */
void wb_sched_keep_snapshots(wb_scheduler *scheduler);

#endif
