/* cpu_hyper.c - hyper-connections: the sum of a token's streams that a part of a layer reads, its output back
 * into the streams, and the backward of both.
 *
 * A token is computed alone, but for the gradients of scale and base, which are chains over ascending tokens.
 * The weights' rules are those of hyper_rules.h. Refuses: the products of the streams with fn (matmul). */
#include "cpu/cpu_operands.h"
#include "cpu/cpu_row.h"
#include "hyper_check.h"
#include "hyper_rules.h"

enum { MATRIX = WB_MAX_STREAMS * WB_MAX_STREAMS, STEPS = 2 * WB_MAX_SINKHORN - 1, SCALES = 3 };

/* Columns of one task where a token's streams are mixed in place. */
enum { COLUMNS = 64 };

static int64_t width_of(const wb_hyper *args) {
    return wb_hyper_width(args->n_streams, args->iterations);
}

/* ---- weights --------------------------------------------------------------------------------- */

/* z[M] of a token; r: one divided by the root of its mean square. */
static void find_logits(const wb_hyper *args, const float *products, float r, float *z) {
    for (int c = 0; c < width_of(args); c++)
        z[c] = hyper_logit(products[c], r, args->scale[hyper_kind(args->n_streams, c)], args->base[c]);
}

/* A step of Sinkhorn: divided[S,S] from C; divisors: of each element. */
static void step_forward(const wb_hyper *args, int step, const float *C, float *divided, float *divisors) {
    const int S = args->n_streams;
    for (int e = 0; e < S * S; e++) {
        divisors[e] = hyper_divisor(C, S, step, e / S, e % S, args->eps);
        divided[e] = C[e] / divisors[e];
    }
}

static void find_weights(const wb_hyper *args, const float *z, float *weights) {
    const int S = args->n_streams;
    float C[MATRIX], divided[MATRIX], divisors[MATRIX];
    for (int n = 0; n < S; n++) weights[n] = hyper_pre(z[n], args->eps);
    if (args->iterations == 0) return;
    for (int k = 0; k < S; k++) weights[S + k] = hyper_post(z[S + k]);
    for (int e = 0; e < S * S; e++) C[e] = hyper_softmax(z + 2 * S, S, e / S, e % S) + args->eps;
    for (int step = 0; step < hyper_steps(args->iterations); step++) {
        step_forward(args, step, C, divided, divisors);
        memcpy(C, divided, (size_t)(S * S) * sizeof *C);
    }
    memcpy(weights + 2 * S, C, (size_t)(S * S) * sizeof *C);
}

/* dz[S,S] from dC, by the steps again and then backwards. */
static void mix_backward(const wb_hyper *args, const float *z, const float *dC, float *dz) {
    const int S = args->n_streams, steps = hyper_steps(args->iterations), n = S * S;
    float softmax[MATRIX], C[MATRIX], d[MATRIX], before[MATRIX], divided[STEPS][MATRIX],
        divisors[STEPS][MATRIX];
    for (int e = 0; e < n; e++) {
        softmax[e] = hyper_softmax(z, S, e / S, e % S);
        C[e] = softmax[e] + args->eps;
        d[e] = dC[e];
    }
    for (int step = 0; step < steps; step++)
        step_forward(args, step, step == 0 ? C : divided[step - 1], divided[step], divisors[step]);
    for (int step = steps - 1; step >= 0; step--) {
        for (int e = 0; e < n; e++)
            before[e] = hyper_step_gradient(divided[step], d, S, step, e / S, e % S, divisors[step][e]);
        memcpy(d, before, (size_t)n * sizeof *d);
    }
    for (int e = 0; e < n; e++) dz[e] = hyper_softmax_gradient(softmax, d, S, e / S, e % S);
}

/* ---- what a part reads ------------------------------------------------------------------------- */

wb_status WB_CPU(hyper_pre_forward)(wb_device *dev, const wb_hyper *args, wb_rows in, float *weights) {
    const int64_t T = args->T, H = args->H, M = width_of(args), row = args->n_streams * H;
    operand list[] = {{.name = "x", .rows = args->x, .n = T * row, .use = READ},
                      {.name = "in", .rows = in, .n = T * H, .use = WRITE}};
    WB_TRY(hyper_check("hyper_pre_forward", args, "in", in));
    WB_TRY(WB_CPU(operands_open)(dev, "hyper_pre_forward", list, 2));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *row * 2))
    for (int64_t t = 0; t < T; t++) {
        const float *x = list[0].f32 + t * row;
        float z[WB_MAX_STREAMS * (WB_MAX_STREAMS + 2)], *to = list[1].f32 + t * H, *w = weights + t * M;
        find_logits(args, args->products + t * M, row_inverse_rms(x, row, args->norm_eps), z);
        find_weights(args, z, w);
        memset(to, 0, (size_t)H * sizeof *to);
        for (int n = 0; n < args->n_streams; n++) {
            const float pre = w[n], *from = x + n * H;
            WB_INDEPENDENT
            for (int64_t i = 0; i < H; i++) to[i] = fmaf(pre, from[i], to[i]);
        }
    }
    WB_CPU(operands_close)(dev, list, 2);
    return WB_OK;
}

