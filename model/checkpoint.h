/* checkpoint.h - loading and saving a model: element conversion, registry walk. */
#ifndef WB_MODEL_CHECKPOINT_H
#define WB_MODEL_CHECKPOINT_H

#include "config.h"
#include "model_internal.h"
#include "wb_file.h"
#include "wb_json.h"
#include "wb_tensor_io.h"
#include "wb_text.h"

/* ---- elements (convert.c) -------------------------------------------------------------------- */

/* to[n] = from[n], host, any alignment, f32, bf16 and f16 in, f32 and bf16 out, to nearest even; NaN stays
 * NaN. */
void wb_convert(int64_t n, const void *from, wb_dtype from_dtype, void *to, wb_dtype to_dtype);

/* ---- model ----------------------------------------------------------------------------------- */

/* Fills layers, params (without memory), tensors, names and the expert tables from config and comm
 * (registry.c). */
wb_status wb_registry_build(wb_model *model);

/* Reads this rank's part of the checkpoint into the params (checkpoint_load.c). Not collective. */
wb_status wb_checkpoint_load(wb_model *model, const wb_safetensors *tensors, const char *dir);

#endif
