/* cuda_conv.cu - the short convolution of recurrent layers and its gradients.
 *
 * A thread a token and channel; the states, which a call's tokens read first, a thread a run and channel; the
 * gradient of the weights, a thread a channel, token after token. Refuses: the other ops of recurrent layers
 * (cuda_delta.cu). */
#include "cuda/cuda_ops.h"
#include "cuda/cuda_recurrent.h"

namespace {

/* x of channel c at token t of `run`, which may lie before the run: in its state, or nowhere, which is 0. */
__device__ __forceinline__ float input_at(const wb_short_conv &a, const wb_sequence_run &run, int64_t t,
                                          int c) {
    if (t >= run.start) return load_element(a.x, t * a.channels + c);
    if (!a.of.states) return 0.0f;
    return run_state(a.of, run)[(t - run.start + a.width - 1) * a.channels + c];
}

/* The convolution at token t, before its silu. */
__device__ __forceinline__ float convolve(const wb_short_conv &a, const wb_sequence_run &run, int64_t t,
                                          int c) {
    float sum = 0.0f;
    for (int m = 0; m < a.width; m++)
        sum =
            wb_fma(a.w[static_cast<int64_t>(c) * a.width + m], input_at(a, run, t - a.width + 1 + m, c), sum);
    return sum;
}

__global__ void __launch_bounds__(BLOCK) conv_elements(wb_short_conv args, wb_rows y) {
    const int64_t i = thread_number(), t = i / args.channels;
    if (t >= args.of.T) return;
    const wb_sequence_run run = find_run(args.of, t);
    const int c = static_cast<int>(i % args.channels);
    store_element(y, i, run.n > 0 ? wb_silu(convolve(args, run, t, c)) : 0.0f);
}

/* The last width - 1 of a state's rows and the run's become the state's. Row m comes from a row behind it, so
 * that in ascending order none is read that has been written. */
__global__ void __launch_bounds__(BLOCK) conv_states(wb_short_conv args) {
    const int64_t i = thread_number(), r = i / args.channels;
    if (r >= args.of.n_runs) return;
    const wb_sequence_run run = args.of.runs[r];
    if (run.n == 0) return;
    const int c = static_cast<int>(i % args.channels);
    float *const state = run_state(args.of, run);
    const int64_t end = static_cast<int64_t>(run.start) + run.n;
    for (int m = 0; m < args.width - 1; m++)
        state[static_cast<int64_t>(m) * args.channels + c] =
            input_at(args, run, end - (args.width - 1) + m, c);
}

/* ---- backward -------------------------------------------------------------------------------- */

/* The gradient of `sum`, a convolution, from d, that of its silu. */
__device__ __forceinline__ float silu_gradient(float sum, float d) {
    const float s = wb_sigmoid(sum), silu = wb_mul(sum, s);
    return wb_mul(d, wb_fma(silu, wb_sub(1.0f, s), s));
}

__global__ void __launch_bounds__(BLOCK) conv_gradients(wb_short_conv args, wb_rows dy, wb_rows dx) {
    const int64_t i = thread_number(), t = i / args.channels;
    if (t >= args.of.T) return;
    const wb_sequence_run run = find_run(args.of, t);
    const int c = static_cast<int>(i % args.channels);
    const int64_t end = min(t + args.width, static_cast<int64_t>(run.start) + run.n);
    float sum = 0.0f;
    for (int64_t s = t; s < end && run.n > 0; s++) {
        const float d = silu_gradient(convolve(args, run, s, c), load_element(dy, s * args.channels + c));
        sum = wb_fma(args.w[static_cast<int64_t>(c) * args.width + args.width - 1 - (s - t)], d, sum);
    }
    store_element(dx, i, sum);
}

/* Loops over the widest window that there may be, so that what a thread goes on with is in registers. */
__global__ void __launch_bounds__(BLOCK) conv_weights(wb_short_conv args, wb_rows dy, float *dw) {
    const int64_t c = thread_number();
    const int width = args.width;
    if (c >= args.channels) return;
    float w[WB_MAX_CONV_WIDTH], sum[WB_MAX_CONV_WIDTH];
#pragma unroll
    for (int m = 0; m < WB_MAX_CONV_WIDTH; m++) {
        w[m] = m < width ? args.w[c * width + m] : 0.0f;
        sum[m] = m < width ? dw[c * width + m] : 0.0f;
    }
    for (int64_t r = 0; r < args.of.n_runs; r++) {
        const wb_sequence_run run = args.of.runs[r];
        float x[WB_MAX_CONV_WIDTH] = {};
        for (int64_t t = run.start; t < run.start + run.n; t++) {
            const float newest = load_element(args.x, t * args.channels + c);
            float convolved = 0.0f;
#pragma unroll
            for (int m = 0; m < WB_MAX_CONV_WIDTH; m++) {
                if (m < width) x[m] = m == width - 1 || m + 1 == WB_MAX_CONV_WIDTH ? newest : x[m + 1];
                if (m < width) convolved = wb_fma(w[m], x[m], convolved);
            }
            const float d = silu_gradient(convolved, load_element(dy, t * args.channels + c));
#pragma unroll
            for (int m = 0; m < WB_MAX_CONV_WIDTH; m++)
                if (m < width) sum[m] = wb_fma(d, x[m], sum[m]);
        }
    }
#pragma unroll
    for (int m = 0; m < WB_MAX_CONV_WIDTH; m++)
        if (m < width) dw[c * width + m] = sum[m];
}

wb_status launch_states(wb_device *dev, const wb_short_conv *args) {
    LAUNCH(dev, "short_conv_forward", args->of.n_runs * args->channels, 1, conv_states, *args);
}

wb_status launch_gradients(wb_device *dev, const wb_short_conv *args, wb_rows dy, wb_rows dx) {
    LAUNCH(dev, "short_conv_backward", args->of.T * args->channels, 1, conv_gradients, *args, dy, dx);
}

} // namespace

extern "C" {

wb_status wb_cuda_short_conv_forward(wb_device *dev, const wb_short_conv *args, wb_rows y) {
    const char *op = "short_conv_forward";
    unsigned blocks = 0;
    WB_TRY(short_conv_check(op, args));
    WB_TRY(operand_check_like(op, "y", y.dtype, "x", args->x.dtype));
    WB_TRY(prepare_launch(dev, op, args->of.T * args->channels, 1, &blocks));
    if (blocks == 0) return WB_OK;
    conv_elements<<<blocks, BLOCK, 0, stream_of(dev)>>>(*args, y);
    WB_TRY(wb_cuda_check(cudaGetLastError(), op));
    return args->of.states && args->width > 1 ? launch_states(dev, args) : WB_OK;
}

wb_status wb_cuda_short_conv_backward(wb_device *dev, const wb_short_conv *args, wb_rows dy, wb_rows dx,
                                      float *dw) {
    WB_TRY(short_conv_back_check(args, dy, dx));
    if (args->of.T == 0) return WB_OK;
    WB_TRY(launch_gradients(dev, args, dy, dx));
    LAUNCH(dev, "short_conv_backward", args->channels, 1, conv_weights, *args, dy, dw);
}
}
