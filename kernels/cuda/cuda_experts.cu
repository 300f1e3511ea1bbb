/* cuda_experts.cu - what experts have between their products where that is no plain SwiGLU: a bias for
 * each expert, and the clamped SwiGLU. The device alone knows how many rows there are. Refuses: the
 * products (cuda_matmul.cu). */
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "swiglu_rules.h"

namespace {

/* The group that a row is of: the last one that begins at it or before, and has rows. */
__device__ __forceinline__ int32_t group_of(const int32_t *offsets, int32_t n_groups, int64_t row) {
    int32_t low = 0, high = n_groups;
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        if (offsets[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

__global__ void __launch_bounds__(BLOCK)
    bias_groups(int32_t n_groups, const int32_t *offsets, int64_t width, const float *b, wb_rows y) {
    const int64_t i = thread_number(), row = i / width, column = i % width;
    if (row >= offsets[n_groups]) return;
    const float bias = b[group_of(offsets, n_groups, row) * width + column];
    store_element(y, i, wb_add(load_element(y, i), bias));
}

/* Where it says how many rows there are; NULL: max_rows. */
inline const int32_t *rows_of(const wb_grouped *g) {
    return g->offsets ? g->offsets + g->n_groups : NULL;
}

/* A thread a column of a group. */
__global__ void __launch_bounds__(BLOCK)
    bias_group_columns(int32_t n_groups, const int32_t *offsets, int64_t width, wb_rows dy, bool overwrites,
                       float *db) {
    const int64_t i = thread_number(), group = i / width, column = i % width;
    if (group >= n_groups) return;
    float sum = overwrites ? 0.0f : db[i];
    for (int64_t row = offsets[group]; row < offsets[group + 1]; row++)
        sum = wb_add(sum, load_element(dy, row * width + column));
    db[i] = sum;
}

__global__ void __launch_bounds__(BLOCK)
    clamped_swiglu_elements(const int32_t *n_rows, int64_t max_rows, int64_t F, wb_clamped_swiglu clamp,
                            wb_rows gate_up, wb_rows out) {
    const int64_t i = thread_number(), row = i / F, gate = row * 2 * F + i % F;
    if (row >= (n_rows ? *n_rows : max_rows)) return;
    store_element(out, i,
                  wb_clamped_swiglu_of(clamp, load_element(gate_up, gate), load_element(gate_up, gate + F)));
}

/* dgate_up may be gate_up: a thread reads both of its elements before it writes them. */
__global__ void __launch_bounds__(BLOCK)
    clamped_swiglu_gradients(const int32_t *n_rows, int64_t max_rows, int64_t F, wb_clamped_swiglu clamp,
                             wb_rows gate_up, wb_rows dout, wb_rows dgate_up) {
    const int64_t i = thread_number(), row = i / F, gate = row * 2 * F + i % F;
    if (row >= (n_rows ? *n_rows : max_rows)) return;
    float dgate, dup;
    wb_clamped_swiglu_gradient(clamp, load_element(gate_up, gate), load_element(gate_up, gate + F),
                               load_element(dout, i), &dgate, &dup);
    store_element(dgate_up, gate, dgate);
    store_element(dgate_up, gate + F, dup);
}

} // namespace

extern "C" {

wb_status wb_cuda_grouped_bias_forward(wb_device *dev, const wb_grouped *g, int64_t width, const float *b,
                                       wb_rows y) {
    WB_TRY(operand_check("grouped_bias_forward", "y", y.dtype));
    LAUNCH(dev, "grouped_bias_forward", g->max_rows * width, 1, bias_groups, g->n_groups, g->offsets, width,
           b, y);
}

wb_status wb_cuda_grouped_bias_backward(wb_device *dev, const wb_grouped *g, int64_t width, wb_rows dy,
                                        float *db) {
    WB_TRY(operand_check("grouped_bias_backward", "dy", dy.dtype));
    LAUNCH(dev, "grouped_bias_backward", g->n_groups * width, 1, bias_group_columns, g->n_groups, g->offsets,
           width, dy, g->overwrites, db);
}

wb_status wb_cuda_grouped_swiglu_forward(wb_device *dev, const wb_grouped *g, int64_t F,
                                         const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows out) {
    WB_TRY(operand_check("grouped_swiglu_forward", "gate_up", gate_up.dtype));
    WB_TRY(operand_check_like("grouped_swiglu_forward", "out", out.dtype, "gate_up", gate_up.dtype));
    LAUNCH(dev, "grouped_swiglu_forward", g->max_rows * F, 1, clamped_swiglu_elements, rows_of(g),
           g->max_rows, F, *clamp, gate_up, out);
}

wb_status wb_cuda_grouped_swiglu_backward(wb_device *dev, const wb_grouped *g, int64_t F,
                                          const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows dout,
                                          wb_rows dgate_up) {
    const char *op = "grouped_swiglu_backward";
    WB_TRY(operand_check(op, "gate_up", gate_up.dtype));
    WB_TRY(operand_check_like(op, "dout", dout.dtype, "gate_up", gate_up.dtype));
    WB_TRY(operand_check_like(op, "dgate_up", dgate_up.dtype, "gate_up", gate_up.dtype));
    LAUNCH(dev, op, g->max_rows * F, 1, clamped_swiglu_gradients, rows_of(g), g->max_rows, F, *clamp, gate_up,
           dout, dgate_up);
}
}
