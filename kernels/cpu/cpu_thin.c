/* cpu_thin.c - products of up to THIN_ROWS rows, without packing. See cpu_panel.h. */
#include "cpu/cpu_blocks.h"

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
        if (p->b.dtype == WB_F32)                                                                 \
            thin_rows(R, true, b, stride, next, n, p->K, a, p->a_row, p->accumulate, c, p->ldc);  \
        else                                                                                      \
            thin_rows(R, false, b, stride, next, n, p->K, a, p->a_row, p->accumulate, c, p->ldc); \
        break

int64_t WB_CPU(thin_transposed)(const wb_matmul *p, int64_t m, int64_t rows, int64_t begin, int64_t end,
                                const void *after) {
    if (rows > THIN_ROWS || p->b_row != 1 || p->a_col != 1) return 0;
    int64_t n = (end - begin) / 16 * 16, stride = p->b_col * (int64_t)wb_dtype_size(p->b.dtype);
    const char *b = (const char *)p->b.data + begin * stride, *next = after ? after : b;
    const float *a = (const float *)p->a.data + m * p->a_row;
    float *c = (float *)p->c.data + m * p->ldc + begin;
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
