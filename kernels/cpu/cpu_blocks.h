/* cpu_blocks.h - what packing and the products without packing share: where a row starts, and eight columns
 * of eight rows at once, transposed in registers.
 */
#ifndef WB_CPU_BLOCKS_H
#define WB_CPU_BLOCKS_H

#include "cpu/cpu_panel.h"

#if defined(__clang__)
#define WB_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define WB_UNROLL _Pragma("GCC unroll 16")
#else
#define WB_UNROLL
#endif

WB_INLINE int64_t row_start(matrix_rows m, int64_t i) {
    return (m.index ? m.index[i] : i) * m.stride;
}

#if defined(__AVX2__) && defined(__FMA__)

/* Eight columns of eight rows: column i of rows 0..7 in v[i]. */
typedef struct eight_columns {
    __m256 v[8];
} eight_columns;

/* The second half of an 8 x 8 transpose; the loads were the first: a..d are columns 0-3 of rows 0-3, low,
 * and 4-7, high; e..h columns 4-7. */
WB_INLINE eight_columns transpose_8x8(__m256 a, __m256 b, __m256 c, __m256 d, __m256 e, __m256 f, __m256 g,
                                      __m256 h) {
    __m256 ab_lo = _mm256_unpacklo_ps(a, b), ab_hi = _mm256_unpackhi_ps(a, b);
    __m256 cd_lo = _mm256_unpacklo_ps(c, d), cd_hi = _mm256_unpackhi_ps(c, d);
    __m256 ef_lo = _mm256_unpacklo_ps(e, f), ef_hi = _mm256_unpackhi_ps(e, f);
    __m256 gh_lo = _mm256_unpacklo_ps(g, h), gh_hi = _mm256_unpackhi_ps(g, h);
    return (eight_columns){{_mm256_shuffle_ps(ab_lo, cd_lo, 0x44), _mm256_shuffle_ps(ab_lo, cd_lo, 0xee),
                            _mm256_shuffle_ps(ab_hi, cd_hi, 0x44), _mm256_shuffle_ps(ab_hi, cd_hi, 0xee),
                            _mm256_shuffle_ps(ef_lo, gh_lo, 0x44), _mm256_shuffle_ps(ef_lo, gh_lo, 0xee),
                            _mm256_shuffle_ps(ef_hi, gh_hi, 0x44), _mm256_shuffle_ps(ef_hi, gh_hi, 0xee)}};
}

WB_INLINE __m256 load_two_f32(const float *low, const float *high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

WB_INLINE __m256 load_two_bf16(const uint16_t *low, const uint16_t *high) {
    __m128i both =
        _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)low), _mm_loadl_epi64((const __m128i *)high));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(both), 16));
}

WB_INLINE eight_columns load_8x8_f32(const float *const row[8], int64_t k) {
    return transpose_8x8(
        load_two_f32(row[0] + k, row[4] + k), load_two_f32(row[1] + k, row[5] + k),
        load_two_f32(row[2] + k, row[6] + k), load_two_f32(row[3] + k, row[7] + k),
        load_two_f32(row[0] + k + 4, row[4] + k + 4), load_two_f32(row[1] + k + 4, row[5] + k + 4),
        load_two_f32(row[2] + k + 4, row[6] + k + 4), load_two_f32(row[3] + k + 4, row[7] + k + 4));
}

WB_INLINE eight_columns load_8x8_bf16(const uint16_t *const row[8], int64_t k) {
    return transpose_8x8(
        load_two_bf16(row[0] + k, row[4] + k), load_two_bf16(row[1] + k, row[5] + k),
        load_two_bf16(row[2] + k, row[6] + k), load_two_bf16(row[3] + k, row[7] + k),
        load_two_bf16(row[0] + k + 4, row[4] + k + 4), load_two_bf16(row[1] + k + 4, row[5] + k + 4),
        load_two_bf16(row[2] + k + 4, row[6] + k + 4), load_two_bf16(row[3] + k + 4, row[7] + k + 4));
}

#endif

#endif
