/* cuda_combine.cu - the rows of a token's experts weighted and summed, a shared expert's through its gate,
 * the token itself of experts without weights, and their backward.
 *
 * A token's choices are summed in their order, whatever the placement of the rows. The experts' kernels
 * exist twice: for rows of bf16 that can be read 16 bytes at a time, and for all others; the bits are the
 * same. Refuses: where rows lie (cuda_moe.cu). */
#include "cuda/cuda_ids.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_vector.h"

namespace {

/* ---- any rows -------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(BLOCK)
    combine_elements(int64_t T, int32_t K, int64_t H, wb_rows rows, const int32_t *pair_row,
                     const float *weights, wb_rows y) {
    const int64_t at = thread_number(), t = at / H, i = at % H;
    if (t >= T) return;
    float sum = 0.0f;
    for (int32_t k = 0; k < K; k++) {
        const int64_t row = pair_row[t * K + k];
        if (row >= 0) sum = wb_fma(weights ? weights[t * K + k] : 1.0f, load_element(rows, row * H + i), sum);
    }
    store_element(y, at, sum);
}

/* A half warp a pair: dweights before drows, which may be rows. */
__global__ void __launch_bounds__(BLOCK)
    combine_gradients(int64_t n_pairs, int32_t K, int64_t H, wb_rows rows, const int32_t *pair_row,
                      const float *weights, wb_rows dy, wb_rows drows, float *dweights) {
    const int64_t number = thread_number() / WB_LANES, pair = min(number, n_pairs - 1), t = pair / K;
    const int lane = threadIdx.x % WB_LANES;
    const int64_t row = pair_row[pair];
    float dot = 0.0f;
    for (int64_t i = lane; i < H && row >= 0; i += WB_LANES)
        dot = wb_fma(load_element(dy, t * H + i), load_element(rows, row * H + i), dot);
    dot = fold_lanes(dot);
    if (number >= n_pairs) return;
    if (dweights && lane == 0) dweights[pair] = row < 0 ? 0.0f : dot;
    const float w = weights ? weights[pair] : 1.0f;
    for (int64_t i = lane; i < H && row >= 0; i += WB_LANES)
        store_element(drows, row * H + i, wb_mul(w, load_element(dy, t * H + i)));
}

__global__ void __launch_bounds__(BLOCK)
    add_gated_elements(int64_t n, int64_t width, const float *gate, wb_rows x, wb_rows y) {
    const int64_t i = thread_number();
    if (i >= n * width) return;
    store_element(y, i, wb_fma(wb_sigmoid(gate[i / width]), load_element(x, i), load_element(y, i)));
}

/* A half warp a row: dgate before dx, which may be x. */
__global__ void __launch_bounds__(BLOCK)
    add_gated_gradients(int64_t n, int64_t width, const float *gate, wb_rows x, wb_rows dy, wb_rows dx,
                        float *dgate) {
    const int64_t number = thread_number() / WB_LANES, row = min(number, n - 1), first = row * width;
    const int lane = threadIdx.x % WB_LANES;
    const float s = wb_sigmoid(gate[row]);
    float dot = 0.0f;
    for (int64_t i = lane; i < width; i += WB_LANES)
        dot = wb_fma(load_element(dy, first + i), load_element(x, first + i), dot);
    dot = fold_lanes(dot);
    if (number >= n) return;
    if (lane == 0) dgate[row] = wb_mul(wb_mul(s, wb_sub(1.0f, s)), dot);
    for (int64_t i = lane; i < width; i += WB_LANES)
        store_element(dx, first + i, wb_mul(s, load_element(dy, first + i)));
}

/* ---- experts without weights ------------------------------------------------------------------ */

__device__ __forceinline__ bool is_own(const wb_own_choices &own, int64_t t, int32_t k) {
    return own.weights[t * own.K + k] != 0.0f && load_id(own.ids, t, k) >= own.first;
}

/* Element i of token t of `rows`, weighted, added to `sum` once for each such choice. */
__device__ __forceinline__ float add_own(const wb_own_choices &own, int64_t t, int64_t i, const wb_rows &rows,
                                         float sum) {
    const float element = load_element(rows, t * own.H + i);
    for (int32_t k = 0; k < own.K; k++)
        if (is_own(own, t, k)) sum = wb_fma(own.weights[t * own.K + k], element, sum);
    return sum;
}

__global__ void __launch_bounds__(BLOCK) own_elements(wb_own_choices own, wb_rows x, wb_rows y) {
    const int64_t at = thread_number(), t = at / own.H, i = at % own.H;
    if (t >= own.T) return;
    store_element(y, at, add_own(own, t, i, x, load_element(y, at)));
}

/* A half warp a token. All such choices of a token have one dweight, <dy, x>. */
__global__ void __launch_bounds__(BLOCK)
    own_gradients(wb_own_choices own, wb_rows x, wb_rows dy, wb_rows dx, float *dweights) {
    const int64_t number = thread_number() / WB_LANES, t = min(number, own.T - 1), first = t * own.H;
    const int lane = threadIdx.x % WB_LANES;
    float dot = 0.0f;
    for (int64_t i = lane; i < own.H; i += WB_LANES)
        dot = wb_fma(load_element(dy, first + i), load_element(x, first + i), dot);
    dot = fold_lanes(dot);
    if (number >= own.T) return;
    for (int32_t k = lane; k < own.K; k += WB_LANES)
        if (is_own(own, t, k)) dweights[t * own.K + k] = dot;
    for (int64_t i = lane; i < own.H; i += WB_LANES)
        store_element(dx, first + i, add_own(own, t, i, dy, load_element(dx, first + i)));
}

/* ---- rows of bf16, eight elements a thread --------------------------------------------------- */

/* Choices whose rows are under way together. */
enum { AHEAD = 8 };

/* A thread has eight columns of a token. */
__global__ void __launch_bounds__(BLOCK)
    combine_eights(int64_t T, int32_t K, int64_t H, const uint16_t *rows, const int32_t *pair_row,
                   const float *weights, uint16_t *y) {
    const int64_t eights = H / 8, at = thread_number(), t = at / eights, i = at % eights * 8;
    if (t >= T) return;
    float sum[8] = {};
    for (int32_t first = 0; first < K; first += AHEAD) {
        uint4 v[AHEAD];
        float w[AHEAD];
        int32_t row[AHEAD];
#pragma unroll
        for (int32_t k = 0; k < AHEAD; k++) {
            const int64_t pair = t * K + first + k;
            row[k] = first + k < K ? pair_row[pair] : -1;
            w[k] = row[k] >= 0 && weights ? weights[pair] : 1.0f;
            if (row[k] >= 0) v[k] = load_eight(rows + row[k] * H + i);
        }
#pragma unroll
        for (int32_t k = 0; k < AHEAD; k++) {
            float x[8];
            if (row[k] < 0) continue;
            widen_eight(v[k], x);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] = wb_fma(w[k], x[j], sum[j]);
        }
    }
    store_eight(y + t * H + i, sum);
}

