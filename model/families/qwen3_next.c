/* qwen3_next.c - the family qwen3_next: three layers of gated delta net to one of attention, whose heads have
 * gates; norms that multiply by 1 + w; a shared expert behind a sigmoid gate; layers may be dense. */
#include "families/qwen_delta.h"

const wb_family_rules wb_family_qwen3_next = {
    .model_type = "qwen3_next",
    .architecture = "Qwen3NextForCausalLM",
    .expert_width_key = "moe_intermediate_size",
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .delta_net = true,
    .norm_eps = 1e-6,
    .rope_theta = 10000.0,
    .rotary_factor = 0.25,
    .max_positions = 32768,
    .n_kv_heads = 2,
    .head_dim = 256,
    .router_types = {WB_ROUTER_SOFTMAX, WB_ROUTER_SOFTMAX_NORM},
    .norm_topk_prob = true,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .moe_layers = WB_MOE_SPARSE_STEP,
    .n_shared = 1,
    .read = wb_qwen_delta_read,
    .check = wb_qwen_delta_check,
    .write = wb_qwen_delta_write,
    .zero_centered_norms = true,
    .query_gate = true,
    .grouped_delta = true,
    .shared_gate = true,
    .own_mtp_names = true,
    .renames = wb_qwen_delta_renames,
};
