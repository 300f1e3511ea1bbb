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

/* Keys that change the function when they have another value than this. */
static wb_status read_unsupported(const json_t *root) {
    bool sliding = false;
    const json_t *value = wb_json_value(root, "hidden_act");
    if (value && !(json_is_string(value) && strcmp(json_string_value(value), "silu") == 0))
        return wb_json_unsupported("hidden_act", value, "\"silu\"");
    WB_TRY(wb_json_bool(root, "use_sliding_window", &sliding));
    if (sliding)
        return wb_json_unsupported("use_sliding_window", wb_json_value(root, "use_sliding_window"), "false");
    value = wb_json_value(root, "quantization_config");
    if (value) return wb_json_unsupported("quantization_config", value, "none");
    value = wb_json_value(root, "layer_types");
    if (value && !json_is_array(value)) return wb_json_wrong_type("layer_types", value, "a list");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const char *type = json_string_value(json_array_get(value, i));
        if (!type || strcmp(type, "full_attention") != 0)
            return wb_json_unsupported("layer_types", json_array_get(value, i), "\"full_attention\"");
    }
    return WB_OK;
}

/* A layout by layer type ({"full_attention": {...}}) or a key that plain rope does not have would change the
 * function, and must not be passed over. */
static wb_status check_rope_keys(const json_t *object, const char *owner) {
    static const char *const known[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        bool found = json_is_null(value);
        for (size_t i = 0; !found && i < sizeof known / sizeof known[0]; i++)
            found = strcmp(key, known[i]) == 0;
        if (!found)
            return wb_fail(WB_UNSUPPORTED,
                           "%s: supported are rope_type, rope_theta and partial_rotary_factor, found %s",
                           owner, key);
    }
    return WB_OK;
}

/* An object that may hold rope's parameters asks for plain rope. */
static wb_status check_rope_object(const json_t *root, const char *key) {
    static const char *const type_keys[] = {"rope_type", "type"};
    const json_t *object = wb_json_value(root, key);
    if (!object) return WB_OK;
    if (!json_is_object(object)) return wb_json_wrong_type(key, object, "an object");
    for (size_t i = 0; i < 2; i++) {
        const json_t *type = wb_json_value(object, type_keys[i]);
        if (type && !(json_is_string(type) && strcmp(json_string_value(type), "default") == 0))
            return wb_fail_context(wb_json_unsupported(type_keys[i], type, "\"default\""), "%s", key);
    }
    return check_rope_keys(object, key);
}

/* Whether "rope" is one of the words of a key, which "_" parts. */
static bool is_about_rope(const char *key) {
    for (const char *at = strstr(key, "rope"); at; at = strstr(at + 4, "rope"))
        if ((at == key || at[-1] == '_') && (at[4] == '\0' || at[4] == '_')) return true;
    return false;
}

/* Another key about rope at the top (rope_local_base_freq, no_rope_layers) is of another layout. */
static wb_status check_top_rope_keys(const json_t *root) {
    static const char *const known[] = {"rope_theta", "rope_scaling", "rope_parameters"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)root, key, value) {
        bool passed = json_is_null(value) || json_is_false(value) || !is_about_rope(key);
        for (size_t i = 0; !passed && i < sizeof known / sizeof known[0]; i++)
            passed = strcmp(key, known[i]) == 0;
        if (!passed) return wb_json_unsupported(key, value, "none");
    }
    return WB_OK;
}

/* The places that may hold rope's parameters; NULL: the top. */
static const char *const rope_places[] = {NULL, "rope_scaling", "rope_parameters"};
enum { N_ROPE_PLACES = sizeof rope_places / sizeof rope_places[0] };

static const json_t *rope_place(const json_t *root, size_t i) {
    return rope_places[i] ? wb_json_value(root, rope_places[i]) : root;
}

/* One number: where places differ in it, loaders differ in which of them they take. */
static wb_status read_rope_theta(const json_t *root, double absent, double *theta_out) {
    size_t first = N_ROPE_PLACES;
    *theta_out = absent;
    for (size_t i = 0; i < N_ROPE_PLACES; i++) {
        const json_t *place = rope_place(root, i);
        double theta = 0;
        if (!wb_json_value(place, "rope_theta")) continue;
        const wb_status status = wb_json_number(place, "rope_theta", 0, &theta);
        if (status != WB_OK) return rope_places[i] ? wb_fail_context(status, "%s", rope_places[i]) : status;
        if (first < N_ROPE_PLACES && theta != *theta_out)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "rope_theta: expected one number, found %.9g %s%s and %.9g in %s", *theta_out,
                           rope_places[first] ? "in " : "at the top",
                           rope_places[first] ? rope_places[first] : "", theta, rope_places[i]);
        *theta_out = theta;
        first = i;
    }
    return WB_OK;
}

static wb_status read_rope(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    WB_TRY(check_top_rope_keys(root));
    WB_TRY(check_rope_object(root, "rope_scaling"));
    WB_TRY(check_rope_object(root, "rope_parameters"));
    WB_TRY(read_rope_theta(root, rules->rope_theta, &c->rope_theta));
    for (size_t i = 0; i < N_ROPE_PLACES; i++) {
        double partial = 1.0;
        const json_t *place = rope_place(root, i);
        WB_TRY(wb_json_number(place, "partial_rotary_factor", 1.0, &partial));
        if (partial != 1.0)
            return wb_json_unsupported("partial_rotary_factor", wb_json_value(place, "partial_rotary_factor"),
                                       "1");
    }
    return WB_OK;
}