/* The elements of a half warp's 128 columns, eight adjacent ones a lane, as the lanes of a sum take them:
 * lane l gets columns l, l + 16, ... `line` is the half warp's own. */
__device__ __forceinline__ void deal_to_lanes(uint16_t *line, int lane, const uint4 &eight, float (&x)[8]) {
    __syncwarp();
    reinterpret_cast<uint4 *>(line)[lane] = eight;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = wb_bf16_to_f32(line[lane + WB_LANES * j]);
}

/* A half warp a pair, 128 columns at a time: the dot product in the order of combine_gradients. */
__global__ void __launch_bounds__(BLOCK)
    combine_gradient_eights(int64_t n_pairs, int32_t K, int64_t H, const uint16_t *rows,
                            const int32_t *pair_row, const float *weights, const uint16_t *dy,
                            uint16_t *drows, float *dweights) {
    enum { STEP = 8 * WB_LANES, HALVES = BLOCK / WB_LANES };
    __shared__ __align__(16) uint16_t lines[HALVES][2][STEP];
    const int64_t number = thread_number() / WB_LANES, pair = min(number, n_pairs - 1), t = pair / K;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    const int64_t row = pair_row[pair];
    const bool writes = number < n_pairs && row >= 0;
    const float w = weights ? weights[pair] : 1.0f;
    float dot = 0.0f;
    for (int64_t first = 0; first < H; first += STEP) {
        const int64_t i = first + 8 * lane;
        uint4 d = make_uint4(0, 0, 0, 0), r = d;
        float dx[8], rx[8];
        if (row >= 0 && i < H) d = load_eight(dy + t * H + i), r = load_eight(rows + row * H + i);
        deal_to_lanes(lines[half][0], lane, d, dx);
        deal_to_lanes(lines[half][1], lane, r, rx);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (first + lane + WB_LANES * j < H) dot = wb_fma(dx[j], rx[j], dot);
        if (!writes || i >= H) continue;
        widen_eight(d, dx);
#pragma unroll
        for (int j = 0; j < 8; j++) dx[j] = wb_mul(w, dx[j]);
        store_eight(drows + row * H + i, dx);
    }
    dot = fold_lanes(dot);
    if (dweights && lane == 0 && number < n_pairs) dweights[pair] = row < 0 ? 0.0f : dot;
}

} // namespace

