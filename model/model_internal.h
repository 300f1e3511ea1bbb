/* model_internal.h - how a model keeps its weights; shared by the files of this folder only. */
#ifndef WB_MODEL_INTERNAL_H
#define WB_MODEL_INTERNAL_H

#include "wb_check.h"
#include "wb_device.h"
#include "wb_model.h"

/* One storage: a weight matrix or vector, or a layer's experts side by side. Expert storages hold this
 * rank's experts in slot order: gate_up [n_local][2F][H] (rows gate 0..F-1, up F..2F-1), down
 * [n_local][H][F]. */
typedef struct wb_param {
    void *data; /* device */
    wb_dtype dtype;
    int64_t n;    /* elements held here */
    bool sharded; /* experts: different on each rank; else replicated */
} wb_param;

/* Indices into wb_model.params; -1: the layer has none. */
typedef struct wb_layer {
    int32_t input_norm, post_norm; /* [H] */
    int32_t q, k, v, o;            /* [nh dh, H], [nkv dh, H], [nkv dh, H], [H, nh dh] */
    int32_t q_bias, k_bias, v_bias, o_bias;
    int32_t q_norm, k_norm; /* [dh] per head, [nh dh] and [nkv dh] whole */
    int32_t moe_index;      /* 0..L-1 in the route tensor; -1: dense layer */
    int32_t router;         /* [E, H] */
    int32_t gate_up, down;  /* experts, or the dense layer's [2I, H] and [H, I] */
} wb_layer;

struct wb_model {
    wb_config config;
    wb_device *device;
    wb_comm *comm;
    wb_dtype dtype;

    wb_param *params; /* [n_params] */
    int32_t n_params;
    wb_layer *layers;                   /* [n_layers] */
    int32_t embed, final_norm, lm_head; /* lm_head = embed when tied */

    /* Where each logical expert lives: rank and index among that rank's experts. The same in every layer. */
    int32_t *expert_rank, *expert_slot; /* [E] */
    int32_t n_local_experts;
    int32_t first_local_expert;

    float *cos_table, *sin_table; /* device [max_positions, head_dim / 2] */

    wb_tensor *tensors; /* [n_tensors]; data filled at use by wb_model_tensor */
    int32_t n_tensors;
    char *names; /* storage of tensor names */

    wb_route_model route_model;
    uint32_t *moe_layers; /* [L], what route_model points to */
    char *source_dir;     /* directory that the model was opened from, or NULL */
    char *source_config;  /* text of its config.json, or NULL */
};

/* params[index].data, f32 vectors and matrices of model->dtype. */
static inline void *wb_param_data(const wb_model *model, int32_t index) {
    return model->params[index].data;
}

#endif
