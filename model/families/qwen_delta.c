/* qwen_delta.c - see qwen_delta.h. */
#include "families/qwen_delta.h"
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

#include <string.h>

/* Layers for multi-token prediction are found in the files where no key says how many there are. */
static const char mtp_key[] = "mtp_num_hidden_layers";

static wb_status check_flag(const json_t *root, const char *key, bool expected) {
    const json_t *value = wb_json_value(root, key);
    if (!value || (json_is_boolean(value) && json_is_true(value) == expected)) return WB_OK;
    return wb_json_unsupported(key, value, expected ? "true" : "false");
}

/* Newer files say which gate they mean. */
static wb_status check_gate(const json_t *root) {
    const json_t *gate = wb_json_value(root, "output_gate_type");
    WB_TRY(check_flag(root, "attn_output_gate", true));
    if (!gate || (json_is_string(gate) && strcmp(json_string_value(gate), "swish") == 0)) return WB_OK;
    return wb_json_unsupported("output_gate_type", gate, "\"swish\"");
}

wb_status wb_qwen_delta_read(const json_t *root, wb_config *c) {
    if (c->attention_bias)
        return wb_json_unsupported("attention_bias", wb_json_value(root, "attention_bias"), "false");
    WB_TRY(check_gate(root));
    WB_TRY(check_flag(root, "layer_scale", false));
    WB_TRY(check_flag(root, "mtp_use_dedicated_embeddings", false));
    WB_TRY(wb_json_int(root, mtp_key, 0, &c->n_mtp_layers));
    return wb_json_int(root, "shared_expert_intermediate_size", 512, &c->shared_width);
}

wb_status wb_qwen_delta_check(const wb_config *c) {
    return wb_config_in_range("shared_expert_intermediate_size", c->shared_width, 1, INT32_MAX / 2);
}

int wb_qwen_delta_write(const wb_config *c, json_t *root) {
    return json_object_set_new(root, "shared_expert_intermediate_size", json_integer(c->shared_width)) ||
           json_object_set_new(root, mtp_key, json_integer(c->n_mtp_layers));
}

const wb_rename wb_qwen_delta_renames[] = {
    {"mlp.shared_experts.gate_proj.weight", "mlp.shared_expert.gate_proj.weight"},
    {"mlp.shared_experts.up_proj.weight", "mlp.shared_expert.up_proj.weight"},
    {"mlp.shared_experts.down_proj.weight", "mlp.shared_expert.down_proj.weight"},
    {NULL, NULL},
};
