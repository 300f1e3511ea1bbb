/* cuda_sum_before.h - what comes before a thread's number, over a block. For .cu files. */
#ifndef WB_CUDA_SUM_BEFORE_H
#define WB_CUDA_SUM_BEFORE_H

#include "cuda/cuda_grid.h"

namespace {

/* A warp for each lane of a warp. */
enum { SUM_THREADS = WARP * WARP };

/* The sum of `value` over the threads before this one; *total_out: over all of the block. By the
 * whole block, of SUM_THREADS threads. */
__device__ __forceinline__ int32_t sum_before(int32_t value, int32_t *total_out) {
    __shared__ int32_t of_warp[SUM_THREADS / WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t sum = value;
    for (int step = 1; step < WARP; step *= 2) {
        const int32_t other = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane >= step ? other : 0;
    }
    __syncthreads();
    if (lane == WARP - 1) of_warp[warp] = sum;
    __syncthreads();
    int32_t warps = of_warp[lane];
    for (int step = 1; step < WARP; step *= 2) {
        const int32_t other = __shfl_up_sync(ALL_LANES, warps, step);
        warps += lane >= step ? other : 0;
    }
    *total_out = __shfl_sync(ALL_LANES, warps, WARP - 1);
    const int32_t before = __shfl_sync(ALL_LANES, warps, max(warp - 1, 0));
    return (warp > 0 ? before : 0) + sum - value;
}

} // namespace

#endif
