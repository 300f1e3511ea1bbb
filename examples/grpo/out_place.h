/* out_place.h - whether a run may use OUT, and OUT made ready for it: what training.c asks of out_place.c. */
#ifndef GRPO_OUT_PLACE_H
#define GRPO_OUT_PLACE_H

#include "grpo.h"

/* Where training starts: *checkpoint_out is the one in OUT to resume from, malloc'ed, or NULL for --model. A
 * run that is there is gone on with or left alone, never overwritten, and refused while it still runs: an OUT
 * that is there is locked first, *lock_out on rank 0, also on failure. Nothing else is opened or made yet.
 * Collective. */
wb_status out_find_start(const options *o, wb_comm *comm, out_lock **lock_out, char **checkpoint_out);
/* As soon as --model is known: INVALID_ARGUMENT where OUT is what the run reads, or where a save would
 * destroy what is no checkpoint of ours. Collective. */
wb_status out_check_model(const options *o, wb_comm *comm);
/* Before the first step, when all else is open: makes OUT, locked as above where it was not there, and
 * removes what an interrupted run left of the steps from first_step on. Collective. */
wb_status out_make(const options *o, wb_comm *comm, uint64_t first_step, out_lock **lock);

#endif
