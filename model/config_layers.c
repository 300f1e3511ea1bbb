/* config_layers.c - which layers of a config.json have experts, how many are shared, and which layers see
 * a window, read and written. Refuses: what families there are, and what else a layer is made of. */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

#include <string.h>

static void set_bit(uint64_t *mask, int32_t l, bool on) {
    const uint64_t bit = UINT64_C(1) << (l % 64);
    mask[l / 64] = on ? mask[l / 64] | bit : mask[l / 64] & ~bit;
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
        set_bit(mask, (int32_t)l, false);
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
        set_bit(mask, l, strcmp(json_string_value(type), "dense") != 0);
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
    for (int32_t l = 0; l < n_layers; l++) set_bit(mask_out, l, l >= first && (l + sparse_step) % step == 0);
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

/* ---- windows --------------------------------------------------------------------------------- */

static const char sliding[] = "sliding_attention", full[] = "full_attention";

int32_t wb_config_window(const wb_config *c, int32_t l) {
    return c->window_layer_mask[l / 64] >> (l % 64) & 1u ? c->window : 0;
}

/* `may_slide`: whether the family has windows. */
static wb_status take_layer_types(const json_t *list, bool may_slide, wb_config *c) {
    if (!json_is_array(list) || json_array_size(list) < (size_t)c->n_layers)
        return wb_json_wrong_type("layer_types", list, "a list with a member for each layer");
    const char *supported = may_slide ? "\"full_attention\" or \"sliding_attention\"" : "\"full_attention\"";
    for (size_t l = 0; l < (size_t)c->n_layers; l++) {
        const json_t *value = json_array_get(list, l);
        const char *type = json_string_value(value);
        const bool slides = type && strcmp(type, sliding) == 0;
        if (!type || (!slides && strcmp(type, full) != 0) || (slides && !may_slide))
            return wb_json_unsupported("layer_types", value, supported);
        set_bit(c->window_layer_mask, (int32_t)l, slides);
    }
    return WB_OK;
}

/* Without layer_types. */
static wb_status take_usual_windows(const json_t *root, wb_window_rule rule, wb_config *c) {
    int32_t end = c->n_layers;
    if (rule == WB_WINDOW_SWITCH) WB_TRY(wb_json_int(root, "max_window_layers", 28, &end));
    for (int32_t l = 0; l < c->n_layers && l < end; l++)
        set_bit(c->window_layer_mask, l,
                rule == WB_WINDOW_EVERY_LAYER || rule == WB_WINDOW_ALL_KINDS || l % 2 == 0);
    return WB_OK;
}

/* Whether the family's windows are on, and how long they are. */
static wb_status read_window(const json_t *root, const wb_family_rules *rules, bool *on_out,
                             int32_t *window_out) {
    bool on = false;
    WB_TRY(wb_json_bool(root, "use_sliding_window", &on));
    if (on && rules->windows == WB_WINDOW_NONE)
        return wb_json_unsupported("use_sliding_window", wb_json_value(root, "use_sliding_window"), "false");
    WB_TRY(wb_json_int(root, "sliding_window", rules->window, window_out));
    if (rules->windows != WB_WINDOW_SWITCH) on = *window_out > 0;
    *on_out = on && rules->windows != WB_WINDOW_NONE;
    return WB_OK;
}

wb_status wb_config_read_windows(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    const json_t *types = rules->delta_net ? NULL : wb_json_value(root, "layer_types");
    bool on = false;
    int32_t window = 0;
    WB_TRY(read_window(root, rules, &on, &window));
    memset(c->window_layer_mask, 0, sizeof c->window_layer_mask);
    const bool all = rules->windows == WB_WINDOW_ALL_KINDS;
    if (types && !all) WB_TRY(take_layer_types(types, on, c));
    if (on && (all || !types)) WB_TRY(take_usual_windows(root, rules->windows, c));
    for (size_t i = 0; i < WB_LAYER_MASK_WORDS; i++)
        if (c->window_layer_mask[i] != 0) c->window = window;
    return WB_OK;
}

wb_status wb_config_check_windows(const wb_config *c, const wb_family_rules *rules) {
    int32_t n = 0;
    for (int32_t l = 0; l < WB_MAX_LAYERS; l++) n += (c->window_layer_mask[l / 64] >> (l % 64) & 1u) != 0;
    if (n == 0 && c->window == 0) return WB_OK;
    WB_TRY(wb_config_in_range("sliding_window", c->window, 1, INT32_MAX));
    if (rules->windows == WB_WINDOW_NONE)
        return wb_fail(WB_INVALID_ARGUMENT, "sliding_window: expected none for %s, found %d",
                       rules->model_type, c->window);
    const bool all = rules->windows == WB_WINDOW_EVERY_LAYER || rules->windows == WB_WINDOW_ALL_KINDS;
    const int32_t least = all ? c->n_layers : 1;
    return wb_config_in_range("layers with a window", n, least, c->n_layers);
}

int wb_config_write_windows(const wb_config *c, const wb_family_rules *rules, json_t *root) {
    json_t *length = c->window > 0 ? json_integer(c->window) : json_null();
    if (rules->windows == WB_WINDOW_NONE || rules->windows == WB_WINDOW_SWITCH)
        if (json_object_set_new(root, "use_sliding_window", json_boolean(c->window > 0))) return -1;
    if (json_object_set_new(root, "sliding_window", length)) return -1;
    if (rules->windows != WB_WINDOW_LAYER_TYPES && rules->windows != WB_WINDOW_SWITCH) return 0;
    json_t *types = json_array();
    int failed = json_object_set_new(root, "layer_types", types);
    for (int32_t l = 0; !failed && l < c->n_layers; l++)
        failed = json_array_append_new(types, json_string(wb_config_window(c, l) > 0 ? sliding : full));
    return failed;
}
