/* cpu_thin.c - products of few rows with weights that are not packed (cpu_packed.c), dense ones and those of
 * models for all uses, without packing them: a transposed B is turned in registers on its way from memory, so
 * that no copy of it is made or kept. See cpu_panel.h. */
#include "cpu/cpu_blocks.h"

#if defined(__AVX2__) && defined(__FMA__)

/* Columns of C at once, which are rows of B; and blocks of them whose sums are in registers together: with
 * few rows two, where a block has half of the columns, so that there are chains enough. */
enum { COLUMNS = 16 };
WB_INLINE int blocks_of(int rows) {
    return 2 * BLOCK <= COLUMNS && 2 * rows <= TILE_ROWS ? 2 : 1;
}

/* What the parts of a product have in common: rows of A, a_stride apart, and COLUMNS rows of B, `stride`
 * bytes apart, each of k elements. */
typedef struct thin_part {
    const char *b;
    int64_t stride, k;
    const float *a;
    int64_t a_stride;
} thin_part;

/* Multiplies dword `i` of a block with the rows of A: one k of f32, two of bf16. */
WB_INLINE void add_dword(const int rows, const bool is_f32, block_vector dwords, const float *a,
                         int64_t a_stride, block_vector *acc) {
    const block_vector first = is_f32 ? dwords : block_lower_bf16(dwords);
    WB_UNROLL
    for (int r = 0; r < rows; r++) acc[r] = block_fma(block_set(a[r * a_stride]), first, acc[r]);
    if (is_f32) return;
    const block_vector second = block_upper_bf16(dwords);
    WB_UNROLL
    for (int r = 0; r < rows; r++) acc[r] = block_fma(block_set(a[r * a_stride + 1]), second, acc[r]);
}

/* Bytes of a row that the memory is asked for beforehand. */
enum { AHEAD = 384, LINE = 64 };

/* c[rows][blocks * BLOCK] += A B over whole blocks of k; returns how many k. What the memory is asked for
 * beyond the end of the rows is the beginning of as many rows at `next`. A line is asked for between two
 * dwords: all rows' at once, they would fill the buffers that the loads of the next block need. */
WB_INLINE int64_t thin_blocks(const int rows, const int blocks, const bool is_f32, thin_part p,
                              const char *next, float *c) {
    const int64_t size = is_f32 ? 4 : 2, step = BLOCK * 4 / size;
    const int64_t ahead = p.k * size < AHEAD ? p.k * size : AHEAD;
    const char *fours[4]; /* every fourth row */
    block_vector acc[2][TILE_ROWS];
    int64_t i = 0;
    for (int j = 0; j < blocks * BLOCK / 4; j++) fours[j] = p.b + 4 * j * p.stride;
    WB_UNROLL
    for (int n = 0; n < blocks; n++) {
        WB_UNROLL
        for (int r = 0; r < rows; r++) acc[n][r] = block_read(c + r * COLUMNS + n * BLOCK);
    }
    for (; i + step <= p.k; i += step) {
        const int64_t left = (p.k - i) * size;
        const char *ask = left > ahead ? fours[0] + ahead : next + ahead - left;
        WB_UNROLL
        for (int n = 0; n < blocks; n++) {
            const char *row[BLOCK];
            WB_UNROLL
            for (int j = 0; j < BLOCK; j++) row[j] = fours[(n * BLOCK + j) / 4] + j % 4 * p.stride;
            const block_columns block = load_block(row, 0);
            WB_UNROLL
            for (int d = 0; d < BLOCK; d++) {
                if (i * size % LINE == 0) _mm_prefetch(ask + (n * BLOCK + d) * p.stride, _MM_HINT_T0);
                add_dword(rows, is_f32, block.v[d], p.a + i + (is_f32 ? d : 2 * d), p.a_stride, acc[n]);
            }
        }
        for (int j = 0; j < blocks * BLOCK / 4; j++) fours[j] += BLOCK * 4;
    }
    WB_UNROLL
    for (int n = 0; n < blocks; n++) {
        WB_UNROLL
        for (int r = 0; r < rows; r++) block_store(c + r * COLUMNS + n * BLOCK, acc[n][r]);
    }
    return i;
}

/* The k from `begin` on, which are no whole block. */
static void thin_rest(int rows, bool is_f32, thin_part p, int64_t begin, float *c) {
    for (int64_t i = begin; i < p.k; i++)
        for (int j = 0; j < COLUMNS; j++) {
            const void *at = p.b + j * p.stride + i * (is_f32 ? 4 : 2);
            const float x = is_f32 ? *(const float *)at : wb_bf16_to_f32(*(const uint16_t *)at);
            for (int r = 0; r < rows; r++)
                c[r * COLUMNS + j] = fmaf(p.a[r * p.a_stride + i], x, c[r * COLUMNS + j]);
        }
}