static wb_status read_heads(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    WB_TRY(wb_json_int(root, "num_attention_heads", WB_JSON_REQUIRED, &c->n_heads));
    WB_TRY(wb_config_in_range("num_attention_heads", c->n_heads, 1, INT32_MAX));
    int32_t kv_heads = rules->n_kv_heads > 0 ? rules->n_kv_heads : c->n_heads;
    WB_TRY(wb_json_int(root, "num_key_value_heads", kv_heads, &c->n_kv_heads));
    if (!wb_json_value(root, "head_dim") && c->hidden_size % c->n_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hidden_size: expected a multiple of num_attention_heads %d (no head_dim), found %d",
                       c->n_heads, c->hidden_size);
    return wb_json_int(root, "head_dim", c->hidden_size / c->n_heads, &c->head_dim);
}

static wb_status read_flag(const json_t *root, const char *key, bool absent, bool *value_out) {
    *value_out = absent;
    return wb_json_value(root, key) ? wb_json_bool(root, key, value_out) : WB_OK;
}

/* Two keys of one number, of which at least one is there; two that differ are refused. */
static wb_status read_either(const json_t *root, const char *key, const char *other, int32_t *value_out) {
    int32_t value = 0, second = 0;
    if (!wb_json_value(root, key) && !wb_json_value(root, other))
        return wb_fail(WB_CORRUPT, "%s: expected an integer, found none", key);
    WB_TRY(wb_json_int(root, key, 0, &value));
    WB_TRY(wb_json_int(root, other, value, &second));
    if (wb_json_value(root, key) && value != second)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected %s %d, found %d", key, other, second, value);
    *value_out = second;
    return WB_OK;
}

static wb_status read_router(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    bool normalize;
    int32_t experts;
    WB_TRY(read_either(root, "num_experts", "num_local_experts", &experts));
    WB_TRY(read_flag(root, "norm_topk_prob", rules->norm_topk_prob, &normalize));
    c->router = (wb_router){.type = rules->router_types[normalize], .n_experts = experts, .scale = 1.0f};
    return read_either(root, "num_experts_per_tok", "num_experts_per_token", &c->router.top_k);
}

static wb_status read_sizes(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    WB_TRY(wb_json_int(root, "hidden_size", WB_JSON_REQUIRED, &c->hidden_size));
    WB_TRY(wb_json_int(root, "num_hidden_layers", WB_JSON_REQUIRED, &c->n_layers));
    WB_TRY(wb_config_in_range("num_hidden_layers", c->n_layers, 1, WB_MAX_LAYERS));
    WB_TRY(rules->read(root, c));
    WB_TRY(read_heads(root, rules, c));
    WB_TRY(wb_json_int(root, rules->expert_width_key, WB_JSON_REQUIRED, &c->expert_width));
    WB_TRY(wb_config_in_range(rules->expert_width_key, c->expert_width, 1, INT32_MAX / 2));
    WB_TRY(wb_json_int(root, "vocab_size", WB_JSON_REQUIRED, &c->vocab_size));
    return wb_json_int(root, "max_position_embeddings", rules->max_positions, &c->max_positions);
}

wb_status wb_config_parse(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    WB_TRY(read_unsupported(root));
    WB_TRY(read_sizes(root, rules, c));
    WB_TRY(wb_config_float(root, "rms_norm_eps", rules->norm_eps, &c->norm_eps));
    WB_TRY(read_rope(root, rules, c));
    WB_TRY(read_flag(root, "tie_word_embeddings", rules->tie_word_embeddings, &c->tie_word_embeddings));
    WB_TRY(read_flag(root, "attention_bias", rules->attention_bias, &c->attention_bias));
    c->qk_norm = rules->qk_norm;
    if (rules->clips && wb_json_value(root, "clip_qkv"))
        WB_TRY(wb_config_float(root, "clip_qkv", 1.0, &c->clip_qkv));
    WB_TRY(read_router(root, rules, c));
    return wb_config_check_by(c, rules);
}

static wb_status read_root(const json_t *root, wb_config *c) {
    const json_t *value = wb_json_value(root, "model_type");
    if (!value) return wb_fail(WB_CORRUPT, "model_type: expected a string, found none");
    if (!json_is_string(value)) return wb_json_wrong_type("model_type", value, "a string");
    WB_TRY(wb_family_find(value, &c->family));
    return wb_config_parse(root, wb_family_rules_of(c->family), c);
}

wb_status wb_config_read(const char *dir, wb_config *config_out, char **text_out) {
    char *path = NULL, *text = NULL;
    size_t bytes = 0;
    json_t *root = NULL;
    wb_config config = {0};
    WB_TRY(wb_text_format(&path, "%s/config.json", dir));
    wb_status status = wb_file_read(path, CONFIG_MAX_BYTES, &text, &bytes);
    if (status == WB_OK) status = wb_json_parse(text, bytes, path, &root);
    if (status == WB_OK) {
        status = read_root(root, &config);
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

wb_status wb_config_load(const char *dir, wb_config *config_out) {
    char *text = NULL;
    WB_TRY(wb_config_read(dir, config_out, &text));
    free(text);
    return WB_OK;
}
