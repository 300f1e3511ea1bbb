/* cuda_tile_product.h - a product of f32 by a block, of which each element is one fma chain over ascending k
 * in one thread: a tile of rows and columns, whose operands lie in shared memory a few k at a time. For .cu
 * files.
 *
 * Operands come from wherever a caller's function says, so that rows may lie scattered and be made on the way.
 * Refuses: where sums begin and go. */
#ifndef WB_CUDA_TILE_PRODUCT_H
#define WB_CUDA_TILE_PRODUCT_H

#include "cuda/cuda_operands.h"

namespace {

/* A block, its tile, and the k of which it has operands at a time. A thread has 4 x 4 elements. */
enum { TILE_THREADS = 128, TILE_ROWS = 32, TILE_COLUMNS = 64, TILE_K = 32, TILE_EACH = 4 };
static_assert(TILE_THREADS * TILE_EACH * TILE_EACH == TILE_ROWS * TILE_COLUMNS, "a tile is a block's");

/* [k][row or column], so that a thread reads four neighbours at once. */
template <int WIDTH> struct tile_operand { alignas(16) float at[TILE_K][WIDTH + TILE_EACH]; };

/* sum[i][j]: of row tile_row() + i and column tile_column() + j. */
struct tile_sums {
    float at[TILE_EACH][TILE_EACH];
};

__device__ __forceinline__ int tile_row() {
    return static_cast<int>(threadIdx.x) / (TILE_COLUMNS / TILE_EACH) * TILE_EACH;
}
__device__ __forceinline__ int tile_column() {
    return static_cast<int>(threadIdx.x) % (TILE_COLUMNS / TILE_EACH) * TILE_EACH;
}

/* to[k][m] (=) load(m, k) of m < n and k < count. ALONG_K: neighbours in memory are those of k. A warp then has
 * 8 k of 4 rows, whose places in shared memory are in different banks; else 32 rows of one k. */
template <bool ALONG_K, int WIDTH, class LOAD>
__device__ __forceinline__ void fill_tile(tile_operand<WIDTH> &to, int n, int count, const LOAD &load) {
#pragma unroll 4
    for (int i = threadIdx.x; i < WIDTH * TILE_K; i += TILE_THREADS) {
        const int k = ALONG_K ? (i & 7) | (i >> 5 & 3) << 3 : i / WIDTH;
        const int m = ALONG_K ? (i >> 3 & 3) | i >> 7 << 2 : i % WIDTH;
        if (k < count && m < n) to.at[k][m] = load(m, k);
    }
}
static_assert(TILE_K == 32, "fill_tile has the bits of a place in an operand");

/* sum += a b over `count` k. What was not filled makes elements that nobody looks at. */
__device__ __forceinline__ void multiply_tile(const tile_operand<TILE_ROWS> &a,
                                              const tile_operand<TILE_COLUMNS> &b, int count,
                                              tile_sums &sum) {
#pragma unroll 4
    for (int k = 0; k < count; k++) {
        const float4 row = *reinterpret_cast<const float4 *>(&a.at[k][tile_row()]);
        const float4 column = *reinterpret_cast<const float4 *>(&b.at[k][tile_column()]);
        const float x[TILE_EACH] = {row.x, row.y, row.z, row.w};
        const float y[TILE_EACH] = {column.x, column.y, column.z, column.w};
#pragma unroll
        for (int i = 0; i < TILE_EACH; i++)
#pragma unroll
            for (int j = 0; j < TILE_EACH; j++) sum.at[i][j] = wb_fma(x[i], y[j], sum.at[i][j]);
    }
}

/* Calls visit(row, column, element) for those of the thread that are among n rows and m columns. */
template <class VISIT>
__device__ __forceinline__ void visit_tile(tile_sums &sum, int n, int m, const VISIT &visit) {
#pragma unroll
    for (int i = 0; i < TILE_EACH; i++)
#pragma unroll
        for (int j = 0; j < TILE_EACH; j++)
            if (tile_row() + i < n && tile_column() + j < m)
                visit(tile_row() + i, tile_column() + j, sum.at[i][j]);
}

} // namespace

#endif
