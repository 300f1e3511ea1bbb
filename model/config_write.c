/* config_write.c - wb_config to the text of a config.json. Refuses: files. */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"
#include "wb_text.h"

#include <stdlib.h>
#include <string.h>

/* Where the type of the router does not say it, the router does. */
static bool normalizes(const wb_config *c, const wb_family_rules *rules) {
    const wb_router_type *types = rules->router_types;
    return types[0] == types[1] ? c->router.normalize : c->router.type == types[1];
}

static int32_t at_least_one(int32_t n) {
    return n > 1 ? n : 1;
}

/* The released spelling, which transformers 4 and 5 both read. NULL: no memory. */
static json_t *make_root(const wb_config *c, const wb_family_rules *rules, const char *dtype) {
    const char *bias = rules->attention_bias_key ? rules->attention_bias_key : "attention_bias";
    const char *experts = rules->experts_key ? rules->experts_key : "num_experts";
    json_t *root = json_pack(
        "{s:[s], s:s, s:s, s:s, s:b, s:f, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:o, s:b, s:b, "
        "s:n, "
        "s:n, s:n}",
        "architectures", rules->architecture, "model_type", wb_family_file_type(rules), "torch_dtype", dtype,
        "hidden_act", "silu", bias, c->attention_bias, "attention_dropout", 0.0, "hidden_size",
        c->hidden_size, "num_hidden_layers", c->n_layers, "num_attention_heads", c->n_heads,
        "num_key_value_heads", c->n_kv_heads, "vocab_size", c->vocab_size, "max_position_embeddings",
        c->max_positions, experts, c->router.n_experts, "num_experts_per_tok", c->router.top_k,
        "norm_topk_prob", normalizes(c, rules), "rms_norm_eps", wb_json_real(c->norm_eps),
        "tie_word_embeddings", c->tie_word_embeddings, "use_cache", 1, "bos_token_id", "eos_token_id",
        "pad_token_id"); /* not this model's to know */
    int failed = !root || json_object_set_new(root, rules->expert_width_key, json_integer(c->expert_width));
    /* Of latent attention transformers takes head_dim for the dimensions that are turned. */
    if (!failed && !rules->latent_attention)
        failed = json_object_set_new(root, "head_dim", json_integer(c->head_dim));
    if (!failed)
        failed = wb_config_write_moe_layers(c, rules, root) || wb_config_write_rope(c, rules, root) ||
                 wb_config_write_windows(c, rules, root);
    if (!failed && rules->router_scale > 0)
        failed = json_object_set_new(root, "routed_scaling_factor", wb_json_real(c->router.scale)) ||
                 json_object_set_new(root, "n_group", json_integer(at_least_one(c->router.n_group))) ||
                 json_object_set_new(root, "topk_group", json_integer(at_least_one(c->router.topk_group)));
    if (!failed && rules->delta_net) failed = wb_config_write_delta(c, root);
    if (!failed && rules->write) failed = rules->write(c, root);
    if (!failed && rules->clips)
        failed =
            json_object_set_new(root, "clip_qkv", c->clip_qkv > 0 ? wb_json_real(c->clip_qkv) : json_null());
    if (failed) {
        json_decref(root);
        return NULL;
    }
    return root;
}

/* Sets the dtype under the names that are there; *changed_out tells whether any differed. */
static int set_dtype(json_t *root, const char *dtype, bool *changed_out) {
    static const char *const keys[] = {"dtype", "torch_dtype"};
    int failed = 0, found = 0;
    *changed_out = false;
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = json_object_get(root, keys[i]);
        if (!value) continue;
        found = 1;
        if (json_is_string(value) && strcmp(json_string_value(value), dtype) == 0) continue;
        *changed_out = true;
        failed |= json_object_set_new(root, keys[i], json_string(dtype));
    }
    if (found) return failed;
    *changed_out = true;
    return json_object_set_new(root, "torch_dtype", json_string(dtype));
}

/* What is true of the files that the text was of and not of a save: that weights are quantized, and that
 * deepseek_v4's experts are so otherwise than the rest. */
static int drop_files(json_t *root, bool *changed) {
    static const char *const keys[] = {"quantization_config", "expert_dtype"};
    int failed = 0;
    for (size_t i = 0; i < 2; i++) {
        if (!json_object_get(root, keys[i])) continue;
        *changed = true;
        failed |= json_object_del(root, keys[i]);
    }
    return failed;
}

wb_status wb_config_text(const wb_config *config, const wb_family_rules *rules, const char *source,
                         wb_dtype dtype, char **text_out) {
    const char *name = dtype == WB_BF16 ? "bfloat16" : "float32";
    json_t *root = NULL;
    bool changed = true;
    if (source) {
        WB_TRY(wb_json_parse(source, strlen(source), "config.json", &root));
        if (set_dtype(root, name, &changed) || drop_files(root, &changed)) {
            json_decref(root);
            return wb_fail(WB_OUT_OF_MEMORY, "config.json: no memory to write it");
        }
        if (!changed) {
            json_decref(root);
            return wb_text_format(text_out, "%s", source);
        }
    } else {
        if (!rules->layer_choices && (config->n_weightless > 0 || config->layer_top_k[0] > 0))
            return wb_fail(WB_UNSUPPORTED,
                           "config.json: %s has no keys for experts without weights or layers of their own K",
                           rules->model_type);
        root = make_root(config, rules, name);
    }
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(root);
    if (!text) return wb_fail(WB_OUT_OF_MEMORY, "config.json: no memory to write it");
    wb_status status = wb_text_format(text_out, "%s\n", text);
    free(text);
    return status;
}
