/* cpu_packed.c - products with packed weights (wb_weight.packed): B is read once, in the order in which it
 * lies, for any number of rows, and is neither turned nor copied on its way. And packing itself.
 *
 * A group is what 16 columns of C need of B: [K][16]. A tile is some rows of A by a few groups, whose sums
 * are in registers while k passes; all tiles of rows read the groups of one tile before the next ones, so
 * that they come from memory once and then from the cache. Each element is the same chain of fma as in every
 * other product. See cpu_panel.h. */
#include "cpu/cpu_blocks.h"
#include "cpu/cpu_operands.h"

#include <inttypes.h>

enum { GROUP = WB_PACKED_COLUMNS };
_Static_assert(GROUP - WB_LANES == 0, "a row of a group is one vector");

/* Bytes that the memory is asked for beforehand: where a group ends, of the next one. */
enum { AHEAD = 2048 };

/* Groups at once for `rows` rows: two, where their sums fit the registers, to hide the latency of the
 * multiply-add. */
WB_INLINE int groups_of(int64_t rows) {
    return PANEL_VECTORS == 2 || 2 * rows <= TILE_ROWS ? 2 : 1;
}

/* Some groups of B, of which those of a tile lie `apart` elements apart. */
typedef struct packed_groups {
    const void *data;
    bool is_f32;
    int64_t apart;
} packed_groups;

WB_INLINE lanes load_group(const bool is_f32, const void *data, int64_t at) {
    return is_f32 ? lanes_load((const float *)data + at) : lanes_load_bf16((const uint16_t *)data + at);
}

/* c[rows][groups * GROUP] (+)= A B over k. */
WB_INLINE void tile(const int rows, const int groups, const bool is_f32, packed_groups b, int64_t k,
                    const float *a, int64_t a_stride, bool accumulate, float *c, int64_t ldc) {
    const int64_t size = is_f32 ? 4 : 2;
    lanes acc[TILE_ROWS][2];
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int g = 0; g < groups; g++)
            acc[r][g] = accumulate ? lanes_load(c + r * ldc + g * GROUP) : lanes_set(0.0f);
    }
    for (int64_t i = 0; i < k; i++) {
        lanes row[2];
        WB_UNROLL
        for (int g = 0; g < groups; g++) {
            const int64_t at = g * b.apart + i * GROUP;
            if (is_f32 || i % 2 == 0) lanes_prefetch((const char *)b.data + at * size + AHEAD);
            row[g] = load_group(is_f32, b.data, at);
        }
        WB_UNROLL
        for (int r = 0; r < rows; r++) {
            const lanes x = lanes_set(a[r * a_stride + i]);
            WB_UNROLL
            for (int g = 0; g < groups; g++) acc[r][g] = lanes_fma(x, row[g], acc[r][g]);
        }
    }
    WB_UNROLL
    for (int r = 0; r < rows; r++) {
        WB_UNROLL
        for (int g = 0; g < groups; g++) lanes_store(c + r * ldc + g * GROUP, acc[r][g]);
    }
}

#define PACKED_CASE(R)                                                           \
    case R:                                                                      \
        if (groups == groups_of(R) && b.is_f32)                                  \
            tile(R, groups_of(R), true, b, k, a, a_stride, accumulate, c, ldc);  \
        else if (groups == groups_of(R))                                         \
            tile(R, groups_of(R), false, b, k, a, a_stride, accumulate, c, ldc); \
        else if (b.is_f32)                                                       \
            tile(R, 1, true, b, k, a, a_stride, accumulate, c, ldc);             \
        else                                                                     \
            tile(R, 1, false, b, k, a, a_stride, accumulate, c, ldc);            \
        break

static void run_tile(int64_t rows, int groups, packed_groups b, int64_t k, const float *a, int64_t a_stride,
                     bool accumulate, float *c, int64_t ldc) {
    switch (rows) {
        FOR_TILE_ROWS(PACKED_CASE);
    default:
        break;
    }
}

void WB_CPU(packed)(const wb_matmul *p, int64_t m, int64_t m_end, int64_t n, int64_t n_end) {
    const int64_t rows = m_end - m, tiles = (rows + TILE_ROWS - 1) / TILE_ROWS,
                  even = (rows + tiles - 1) / tiles;
    const int64_t size = (int64_t)wb_dtype_size(p->b.dtype), most = groups_of(even);
    const int64_t block = tiles == 1 && p->K > 0 ? p->K : K_BLOCK;
    for (int64_t groups = most; n < n_end; n += groups * GROUP) {
        if (n + groups * GROUP > n_end) groups = 1;
        for (int64_t k0 = 0; k0 < p->K || k0 == 0; k0 += block) {
            const int64_t k = p->K - k0 < block ? p->K - k0 : block;
            const packed_groups b = {(const char *)p->b.data + (n * p->K + k0 * GROUP) * size,
                                     p->b.dtype == WB_F32, p->K * GROUP};
            for (int64_t r = m; r < m_end; r += even) {
                const int64_t height = m_end - r < even ? m_end - r : even;
                run_tile(height, (int)groups, b, k, (const float *)p->a.data + r * p->a_row + k0, p->a_row,
                         p->accumulate || k0 > 0, (float *)p->c.data + r * p->ldc + n, p->ldc);
            }
        }
    }
}

/* ---- packing ------------------------------------------------------------------------------------- */

/* The GROUP rows at `rows`, of `cols` elements, become a group in their place. */
static void pack_group(wb_dtype dtype, int64_t cols, void *rows, void *scratch) {
    memcpy(scratch, rows, (size_t)(GROUP * cols) * wb_dtype_size(dtype));
    if (dtype == WB_F32) {
        const float *from = scratch;
        float *to = rows;
        for (int64_t k = 0; k < cols; k++)
            for (int64_t j = 0; j < GROUP; j++) to[k * GROUP + j] = from[j * cols + k];
    } else {
        const uint16_t *from = scratch;
        uint16_t *to = rows;
        for (int64_t k = 0; k < cols; k++)
            for (int64_t j = 0; j < GROUP; j++) to[k * GROUP + j] = from[j * cols + k];
    }
}

wb_status WB_CPU(pack_weights)(wb_device *dev, int64_t count, wb_weight w) {
    const size_t bytes = (size_t)(GROUP * w.cols) * wb_dtype_size(w.dtype);
    WB_TRY(operand_check("pack_weights", "w", w.dtype));
    WB_TRY(operand_check_rows("pack_weights", w.packed));
    if (w.rows % GROUP != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "pack_weights: rows: expected a multiple of %d, found %" PRId64,
                       GROUP, w.rows);
    WB_TRY(wb_cpu_scratch_reserve(dev, bytes));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, count *w.rows *w.cols))
    for (int64_t group = 0; group < count * w.rows / GROUP; group++)
        pack_group(w.dtype, w.cols, (char *)w.data + (size_t)group * bytes, wb_cpu_scratch(dev));
    return WB_OK;
}
