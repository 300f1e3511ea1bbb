/* olmoe.c - the family olmoe: query and key normalised over all heads, optionally clamped; every layer is
 * MoE. */
#include "config.h"
#include "families/family.h"
#include "layers/layer.h"
#include "wb_check.h"

static wb_status read_layers(const json_t *root, wb_config *c) {
    (void)root;
    for (int32_t l = 0; l < c->n_layers; l++) c->moe_layer_mask[l / 64] |= UINT64_C(1) << (l % 64);
    return WB_OK;
}

static wb_status check(const wb_config *c) {
    const int32_t n_moe = wb_config_n_moe(c);
    if (n_moe == c->n_layers) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "moe layers: expected all %d of %s, found %d", c->n_layers,
                   wb_family_olmoe.model_type, n_moe);
}

static wb_layer_parts layer(const wb_config *c, int32_t l) {
    (void)c;
    (void)l;
    return (wb_layer_parts){&wb_layer_attention_gqa, &wb_layer_moe};
}

const wb_family_rules wb_family_olmoe = {
    .model_type = "olmoe",
    .architecture = "OlmoeForCausalLM",
    .expert_width_key = "intermediate_size",
    .qk_norm = WB_QK_NORM_WHOLE,
    .norm_eps = 1e-5,
    .rope_theta = 10000.0,
    .max_positions = 4096,
    .n_kv_heads = 0,
    .router_types = {WB_ROUTER_SOFTMAX, WB_ROUTER_SOFTMAX_NORM},
    .norm_topk_prob = false,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .clips = true,
    .read = read_layers,
    .check = check,
    .layer = layer,
};
