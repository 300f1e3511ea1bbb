/* wb_config.h - the configuration of a model: config.json as numbers, which families there are, and whose
 * routes those of such a model are. Nothing here opens a model.
 *
 * A family is a table of what it does in its own way (config keys, tensor names, the kind of each layer).
 *
 * Errors: INVALID_ARGUMENT for arguments out of range and OUT_OF_MEMORY, besides those named at a call. All
 * memory is host memory; no call is collective. Refuses: weights (wb_model.h).
 */
#ifndef WB_CONFIG_H
#define WB_CONFIG_H

#include "wb_formats.h"
#include "wb_ops_moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* X(NAME, name): the family WB_FAMILY_NAME, which is model_type "name" of config.json. New ones come last:
 * the values are part of the library's interface. */
#define WB_FAMILY_LIST(X)       \
    X(QWEN3_MOE, qwen3_moe)     \
    X(OLMOE, olmoe)             \
    X(QWEN2_MOE, qwen2_moe)     \
    X(GLM4_MOE, glm4_moe)       \
    X(MIXTRAL, mixtral)         \
    X(GPT_OSS, gpt_oss)         \
    X(DEEPSEEK_V2, deepseek_v2) \
    X(DEEPSEEK_V3, deepseek_v3) \
    X(QWEN3_NEXT, qwen3_next)   \
    X(QWEN3_5_MOE, qwen3_5_moe) \
    X(DEEPSEEK_V4, deepseek_v4)

#define X(NAME, name) WB_FAMILY_##NAME,
typedef enum wb_family { WB_FAMILY_LIST(X) } wb_family;
#undef X

/* Where q and k are normalised before the rotary embedding. */
typedef enum wb_qk_norm { WB_QK_NORM_NONE, WB_QK_NORM_PER_HEAD, WB_QK_NORM_WHOLE } wb_qk_norm;

/* Multi-head latent attention: what a token leaves behind is one latent for all heads. All zero: the model
 * has grouped-query attention. */
typedef struct wb_mla_sizes {
    int32_t kv_rank; /* of the latent, without its rotated part */
    int32_t q_rank;  /* of the two factors of q's projection; 0: it is one matrix */
    /* Of a head's query and key, which are head_dim together: what is not rotated, and then what is */
    int32_t nope_dim, rope_dim;
    int32_t value_dim; /* of a head */
    bool interleaved;  /* the rotation is of neighbours, not of halves */
} wb_mla_sizes;

/* Gated delta net: a mixer whose memory of a sequence is a matrix a head, of a fixed size. All zero: no layer
 * has it. */
typedef struct wb_delta_sizes {
    int32_t n_key_heads, n_value_heads; /* of each key head n_value_heads / n_key_heads value heads */
    int32_t key_dim, value_dim;         /* of a head */
    int32_t conv_width;                 /* taps of the convolution that queries, keys and values go through */
    uint64_t layer_mask[16];            /* bit l: layer l has it in place of attention */
} wb_delta_sizes;

/* Attention of one head of keys, which are the values too, over the last `window` positions and over entries
 * that a compressor makes of all positions, so many to an entry. All zero: the model has none. */
typedef struct wb_compressed_sizes {
    int32_t q_rank; /* of the two factors of q's projection */
    int32_t o_groups,
        o_rank; /* the output's heads are in groups, each of which its first factor makes o_rank of */
    /* Bits as in moe_layer_mask. In a sparse layer an entry is of sparse_rate positions and as many before,
     * and an indexer chooses index_top_k of the entries for each token; in a heavy one it is of heavy_rate
     * positions, and all are seen; in a layer that is neither there are none. */
    uint64_t sparse_layer_mask[16], heavy_layer_mask[16];
    int32_t sparse_rate, heavy_rate;
    int32_t index_heads, index_dim, index_top_k;
    double rope_theta; /* of the layers with entries, which alone have rope_scaling */
} wb_compressed_sizes;

/* Hyper-connections: the residual stream of a token is n_streams rows, from which each part of a layer reads
 * a mixture, and into which its result and a mixture of them go. n_streams 0: one row, to which is added. */
