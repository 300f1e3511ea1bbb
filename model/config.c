/* config.c - config.json to wb_config and back, in both spellings of Hugging Face transformers (4 and 5).
 * Refuses: weights; any key whose value asks for something that the forward does not do. */
#include "checkpoint.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX_BYTES ((size_t)16 * 1024 * 1024)
#define MAX_LAYERS 1024

/* What the model types differ in. */
typedef struct family {
    const char *model_type, *architecture;
    const char *expert_width; /* key of F */
    wb_qk_norm qk_norm;
    double default_eps;
    int32_t default_max_positions;
    int32_t default_kv_heads; /* 0: as many as heads */
    bool dense_layers, clips;
} family;

static const family families[] = {
    [WB_FAMILY_QWEN3_MOE] = {"qwen3_moe", "Qwen3MoeForCausalLM", "moe_intermediate_size", WB_QK_NORM_PER_HEAD,
                             1e-6, 32768, 4, true, false},
    [WB_FAMILY_OLMOE] = {"olmoe", "OlmoeForCausalLM", "intermediate_size", WB_QK_NORM_WHOLE, 1e-5, 4096, 0,
                         false, true},
};
#define N_FAMILIES (sizeof families / sizeof families[0])

const char *wb_family_name(wb_family name) {
    return (size_t)name < N_FAMILIES ? families[name].model_type : "unknown";
}

bool wb_config_is_moe(const wb_config *config, int32_t layer) {
    return layer >= 0 && layer < MAX_LAYERS && (config->moe_layer_mask[layer / 64] >> (layer % 64) & 1u);
}

/* ---- check --------------------------------------------------------------------------------------- */

static wb_status check_range(const char *key, int64_t found, int64_t least, int64_t most) {
    if (found >= least && found <= most) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected %lld..%lld, found %lld", key, (long long)least,
                   (long long)most, (long long)found);
}

static wb_status check_positive(const char *key, double found) {
    if (isfinite(found) && found > 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected a number above 0, found %g", key, found);
}

static wb_status check_sizes(const wb_config *c) {
    WB_TRY(check_range("hidden_size", c->hidden_size, 1, INT32_MAX));
    WB_TRY(check_range("num_hidden_layers", c->n_layers, 1, MAX_LAYERS));
    WB_TRY(check_range("num_attention_heads", c->n_heads, 1, INT32_MAX));
    WB_TRY(check_range("num_key_value_heads", c->n_kv_heads, 1, c->n_heads));
    if (c->n_heads % c->n_kv_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "num_attention_heads: expected a multiple of num_key_value_heads %d, found %d",
                       c->n_kv_heads, c->n_heads);
    WB_TRY(check_range("head_dim", c->head_dim, 2, INT32_MAX / c->n_heads));
    if (c->head_dim % 2 != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "head_dim: expected an even number, found %d", c->head_dim);
    WB_TRY(check_range("expert width", c->expert_width, 1, INT32_MAX / 2));
    WB_TRY(check_range("vocab_size", c->vocab_size, 1, INT32_MAX));
    return check_range("max_position_embeddings", c->max_positions, 1, INT32_MAX);
}

static int32_t count_moe_layers(const wb_config *c) {
    int32_t n = 0;
    for (int32_t l = 0; l < c->n_layers; l++) n += wb_config_is_moe(c, l);
    return n;
}

static wb_status check_layers(const wb_config *c, const family *f) {
    for (int32_t l = c->n_layers; l < MAX_LAYERS; l++)
        if (wb_config_is_moe(c, l))
            return wb_fail(WB_INVALID_ARGUMENT, "moe layers: expected < %d, found layer %d", c->n_layers, l);
    int32_t n_moe = count_moe_layers(c);
    if (n_moe == 0) return wb_fail(WB_INVALID_ARGUMENT, "moe layers: expected at least one, found none");
    if (n_moe == c->n_layers) return check_range("intermediate_size", c->dense_width, 0, INT32_MAX / 2);
    if (!f->dense_layers)
        return wb_fail(WB_INVALID_ARGUMENT, "moe layers: expected all %d of %s, found %d", c->n_layers,
                       f->model_type, n_moe);
    return check_range("intermediate_size", c->dense_width, 1, INT32_MAX / 2);
}

static wb_status check_router(const wb_config *c) {
    const wb_router *r = &c->router;
    WB_TRY(check_range("num_experts", r->n_experts, 1, 65536));
    WB_TRY(check_range("num_experts_per_tok", r->top_k, 1, r->n_experts < 64 ? r->n_experts : 64));
    if (r->type != WB_ROUTER_SOFTMAX && r->type != WB_ROUTER_SOFTMAX_NORM)
        return wb_fail(WB_UNSUPPORTED, "router: expected softmax or softmax_norm, found type %d",
                       (int)r->type);
    if (r->n_group > 1 || r->scale != 1.0f)
        return wb_fail(WB_UNSUPPORTED, "router: expected no groups and scale 1, found %d groups and scale %g",
                       r->n_group, (double)r->scale);
    return wb_router_check(r);
}

/* Element counts are products of up to four 31-bit factors: exact enough as doubles to keep them below 2^60,
 * so that no product of sizes overflows anywhere else. */
static wb_status check_total(const wb_config *c) {
    double H = c->hidden_size, q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    double moe = (double)c->router.n_experts * (H + 3 * H * c->expert_width);
    double layer = 2 * H * q + 2 * H * kv + 4 * (H + q + kv) + moe + 3 * H * c->dense_width;
    double all = layer * c->n_layers + 2 * H * c->vocab_size + H + (double)c->max_positions * c->head_dim;
    if (all < 0x1p60) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "sizes: expected fewer than 2^60 elements in all, found %g", all);
}

