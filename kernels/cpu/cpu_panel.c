/* cpu_panel.c - packing panels of B and the register tiles over them. See cpu_panel.h. */
#include "cpu_panel.h"

#if defined(__clang__)
#define WB_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define WB_UNROLL _Pragma("GCC unroll 16")
#else
#define WB_UNROLL
#endif

WB_INLINE int64_t row_start(matrix_rows m, int64_t i) {
    return (m.index != NULL ? m.index[i] : i) * m.stride;
}

/* ---- packing -------------------------------------------------------------------------------------------- */

#if defined(__AVX2__) && defined(__FMA__)

/* The second half of an 8 x 8 transpose; the loads were the first: a..d are columns 0-3 of rows 0-3, low, and 4-7,
 * high; e..h columns 4-7. Column i goes to `to` + i * PANEL. */
WB_INLINE void transpose_8x8(__m256 a, __m256 b, __m256 c, __m256 d, __m256 e, __m256 f, __m256 g, __m256 h,
                             float *to) {
    __m256 ab_lo = _mm256_unpacklo_ps(a, b), ab_hi = _mm256_unpackhi_ps(a, b);
    __m256 cd_lo = _mm256_unpacklo_ps(c, d), cd_hi = _mm256_unpackhi_ps(c, d);
    __m256 ef_lo = _mm256_unpacklo_ps(e, f), ef_hi = _mm256_unpackhi_ps(e, f);
    __m256 gh_lo = _mm256_unpacklo_ps(g, h), gh_hi = _mm256_unpackhi_ps(g, h);
    _mm256_storeu_ps(to + 0 * PANEL, _mm256_shuffle_ps(ab_lo, cd_lo, 0x44));
    _mm256_storeu_ps(to + 1 * PANEL, _mm256_shuffle_ps(ab_lo, cd_lo, 0xee));
    _mm256_storeu_ps(to + 2 * PANEL, _mm256_shuffle_ps(ab_hi, cd_hi, 0x44));
    _mm256_storeu_ps(to + 3 * PANEL, _mm256_shuffle_ps(ab_hi, cd_hi, 0xee));
    _mm256_storeu_ps(to + 4 * PANEL, _mm256_shuffle_ps(ef_lo, gh_lo, 0x44));
    _mm256_storeu_ps(to + 5 * PANEL, _mm256_shuffle_ps(ef_lo, gh_lo, 0xee));
    _mm256_storeu_ps(to + 6 * PANEL, _mm256_shuffle_ps(ef_hi, gh_hi, 0x44));
    _mm256_storeu_ps(to + 7 * PANEL, _mm256_shuffle_ps(ef_hi, gh_hi, 0xee));
}

WB_INLINE __m256 load_two_f32(const float *low, const float *high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

WB_INLINE __m256 load_two_bf16(const uint16_t *low, const uint16_t *high) {
    __m128i both =
        _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)low), _mm_loadl_epi64((const __m128i *)high));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(both), 16));
}

WB_INLINE void pack_step_f32(const float *const row[8], int64_t k, float *to) {
    transpose_8x8(load_two_f32(row[0] + k, row[4] + k), load_two_f32(row[1] + k, row[5] + k),
                  load_two_f32(row[2] + k, row[6] + k), load_two_f32(row[3] + k, row[7] + k),
                  load_two_f32(row[0] + k + 4, row[4] + k + 4), load_two_f32(row[1] + k + 4, row[5] + k + 4),
                  load_two_f32(row[2] + k + 4, row[6] + k + 4), load_two_f32(row[3] + k + 4, row[7] + k + 4),
                  to + k * PANEL);
}

WB_INLINE void pack_step_bf16(const uint16_t *const row[8], int64_t k, float *to) {
    transpose_8x8(load_two_bf16(row[0] + k, row[4] + k), load_two_bf16(row[1] + k, row[5] + k),
                  load_two_bf16(row[2] + k, row[6] + k), load_two_bf16(row[3] + k, row[7] + k),
                  load_two_bf16(row[0] + k + 4, row[4] + k + 4),
                  load_two_bf16(row[1] + k + 4, row[5] + k + 4),
                  load_two_bf16(row[2] + k + 4, row[6] + k + 4),
                  load_two_bf16(row[3] + k + 4, row[7] + k + 4), to + k * PANEL);
}

