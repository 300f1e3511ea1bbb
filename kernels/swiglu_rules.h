/* swiglu_rules.h - one element of the clamped SwiGLU and of its gradient: where a NaN and a value at the
 * limit go is a choice, which both backends have from here. Refuses: the plain SwiGLU, rows. */
#ifndef WB_SWIGLU_RULES_H
#define WB_SWIGLU_RULES_H

#include "wb_exact_math.h"
#include "wb_ops_moe.h"

/* A NaN stays one. */
static WB_HD float wb_clamped_gate(float gate, float limit) {
    return gate > limit ? limit : gate;
}
static WB_HD float wb_clamped_up(float up, float limit) {
    const float above = up < -limit ? -limit : up;
    return above > limit ? limit : above;
}

static WB_HD float wb_clamped_swiglu_of(wb_clamped_swiglu c, float gate, float up) {
    const float g = wb_clamped_gate(gate, c.limit), u = wb_clamped_up(up, c.limit);
    return wb_mul(wb_add(u, c.offset), wb_mul(g, wb_sigmoid(wb_mul(c.alpha, g))));
}

/* The gradients of gate and up from d, that of the result. At the limit itself there is one. */
static WB_HD void wb_clamped_swiglu_gradient(wb_clamped_swiglu c, float gate, float up, float d, float *dgate,
                                             float *dup) {
    const float g = wb_clamped_gate(gate, c.limit), u = wb_clamped_up(up, c.limit);
    const float s = wb_sigmoid(wb_mul(c.alpha, g)), turned = wb_mul(g, s);
    const float slope = wb_fma(wb_mul(c.alpha, turned), wb_sub(1.0f, s), s);
    *dgate = gate > c.limit ? 0.0f : wb_mul(wb_mul(d, wb_add(u, c.offset)), slope);
    *dup = up > c.limit || up < -c.limit ? 0.0f : wb_mul(d, turned);
}

#endif
