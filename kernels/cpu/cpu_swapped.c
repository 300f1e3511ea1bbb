/* cpu_swapped.c - products of some tens of rows with a transposed B that is not packed (cpu_packed.c), a
 * Linear layer's forward when several tens of requests are decoded: A and B change places.
 *
 * Packing a panel of B pays where many rows of A share it. Here the rows of A are packed, which are fewer,
 * and those of B, the weights, are read once, where they lie. A tile is TILE_ROWS rows of B by a panel of
 * rows of A, a lane each, and is turned on its way to C; each element is the same chain. See cpu_panel.h. */
#include "cpu/cpu_blocks.h"
#include "cpu/cpu_operands.h"

/* Floats of the packed rows of A, and of a tile of bf16 rows of B that were widened: what a block of k is as
 * long as. */
enum { PACKED_FLOATS = M_BLOCK * K_BLOCK, WIDE_FLOATS = MAX_PANELS * PANEL_FLOATS };
enum { MOST_K = WIDE_FLOATS / TILE_ROWS / WB_LANES * WB_LANES, LINE = 64 };

/* A tile's rows of B, and the next tile's, which the memory is asked for meanwhile. */
typedef struct weight_rows {
    const float *w;
    int64_t stride;
    const char *next;               /* NULL: there is none, or it was asked for */
    int64_t next_stride, next_size; /* bytes from row to row, and of an element */
} weight_rows;

/* sums[r][lane] += w[r][i] * panel[i][lane] over k. */
WB_INLINE void tile(const int rows, const int vectors, int64_t k, weight_rows b, const float *panel,
                    float sums[TILE_ROWS][PANEL]) {
    lanes acc[TILE_ROWS][PANEL_VECTORS];
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int v = 0; v < vectors; v++) acc[r][v] = lanes_load(sums[r] + v * WB_LANES);
    }
    for (int64_t i = 0; i < k;) {
        const int64_t end = i + WB_LANES < k ? i + WB_LANES : k;
        if (b.next && i * b.next_size % LINE == 0)
            for (int r = 0; r < rows; r++) lanes_prefetch(b.next + r * b.next_stride + i * b.next_size);
        for (; i < end; i++, panel += vectors * WB_LANES) {
            lanes column[PANEL_VECTORS];
            WB_UNROLL
            for (int v = 0; v < vectors; v++) column[v] = lanes_load(panel + v * WB_LANES);
            WB_UNROLL
            for (int r = 0; r < rows; r++) {
                const lanes x = lanes_set(b.w[r * b.stride + i]);
                WB_UNROLL
                for (int v = 0; v < vectors; v++) acc[r][v] = lanes_fma(x, column[v], acc[r][v]);
            }
        }
    }
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int v = 0; v < vectors; v++) lanes_store(sums[r] + v * WB_LANES, acc[r][v]);
    }
}

#define TILE_CASE(R)                                   \
    case R:                                            \
        if (vectors == PANEL_VECTORS)                  \
            tile(R, PANEL_VECTORS, k, b, panel, sums); \
        else                                           \
            tile(R, 1, k, b, panel, sums);             \
        break

static void run_tile(int64_t rows, int vectors, int64_t k, weight_rows b, const float *panel,
                     float sums[TILE_ROWS][PANEL]) {
    switch (rows) {
        FOR_TILE_ROWS(TILE_CASE);
    default:
        break;
    }
}

/* ---- C, which has the tile's columns as rows --------------------------------------------------- */

typedef struct c_tile {
    float *c;
    int64_t ldc, rows, columns; /* rows <= PANEL, columns <= TILE_ROWS */
} c_tile;

static void read_c(c_tile t, float sums[TILE_ROWS][PANEL]) {
    for (int64_t m = 0; m < t.rows; m++)
        for (int64_t n = 0; n < t.columns; n++) sums[n][m] = t.c[m * t.ldc + n];
}

