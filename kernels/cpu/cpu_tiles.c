/* cpu_tiles.c - the register tiles over packed panels of B. See cpu_panel.h. */
#include "cpu/cpu_blocks.h"

/* C[rows][panels * PANEL] (+)= A B over k. A(r, i) = a[r * a_row + i * a_k]. `rows`, `panels` and the
 * strides that are 1 are constants where this is called, so that acc lives in registers. `next`: where the
 * tile after this one begins in C, which the memory is asked for meanwhile, two rows at a time. */
WB_INLINE void tile(int rows, int panels, int64_t k, const float *restrict a, int64_t a_row, int64_t a_k,
                    const float *restrict b, bool accumulate, float *restrict c, int64_t ldc,
                    const float *next) {
    lanes acc[TILE_ROWS][4];
    const int vectors = panels * PANEL_VECTORS;
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = accumulate ? lanes_load(c + r * ldc + v * WB_LANES) : lanes_set(0.0f);
    }
    for (int64_t i = 0, asked = 0; i < k;) {
        const int64_t end = i + WB_LANES < k ? i + WB_LANES : k;
        for (int64_t most = asked + 2; asked < most && asked < rows; asked++)
            for (int v = 0; v < vectors; v++) lanes_prefetch(next + asked * ldc + v * WB_LANES);
        for (; i < end; i++) {
            lanes row[4];
            WB_UNROLL
            for (int v = 0; v < vectors; v++)
                row[v] = lanes_load(b + v / PANEL_VECTORS * PANEL_FLOATS + v % PANEL_VECTORS * WB_LANES +
                                    i * PANEL);
            WB_UNROLL
            for (int r = 0; r < rows; r++) {
                lanes x = lanes_set(a[r * a_row + i * a_k]);
                WB_UNROLL
                for (int v = 0; v < vectors; v++) acc[r][v] = lanes_fma(x, row[v], acc[r][v]);
            }
        }
    }
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int v = 0; v < vectors; v++) lanes_store(c + r * ldc + v * WB_LANES, acc[r][v]);
    }
}

#define TILE_CASE(R, P)                                                    \
    case (P)*16 + (R):                                                     \
        if (a.packed)                                                      \
            tile(R, P, k, a.a, 1, TILE_ROWS, b, accumulate, c, ldc, next); \
        else                                                               \
            tile(R, P, k, a.a, a.stride, 1, b, accumulate, c, ldc, next);  \
        break
#define TILE_CASE_1(R) TILE_CASE(R, 1)

static void run_tile(int64_t rows, int panels, int64_t k, tile_rows a, const float *b, bool accumulate,
                     float *c, int64_t ldc, const float *next) {
    switch (panels * 16 + (int)rows) {
        TILE_CASE(1, MAX_PANELS);
#if !defined(__AVX512F__) /* there MAX_PANELS is 2 */
        TILE_CASE(1, 2);
#endif
        TILE_CASE(2, 2);
        TILE_CASE(3, 2);
        FOR_TILE_ROWS(TILE_CASE_1);
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
    run_tile(rows, panels, k, a, b, accumulate, whole, width, whole);
    for (int64_t r = 0; r < rows; r++) memcpy(c + r * ldc, whole + r * width, bytes);
}

void WB_CPU(tiles)(int64_t rows, int64_t columns, int64_t k, tile_rows a, const float *b, bool accumulate,
                   float *c, int64_t ldc) {
    int panels = panels_of(rows);
    while (panels > 1 && columns <= (int64_t)panels / 2 * PANEL) panels /= 2;
    bool whole = columns == (int64_t)panels * PANEL;
    int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, even = tiles > 0 ? (rows + tiles - 1) / tiles : 1;
    int64_t height = a.packed ? TILE_ROWS : even; /* two of 4 rows are faster than 6 and 2 */
    const float *beside = c + columns;            /* the first tile of the next panels */
    int64_t step = a.packed ? K_BLOCK * TILE_ROWS : a.stride * height;
    for (int64_t r = 0; r < rows; r += height, a.a += step, c += height * ldc) {
        int64_t left = rows - r < height ? rows - r : height;
        if (whole)
            run_tile(left, panels, k, a, b, accumulate, c, ldc,
                     r + height < rows ? c + height * ldc : beside);
        else
            run_edge_tile(left, panels, k, a, b, accumulate, c, ldc, columns);
    }
}
