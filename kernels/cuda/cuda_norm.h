/* cuda_norm.h - what the kernels of norms share: a half warp a row, the root mean square of a row, and the
 * gradient of the weights in parts. For .cu files. */
#ifndef WB_CUDA_NORM_H
#define WB_CUDA_NORM_H

#include "cuda/cuda_operands.h"
#include "norm_rules.h"

namespace {

/* Rows of which a norm's gradient of bf16 has one sum: part of the fixed order. */
enum { NORM_PART = 128 };

/* The place of a thread in a half warp a row. Rows beyond n repeat the last one and write nothing, so that
 * every lane takes part in the exchanges. */
struct row_place {
    int64_t row;
    int lane;
    bool live;
};

__device__ __forceinline__ row_place find_row(int64_t n) {
    const int64_t row = thread_number() / WB_LANES;
    return {row < n ? row : n - 1, static_cast<int>(threadIdx.x % WB_LANES), row < n};
}

__device__ __forceinline__ float inverse_rms(const wb_rows &x, int64_t row, int64_t width, float eps,
                                             int lane) {
    float sum = 0.0f;
    for (int64_t i = lane; i < width; i += WB_LANES) {
        const float value = load_element(x, row * width + i);
        sum = wb_fma(value, value, sum);
    }
    const float mean = wb_div(fold_lanes(sum), static_cast<float>(width));
    return wb_div(1.0f, wb_sqrt(wb_add(mean, eps)));
}

__global__ void __launch_bounds__(BLOCK)
    rmsnorm_scales(int64_t n, int64_t width, wb_rows x, float eps, float *r) {
    const row_place place = find_row(n);
    const float scale = inverse_rms(x, place.row, width, eps, place.lane);
    if (place.live && place.lane == 0) r[place.row] = scale;
}

/* dw = the sum of the parts, ascending */
__global__ void __launch_bounds__(BLOCK)
    rmsnorm_sum_parts(int64_t n_parts, int64_t width, const float *parts, float *dw) {
    const int64_t column = thread_number();
    if (column >= width) return;
    float sum = parts[column];
#pragma unroll 64
    for (int64_t part = 1; part < n_parts; part++) sum = wb_add(sum, parts[part * width + column]);
    dw[column] = sum;
}

} // namespace

#endif
