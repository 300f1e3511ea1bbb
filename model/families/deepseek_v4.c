/* deepseek_v4.c - the family deepseek_v4: hyper-connections, attention over a window and over compressed
 * entries (config_compressed.c), experts in every layer, of which the first layers' are a table by token id.
 * Tensors are called as transformers saves them, and found as they are released too. */
#include "config.h"
#include "families/family.h"
#include "layers/layer.h"
#include "wb_check.h"
#include "wb_json.h"

#include <string.h>

static wb_status check_false(const json_t *root, const char *key) {
    const json_t *value = wb_json_value(root, key);
    return json_is_true(value) ? wb_json_unsupported(key, value, "false") : WB_OK;
}

/* What a file may say and every model of the family is. */
static wb_status check_fixed(const json_t *root, const wb_config *c) {
    const json_t *scores = wb_json_value(root, "scoring_func"),
                 *shared = wb_json_value(root, "n_shared_experts");
    if (scores && !(json_is_string(scores) && strcmp(json_string_value(scores), "sqrtsoftplus") == 0))
        return wb_json_unsupported("scoring_func", scores, "\"sqrtsoftplus\"");
    if (shared && !(json_is_integer(shared) && json_integer_value(shared) == 1))
        return wb_json_unsupported("n_shared_experts", shared, "1");
    if (!c->router.normalize)
        return wb_json_unsupported("norm_topk_prob", wb_json_value(root, "norm_topk_prob"), "true");
    WB_TRY(check_false(root, "attention_bias"));
    return check_false(root, "mlp_bias");
}

static wb_status read(const json_t *root, wb_config *c) {
    WB_TRY(check_fixed(root, c));
    WB_TRY(wb_config_in_range("sliding_window", c->window, 1, INT32_MAX));
    WB_TRY(wb_config_in_range("n_group", c->router.n_group, 1, 1));
    c->shared_width = c->expert_width;
    WB_TRY(wb_config_float(root, "swiglu_limit", wb_family_deepseek_v4.swiglu_limit, &c->swiglu_limit));
    WB_TRY(wb_json_int(root, "hc_mult", 4, &c->hyper.n_streams));
    WB_TRY(wb_json_int(root, "hc_sinkhorn_iters", 20, &c->hyper.iterations));
    WB_TRY(wb_config_float(root, "hc_eps", 1e-6, &c->hyper.eps));
    return wb_config_read_compressed(root, c);
}

static wb_status check(const wb_config *c) {
    WB_TRY(wb_config_in_range("hc_mult", c->hyper.n_streams, 1, WB_MAX_STREAMS));
    WB_TRY(wb_config_in_range("hc_sinkhorn_iters", c->hyper.iterations, 1, WB_MAX_SINKHORN));
    WB_TRY(wb_config_positive("hc_eps", (double)c->hyper.eps));
    return wb_config_in_range("num_key_value_heads", c->n_kv_heads, 1, 1);
}

static int write(const wb_config *c, json_t *root) {
    return wb_config_write_compressed(c, root) || wb_config_write_shared(c, root) ||
           json_object_set_new(root, "scoring_func", json_string("sqrtsoftplus")) ||
           json_object_set_new(root, "swiglu_limit", wb_json_real(c->swiglu_limit)) ||
           json_object_set_new(root, "hc_mult", json_integer(c->hyper.n_streams)) ||
           json_object_set_new(root, "hc_sinkhorn_iters", json_integer(c->hyper.iterations)) ||
           json_object_set_new(root, "hc_eps", wb_json_real(c->hyper.eps));
}

static wb_layer_parts layer(const wb_config *config, int32_t l) {
    const bool has_entries = wb_config_compress_rate(config, l) > 0;
    return (wb_layer_parts){wb_config_is_sparse(config, l) ? &wb_layer_attention_sparse
                            : has_entries                  ? &wb_layer_attention_heavy
                                                           : &wb_layer_attention_window,
                            &wb_layer_moe};
}

static const char *const rope_keys[] = {"qk_rope_head_dim", "compress_rope_theta", NULL};

