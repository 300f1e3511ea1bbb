/* model_weights.h - a model as its own room sees it: the storages of its weights, and which layer has
 * which. */
#ifndef WB_MODEL_WEIGHTS_H
#define WB_MODEL_WEIGHTS_H

#include "families/family.h"
#include "mailboxes.h"
#include "slot_traffic.h"
#include "wb_arena.h"
#include "wb_check.h"
#include "wb_checkpoint_dir.h"
#include "wb_dispatch.h"
#include "wb_exchange.h"
#include "wb_model.h"

#define WB_TENSOR_NAME_BYTES 128

/* One storage: a weight matrix or vector, which is the same on every rank, or the slots of a MoE layer that
 * are this rank's, in slot order: gate_up [n_slots][2F][H] (rows gate 0..F-1, up F..2F-1), down
 * [n_slots][H][F]. */
typedef struct wb_param {
    wb_buffer memory;
    wb_dtype dtype;
    int64_t rows, cols;            /* a matrix, those of the slots one below the other; a vector: cols 1 */
    int64_t n;                     /* elements held here: rows * cols */
    int32_t moe_layer;             /* 0..L-1: whose slots these are; -1: no slots */
    int64_t slot_elements;         /* of one slot */
    bool packed;                   /* each matrix is, as pack_weights leaves it (packed_weights.h) */
    const struct wb_param *shared; /* of an MTP layer: the decoder's, whose memory it has; or NULL */
} wb_param;

/* A part of a layer: its kind, and the indices into wb_model.params that the kind's struct of weights
 * holds. */
typedef struct wb_part {
    const wb_layer_kind *kind;
    void *weights;
} wb_part;

/* Of hyper-connections, f32: [M, S H], [M], [3] or [1]; -1: the model has none. */
typedef struct wb_hyper_weights {
    int32_t fn, base, scale;
} wb_hyper_weights;

typedef struct wb_layer {
    /* [H]. A layer's parameters are those from mixer_norm on, to the next layer's or to final_norm. */
    int32_t mixer_norm, feed_forward_norm;
    wb_hyper_weights mixer_hyper, feed_forward_hyper;
    wb_part mixer, feed_forward;
} wb_layer;

/* Memory of others that moves with the experts of a layer: [slots of this rank][slot_bytes]. */
typedef struct wb_attached_slots {
    int32_t moe_layer;
    void *slots; /* device */
    size_t slot_bytes;
} wb_attached_slots;

struct wb_model {
    wb_config config;
    const wb_family_rules *family;
    wb_device *device;
    wb_comm *comm;
    wb_exchange *exchange;        /* over comm, for the device's memory; NULL until the ranks have met */
    wb_model_mailboxes mailboxes; /* beside it, where the devices reach each other */
    int32_t n_ranks, rank;        /* of comm */
    wb_dtype dtype;               /* of matrices of weights */
    wb_dtype activations;         /* of activations and their gradients */
    bool inference_only;          /* as wb_model_options has it */
    wb_workspace memory;          /* of everything below, but for what is of the source */

    wb_param *params; /* [n_params] */
    int32_t n_params;
    wb_layer *layers;                   /* [n_layers]; in names they begin at that of first_layer */
    int32_t embed, final_norm, lm_head; /* lm_head = embed when tied */
    wb_hyper_weights end;               /* hyper-connections before final_norm */

    wb_model *mtp;                   /* layers for multi-token prediction (model_mtp.h), or NULL */
    const wb_model *decoder;         /* of these: the model that they belong to; else NULL */
    struct wb_mtp_layer *mtp_layers; /* of these: [n_layers] */

    wb_placement *placement; /* where experts live */
    wb_dispatch_policy dispatch;
    wb_buffer dispatch_tables; /* int32 [L][dispatch_length]: which replica this rank's tokens go to */
    size_t dispatch_length;
    int32_t *dispatch_host;     /* one table on its way; not of static, whose tables dispatch_rows has */
    wb_dispatch *dispatch_rows; /* static; else NULL */

    /* For moves of experts (expert_store.c). */
    wb_buffer shadow_slots;       /* where others do not reach them */
    wb_shared_area shared_shadow; /* or where they do */
    wb_attached_slots *attached;  /* [n_attached] */
    size_t n_attached, max_attached;

    /* Of copies whose experts travel (wb_model_reserve_copy): as large as the largest so far. */
    wb_slot_traffic copied;
    wb_buffer copy_scratch;

    /* f32 [max_positions, wb_model_rotary_dim / 2]; the second pair of layers with compressed entries */
    wb_buffer cos_table, sin_table, entry_cos_table, entry_sin_table;

    wb_tensor *tensors; /* [n_tensors]; data filled at use by wb_model_tensor */
    int32_t n_tensors;

    wb_route_model route_model;
    /* Of hash-routed layers (hash_tables.h); n_hash_layers 0: there are none. */
    wb_hash_routes hash;
    int32_t *hash_ids;                        /* host [hash.n_hash_layers][V][K], what hash.ids points to */
    wb_buffer hash_tables;                    /* int32, the same */
    char (*hash_names)[WB_TENSOR_NAME_BYTES]; /* [hash.n_hash_layers] in checkpoints */
    /* Of the checkpoint that the model was opened from, or NULL: the text of its config.json, its small files
     * on rank 0, and what was ignored in it. */
    char *source_config;
    wb_companions *companions;
    char *note;
};

/* ---- slots of this rank ---------------------------------------------------------------------- */

static inline int64_t wb_model_first_slot(const wb_model *model) {
    return wb_placement_first_slot(model->placement, (uint32_t)model->rank);
}

