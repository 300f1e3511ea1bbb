/* cuda_optimizer.cu - the gradient norm and AdamW. Refuses: schedules, what is a parameter. */
#include "adamw_rules.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

/* Elements of one partial sum: part of the fixed order, as on the CPU. */
enum { PART = 8192 };

/* A half warp a part of one of the sums: element i of it is added to lane i mod 16, then the lanes
 * ascending. */
__global__ void __launch_bounds__(BLOCK)
    sum_parts(int64_t count, int64_t n, int64_t parts, wb_rows x, double *partial) {
    const int64_t number = thread_number() / WB_LANES, part = number % parts, of = number / parts;
    const int64_t begin = of * n + part * PART;
    const int lane = threadIdx.x % WB_LANES;
    const int64_t end = of < count ? min(begin + PART, of * n + n) : begin;
    double sum = 0.0, total = 0.0;
    for (int64_t i = begin + lane; i < end; i += WB_LANES) {
        const double value = load_element(x, i);
        sum = __dadd_rn(sum, __dmul_rn(value, value));
    }
    for (int r = 0; r < WB_LANES; r++) total = __dadd_rn(total, __shfl_sync(ALL_LANES, sum, r, WB_LANES));
    if (of < count && lane == 0) partial[number] = total;
}

/* The sums of all parts, ascending. */
__global__ void __launch_bounds__(BLOCK)
    sum_partials(int64_t count, int64_t parts, const double *partial, double *sums) {
    const int64_t i = thread_number();
    double sum = 0.0;
    if (i >= count) return;
#pragma unroll 16
    for (int64_t part = 0; part < parts; part++) sum = __dadd_rn(sum, partial[i * parts + part]);
    sums[i] = sum;
}

__global__ void __launch_bounds__(BLOCK) update_elements(int64_t n, wb_adamw_step step, const float *g,
                                                         float *m, float *v, float *w, uint16_t *rounded) {
    const int64_t i = thread_number();
    if (i >= n) return;
    wb_adamw_element(&step, g[i], m + i, v + i, w + i);
    if (rounded) rounded[i] = wb_f32_to_bf16(w[i]);
}

} // namespace

extern "C" {

size_t wb_cuda_sum_bytes(int64_t count, int64_t n) {
    return static_cast<size_t>(count * ((n + PART - 1) / PART)) * sizeof(double);
}

static wb_status launch_partials(wb_device *dev, int64_t count, int64_t parts, const double *partial,
                                 double *sums) {
    LAUNCH(dev, "sum_squares", count, 1, sum_partials, count, parts, partial, sums);
}

wb_status wb_cuda_sum_squares(wb_device *dev, int64_t count, int64_t n, wb_rows x, double *sums) {
    const int64_t parts = (n + PART - 1) / PART;
    double *partial = NULL;
    unsigned blocks = 0;
    WB_TRY(operand_check("sum_squares", "x", x.dtype));
    WB_TRY(prepare_launch(dev, "sum_squares", count * parts, WB_LANES, &blocks));
    if (blocks == 0) return dev->zero(dev, sums, static_cast<size_t>(count) * sizeof *sums);
    WB_TRY(reserve_scratch(dev, wb_cuda_sum_bytes(count, n), &partial));
    sum_parts<<<blocks, BLOCK, 0, stream_of(dev)>>>(count, n, parts, x, partial);
    return launch_partials(dev, count, parts, partial, sums);
}

wb_status wb_cuda_adamw(wb_device *dev, int64_t n, const wb_adamw *hyper, const float *g, float *m, float *v,
                        float *w, uint16_t *rounded) {
    if (hyper->step == 0) return wb_fail(WB_INVALID_ARGUMENT, "adamw: step: expected 1 or more, found 0");
    const wb_adamw_step step = wb_adamw_step_of(hyper);
    LAUNCH(dev, "adamw", n, 1, update_elements, n, step, g, m, v, w, rounded);
}
}