/* dz[M] of a token, and what it adds to the gradients of the scales. */
static void logits_backward(const wb_hyper *args, const float *z, const float *dpre, const float *dweights,
                            const float *products, float r, float *dz, float *scale_terms) {
    const int S = args->n_streams;
    for (int n = 0; n < S; n++) dz[n] = hyper_sigmoid_gradient(z[n], 1.0f, dpre[n]);
    if (args->iterations > 0) {
        for (int k = S; k < 2 * S; k++) dz[k] = hyper_sigmoid_gradient(z[k], 2.0f, dweights[k]);
        mix_backward(args, z + 2 * S, dweights + 2 * S, dz + 2 * S);
    }
    for (int i = 0; i < SCALES; i++) scale_terms[i] = 0.0f;
    for (int c = 0; c < width_of(args); c++) {
        float *term = scale_terms + hyper_kind(S, c);
        *term = fmaf(dz[c], products[c] * r, *term);
    }
}

/* Of one token: dx (+=), dproducts (=), and terms[M + SCALES] for the sums over tokens. */
static void pre_backward_token(const wb_hyper *args, int64_t t, const float *x, const float *din,
                               const float *dweights, float *dx, float *dproducts, float *terms) {
    const int64_t H = args->H, M = width_of(args), row = args->n_streams * H;
    const int S = args->n_streams;
    const float *products = args->products + t * M, r = row_inverse_rms(x, row, args->norm_eps);
    float z[WB_MAX_STREAMS * (WB_MAX_STREAMS + 2)], dpre[WB_MAX_STREAMS], dr = 0.0f;
    find_logits(args, products, r, z);
    for (int n = 0; n < S; n++) dpre[n] = row_dot(din, x + n * H, H);
    logits_backward(args, z, dpre, dweights, products, r, terms, terms + M);
    for (int64_t c = 0; c < M; c++) {
        const float dm = terms[c] * args->scale[hyper_kind(S, (int)c)];
        dr = fmaf(dm, products[c], dr);
        dproducts[c] = dm * r;
    }
    const float shrink = r * r * r * dr / (float)row;
    for (int n = 0; n < S; n++) {
        const float pre = hyper_pre(z[n], args->eps), *from = x + n * H;
        float *to = dx + n * H;
        WB_INDEPENDENT
        for (int64_t i = 0; i < H; i++) to[i] = fmaf(-shrink, from[i], fmaf(pre, din[i], to[i]));
    }
}

wb_status WB_CPU(hyper_pre_backward)(wb_device *dev, const wb_hyper *args, wb_rows din, const float *dweights,
                                     wb_rows dx, float *dproducts, float *dscale, float *dbase) {
    const int64_t T = args->T, H = args->H, M = width_of(args), row = args->n_streams * H;
    const int64_t n_scales = args->iterations > 0 ? SCALES : 1, width = M + SCALES;
    operand list[] = {{.name = "x", .rows = args->x, .n = T * row, .use = READ},
                      {.name = "din", .rows = din, .n = T * H, .use = READ},
                      {.name = "dx", .rows = dx, .n = T * row, .use = UPDATE}};
    void *shared = NULL;
    WB_TRY(hyper_check("hyper_pre_backward", args, "din", din));
    WB_TRY(wb_cpu_shared_reserve(dev, wb_cpu_hyper_bytes(T, M), &shared));
    WB_TRY(WB_CPU(operands_open)(dev, "hyper_pre_backward", list, 3));
    float *terms = shared;
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *row * 4))
    for (int64_t t = 0; t < T; t++)
        pre_backward_token(args, t, list[0].f32 + t * row, list[1].f32 + t * H,
                           dweights ? dweights + t * M : NULL, list[2].f32 + t * row, dproducts + t * M,
                           terms + t * width);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t c = 0; c < M; c++) dbase[c] += terms[t * width + c];
        for (int64_t i = 0; i < n_scales; i++) dscale[i] += terms[t * width + M + i];
    }
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* ---- and what it gives back -------------------------------------------------------------------- */

