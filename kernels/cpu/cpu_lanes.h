/* cpu_lanes.h - sixteen float lanes, whatever the width of the machine's vectors, and the row reductions
 * on them.
 *
 * Owns: the type `lanes` and its operations, which give the same bits for every instruction set. Refuses:
 * ops.
 */
#ifndef WB_CPU_LANES_H
#define WB_CPU_LANES_H

#include "cpu/cpu_ops.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

#if defined(__AVX512F__)

typedef struct lanes {
    __m512 v;
} lanes;

WB_INLINE lanes lanes_set(float x) {
    return (lanes){_mm512_set1_ps(x)};
}
WB_INLINE lanes lanes_load(const float *p) {
    return (lanes){_mm512_loadu_ps(p)};
}
WB_INLINE void lanes_store(float *p, lanes x) {
    _mm512_storeu_ps(p, x.v);
}
WB_INLINE lanes lanes_mul(lanes a, lanes b) {
    return (lanes){_mm512_mul_ps(a.v, b.v)};
}
WB_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) {
    return (lanes){_mm512_fmadd_ps(a.v, b.v, c.v)};
}
WB_INLINE __m256 lanes_eight(lanes x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
}
WB_INLINE lanes lanes_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return (lanes){_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

#elif defined(__AVX2__) && defined(__FMA__)

typedef struct lanes {
    __m256 lo, hi;
} lanes;

WB_INLINE lanes lanes_set(float x) {
    __m256 v = _mm256_set1_ps(x);
    return (lanes){v, v};
}
WB_INLINE lanes lanes_load(const float *p) {
    return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
WB_INLINE void lanes_store(float *p, lanes x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
WB_INLINE lanes lanes_mul(lanes a, lanes b) {
    return (lanes){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
WB_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) {
    return (lanes){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
WB_INLINE __m256 lanes_eight(lanes x) {
    return _mm256_add_ps(x.lo, x.hi);
}
WB_INLINE __m256 widen_8_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
WB_INLINE lanes lanes_load_bf16(const uint16_t *p) {
    return (lanes){widen_8_bf16(p), widen_8_bf16(p + 8)};
}

#else

typedef struct lanes {
    float v[WB_LANES];
} lanes;

WB_INLINE lanes lanes_set(float x) {
    lanes y;
    for (int i = 0; i < WB_LANES; i++) y.v[i] = x;
    return y;
}
WB_INLINE lanes lanes_load(const float *p) {
    lanes y;
    for (int i = 0; i < WB_LANES; i++) y.v[i] = p[i];
    return y;
}
WB_INLINE void lanes_store(float *p, lanes x) {
    for (int i = 0; i < WB_LANES; i++) p[i] = x.v[i];
}
WB_INLINE lanes lanes_mul(lanes a, lanes b) {
    for (int i = 0; i < WB_LANES; i++) a.v[i] *= b.v[i];
    return a;
}
WB_INLINE lanes lanes_fma(lanes a, lanes b, lanes c) {
    for (int i = 0; i < WB_LANES; i++) c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
WB_INLINE lanes lanes_load_bf16(const uint16_t *p) {
    lanes y;
    for (int i = 0; i < WB_LANES; i++) y.v[i] = wb_bf16_to_f32(p[i]);
    return y;
}

#endif

/* wb_lanes_sum, without a way through memory where there are vectors. */
WB_INLINE float lanes_sum(lanes x) {
#if defined(__AVX2__) && defined(__FMA__)
    const __m256 eight = lanes_eight(x);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    return wb_lanes_sum(x.v);
#endif
}

/* Asks for the cache line of `p`. */
WB_INLINE void lanes_prefetch(const void *p) {
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
}

/* The sum of acc's lanes and of the products of a row's last n elements, fewer than WB_LANES. */
static inline float lanes_sum_rest(lanes acc, const float *x, const float *y, int64_t n) {
    float sum[WB_LANES];
    if (n == 0) return lanes_sum(acc);
    lanes_store(sum, acc);
    for (int64_t i = 0; i < n; i++) sum[i] = fmaf(x[i], y[i], sum[i]);
    return wb_lanes_sum(sum);
}

/* Sum of x[i] * y[i]: one fma for each element into lane i mod 16. */
static inline float row_dot(const float *x, const float *y, int64_t n) {
    lanes acc = lanes_set(0.0f);
    int64_t i = 0;
    for (; i + WB_LANES <= n; i += WB_LANES) acc = lanes_fma(lanes_load(x + i), lanes_load(y + i), acc);
    return lanes_sum_rest(acc, x + i, y + i, n - i);
}

/* Largest x[i]; n >= 1. */
static inline float row_max(const float *x, int64_t n) {
    float max[WB_LANES];
    for (int lane = 0; lane < WB_LANES; lane++) max[lane] = x[0];
    int64_t i = 0;
    for (; i + WB_LANES <= n; i += WB_LANES)
        for (int lane = 0; lane < WB_LANES; lane++)
            max[lane] = x[i + lane] > max[lane] ? x[i + lane] : max[lane];
    for (; i < n; i++) max[0] = x[i] > max[0] ? x[i] : max[0];
    for (int lane = 1; lane < WB_LANES; lane++) max[0] = max[lane] > max[0] ? max[lane] : max[0];
    return max[0];
}

/* Sum of exp(x[i] - max). */
static inline float row_exp_sum(const float *x, int64_t n, float max) {
    float sum[WB_LANES] = {0.0f};
    int64_t i = 0;
    for (; i + WB_LANES <= n; i += WB_LANES)
        for (int lane = 0; lane < WB_LANES; lane++) sum[lane] += wb_expf(x[i + lane] - max);
    for (int lane = 0; i < n; i++, lane++) sum[lane] += wb_expf(x[i] - max);
    return wb_lanes_sum(sum);
}

/* Sum of x[i]. */
static inline float row_sum(const float *x, int64_t n) {
    float sum[WB_LANES] = {0.0f};
    int64_t i = 0;
    for (; i + WB_LANES <= n; i += WB_LANES)
        for (int lane = 0; lane < WB_LANES; lane++) sum[lane] += x[i + lane];
    for (int lane = 0; i < n; i++, lane++) sum[lane] += x[i];
    return wb_lanes_sum(sum);
}

/* y[i] = exp(x[i] - max), returning their sum; y may be x. */
static inline float row_exp(const float *x, int64_t n, float max, float *y) {
    WB_INDEPENDENT
    for (int64_t i = 0; i < n; i++) y[i] = wb_expf(x[i] - max);
    return row_sum(y, n);
}

#endif
