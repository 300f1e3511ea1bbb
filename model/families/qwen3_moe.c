/* qwen3_moe.c - the family qwen3_moe: query and key normalised head by head; layers may be dense. */
#include "families/family.h"

const wb_family_rules wb_family_qwen3_moe = {
    .model_type = "qwen3_moe",
    .architecture = "Qwen3MoeForCausalLM",
    .expert_width_key = "moe_intermediate_size",
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .norm_eps = 1e-6,
    .rope_theta = 10000.0,
    .max_positions = 32768,
    .n_kv_heads = 4,
    .router_types = {WB_ROUTER_SOFTMAX, WB_ROUTER_SOFTMAX_NORM},
    .norm_topk_prob = false,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .moe_layers = WB_MOE_SPARSE_STEP,
};
