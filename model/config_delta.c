/* config_delta.c - gated delta net in a config.json: its sizes, and which layers have it in place of
 * attention, read, checked and written. Refuses: layers of another kind, by name. */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"
#include "wb_ops_recurrent.h"

#include <string.h>

static const char linear[] = "linear_attention", full[] = "full_attention";

bool wb_config_has_delta(const wb_config *c, int32_t l) {
    return l >= 0 && l < WB_MAX_LAYERS && (c->delta.layer_mask[l / 64] >> (l % 64) & 1u);
}

static void set_bit(uint64_t *mask, int32_t l) {
    mask[l / 64] |= UINT64_C(1) << (l % 64);
}

/* ---- layers ---------------------------------------------------------------------------------- */

void wb_config_set_delta_layers(int32_t interval, wb_config *c) {
    memset(c->delta.layer_mask, 0, sizeof c->delta.layer_mask);
    for (int32_t l = 0; l < c->n_layers; l++)
        if ((l + 1) % interval != 0) set_bit(c->delta.layer_mask, l);
}

static wb_status take_types(const json_t *list, wb_config *c) {
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->n_layers)
        return wb_json_wrong_type("layer_types", list, "a list with a member for each layer");
    for (int32_t l = 0; l < c->n_layers; l++) {
        const json_t *value = json_array_get(list, (size_t)l);
        const char *type = json_string_value(value);
        const bool is_linear = type && strcmp(type, linear) == 0;
        if (!type || (!is_linear && strcmp(type, full) != 0))
            return wb_json_unsupported("layer_types", value, "\"linear_attention\" or \"full_attention\"");
        if (is_linear) set_bit(c->delta.layer_mask, l);
    }
    return WB_OK;
}

/* layer_types says it of each layer; without it every full_attention_interval-th one has attention. */
static wb_status read_layers(const json_t *root, wb_config *c) {
    const json_t *types = wb_json_value(root, "layer_types");
    int32_t interval = 0;
    if (types) return take_types(types, c);
    WB_TRY(wb_json_int(root, "full_attention_interval", WB_DELTA_INTERVAL, &interval));
    WB_TRY(wb_config_in_range("full_attention_interval", interval, 1, INT32_MAX));
    wb_config_set_delta_layers(interval, c);
    return WB_OK;
}

/* ---- all of it ------------------------------------------------------------------------------- */

wb_status wb_config_read_delta(const json_t *root, wb_config *c) {
    wb_delta_sizes *d = &c->delta;
    *d = (wb_delta_sizes){0};
    WB_TRY(wb_json_int(root, "linear_num_key_heads", 16, &d->n_key_heads));
    WB_TRY(wb_json_int(root, "linear_num_value_heads", 32, &d->n_value_heads));
    WB_TRY(wb_json_int(root, "linear_key_head_dim", 128, &d->key_dim));
    WB_TRY(wb_json_int(root, "linear_value_head_dim", 128, &d->value_dim));
    WB_TRY(wb_json_int(root, "linear_conv_kernel_dim", 4, &d->conv_width));
    return read_layers(root, c);
}

/* Such that no product of heads, widths and taps leaves an int32. */
static wb_status check_sizes(const wb_delta_sizes *d) {
    WB_TRY(wb_config_in_range("linear_num_key_heads", d->n_key_heads, 1, 65536));
    WB_TRY(wb_config_in_range("linear_num_value_heads", d->n_value_heads, d->n_key_heads, 65536));
    if (d->n_value_heads % d->n_key_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "linear_num_value_heads: expected a multiple of linear_num_key_heads %d, found %d",
                       d->n_key_heads, d->n_value_heads);
    WB_TRY(wb_config_in_range("linear_conv_kernel_dim", d->conv_width, 1, WB_MAX_CONV_WIDTH));
    WB_TRY(wb_config_in_range("linear_key_head_dim", d->key_dim, 1, 1024));
    WB_TRY(wb_config_in_range("linear_value_head_dim", d->value_dim, 1, 1024));
    const int64_t channels = wb_delta_channels(d) + wb_delta_value_width(d);
    return wb_config_in_range("linear attention: width of a token", channels, 1, INT32_MAX / 32);
}

wb_status wb_config_check_delta(const wb_config *c, const wb_family_rules *rules) {
    static const wb_delta_sizes none = {0};
    if (!rules->delta_net) {
        if (memcmp(&c->delta, &none, sizeof none) == 0) return WB_OK;
        return wb_fail(WB_INVALID_ARGUMENT, "delta: expected none for %s, found %d key heads",
                       rules->model_type, c->delta.n_key_heads);
    }
    for (int32_t l = c->n_layers; l < WB_MAX_LAYERS; l++)
        if (wb_config_has_delta(c, l))
            return wb_fail(WB_INVALID_ARGUMENT, "linear attention: expected layers < %d, found layer %d",
                           c->n_layers, l);
    return check_sizes(&c->delta);
}

int wb_config_write_delta(const wb_config *c, json_t *root) {
    const wb_delta_sizes *d = &c->delta;
    json_t *types = json_array();
    int failed = json_object_set_new(root, "layer_types", types);
    for (int32_t l = 0; !failed && l < c->n_layers; l++)
        failed = json_array_append_new(types, json_string(wb_config_has_delta(c, l) ? linear : full));
    return failed || json_object_set_new(root, "linear_num_key_heads", json_integer(d->n_key_heads)) ||
           json_object_set_new(root, "linear_num_value_heads", json_integer(d->n_value_heads)) ||
           json_object_set_new(root, "linear_key_head_dim", json_integer(d->key_dim)) ||
           json_object_set_new(root, "linear_value_head_dim", json_integer(d->value_dim)) ||
           json_object_set_new(root, "linear_conv_kernel_dim", json_integer(d->conv_width));
}
