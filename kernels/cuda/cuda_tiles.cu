/* cuda_tiles.cu - products of matrices, any shape, dtype and stride, a tile of C for each block: see
 * cuda_tiles.h.
 *
 * In f32 an element of C is one chain of fused multiply-adds over ascending k in one thread, so that its bits
 * are the CPU's, whatever the tile and the other rows. Refuses: the ops (cuda_matmul.cu). */
#include "cuda/cuda_mma.h"
#include "cuda/cuda_tiles.h"

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

/* How a block makes the tile of C from row m0 and column n0 on: in f32, or by tensor cores. */
template <int ROWS, int COLUMNS> struct f32_tile {
    static const int M = 16 * ROWS, N = 16 * COLUMNS;
    static __device__ __forceinline__ void multiply(const wb_matmul &p, int64_t m0, int64_t n0) {
        __shared__ tile<ROWS, COLUMNS> t;
        float sum[ROWS][COLUMNS] = {};
        if (p.accumulate)
            for_elements(p, m0, n0, sum, [&](float &s, int64_t at) { s = load_element(p.c, at); });
        for (int64_t k0 = 0; k0 < p.K; k0 += DEPTH) {
            load_tile<M>(p.a, p.a_row, p.a_col, m0, p.M, k0, p.K, t.a);
            load_tile<N>(p.b, p.b_col, p.b_row, n0, p.N, k0, p.K, t.b);
            __syncthreads();
            add_tile(t, static_cast<int>(min(p.K - k0, static_cast<int64_t>(DEPTH))), sum);
            __syncthreads();
        }
        for_elements(p, m0, n0, sum, [&](float &s, int64_t at) { store_element(p.c, at, s); });
    }
};
struct bf16_tile {
    static const int M = MMA_TILE, N = MMA_TILE;
    static __device__ __forceinline__ void multiply(const wb_matmul &p, int64_t m0, int64_t n0) {
        multiply_mma_tile(p, m0, n0);
    }
};

/* ---- a list of products ---------------------------------------------------------------------- */

template <class TILE> __global__ void __launch_bounds__(BLOCK) multiply(wb_matmul p) {
    const int64_t tiles = (p.N + TILE::N - 1) / TILE::N;
    TILE::multiply(p, blockIdx.x / tiles * TILE::M, blockIdx.x % tiles * TILE::N);
}

int64_t tiles_of(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}

template <class TILE> wb_status launch_product(wb_device *dev, const wb_matmul &p) {
    const int64_t tiles = tiles_of(p.M, TILE::M) * tiles_of(p.N, TILE::N);
    unsigned blocks = 0;
    WB_TRY(count_blocks("matmul", "tiles", tiles, BLOCK, &blocks));
    multiply<TILE><<<blocks, BLOCK, 0, stream_of(dev)>>>(p);
    return wb_cuda_check(cudaGetLastError(), "matmul");
}

