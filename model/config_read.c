/* config_read.c - config.json to wb_config, in both spellings of Hugging Face transformers (4 and 5).
 * Refuses: any key whose value asks for something that the forward does not do. */
#include "config.h"
#include "wb_check.h"
#include "wb_file.h"
#include "wb_json.h"
#include "wb_text.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX_BYTES ((size_t)16 * 1024 * 1024)

/* How weights lie in the files: FP8 with a scale a block, or MXFP4, which needs no number of its own. */
static wb_status read_quantization(const json_t *root, wb_config *c) {
    const json_t *object = wb_json_value(root, "quantization_config");
    if (!object) return WB_OK;
    const char *method = json_string_value(wb_json_value(object, "quant_method"));
    if (method && strcmp(method, "mxfp4") == 0) return WB_OK;
    const json_t *block = wb_json_value(object, "weight_block_size");
    const char *format = json_string_value(wb_json_value(object, "fmt"));
    if (!method || strcmp(method, "fp8") != 0 || json_array_size(block) != 2 ||
        (format && strcmp(format, "e4m3") != 0))
        return wb_json_unsupported("quantization_config", object,
                                   "quant_method mxfp4, or fp8 of fmt e4m3 with a weight_block_size");
    for (size_t i = 0; i < 2; i++) {
        const json_int_t size = json_integer_value(json_array_get(block, i));
        WB_TRY(wb_config_in_range("weight_block_size", size, 1, INT32_MAX));
        c->weight_block[i] = (int32_t)size;
    }
    return WB_OK;
}

/* Keys that change the function when they have another value than this. */
static wb_status read_unsupported(const json_t *root) {
    const json_t *value = wb_json_value(root, "hidden_act");
    if (value && !(json_is_string(value) && strcmp(json_string_value(value), "silu") == 0))
        return wb_json_unsupported("hidden_act", value, "\"silu\"");
    return WB_OK;
}

static wb_status read_heads(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    if (rules->latent_attention) return wb_config_read_mla(root, c);
    WB_TRY(wb_json_int(root, "num_attention_heads", WB_JSON_REQUIRED, &c->n_heads));
    WB_TRY(wb_config_in_range("num_attention_heads", c->n_heads, 1, INT32_MAX));
    int32_t kv_heads = rules->n_kv_heads > 0 ? rules->n_kv_heads : c->n_heads;
    WB_TRY(wb_json_int(root, "num_key_value_heads", kv_heads, &c->n_kv_heads));
    if (wb_json_value(root, "head_dim") || rules->head_dim > 0)
        return wb_json_int(root, "head_dim", rules->head_dim, &c->head_dim);
    if (c->hidden_size % c->n_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hidden_size: expected a multiple of num_attention_heads %d (no head_dim), found %d",
                       c->n_heads, c->hidden_size);
    c->head_dim = c->hidden_size / c->n_heads;
    return WB_OK;
}

static wb_status read_flag(const json_t *root, const char *key, bool absent, bool *value_out) {
    *value_out = absent;
    return wb_json_value(root, key) ? wb_json_bool(root, key, value_out) : WB_OK;
}

/* A number under any of several keys, up to NULL, of which at least one is there; two that differ are
 * refused. */
static wb_status read_either(const json_t *root, const char *const *keys, int32_t *value_out) {
    const char *first = NULL;
    for (const char *const *key = keys; *key; key++) {
        int32_t value = 0;
        if (!wb_json_value(root, *key)) continue;
        WB_TRY(wb_json_int(root, *key, 0, &value));
        if (first && value != *value_out)
            return wb_fail(WB_INVALID_ARGUMENT, "%s: expected %s %d, found %d", first, *key, value,
                           *value_out);
        if (!first) first = *key;
        *value_out = value;
    }
    return first ? WB_OK : wb_fail(WB_CORRUPT, "%s: expected an integer, found none", *keys);
}

static wb_status read_groups(const json_t *root, const wb_family_rules *rules, wb_router *router) {
    WB_TRY(wb_config_float(root, "routed_scaling_factor", rules->router_scale, &router->scale));
    WB_TRY(wb_json_int(root, "n_group", rules->n_group, &router->n_group));
    return wb_json_int(root, "topk_group", rules->topk_group, &router->topk_group);
}

static wb_status read_router(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    static const char *const experts[] = {"num_experts", "num_local_experts", "n_routed_experts", NULL},
                             *const choices[] = {"num_experts_per_tok", "num_experts_per_token",
                                                 "experts_per_token", NULL};
    bool normalize;
    WB_TRY(read_flag(root, "norm_topk_prob", rules->norm_topk_prob, &normalize));
    c->router = (wb_router){.type = rules->router_types[normalize], .normalize = normalize, .scale = 1.0f};
    WB_TRY(read_either(root, experts, &c->router.n_experts));
    WB_TRY(read_either(root, choices, &c->router.top_k));
    return rules->router_scale > 0 ? read_groups(root, rules, &c->router) : WB_OK;
}

