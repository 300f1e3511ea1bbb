/* registry.h - how layers declare their tensors: what a checkpoint calls them, and where they are stored.
 *
 * Names are those that most families of Hugging Face use, "self_attn.q_proj.weight"; a family that spells one
 * differently lists it in wb_family_rules.renames. */
#ifndef WB_REGISTRY_H
#define WB_REGISTRY_H

#include "model_weights.h"

/* Declarations in checkpoint order. The same walk is made twice: it counts, then it fills. */
typedef struct wb_registry {
    wb_model *model;
    bool fill;
    char *names; /* where filled: [n_tensors][WB_TENSOR_NAME_BYTES] */
    int32_t n_params, n_tensors;
    int32_t n_moe; /* MoE layers so far */
} wb_registry;

/* A storage [rows, cols], without tensors yet; its index in wb_model.params. */
int32_t wb_registry_storage(wb_registry *registry, wb_dtype dtype, int64_t rows, int64_t cols);

/* That of param `param` of the decoder, for its MTP layers. */
int32_t wb_registry_shared(wb_registry *registry, int32_t param);

/* A storage for this rank's slots of MoE layer `moe_layer`, each [rows, cols]. */
int32_t wb_registry_slots(wb_registry *registry, int32_t moe_layer, wb_dtype dtype, int64_t rows,
                          int64_t cols);

/* A tensor [rows, cols] of `param` from element `offset` on, which for an expert counts from where its slot
 * begins; cols 0: a vector [rows]. layer -1: of none; expert -1: of none. */
void wb_registry_tensor(wb_registry *registry, int32_t layer, int32_t expert, const char *name, int64_t rows,
                        int64_t cols, int32_t param, int64_t offset);

/* A storage with one tensor: a replicated matrix of the model's dtype, or a vector of f32. */
int32_t wb_registry_matrix(wb_registry *registry, int32_t layer, const char *name, int64_t rows,
                           int64_t cols);
/* A matrix as these, of which the model makes no use but products with all of its rows: the device may keep
 * it in an order of its own (packed_weights.h). And: `param` is one. */
int32_t wb_registry_linear(wb_registry *registry, int32_t layer, const char *name, int64_t rows,
                           int64_t cols);
void wb_registry_multiplied(wb_registry *registry, int32_t param);
int32_t wb_registry_vector(wb_registry *registry, int32_t layer, const char *name, int64_t n);

/* Likewise the taps of a convolution over a channel each, f32 [channels, width], which files have as
 * [channels, 1, width]. */
int32_t wb_registry_taps(wb_registry *registry, int32_t layer, const char *name, int64_t channels,
                         int64_t width);

/* The tensors declared since there were `first` of them have no gradient. */
void wb_registry_no_gradient(wb_registry *registry, int32_t first);

/* What the family calls a tensor, or a part of its name. */
const char *wb_registry_name(const wb_model *model, const char *name);

/* The full name of `name` of an expert, or of a layer (expert -1), or of the model (layer -1). */
void wb_registry_full_name(const wb_model *model, int32_t layer, int32_t expert, const char *name,
                           char full_out[WB_TENSOR_NAME_BYTES]);

/* The full name of a tensor as it would be without the family's renames, and as released checkpoints have
 * it. */
void wb_registry_usual_name(const wb_model *model, const wb_tensor *tensor,
                            char usual_out[WB_TENSOR_NAME_BYTES]);
void wb_registry_released_name(const wb_model *model, const wb_tensor *tensor,
                               char released_out[WB_TENSOR_NAME_BYTES]);

/* Fills layers, params and tensors, by the placement, and places the memory of the params
 * (architecture.c). */
wb_status wb_architecture_build(wb_model *model);
void wb_architecture_layout(wb_model *model, wb_arena *arena);

#endif
