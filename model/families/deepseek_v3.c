/* deepseek_v3.c - the family deepseek_v3: latent attention, the first layers dense, routers by sigmoid with a
 * selection bias and groups, shared experts, layers for multi-token prediction. Kimi-K2, Moonlight and the
 * R1 models are of it. */
#include "config.h"
#include "families/family.h"
#include "wb_check.h"
#include "wb_json.h"

#include <string.h>

static wb_status check_text(const json_t *root, const char *key, const char *expected) {
    const json_t *value = wb_json_value(root, key);
    if (!value || (json_is_string(value) && strcmp(json_string_value(value), expected) == 0)) return WB_OK;
    return wb_json_unsupported(key, value, expected);
}

static wb_status read(const json_t *root, wb_config *c) {
    if (c->attention_bias)
        return wb_json_unsupported("attention_bias", wb_json_value(root, "attention_bias"), "false");
    WB_TRY(check_text(root, "scoring_func", "sigmoid"));
    WB_TRY(check_text(root, "topk_method", "noaux_tc"));
    WB_TRY(wb_config_read_shared(root, 1, c));
    return wb_json_int(root, "num_nextn_predict_layers", 0, &c->n_mtp_layers);
}

static int write(const wb_config *c, json_t *root) {
    return wb_config_write_mla(c, root) || wb_config_write_shared(c, root) ||
           json_object_set_new(root, "scoring_func", json_string("sigmoid")) ||
           json_object_set_new(root, "topk_method", json_string("noaux_tc")) ||
           json_object_set_new(root, "num_nextn_predict_layers", json_integer(c->n_mtp_layers));
}

static const char *const other_types[] = {"kimi_k2", NULL};
static const char *const rope_keys[] = {"qk_rope_head_dim", "rope_interleave", NULL};

const wb_family_rules wb_family_deepseek_v3 = {
    .model_type = "deepseek_v3",
    .architecture = "DeepseekV3ForCausalLM",
    .other_types = other_types,
    .expert_width_key = "moe_intermediate_size",
    .experts_key = "n_routed_experts",
    .qk_norm = WB_QK_NORM_NONE,
    .latent_attention = true,
    .norm_eps = 1e-6,
    .rope_theta = 10000.0,
    .rope_keys = rope_keys,
    .max_positions = 4096,
    .router_types = {WB_ROUTER_SIGMOID, WB_ROUTER_SIGMOID},
    .norm_topk_prob = true,
    .router_scale = 2.5,
    .n_group = 8,
    .topk_group = 4,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .moe_layers = WB_MOE_FROM_LAYER,
    .first_dense = 3,
    .n_shared = 1,
    .read = read,
    .write = write,
    .selection_bias = true,
};
