/* checkpoint_place.h - paths of OUT/checkpoint and of its neighbours checkpoint.new and checkpoint.old, for
 * checkpoint.c, which fills and reads them, and out_place.c, which looks at what is there before. */
#ifndef GRPO_CHECKPOINT_PLACE_H
#define GRPO_CHECKPOINT_PLACE_H

#include "grpo.h"

/* It is written last: a checkpoint that has it is complete. */
#define CHECKPOINT_STATE "trainer/state.json"

/* OUT/checkpoint, or the end of the links that it is, with `suffix`: "", ".new", ".old"; into path
 * [PATH_BYTES]. */
wb_status checkpoint_place(const options *o, const char *suffix, char *path);
/* Path of the checkpoint to resume from, malloc'ed; NOT_FOUND where OUT has none. */
wb_status checkpoint_find(const options *o, char **dir_out);
/* Removes a checkpoint, or what a killed save left of one. A link is removed, never followed: what it points
 * to is not ours. The state goes first, so that no part looks like a whole, and trainer/, by which a
 * checkpoint is known as ours, last, so that a removal that was cut short is gone on with. */
void checkpoint_remove(const char *path);
/* `fresh` becomes `current`; what was there is removed afterwards. NFS and Lustre cannot exchange names:
 * there it is `old` meanwhile. */
wb_status checkpoint_change_places(const char *fresh, const char *current, const char *old);

#endif
