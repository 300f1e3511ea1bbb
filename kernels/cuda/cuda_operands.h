/* cuda_operands.h - an op's operands on the device: elements of f32 or bf16 memory as f32, and a launch of a
 * kernel over elements. For .cu files.
 *
 * An op computes on f32 what the CPU's does, in the same order, and rounds what it writes to bf16 once, so
 * that the bits of both backends are the same. */
#ifndef WB_CUDA_OPERANDS_H
#define WB_CUDA_OPERANDS_H

#include "cuda/cuda_device.h"
#include "cuda/cuda_grid.h"
#include "operand_check.h"
#include "wb_exact_math.h"

#include <cuda_runtime.h>

namespace {

__device__ __forceinline__ float load_element(const wb_rows &rows, int64_t i) {
    return rows.dtype == WB_F32 ? static_cast<const float *>(rows.data)[i]
                                : wb_bf16_to_f32(static_cast<const uint16_t *>(rows.data)[i]);
}

__device__ __forceinline__ void store_element(const wb_rows &rows, int64_t i, float value) {
    if (rows.dtype == WB_F32)
        static_cast<float *>(rows.data)[i] = value;
    else
        static_cast<uint16_t *>(rows.data)[i] = wb_f32_to_bf16(value);
}

/* The number of this thread in its grid. */
__device__ __forceinline__ int64_t thread_number() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/* The sum of a row over 16 lanes, the threads of a half warp: wb_lanes_sum, the same pairs at each step. All
 * lanes get it. */
__device__ __forceinline__ float fold_lanes(float sum) {
    for (int step = WB_LANES / 2; step > 0; step /= 2)
        sum = wb_add(sum, __shfl_xor_sync(ALL_LANES, sum, step));
    return sum;
}

inline cudaStream_t stream_of(const wb_device *dev) {
    return static_cast<cudaStream_t>(dev->stream);
}

/* Readies a launch of `op` with `threads_each` threads for each of n rows or elements; *blocks_out 0: there
 * is nothing to do. */
inline wb_status prepare_launch(wb_device *dev, const char *op, int64_t n, int32_t threads_each,
                                unsigned *blocks_out) {
    WB_TRY(count_blocks(op, "n", n, threads_each, blocks_out));
    return n == 0 ? WB_OK : wb_cuda_use(dev, op);
}

/* Launches kernel(args...), `threads_each` threads for each of n rows or elements, and returns from the
 * op. */
#define LAUNCH(dev, op, n, threads_each, kernel, ...)               \
    do {                                                            \
        unsigned blocks_ = 0;                                       \
        WB_TRY(prepare_launch(dev, op, n, threads_each, &blocks_)); \
        if (blocks_ == 0) return WB_OK;                             \
        kernel<<<blocks_, BLOCK, 0, stream_of(dev)>>>(__VA_ARGS__); \
        return wb_cuda_check(cudaGetLastError(), op);               \
    } while (0)

} // namespace

#endif
