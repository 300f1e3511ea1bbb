/* cuda_gated.cu - what is multiplied by a function of a gate, element by element: the gated norm of recurrent
 * layers, and the sigmoid gate of attention.
 *
 * A half warp a row of a norm, as in cuda_rows.cu; a thread an element of the sigmoid gate. Refuses: a gate
 * that a whole row has (cuda_combine.cu). */
#include "cuda/cuda_norm.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

/* ---- the gated norm -------------------------------------------------------------------------- */

__global__ void __launch_bounds__(BLOCK)
    gated_norm_rows(int64_t n, int64_t width, wb_rows x, wb_norm norm, wb_rows z, wb_rows y) {
    const row_place place = find_row(n);
    const float r = inverse_rms(x, place.row, width, norm.eps, place.lane);
    if (!place.live) return;
    for (int64_t i = place.lane; i < width; i += WB_LANES) {
        const int64_t at = place.row * width + i;
        const float normed = wb_mul(wb_mul(load_element(x, at), r), wb_norm_factor(norm, i));
        store_element(y, at, wb_mul(normed, wb_silu(load_element(z, at))));
    }
}

/* The gradient of the norm's result: dy silu(z). */
__device__ __forceinline__ float gradient_of_norm(const wb_rows &z, const wb_rows &dy, int64_t at) {
    return wb_mul(load_element(dy, at), wb_silu(load_element(z, at)));
}

/* The sums of dy silu(z) x r over the rows of a part, ascending: of the first part from dw on, of the others
 * from 0. */
__global__ void __launch_bounds__(BLOCK)
    gated_norm_parts(int64_t n, int64_t width, int64_t part_rows, wb_rows x, wb_rows z, wb_rows dy,
                     const float *r, const float *dw, float *parts) {
    const int64_t place = thread_number(), part = place / width, column = place % width;
    const int64_t begin = part * part_rows, end = min(begin + part_rows, n);
    if (begin >= n) return;
    float sum = part == 0 ? dw[column] : 0.0f;
#pragma unroll 8
    for (int64_t row = begin; row < end; row++) {
        const int64_t at = row * width + column;
        sum = wb_fma(gradient_of_norm(z, dy, at), wb_mul(load_element(x, at), r[row]), sum);
    }
    parts[place] = sum;
}

/* dx as that of a norm, and dz = dy norm(x) silu'(z). A lane writes the elements that it alone has read. */
__global__ void __launch_bounds__(BLOCK)
    gated_norm_gradients(int64_t n, int64_t width, wb_rows x, wb_norm norm, const float *scales, wb_rows z,
                         wb_rows dy, wb_rows dx, wb_rows dz) {
    const row_place place = find_row(n);
    const int64_t begin = place.row * width;
    const float r = scales[place.row];
    float sum = 0.0f;
    for (int64_t i = place.lane; i < width; i += WB_LANES)
        sum = wb_fma(wb_mul(wb_norm_factor(norm, i), gradient_of_norm(z, dy, begin + i)),
                     load_element(x, begin + i), sum);
    sum = fold_lanes(sum);
    if (!place.live) return;
    const float shrink = wb_div(wb_mul(wb_mul(wb_mul(r, r), r), sum), static_cast<float>(width));
    for (int64_t i = place.lane; i < width; i += WB_LANES) {
        const float from = load_element(x, begin + i), gate = load_element(z, begin + i),
                    d = load_element(dy, begin + i), factor = wb_norm_factor(norm, i);
        const float s = wb_sigmoid(gate), silu = wb_mul(gate, s), slope = wb_fma(silu, wb_sub(1.0f, s), s);
        const float of_norm = wb_mul(wb_mul(r, factor), wb_mul(d, silu));
        store_element(dz, begin + i, wb_mul(wb_mul(d, wb_mul(wb_mul(from, r), factor)), slope));
        store_element(dx, begin + i, wb_fma(-shrink, from, of_norm));
    }
}

/* ---- the sigmoid gate ------------------------------------------------------------------------ */

