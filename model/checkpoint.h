/* checkpoint.h - what the checkpoint files of this folder share: new files, element conversion, the inside of
 * safetensors, the configuration text, the registry walk. Shared by the files of this folder only. */
#ifndef WB_CHECKPOINT_H
#define WB_CHECKPOINT_H

#include "model_internal.h"
#include "wb_file.h"
#include "wb_text.h"

#include <jansson.h>

/* ---- JSON ------------------------------------------------------------------------------------ */

/* An object from text; CORRUPT names `where` and the line. Freed with json_decref. */
wb_status wb_json_parse(const char *text, size_t bytes, const char *where, json_t **object_out);

/* ---- elements (convert.c) -------------------------------------------------------------------- */

/* to[n] = from[n], host, any alignment, f32, bf16 and f16 in, f32 and bf16 out, to nearest even; NaN stays
 * NaN. */
void wb_convert(int64_t n, const void *from, wb_dtype from_dtype, void *to, wb_dtype to_dtype);

/* ---- safetensors ----------------------------------------------------------------------------- */

#define WB_SAFETENSORS_MAX_HEADER ((size_t)100 * 1000 * 1000)

/* Index for wb_safetensors_get, or SIZE_MAX. */
size_t wb_safetensors_lookup(const wb_safetensors *tensors, const char *name);

/* Name of tensor i, also of one whose dtype is not supported. */
const char *wb_safetensors_name(const wb_safetensors *tensors, size_t i);

/* A number from all headers and file sizes: the same files give the same number on every rank. */
uint64_t wb_safetensors_digest(const wb_safetensors *tensors);

/* Writes header and tensors to an open file. `emit` writes tensor i's bytes with wb_new_file_write; NULL:
 * they are views[i].data. */
typedef wb_status (*wb_tensor_emit)(void *ctx, size_t i, wb_new_file *file);
wb_status wb_safetensors_write_to(wb_new_file *file, size_t n, const wb_tensor_view *tensors,
                                  const char *metadata_json, wb_tensor_emit emit, void *ctx);

/* ---- configuration (config.c) ---------------------------------------------------------------- */

/* wb_config_load that also hands out the file's text, freed with free(). */
wb_status wb_config_read(const char *dir, wb_config *config_out, char **text_out);

/* Text of a config.json: `source` with its dtype adjusted, or made from `config` where source is NULL. */
wb_status wb_config_text(const wb_config *config, const char *source, wb_dtype dtype, char **text_out);

const char *wb_family_name(wb_family family); /* model_type */

/* ---- model ----------------------------------------------------------------------------------- */

/* Fills layers, params (without memory), tensors, names and the expert tables from config and comm
 * (registry.c). */
wb_status wb_registry_build(wb_model *model);

/* Reads this rank's part of the checkpoint into the params (checkpoint_load.c). Not collective. */
wb_status wb_checkpoint_load(wb_model *model, const wb_safetensors *tensors, const char *dir);

#endif
