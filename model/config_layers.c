/* config_layers.c - which layers of a config.json have experts, and how many are shared, read and written.
 * Refuses: what families there are, and what else a layer is made of. */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

#include <string.h>

static void set_moe(uint64_t *mask, int32_t l, bool is_moe) {
    const uint64_t bit = UINT64_C(1) << (l % 64);
    mask[l / 64] = is_moe ? mask[l / 64] | bit : mask[l / 64] & ~bit;
}

/* ---- reading --------------------------------------------------------------------------------- */

static wb_status drop_listed(const json_t *root, int32_t n_layers, uint64_t *mask) {
    const json_t *list = wb_json_value(root, "mlp_only_layers");
    if (list && !json_is_array(list))
        return wb_json_wrong_type("mlp_only_layers", list, "a list of integers");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        if (!json_is_integer(value)) return wb_json_wrong_type("mlp_only_layers", value, "integers");
        const int64_t l = json_integer_value(value);
        WB_TRY(wb_config_in_range("mlp_only_layers", l, 0, n_layers - 1));
        set_moe(mask, (int32_t)l, false);
    }
    return WB_OK;
}

/* What newer files say of each layer: "dense", or one of the kinds of layers with experts. */
static wb_status take_types(const json_t *root, int32_t n_layers, uint64_t *mask) {
    const json_t *list = wb_json_value(root, "mlp_layer_types");
    if (!list) return WB_OK;
    if (!json_is_array(list) || json_array_size(list) < (size_t)n_layers)
        return wb_json_wrong_type("mlp_layer_types", list, "a list with a member for each layer");
    for (int32_t l = 0; l < n_layers; l++) {
        const json_t *type = json_array_get(list, (size_t)l);
        if (!json_is_string(type)) return wb_json_wrong_type("mlp_layer_types", type, "texts");
        set_moe(mask, l, strcmp(json_string_value(type), "dense") != 0);
    }
    return WB_OK;
}

wb_status wb_config_read_moe_layers(const json_t *root, wb_moe_rule rule, int32_t first_dense,
                                    int32_t n_layers, uint64_t mask_out[WB_LAYER_MASK_WORDS]) {
    int32_t first = 0, step = 1;
    const bool from_layer = rule == WB_MOE_FROM_LAYER, sparse_step = rule == WB_MOE_SPARSE_STEP;
    const char *step_key = from_layer ? "moe_layer_freq" : "decoder_sparse_step";
    if (from_layer) WB_TRY(wb_json_int(root, "first_k_dense_replace", first_dense, &first));
    if (from_layer || sparse_step) WB_TRY(wb_json_int(root, step_key, 1, &step));
    WB_TRY(wb_config_in_range(step_key, step, 1, INT32_MAX));
    memset(mask_out, 0, WB_LAYER_MASK_WORDS * sizeof *mask_out);
    for (int32_t l = 0; l < n_layers; l++) set_moe(mask_out, l, l >= first && (l + sparse_step) % step == 0);
    if (sparse_step) WB_TRY(drop_listed(root, n_layers, mask_out));
    return take_types(root, n_layers, mask_out);
}

/* ---- checking and writing -------------------------------------------------------------------- */

/* The keys of WB_MOE_FROM_LAYER that have these MoE layers, if any have: layer `first` is the first one,
 * and the next one is `step` further; 1 where there is none. */
static void find_first(const wb_config *c, int32_t *first_out, int32_t *step_out) {
    int32_t first = 0, second;
    while (first < c->n_layers && !wb_config_is_moe(c, first)) first++;
    for (second = first + 1; second < c->n_layers && !wb_config_is_moe(c, second);) second++;
    *first_out = first;
    *step_out = second < c->n_layers ? second - first : 1;
}

wb_status wb_config_check_moe_layers(const wb_config *c, const wb_family_rules *rules) {
    const int32_t n_moe = wb_config_n_moe(c);
    int32_t first, step;
    if (rules->moe_layers == WB_MOE_SPARSE_STEP) return WB_OK;
    if (rules->moe_layers == WB_MOE_EVERY_LAYER) {
        if (n_moe == c->n_layers) return WB_OK;
        return wb_fail(WB_INVALID_ARGUMENT, "moe layers: expected all %d of %s, found %d", c->n_layers,
                       rules->model_type, n_moe);
    }
    find_first(c, &first, &step);
    for (int32_t l = first; l < c->n_layers; l++)
        if (wb_config_is_moe(c, l) != (l % step == 0))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "moe layers: expected the multiples of %d from layer %d on for %s, found layer %d "
                           "otherwise",
                           step, first, rules->model_type, l);
    return WB_OK;
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

/* A checkpoint has a dense width even where no layer is dense. */
static int write_dense_width(const wb_config *c, json_t *root) {
    const int32_t width = c->dense_width > 0 ? c->dense_width : c->expert_width;
    return json_object_set_new(root, "intermediate_size", json_integer(width));
}

int wb_config_write_moe_layers(const wb_config *c, const wb_family_rules *rules, json_t *root) {
    int32_t first, step;
    if (rules->moe_layers == WB_MOE_EVERY_LAYER) return 0;
    if (rules->moe_layers == WB_MOE_SPARSE_STEP)
        return write_dense_width(c, root) ||
               json_object_set_new(root, "decoder_sparse_step", json_integer(1)) ||
               json_object_set_new(root, "mlp_only_layers", dense_list(c));
    find_first(c, &first, &step);
    return write_dense_width(c, root) ||
           json_object_set_new(root, "first_k_dense_replace", json_integer(first)) ||
           json_object_set_new(root, "moe_layer_freq", json_integer(step));
}

/* ---- shared experts -------------------------------------------------------------------------- */

wb_status wb_config_read_shared(const json_t *root, int32_t absent, wb_config *c) {
    int32_t n = 0;
    WB_TRY(wb_json_int(root, "n_shared_experts", absent, &n));
    WB_TRY(wb_config_in_range("n_shared_experts", n, 0, INT32_MAX / 2 / c->expert_width));
    c->shared_width = n * c->expert_width;
    return WB_OK;
}

int wb_config_write_shared(const wb_config *c, json_t *root) {
    return json_object_set_new(root, "n_shared_experts", json_integer(c->shared_width / c->expert_width));
}
