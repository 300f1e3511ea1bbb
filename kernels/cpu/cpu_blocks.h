/* cpu_blocks.h - what packing and the products without packing share: where a row starts, and a block of a
 * transposed matrix: a vector of each of BLOCK rows, transposed in registers.
 */
#ifndef WB_CPU_BLOCKS_H
#define WB_CPU_BLOCKS_H

#include "cpu/cpu_panel.h"

#if defined(__clang__)
#define WB_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define WB_UNROLL _Pragma("GCC unroll 32")
#else
#define WB_UNROLL
#endif

WB_INLINE int64_t row_start(matrix_rows m, int64_t i) {
    return (m.index ? m.index[i] : i) * m.stride;
}

/* BLOCK rows of BLOCK dwords each, a vector a row; transposed: dword i of all rows in v[i]. A dword is one
 * f32 or two bf16, of which the lower half comes first. */
#if defined(__AVX512F__)

enum { BLOCK = 16 };
typedef __m512 block_vector;
typedef struct block_columns {
    block_vector v[BLOCK];
} block_columns;

WB_INLINE block_vector block_set(float x) {
    return _mm512_set1_ps(x);
}
WB_INLINE block_vector block_read(const float *p) {
    return _mm512_loadu_ps(p);
}
WB_INLINE void block_store(float *p, block_vector x) {
    _mm512_storeu_ps(p, x);
}
WB_INLINE block_vector block_fma(block_vector a, block_vector b, block_vector c) {
    return _mm512_fmadd_ps(a, b, c);
}
WB_INLINE block_vector block_lower_bf16(block_vector x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16));
}
WB_INLINE block_vector block_upper_bf16(block_vector x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int32_t)0xffff0000)));
}

/* Four steps that each exchange half of every vector with another one: pairs of dwords, of quads, then
 * quarters of vectors, twice. */
WB_INLINE block_columns load_block(const char *const row[BLOCK], int64_t offset) {
    __m512 x[16], y[16];
    block_columns out;
    WB_UNROLL
    for (int j = 0; j < 16; j++) x[j] = _mm512_loadu_ps(row[j] + offset);
    WB_UNROLL
    for (int j = 0; j < 16; j += 2) {
        y[j] = _mm512_unpacklo_ps(x[j], x[j + 1]);
        y[j + 1] = _mm512_unpackhi_ps(x[j], x[j + 1]);
    }
    WB_UNROLL
    for (int j = 0; j < 16; j += 4) { /* x[j + i]: in quarter q dword 4 q + i of rows j .. j + 3 */
        x[j] = _mm512_shuffle_ps(y[j], y[j + 2], 0x44);
        x[j + 1] = _mm512_shuffle_ps(y[j], y[j + 2], 0xee);
        x[j + 2] = _mm512_shuffle_ps(y[j + 1], y[j + 3], 0x44);
        x[j + 3] = _mm512_shuffle_ps(y[j + 1], y[j + 3], 0xee);
    }
    WB_UNROLL
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0x44);
        y[4 + i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0xee);
        y[8 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x44);
        y[12 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xee);
    }
    WB_UNROLL
    for (int i = 0; i < 4; i++) {
        out.v[i] = _mm512_shuffle_f32x4(y[i], y[8 + i], 0x88);
        out.v[4 + i] = _mm512_shuffle_f32x4(y[i], y[8 + i], 0xdd);
        out.v[8 + i] = _mm512_shuffle_f32x4(y[4 + i], y[12 + i], 0x88);
        out.v[12 + i] = _mm512_shuffle_f32x4(y[4 + i], y[12 + i], 0xdd);
    }
    return out;
}

#elif defined(__AVX2__) && defined(__FMA__)

enum { BLOCK = 8 };
typedef __m256 block_vector;
typedef struct block_columns {
    block_vector v[BLOCK];
} block_columns;

WB_INLINE block_vector block_set(float x) {
    return _mm256_set1_ps(x);
}
WB_INLINE block_vector block_read(const float *p) {
    return _mm256_loadu_ps(p);
}
WB_INLINE void block_store(float *p, block_vector x) {
    _mm256_storeu_ps(p, x);
}
WB_INLINE block_vector block_fma(block_vector a, block_vector b, block_vector c) {
    return _mm256_fmadd_ps(a, b, c);
}
WB_INLINE block_vector block_lower_bf16(block_vector x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
}
WB_INLINE block_vector block_upper_bf16(block_vector x) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32((int32_t)0xffff0000)));
}

WB_INLINE __m256 load_halves(const char *low, const char *high) {
    const __m128 first = _mm_loadu_ps((const float *)(const void *)low);
    return _mm256_insertf128_ps(_mm256_castps128_ps256(first),
                                _mm_loadu_ps((const float *)(const void *)high), 1);
}

/* The loads are the first step: a[i] has four dwords of row i, low, and of row i + 4, high. */
WB_INLINE block_columns load_block(const char *const row[BLOCK], int64_t offset) {
    block_columns out;
    WB_UNROLL
    for (int half = 0; half < 2; half++, offset += 16) {
        __m256 a[4], lo[2], hi[2];
        WB_UNROLL
        for (int i = 0; i < 4; i++) a[i] = load_halves(row[i] + offset, row[i + 4] + offset);
        WB_UNROLL
        for (int i = 0; i < 2; i++) {
            lo[i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            hi[i] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        out.v[4 * half] = _mm256_shuffle_ps(lo[0], lo[1], 0x44);
        out.v[4 * half + 1] = _mm256_shuffle_ps(lo[0], lo[1], 0xee);
        out.v[4 * half + 2] = _mm256_shuffle_ps(hi[0], hi[1], 0x44);
        out.v[4 * half + 3] = _mm256_shuffle_ps(hi[0], hi[1], 0xee);
    }
    return out;
}

#endif

#endif
