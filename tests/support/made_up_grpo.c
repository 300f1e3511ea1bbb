/* made_up_grpo.c - waybill-grpo with a family that is made up (model/made_up_family.h) in the place of
 * qwen3_moe: two experts without weights and a K of its own in each MoE layer, which no family that is known
 * has. Linked with --wrap of the three functions. */
#include "model/made_up_family.h"

static const wb_family in_place_of = WB_FAMILY_QWEN3_MOE;

const wb_family_rules *__real_wb_family_rules_of(wb_family family);
const wb_family_rules *__wrap_wb_family_rules_of(wb_family family);
wb_status __real_wb_family_find(const json_t *value, wb_family *family_out);
wb_status __wrap_wb_family_find(const json_t *value, wb_family *family_out);
wb_status __real_wb_config_complete(wb_config *config);
wb_status __wrap_wb_config_complete(wb_config *config);

const wb_family_rules *__wrap_wb_family_rules_of(wb_family family) {
    return family == in_place_of ? &made_up_family : __real_wb_family_rules_of(family);
}

wb_status __wrap_wb_family_find(const json_t *value, wb_family *family_out) {
    if (strcmp(json_string_value(value), made_up_family.model_type) != 0)
        return __real_wb_family_find(value, family_out);
    *family_out = in_place_of;
    return WB_OK;
}

/* Of --make-base, whose models have four layers and four choices a token. */
wb_status __wrap_wb_config_complete(wb_config *config) {
    static const uint32_t top_k[] = {2, 4, 1, 3};
    WB_TRY(__real_wb_config_complete(config));
    if (config->family != in_place_of) return WB_OK;
    config->n_weightless = 2;
    config->router.n_experts += 2;
    memcpy(config->layer_top_k, top_k, sizeof top_k);
    return WB_OK;
}
