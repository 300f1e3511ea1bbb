/* cpu_panel.c - packing panels of B and the register tiles over them. See cpu_panel.h. */
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

/* ---- packing --------------------------------------------------------------------------------- */

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

WB_INLINE void store_columns(eight_columns columns, float *to) {
    WB_UNROLL
    for (int i = 0; i < 8; i++) _mm256_storeu_ps(to + i * PANEL, columns.v[i]);
}

/* Eight rows, columns [0, n / 8 * 8), to the columns of `to`; returns how many were done. Meanwhile asks
 * for the rows that come next: the memory works while the tiles compute. */
WB_INLINE int64_t pack_8_f32(const float *const row[8], const float *const next[8], int64_t n, float *to) {
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        for (int j = 0; j < 8; j++) _mm_prefetch((const char *)(next[j] + k), _MM_HINT_T0);
        store_columns(load_8x8_f32(row, k), to + k * PANEL);
        store_columns(load_8x8_f32(row, k + 8), to + (k + 8) * PANEL);
    }
    for (; k + 8 <= n; k += 8) store_columns(load_8x8_f32(row, k), to + k * PANEL);
    return k;
}

WB_INLINE int64_t pack_8_bf16(const uint16_t *const row[8], const uint16_t *const next[8], int64_t n,
                              float *to) {
    int64_t k = 0;
    for (; k + 32 <= n; k += 32) {
        for (int j = 0; j < 8; j++) _mm_prefetch((const char *)(next[j] + k), _MM_HINT_T0);
        for (int64_t at = k; at < k + 32; at += 8) store_columns(load_8x8_bf16(row, at), to + at * PANEL);
    }
    for (; k + 8 <= n; k += 8) store_columns(load_8x8_bf16(row, k), to + k * PANEL);
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
    const int64_t ahead = 12; /* rows that the memory is asked for beforehand */
    int64_t columns = end - begin < PANEL ? end - begin : PANEL;
    for (int64_t i = 0; i < k; i++) {
        int64_t start = row_start(m, first + i) + begin;
        int64_t later = row_start(m, first + (i + ahead < k ? i + ahead : k - 1)) + begin;
        lanes_prefetch((const char *)m.data + later * (m.dtype == WB_F32 ? 4 : 2));
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

/* ---- the tile -------------------------------------------------------------------------------- */

/* C[rows][panels * PANEL] (+)= A B over k. A(r, i) = a[r * a_row + i * a_k]. `rows`, `panels` and the
 * strides that are 1 are constants where this is called, so that acc lives in registers. */
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
    int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, even = tiles > 0 ? (rows + tiles - 1) / tiles : 1;
    int64_t height = a.packed ? TILE_ROWS : even; /* two of 4 rows are faster than 6 and 2 */
    int64_t step = a.packed ? K_BLOCK * TILE_ROWS : a.stride * height;
    for (int64_t r = 0; r < rows; r += height, a.a += step, c += height * ldc) {
        int64_t left = rows - r < height ? rows - r : height;
        if (whole)
            run_tile(left, panels, k, a, b, accumulate, c, ldc);
        else
            run_edge_tile(left, panels, k, a, b, accumulate, c, ldc, columns);
    }
}

/* ---- few rows: no packing -------------------------------------------------------------------- */

#if defined(__AVX2__) && defined(__FMA__)

/* Eight columns of rows 0..7, of which row 0 is at `low` and row 4 at `high`, `stride` bytes apart. */
WB_INLINE eight_columns load_8x8(const bool is_f32, const char *low, const char *high, int64_t stride) {
    const char *row[8] = {low,  low + stride,  low + 2 * stride,  low + 3 * stride,
                          high, high + stride, high + 2 * stride, high + 3 * stride};
    if (is_f32) {
        const float *floats[8];
        for (int j = 0; j < 8; j++) floats[j] = (const float *)(const void *)row[j];
        return load_8x8_f32(floats, 0);
    }
    const uint16_t *halves[8];
    for (int j = 0; j < 8; j++) halves[j] = (const uint16_t *)(const void *)row[j];
    return load_8x8_bf16(halves, 0);
}

/* c[rows][16] += A B over k / 8 * 8 rows, transposing B's 16 columns in registers. Meanwhile asks for as
 * much of the 16 columns at `next`, a few lines at each step: in memory order where they lie side by side. */
WB_INLINE void thin_columns(const int rows, const bool is_f32, const char *b, int64_t stride,
                            const char *next, int64_t k, const float *a, int64_t a_stride,
                            float c[THIN_ROWS][16]) {
    const int64_t step = is_f32 ? 32 : 16, steps_of_line = 64 / step, asked = 16 / steps_of_line;
    const bool side_by_side = stride == k * (step / 8);
    const int64_t apart = side_by_side ? 64 : stride, advance = asked * apart;
    const int64_t new_line = side_by_side ? advance : 64 - (steps_of_line - 1) * advance;
    const char *at[4] = {b, b + 4 * stride, b + 8 * stride, b + 12 * stride};
    __m256 acc[THIN_ROWS][2];
    WB_UNROLL
    for (int r = 0; r < rows; r++) acc[r][0] = _mm256_loadu_ps(c[r]), acc[r][1] = _mm256_loadu_ps(c[r] + 8);
    for (int64_t i = 0; i + 8 <= k; i += 8) {
        WB_UNROLL
        for (int j = 0; j < 8; j++)
            if (j < asked) _mm_prefetch(next + j * apart, _MM_HINT_T0);
        next += i / 8 % steps_of_line == steps_of_line - 1 ? new_line : advance;
        WB_UNROLL
        for (int half = 0; half < 2; half++) {
            eight_columns columns = load_8x8(is_f32, at[2 * half], at[2 * half + 1], stride);
            at[2 * half] += step, at[2 * half + 1] += step;
            WB_UNROLL
            for (int column = 0; column < 8; column++) {
                WB_UNROLL
                for (int r = 0; r < rows; r++) {
                    __m256 x = _mm256_set1_ps(a[r * a_stride + i + column]);
                    acc[r][half] = _mm256_fmadd_ps(x, columns.v[column], acc[r][half]);
                }
            }
        }
    }
    WB_UNROLL
    for (int r = 0; r < rows; r++) _mm256_storeu_ps(c[r], acc[r][0]), _mm256_storeu_ps(c[r] + 8, acc[r][1]);
}

WB_INLINE void thin_rows(const int rows, const bool is_f32, const char *b, int64_t stride, const char *after,
                         int64_t n, int64_t k, const float *a, int64_t a_stride, bool accumulate, float *c,
                         int64_t ldc) {
    const int64_t size = is_f32 ? 4 : 2;
    for (; n > 0; n -= 16, c += 16, b += 16 * stride) {
        float block[THIN_ROWS][16] = {{0.0f}};
        for (int r = 0; r < rows && accumulate; r++) memcpy(block[r], c + r * ldc, sizeof block[r]);
        thin_columns(rows, is_f32, b, stride, n > 16 ? b + 16 * stride : after, k, a, a_stride, block);
        for (int64_t i = k / 8 * 8; i < k; i++)
            for (int r = 0; r < rows; r++)
                for (int j = 0; j < 16; j++) {
                    const void *at = b + j * stride + i * size;
                    float x = is_f32 ? *(const float *)at : wb_bf16_to_f32(*(const uint16_t *)at);
                    block[r][j] = fmaf(a[r * a_stride + i], x, block[r][j]);
                }
        for (int r = 0; r < rows; r++) memcpy(c + r * ldc, block[r], sizeof block[r]);
    }
}

#define THIN_TRANSPOSED_CASE(R)                                                                   \
    case R:                                                                                       \
        if (p->b_dtype == WB_F32)                                                                 \
            thin_rows(R, true, b, stride, next, n, p->K, a, p->a_row, p->accumulate, c, p->ldc);  \
        else                                                                                      \
            thin_rows(R, false, b, stride, next, n, p->K, a, p->a_row, p->accumulate, c, p->ldc); \
        break

int64_t WB_CPU(thin_transposed)(const wb_matmul *p, int64_t m, int64_t rows, int64_t begin, int64_t end,
                                const void *after) {
    if (rows > THIN_ROWS || p->b_row != 1 || p->a_col != 1) return 0;
    int64_t n = (end - begin) / 16 * 16, stride = p->b_col * (int64_t)wb_dtype_size(p->b_dtype);
    const char *b = (const char *)p->b + begin * stride, *next = after ? after : b;
    const float *a = p->a + m * p->a_row;
    float *c = p->c + m * p->ldc + begin;
    switch (rows) {
        THIN_TRANSPOSED_CASE(1);
        THIN_TRANSPOSED_CASE(2);
        THIN_TRANSPOSED_CASE(3);
    default:
        break;
    }
    return n;
}

#else

int64_t WB_CPU(thin_transposed)(const wb_matmul *p, int64_t m, int64_t rows, int64_t begin, int64_t end,
                                const void *after) {
    (void)p, (void)m, (void)rows, (void)begin, (void)end, (void)after;
    return 0;
}

#endif

/* `vectors` times 16 columns. */
WB_INLINE void thin_tile(const int rows, const int vectors, const bool is_f32, matrix_rows b, int64_t k,
                         int64_t begin, const float *a, int64_t a_stride, bool accumulate, float *c,
                         int64_t ldc) {
    const int64_t ahead = 16; /* rows that the memory is asked for beforehand */
    lanes acc[THIN_ROWS][2];
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = accumulate ? lanes_load(c + r * ldc + v * WB_LANES) : lanes_set(0.0f);
    }
    for (int64_t i = 0; i < k; i++) {
        int64_t at = row_start(b, i) + begin, later = row_start(b, i + ahead < k ? i + ahead : k - 1) + begin;
        lanes row[2];
        WB_UNROLL
        for (int v = 0; v < vectors; v++) {
            const float *x = (const float *)b.data + v * WB_LANES;
            const uint16_t *half = (const uint16_t *)b.data + v * WB_LANES;
            lanes_prefetch(is_f32 ? (const void *)(x + later) : (const void *)(half + later));
            row[v] = is_f32 ? lanes_load(x + at) : lanes_load_bf16(half + at);
        }
        WB_UNROLL
        for (int r = 0; r < rows; r++) {
            lanes x = lanes_set(a[r * a_stride + i]);
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

#define THIN_STRAIGHT_CASE(R, V)                                                  \
    case (V)*4 + (R):                                                             \
        if (b.dtype == WB_F32)                                                    \
            thin_tile(R, V, true, b, k, begin, a, a_stride, accumulate, c, ldc);  \
        else                                                                      \
            thin_tile(R, V, false, b, k, begin, a, a_stride, accumulate, c, ldc); \
        break

static void run_thin_tile(int64_t rows, int vectors, matrix_rows b, int64_t k, int64_t begin, const float *a,
                          int64_t a_stride, bool accumulate, float *c, int64_t ldc) {
    switch (vectors * 4 + (int)rows) {
        THIN_STRAIGHT_CASE(1, 1);
        THIN_STRAIGHT_CASE(2, 1);
        THIN_STRAIGHT_CASE(3, 1);
        THIN_STRAIGHT_CASE(1, 2);
        THIN_STRAIGHT_CASE(2, 2);
        THIN_STRAIGHT_CASE(3, 2);
    default:
        break;
    }
}

int64_t WB_CPU(thin_straight)(int64_t rows, matrix_rows b, int64_t k, int64_t begin, int64_t end,
                              const float *a, int64_t a_stride, bool accumulate, float *c, int64_t ldc) {
    int64_t done = 0, columns = rows <= THIN_ROWS ? end - begin : 0;
    for (int vectors = 2; vectors >= 1; vectors--)
        for (; done + vectors * WB_LANES <= columns; done += vectors * WB_LANES)
            run_thin_tile(rows, vectors, b, k, begin + done, a, a_stride, accumulate, c + done, ldc);
    return done;
}
