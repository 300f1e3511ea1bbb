/* norm_rules.h - the factor of an RMSNorm, w, 1 + w or 1, as both backends make it. Refuses: sums, rows. */
#ifndef WB_NORM_RULES_H
#define WB_NORM_RULES_H

#include "wb_exact_math.h"
#include "wb_ops_rows.h"

/* What is added to w. -0, and not 0, changes no bit of any number: 0 would make a +0 of a -0. */
static WB_HD float wb_norm_offset(wb_norm norm) {
    return norm.zero_centered ? 1.0f : -0.0f;
}

static WB_HD float wb_norm_factor(wb_norm norm, int64_t i) {
    return norm.w ? wb_add(norm.w[i], wb_norm_offset(norm)) : 1.0f;
}

#endif
