/* cuda_tile_product.h - a product of f32 by a block, of which each element is one fma chain over ascending
 * k in one thread: a tile of rows and columns, whose operands lie in shared memory a few k at a time. For
 * .cu files.
 *
 * Operands come from wherever a caller's function says, so that rows may lie scattered and be made on the
 * way. Refuses: where sums begin and go. */
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

/* A thread's share of an operand, on its way to shared memory: what comes from global memory is asked for at
 * once, and for the next k while the present ones are multiplied. */
template <int WIDTH> struct tile_share { float at[WIDTH * TILE_K / TILE_THREADS]; };

/* The k and the row or column of element i of a thread's share. ALONG_K: neighbours in memory are those of
 * k. A warp then has 8 k of 4 rows, whose places in shared memory are in different banks; else 32 rows of
 * one k. */
struct tile_place {
    int k, m;
};
template <bool ALONG_K, int WIDTH> __device__ __forceinline__ tile_place place_in_tile(int i) {
    const int at = i * TILE_THREADS + static_cast<int>(threadIdx.x);
    if (ALONG_K) return {(at & 7) | (at >> 5 & 3) << 3, (at >> 3 & 3) | at >> 7 << 2};
    return {at / WIDTH, at % WIDTH};
}
static_assert(TILE_K == 32 && TILE_THREADS == 128, "place_in_tile has the bits of a place in an operand");

/* load(m, k) of m < n and k < count */
template <bool ALONG_K, int WIDTH, class LOAD>
__device__ __forceinline__ tile_share<WIDTH> load_tile(int n, int count, const LOAD &load) {
    tile_share<WIDTH> share;
#pragma unroll
    for (int i = 0; i < WIDTH * TILE_K / TILE_THREADS; i++) {
        const tile_place p = place_in_tile<ALONG_K, WIDTH>(i);
        share.at[i] = p.k < count && p.m < n ? load(p.m, p.k) : 0.0f;
    }
    return share;
}

template <bool ALONG_K, int WIDTH>
__device__ __forceinline__ void store_tile(const tile_share<WIDTH> &share, tile_operand<WIDTH> &to) {
#pragma unroll
    for (int i = 0; i < WIDTH * TILE_K / TILE_THREADS; i++) {
        const tile_place p = place_in_tile<ALONG_K, WIDTH>(i);
        to.at[p.k][p.m] = share.at[i];
    }
}

/* sum += a b over `count` k. Rows and columns that are not there are zeros. */
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
