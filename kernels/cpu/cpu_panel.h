/* cpu_panel.h - the inner part of every matrix product: a tile of C in registers against packed panels of
 * B.
 *
 * Owns: packing B into panels of PANEL columns, [k][PANEL], widened to f32; the tiles, whose elements are
 * each one fma chain over ascending k; the thin products (cpu_thin.c), which read B where it lies; those with
 * packed weights (cpu_packed.c); and one product, and a list of them on all threads (cpu_matmul.c). Refuses:
 * blocks of attention (cpu_attention.c).
 */
#ifndef WB_CPU_PANEL_H
#define WB_CPU_PANEL_H

#include "cpu/cpu_lanes.h"

/* Tile rows and vectors of 16 lanes in a panel row: what fits the registers of the instruction set. */
#if defined(__AVX512F__)
enum { TILE_ROWS = 12, PANEL_VECTORS = 2 };
#define FOR_TILE_ROWS(X) \
    X(1);                \
    X(2);                \
    X(3);                \
    X(4);                \
    X(5);                \
    X(6);                \
    X(7);                \
    X(8);                \
    X(9);                \
    X(10);               \
    X(11);               \
    X(12)
#elif defined(__AVX2__) && defined(__FMA__)
enum { TILE_ROWS = 6, PANEL_VECTORS = 1 };
#define FOR_TILE_ROWS(X) \
    X(1);                \
    X(2);                \
    X(3);                \
    X(4);                \
    X(5);                \
    X(6)
#else
enum { TILE_ROWS = 4, PANEL_VECTORS = 1 };
#define FOR_TILE_ROWS(X) \
    X(1);                \
    X(2);                \
    X(3);                \
    X(4)
#endif
enum { PANEL = PANEL_VECTORS * WB_LANES, MAX_PANELS = 4 / PANEL_VECTORS };

/* Panels hold up to K_BLOCK rows and lie PANEL_FLOATS apart: one fits the first-level cache. */
enum { K_BLOCK = 256, PANEL_FLOATS = K_BLOCK * PANEL };
enum { M_BLOCK = 240, PRODUCT_FLOATS = M_BLOCK * K_BLOCK + MAX_PANELS * PANEL_FLOATS };

/* Rows of a matrix in memory, f32 or bf16: row i starts at element (index ? index[i] : i) * stride of
 * `data`. */
typedef struct matrix_rows {
    const void *data;
    wb_dtype dtype;
    int64_t stride;
    const int64_t *index;
} matrix_rows;

/* Panel column j is row first + j of `m`, elements [begin, begin + k): a panel of a transposed matrix.
 * Where the rows end (`rows` of them in all) the last is repeated; nobody reads the copies. */
void WB_CPU(pack_transposed)(matrix_rows m, int64_t first, int64_t rows, int64_t begin, int64_t k,
                             int64_t width, float *to);

/* Panel row i is row first + i of `m`, elements [begin, begin + PANEL), zeros from `end` on. */
void WB_CPU(pack_straight)(matrix_rows m, int64_t first, int64_t k, int64_t begin, int64_t end, int64_t width,
                           float *to);

/* Panels at once for `rows` rows: few rows need more columns, to hide the latency of the multiply-add. */
static inline int panels_of(int64_t rows) {
    return rows == 1 ? MAX_PANELS : rows <= 3 ? 2 : 1;
}

/* The rows of A of one product: row r at a + r * stride, or `packed`, tiles [k][TILE_ROWS] that lie
 * K_BLOCK * TILE_ROWS apart. */
typedef struct tile_rows {
    const float *a;
    bool packed;
    int64_t stride;
} tile_rows;

/* C[rows, columns] (+)= A B over k rows of the packed panels b; columns <= panels_of(rows) * PANEL. Any
 * number of rows. */
void WB_CPU(tiles)(int64_t rows, int64_t columns, int64_t k, tile_rows a, const float *b, bool accumulate,
                   float *c, int64_t ldc);

/* Up to TILE_ROWS rows, where reading B is most of the work: without packing. Both return how many columns
 * they did, a multiple of 16 (0 where the shape or the instruction set does not suit), for the panels to
 * do the rest. */

/* Rows [m, m + rows) and columns [begin, end) of a product with a transposed B. `after`: what is read
 * next, or NULL. */
int64_t WB_CPU(thin_transposed)(const wb_matmul *p, int64_t m, int64_t rows, int64_t begin, int64_t end,
                                const void *after);

/* C[rows, end - begin] (+)= A B with B(i, n) = element begin + n of row i of `b`, i < k. Rows of A lie
 * a_stride apart. */
int64_t WB_CPU(thin_straight)(int64_t rows, matrix_rows b, int64_t k, int64_t begin, int64_t end,
                              const float *a, int64_t a_stride, bool accumulate, float *c, int64_t ldc);

/* Rows [m, m_end) and columns [n, n_end) of a product with a transposed B. For more rows than a tile has and
 * up to SWAPPED_ROWS: more of them are faster in panels of B. scratch: PRODUCT_FLOATS. (cpu_swapped.c) */
enum { SWAPPED_ROWS = 64 };
void WB_CPU(swapped)(const wb_matmul *p, int64_t m, int64_t m_end, int64_t n, int64_t n_end, float *scratch);

/* Rows [m, m_end) and columns [n, n_end), whole groups of them, of a product with a packed B.
 * (cpu_packed.c) */
void WB_CPU(packed)(const wb_matmul *p, int64_t m, int64_t m_end, int64_t n, int64_t n_end);

/* One product on the calling thread. scratch: PRODUCT_FLOATS. (cpu_matmul.c) */
void WB_CPU(product)(const wb_matmul *p, float *scratch);

/* Elementary operations of a product, 0 only where it writes nothing; and a list of checked products of
 * `work` in all, whose A and C are f32. first: [count + 1] scratch. Each thread has PRODUCT_FLOATS of
 * scratch. (cpu_matmul.c) */
int64_t WB_CPU(product_work)(const wb_matmul *p);
void WB_CPU(run_products)(wb_device *dev, int64_t count, const wb_matmul *list, int64_t work, int64_t *first);

#endif
