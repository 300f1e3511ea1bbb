/* gpt_oss.c - the family gpt_oss: biases everywhere, sinks, a window in every second layer, YaRN; experts
 * with a clamped SwiGLU; weights of the choices are a softmax of their logits. */
#include "config.h"
#include "families/family.h"
#include "wb_json.h"

static wb_status read(const json_t *root, wb_config *c) {
    return wb_config_float(root, "swiglu_limit", wb_family_gpt_oss.swiglu_limit, &c->swiglu_limit);
}

static int write(const wb_config *c, json_t *root) {
    return json_object_set_new(root, "swiglu_limit", wb_json_real(c->swiglu_limit));
}

static const wb_rename renames[] = {
    {"mlp.gate.weight", "mlp.router.weight"},
    {"mlp.gate.bias", "mlp.router.bias"},
    {NULL, NULL},
};

const wb_family_rules wb_family_gpt_oss = {
    .model_type = "gpt_oss",
    .architecture = "GptOssForCausalLM",
    .expert_width_key = "intermediate_size",
    .experts_key = "num_local_experts",
    .qk_norm = WB_QK_NORM_NONE,
    .norm_eps = 1e-5,
    .rope_theta = 150000.0,
    .rope_scaling =
        {.type = WB_ROPE_YARN, .factor = 32, .beta_fast = 32, .beta_slow = 1, .original_positions = 4096},
    .max_positions = 131072,
    .n_kv_heads = 8,
    .head_dim = 64,
    .router_types = {WB_ROUTER_TOPK_SOFTMAX, WB_ROUTER_TOPK_SOFTMAX},
    .norm_topk_prob = true,
    .tie_word_embeddings = false,
    .attention_bias = true,
    .windows = WB_WINDOW_LAYER_TYPES,
    .window = 128,
    .swiglu_limit = 7,
    .read = read,
    .write = write,
    .sinks = true,
    .expert_biases = true,
    .fused_experts = true,
    .renames = renames,
};