__global__ void __launch_bounds__(BLOCK)
    sigmoid_gate_elements(int64_t n, int64_t width, wb_rows x, wb_rows gate, int64_t gate_stride, wb_rows y) {
    const int64_t i = thread_number(), row = i / width;
    if (row >= n) return;
    const float g = load_element(gate, row * gate_stride + i % width);
    store_element(y, i, wb_mul(load_element(x, i), wb_sigmoid(g)));
}

__global__ void __launch_bounds__(BLOCK)
    sigmoid_gate_gradients(int64_t n, int64_t width, wb_rows x, wb_rows gate, int64_t gate_stride, wb_rows dy,
                           wb_rows dx, wb_rows dgate) {
    const int64_t i = thread_number(), row = i / width, at = row * gate_stride + i % width;
    if (row >= n) return;
    const float s = wb_sigmoid(load_element(gate, at)), d = load_element(dy, i), from = load_element(x, i);
    store_element(dx, i, wb_mul(d, s));
    store_element(dgate, at, wb_mul(wb_mul(d, from), wb_mul(s, wb_sub(1.0f, s))));
}

} // namespace

extern "C" {

wb_status wb_cuda_gated_rmsnorm_forward(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                        wb_rows z, wb_rows y) {
    const char *op = "gated_rmsnorm_forward";
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "z", z.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "y", y.dtype, "x", x.dtype));
    LAUNCH(dev, op, n, WB_LANES, gated_norm_rows, n, width, x, norm, z, y);
}

static wb_status launch_scales(wb_device *dev, int64_t n, int64_t width, wb_rows x, float eps, float *r) {
    LAUNCH(dev, "gated_rmsnorm_backward", n, WB_LANES, rmsnorm_scales, n, width, x, eps, r);
}

/* f32 is one part, as on the CPU. */
static wb_status launch_parts(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows z, wb_rows dy,
                              const float *r, float *dw, float *parts) {
    const int64_t part_rows = x.dtype == WB_F32 ? n : static_cast<int64_t>(NORM_PART),
                  n_parts = (n + part_rows - 1) / part_rows;
    unsigned blocks = 0;
    WB_TRY(prepare_launch(dev, "gated_rmsnorm_backward", n_parts * width, 1, &blocks));
    if (blocks == 0) return WB_OK;
    gated_norm_parts<<<blocks, BLOCK, 0, stream_of(dev)>>>(n, width, part_rows, x, z, dy, r, dw, parts);
    LAUNCH(dev, "gated_rmsnorm_backward", width, 1, rmsnorm_sum_parts, n_parts, width, parts, dw);
}

wb_status wb_cuda_gated_rmsnorm_backward(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                         wb_rows z, wb_rows dy, wb_rows dx, wb_rows dz, float *dw) {
    const char *op = "gated_rmsnorm_backward";
    float *r = NULL;
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "z", z.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dx", dx.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dz", dz.dtype, "x", x.dtype));
    if (n == 0) return WB_OK;
    WB_TRY(reserve_scratch(dev, wb_cuda_norm_backward_bytes(n, width), &r));
    WB_TRY(launch_scales(dev, n, width, x, norm.eps, r));
    /* Before dx and dz, which may be dy and z. */
    if (dw) WB_TRY(launch_parts(dev, n, width, x, z, dy, r, dw, r + n));
    LAUNCH(dev, op, n, WB_LANES, gated_norm_gradients, n, width, x, norm, r, z, dy, dx, dz);
}

wb_status wb_cuda_sigmoid_gate_forward(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows gate,
                                       int64_t gate_stride, wb_rows y) {
    const char *op = "sigmoid_gate_forward";
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "gate", gate.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "y", y.dtype, "x", x.dtype));
    LAUNCH(dev, op, n * width, 1, sigmoid_gate_elements, n, width, x, gate, gate_stride, y);
}

wb_status wb_cuda_sigmoid_gate_backward(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows gate,
                                        int64_t gate_stride, wb_rows dy, wb_rows dx, wb_rows dgate) {
    const char *op = "sigmoid_gate_backward";
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "gate", gate.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dx", dx.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dgate", dgate.dtype, "x", x.dtype));
    LAUNCH(dev, op, n * width, 1, sigmoid_gate_gradients, n, width, x, gate, gate_stride, dy, dx, dgate);
}
}
