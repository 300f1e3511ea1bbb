/* qwen2_moe.c - the family qwen2_moe: biases on query, key and value; a shared expert behind a sigmoid
 * gate; layers may be dense. */
#include "config.h"
#include "families/family.h"
#include "wb_json.h"

static wb_status read(const json_t *root, wb_config *c) {
    return wb_json_int(root, "shared_expert_intermediate_size", 5632, &c->shared_width);
}

static wb_status check(const wb_config *c) {
    return wb_config_in_range("shared_expert_intermediate_size", c->shared_width, 1, INT32_MAX / 2);
}

static int write(const wb_config *c, json_t *root) {
    return json_object_set_new(root, "shared_expert_intermediate_size", json_integer(c->shared_width));
}

static const wb_rename renames[] = {
    {"mlp.shared_experts.gate_proj.weight", "mlp.shared_expert.gate_proj.weight"},
    {"mlp.shared_experts.up_proj.weight", "mlp.shared_expert.up_proj.weight"},
    {"mlp.shared_experts.down_proj.weight", "mlp.shared_expert.down_proj.weight"},
    {NULL, NULL},
};

const wb_family_rules wb_family_qwen2_moe = {
    .model_type = "qwen2_moe",
    .architecture = "Qwen2MoeForCausalLM",
    .expert_width_key = "moe_intermediate_size",
    .qk_norm = WB_QK_NORM_NONE,
    .norm_eps = 1e-6,
    .rope_theta = 10000.0,
    .max_positions = 32768,
    .n_kv_heads = 16,
    .router_types = {WB_ROUTER_SOFTMAX, WB_ROUTER_SOFTMAX_NORM},
    .norm_topk_prob = false,
    .tie_word_embeddings = false,
    .attention_bias = true,
    .attention_bias_key = "qkv_bias",
    .moe_layers = WB_MOE_SPARSE_STEP,
    .windows = WB_WINDOW_SWITCH,
    .window = 4096,
    .n_shared = 1,
    .read = read,
    .check = check,
    .write = write,
    .no_output_bias = true,
    .shared_gate = true,
    .renames = renames,
};
