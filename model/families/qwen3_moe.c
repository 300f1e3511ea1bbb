/* qwen3_moe.c - the family qwen3_moe: query and key normalised head by head; layers may be dense. */
#include "config.h"
#include "families/family.h"
#include "layers/layer.h"
#include "wb_check.h"
#include "wb_json.h"

#include <inttypes.h>

static wb_status read_dense_list(const json_t *root, wb_config *c) {
    const json_t *list = wb_json_value(root, "mlp_only_layers");
    if (list && !json_is_array(list))
        return wb_json_wrong_type("mlp_only_layers", list, "a list of integers");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        if (!json_is_integer(value)) return wb_json_wrong_type("mlp_only_layers", value, "integers");
        const int64_t l = json_integer_value(value);
        if (l < 0 || l >= c->n_layers)
            return wb_fail(WB_INVALID_ARGUMENT, "mlp_only_layers: expected 0..%d, found %" PRId64,
                           c->n_layers - 1, l);
        c->moe_layer_mask[l / 64] &= ~(UINT64_C(1) << (l % 64));
    }
    return WB_OK;
}

/* Layer l is MoE unless it is in mlp_only_layers or (l + 1) is no multiple of decoder_sparse_step. */
static wb_status read_layers(const json_t *root, wb_config *c) {
    int32_t step = 1;
    WB_TRY(wb_json_int(root, "decoder_sparse_step", 1, &step));
    WB_TRY(wb_config_in_range("decoder_sparse_step", step, 1, INT32_MAX));
    for (int32_t l = 0; l < c->n_layers; l++)
        if ((l + 1) % step == 0) c->moe_layer_mask[l / 64] |= UINT64_C(1) << (l % 64);
    WB_TRY(read_dense_list(root, c));
    return wb_json_int(root, "intermediate_size", 0, &c->dense_width);
}

static json_t *dense_list(const wb_config *c) {
    json_t *list = json_array();
    for (int32_t l = 0; list && l < c->n_layers; l++) {
        if (!wb_config_is_moe(c, l) && json_array_append_new(list, json_integer(l)) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static int write(const wb_config *c, json_t *root) {
    const int32_t width = c->dense_width > 0 ? c->dense_width : c->expert_width;
    return json_object_set_new(root, "intermediate_size", json_integer(width)) ||
           json_object_set_new(root, "decoder_sparse_step", json_integer(1)) ||
           json_object_set_new(root, "mlp_only_layers", dense_list(c)) ||
           json_object_set_new(root, "use_sliding_window", json_false());
}

static wb_layer_parts layer(const wb_config *c, int32_t l) {
    return (wb_layer_parts){&wb_layer_attention_gqa, wb_config_is_moe(c, l) ? &wb_layer_moe : &wb_layer_mlp};
}

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
    .read = read_layers,
    .write = write,
    .layer = layer,
};
