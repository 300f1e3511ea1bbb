/* checkpoint_place.h - paths of OUT/checkpoint and of its neighbours checkpoint.new and checkpoint.old: what
 * checkpoint.c, which fills and reads them, asks of checkpoint_place.c. */
#ifndef GRPO_CHECKPOINT_PLACE_H
#define GRPO_CHECKPOINT_PLACE_H

#include "grpo.h"

enum { PATH_BYTES = 4096 };

/* It is written last: a checkpoint that has it is complete. */
#define CHECKPOINT_STATE "trainer/state.json"

/* DIR/name into path [PATH_BYTES]. */
wb_status checkpoint_path(char *path, const char *dir, const char *name);
/* OUT/checkpoint, or the end of the links that it is, with `suffix`: "", ".new", ".old". */
wb_status checkpoint_place(const options *o, const char *suffix, char *path);
/* Removes a checkpoint, or what a killed save left of one. A link is removed, never followed: what it points
 * to is not ours. The state goes first, so that no part looks like a whole, and trainer/, by which a
 * checkpoint is known as ours, last, so that a removal that was cut short is gone on with. */
void checkpoint_remove(const char *path);
/* `fresh` becomes `current`; what was there is removed afterwards. NFS and Lustre cannot exchange names:
 * there it is `old` meanwhile. */
wb_status checkpoint_change_places(const char *fresh, const char *current, const char *old);

#endif