typedef struct wb_hyper_sizes {
    int32_t n_streams;
    int32_t iterations; /* that make the mixture doubly stochastic */
    float eps;
} wb_hyper_sizes;

/* How the frequencies of the rotary embedding are scaled, for longer contexts than a model began with. */
typedef enum wb_rope_type { WB_ROPE_PLAIN, WB_ROPE_LINEAR, WB_ROPE_YARN } wb_rope_type;

/* All zero: plain. */
typedef struct wb_rope_scaling {
    wb_rope_type type;
    bool truncate; /* YARN: the ends of the ramp between the two betas are whole dimensions */
    double factor; /* LINEAR and YARN: a position counts as one divided by it */
    /* YARN: a frequency that turns beta_fast times or more in original_positions stays as it is, one that
     * turns beta_slow times or less is divided by the factor. */
    double beta_fast, beta_slow;
    int32_t original_positions;
    /* YARN: what cosines and sines are multiplied by; 0: m(mscale) / m(mscale_all_dim) where both are
     * given, else m(1), with m(a) = 0.1 a ln(factor) + 1. mscale and mscale_all_dim 0: not given. */
    double attention_factor, mscale, mscale_all_dim;
} wb_rope_scaling;

typedef struct wb_config {
    wb_family family;
    int32_t hidden_size; /* H */
    int32_t n_layers;
    int32_t n_heads, n_kv_heads, head_dim;
    int32_t expert_width; /* F */
    int32_t dense_width;  /* SwiGLU width of the layers that are not MoE */
    int32_t vocab_size, max_positions;
    float norm_eps;
    double rope_theta;
    bool tie_word_embeddings;
    bool attention_bias; /* of q, k and v, and of o where the family has one */
    wb_qk_norm qk_norm;
    float clip_qkv;              /* 0: none; else q, k, v are clamped to [-clip, clip] after the qk norm */
    wb_router router;            /* E, K, type, scale */
    uint64_t moe_layer_mask[16]; /* bit l: layer l is MoE; n_layers <= 1024 */
    /* SwiGLU width of the shared experts of a MoE layer, which every token goes through beside those that it
     * chooses: all of them as one; 0: none. They are no choice and in no route. */
    int32_t shared_width;
    /* Dimensions of a head that the rotary embedding turns, the first ones; 0: all, or those of `mla` */
    int32_t rotary_dim;
    wb_rope_scaling rope_scaling;
    /* The layers of window_layer_mask, bits as above, see the last `window` positions, the token's own among
     * them; the others see all. Both 0: none. */
    int32_t window;
    uint64_t window_layer_mask[16];
    float swiglu_limit; /* of experts whose SwiGLU is clamped (wb_clamped_swiglu); 0: it is not */
    /* Rows and columns that share a scale in weights that its files hold in FP8; 0: none are. Such
     * weights, and those of 4 bits, are widened when they are read. */
    int32_t weight_block[2];
    /* Multi-token prediction layers that the checkpoint says to have behind the decoder's. */
    int32_t n_mtp_layers;
    wb_mla_sizes mla;
    wb_delta_sizes delta;
    wb_compressed_sizes compressed;
    wb_hyper_sizes hyper;
    /* Bits as above: MoE layers whose choices are a table by token id (wb_hash_routes); the others' are the
     * router's. */
    uint64_t hash_layer_mask[16];
    /* How many of router.n_experts have no weights, the last ones: such an expert makes of a token the token
     * itself. */
    int32_t n_weightless;
    /* [MoE layers] experts chosen for a token in each, of which router.top_k is the largest; [0] is 0:
     * router.top_k in all. */
    uint32_t layer_top_k[1024];
} wb_config;