static const wb_rename renames[] = {
    {"lm_head.weight", "head.weight"},
    {"input_layernorm.weight", "attn_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"attn_hc.fn", "hc_attn_fn"},
    {"attn_hc.base", "hc_attn_base"},
    {"attn_hc.scale", "hc_attn_scale"},
    {"ffn_hc.fn", "hc_ffn_fn"},
    {"ffn_hc.base", "hc_ffn_base"},
    {"ffn_hc.scale", "hc_ffn_scale"},
    {"self_attn.q_a_proj.weight", "attn.wq_a.weight"},
    {"self_attn.q_a_norm.weight", "attn.q_norm.weight"},
    {"self_attn.q_b_proj.weight", "attn.wq_b.weight"},
    {"self_attn.kv_proj.weight", "attn.wkv.weight"},
    {"self_attn.kv_norm.weight", "attn.norm.weight"},
    {"self_attn.o_a_proj.weight", "attn.wo_a.weight"},
    {"self_attn.o_b_proj.weight", "attn.wo_b.weight"},
    {"self_attn.sinks", "attn.attn_sink"},
    {"self_attn.compressor.kv_proj.weight", "attn.compressor.wkv.weight"},
    {"self_attn.compressor.gate_proj.weight", "attn.compressor.wgate.weight"},
    {"self_attn.compressor.position_bias", "attn.compressor.ape"},
    {"self_attn.compressor.kv_norm.weight", "attn.compressor.norm.weight"},
    {"self_attn.compressor.indexer.kv_proj.weight", "attn.indexer.compressor.wkv.weight"},
    {"self_attn.compressor.indexer.gate_proj.weight", "attn.indexer.compressor.wgate.weight"},
    {"self_attn.compressor.indexer.position_bias", "attn.indexer.compressor.ape"},
    {"self_attn.compressor.indexer.kv_norm.weight", "attn.indexer.compressor.norm.weight"},
    {"self_attn.compressor.indexer.q_b_proj.weight", "attn.indexer.wq_b.weight"},
    {"self_attn.compressor.indexer.scorer.weights_proj.weight", "attn.indexer.weights_proj.weight"},
    {"mlp.gate.weight", "ffn.gate.weight"},
    {"mlp.gate.e_score_correction_bias", "ffn.gate.bias"},
    {"mlp.gate.tid2eid", "ffn.gate.tid2eid"},
    {"mlp.experts", "ffn.experts"},
    {"gate_proj.weight", "w1.weight"},
    {"down_proj.weight", "w2.weight"},
    {"up_proj.weight", "w3.weight"},
    {"mlp.shared_experts.gate_proj.weight", "ffn.shared_experts.w1.weight"},
    {"mlp.shared_experts.down_proj.weight", "ffn.shared_experts.w2.weight"},
    {"mlp.shared_experts.up_proj.weight", "ffn.shared_experts.w3.weight"},
    {NULL, NULL},
};

static const wb_rename released[] = {
    {"model.embed_tokens.weight", "embed.weight"}, {"model.norm.weight", "norm.weight"},
    {"model.hc_head.hc_fn", "hc_head_fn"},         {"model.hc_head.hc_base", "hc_head_base"},
    {"model.hc_head.hc_scale", "hc_head_scale"},   {"model.layers", "layers"},
    {"attn.norm.weight", "attn.kv_norm.weight"},   {NULL, NULL},
};

const wb_family_rules wb_family_deepseek_v4 = {
    .model_type = "deepseek_v4",
    .architecture = "DeepseekV4ForCausalLM",
    .expert_width_key = "moe_intermediate_size",
    .experts_key = "n_routed_experts",
    .qk_norm = WB_QK_NORM_NONE,
    .norm_eps = 1e-6,
    .rope_theta = 10000.0,
    .rope_keys = rope_keys,
    .compressed = true,
    .rotary_factor = 0.125,
    .max_positions = 1048576,
    .n_kv_heads = 1,
    .head_dim = 512,
    .router_types = {WB_ROUTER_SQRTSOFTPLUS, WB_ROUTER_SQRTSOFTPLUS},
    .norm_topk_prob = true,
    .router_scale = 1.5,
    .n_group = 1,
    .topk_group = 1,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .moe_layers = WB_MOE_EVERY_LAYER,
    .n_shared = 1,
    .windows = WB_WINDOW_ALL_KINDS,
    .window = 128,
    .swiglu_limit = 10,
    .read_rope = wb_config_read_two_ropes,
    .read = read,
    .check = check,
    .write = write,
    .layer = layer,
    .selection_bias = true,
    .renames = renames,
    .released = released,
    .passed_over = "mtp.",
};