/* Columns [begin, end) of a token: y_k = post_k out + sum over j of C_jk x_j; y may be x. */
static void mix_columns(int S, int64_t H, int64_t begin, int64_t end, const float *weights, const float *x,
                        const float *out, float *y) {
    const float *post = weights + S, *C = weights + 2 * S;
    float mixed[WB_MAX_STREAMS][COLUMNS];
    const int64_t count = end - begin;
    for (int k = 0; k < S; k++) {
        for (int64_t i = 0; i < count; i++) mixed[k][i] = post[k] * out[begin + i];
        for (int j = 0; j < S; j++)
            for (int64_t i = 0; i < count; i++)
                mixed[k][i] = fmaf(C[j * S + k], x[j * H + begin + i], mixed[k][i]);
    }
    for (int k = 0; k < S; k++) memcpy(y + k * H + begin, mixed[k], (size_t)count * sizeof(float));
}

wb_status WB_CPU(hyper_post_forward)(wb_device *dev, int64_t T, int32_t S, int64_t H, const float *weights,
                                     wb_rows x, wb_rows out, wb_rows y) {
    const int64_t row = S * H, M = wb_hyper_width(S, 1), blocks = (H + COLUMNS - 1) / COLUMNS;
    operand list[] = {{.name = "x", .rows = x, .n = T * row, .use = READ},
                      {.name = "out", .rows = out, .n = T * H, .use = READ},
                      {.name = "y", .rows = y, .n = T * row, .use = WRITE}};
    WB_TRY(hyper_check_streams("hyper_post_forward", S));
    WB_TRY(WB_CPU(operands_open)(dev, "hyper_post_forward", list, 3));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *row *S))
    for (int64_t t = 0; t < T; t++)
        for (int64_t b = 0; b < blocks; b++)
            mix_columns(S, H, b * COLUMNS, min64(b * COLUMNS + COLUMNS, H), weights + t * M,
                        list[0].f32 + t * row, list[1].f32 + t * H, list[2].f32 + t * row);
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* Columns [begin, end) of a token: dout = sum over k of post_k dy_k, dx_j = that of C_jk dy_k; dx may be
 * dy. */
static void unmix_columns(int S, int64_t H, int64_t begin, int64_t end, const float *weights, const float *dy,
                          float *dout, float *dx) {
    const float *post = weights + S, *C = weights + 2 * S;
    float mixed[WB_MAX_STREAMS][COLUMNS] = {{0.0f}};
    const int64_t count = end - begin;
    memset(dout + begin, 0, (size_t)count * sizeof(float));
    for (int k = 0; k < S; k++) {
        const float *d = dy + k * H + begin;
        for (int64_t i = 0; i < count; i++) dout[begin + i] = fmaf(post[k], d[i], dout[begin + i]);
        for (int j = 0; j < S; j++)
            for (int64_t i = 0; i < count; i++) mixed[j][i] = fmaf(C[j * S + k], d[i], mixed[j][i]);
    }
    for (int j = 0; j < S; j++) memcpy(dx + j * H + begin, mixed[j], (size_t)count * sizeof(float));
}

/* The gradients of a token's weights; before dx, which may be dy. */
static void weights_backward(int S, int64_t H, const float *x, const float *out, const float *dy,
                             float *dweights) {
    for (int n = 0; n < S; n++) dweights[n] = 0.0f;
    for (int k = 0; k < S; k++) {
        dweights[S + k] = row_dot(dy + k * H, out, H);
        for (int j = 0; j < S; j++) dweights[2 * S + j * S + k] = row_dot(dy + k * H, x + j * H, H);
    }
}

wb_status WB_CPU(hyper_post_backward)(wb_device *dev, int64_t T, int32_t S, int64_t H, const float *weights,
                                      wb_rows x, wb_rows out, wb_rows dy, wb_rows dout, wb_rows dx,
                                      float *dweights) {
    const int64_t row = S * H, M = wb_hyper_width(S, 1), blocks = (H + COLUMNS - 1) / COLUMNS;
    operand list[] = {{.name = "x", .rows = x, .n = T * row, .use = READ},
                      {.name = "out", .rows = out, .n = T * H, .use = READ},
                      {.name = "dy", .rows = dy, .n = T * row, .use = READ},
                      {.name = "dout", .rows = dout, .n = T * H, .use = WRITE},
                      {.name = "dx", .rows = dx, .n = T * row, .use = WRITE}};
    WB_TRY(hyper_check_streams("hyper_post_backward", S));
    WB_TRY(WB_CPU(operands_open)(dev, "hyper_post_backward", list, 5));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *row *S * 2))
    for (int64_t t = 0; t < T; t++) {
        const float *d = list[2].f32 + t * row;
        weights_backward(S, H, list[0].f32 + t * row, list[1].f32 + t * H, d, dweights + t * M);
        for (int64_t b = 0; b < blocks; b++)
            unmix_columns(S, H, b * COLUMNS, min64(b * COLUMNS + COLUMNS, H), weights + t * M, d,
                          list[3].f32 + t * H, list[4].f32 + t * row);
    }
    WB_CPU(operands_close)(dev, list, 5);
    return WB_OK;
}
