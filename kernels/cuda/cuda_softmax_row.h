/* cuda_softmax_row.h - the largest element of a long row and the sum of its exponentials, by a block. For .cu
 * files.
 *
 * Element i of a row is added to lane i mod 16, ascending, as on the CPU. All threads make exponentials, a
 * chunk of them at a time in shared memory; sixteen add them up. */
#ifndef WB_CUDA_SOFTMAX_ROW_H
#define WB_CUDA_SOFTMAX_ROW_H

#include "cuda/cuda_operands.h"

namespace {

enum { CHUNK = 4096 };

/* The largest value(i), i < n, in all threads; n >= 1. As on the CPU, a NaN is kept only where it is
 * first. */
template <typename F> __device__ __forceinline__ float block_max(int64_t n, F value) {
    __shared__ float of_warp[BLOCK / WARP];
    const float first = value(0);
    float max = first;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += BLOCK) {
        const float x = value(i);
        max = x > max ? x : max;
    }
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, max, step);
        max = other > max ? other : max;
    }
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = max;
    __syncthreads();
    for (int warp = 0; warp < BLOCK / WARP; warp++) max = of_warp[warp] > max ? of_warp[warp] : max;
    __syncthreads();
    return max;
}

/* The sum of exponential(i), i < n, in all threads. chunk: shared [CHUNK]. */
template <typename F>
__device__ __forceinline__ float block_lanes_sum(int64_t n, float *chunk, F exponential) {
    __shared__ float total;
    float sum = 0.0f;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        const int count = static_cast<int>(min(n - begin, static_cast<int64_t>(CHUNK)));
#pragma unroll 8
        for (int i = threadIdx.x; i < count; i += BLOCK) chunk[i] = exponential(begin + i);
        __syncthreads();
        if (threadIdx.x < WB_LANES)
#pragma unroll 16
            for (int i = threadIdx.x; i < count; i += WB_LANES) sum = wb_add(sum, chunk[i]);
        __syncthreads();
    }
    if (threadIdx.x < WARP) sum = fold_lanes(sum);
    if (threadIdx.x == 0) total = sum;
    __syncthreads();
    return total;
}

} // namespace

#endif
