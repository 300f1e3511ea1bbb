/* hash_tables.h - the tables of hash-routed layers, by which a token's id alone says where it goes: from
 * files and into them, on the host for who checks routes and on the device for the router. They are no
 * weights: no trainer, optimizer or copy of weights sees them. */
#ifndef WB_HASH_TABLES_H
#define WB_HASH_TABLES_H

#include "model_weights.h"
#include "wb_file.h"

/* wb_model.hash for the hash-routed layers of its configuration; memory for their tables. */
wb_status wb_hash_tables_build(wb_model *model);
void wb_hash_tables_layout(wb_model *model, wb_arena *arena);

/* From the files of a checkpoint, whose tensors that were read are marked in `used`. NOT_FOUND, MISMATCH,
 * UNSUPPORTED and CORRUPT name tensor and file, CORRUPT the token too: an id that is no expert's, or
 * twice. */
wb_status wb_hash_tables_load(wb_model *model, const wb_safetensors *files, const char *dir, bool *used);
/* The same, on the host alone; `used`: or NULL. */
wb_status wb_hash_tables_read(const wb_model *model, const wb_safetensors *files, const char *dir,
                              bool *used);

/* Random ones, of distinct experts; the same for a seed everywhere. */
wb_status wb_hash_tables_fill(wb_model *model, uint64_t seed);

/* Those of another model of the same configuration; as a rule they are the same, and nothing is copied. */
wb_status wb_hash_tables_copy(const wb_model *to, const wb_model *from);

/* Of all of them, as one number. */
uint64_t wb_hash_tables_digest(const wb_model *model);

/* Table i as a checkpoint has it: an i64 tensor [V, K], its name, and its elements. */
wb_tensor_view wb_hash_table_view(const wb_model *model, uint32_t i);
wb_status wb_hash_table_write(const wb_model *model, uint32_t i, wb_new_file *file);

/* ---- use --------------------------------------------------------------------------------------- */

static inline int64_t wb_hash_table_length(const wb_model *model) {
    return (int64_t)model->config.vocab_size * model->config.router.top_k;
}

/* The device table of MoE layer moe_index, [V, K]; NULL where it is not hash-routed. */
static inline const int32_t *wb_hash_table_of(const wb_model *model, int32_t moe_index) {
    for (uint32_t i = 0; i < model->hash.n_hash_layers; i++)
        if (model->hash.hash_layers[i] == (uint32_t)moe_index)
            return (const int32_t *)model->hash_tables.data + (int64_t)i * wb_hash_table_length(model);
    return NULL;
}

#endif
