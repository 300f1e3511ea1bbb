/* config_compressed.c - attention over compressed entries in a config.json, and the layers whose choices are
 * a table by token id: read in the spelling of the releases and in that of transformers, checked, written.
 * Refuses: rope of other attention (config_rope.c). */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

#include <string.h>

static const char window_type[] = "sliding_attention", sparse_type[] = "compressed_sparse_attention",
                  heavy_type[] = "heavily_compressed_attention";

/* The rates of the releases, by which their lists of numbers tell the kinds of layers apart. */
enum { SPARSE_RATE = 4, HEAVY_RATE = 128, HASH_LAYERS = 3 };
#define ROPE_THETA 160000.0

static void set_bit(uint64_t *mask, int32_t l) {
    mask[l / 64] |= UINT64_C(1) << (l % 64);
}

static bool has_bit(const uint64_t *mask, int32_t l) {
    return (mask[l / 64] >> (l % 64) & 1u) != 0;
}

int32_t wb_config_compress_rate(const wb_config *c, int32_t l) {
    if (has_bit(c->compressed.sparse_layer_mask, l)) return c->compressed.sparse_rate;
    return has_bit(c->compressed.heavy_layer_mask, l) ? c->compressed.heavy_rate : 0;
}

bool wb_config_is_sparse(const wb_config *c, int32_t l) {
    return has_bit(c->compressed.sparse_layer_mask, l);
}

int32_t wb_config_n_indexers(const wb_config *c) {
    int32_t n = 0;
    for (int32_t l = 0; l < c->n_layers; l++) n += wb_config_is_sparse(c, l);
    return n;
}

bool wb_config_is_hash(const wb_config *c, int32_t l) {
    return has_bit(c->hash_layer_mask, l);
}

/* ---- reading --------------------------------------------------------------------------------- */

static void set_kind(wb_compressed_sizes *s, int32_t l, const char *type) {
    if (strcmp(type, sparse_type) == 0) set_bit(s->sparse_layer_mask, l);
    if (strcmp(type, heavy_type) == 0) set_bit(s->heavy_layer_mask, l);
}

/* A list with a member for each layer, and maybe more for layers that are not the decoder's. */
static wb_status check_list(const json_t *list, const char *key, int32_t n_layers) {
    if (json_is_array(list) && json_array_size(list) >= (size_t)n_layers) return WB_OK;
    return wb_json_wrong_type(key, list, "a list with a member for each layer");
}

static wb_status read_types(const json_t *list, wb_config *c) {
    WB_TRY(check_list(list, "layer_types", c->n_layers));
    for (int32_t l = 0; l < c->n_layers; l++) {
        const json_t *value = json_array_get(list, (size_t)l);
        const char *type = json_string_value(value);
        if (!type || (strcmp(type, window_type) != 0 && strcmp(type, sparse_type) != 0 &&
                      strcmp(type, heavy_type) != 0))
            return wb_json_unsupported("layer_types", value,
                                       "\"sliding_attention\", \"compressed_sparse_attention\" and "
                                       "\"heavily_compressed_attention\"");
        set_kind(&c->compressed, l, type);
    }
    return WB_OK;
}

static wb_status read_ratios(const json_t *list, wb_config *c) {
    WB_TRY(check_list(list, "compress_ratios", c->n_layers));
    for (int32_t l = 0; l < c->n_layers; l++) {
        const json_t *value = json_array_get(list, (size_t)l);
        const json_int_t ratio = json_is_integer(value) ? json_integer_value(value) : -1;
        if (ratio != 0 && ratio != SPARSE_RATE && ratio != HEAVY_RATE)
            return wb_json_unsupported("compress_ratios", value, "0, 4 and 128");
        if (ratio > 0) set_kind(&c->compressed, l, ratio == SPARSE_RATE ? sparse_type : heavy_type);
    }
    return WB_OK;
}

/* Two heavy layers, then sparse and heavy ones in turn, where the file says nothing. */
static void set_usual_kinds(wb_config *c) {
    for (int32_t l = 0; l < c->n_layers; l++)
        set_kind(&c->compressed, l, l < 2 || l % 2 == 0 ? heavy_type : sparse_type);
}

