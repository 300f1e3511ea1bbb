/* router_rules.h - the rules in which two backends could differ and must not, by a bit: the order of experts
 * (of tokens, in sampling), ties and NaN, selection keys and groups, the gate of one row.
 *
 * Owns: static inline functions for host and device. Refuses: exact arithmetic (wb_exact_math.h), memory,
 * threads, whole ops.
 */
#ifndef WB_ROUTER_RULES_H
#define WB_ROUTER_RULES_H

#include "wb_exact_math.h"
#include "wb_ops_moe.h"

/* ---- order ----------------------------------------------------------------------------------- */

/* An unsigned number that grows with the key: NaN is 0, below -inf; -0 and +0 are equal. */
static WB_HD uint32_t wb_key_order(float key) {
    uint32_t bits = wb_float_bits(wb_add(key, 0.0f)); /* -0 becomes +0 */
    uint32_t order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0u : order;
}

/* The key again (a NaN for 0). */
static WB_HD float wb_key_of_order(uint32_t order) {
    uint32_t bits = (order & 0x80000000u) != 0 ? order & 0x7fffffffu : ~order;
    return wb_bits_float(order == 0 ? 0x7fc00000u : bits);
}

/* The order of choices as one number, no two alike in a row: the larger comes first. Key descending, then id
 * ascending, NaN last. */
static WB_HD uint64_t wb_choice_order(uint32_t key_order, uint32_t id) {
    return (uint64_t)key_order << 32 | (uint64_t)(0xffffffffu - id);
}

static WB_HD uint32_t wb_choice_order_id(uint64_t choice_order) {
    return 0xffffffffu - (uint32_t)choice_order;
}

/* ---- selection ------------------------------------------------------------------------------- */

/* s of the sigmoid-like types; the softmax types need none for one expert. */
static WB_HD float wb_router_score(wb_router_type type, float z) {
    return type == WB_ROUTER_SIGMOID ? wb_sigmoid(z) : wb_sqrtsoftplus(z);
}

static WB_HD bool wb_router_is_softmax(wb_router_type type) {
    return type == WB_ROUTER_SOFTMAX || type == WB_ROUTER_SOFTMAX_NORM || type == WB_ROUTER_TOPK_SOFTMAX;
}

/* The selection key of one expert: the score, plus `bias` where there is one. A softmax is monotone, so
 * its key is the logit itself: no two logits tie by rounding or underflow of p. Its bias is ignored. */
static WB_HD float wb_router_key(wb_router_type type, float z, float bias) {
    return wb_router_is_softmax(type) ? z : wb_add(wb_router_score(type, z), bias);
}

/* The score of a group of experts from the two largest of its keys (as wb_key_order; `second` is ignored
 * in a group of one): their sum, or for the softmax types the largest. Groups are ordered as experts are:
 * wb_choice_order of the wb_key_order of this. */
static WB_HD float wb_router_group_score(wb_router_type type, uint32_t first, uint32_t second,
                                         int32_t group_size) {
    float largest = wb_key_of_order(first);
    return wb_router_is_softmax(type) || group_size < 2 ? largest : wb_add(largest, wb_key_of_order(second));
}

/* ---- the gate of one row --------------------------------------------------------------------- */

/* SOFTMAX: `max` over all E logits and `sum` of exp(z - max) in lane order; p of one expert. */
static WB_HD float wb_gate_dense_p(float z, float max, float sum) {
    return wb_div(wb_expf(wb_sub(z, max)), sum);
}

/* SOFTMAX backward: dz of every expert first, `dot` being the fma chain of g_j p_j over ascending choices;
 * then for each choice, ascending, what it adds to its expert's. w of a choice is c p. */
static WB_HD float wb_gate_dense_dz(float p, float c, float dot) {
    return wb_mul(p, -wb_mul(c, dot));
}
static WB_HD float wb_gate_dense_dz_chosen(float dz, float p, float c, float g) {
    return wb_fma(wb_mul(c, g), p, dz);
}

/* 1 / (sum of K values, ascending + 1e-20), or 1 without normalisation. */
static WB_HD float wb_gate_divisor(const wb_router *router, const float *s) {
    if (!router->normalize) return 1.0f;
    float sum = 0.0f;
    for (int32_t j = 0; j < router->top_k; j++) sum = wb_add(sum, s[j]);
    return wb_add(sum, 1e-20f);
}

/* q[K] = softmax of z[K], the sum ascending. */
static WB_HD void wb_gate_softmax(int32_t K, const float *z, float *q) {
    float max = z[0], sum = 0.0f;
    for (int32_t j = 1; j < K; j++) max = z[j] > max ? z[j] : max;
    for (int32_t j = 0; j < K; j++) {
        q[j] = wb_expf(wb_sub(z[j], max));
        sum = wb_add(sum, q[j]);
    }
    for (int32_t j = 0; j < K; j++) q[j] = wb_div(q[j], sum);
}

/* w[K] from z[K], the logits of the choices' experts; all types but SOFTMAX, whose sum runs over all
 * experts. */
static WB_HD void wb_gate_row(const wb_router *router, const float *z, float *w) {
    int32_t K = router->top_k;
    float c = router->scale;
    if (wb_router_is_softmax(router->type)) {
        wb_gate_softmax(K, z, w);
        for (int32_t j = 0; j < K; j++) w[j] = wb_mul(c, w[j]);
        return;
    }
    for (int32_t j = 0; j < K; j++) w[j] = wb_router_score(router->type, z[j]);
    float divisor = wb_gate_divisor(router, w);
    for (int32_t j = 0; j < K; j++) w[j] = wb_div(wb_mul(c, w[j]), divisor);
}

/* dz[K] of the choices from z[K] and g[K] = dweights; all types but SOFTMAX. `dz` may not be `z` or `g`. */
static WB_HD void wb_gate_row_backward(const wb_router *router, const float *z, const float *g, float *dz) {
    int32_t K = router->top_k;
    float c = router->scale, dot = 0.0f;
    if (wb_router_is_softmax(router->type)) {
        wb_gate_softmax(K, z, dz);
        for (int32_t j = 0; j < K; j++) dot = wb_fma(g[j], dz[j], dot);
        for (int32_t j = 0; j < K; j++) dz[j] = wb_mul(wb_mul(c, dz[j]), wb_sub(g[j], dot));
        return;
    }
    for (int32_t j = 0; j < K; j++) dz[j] = wb_router_score(router->type, z[j]);
    float divisor = wb_gate_divisor(router, dz);
    if (router->normalize) {
        for (int32_t j = 0; j < K; j++) dot = wb_fma(g[j], dz[j], dot);
        dot = wb_div(dot, divisor);
    }
    for (int32_t j = 0; j < K; j++) {
        float s = dz[j], ds = wb_mul(wb_div(c, divisor), wb_sub(g[j], dot));
        if (router->type == WB_ROUTER_SIGMOID) {
            dz[j] = wb_mul(ds, wb_mul(s, wb_sub(1.0f, s)));
        } else {
            float slope = wb_div(wb_sigmoid(z[j]), wb_add(s, s));
            dz[j] = s == 0.0f ? 0.0f : wb_mul(ds, slope);
        }
    }
}

#endif