/* Reads DIR/config.json. UNSUPPORTED names an unknown model_type or a key whose value this engine does not
 * implement (rope scaling other than linear and YaRN, an activation other than silu, a window where the
 * family has none); CORRUPT and INVALID_ARGUMENT name key, value and what was expected (K > E, E > 65536,
 * head counts that do not divide, ...). Accepts num_experts, num_local_experts or n_routed_experts,
 * num_experts_per_tok, num_experts_per_token or experts_per_token, and rope_theta at the top, in
 * rope_parameters or in rope_scaling; a number that is given twice must be the same. */
WB_API wb_status wb_config_load(const char *dir, wb_config *config_out);

/* Whether a model of this configuration can be opened; the errors of wb_config_load. */
WB_API wb_status wb_config_check(const wb_config *config);

/* Everything in *config but family and sizes (hidden_size, layers, heads, head_dim, widths, vocabulary,
 * positions, E and K) becomes what the family has where a config.json does not say it, but that experts
 * are in one group where E and K do not fit its groups; with one shared expert where it has any. */
WB_API wb_status wb_config_complete(wb_config *config);

/* False also for a layer that the model does not have. */
WB_API bool wb_config_is_moe(const wb_config *config, int32_t layer);

/* Whose routes those of such a model are, without opening it: what wb_model_routes says of the opened one.
 * moe_layers_out: [3 * config->n_layers], which *model_out points into, as it may into `config`. The errors
 * of wb_config_load, and INVALID_ARGUMENT where no layer is MoE. */
WB_API wb_status wb_config_routes(const wb_config *config, uint32_t *moe_layers_out,
                                  wb_route_model *model_out);

/* Experts chosen for a token in MoE layer `moe_index`; experts of a layer that have weights, 0 .. n - 1. */
static inline int32_t wb_config_layer_k(const wb_config *config, int32_t moe_index) {
    return config->layer_top_k[0] > 0 ? (int32_t)config->layer_top_k[moe_index] : config->router.top_k;
}
static inline int32_t wb_config_weighted(const wb_config *config) {
    return config->router.n_experts - config->n_weightless;
}

/* Numbers that the lists of a route model have at most: the places of its MoE layers, of its indexers, and
 * whose indexer each of these uses, for as many hidden layers as a config.json may have. */
enum { WB_ROUTE_LISTS_MAX = 3 * 1024 };

/* Whose routes those of the model in DIR are, by its config.json, whether this engine runs it or not: of all
 * families of WB_FAMILY_LIST, quantized or not. For a model that the engine runs it is what wb_config_routes
 * says; of others, and where wb_config_load would be CORRUPT (a key that the engine needs is absent or of
 * another type) by no key that routes depend on, the fingerprint is made of family, hidden_size, vocab_size
 * and the route model.
 * moe_layers_out: [WB_ROUTE_LISTS_MAX], which *model_out points into. vocab_size_out: V. UNSUPPORTED names
 * another model_type; CORRUPT and INVALID_ARGUMENT the key that cannot be. */
WB_API wb_status wb_routes_of_folder(const char *dir, uint32_t *moe_layers_out, wb_route_model *model_out,
                                     uint32_t *vocab_size_out);

/* The tables of the hash-routed layers of the model in DIR, read from its checkpoint alone. */
typedef struct wb_hash_file wb_hash_file;
/* How other tensors are stored does not matter. Where the engine does not run the model, or the model has no
 * such layers, no file but config.json is read. Errors as of wb_routes_of_folder and wb_model_open. */
WB_API wb_status wb_hash_file_open(const char *dir, wb_hash_file **file_out);
WB_API void wb_hash_file_close(wb_hash_file *file);                         /* NULL is a no-op */
WB_API const wb_hash_routes *wb_hash_file_routes(const wb_hash_file *file); /* NULL: none; owner: file */

/* Indexers of such a model, each of a layer of its own, as wb_indexer_columns says of its routes. Up to
 * index_top_k of the entries that a token sees, one for each sparse_rate tokens up to its own, are chosen by
 * each. */
WB_API int32_t wb_config_n_indexers(const wb_config *config);

/* Bytes of the routes of one token, [L][K] of wb_route_dtype(E). */
WB_API size_t wb_config_row_bytes(const wb_config *config);

#ifdef __cplusplus
}
#endif
#endif
