/* checkpoint.h - loading and saving a model: element conversion, configuration text, registry walk. */
#ifndef WB_MODEL_CHECKPOINT_H
#define WB_MODEL_CHECKPOINT_H

#include "model_internal.h"
#include "wb_file.h"
#include "wb_json.h"
#include "wb_tensor_io.h"
#include "wb_text.h"

/* ---- elements (convert.c) -------------------------------------------------------------------- */

/* to[n] = from[n], host, any alignment, f32, bf16 and f16 in, f32 and bf16 out, to nearest even; NaN stays
 * NaN. */
void wb_convert(int64_t n, const void *from, wb_dtype from_dtype, void *to, wb_dtype to_dtype);

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
