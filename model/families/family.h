/* family.h - what model families differ in, a table a family.
 *
 * To add a family: write families/<name>.c with its wb_family_<name>, and name it in WB_FAMILY_LIST
 * (wb_config.h). Reading, checking and writing configurations, the registry and the forward ask these tables
 * and nothing else: no other file compares families. */
#ifndef WB_FAMILY_H
#define WB_FAMILY_H

#include "wb_config.h"

#include <jansson.h>

/* What layer l is made of: a mixer over positions, then a feed-forward part (layers/layer.h). */
typedef struct wb_layer_kind wb_layer_kind;
typedef struct wb_layer_parts {
    const wb_layer_kind *mixer, *feed_forward;
} wb_layer_parts;

/* A tensor's usual name (registry.h), or a part of one, and this family's. */
typedef struct wb_rename {
    const char *usual, *own;
} wb_rename;

/* Which layers are MoE, by the keys of config.json (config_layers.c); mlp_layer_types, where it is there,
 * says so for every layer. */
typedef enum wb_moe_rule {
    WB_MOE_EVERY_LAYER,
    /* but those in mlp_only_layers, and those where l + 1 is no multiple of decoder_sparse_step */
    WB_MOE_SPARSE_STEP,
    /* but the first first_k_dense_replace, and those where l is no multiple of moe_layer_freq */
    WB_MOE_FROM_LAYER
} wb_moe_rule;

/* Which layers see a window, by the keys of config.json (config_layers.c). */
typedef enum wb_window_rule {
    /* no layer; a file that says otherwise is refused */
    WB_WINDOW_NONE,
    /* all, where sliding_window is there */
    WB_WINDOW_EVERY_LAYER,
    /* those that layer_types calls sliding_attention; without it layer 0 and every second one */
    WB_WINDOW_LAYER_TYPES,
    /* the same where use_sliding_window is true, without layer_types of the first max_window_layers */
    WB_WINDOW_SWITCH,
    /* all, beside what else layer_types gives them, which the family reads */
    WB_WINDOW_ALL_KINDS
} wb_window_rule;

typedef struct wb_family_rules wb_family_rules;
struct wb_family_rules {
    const char *model_type, *architecture; /* of config.json */
    const char *const *other_types;        /* model types of the same models, up to NULL; or NULL: none */
    const char *file_type; /* model_type of a new file, where that is another one; NULL: model_type */
    bool text_config;      /* a file may be of a model of text and images, and say this in its text_config */

    /* ---- keys that families spell differently, and what is meant where a key is absent ---- */
    const char *expert_width_key; /* of F */
    bool layer_choices;           /* `read` and `write` know wb_config.n_weightless and layer_top_k */
    const char *experts_key;      /* of E, where a new file is written; NULL: num_experts */
    wb_qk_norm qk_norm;
    bool latent_attention; /* wb_config.mla is read, and head_dim and n_kv_heads follow from it */
    bool delta_net;        /* wb_config.delta is read, in place of windows */
    bool compressed;       /* wb_config.compressed, hyper and hash_layer_mask are read */
    bool qk_norm_varies;   /* between that and WB_QK_NORM_PER_HEAD, as `read` finds */
    double norm_eps, rope_theta;
    int32_t max_positions;
    int32_t n_kv_heads;             /* 0: as many as heads */
    int32_t head_dim;               /* 0: what of hidden_size is a head's */
    wb_router_type router_types[2]; /* where norm_topk_prob is false, and true */
    bool norm_topk_prob, tie_word_embeddings, attention_bias;
    const char *attention_bias_key; /* NULL: attention_bias */
    bool clips;                     /* has the key clip_qkv */
    double router_scale; /* routed_scaling_factor; 0: the family has neither this key nor those of groups */
    int32_t n_group, topk_group;  /* where there is a router_scale */
    wb_rope_scaling rope_scaling; /* where neither rope_scaling nor rope_parameters is there */
    const char *const *rope_keys; /* up to NULL: further keys about rope, which `read` takes; or NULL */
    /* up to NULL: keys of rope's objects that change nothing in a model of text; or NULL */
    const char *const *rope_ignored;
    double rotary_factor; /* partial_rotary_factor; 0: the family has no such key, all of a head is turned */
    wb_moe_rule moe_layers;
    int32_t first_dense; /* WB_MOE_FROM_LAYER: first_k_dense_replace */
    int32_t n_shared;    /* shared experts of a new model */
    wb_window_rule windows;
    int32_t window;     /* sliding_window where a rule asks for it; 0: none */
    float swiglu_limit; /* 0: the SwiGLU of experts is not clamped */