static wb_status read_sizes(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    WB_TRY(wb_json_int(root, "hidden_size", WB_JSON_REQUIRED, &c->hidden_size));
    WB_TRY(wb_json_int(root, "num_hidden_layers", WB_JSON_REQUIRED, &c->n_layers));
    WB_TRY(wb_config_in_range("num_hidden_layers", c->n_layers, 1, WB_MAX_LAYERS));
    WB_TRY(wb_config_read_moe_layers(root, rules->moe_layers, rules->first_dense, c->n_layers,
                                     c->moe_layer_mask));
    WB_TRY(wb_config_read_windows(root, rules, c));
    if (rules->delta_net) WB_TRY(wb_config_read_delta(root, c));
    WB_TRY(read_heads(root, rules, c));
    WB_TRY(wb_json_int(root, rules->expert_width_key, WB_JSON_REQUIRED, &c->expert_width));
    WB_TRY(wb_config_in_range(rules->expert_width_key, c->expert_width, 1, INT32_MAX / 2));
    WB_TRY(wb_json_int(root, "vocab_size", WB_JSON_REQUIRED, &c->vocab_size));
    if (rules->moe_layers != WB_MOE_EVERY_LAYER)
        WB_TRY(wb_json_int(root, "intermediate_size", 0, &c->dense_width));
    return wb_json_int(root, "max_position_embeddings", rules->max_positions, &c->max_positions);
}

wb_status wb_config_parse(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    WB_TRY(read_unsupported(root));
    WB_TRY(read_quantization(root, c));
    WB_TRY(read_sizes(root, rules, c));
    WB_TRY(wb_config_float(root, "rms_norm_eps", rules->norm_eps, &c->norm_eps));
    WB_TRY(rules->read_rope ? rules->read_rope(root, rules, c) : wb_config_read_rope(root, rules, c));
    WB_TRY(read_flag(root, "tie_word_embeddings", rules->tie_word_embeddings, &c->tie_word_embeddings));
    const char *bias = rules->attention_bias_key ? rules->attention_bias_key : "attention_bias";
    WB_TRY(read_flag(root, bias, rules->attention_bias, &c->attention_bias));
    c->qk_norm = rules->qk_norm;
    if (rules->clips && wb_json_value(root, "clip_qkv"))
        WB_TRY(wb_config_float(root, "clip_qkv", 1.0, &c->clip_qkv));
    WB_TRY(read_router(root, rules, c));
    if (rules->read) WB_TRY(rules->read(root, c));
    return wb_config_check_by(c, rules);
}

/* *text: of the file; out, of the part of it that is of the language model. */
static wb_status read_part(json_t *root, const wb_family_rules *rules, wb_config *c, char **text) {
    json_t *part;
    WB_TRY(wb_config_language_part(root, rules, &part));
    wb_status status = wb_config_parse(part, rules, c);
    if (status == WB_OK && part != root) {
        free(*text);
        *text = json_dumps(part, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        if (!*text) status = wb_fail(WB_OUT_OF_MEMORY, "no memory for its text_config");
    }
    json_decref(part);
    return status;
}

wb_status wb_config_family(const json_t *root, wb_family *family_out) {
    const json_t *value = wb_json_value(root, "model_type");
    if (!value) return wb_fail(WB_CORRUPT, "model_type: expected a string, found none");
    if (!json_is_string(value)) return wb_json_wrong_type("model_type", value, "a string");
    return wb_family_find(value, family_out);
}

static wb_status read_root(json_t *root, wb_config *c, char **text) {
    WB_TRY(wb_config_family(root, &c->family));
    return read_part(root, wb_family_rules_of(c->family), c, text);
}

static wb_status read_dir(const char *dir, bool unquantized, wb_config *config_out, char **text_out) {
    char *path = NULL, *text = NULL;
    size_t bytes = 0;
    json_t *root = NULL;
    wb_config config = {0};
    WB_TRY(wb_text_format(&path, "%s/config.json", dir));
    wb_status status = wb_file_read(path, CONFIG_MAX_BYTES, &text, &bytes);
    if (status == WB_OK) status = wb_json_parse(text, bytes, path, &root);
    if (unquantized) json_object_del(root, "quantization_config");
    if (status == WB_OK) {
        status = read_root(root, &config, &text);
        if (status != WB_OK) status = wb_fail_context(status, "%s", path);
    }
    json_decref(root);
    free(path);
    if (status != WB_OK) {
        free(text);
        return status;
    }
    *config_out = config;
    *text_out = text;
    return WB_OK;
}

wb_status wb_config_read(const char *dir, wb_config *config_out, char **text_out) {
    return read_dir(dir, false, config_out, text_out);
}

static wb_status load(const char *dir, bool unquantized, wb_config *config_out) {
    char *text = NULL;
    WB_TRY(read_dir(dir, unquantized, config_out, &text));
    free(text);
    return WB_OK;
}

wb_status wb_config_load(const char *dir, wb_config *config_out) {
    return load(dir, false, config_out);
}

wb_status wb_config_load_unquantized(const char *dir, wb_config *config_out) {
    return load(dir, true, config_out);
}
