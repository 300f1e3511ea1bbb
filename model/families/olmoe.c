/* olmoe.c - the family olmoe: query and key normalised over all heads, optionally clamped; every layer is
 * MoE. */
#include "families/family.h"

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
};
