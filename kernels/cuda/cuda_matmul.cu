/* cuda_matmul.cu - products of matrices: a list of them, and the experts', a matrix for each group of rows.
 *
 * An element of C is one chain of fused multiply-adds over ascending k in one thread, so that its bits are
 * the CPU's, whatever the tile and the other rows. A block makes a tile of C from tiles of A and B in shared
 * memory. Refuses: which rows a group has (cuda_moe.cu). */
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_swiglu.h"

namespace {

/* ---- one tile -------------------------------------------------------------------------------- */

enum { DEPTH = 16 }; /* k of a step */

/* A thread has ROWS x COLUMNS elements of a tile of (16 ROWS) x (16 COLUMNS): rows apart by 16, and columns,
 * so that neighbouring threads read and write neighbours. */
template <int ROWS, int COLUMNS> struct tile {
    static const int M = 16 * ROWS, N = 16 * COLUMNS;
    float a[DEPTH][M + 4]; /* the padding keeps the stores of a transposed tile in different banks */
    float b[DEPTH][N + 4];
};

/* to[k][i] = element (first + i, k0 + k) of a matrix [count, depth] with these strides; 0 beyond it. The
 * threads go along the stride of 1. */
template <int LINES, int WIDTH>
__device__ __forceinline__ void load_tile(const wb_rows &from, int64_t line, int64_t step, int64_t first,
                                          int64_t count, int64_t k0, int64_t depth, float (*to)[WIDTH]) {
    const bool along_k = step == 1;
    for (int at = threadIdx.x; at < LINES * DEPTH; at += BLOCK) {
        const int i = along_k ? at / DEPTH : at % LINES, k = along_k ? at % DEPTH : at / LINES;
        const bool there = first + i < count && k0 + k < depth;
        to[k][i] = there ? load_element(from, (first + i) * line + (k0 + k) * step) : 0.0f;
    }
}

/* The chain of an element goes on over DEPTH more k. Beyond the last one A and B are zeros, but a chain that
 * multiplied them would turn -0 into +0: it ends at `depth`. */
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void add_tile(const tile<ROWS, COLUMNS> &t, int depth,
                                         float (&sum)[ROWS][COLUMNS]) {
    const int row = threadIdx.x / 16, column = threadIdx.x % 16;
#pragma unroll 4
    for (int k = 0; k < depth; k++) {
        float a[ROWS], b[COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) a[i] = t.a[k][row + 16 * i];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) b[j] = t.b[k][column + 16 * j];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) sum[i][j] = wb_fma(a[i], b[j], sum[i][j]);
    }
}

/* Calls f(sum, m, n) for the elements of this thread that C has. */
template <int ROWS, int COLUMNS, typename F>
__device__ __forceinline__ void for_elements(const wb_matmul &p, int64_t m0, int64_t n0,
                                             float (&sum)[ROWS][COLUMNS], F f) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const int64_t m = m0 + threadIdx.x / 16 + 16 * i, n = n0 + threadIdx.x % 16 + 16 * j;
            if (m < p.M && n < p.N) f(sum[i][j], m * p.ldc + n);
        }
}

/* The tile of C from row m0 and column n0 on. */
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void multiply_tile(const wb_matmul &p, int64_t m0, int64_t n0) {
    typedef tile<ROWS, COLUMNS> shape;
    __shared__ shape t;
    float sum[ROWS][COLUMNS] = {};
    if (p.accumulate)
        for_elements<ROWS, COLUMNS>(p, m0, n0, sum, [&](float &s, int64_t at) { s = load_element(p.c, at); });
    for (int64_t k0 = 0; k0 < p.K; k0 += DEPTH) {
        load_tile<shape::M>(p.a, p.a_row, p.a_col, m0, p.M, k0, p.K, t.a);
        load_tile<shape::N>(p.b, p.b_col, p.b_row, n0, p.N, k0, p.K, t.b);
        __syncthreads();
        add_tile<ROWS, COLUMNS>(t, static_cast<int>(min(p.K - k0, static_cast<int64_t>(DEPTH))), sum);
        __syncthreads();
    }
    for_elements<ROWS, COLUMNS>(p, m0, n0, sum, [&](float &s, int64_t at) { store_element(p.c, at, s); });
}

/* ---- a list of products ---------------------------------------------------------------------- */

template <int ROWS, int COLUMNS> __global__ void __launch_bounds__(BLOCK) multiply(wb_matmul p) {
    const int64_t tiles = (p.N + 16 * COLUMNS - 1) / (16 * COLUMNS);
    multiply_tile<ROWS, COLUMNS>(p, blockIdx.x / tiles * 16 * ROWS, blockIdx.x % tiles * 16 * COLUMNS);
}

int64_t tiles_of(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}

