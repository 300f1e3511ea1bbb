/* config.c - see config.h. */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

#include <inttypes.h>
#include <math.h>

bool wb_config_is_moe(const wb_config *config, int32_t layer) {
    return layer >= 0 && layer < WB_MAX_LAYERS && (config->moe_layer_mask[layer / 64] >> (layer % 64) & 1u);
}

int32_t wb_config_n_moe(const wb_config *config) {
    int32_t n = 0;
    for (int32_t l = 0; l < config->n_layers; l++) n += wb_config_is_moe(config, l);
    return n;
}

size_t wb_config_row_bytes(const wb_config *config) {
    const int32_t n = wb_config_n_moe(config);
    size_t ids = 0;
    for (int32_t l = 0; l < n; l++) ids += (size_t)wb_config_layer_k(config, l);
    return ids * wb_dtype_size(wb_route_dtype((uint32_t)config->router.n_experts));
}

wb_status wb_config_in_range(const char *key, int64_t found, int64_t min, int64_t max) {
    if (found >= min && found <= max) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected %" PRId64 "..%" PRId64 ", found %" PRId64, key, min,
                   max, found);
}

wb_status wb_config_positive(const char *key, double found) {
    if (isfinite(found) && found > 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected a number above 0, found %g", key, found);
}

wb_status wb_config_float(const json_t *object, const char *key, double fallback, float *value_out) {
    double number = 0;
    WB_TRY(wb_json_number(object, key, fallback, &number));
    WB_TRY(wb_config_positive(key, number));
    WB_TRY(wb_config_positive(key, (double)(float)number));
    *value_out = (float)number;
    return WB_OK;
}
