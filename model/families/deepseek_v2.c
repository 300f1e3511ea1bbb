/* deepseek_v2.c - the family deepseek_v2: latent attention, the first layers dense, routers by softmax whose
 * weights are not normalised, limited to groups where topk_method says so; shared experts. */
#include "config.h"
#include "families/family.h"
#include "wb_check.h"
#include "wb_json.h"

#include <string.h>

/* Groups are named in files whose routers do not look at them. */
static wb_status read_method(const json_t *root, wb_router *router) {
    const json_t *method = wb_json_value(root, "topk_method"), *scores = wb_json_value(root, "scoring_func");
    const char *name = method ? json_string_value(method) : "greedy";
    if (scores && !(json_is_string(scores) && strcmp(json_string_value(scores), "softmax") == 0))
        return wb_json_unsupported("scoring_func", scores, "\"softmax\"");
    if (name && strcmp(name, "group_limited_greedy") == 0) return WB_OK;
    if (!name || strcmp(name, "greedy") != 0)
        return wb_json_unsupported("topk_method", method, "\"greedy\" or \"group_limited_greedy\"");
    router->n_group = router->topk_group = 1;
    return WB_OK;
}

static wb_status read(const json_t *root, wb_config *c) {
    /* The reference passes it over, and DeepSeek's own code does not. */
    if (c->router.normalize)
        return wb_json_unsupported("norm_topk_prob", wb_json_value(root, "norm_topk_prob"), "false");
    if (c->attention_bias)
        return wb_json_unsupported("attention_bias", wb_json_value(root, "attention_bias"), "false");
    if (json_is_true(wb_json_value(root, "mlp_bias")))
        return wb_json_unsupported("mlp_bias", wb_json_value(root, "mlp_bias"), "false");
    if (!c->mla.interleaved)
        return wb_json_unsupported("rope_interleave", wb_json_value(root, "rope_interleave"), "true");
    WB_TRY(read_method(root, &c->router));
    return wb_config_read_shared(root, 2, c);
}

static int write(const wb_config *c, json_t *root) {
    const char *method = c->router.n_group > 1 ? "group_limited_greedy" : "greedy";
    return wb_config_write_mla(c, root) || wb_config_write_shared(c, root) ||
           json_object_set_new(root, "topk_method", json_string(method));
}

static const char *const rope_keys[] = {"qk_rope_head_dim", "rope_interleave", NULL};

const wb_family_rules wb_family_deepseek_v2 = {
    .model_type = "deepseek_v2",
    .architecture = "DeepseekV2ForCausalLM",
    .expert_width_key = "moe_intermediate_size",
    .experts_key = "n_routed_experts",
    .qk_norm = WB_QK_NORM_NONE,
    .latent_attention = true,
    .norm_eps = 1e-6,
    .rope_theta = 10000.0,
    .rope_keys = rope_keys,
    .max_positions = 2048,
    .router_types = {WB_ROUTER_SOFTMAX, WB_ROUTER_SOFTMAX},
    .norm_topk_prob = false,
    .router_scale = 1.0,
    .n_group = 1,
    .topk_group = 1,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .moe_layers = WB_MOE_FROM_LAYER,
    .first_dense = 0,
    .n_shared = 2,
    .read = read,
    .write = write,
};
