/* qwen3_5_moe.c - the family qwen3_5_moe, the language model of one of text and images: as qwen3_next, but
 * the projections of a gated delta net are a matrix each, every layer has experts, and weights are always
 * normalised. */
#include "families/qwen_delta.h"

static const char *const other_types[] = {"qwen3_5_moe_text", NULL};
/* Positions of text are the same in all three parts of a head that images turn apart. */
static const char *const rope_ignored[] = {"mrope_section", "mrope_interleaved", NULL};

const wb_family_rules wb_family_qwen3_5_moe = {
    .model_type = "qwen3_5_moe",
    .architecture = "Qwen3_5MoeForCausalLM",
    .other_types = other_types,
    .file_type = "qwen3_5_moe_text",
    .text_config = true,
    .expert_width_key = "moe_intermediate_size",
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .delta_net = true,
    .norm_eps = 1e-6,
    .rope_theta = 10000.0,
    .rope_ignored = rope_ignored,
    .rotary_factor = 0.25,
    .max_positions = 32768,
    .n_kv_heads = 2,
    .head_dim = 256,
    .router_types = {WB_ROUTER_SOFTMAX_NORM, WB_ROUTER_SOFTMAX_NORM},
    .norm_topk_prob = true,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .moe_layers = WB_MOE_EVERY_LAYER,
    .n_shared = 1,
    .read = wb_qwen_delta_read,
    .check = wb_qwen_delta_check,
    .write = wb_qwen_delta_write,
    .zero_centered_norms = true,
    .query_gate = true,
    .shared_gate = true,
    .own_mtp_names = true,
    .nested_prefix = "model.language_model.",
    .passed_over = "model.visual.",
    .renames = wb_qwen_delta_renames,
};