/* A rate in compress_rates, or under a key of its own. */
static wb_status read_rate(const json_t *root, const char *type, const char *own, int32_t absent,
                           int32_t *rate_out) {
    const json_t *rates = wb_json_value(root, "compress_rates");
    if (rates && !json_is_object(rates)) return wb_json_wrong_type("compress_rates", rates, "an object");
    WB_TRY(wb_json_int(rates, type, absent, &absent));
    return wb_json_int(root, own, absent, rate_out);
}

static wb_status read_kinds(const json_t *root, wb_config *c) {
    const json_t *types = wb_json_value(root, "layer_types"),
                 *ratios = wb_json_value(root, "compress_ratios");
    if (types) return read_types(types, c);
    if (ratios) return read_ratios(ratios, c);
    set_usual_kinds(c);
    return WB_OK;
}

static wb_status read_hash_layers(const json_t *root, wb_config *c) {
    const json_t *types = wb_json_value(root, "mlp_layer_types");
    int32_t n = HASH_LAYERS;
    if (!types) {
        WB_TRY(wb_json_int(root, "num_hash_layers", HASH_LAYERS, &n));
        for (int32_t l = 0; l < c->n_layers && l < n; l++) set_bit(c->hash_layer_mask, l);
        return WB_OK;
    }
    WB_TRY(check_list(types, "mlp_layer_types", c->n_layers));
    for (int32_t l = 0; l < c->n_layers; l++) {
        const json_t *value = json_array_get(types, (size_t)l);
        const char *type = json_string_value(value);
        if (!type || (strcmp(type, "hash_moe") != 0 && strcmp(type, "moe") != 0))
            return wb_json_unsupported("mlp_layer_types", value, "\"hash_moe\" and \"moe\"");
        if (strcmp(type, "hash_moe") == 0) set_bit(c->hash_layer_mask, l);
    }
    return WB_OK;
}

wb_status wb_config_read_compressed(const json_t *root, wb_config *c) {
    wb_compressed_sizes *s = &c->compressed;
    WB_TRY(wb_json_int(root, "q_lora_rank", 1024, &s->q_rank));
    WB_TRY(wb_json_int(root, "o_groups", 8, &s->o_groups));
    WB_TRY(wb_json_int(root, "o_lora_rank", 1024, &s->o_rank));
    WB_TRY(wb_json_int(root, "index_n_heads", 64, &s->index_heads));
    WB_TRY(wb_json_int(root, "index_head_dim", 128, &s->index_dim));
    WB_TRY(wb_json_int(root, "index_topk", 512, &s->index_top_k));
    WB_TRY(read_rate(root, sparse_type, "compress_rate_csa", SPARSE_RATE, &s->sparse_rate));
    WB_TRY(read_rate(root, heavy_type, "compress_rate_hca", HEAVY_RATE, &s->heavy_rate));
    WB_TRY(read_kinds(root, c));
    return read_hash_layers(root, c);
}

void wb_config_usual_compressed(wb_config *c) {
    wb_compressed_sizes *s = &c->compressed;
    if (s->sparse_rate == 0) s->sparse_rate = SPARSE_RATE;
    if (s->heavy_rate == 0) s->heavy_rate = HEAVY_RATE;
    if (s->rope_theta == 0) s->rope_theta = ROPE_THETA;
    memset(s->sparse_layer_mask, 0, sizeof s->sparse_layer_mask);
    memset(s->heavy_layer_mask, 0, sizeof s->heavy_layer_mask);
    set_usual_kinds(c);
    for (int32_t l = 0; l < c->n_layers && l < HASH_LAYERS; l++) set_bit(c->hash_layer_mask, l);
}

/* ---- rope ------------------------------------------------------------------------------------ */

