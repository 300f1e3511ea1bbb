/* cuda_softmax_row.h - the largest element and the sum of the exponentials of a long row, a part of it by a
 * block each (sample_rules.h), and what the parts come to. For .cu files.
 *
 * Element i of a part is added to lane i mod 16, ascending, as on the CPU: all threads make exponentials, in
 * shared memory, and sixteen add them up. Refuses: NaN, which as an element makes the sum one. */
#ifndef WB_CUDA_SOFTMAX_ROW_H
#define WB_CUDA_SOFTMAX_ROW_H

#include "cuda/cuda_operands.h"
#include "sample_rules.h"

namespace {

/* Elements of a part that a thread has: four adjacent ones and four more, half a part behind. */
enum { OF_THREAD = SOFTMAX_PART / BLOCK };

/* The place in its part of element i of this thread. */
__device__ __forceinline__ int place_of(int i) {
    return i / 4 * (SOFTMAX_PART * 4 / OF_THREAD) + static_cast<int>(threadIdx.x) * 4 + i % 4;
}

/* x[OF_THREAD] (=) this thread's elements of a part of `count`, -inf beyond it, from memory where they are
 * adjacent; `wide`: 16 bytes at a time, which lie in the part as a whole or not at all. */
__device__ __forceinline__ void load_part(const float *from, int count, bool wide, float *x) {
#pragma unroll
    for (int i = 0; i < OF_THREAD; i += 4) {
        const int at = place_of(i);
        if (wide && at < count) {
            const float4 four = *reinterpret_cast<const float4 *>(from + at);
            x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) x[i + j] = !wide && at + j < count ? from[at + j] : -INFINITY;
        }
    }
}

/* The way back. */
__device__ __forceinline__ void store_part(float *to, int count, bool wide, const float *x) {
#pragma unroll
    for (int i = 0; i < OF_THREAD; i += 4) {
        const int at = place_of(i);
        if (wide && at < count) {
            *reinterpret_cast<float4 *>(to + at) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (!wide && at + j < count) to[at + j] = x[i + j];
        }
    }
}

__device__ __forceinline__ void divide_part(float temperature, float *x) {
    if (temperature == 1.0f) return;
#pragma unroll
    for (int i = 0; i < OF_THREAD; i++) x[i] = wb_div(x[i], temperature);
}

/* The largest x of the block's threads that is a number, in all of them; -inf where there is none. */
__device__ __forceinline__ float block_largest(const float *x) {
    __shared__ float of_warp[BLOCK / WARP];
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < OF_THREAD; i++) largest = fmaxf(largest, x[i]);
    for (int step = WARP / 2; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = largest;
    __syncthreads();
    for (int warp = 0; warp < BLOCK / WARP; warp++) largest = fmaxf(largest, of_warp[warp]);
    return largest;
}

/* chunk[SOFTMAX_PART] (=) exp(x - the origin of `largest`) of all threads. */
__device__ __forceinline__ void store_exponentials(const float *x, float largest, float *chunk) {
    const float origin = softmax_origin(largest);
#pragma unroll
    for (int i = 0; i < OF_THREAD; i += 4)
        *reinterpret_cast<float4 *>(chunk + place_of(i)) =
            make_float4(wb_expf(wb_sub(x[i], origin)), wb_expf(wb_sub(x[i + 1], origin)),
                        wb_expf(wb_sub(x[i + 2], origin)), wb_expf(wb_sub(x[i + 3], origin)));
    __syncthreads();
}

/* The sum of chunk[count] in lanes, in the first warp. */
__device__ __forceinline__ float chunk_sum(const float *chunk, int count) {
    float sum = 0.0f;
    if (threadIdx.x < WB_LANES)
#pragma unroll 16
        for (int i = threadIdx.x; i < count; i += WB_LANES) sum = wb_add(sum, chunk[i]);
    return fold_lanes(sum);
}

/* What a row comes to from its parts: the largest element, and the sum of exp(element - that). */
struct row_sums {
    float largest, sum;
};

/* By any 16 adjacent lanes, which all get it; largest, sum: [n_parts]. A part whose largest is -inf has no
 * exponentials, or NaN for its sum. */
__device__ __forceinline__ row_sums sum_parts(int64_t n_parts, const float *largest, const float *sum) {
    row_sums row = {-INFINITY, 0.0f};
    const int lane = threadIdx.x % WB_LANES;
    for (int64_t part = lane; part < n_parts; part += WB_LANES)
        row.largest = fmaxf(row.largest, largest[part]);
    for (int step = WB_LANES / 2; step > 0; step /= 2)
        row.largest = fmaxf(row.largest, __shfl_xor_sync(ALL_LANES, row.largest, step));
    for (int64_t part = lane; part < n_parts; part += WB_LANES)
        row.sum = wb_add(row.sum, wb_mul(sum[part], wb_expf(wb_sub(largest[part], row.largest))));
    row.sum = fold_lanes(row.sum);
    return row;
}

} // namespace

#endif
