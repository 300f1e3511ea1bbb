/* cuda_swiglu.h - SwiGLU and its gradient, an element a thread, for the op and for the experts' products,
 * whose number of rows the device alone knows. For .cu files. */
#ifndef WB_CUDA_SWIGLU_H
#define WB_CUDA_SWIGLU_H

#include "cuda/cuda_operands.h"

namespace {

/* Rows that there are: n, or fewer where n_rows, device, says so. */
__device__ __forceinline__ int64_t rows_there(int64_t n, const int32_t *n_rows) {
    return n_rows ? min(n, static_cast<int64_t>(*n_rows)) : n;
}

__global__ void __launch_bounds__(BLOCK)
    swiglu_elements(int64_t n, const int32_t *n_rows, int64_t F, wb_rows gate_up, wb_rows out) {
    const int64_t i = thread_number(), row = i / F, column = i % F;
    if (row >= rows_there(n, n_rows)) return;
    const float gate = load_element(gate_up, row * 2 * F + column);
    const float up = load_element(gate_up, row * 2 * F + F + column);
    store_element(out, i, wb_mul(wb_silu(gate), up));
}

/* silu'(x) = s + x s (1 - s), s = sigmoid(x). dgate_up may be gate_up: a thread reads both of its elements
 * before it writes them. */
__global__ void __launch_bounds__(BLOCK) swiglu_gradients(int64_t n, const int32_t *n_rows, int64_t F,
                                                          wb_rows gate_up, wb_rows dout, wb_rows dgate_up) {
    const int64_t i = thread_number(), row = i / F, gate = row * 2 * F + i % F, up = gate + F;
    if (row >= rows_there(n, n_rows)) return;
    const float x = load_element(gate_up, gate), u = load_element(gate_up, up), d = load_element(dout, i);
    const float s = wb_sigmoid(x), silu = wb_mul(x, s), slope = wb_fma(silu, wb_sub(1.0f, s), s);
    store_element(dgate_up, gate, wb_mul(wb_mul(d, u), slope));
    store_element(dgate_up, up, wb_mul(d, silu));
}

} // namespace

#endif