template <int ROWS, int COLUMNS> wb_status launch_product(wb_device *dev, const wb_matmul &p) {
    const int64_t tiles = tiles_of(p.M, 16 * ROWS) * tiles_of(p.N, 16 * COLUMNS);
    unsigned blocks = 0;
    WB_TRY(count_blocks("matmul", "tiles", tiles, BLOCK, &blocks));
    multiply<ROWS, COLUMNS><<<blocks, BLOCK, 0, stream_of(dev)>>>(p);
    return wb_cuda_check(cudaGetLastError(), "matmul");
}

/* Small tiles where large ones would leave most of the GPU idle. The bits are the same. */
bool suits_large_tiles(int64_t M, int64_t N) {
    return tiles_of(M, 128) * tiles_of(N, 128) >= 96;
}

wb_status check_product(const wb_matmul &p) {
    WB_TRY(operand_check("matmul", "a", p.a.dtype));
    WB_TRY(operand_check("matmul", "b", p.b.dtype));
    WB_TRY(operand_check("matmul", "c", p.c.dtype));
    if ((p.a_row != 1 && p.a_col != 1) || (p.b_row != 1 && p.b_col != 1))
        return wb_fail(WB_INVALID_ARGUMENT, "matmul: strides: expected a 1 in each pair, found none");
    return WB_OK;
}

/* ---- a matrix for each group of rows --------------------------------------------------------- */

/* The rows [first, first + n) of group `group`. */
struct group_rows {
    int32_t group;
    int64_t first, n;
};

/* The group that has the block's rows, and the block's tile among the group's: blocks number the tiles of all
 * groups in their order, and what is beyond the last one is empty. */
__device__ __forceinline__ group_rows find_group(const wb_grouped &g, int64_t tile_rows, int64_t *tile) {
    for (int32_t i = 0; i < g.n_groups; i++) {
        const int64_t n = g.offsets[i + 1] - g.offsets[i], tiles = (n + tile_rows - 1) / tile_rows;
        if (*tile < tiles) return {i, g.offsets[i], n};
        *tile -= tiles;
    }
    return {0, 0, 0};
}

__device__ __forceinline__ wb_rows rows_from(const wb_rows &rows, int64_t first) {
    const int64_t size = rows.dtype == WB_F32 ? 4 : 2;
    return {static_cast<char *>(rows.data) + first * size, rows.dtype};
}

/* y = x w^T, or its gradient dx = dy w: from [rows, K] to [rows, N], b_row and b_col the strides of B in
 * w. */
template <int ROWS, int COLUMNS>
__global__ void __launch_bounds__(BLOCK) multiply_groups(wb_grouped g, int64_t N, int64_t K, wb_rows from,
                                                         int64_t b_row, int64_t b_col, wb_rows to) {
    int64_t tile = blockIdx.x;
    const group_rows rows = find_group(g, 16 * ROWS, &tile);
    if (rows.n == 0) return;
    const wb_rows w = {g.w.data, g.w.dtype};
    wb_matmul p = {};
    p.M = rows.n, p.N = N, p.K = K;
    p.a = rows_from(from, rows.first * K), p.a_row = K, p.a_col = 1;
    p.b = rows_from(w, rows.group * N * K), p.b_row = b_row, p.b_col = b_col;
    p.c = rows_from(to, rows.first * N), p.ldc = N;
    multiply_tile<ROWS, COLUMNS>(p, tile * 16 * ROWS, static_cast<int64_t>(blockIdx.y) * 16 * COLUMNS);
}

/* dw[group] += dy^T x over the rows of the group ascending: a block for each tile of each matrix. */
template <int ROWS, int COLUMNS>
__global__ void __launch_bounds__(BLOCK) accumulate_groups(wb_grouped g, wb_rows x, wb_rows dy, float *dw) {
    const int64_t out = g.w.rows, in = g.w.cols, tiles = (in + 16 * COLUMNS - 1) / (16 * COLUMNS);
    const int32_t group = blockIdx.y;
    const int64_t first = g.offsets[group], n = g.offsets[group + 1] - first;
    if (n == 0) return;
    wb_matmul p = {};
    p.M = out, p.N = in, p.K = n;
    p.a = rows_from(dy, first * out), p.a_row = 1, p.a_col = out;
    p.b = rows_from(x, first * in), p.b_row = in, p.b_col = 1;
    p.c.data = dw + group * out * in, p.c.dtype = WB_F32, p.ldc = in;
    p.accumulate = true;
    multiply_tile<ROWS, COLUMNS>(p, blockIdx.x / tiles * 16 * ROWS, blockIdx.x % tiles * 16 * COLUMNS);
}