/* Small tiles where large ones would leave most of the GPU idle. The bits are the same. */
bool suits_large_tiles(int64_t M, int64_t N) {
    return tiles_of(M, 128) * tiles_of(N, 128) >= 96;
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
template <class TILE>
__global__ void __launch_bounds__(BLOCK) multiply_groups(wb_grouped g, int64_t N, int64_t K, wb_rows from,
                                                         int64_t b_row, int64_t b_col, wb_rows to) {
    int64_t tile = blockIdx.x;
    const group_rows rows = find_group(g, TILE::M, &tile);
    if (rows.n == 0) return;
    const wb_rows w = {g.w.data, g.w.dtype};
    wb_matmul p = {};
    p.M = rows.n, p.N = N, p.K = K;
    p.a = rows_from(from, rows.first * K), p.a_row = K, p.a_col = 1;
    p.b = rows_from(w, rows.group * N * K), p.b_row = b_row, p.b_col = b_col;
    p.c = rows_from(to, rows.first * N), p.ldc = N;
    TILE::multiply(p, tile * TILE::M, static_cast<int64_t>(blockIdx.y) * TILE::N);
}

/* dw[group] (+=, or = where it overwrites) dy^T x over the rows of the group ascending: a block for each tile
 * of each matrix. */
template <class TILE>
__global__ void __launch_bounds__(BLOCK) accumulate_groups(wb_grouped g, wb_rows x, wb_rows dy, float *dw) {
    const int64_t out = g.w.rows, in = g.w.cols, tiles = (in + TILE::N - 1) / TILE::N;
    const int32_t group = blockIdx.y;
    const int64_t first = g.offsets[group], n = g.offsets[group + 1] - first;
    if (n == 0 && !g.overwrites) return;
    wb_matmul p = {};
    p.M = out, p.N = in, p.K = n;
    p.a = rows_from(dy, first * out), p.a_row = 1, p.a_col = out;
    p.b = rows_from(x, first * in), p.b_row = in, p.b_col = 1;
    p.c.data = dw + group * out * in, p.c.dtype = WB_F32, p.ldc = in;
    p.accumulate = !g.overwrites;
    TILE::multiply(p, blockIdx.x / tiles * TILE::M, blockIdx.x % tiles * TILE::N);
}

template <class TILE>
wb_status launch_groups(wb_device *dev, const char *op, const wb_grouped &g, int64_t N, int64_t K,
                        wb_rows from, int64_t b_row, int64_t b_col, wb_rows to) {
    unsigned blocks = 0;
    /* tiles that the rows of all groups may have at most */
    WB_TRY(count_blocks(op, "rows", g.max_rows / TILE::M + g.n_groups, BLOCK, &blocks));
    const dim3 grid(blocks, static_cast<unsigned>(tiles_of(N, TILE::N)));
    multiply_groups<TILE><<<grid, BLOCK, 0, stream_of(dev)>>>(g, N, K, from, b_row, b_col, to);
    return wb_cuda_check(cudaGetLastError(), op);
}

template <class TILE>
wb_status launch_gradients(wb_device *dev, const char *op, const wb_grouped &g, wb_rows x, wb_rows dy,
                           float *dw) {
    unsigned blocks = 0;
    const int64_t tiles = tiles_of(g.w.rows, TILE::M) * tiles_of(g.w.cols, TILE::N);
    WB_TRY(count_blocks(op, "tiles", tiles, BLOCK, &blocks));
    const dim3 grid(blocks, static_cast<unsigned>(g.n_groups));
    accumulate_groups<TILE><<<grid, BLOCK, 0, stream_of(dev)>>>(g, x, dy, dw);
    return wb_cuda_check(cudaGetLastError(), op);
}

bool are_bf16(const wb_rows &a, wb_dtype b) {
    return a.dtype == WB_BF16 && b == WB_BF16;
}

} // namespace

extern "C" {

wb_status wb_cuda_tiled_product(wb_device *dev, const wb_matmul *p) {
    if (are_bf16(p->a, p->b.dtype)) return launch_product<bf16_tile>(dev, *p);
    if (suits_large_tiles(p->M, p->N)) return launch_product<f32_tile<8, 8>>(dev, *p);
    return launch_product<f32_tile<1, 4>>(dev, *p);
}

wb_status wb_cuda_tiled_forward(wb_device *dev, const char *op, const wb_grouped *g, wb_rows x, wb_rows y) {
    const int64_t out = g->w.rows, in = g->w.cols;
    if (are_bf16(x, g->w.dtype)) return launch_groups<bf16_tile>(dev, op, *g, out, in, x, 1, in, y);
    if (suits_large_tiles(g->max_rows, out))
        return launch_groups<f32_tile<8, 8>>(dev, op, *g, out, in, x, 1, in, y);
    return launch_groups<f32_tile<1, 4>>(dev, op, *g, out, in, x, 1, in, y);
}

wb_status wb_cuda_tiled_dgrad(wb_device *dev, const char *op, const wb_grouped *g, wb_rows dy, wb_rows dx) {
    const int64_t out = g->w.rows, in = g->w.cols;
    if (are_bf16(dy, g->w.dtype)) return launch_groups<bf16_tile>(dev, op, *g, in, out, dy, in, 1, dx);
    if (suits_large_tiles(g->max_rows, in))
        return launch_groups<f32_tile<8, 8>>(dev, op, *g, in, out, dy, in, 1, dx);
    return launch_groups<f32_tile<1, 4>>(dev, op, *g, in, out, dy, in, 1, dx);
}

wb_status wb_cuda_tiled_wgrad(wb_device *dev, const char *op, const wb_grouped *g, wb_rows x, wb_rows dy,
                              float *dw) {
    if (are_bf16(x, dy.dtype)) return launch_gradients<bf16_tile>(dev, op, *g, x, dy, dw);
    return launch_gradients<f32_tile<4, 4>>(dev, op, *g, x, dy, dw);
}
}