    /* ---- keys that only this family has; all four may be NULL ---- */

    /* In place of wb_config_read_rope (config.h). */
    wb_status (*read_rope)(const json_t *root, const wb_family_rules *rules, wb_config *config);
    /* Into *config, in which the sizes and the layers that are MoE are set already. */
    wb_status (*read)(const json_t *root, wb_config *config);
    wb_status (*check)(const wb_config *config);
    /* Adds them to a new config.json; non-zero: no memory. */
    int (*write)(const wb_config *config, json_t *root);

    /* ---- layers and tensors ---- */
    /* NULL: a gated delta net where delta.layer_mask says so, else attention, latent or not; and experts
     * where moe_layer_mask says so, else an MLP. */
    wb_layer_parts (*layer)(const wb_config *config, int32_t l);
    bool no_output_bias;      /* attention_bias is of q, k and v alone */
    bool zero_centered_norms; /* norms multiply by 1 + w, but those of the heads of a gated delta net */
    bool query_gate; /* q_proj gives each head a gate behind its query, for the sigmoid of what it finds */
    /* The projections of a gated delta net are two matrices, whose rows are grouped by key head: [q | k | v |
     * z] and [b | a]. */
    bool grouped_delta;
    bool sinks; /* attention has a logit a head beside those of the keys: self_attn.sinks */
    /* Routers and experts have biases, and a clamped SwiGLU adds 1 to `up`. */
    bool expert_biases;
    /* In files all experts of a layer are one tensor, transposed, columns of gate and up in turn
     * (fused_experts.h). */
    bool fused_experts;
    /* Routers choose by score and a bias that is no weight: mlp.gate.e_score_correction_bias. */
    bool selection_bias;
    /* What the shared experts give is multiplied by the sigmoid of mlp.shared_expert_gate. */
    bool shared_gate;
    /* False: layers for multi-token prediction are numbered behind the decoder's. True: they are
     * mtp.layers.<i>, all share what stands before and behind the block, and files need not say how many. */
    bool own_mtp_names;
    const char *nested_prefix; /* what "model." may be in files of models of text and images; or NULL */
    const wb_rename *renames;  /* up to {NULL, NULL}; NULL: all names are the usual ones */
    /* Of the names by `renames`, or parts of them, what released checkpoints have in their place; or NULL. */
    const wb_rename *released;
    const char
        *passed_over; /* how tensors begin that checkpoints have and nobody reads here; NULL: none do */
};

/* wb_family_<name> of each family of the list, and how many there are. */
#define X(NAME, name) extern const wb_family_rules wb_family_##name;
WB_FAMILY_LIST(X)
#undef X
#define X(NAME, name) +1
enum { WB_N_FAMILIES = 0 WB_FAMILY_LIST(X) };
#undef X

/* The rules of a family; NULL for a value that is none. */
const wb_family_rules *wb_family_rules_of(wb_family family);

/* model_type of a new file. */
static inline const char *wb_family_file_type(const wb_family_rules *rules) {
    return rules->file_type ? rules->file_type : rules->model_type;
}

/* The family of a model_type; UNSUPPORTED names the known ones. `value` is a string. */
wb_status wb_family_find(const json_t *value, wb_family *family_out);

#endif