/* Eight rows, columns [0, n / 8 * 8), to the columns of `to`; returns how many were done. Meanwhile asks for the rows
 * that come next: the memory works while the tiles compute. */
WB_INLINE int64_t pack_8_f32(const float *const row[8], const float *const next[8], int64_t n, float *to) {
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        for (int j = 0; j < 8; j++) _mm_prefetch((const char *)(next[j] + k), _MM_HINT_T0);
        pack_step_f32(row, k, to);
        pack_step_f32(row, k + 8, to);
    }
    for (; k + 8 <= n; k += 8) pack_step_f32(row, k, to);
    return k;
}

WB_INLINE int64_t pack_8_bf16(const uint16_t *const row[8], const uint16_t *const next[8], int64_t n,
                              float *to) {
    int64_t k = 0;
    for (; k + 32 <= n; k += 32) {
        for (int j = 0; j < 8; j++) _mm_prefetch((const char *)(next[j] + k), _MM_HINT_T0);
        for (int64_t step = 0; step < 32; step += 8) pack_step_bf16(row, k + step, to);
    }
    for (; k + 8 <= n; k += 8) pack_step_bf16(row, k, to);
    return k;
}

#else

WB_INLINE int64_t pack_8_f32(const float *const row[8], const float *const next[8], int64_t n, float *to) {
    (void)row, (void)next, (void)n, (void)to;
    return 0;
}

WB_INLINE int64_t pack_8_bf16(const uint16_t *const row[8], const uint16_t *const next[8], int64_t n,
                              float *to) {
    (void)row, (void)next, (void)n, (void)to;
    return 0;
}

#endif

void WB_CPU(pack_transposed)(matrix_rows m, int64_t first, int64_t rows, int64_t begin, int64_t k,
                             float *to) {
    for (int64_t eight = 0; eight < PANEL; eight += 8) {
        int64_t start[8], after[8], done;
        for (int64_t j = 0; j < 8; j++) {
            int64_t row = first + eight + j;
            start[j] = row_start(m, row < rows ? row : rows - 1) + begin;
            after[j] = row_start(m, row + PANEL < rows ? row + PANEL : rows - 1) + begin;
        }
        float *out = to + eight;
        if (m.dtype == WB_F32) {
            const float *row[8], *next[8];
            for (int j = 0; j < 8; j++) row[j] = (const float *)m.data + start[j];
            for (int j = 0; j < 8; j++) next[j] = (const float *)m.data + after[j];
            done = pack_8_f32(row, next, k, out);
            for (; done < k; done++)
                for (int j = 0; j < 8; j++) out[done * PANEL + j] = row[j][done];
        } else {
            const uint16_t *row[8], *next[8];
            for (int j = 0; j < 8; j++) row[j] = (const uint16_t *)m.data + start[j];
            for (int j = 0; j < 8; j++) next[j] = (const uint16_t *)m.data + after[j];
            done = pack_8_bf16(row, next, k, out);
            for (; done < k; done++)
                for (int j = 0; j < 8; j++) out[done * PANEL + j] = wb_bf16_to_f32(row[j][done]);
        }
    }
}

void WB_CPU(pack_straight)(matrix_rows m, int64_t first, int64_t k, int64_t begin, int64_t end, float *to) {
    int64_t columns = end - begin < PANEL ? end - begin : PANEL;
    for (int64_t i = 0; i < k; i++) {
        int64_t start = row_start(m, first + i) + begin;
        float *out = to + i * PANEL;
        if (m.dtype == WB_F32) {
            const float *row = (const float *)m.data + start;
            if (columns == PANEL)
                memcpy(out, row, PANEL * sizeof(float));
            else
                for (int64_t j = 0; j < PANEL; j++) out[j] = j < columns ? row[j] : 0.0f;
        } else {
            const uint16_t *row = (const uint16_t *)m.data + start;
            if (columns == PANEL)
                for (int j = 0; j < PANEL; j++) out[j] = wb_bf16_to_f32(row[j]);
            else
                for (int64_t j = 0; j < PANEL; j++) out[j] = j < columns ? wb_bf16_to_f32(row[j]) : 0.0f;
        }
    }
}

/* ---- the tile ------------------------------------------------------------------------------------------- */

/* C[rows][panels * PANEL] (+)= A B over k. A(r, i) = a[r * a_row + i * a_k]. `rows`, `panels` and the strides that are
 * 1 are constants where this is called, so that acc lives in registers. */