/* Tiles that the rows of all groups may have at most. */
wb_status count_row_tiles(const char *op, const wb_grouped &g, int64_t tile_rows, unsigned *blocks_out) {
    return count_blocks(op, "rows", g.max_rows / tile_rows + g.n_groups, BLOCK, blocks_out);
}

wb_status launch_groups(wb_device *dev, const char *op, const wb_grouped &g, int64_t N, int64_t K,
                        wb_rows from, int64_t b_row, int64_t b_col, wb_rows to) {
    unsigned blocks = 0;
    const bool large = suits_large_tiles(g.max_rows, N);
    const unsigned columns = static_cast<unsigned>(tiles_of(N, large ? 128 : 64));
    WB_TRY(count_row_tiles(op, g, large ? 128 : 16, &blocks));
    const dim3 grid(blocks, columns);
    if (large)
        multiply_groups<8, 8><<<grid, BLOCK, 0, stream_of(dev)>>>(g, N, K, from, b_row, b_col, to);
    else
        multiply_groups<1, 4><<<grid, BLOCK, 0, stream_of(dev)>>>(g, N, K, from, b_row, b_col, to);
    return wb_cuda_check(cudaGetLastError(), op);
}

wb_status launch_gradients(wb_device *dev, const wb_grouped &g, wb_rows x, wb_rows dy, float *dw) {
    unsigned blocks = 0;
    WB_TRY(count_blocks("grouped_matmul_backward", "tiles", tiles_of(g.w.rows, 64) * tiles_of(g.w.cols, 64),
                        BLOCK, &blocks));
    const dim3 grid(blocks, static_cast<unsigned>(g.n_groups));
    accumulate_groups<4, 4><<<grid, BLOCK, 0, stream_of(dev)>>>(g, x, dy, dw);
    return wb_cuda_check(cudaGetLastError(), "grouped_matmul_backward");
}

bool has_work(const wb_grouped &g) {
    return g.max_rows > 0 && g.n_groups > 0 && g.w.rows > 0 && g.w.cols > 0;
}

} // namespace

extern "C" {

wb_status wb_cuda_matmul(wb_device *dev, int64_t count, const wb_matmul *list) {
    for (int64_t i = 0; i < count; i++) WB_TRY(check_product(list[i]));
    WB_TRY(wb_cuda_use(dev, "matmul"));
    for (int64_t i = 0; i < count; i++) {
        if (list[i].M == 0 || list[i].N == 0) continue;
        if (suits_large_tiles(list[i].M, list[i].N))
            WB_TRY((launch_product<8, 8>(dev, list[i])));
        else
            WB_TRY((launch_product<1, 4>(dev, list[i])));
    }
    return WB_OK;
}

wb_status wb_cuda_grouped_matmul(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows y, wb_rows act) {
    const int64_t out = g->w.rows, in = g->w.cols, F = out / 2;
    const int32_t *n_rows = g->offsets + g->n_groups;
    WB_TRY(operand_check("grouped_matmul", "x", x.dtype));
    WB_TRY(operand_check_like("grouped_matmul", "y", y.dtype, "x", x.dtype));
    WB_TRY(operand_check("grouped_matmul", "w", g->w.dtype));
    if (!has_work(*g)) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "grouped_matmul"));
    if (g->gather) WB_TRY(wb_cuda_gather_some(dev, g->max_rows, n_rows, in, g->gather, x, g->gathered));
    WB_TRY(launch_groups(dev, "grouped_matmul", *g, out, in, g->gather ? g->gathered : x, 1, in, y));
    if (!act.data) return WB_OK;
    LAUNCH(dev, "grouped_matmul", g->max_rows * F, 1, swiglu_elements, g->max_rows, n_rows, F, y, act);
}

wb_status wb_cuda_grouped_matmul_backward(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows dy,
                                          float *dw, wb_rows dx, wb_rows gate_up) {
    const int64_t out = g->w.rows, in = g->w.cols;
    const int32_t *n_rows = g->offsets + g->n_groups;
    WB_TRY(operand_check("grouped_matmul_backward", "x", x.dtype));
    WB_TRY(operand_check_like("grouped_matmul_backward", "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("grouped_matmul_backward", "dx", dx.dtype, "x", x.dtype));
    WB_TRY(operand_check("grouped_matmul_backward", "w", g->w.dtype));
    if (!has_work(*g)) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "grouped_matmul_backward"));
    WB_TRY(launch_gradients(dev, *g, g->gather ? g->gathered : x, dy, dw));
    WB_TRY(launch_groups(dev, "grouped_matmul_backward", *g, in, out, dy, in, 1, dx));
    if (!gate_up.data) return WB_OK;
    LAUNCH(dev, "grouped_matmul_backward", g->max_rows * in, 1, swiglu_gradients, g->max_rows, n_rows, in,
           gate_up, dx, gate_up);
}
}
