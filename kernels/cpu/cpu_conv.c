/* cpu_conv.c - the short convolution of recurrent layers and its gradients.
 *
 * A task has a few channels of a run, and of the backward of all runs, and goes from token to token with the
 * last `width` of them in a window. Refuses: the other ops of recurrent layers (cpu_delta.c). */
#include "cpu/cpu_recurrent.h"
#include "recurrent_check.h"

/* Channels of a task. */
enum { CHANNELS = 64 };

/* [width][CHANNELS], of which `count` channels are there. */
typedef float window[WB_MAX_CONV_WIDTH][CHANNELS];

/* The weights, or gradients of weights, of the channels from `first` on. */
static void load_weights(const wb_short_conv *a, const float *from, int64_t first, int64_t count, window w) {
    for (int m = 0; m < a->width; m++)
        for (int64_t c = 0; c < count; c++) w[m][c] = from[(first + c) * a->width + m];
}

static void store_weights(const wb_short_conv *a, window w, int64_t first, int64_t count, float *to) {
    for (int m = 0; m < a->width; m++)
        for (int64_t c = 0; c < count; c++) to[(first + c) * a->width + m] = w[m][c];
}

/* The last row becomes that of the next token, the first one goes. */
static void shift(window rows, int width) {
    memmove(rows[0], rows[1], (size_t)(width - 1) * sizeof rows[0]);
}

/* sum[c] = the sum over ascending m of w[m][c] x[m][c] */
static void convolve(int width, const window w, const window x, float *restrict sum) {
    memset(sum, 0, CHANNELS * sizeof *sum);
    for (int m = 0; m < width; m++)
        for (int c = 0; c < CHANNELS; c++) sum[c] = fmaf(w[m][c], x[m][c], sum[c]);
}

/* The rows of a state, oldest first, are the window's but for its last. */
static void forward_run(const wb_short_conv *a, const wb_sequence_run *run, int64_t first, int64_t count,
                        wb_rows y) {
    const int last = a->width - 1;
    float *state = run_state(&a->of, run), sum[CHANNELS];
    window w = {{0}}, x = {{0}};
    load_weights(a, a->w, first, count, w);
    for (int m = 0; state && m < last; m++)
        memcpy(x[m], state + m * (int64_t)a->channels + first, (size_t)count * sizeof(float));
    for (int64_t t = run->start; t < run->start + run->n; t++) {
        rows_load(a->x, t * a->channels + first, count, x[last]);
        convolve(a->width, w, x, sum);
        for (int c = 0; c < CHANNELS; c++) sum[c] = wb_silu(sum[c]);
        rows_store(count, sum, y, t * a->channels + first);
        shift(x, a->width);
    }
    for (int m = 0; state && m < last; m++)
        memcpy(state + m * (int64_t)a->channels + first, x[m], (size_t)count * sizeof(float));
}

static int64_t channels_of(const wb_short_conv *a, int64_t first) {
    return a->channels - first < CHANNELS ? a->channels - first : CHANNELS;
}

wb_status WB_CPU(short_conv_forward)(wb_device *dev, const wb_short_conv *args, wb_rows y) {
    WB_TRY(short_conv_check("short_conv_forward", args));
    WB_TRY(operand_check_like("short_conv_forward", "y", y.dtype, "x", args->x.dtype));
    const wb_sequences *of = &args->of;
    const int64_t blocks = (args->channels + CHANNELS - 1) / CHANNELS;
    clear_padding(of, y, args->channels);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, of->T * args->channels * 8))
    for (int64_t task = 0; task < of->n_runs * blocks; task++) {
        const int64_t first = task % blocks * CHANNELS;
        const wb_sequence_run *run = of->runs + task / blocks;
        if (run->n > 0) forward_run(args, run, first, channels_of(args, first), y);
    }
    return WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* sum: the convolution; d: the gradient of its silu, which becomes its own. silu'(x) = s + x s (1 - s). */
static void silu_gradient(const float *sum, float *d) {
    for (int c = 0; c < CHANNELS; c++) {
        const float s = wb_sigmoid(sum[c]), silu = sum[c] * s;
        d[c] *= fmaf(silu, 1.0f - s, s);
    }
}

/* dx of a token has the parts of the `width` tokens from it on, in ascending order: the first row of a window
 * of them is done when those of its last token are there. */
static void backward_run(const wb_short_conv *a, const wb_sequence_run *run, int64_t first, int64_t count,
                         const window w, wb_rows dy, wb_rows dx, window dw) {
    const int last = a->width - 1;
    const int64_t end = run->start + run->n;
    float sum[CHANNELS], d[CHANNELS] = {0};
    window x = {{0}}, gradients = {{0}};
    for (int64_t t = run->start; t < end + last; t++) {
        memset(gradients[last], 0, sizeof gradients[last]);
        if (t < end) {
            rows_load(a->x, t * a->channels + first, count, x[last]);
            rows_load(dy, t * a->channels + first, count, d);
            convolve(a->width, w, x, sum);
            silu_gradient(sum, d);
            for (int m = 0; m < a->width; m++)
                for (int c = 0; c < CHANNELS; c++) {
                    dw[m][c] = fmaf(d[c], x[m][c], dw[m][c]);
                    gradients[m][c] = fmaf(w[m][c], d[c], gradients[m][c]);
                }
        }
        if (t - last >= run->start) rows_store(count, gradients[0], dx, (t - last) * a->channels + first);
        shift(x, a->width), shift(gradients, a->width);
    }
}

wb_status WB_CPU(short_conv_backward)(wb_device *dev, const wb_short_conv *args, wb_rows dy, wb_rows dx,
                                      float *dw) {
    WB_TRY(short_conv_back_check(args, dy, dx));
    const wb_sequences *of = &args->of;
    clear_padding(of, dx, args->channels);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, of->T * args->channels * 8))
    for (int64_t first = 0; first < args->channels; first += CHANNELS) {
        const int64_t count = channels_of(args, first);
        window w = {{0}}, sums = {{0}};
        load_weights(args, args->w, first, count, w);
        load_weights(args, dw, first, count, sums);
        for (const wb_sequence_run *run = of->runs; run < of->runs + of->n_runs; run++)
            if (run->n > 0) backward_run(args, run, first, count, w, dy, dx, sums);
        store_weights(args, sums, first, count, dw);
    }
    return WB_OK;
}