WB_INLINE void tile(int rows, int panels, int64_t k, const float *restrict a, int64_t a_row, int64_t a_k,
                    const float *restrict b, bool accumulate, float *restrict c, int64_t ldc) {
    lanes acc[TILE_ROWS][4];
    const int vectors = panels * PANEL_VECTORS;
    if (!accumulate)
        for (int r = 0; r < rows; r++) lanes_prefetch(c + r * ldc);
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = accumulate ? lanes_load(c + r * ldc + v * WB_LANES) : lanes_set(0.0f);
    }
    for (int64_t i = 0; i < k; i++) {
        lanes row[4];
        WB_UNROLL
        for (int v = 0; v < vectors; v++)
            row[v] =
                lanes_load(b + v / PANEL_VECTORS * PANEL_FLOATS + v % PANEL_VECTORS * WB_LANES + i * PANEL);
        WB_UNROLL
        for (int r = 0; r < rows; r++) {
            lanes x = lanes_set(a[r * a_row + i * a_k]);
            WB_UNROLL
            for (int v = 0; v < vectors; v++) acc[r][v] = lanes_fma(x, row[v], acc[r][v]);
        }
    }
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int v = 0; v < vectors; v++) lanes_store(c + r * ldc + v * WB_LANES, acc[r][v]);
    }
}

#define TILE_CASE(R, P)                                              \
    case (P)*16 + (R):                                               \
        if (a.packed)                                                \
            tile(R, P, k, a.a, 1, TILE_ROWS, b, accumulate, c, ldc); \
        else                                                         \
            tile(R, P, k, a.a, a.stride, 1, b, accumulate, c, ldc);  \
        break

static void run_tile(int64_t rows, int panels, int64_t k, tile_rows a, const float *b, bool accumulate,
                     float *c, int64_t ldc) {
    switch (panels * 16 + (int)rows) {
        TILE_CASE(1, MAX_PANELS);
#if !defined(__AVX512F__) /* there MAX_PANELS is 2 */
        TILE_CASE(1, 2);
#endif
        TILE_CASE(2, 2);
        TILE_CASE(3, 2);
        TILE_CASE(1, 1);
        TILE_CASE(2, 1);
        TILE_CASE(3, 1);
        TILE_CASE(4, 1);
#if defined(__AVX2__) && defined(__FMA__)
        TILE_CASE(5, 1);
        TILE_CASE(6, 1);
#endif
#if defined(__AVX512F__)
        TILE_CASE(7, 1);
        TILE_CASE(8, 1);
        TILE_CASE(9, 1);
        TILE_CASE(10, 1);
        TILE_CASE(11, 1);
        TILE_CASE(12, 1);
#endif
    default:
        break;
    }
}

/* The same where C has fewer columns than the panels: through a whole tile. */
static void run_edge_tile(int64_t rows, int panels, int64_t k, tile_rows a, const float *b, bool accumulate,
                          float *c, int64_t ldc, int64_t columns) {
    float whole[TILE_ROWS * 4 * WB_LANES] = {0.0f};
    int64_t width = (int64_t)panels * PANEL;
    size_t bytes = (size_t)columns * sizeof(float);
    if (accumulate)
        for (int64_t r = 0; r < rows; r++) memcpy(whole + r * width, c + r * ldc, bytes);
    run_tile(rows, panels, k, a, b, accumulate, whole, width);
    for (int64_t r = 0; r < rows; r++) memcpy(c + r * ldc, whole + r * width, bytes);
}

void WB_CPU(tiles)(int64_t rows, int64_t columns, int64_t k, tile_rows a, const float *b, bool accumulate,
                   float *c, int64_t ldc) {
    int panels = panels_of(rows);
    while (panels > 1 && columns <= (int64_t)panels / 2 * PANEL) panels /= 2;
    bool whole = columns == (int64_t)panels * PANEL;
    int64_t step = a.packed ? K_BLOCK * TILE_ROWS : a.stride * TILE_ROWS;
    for (int64_t r = 0; r < rows; r += TILE_ROWS, a.a += step, c += TILE_ROWS * ldc) {
        int64_t left = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        if (whole)
            run_tile(left, panels, k, a, b, accumulate, c, ldc);
        else
            run_edge_tile(left, panels, k, a, b, accumulate, c, ldc, columns);
    }
}