/* How many dimensions are turned is said by a number of them, too. */
static wb_status read_turned(const json_t *root, wb_config *c) {
    int32_t turned = c->rotary_dim > 0 ? c->rotary_dim : c->head_dim;
    WB_TRY(wb_json_int(root, "qk_rope_head_dim", turned, &turned));
    if (wb_json_value(root, "partial_rotary_factor") && c->rotary_dim > 0 && turned != c->rotary_dim)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "qk_rope_head_dim: expected %d by partial_rotary_factor, found %d", c->rotary_dim,
                       turned);
    c->rotary_dim = turned;
    return WB_OK;
}

/* *config's rope by `root` with this one's `parameters` and base in place of both. */
static wb_status read_place(const json_t *root, const char *key, const json_t *base,
                            const wb_family_rules *rules, wb_config *c) {
    json_t *copy = json_copy((json_t *)(uintptr_t)root),
           *parameters = json_object_get(json_object_get(copy, "rope_parameters"), key);
    if (!copy || json_object_set(copy, "rope_parameters", parameters) ||
        (base && json_object_set(copy, "rope_theta", (json_t *)(uintptr_t)base)) ||
        (!base && json_object_get(copy, "rope_theta") && json_object_del(copy, "rope_theta"))) {
        json_decref(copy);
        return wb_fail(WB_OUT_OF_MEMORY, "rope_parameters: no memory to read them");
    }
    const wb_status status = wb_config_read_rope(copy, rules, c);
    json_decref(copy);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "rope_parameters.%s", key);
}

/* As transformers writes them: an object for each of the two. */
static wb_status read_nested(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    wb_config other = *c;
    WB_TRY(read_place(root, "main", wb_json_value(root, "rope_theta"), rules, c));
    if (c->rope_scaling.type != WB_ROPE_PLAIN)
        return wb_fail(WB_UNSUPPORTED,
                       "rope_parameters.main: supported is rope_type default, found a scaling");
    WB_TRY(read_place(root, "compress", wb_json_value(root, "compress_rope_theta"), rules, &other));
    if (other.rotary_dim != c->rotary_dim)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "rope_parameters: expected one number of rotated dimensions, found %d and %d",
                       c->rotary_dim, other.rotary_dim);
    c->rope_scaling = other.rope_scaling;
    c->compressed.rope_theta = other.rope_theta;
    return WB_OK;
}

/* A scaling leaves cosines and sines as they are, whatever it usually multiplies them by. */
wb_status wb_config_read_two_ropes(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    const json_t *both = wb_json_value(root, "rope_parameters");
    if (json_is_object(wb_json_value(both, "main")) && json_is_object(wb_json_value(both, "compress"))) {
        WB_TRY(read_nested(root, rules, c));
    } else {
        WB_TRY(wb_config_read_rope(root, rules, c));
        WB_TRY(wb_json_number(root, "compress_rope_theta", ROPE_THETA, &c->compressed.rope_theta));
    }
    if (c->rope_scaling.type == WB_ROPE_YARN && c->rope_scaling.attention_factor == 0)
        c->rope_scaling.attention_factor = 1;
    return read_turned(root, c);
}

/* ---- checking and writing -------------------------------------------------------------------- */

/* Such that no product of widths and heads leaves an int32. */
static wb_status check_sizes(const wb_config *c) {
    const wb_compressed_sizes *s = &c->compressed;
    WB_TRY(wb_config_in_range("num_attention_heads", c->n_heads, 1, 65536));
    const int32_t most = INT32_MAX / 4;
    WB_TRY(wb_config_in_range("head_dim", c->head_dim, 2, most / c->n_heads));
    WB_TRY(wb_config_in_range("q_lora_rank", s->q_rank, 1, most));
    WB_TRY(wb_config_in_range("o_groups", s->o_groups, 1, c->n_heads));
    if (c->n_heads % s->o_groups != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "num_attention_heads: expected a multiple of o_groups %d, found %d", s->o_groups,
                       c->n_heads);
    WB_TRY(wb_config_in_range("o_lora_rank", s->o_rank, 1, most / s->o_groups));
    WB_TRY(wb_config_in_range("index_n_heads", s->index_heads, 1, 65536));
    WB_TRY(wb_config_in_range("index_head_dim", s->index_dim, c->rotary_dim, most / s->index_heads));
    WB_TRY(wb_config_in_range("index_topk", s->index_top_k, 1, 65536));
    WB_TRY(wb_config_in_range("compress_rates.compressed_sparse_attention", s->sparse_rate, 1, 65536));
    return wb_config_in_range("compress_rates.heavily_compressed_attention", s->heavy_rate, 1, 65536);
}