static void write_c(c_tile t, float sums[TILE_ROWS][PANEL]) {
    int64_t done = 0;
#if defined(__AVX512F__)
    const __mmask16 some = (__mmask16)((1U << t.columns) - 1);
    for (; done + BLOCK <= t.rows; done += BLOCK) {
        const char *row[BLOCK];
        WB_UNROLL
        for (int n = 0; n < BLOCK; n++) row[n] = (const char *)(sums[n < t.columns ? n : 0] + done);
        const block_columns turned = load_block(row, 0);
        WB_UNROLL
        for (int m = 0; m < BLOCK; m++) _mm512_mask_storeu_ps(t.c + (done + m) * t.ldc, some, turned.v[m]);
    }
#endif
    for (int64_t m = done; m < t.rows; m++)
        for (int64_t n = 0; n < t.columns; n++) t.c[m * t.ldc + n] = sums[n][m];
}

/* ---- a block of k ------------------------------------------------------------------------------ */

/* Vectors of the panel of the rows from m on. */
static int vectors_of(int64_t rows) {
    return rows > WB_LANES ? PANEL_VECTORS : 1;
}

static void pack_rows_of_a(const wb_matmul *p, int64_t m, int64_t m_end, int64_t k0, int64_t k, float *to) {
    matrix_rows a = {p->a.data, WB_F32, p->a_col == 1 ? p->a_row : p->a_col, NULL};
    for (; m < m_end; m += PANEL) {
        const int width = vectors_of(m_end - m) * WB_LANES;
        if (p->a_col == 1)
            WB_CPU(pack_transposed)(a, m, m_end, k0, k, width, to);
        else
            WB_CPU(pack_straight)(a, k0, k, m, m_end, width, to);
        to += k * width;
    }
}

/* The rows [n, n + rows) of B from k0 on, widened to `wide` where they are bf16. */
static weight_rows find_weights(const wb_matmul *p, int64_t n, int64_t rows, int64_t n_end, int64_t k0,
                                int64_t k, float *wide) {
    const int64_t size = (int64_t)wb_dtype_size(p->b.dtype);
    const char *at = (const char *)p->b.data + (n * p->b_col + k0) * size;
    weight_rows b = {.next_stride = p->b_col * size, .next_size = size};
    if (n + 2 * rows <= n_end) b.next = at + rows * b.next_stride;
    if (p->b.dtype == WB_F32) {
        b.w = (const float *)(const void *)at;
        b.stride = p->b_col;
        return b;
    }
    for (int64_t r = 0; r < rows; r++)
        rows_load(wb_rows_from(p->b, (n + r) * p->b_col + k0), 0, k, wide + r * k);
    b.w = wide;
    b.stride = k;
    return b;
}

static void run_k_block(const wb_matmul *p, int64_t m_begin, int64_t m_end, int64_t n, int64_t n_end,
                        int64_t k0, int64_t k, const float *packed, float *wide) {
    const int64_t tiles = (n_end - n + TILE_ROWS - 1) / TILE_ROWS;
    const int64_t even = (n_end - n + tiles - 1) / tiles;
    const bool goes_on = p->accumulate || k0 > 0;
    for (; n < n_end; n += even) {
        const int64_t rows = n_end - n < even ? n_end - n : even;
        const float *panel = packed;
        weight_rows b = find_weights(p, n, rows, n_end, k0, k, wide);
        for (int64_t m = m_begin; m < m_end; m += PANEL, b.next = NULL) {
            const int64_t height = m_end - m < PANEL ? m_end - m : PANEL;
            const int vectors = vectors_of(m_end - m);
            const c_tile c = {(float *)p->c.data + m * p->ldc + n, p->ldc, height, rows};
            float sums[TILE_ROWS][PANEL] = {{0.0f}};
            if (goes_on) read_c(c, sums);
            run_tile(rows, vectors, k, b, panel, sums);
            write_c(c, sums);
            panel += k * vectors * WB_LANES;
        }
    }
}

void WB_CPU(swapped)(const wb_matmul *p, int64_t m, int64_t m_end, int64_t n, int64_t n_end, float *scratch) {
    const int64_t padded = (m_end - m + WB_LANES - 1) / WB_LANES * WB_LANES;
    const int64_t fits = PACKED_FLOATS / padded / WB_LANES * WB_LANES, most = fits < MOST_K ? fits : MOST_K;
    for (int64_t k0 = 0; k0 < p->K || k0 == 0; k0 += most) {
        const int64_t k = p->K - k0 < most ? p->K - k0 : most;
        pack_rows_of_a(p, m, m_end, k0, k, scratch);
        run_k_block(p, m, m_end, n, n_end, k0, k, scratch, scratch + PACKED_FLOATS);
    }
}
