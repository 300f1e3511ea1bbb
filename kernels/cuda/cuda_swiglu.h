/* cuda_swiglu.h - SwiGLU and its gradient: of one element, which the experts' products make on their way, and
 * an element a thread, for the op and for products whose number of rows the device alone knows.
 *
 * On f32 they have the CPU's bits. What is rounded to bf16 has a sigmoid that is off by 2^-20 of itself at
 * most, from the GPU's own exp2 and reciprocal: the exact one costs a tenth of an expert's product. For .cu
 * files. */
#ifndef WB_CUDA_SWIGLU_H
#define WB_CUDA_SWIGLU_H

#include "cuda/cuda_operands.h"

namespace {

/* ---- one element ----------------------------------------------------------------------------- */

struct exact_sigmoid {
    static __device__ __forceinline__ float of(float x) {
        return wb_sigmoid(x);
    }
};

/* 1 / (1 + 2^(-x log2(e))): 0 or 1 at the ends, NaN of NaN. */
struct fast_sigmoid {
    static __device__ __forceinline__ float of(float x) {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(-1.4426950408889634f * x));
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + y));
        return y;
    }
};

template <class SIGMOID> __device__ __forceinline__ float swiglu(float gate, float up) {
    return wb_mul(wb_mul(gate, SIGMOID::of(gate)), up);
}

/* The gradients of gate and up from d, that of their product; silu'(x) = s + x s (1 - s), s = sigmoid(x). */
template <class SIGMOID>
__device__ __forceinline__ void swiglu_gradient(float gate, float up, float d, float *dgate, float *dup) {
    const float s = SIGMOID::of(gate), silu = wb_mul(gate, s), slope = wb_fma(silu, wb_sub(1.0f, s), s);
    *dgate = wb_mul(wb_mul(d, up), slope);
    *dup = wb_mul(d, silu);
}

/* ---- an element a thread --------------------------------------------------------------------- */

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
    store_element(out, i,
                  out.dtype == WB_F32 ? swiglu<exact_sigmoid>(gate, up) : swiglu<fast_sigmoid>(gate, up));
}

/* dgate_up may be gate_up: a thread reads both of its elements before it writes them. */
__global__ void __launch_bounds__(BLOCK) swiglu_gradients(int64_t n, const int32_t *n_rows, int64_t F,
                                                          wb_rows gate_up, wb_rows dout, wb_rows dgate_up) {
    const int64_t i = thread_number(), row = i / F, gate = row * 2 * F + i % F, up = gate + F;
    if (row >= rows_there(n, n_rows)) return;
    const float x = load_element(gate_up, gate), u = load_element(gate_up, up), d = load_element(dout, i);
    float dgate, dup;
    if (dgate_up.dtype == WB_F32)
        swiglu_gradient<exact_sigmoid>(x, u, d, &dgate, &dup);
    else
        swiglu_gradient<fast_sigmoid>(x, u, d, &dgate, &dup);
    store_element(dgate_up, gate, dgate);
    store_element(dgate_up, up, dup);
}

} // namespace

#endif
