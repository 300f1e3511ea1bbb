/* mixtral.c - the family mixtral: weights always normalised, every layer MoE, and one window for all
 * layers or none. */
#include "families/family.h"
#include "wb_check.h"
#include "wb_json.h"

static wb_status read(const json_t *root, wb_config *c) {
    double jitter = 0;
    (void)c;
    WB_TRY(wb_json_number(root, "router_jitter_noise", 0, &jitter));
    return jitter == 0
               ? WB_OK
               : wb_json_unsupported("router_jitter_noise", wb_json_value(root, "router_jitter_noise"), "0");
}

static const wb_rename renames[] = {
    {"mlp.gate.weight", "block_sparse_moe.gate.weight"},
    {"mlp.experts", "block_sparse_moe.experts"},
    {"gate_proj.weight", "w1.weight"},
    {"up_proj.weight", "w3.weight"},
    {"down_proj.weight", "w2.weight"},
    {NULL, NULL},
};

const wb_family_rules wb_family_mixtral = {
    .model_type = "mixtral",
    .architecture = "MixtralForCausalLM",
    .expert_width_key = "intermediate_size",
    .experts_key = "num_local_experts",
    .qk_norm = WB_QK_NORM_NONE,
    .norm_eps = 1e-5,
    .rope_theta = 1000000.0,
    .max_positions = 131072,
    .n_kv_heads = 8,
    .router_types = {WB_ROUTER_SOFTMAX_NORM, WB_ROUTER_SOFTMAX_NORM},
    .norm_topk_prob = true,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .windows = WB_WINDOW_EVERY_LAYER,
    .read = read,
    .renames = renames,
};