/* n columns, whole COLUMNS of them. */
WB_INLINE void thin_rows(const int rows, const bool is_f32, thin_part p, const char *after, int64_t n,
                         bool accumulate, float *c, int64_t ldc) {
    const int blocks = blocks_of(rows);
    for (; n > 0; n -= COLUMNS, c += COLUMNS, p.b += COLUMNS * p.stride) {
        float sums[TILE_ROWS][COLUMNS] = {{0.0f}};
        const char *next = n > COLUMNS ? p.b + COLUMNS * p.stride : after;
        int64_t done = 0;
        for (int r = 0; r < rows && accumulate; r++) memcpy(sums[r], c + r * ldc, sizeof sums[r]);
        for (int j = 0; j < COLUMNS; j += blocks * BLOCK) {
            thin_part half = p;
            half.b += j * p.stride;
            done = thin_blocks(rows, blocks, is_f32, half, next + j * p.stride, sums[0] + j);
        }
        thin_rest(rows, is_f32, p, done, sums[0]);
        for (int r = 0; r < rows; r++) memcpy(c + r * ldc, sums[r], sizeof sums[r]);
    }
}

#define THIN_TRANSPOSED_CASE(R)                                           \
    case R:                                                               \
        if (p->b.dtype == WB_F32)                                         \
            thin_rows(R, true, part, next, n, p->accumulate, c, p->ldc);  \
        else                                                              \
            thin_rows(R, false, part, next, n, p->accumulate, c, p->ldc); \
        break

int64_t WB_CPU(thin_transposed)(const wb_matmul *p, int64_t m, int64_t rows, int64_t begin, int64_t end,
                                const void *after) {
    if (rows > TILE_ROWS || p->b_row != 1 || p->a_col != 1) return 0;
    const int64_t n = (end - begin) / COLUMNS * COLUMNS,
                  stride = p->b_col * (int64_t)wb_dtype_size(p->b.dtype);
    const char *b = (const char *)p->b.data + begin * stride, *next = after ? after : b;
    const thin_part part = {b, stride, p->K, (const float *)p->a.data + m * p->a_row, p->a_row};
    float *c = (float *)p->c.data + m * p->ldc + begin;
    switch (rows) {
        FOR_TILE_ROWS(THIN_TRANSPOSED_CASE);
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
    lanes acc[TILE_ROWS][2];
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

/* Vectors of columns at once: two, where the sums of all rows fit the registers. */
WB_INLINE int straight_vectors(int64_t rows) {
    return PANEL_VECTORS == 2 || 2 * rows <= TILE_ROWS ? 2 : 1;
}

#define THIN_STRAIGHT_CASE(R)                                                                       \
    case R:                                                                                         \
        if (vectors == 2 && b.dtype == WB_F32)                                                      \
            thin_tile(R, straight_vectors(R), true, b, k, begin, a, a_stride, accumulate, c, ldc);  \
        else if (vectors == 2)                                                                      \
            thin_tile(R, straight_vectors(R), false, b, k, begin, a, a_stride, accumulate, c, ldc); \
        else if (b.dtype == WB_F32)                                                                 \
            thin_tile(R, 1, true, b, k, begin, a, a_stride, accumulate, c, ldc);                    \
        else                                                                                        \
            thin_tile(R, 1, false, b, k, begin, a, a_stride, accumulate, c, ldc);                   \
        break

static void run_thin_tile(int64_t rows, int vectors, matrix_rows b, int64_t k, int64_t begin, const float *a,
                          int64_t a_stride, bool accumulate, float *c, int64_t ldc) {
    switch (rows) {
        FOR_TILE_ROWS(THIN_STRAIGHT_CASE);
    default:
        break;
    }
}

int64_t WB_CPU(thin_straight)(int64_t rows, matrix_rows b, int64_t k, int64_t begin, int64_t end,
                              const float *a, int64_t a_stride, bool accumulate, float *c, int64_t ldc) {
    int64_t done = 0, columns = rows <= TILE_ROWS ? end - begin : 0;
    for (int vectors = straight_vectors(rows); vectors >= 1; vectors--)
        for (; done + vectors * WB_LANES <= columns; done += vectors * WB_LANES)
            run_thin_tile(rows, vectors, b, k, begin + done, a, a_stride, accumulate, c + done, ldc);
    return done;
}