extern "C" {

wb_status wb_cuda_moe_combine(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                              const int32_t *pair_row, const float *weights, wb_rows y) {
    WB_TRY(operand_check("moe_combine", "rows", rows.dtype));
    WB_TRY(operand_check_like("moe_combine", "y", y.dtype, "rows", rows.dtype));
    if (in_eights(H, rows) && in_eights(H, y))
        LAUNCH(dev, "moe_combine", T * (H / 8), 1, combine_eights, T, K, H, bf16_of(rows), pair_row, weights,
               bf16_of(y));
    LAUNCH(dev, "moe_combine", T * H, 1, combine_elements, T, K, H, rows, pair_row, weights, y);
}

wb_status wb_cuda_moe_combine_backward(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                                       const int32_t *pair_row, const float *weights, wb_rows dy,
                                       wb_rows drows, float *dweights) {
    WB_TRY(operand_check("moe_combine_backward", "rows", rows.dtype));
    WB_TRY(operand_check_like("moe_combine_backward", "dy", dy.dtype, "rows", rows.dtype));
    WB_TRY(operand_check_like("moe_combine_backward", "drows", drows.dtype, "rows", rows.dtype));
    if (in_eights(H, rows) && in_eights(H, dy) && in_eights(H, drows))
        LAUNCH(dev, "moe_combine_backward", T * K, WB_LANES, combine_gradient_eights, T * K, K, H,
               bf16_of(rows), pair_row, weights, bf16_of(dy), bf16_of(drows), dweights);
    LAUNCH(dev, "moe_combine_backward", T * K, WB_LANES, combine_gradients, T * K, K, H, rows, pair_row,
           weights, dy, drows, dweights);
}

wb_status wb_cuda_moe_own_forward(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows y) {
    WB_TRY(operand_check("moe_own_forward", "x", x.dtype));
    WB_TRY(operand_check_like("moe_own_forward", "y", y.dtype, "x", x.dtype));
    LAUNCH(dev, "moe_own_forward", own->T * own->H, 1, own_elements, *own, x, y);
}

wb_status wb_cuda_moe_own_backward(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows dy,
                                   wb_rows dx, float *dweights) {
    WB_TRY(operand_check("moe_own_backward", "x", x.dtype));
    WB_TRY(operand_check_like("moe_own_backward", "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("moe_own_backward", "dx", dx.dtype, "x", x.dtype));
    LAUNCH(dev, "moe_own_backward", own->T, WB_LANES, own_gradients, *own, x, dy, dx, dweights);
}

wb_status wb_cuda_add_gated_forward(wb_device *dev, int64_t n, int64_t width, const float *gate, wb_rows x,
                                    wb_rows y) {
    WB_TRY(operand_check("add_gated_forward", "x", x.dtype));
    WB_TRY(operand_check_like("add_gated_forward", "y", y.dtype, "x", x.dtype));
    LAUNCH(dev, "add_gated_forward", n * width, 1, add_gated_elements, n, width, gate, x, y);
}

wb_status wb_cuda_add_gated_backward(wb_device *dev, int64_t n, int64_t width, const float *gate, wb_rows x,
                                     wb_rows dy, wb_rows dx, float *dgate) {
    WB_TRY(operand_check("add_gated_backward", "x", x.dtype));
    WB_TRY(operand_check_like("add_gated_backward", "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("add_gated_backward", "dx", dx.dtype, "x", x.dtype));
    LAUNCH(dev, "add_gated_backward", n, WB_LANES, add_gated_gradients, n, width, gate, x, dy, dx, dgate);
}
}
