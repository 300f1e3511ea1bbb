/* router_rules.h - the rules with a choice in them that both backends must share, bit for bit: order and ties,
 * NaN, rounding, the transcendental functions of the routers, the lane order of sums, the gate of one row.
 *
 * Owns: static inline functions for host and device. Refuses: memory, threads, whole ops.
 *
 * Same bits everywhere: only + - * / sqrt, explicit fused multiply-adds and integer operations, each rounded to
 * nearest even; nothing is left for a compiler to contract, in C or in CUDA. (A NaN is a NaN: its payload is
 * not part of the promise.) There is no branch that an auto-vectoriser could not turn into a select.
 */
#ifndef WB_ROUTER_RULES_H
#define WB_ROUTER_RULES_H

#include "wb_kernels.h"

#include <math.h>
#include <string.h>

#ifdef __CUDACC__
#define WB_HD __host__ __device__ __forceinline__
#else
#define WB_HD inline
#endif

/* ---- arithmetic that no compiler contracts -------------------------------------------------------- */

#ifdef __CUDA_ARCH__
static WB_HD float wb_add(float a, float b) {
    return __fadd_rn(a, b);
}
static WB_HD float wb_sub(float a, float b) {
    return __fsub_rn(a, b);
}
static WB_HD float wb_mul(float a, float b) {
    return __fmul_rn(a, b);
}
static WB_HD float wb_div(float a, float b) {
    return __fdiv_rn(a, b);
}
static WB_HD float wb_sqrt(float a) {
    return __fsqrt_rn(a);
}
static WB_HD float wb_fma(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}
static WB_HD uint32_t wb_float_bits(float a) {
    return __float_as_uint(a);
}
static WB_HD float wb_bits_float(uint32_t a) {
    return __uint_as_float(a);
}
#else
/* The host is built with -ffp-contract=off. */
static WB_HD float wb_add(float a, float b) {
    return a + b;
}
static WB_HD float wb_sub(float a, float b) {
    return a - b;
}
static WB_HD float wb_mul(float a, float b) {
    return a * b;
}
static WB_HD float wb_div(float a, float b) {
    return a / b;
}
static WB_HD float wb_sqrt(float a) {
    return sqrtf(a);
}
static WB_HD float wb_fma(float a, float b, float c) {
    return fmaf(a, b, c);
}
static WB_HD uint32_t wb_float_bits(float a) {
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
static WB_HD float wb_bits_float(uint32_t bits) {
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
#endif

/* ---- bf16 ------------------------------------------------------------------------------------------ */

static WB_HD float wb_bf16_to_f32(uint16_t a) {
    return wb_bits_float((uint32_t)a << 16);
}

/* To nearest even; overflow goes to infinity; a NaN stays a (quiet) NaN. */
static WB_HD uint16_t wb_f32_to_bf16(float a) {
    uint32_t bits = wb_float_bits(a);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/* ---- functions ------------------------------------------------------------------------------------- */

/* exp(x), 1.1 ulp at most where the result is normal. -inf gives 0, x > 88.8 infinity, NaN a NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2; a polynomial of degree 6 in r; times 2^n in two exact steps. */
static WB_HD float wb_expf(float x) {
    const float round_to_int =
        12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float y = x < -104.0f ? -104.0f : x;
    y = y > 89.0f ? 89.0f : y;
    float shifted = wb_fma(y, 1.44269502f, round_to_int);
    float n = wb_sub(shifted, round_to_int);
    float r = wb_fma(n, -0.693147182f, y);
    r = wb_fma(n, 1.90465432e-9f, r);
    float q = 0.00137512793f;
    q = wb_fma(q, r, 0.0083689522f);
    q = wb_fma(q, r, 0.0416695401f);
    q = wb_fma(q, r, 0.166665182f);
    q = wb_fma(q, r, 0.499999881f);
    q = wb_fma(q, r, 1.0f);
    q = wb_fma(q, r, 1.0f);
    uint32_t exponent = wb_float_bits(shifted) - 0x4b400000u; /* n as two's complement, -150..128 */
    uint32_t half = ((exponent + 256u) >> 1) - 128u;          /* floor(n / 2) */
    float step1 = wb_bits_float((half + 127u) << 23);
    float step2 = wb_bits_float((exponent - half + 127u) << 23);
    return wb_mul(wb_mul(q, step1), step2);
}

/* log(1 + f) for f in [-0.30, 0.42], about 1.5 ulp: 2 atanh(f / (2 + f)). */
static WB_HD float wb_log1p_near_0(float f) {
    float s = wb_div(f, wb_add(2.0f, f));
    float z = wb_mul(s, s);
    float p = 0.111111112f;
    p = wb_fma(p, z, 0.142857149f);
    p = wb_fma(p, z, 0.200000003f);
    p = wb_fma(p, z, 0.333333343f);
    float twice = wb_add(s, s);
    return wb_fma(twice, wb_mul(z, p), twice);
}

/* log(1 + e) for e in [0, 1]; NaN gives a NaN. */
static WB_HD float wb_log1p_unit(float e) {
    bool upper = e > 0.41421357f; /* sqrt 2 - 1: beyond it, log 2 + log(1 + (e - 1) / 2) */
    float f = upper ? wb_mul(wb_sub(e, 1.0f), 0.5f) : e;
    float y = wb_log1p_near_0(f);
    return upper ? wb_add(0.693147182f, y) : y;
}

/* log(x), about 2 ulp. 0 gives -inf, +inf gives +inf, NaN and negative numbers a NaN. */
static WB_HD float wb_logf(float x) {
    bool tiny = x < 1.17549435e-38f;
    float y = tiny ? wb_mul(x, 16777216.0f) : x;
    uint32_t bits = wb_float_bits(y);
    uint32_t above = bits - 0x3f3504f3u; /* sqrt(1/2): the mantissa goes to [sqrt 1/2, sqrt 2) */
    int32_t k = (int32_t)((above >> 23) ^ 0x100u) - 0x100;
    float mantissa = wb_bits_float((above & 0x007fffffu) + 0x3f3504f3u);
    float n = (float)(tiny ? k - 24 : k);
    float result = wb_fma(n, 0.693147182f, wb_log1p_near_0(wb_sub(mantissa, 1.0f)));
    result = x > 3.40282347e38f ? x : result;
    result = x == 0.0f ? wb_bits_float(0xff800000u) : result;
    return x >= 0.0f ? result : wb_bits_float(0x7fc00000u);
}

static WB_HD float wb_sigmoid(float x) {
    float e = wb_expf(x < 0.0f ? x : -x); /* in [0, 1]: no overflow on either side */
    return wb_div(x < 0.0f ? e : 1.0f, wb_add(1.0f, e));
}

/* log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)) */
static WB_HD float wb_softplus(float x) {
    float y = wb_log1p_unit(wb_expf(x < 0.0f ? x : -x));
    return x > 0.0f ? wb_add(x, y) : y;
}

static WB_HD float wb_sqrtsoftplus(float x) {
    return wb_sqrt(wb_softplus(x));
}

static WB_HD float wb_silu(float x) {
    return wb_mul(x, wb_sigmoid(x));
}

/* ---- sums ------------------------------------------------------------------------------------------- */

/* A sum over a row adds element i to lane i mod 16, ascending (starting from 0), and then folds the lanes as here. A
 * sum of products uses one fma for each element. A maximum does not depend on the order. */
enum { WB_LANES = 16 };

static WB_HD float wb_lanes_sum(const float *lanes) {
    float eight[8], four[4];
    for (int i = 0; i < 8; i++) eight[i] = wb_add(lanes[i], lanes[i + 8]);
    for (int i = 0; i < 4; i++) four[i] = wb_add(eight[i], eight[i + 4]);
    return wb_add(wb_add(four[0], four[2]), wb_add(four[1], four[3]));
}

/* ---- order ------------------------------------------------------------------------------------------ */

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

/* The order of slots as one number, no two alike in a row: the larger comes first. Key descending, then id
 * ascending, NaN last. */
static WB_HD uint64_t wb_rank(uint32_t key_order, uint32_t id) {
    return (uint64_t)key_order << 32 | (uint64_t)(0xffffffffu - id);
}

static WB_HD uint32_t wb_rank_id(uint64_t rank) {
    return 0xffffffffu - (uint32_t)rank;
}

/* ---- selection -------------------------------------------------------------------------------------- */

/* s of the sigmoid-like types; the softmax types need none for one expert. */
static WB_HD float wb_router_score(wb_router_type type, float z) {
    return type == WB_ROUTER_SIGMOID ? wb_sigmoid(z) : wb_sqrtsoftplus(z);
}

static WB_HD bool wb_router_is_softmax(wb_router_type type) {
    return type == WB_ROUTER_SOFTMAX || type == WB_ROUTER_SOFTMAX_NORM || type == WB_ROUTER_TOPK_SOFTMAX;
}

/* The selection key of one expert: the score, plus `bias` where there is one. A softmax is monotone, so its key is the logit itself: no two logits tie by
 * rounding or underflow of p. Its bias is ignored. */
static WB_HD float wb_router_key(wb_router_type type, float z, float bias) {
    return wb_router_is_softmax(type) ? z : wb_add(wb_router_score(type, z), bias);
}

/* The score of a group of experts from the two largest of its keys (as wb_key_order; `second` is ignored in a group of
 * one): their sum, or for the softmax types the largest. Groups are ordered as experts are: wb_rank of the
 * wb_key_order of this. */
static WB_HD float wb_router_group_score(wb_router_type type, uint32_t first, uint32_t second,
                                         int32_t group_size) {
    float largest = wb_key_of_order(first);
    return wb_router_is_softmax(type) || group_size < 2 ? largest : wb_add(largest, wb_key_of_order(second));
}

/* ---- the gate of one row ----------------------------------------------------------------------------- */

/* SOFTMAX: `max` over all E logits and `sum` of exp(z - max) in lane order; p of one expert. */
static WB_HD float wb_gate_dense_p(float z, float max, float sum) {
    return wb_div(wb_expf(wb_sub(z, max)), sum);
}

/* SOFTMAX backward: dz of every expert first, `dot` being the fma chain of g_j p_j over ascending slots; then for each
 * slot, ascending, what its choice adds to it. w of a slot is c p. */
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

/* w[K] from z[K], the logits of the slots' experts; all types but SOFTMAX, whose sum runs over all experts. */
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

/* dz[K] of the slots from z[K] and g[K] = dweights; all types but SOFTMAX. `dz` may not be `z` or `g`. */
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