wb_status wb_config_check(const wb_config *c) {
    if ((size_t)c->family >= N_FAMILIES)
        return wb_fail(WB_INVALID_ARGUMENT, "family: expected 0..%zu, found %d", N_FAMILIES - 1,
                       (int)c->family);
    const family *f = &families[c->family];
    WB_TRY(check_sizes(c));
    WB_TRY(check_positive("rms_norm_eps", (double)c->norm_eps));
    WB_TRY(check_positive("rope_theta", c->rope_theta));
    if (c->qk_norm != f->qk_norm)
        return wb_fail(WB_INVALID_ARGUMENT, "qk_norm: expected %d for %s, found %d", (int)f->qk_norm,
                       f->model_type, (int)c->qk_norm);
    /* A norm over all heads is hidden_size wide in every checkpoint of this kind. */
    if (c->qk_norm == WB_QK_NORM_WHOLE && (int64_t)c->n_heads * c->head_dim != c->hidden_size)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "head_dim: expected hidden_size %d / num_attention_heads %d for %s, found %d",
                       c->hidden_size, c->n_heads, f->model_type, c->head_dim);
    if (c->clip_qkv != 0.0f) WB_TRY(check_positive("clip_qkv", (double)c->clip_qkv));
    if (c->clip_qkv != 0.0f && !f->clips)
        return wb_fail(WB_INVALID_ARGUMENT, "clip_qkv: expected none for %s, found %g", f->model_type,
                       (double)c->clip_qkv);
    WB_TRY(check_layers(c, f));
    WB_TRY(check_router(c));
    return check_total(c);
}

/* ---- values of config.json ------------------------------------------------------------------- */

/* A value as it stands in the file, cut to fit a message. */
typedef struct shown {
    char text[80];
} shown;

static shown show(const json_t *value) {
    shown s;
    size_t n = json_dumpb(value, s.text, sizeof s.text - 1, JSON_ENCODE_ANY | JSON_COMPACT);
    if (n >= sizeof s.text) memcpy(s.text + sizeof s.text - 5, "...", 4);
    s.text[n < sizeof s.text ? n : sizeof s.text - 2] = '\0';
    return s;
}

static wb_status wrong_type(const char *key, const json_t *value, const char *expected) {
    return wb_fail(WB_CORRUPT, "%s: expected %s, found %s", key, expected, show(value).text);
}

static wb_status unsupported(const char *key, const json_t *value, const char *expected) {
    return wb_fail(WB_UNSUPPORTED, "%s: supported is %s, found %s", key, expected, show(value).text);
}

/* The value of a key, NULL when absent or null. */
static const json_t *value_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

#define REQUIRED (-1)

