/* wb_exact_math.h - arithmetic and functions that give the same bits on every machine and on both backends
 * (not installed): single operations, bf16, exp, log and what is made of them, the lane order of sums.
 *
 * Owns: static inline functions for host and device. Refuses: the router's rules (router_rules.h), memory,
 * threads, whole ops.
 *
 * Same bits everywhere: only + - * / sqrt, explicit fused multiply-adds and integer operations, each
 * rounded to nearest even; nothing is left for a compiler to contract, in C or in CUDA. (A NaN is a NaN:
 * its payload is not part of the promise.) There is no branch that an auto-vectoriser could not turn into
 * a select.
 */
#ifndef WB_EXACT_MATH_H
#define WB_EXACT_MATH_H

#include "wb_base.h"
#include "wb_host_device.h"

#include <math.h>
#include <string.h>

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

/* ---- bf16 ------------------------------------------------------------------------------------ */

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

/* ---- functions ------------------------------------------------------------------------------- */

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
    uint32_t halved = ((exponent + 256u) >> 1) - 128u;        /* floor(n / 2) */
    float step1 = wb_bits_float((halved + 127u) << 23);
    float step2 = wb_bits_float((exponent - halved + 127u) << 23);
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

/* ---- sums ------------------------------------------------------------------------------------ */

/* A sum over a row adds element i to lane i mod 16, ascending (starting from 0), and then folds the lanes
 * as here. A sum of products uses one fma for each element. A maximum does not depend on the order. */
enum { WB_LANES = 16 };

static WB_HD float wb_lanes_sum(const float *lanes) {
    float eight[8], four[4];
    for (int i = 0; i < 8; i++) eight[i] = wb_add(lanes[i], lanes[i + 8]);
    for (int i = 0; i < 4; i++) four[i] = wb_add(eight[i], eight[i + 4]);
    return wb_add(wb_add(four[0], four[2]), wb_add(four[1], four[3]));
}

#endif