static wb_status check_none(const wb_config *c, const wb_family_rules *rules) {
    if (c->compressed.q_rank != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "compressed: expected none for %s, found q of rank %d",
                       rules->model_type, c->compressed.q_rank);
    if (c->hyper.n_streams != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "hyper: expected none for %s, found %d streams",
                       rules->model_type, c->hyper.n_streams);
    for (int32_t l = 0; l < WB_MAX_LAYERS; l++)
        if (wb_config_is_hash(c, l) || wb_config_is_sparse(c, l) ||
            has_bit(c->compressed.heavy_layer_mask, l))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "compressed or hash layers: expected none for %s, found layer %d",
                           rules->model_type, l);
    return WB_OK;
}

wb_status wb_config_check_compressed(const wb_config *c, const wb_family_rules *rules) {
    const wb_compressed_sizes *s = &c->compressed;
    if (!rules->compressed) return check_none(c, rules);
    WB_TRY(check_sizes(c));
    WB_TRY(wb_config_positive("compress_rope_theta", s->rope_theta));
    WB_TRY(wb_config_in_range("rotated dimensions of a head", c->rotary_dim, 2, c->head_dim));
    for (int32_t l = 0; l < WB_MAX_LAYERS; l++) {
        const bool any =
            wb_config_is_sparse(c, l) || has_bit(s->heavy_layer_mask, l) || wb_config_is_hash(c, l);
        if (any && l >= c->n_layers)
            return wb_fail(WB_INVALID_ARGUMENT, "compressed or hash layers: expected < %d, found layer %d",
                           c->n_layers, l);
        if (wb_config_is_sparse(c, l) && has_bit(s->heavy_layer_mask, l))
            return wb_fail(WB_INVALID_ARGUMENT, "layer %d: expected one kind of entries, found both", l);
        if (wb_config_is_hash(c, l) && !wb_config_is_moe(c, l))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "layer %d: expected experts in a hash-routed layer, found none", l);
    }
    return WB_OK;
}

static json_t *type_of(const wb_config *c, int32_t l) {
    if (wb_config_is_sparse(c, l)) return json_string(sparse_type);
    return json_string(wb_config_compress_rate(c, l) > 0 ? heavy_type : window_type);
}

static int write_lists(const wb_config *c, json_t *root) {
    json_t *types = json_array(), *choices = json_array();
    int failed = json_object_set_new(root, "layer_types", types) ||
                 json_object_set_new(root, "mlp_layer_types", choices);
    for (int32_t l = 0; !failed && l < c->n_layers; l++)
        failed = json_array_append_new(types, type_of(c, l)) ||
                 json_array_append_new(choices, json_string(wb_config_is_hash(c, l) ? "hash_moe" : "moe"));
    return failed;
}

int wb_config_write_compressed(const wb_config *c, json_t *root) {
    const wb_compressed_sizes *s = &c->compressed;
    return json_object_set_new(root, "q_lora_rank", json_integer(s->q_rank)) ||
           json_object_set_new(root, "qk_rope_head_dim", json_integer(c->rotary_dim)) ||
           json_object_set_new(root, "o_groups", json_integer(s->o_groups)) ||
           json_object_set_new(root, "o_lora_rank", json_integer(s->o_rank)) ||
           json_object_set_new(root, "index_n_heads", json_integer(s->index_heads)) ||
           json_object_set_new(root, "index_head_dim", json_integer(s->index_dim)) ||
           json_object_set_new(root, "index_topk", json_integer(s->index_top_k)) ||
           json_object_set_new(root, "compress_rope_theta", json_real(s->rope_theta)) ||
           json_object_set_new(
               root, "compress_rates",
               json_pack("{s:i, s:i}", sparse_type, s->sparse_rate, heavy_type, s->heavy_rate)) ||
           write_lists(c, root);
}
