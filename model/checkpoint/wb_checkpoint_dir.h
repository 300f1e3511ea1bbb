/* wb_checkpoint_dir.h - the files of a checkpoint directory by their names: shards, their index, and the
 * small files that come along (not installed). */
#ifndef WB_CHECKPOINT_DIR_H
#define WB_CHECKPOINT_DIR_H

#include "wb_base.h"

#define WB_INDEX_NAME "model.safetensors.index.json"

/* "model.safetensors" for a checkpoint of one shard, else "model-00001-of-00002.safetensors". */
typedef struct wb_shard_name {
    char text[48];
} wb_shard_name;
wb_shard_name wb_shard_name_of(int shard, int n_shards);

/* Writes "<dir>/<name>", whole or not at all. */
wb_status wb_checkpoint_write_text(const char *dir, const char *name, const char *text);

/* Removes "<dir>/<name>" if it is there. */
wb_status wb_checkpoint_remove(const char *dir, const char *name);

/* Removes the shards that another save left in `dir`, finished or not: all but those that `keep` names. */
typedef bool (*wb_keep_shard)(const void *ctx, const char *name);
wb_status wb_checkpoint_remove_stale(const char *dir, wb_keep_shard keep, const void *ctx);

/* Copies the small files beside the weights of one directory (tokenizer, generation_config) into another,
 * which may be the same one; not config.json and no index. */
wb_status wb_checkpoint_copy_companions(const char *from_dir, const char *to_dir);

#endif