/* An integer >= 0 that fits; finer ranges are wb_config_check's. `fallback` REQUIRED: must be there. */
static wb_status get_int(const json_t *object, const char *key, int32_t fallback, int32_t *out) {
    const json_t *value = value_of(object, key);
    if (!value) {
        if (fallback == REQUIRED) return wb_fail(WB_CORRUPT, "%s: expected an integer, found none", key);
        *out = fallback;
        return WB_OK;
    }
    if (!json_is_integer(value)) return wrong_type(key, value, "an integer");
    json_int_t number = json_integer_value(value);
    if (number < 0 || number > INT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected 0..%d, found %s", key, INT32_MAX, show(value).text);
    *out = (int32_t)number;
    return WB_OK;
}

static wb_status get_number(const json_t *object, const char *key, double fallback, double *out) {
    const json_t *value = value_of(object, key);
    if (value && !json_is_number(value)) return wrong_type(key, value, "a number");
    *out = value ? json_number_value(value) : fallback;
    return WB_OK;
}

static wb_status get_bool(const json_t *object, const char *key, bool *out) {
    const json_t *value = value_of(object, key);
    if (value && !json_is_boolean(value)) return wrong_type(key, value, "true or false");
    *out = json_is_true(value);
    return WB_OK;
}

/* A float that must not vanish or overflow on the way from a double. */
static wb_status get_float(const json_t *object, const char *key, double fallback, float *out) {
    double number = 0;
    WB_TRY(get_number(object, key, fallback, &number));
    WB_TRY(check_positive(key, number));
    WB_TRY(check_positive(key, (double)(float)number));
    *out = (float)number;
    return WB_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

static wb_status read_family(const json_t *root, wb_config *c) {
    const json_t *value = value_of(root, "model_type");
    if (!value) return wb_fail(WB_CORRUPT, "model_type: expected a string, found none");
    if (!json_is_string(value)) return wrong_type("model_type", value, "a string");
    for (size_t i = 0; i < N_FAMILIES; i++) {
        if (strcmp(json_string_value(value), families[i].model_type) == 0) {
            c->family = (wb_family)i;
            return WB_OK;
        }
    }
    return unsupported("model_type", value, "qwen3_moe and olmoe");
}

/* Keys that change the function when they have another value than this. */
static wb_status read_unsupported(const json_t *root) {
    bool sliding = false;
    const json_t *value = value_of(root, "hidden_act");
    if (value && !(json_is_string(value) && strcmp(json_string_value(value), "silu") == 0))
        return unsupported("hidden_act", value, "\"silu\"");
    WB_TRY(get_bool(root, "use_sliding_window", &sliding));
    if (sliding) return unsupported("use_sliding_window", value_of(root, "use_sliding_window"), "false");
    value = value_of(root, "quantization_config");
    if (value) return unsupported("quantization_config", value, "none");
    value = value_of(root, "layer_types");
    if (value && !json_is_array(value)) return wrong_type("layer_types", value, "a list");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const char *type = json_string_value(json_array_get(value, i));
        if (!type || strcmp(type, "full_attention") != 0)
            return unsupported("layer_types", json_array_get(value, i), "\"full_attention\"");
    }
    return WB_OK;
}

/* One of the objects that may hold rope's parameters; it overrides *theta. */
static wb_status read_rope_object(const json_t *root, const char *key, double *theta) {
    static const char *const type_keys[] = {"rope_type", "type"};
    const json_t *object = value_of(root, key);
    if (!object) return WB_OK;
    if (!json_is_object(object)) return wrong_type(key, object, "an object");
    for (size_t i = 0; i < 2; i++) {
        const json_t *type = value_of(object, type_keys[i]);
        if (type && !(json_is_string(type) && strcmp(json_string_value(type), "default") == 0))
            return wb_fail_context(unsupported(type_keys[i], type, "\"default\""), "%s", key);
    }
    wb_status status = get_number(object, "rope_theta", *theta, theta);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", key);
}

static wb_status read_rope(const json_t *root, wb_config *c) {
    static const char *const owners[] = {NULL, "rope_parameters", "rope_scaling"};
    WB_TRY(get_number(root, "rope_theta", 10000.0, &c->rope_theta));
    WB_TRY(read_rope_object(root, "rope_scaling", &c->rope_theta));
    WB_TRY(read_rope_object(root, "rope_parameters", &c->rope_theta));
    for (size_t i = 0; i < 3; i++) {
        double partial = 1.0;
        const json_t *owner = owners[i] ? value_of(root, owners[i]) : root;
        if (!owner) continue;
        WB_TRY(get_number(owner, "partial_rotary_factor", 1.0, &partial));
        if (partial != 1.0)
            return unsupported("partial_rotary_factor", value_of(owner, "partial_rotary_factor"), "1");
    }
    return WB_OK;
}

static wb_status read_heads(const json_t *root, const family *f, wb_config *c) {
    WB_TRY(get_int(root, "num_attention_heads", REQUIRED, &c->n_heads));
    WB_TRY(check_range("num_attention_heads", c->n_heads, 1, INT32_MAX));
    int32_t kv_heads = f->default_kv_heads > 0 ? f->default_kv_heads : c->n_heads;
    WB_TRY(get_int(root, "num_key_value_heads", kv_heads, &c->n_kv_heads));
    if (!value_of(root, "head_dim") && c->hidden_size % c->n_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hidden_size: expected a multiple of num_attention_heads %d (no head_dim), found %d",
                       c->n_heads, c->hidden_size);
    return get_int(root, "head_dim", c->hidden_size / c->n_heads, &c->head_dim);
}

static wb_status read_router(const json_t *root, wb_config *c) {
    bool normalize = false;
    int32_t experts = 0, local = 0;
    WB_TRY(get_int(root, "num_experts", 0, &experts));
    WB_TRY(get_int(root, "num_local_experts", 0, &local));
    if (experts > 0 && local > 0 && experts != local)
        return wb_fail(WB_INVALID_ARGUMENT, "num_experts: expected num_local_experts %d, found %d", local,
                       experts);
    if (!value_of(root, "num_experts") && !value_of(root, "num_local_experts"))
        return wb_fail(WB_CORRUPT, "num_experts: expected an integer, found none");
    WB_TRY(get_bool(root, "norm_topk_prob", &normalize));
    c->router = (wb_router){.type = normalize ? WB_ROUTER_SOFTMAX_NORM : WB_ROUTER_SOFTMAX,
                            .n_experts = experts > 0 ? experts : local,
                            .scale = 1.0f};
    return get_int(root, "num_experts_per_tok", REQUIRED, &c->router.top_k);
}

/* Layer l is MoE unless it is in mlp_only_layers or (l + 1) is no multiple of decoder_sparse_step. */
static wb_status read_layers(const json_t *root, const family *f, wb_config *c) {
    int32_t step = 1;
    const json_t *dense = f->dense_layers ? value_of(root, "mlp_only_layers") : NULL;
    WB_TRY(get_int(root, "num_hidden_layers", REQUIRED, &c->n_layers));
    WB_TRY(check_range("num_hidden_layers", c->n_layers, 1, MAX_LAYERS));
    if (f->dense_layers) WB_TRY(get_int(root, "decoder_sparse_step", 1, &step));
    WB_TRY(check_range("decoder_sparse_step", step, 1, INT32_MAX));
    if (dense && !json_is_array(dense)) return wrong_type("mlp_only_layers", dense, "a list of integers");
    for (int32_t l = 0; l < c->n_layers; l++)
        if ((l + 1) % step == 0) c->moe_layer_mask[l / 64] |= UINT64_C(1) << (l % 64);
    for (size_t i = 0; i < json_array_size(dense); i++) {
        const json_t *value = json_array_get(dense, i);
        if (!json_is_integer(value)) return wrong_type("mlp_only_layers", value, "integers");
        json_int_t l = json_integer_value(value);
        if (l < 0 || l >= c->n_layers)
            return wb_fail(WB_INVALID_ARGUMENT, "mlp_only_layers: expected 0..%d, found %lld",
                           c->n_layers - 1, (long long)l);
        c->moe_layer_mask[l / 64] &= ~(UINT64_C(1) << (l % 64));
    }
    return f->dense_layers ? get_int(root, "intermediate_size", 0, &c->dense_width) : WB_OK;
}

static wb_status read_root(const json_t *root, wb_config *c) {
    WB_TRY(read_family(root, c));
    const family *f = &families[c->family];
    WB_TRY(read_unsupported(root));
    WB_TRY(get_int(root, "hidden_size", REQUIRED, &c->hidden_size));
    WB_TRY(read_layers(root, f, c));
    WB_TRY(read_heads(root, f, c));
    WB_TRY(get_int(root, f->expert_width, REQUIRED, &c->expert_width));
    WB_TRY(check_range(f->expert_width, c->expert_width, 1, INT32_MAX / 2));
    WB_TRY(get_int(root, "vocab_size", REQUIRED, &c->vocab_size));
    WB_TRY(get_int(root, "max_position_embeddings", f->default_max_positions, &c->max_positions));
    WB_TRY(get_float(root, "rms_norm_eps", f->default_eps, &c->norm_eps));
    WB_TRY(read_rope(root, c));
    WB_TRY(get_bool(root, "tie_word_embeddings", &c->tie_word_embeddings));
    WB_TRY(get_bool(root, "attention_bias", &c->attention_bias));
    c->qk_norm = f->qk_norm;
    if (f->clips && value_of(root, "clip_qkv")) WB_TRY(get_float(root, "clip_qkv", 1.0, &c->clip_qkv));
    WB_TRY(read_router(root, c));
    return wb_config_check(c);
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

/* ---- writing --------------------------------------------------------------------------------- */

/* The double that a person would have written for this float: 1e-06f is 1e-06, not 9.99999997e-07. */
static json_t *plain_real(float x) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    return json_real(strtod(text, NULL));
}

static json_t *dense_layers(const wb_config *c) {
    json_t *list = json_array();
    for (int32_t l = 0; list && l < c->n_layers; l++) {
        if (!wb_config_is_moe(c, l) && json_array_append_new(list, json_integer(l)) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* The released spelling, which transformers 4 and 5 both read. NULL: no memory. */
static json_t *make_root(const wb_config *c, const char *dtype) {
    const family *f = &families[c->family];
    json_t *root = json_pack(
        "{s:[s], s:s, s:s, s:s, s:b, s:f, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:o, s:f, s:n, "
        "s:b, s:b, s:n, s:n, s:n}",
        "architectures", f->architecture, "model_type", f->model_type, "torch_dtype", dtype, "hidden_act",
        "silu", "attention_bias", c->attention_bias, "attention_dropout", 0.0, "hidden_size", c->hidden_size,
        "num_hidden_layers", c->n_layers, "num_attention_heads", c->n_heads, "num_key_value_heads",
        c->n_kv_heads, "head_dim", c->head_dim, "vocab_size", c->vocab_size, "max_position_embeddings",
        c->max_positions, "num_experts", c->router.n_experts, "num_experts_per_tok", c->router.top_k,
        "norm_topk_prob", c->router.type == WB_ROUTER_SOFTMAX_NORM, "rms_norm_eps", plain_real(c->norm_eps),
        "rope_theta", c->rope_theta, "rope_scaling", "tie_word_embeddings", c->tie_word_embeddings,
        "use_cache", 1, "bos_token_id", "eos_token_id", "pad_token_id"); /* not this model's to know */
    int failed = !root || json_object_set_new(root, f->expert_width, json_integer(c->expert_width));
    if (!failed && f->dense_layers)
        failed = json_object_set_new(root, "intermediate_size",
                                     json_integer(c->dense_width > 0 ? c->dense_width : c->expert_width)) ||
                 json_object_set_new(root, "decoder_sparse_step", json_integer(1)) ||
                 json_object_set_new(root, "mlp_only_layers", dense_layers(c)) ||
                 json_object_set_new(root, "use_sliding_window", json_false());
    if (!failed && f->clips)
        failed =
            json_object_set_new(root, "clip_qkv", c->clip_qkv > 0 ? plain_real(c->clip_qkv) : json_null());
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

wb_status wb_config_text(const wb_config *config, const char *source, wb_dtype dtype, char **text_out) {
    const char *name = dtype == WB_BF16 ? "bfloat16" : "float32";
    json_t *root = NULL;
    bool changed = true;
    if (source) {
        WB_TRY(wb_json_parse(source, strlen(source), "config.json", &root));
        if (set_dtype(root, name, &changed) == 0 && !changed) {
            json_decref(root);
            return wb_text_format(text_out, "%s", source);
        }
    } else {
        root = make_root(config, name);
    }
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(root);
    if (!text) return wb_fail(WB_OUT_OF_MEMORY, "config.json: no memory to write it");
    wb_status status = wb_text_format(text_out, "%s\n", text);
    free(text);
    return status;
}
