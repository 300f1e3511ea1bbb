/* checkpoint_place.h - paths of OUT/checkpoint and of its neighbours, and the state in a checkpoint: what
 * checkpoint.c, which fills and reads them, checkpoint_state.c, checkpoint_place.c and out_place.c, which
 * looks at what is there before, share. */
#ifndef GRPO_CHECKPOINT_PLACE_H
#define GRPO_CHECKPOINT_PLACE_H

#include "grpo.h"

/* It is written last: a checkpoint that has it is complete. */
#define CHECKPOINT_STATE "trainer/state.json"

#define CHECKPOINT_BEST ".best" /* the suffix of --keep-best */
enum { CHECKPOINT_SUFFIX_BYTES = 40 };

/* ---- checkpoint_place.c ---------------------------------------------------------------------- */

/* OUT/checkpoint, or the end of the links that it is, with `suffix`: "", ".new", ".old", or of another one
 * that stays beside it; into path [PATH_BYTES]. */
wb_status checkpoint_place(const options *o, const char *suffix, char *path);
/* Path of the checkpoint to resume from, malloc'ed; NOT_FOUND where OUT has none. */
wb_status checkpoint_find(const options *o, char **dir_out);
/* Removes a checkpoint, or what a killed save left of one. A link is removed, never followed: what it points
 * to is not ours. The state goes first, so that no part looks like a whole, and trainer/, by which a
 * checkpoint is known as ours, last, so that a removal that was cut short is gone on with. */
void checkpoint_remove(const char *path);
/* `fresh` becomes `current`; what was there becomes `kept`, or is removed afterwards where that is "". NFS
 * and Lustre cannot exchange names: there it is `old` meanwhile. */
wb_status checkpoint_change_places(const char *fresh, const char *current, const char *old, const char *kept);
/* Of a checkpoint that --keep-last keeps, saved when `step` steps were done; into suffix
 * [CHECKPOINT_SUFFIX_BYTES]. */
void checkpoint_step_suffix(uint64_t step, char *suffix);
/* One of those, of whatever step, into path_out [PATH_BYTES]; "": there is none. */
wb_status checkpoint_find_kept(const options *o, char *path_out);
/* Removes of those all but the last o->keep_last - 1 before `step`, the step of OUT/checkpoint: also those of
 * its future, which a run that went back to an earlier checkpoint makes again. Under --keep-last 1 nothing
 * unless the command line says so: without that none is known to be a run's. */
wb_status checkpoint_prune(const options *o, uint64_t step);

/* ---- checkpoint_state.c ---------------------------------------------------------------------- */

/* dir: trainer/ of the checkpoint. */
wb_status checkpoint_save_state(const trainer *t, const char *dir);
/* Counters of the checkpoint `dir` into t; *ranks_out: how many saved it. */
wb_status checkpoint_load_state(trainer *t, const char *dir, int *ranks_out);
/* Where the checkpoint `current`, which is about to be replaced, stays under --keep-last: beside the new one,
 * by the step that it is of; "": nowhere. Into kept_out [PATH_BYTES]. */
wb_status checkpoint_place_of_replaced(const trainer *t, const char *current, char *kept_out);

#endif
