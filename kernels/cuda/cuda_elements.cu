/* cuda_elements.cu - ops on elements: SwiGLU, sums, bias, clamps, casts.
 *
 * A thread an element, or eight where sums and casts are of bf16 that can be read 16 bytes at a time; the
 * gradient of a bias, a thread a column. Refuses: sums along a row (cuda_rows.cu). */
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_swiglu.h"
#include "cuda/cuda_vector.h"

namespace {

__global__ void __launch_bounds__(BLOCK) add_elements(int64_t n, wb_rows x, wb_rows y) {
    const int64_t i = thread_number();
    if (i < n) store_element(y, i, wb_add(load_element(y, i), load_element(x, i)));
}

__global__ void __launch_bounds__(BLOCK) bias_rows(int64_t n, int64_t width, const float *b, wb_rows y) {
    const int64_t i = thread_number();
    if (i < n * width) store_element(y, i, wb_add(load_element(y, i), b[i % width]));
}

__global__ void __launch_bounds__(BLOCK) bias_columns(int64_t n, int64_t width, wb_rows dy, float *db) {
    const int64_t column = thread_number();
    if (column >= width) return;
    float sum = db[column];
    for (int64_t row = 0; row < n; row++) sum = wb_add(sum, load_element(dy, row * width + column));
    db[column] = sum;
}

__global__ void __launch_bounds__(BLOCK) clamp_elements(int64_t n, float limit, wb_rows x) {
    const int64_t i = thread_number();
    if (i >= n) return;
    const float found = load_element(x, i), above = found < -limit ? -limit : found;
    store_element(x, i, above > limit ? limit : above);
}

__global__ void __launch_bounds__(BLOCK) clamp_gradients(int64_t n, float limit, wb_rows x, wb_rows dx) {
    const int64_t i = thread_number();
    if (i < n && fabsf(load_element(x, i)) > limit) store_element(dx, i, 0.0f);
}

__global__ void __launch_bounds__(BLOCK) cast_elements(int64_t n, wb_rows from, wb_rows to) {
    const int64_t i = thread_number();
    if (i < n) store_element(to, i, load_element(from, i));
}

/* ---- bf16, eight elements a thread --------------------------------------------------------------- */

__global__ void __launch_bounds__(BLOCK) add_eights(int64_t eights, const uint16_t *x, uint16_t *y) {
    const int64_t i = thread_number();
    float sum[8], more[8];
    if (i >= eights) return;
    widen_eight(load_eight(y + 8 * i), sum);
    widen_eight(load_eight(x + 8 * i), more);
#pragma unroll
    for (int k = 0; k < 8; k++) sum[k] = wb_add(sum[k], more[k]);
    store_eight(y + 8 * i, sum);
}

__global__ void __launch_bounds__(BLOCK) round_eights(int64_t eights, const float4 *from, uint16_t *to) {
    const int64_t i = thread_number();
    if (i >= eights) return;
    const float4 a = from[2 * i], b = from[2 * i + 1];
    const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    store_eight(to + 8 * i, x);
}

} // namespace

extern "C" {

wb_status wb_cuda_swiglu_forward(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows out) {
    WB_TRY(operand_check("swiglu_forward", "gate_up", gate_up.dtype));
    WB_TRY(operand_check_like("swiglu_forward", "out", out.dtype, "gate_up", gate_up.dtype));
    LAUNCH(dev, "swiglu_forward", n * F, 1, swiglu_elements, n, NULL, F, gate_up, out);
}

wb_status wb_cuda_swiglu_backward(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows dout,
                                  wb_rows dgate_up) {
    WB_TRY(operand_check("swiglu_backward", "gate_up", gate_up.dtype));
    WB_TRY(operand_check_like("swiglu_backward", "dout", dout.dtype, "gate_up", gate_up.dtype));
    WB_TRY(operand_check_like("swiglu_backward", "dgate_up", dgate_up.dtype, "gate_up", gate_up.dtype));
    LAUNCH(dev, "swiglu_backward", n * F, 1, swiglu_gradients, n, NULL, F, gate_up, dout, dgate_up);
}

wb_status wb_cuda_add(wb_device *dev, int64_t n, wb_rows x, wb_rows y) {
    WB_TRY(operand_check("add", "x", x.dtype));
    WB_TRY(operand_check_like("add", "y", y.dtype, "x", x.dtype));
    if (in_eights(n, x) && in_eights(n, y))
        LAUNCH(dev, "add", n / 8, 1, add_eights, n / 8, bf16_of(x), bf16_of(y));
    LAUNCH(dev, "add", n, 1, add_elements, n, x, y);
}

wb_status wb_cuda_bias_forward(wb_device *dev, int64_t n, int64_t width, const float *b, wb_rows y) {
    WB_TRY(operand_check("bias_forward", "y", y.dtype));
    LAUNCH(dev, "bias_forward", n * width, 1, bias_rows, n, width, b, y);
}

wb_status wb_cuda_bias_backward(wb_device *dev, int64_t n, int64_t width, wb_rows dy, float *db) {
    WB_TRY(operand_check("bias_backward", "dy", dy.dtype));
    LAUNCH(dev, "bias_backward", width, 1, bias_columns, n, width, dy, db);
}

wb_status wb_cuda_clamp(wb_device *dev, int64_t n, float limit, wb_rows x) {
    WB_TRY(operand_check("clamp", "x", x.dtype));
    LAUNCH(dev, "clamp", n, 1, clamp_elements, n, limit, x);
}

wb_status wb_cuda_clamp_backward(wb_device *dev, int64_t n, float limit, wb_rows x, wb_rows dx) {
    WB_TRY(operand_check("clamp_backward", "x", x.dtype));
    WB_TRY(operand_check_like("clamp_backward", "dx", dx.dtype, "x", x.dtype));
    LAUNCH(dev, "clamp_backward", n, 1, clamp_gradients, n, limit, x, dx);
}

wb_status wb_cuda_cast(wb_device *dev, int64_t n, wb_rows from, wb_rows to) {
    WB_TRY(operand_check("cast", "from", from.dtype));
    WB_TRY(operand_check("cast", "to", to.dtype));
    if (from.dtype == to.dtype)
        return dev->copy(dev, to.data, from.data, (size_t)n * wb_dtype_size(to.dtype));
    if (in_eights(n, to) && reinterpret_cast<uintptr_t>(from.data) % 16 == 0)
        LAUNCH(dev, "cast", n / 8, 1, round_eights, n / 8, static_cast<const float4 *>(from.data),
               bf16_of(to));
    LAUNCH(dev, "cast", n, 1, cast_elements, n, from, to);
}
}
