/* cuda_mma.h - a tile of a product of two matrices of bf16 by tensor cores, of any strides, on sm_80 and
 * later: what the kernels of sm_90a (hopper/) do not take.
 *
 * An element is one chain of steps of 16 k in rising order, k beyond the last being zeros, which gives the
 * same bits as the kernels of sm_90a. For .cu files. */
#ifndef WB_CUDA_MMA_H
#define WB_CUDA_MMA_H

#include "cuda/cuda_operands.h"
#include "cuda/cuda_tensor.h"

namespace {

/* A block's tile, k of a step through shared memory, and elements of a line of k there: padded so that the
 * lines of a warp's matrices lie in different banks. */
enum { MMA_TILE = 64, MMA_DEPTH = 64, MMA_LINE = MMA_DEPTH + 8 };

struct mma_tile {
    uint16_t a[MMA_TILE][MMA_LINE], b[MMA_TILE][MMA_LINE];
};

/* to[i][k] = element (first + i, k0 + k) of a matrix [count, depth] with these strides; 0 beyond it. The
 * threads go along the stride of 1. */
__device__ __forceinline__ void load_mma_lines(const wb_rows &from, int64_t line, int64_t step, int64_t first,
                                               int64_t count, int64_t k0, int64_t depth,
                                               uint16_t (*to)[MMA_LINE]) {
    const uint16_t *data = static_cast<const uint16_t *>(from.data);
    const bool along_k = step == 1;
    for (int at = threadIdx.x; at < MMA_TILE * MMA_DEPTH; at += BLOCK) {
        const int i = along_k ? at / MMA_DEPTH : at % MMA_TILE, k = along_k ? at % MMA_DEPTH : at / MMA_TILE;
        const bool there = first + i < count && k0 + k < depth;
        to[i][k] = there ? data[(first + i) * line + (k0 + k) * step] : static_cast<uint16_t>(0);
    }
}

__device__ __forceinline__ uint32_t two_k(const uint16_t (*lines)[MMA_LINE], int line, int k) {
    return *reinterpret_cast<const uint32_t *>(&lines[line][k]);
}

/* A warp has 16 rows and 32 columns of the tile: the chains go on over MMA_DEPTH more k. */
__device__ __forceinline__ void add_mma_tile(const mma_tile &t, int row, int column, float (&sum)[4][4]) {
    const int lane = threadIdx.x % WARP, line = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < MMA_DEPTH; k += 16) {
        const uint32_t a[4] = {two_k(t.a, row + line, k + pair), two_k(t.a, row + line + 8, k + pair),
                               two_k(t.a, row + line, k + pair + 8),
                               two_k(t.a, row + line + 8, k + pair + 8)};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int n = column + 8 * j + line;
            add_products_16(sum[j], a, two_k(t.b, n, k + pair), two_k(t.b, n, k + pair + 8));
        }
    }
}

/* The tile of C from row m0 and column n0 on. What C is added to comes after the whole chain. */
__device__ __forceinline__ void multiply_mma_tile(const wb_matmul &p, int64_t m0, int64_t n0) {
    __shared__ mma_tile t;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int row = 16 * (warp / 2), column = 32 * (warp % 2);
    float sum[4][4] = {};
    for (int64_t k0 = 0; k0 < p.K; k0 += MMA_DEPTH) {
        load_mma_lines(p.a, p.a_row, p.a_col, m0, p.M, k0, p.K, t.a);
        load_mma_lines(p.b, p.b_col, p.b_row, n0, p.N, k0, p.K, t.b);
        __syncthreads();
        add_mma_tile(t, row, column, sum);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const int64_t m = m0 + row + lane / 4 + (i / 2 % 2) * 8,
                      n = n0 + column + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (m >= p.M || n >= p.N) continue;
        const int64_t at = m * p.ldc + n;
        const float s = sum[i / 4][i % 4];
        store_element(p.c, at, p.accumulate ? wb_add(load_element(p.c, at), s) : s);
    }
}

} // namespace

#endif
