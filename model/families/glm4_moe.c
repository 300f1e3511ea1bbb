/* glm4_moe.c - the family glm4_moe: the first layers dense, routers by sigmoid with a selection bias and
 * groups, shared experts; half of each head is turned, and query and key are normalised where use_qk_norm
 * says so. */
#include "config.h"
#include "families/family.h"
#include "wb_check.h"
#include "wb_json.h"

static wb_status read(const json_t *root, wb_config *c) {
    bool norm = false;
    WB_TRY(wb_json_bool(root, "use_qk_norm", &norm));
    c->qk_norm = norm ? WB_QK_NORM_PER_HEAD : WB_QK_NORM_NONE;
    WB_TRY(wb_config_read_shared(root, 1, c));
    return wb_json_int(root, "num_nextn_predict_layers", 0, &c->n_mtp_layers);
}

static int write(const wb_config *c, json_t *root) {
    return json_object_set_new(root, "use_qk_norm", json_boolean(c->qk_norm == WB_QK_NORM_PER_HEAD)) ||
           wb_config_write_shared(c, root) ||
           json_object_set_new(root, "num_nextn_predict_layers", json_integer(c->n_mtp_layers));
}

const wb_family_rules wb_family_glm4_moe = {
    .model_type = "glm4_moe",
    .architecture = "Glm4MoeForCausalLM",
    .expert_width_key = "moe_intermediate_size",
    .experts_key = "n_routed_experts",
    .qk_norm = WB_QK_NORM_NONE,
    .qk_norm_varies = true,
    .norm_eps = 1e-5,
    .rope_theta = 10000.0,
    .rotary_factor = 0.5,
    .max_positions = 131072,
    .n_kv_heads = 8,
    .router_types = {WB_ROUTER_SIGMOID, WB_ROUTER_SIGMOID},
    .norm_topk_prob = true,
    .router_scale = 1.0,
    .n_group = 1,
    .topk_group = 1,
    .tie_word_embeddings = false,
    .attention_bias = false,
    .moe_layers = WB_MOE_FROM_LAYER,
    .first_dense = 1,
    .n_shared = 1,
    .read = read,
    .write = write,
    .no_output_bias = true,
    .selection_bias = true,
};
