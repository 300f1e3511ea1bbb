/* families.c - the list of families: from enum value or model_type to the rules. */
#include "families/family.h"
#include "wb_json.h"

#include <stdio.h>
#include <string.h>

static const wb_family_rules *const families[WB_N_FAMILIES] = {
#define X(NAME, name) [WB_FAMILY_##NAME] = &wb_family_##name,
    WB_FAMILY_LIST(X)
#undef X
};

const wb_family_rules *wb_family_rules_of(wb_family family) {
    return (size_t)family < WB_N_FAMILIES ? families[family] : NULL;
}

static bool is_type_of(const wb_family_rules *rules, const char *type) {
    const char *const *other = rules->other_types;
    if (strcmp(type, rules->model_type) == 0) return true;
    while (other && *other && strcmp(type, *other) != 0) other++;
    return other && *other;
}

wb_status wb_family_find(const json_t *value, wb_family *family_out) {
    char known[512];
    size_t used = 0;
    for (size_t i = 0; i < WB_N_FAMILIES; i++) {
        if (is_type_of(families[i], json_string_value(value))) {
            *family_out = (wb_family)i;
            return WB_OK;
        }
        const char *joint = i == 0 ? "" : i + 1 == WB_N_FAMILIES ? " and " : ", ";
        if (used < sizeof known)
            used +=
                (size_t)snprintf(known + used, sizeof known - used, "%s%s", joint, families[i]->model_type);
    }
    return wb_json_unsupported("model_type", value, known);
}
