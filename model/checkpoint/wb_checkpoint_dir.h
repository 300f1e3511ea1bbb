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

/* The small files beside the weights of a directory (tokenizer, generation_config; not config.json and no
 * index), in memory: a model is saved with them when the directory is long gone. Files above 64 MiB, those
 * beyond 256 MiB together and those that cannot be read stay behind, and the note says so. */
typedef struct wb_companions wb_companions;
wb_status wb_companions_read(const char *dir, wb_companions **companions_out);
/* One more owner, and one less: the last one's close frees. NULL is a no-op. */
wb_companions *wb_companions_share(wb_companions *companions);
void wb_companions_close(wb_companions *companions);
/* Why some are not kept, for a person; NULL: all are. Owner: `companions`, which may be NULL. */
const char *wb_companions_note(const wb_companions *companions);
size_t wb_companions_bytes(const wb_companions *companions); /* of all files */
/* Writes them into `dir`; where they are from, only those that are missing. */
wb_status wb_companions_write(const wb_companions *companions, const char *dir);

#endif