/* The same number in every layer. */
static inline int64_t wb_model_local_slots(const wb_model *model) {
    return wb_placement_topology(model->placement)->slots_of_rank[model->rank];
}

/* Which of them a slot of this rank is, 0..local slots - 1. */
static inline int64_t wb_model_local_slot(const wb_model *model, wb_physical_id slot) {
    return (int64_t)slot.slot - wb_model_first_slot(model);
}

/* The rank that has a slot, of any rank. */
static inline int32_t wb_model_rank_of(const wb_model *model, wb_physical_id slot) {
    return (int32_t)wb_placement_rank_of(model->placement, slot);
}

/* ---- a weight at work ------------------------------------------------------------------------ */

static inline wb_weight wb_model_weight(const wb_model *model, int32_t param) {
    const wb_param *p = &model->params[param];
    return (wb_weight){p->memory.data, p->dtype, p->rows, p->cols, p->packed};
}

/* A vector, which is always f32. */
static inline const float *wb_model_vector(const wb_model *model, int32_t param) {
    return model->params[param].memory.data;
}

/* The norm of the residual stream, of queries and of keys whose weights are vector `param`. */
static inline wb_norm wb_model_norm(const wb_model *model, int32_t param) {
    return (wb_norm){wb_model_vector(model, param), model->config.norm_eps,
                     model->family->zero_centered_norms};
}

/* ---- activations ----------------------------------------------------------------------------- */

/* What lies in a buffer that was placed by wb_place_activations (layer.h). */
static inline wb_rows wb_activations(const wb_model *model, const wb_buffer *buffer) {
    return (wb_rows){buffer->data, model->activations};
}

/* Of what layers keep of a sequence. */
static inline wb_dtype wb_state_dtype(const wb_model *model) {
    return model->dtype == WB_BF16 ? WB_BF16 : model->activations;
}

/* ---- making a model (model.c, registry of its tensors: registry.h) --------------------------- */

/* A model of the family's layers without values in its weights. */
wb_status wb_model_new(const wb_config *config, const wb_family_rules *family,
                       const wb_model_options *options, wb_model **model_out);

/* As wb_model_new, for one rank of n_ranks, but without memory in its storages, device and communicator: to
 * be measured and closed. */
wb_status wb_model_blank(const wb_config *config, const wb_model_options *options, int32_t n_ranks,
                         int32_t rank, wb_model **model_out);

/* A caller's options laid over the defaults. INVALID_ARGUMENT unless they have a communicator: without one
 * nothing can be agreed. What else may be wrong in them is wb_model_new's to refuse, which ranks agree on. */
wb_status wb_model_read_options(const wb_model_options *options, wb_model_options *own_out);

/* Of MTP layers: whether their names are another place's than the decoder's (wb_family_rules). */
static inline bool wb_model_own_mtp_names(const wb_model *model) {
    return model->decoder && model->family->own_mtp_names;
}

/* The number of layer 0 in the names of a checkpoint. */
static inline int32_t wb_model_first_layer(const wb_model *model) {
    return model->decoder && !model->family->own_mtp_names ? model->decoder->config.n_layers : 0;
}

/* That all ranks have the same model. `source` tells checkpoints or seeds apart. Collective. */
wb_status wb_model_check_peers(const wb_model *model, const void *source, size_t bytes);

/* Opens the model's exchange, and mailboxes where the devices of all ranks reach each other. Collective. */
wb_status wb_model_open_exchange(wb_model *model);

/* Fills route_model from config and family (routes_of_model.c). */
wb_status wb_model_describe_routes(wb_model *model);

/* Dimensions of a head that the rotary embedding turns. */
static inline int32_t wb_model_rotary_dim(const wb_model *model) {
    if (model->config.mla.kv_rank > 0) return model->config.mla.rope_dim;
    return model->config.rotary_dim > 0 ? model->config.rotary_dim : model->config.head_dim;
}

/* Elements of a token's residual stream: H, or as many times H as there are streams. */
static inline int64_t wb_model_stream_width(const wb_model *model) {
    const int64_t S = model->config.hyper.n_streams;
    return (S > 0 ? S : 1) * model->config.hidden_size;
}

static inline bool wb_model_is_hyper(const wb_model *model) {
    return model->config.hyper.n_streams > 0;
}

static inline bool wb_model_has_entries(const wb_model *model) {
    return model->config.compressed.q_rank > 0;
}

/* How much larger scores are made for a context that is `factor` times as long: 0.1 scale ln(factor) + 1,
 * 1 where it is no longer. */
double wb_rope_magnitude(double factor, double scale);

/* Place for cos_table and sin_table, and their values (rope_tables.c). */
void wb_model_layout_rope(wb_model *model, wb_arena *arena);
wb_status wb_model_fill_rope(wb_model *model);

/* Random values in all weights held here, as wb_model_create promises (model_create.c). Not collective. */
wb_status wb_model_fill_random(wb_model *model, uint64_t seed, float std);

/* Adds to what wb_model_note says (model.c). */
__attribute__((format(printf, 2, 3))) wb_status wb_model_add_note(wb_model *model, const char *format, ...);

/* Reads this rank's part of a checkpoint into the weights (model_load.c). digests_out: [n_tensors], and
 * then those of its MTP layers, of what the files say of each tensor, whole or of an expert's middle: equal
 * where ranks read the same. Not collective. */
wb_status wb_model_load(wb_model *model, const wb_safetensors *files, const char *dir, uint64_t *digests_out);

#endif
