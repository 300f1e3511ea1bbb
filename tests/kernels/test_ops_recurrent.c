/* test_ops_recurrent.c - the short convolution and the gated delta rule against a naive reference in double
 * precision, their backward against central differences of it, and their bits whatever a sequence is cut
 * into; on the CPU and, where there is one, on a GPU. */
#include "cuda_memory.h"

#include "gradient_check.h"
#include "recurrent_problem.h"

#include <math.h>

/* A float's unit roundoff. */
static const double u = 0x1p-24;

/* The CPU, and where there is one then a GPU. */
static wb_device *dev;

static double sigmoid(double x) {
    return 1.0 / (1.0 + exp(-x));
}

/* ---- the short convolution ------------------------------------------------------------------- */

typedef struct conv_case {
    const batch *b;
    int64_t channels, width;
    const float *d;
} conv_case;

/* x is followed by w. */
static double conv_element(const conv_case *c, const double *x, int64_t t, int64_t channel) {
    const wb_sequence_run *run = run_of(c->b, t);
    const double *w = x + c->b->T * c->channels + channel * c->width;
    double sum = 0.0;
    if (!run) return 0.0;
    for (int64_t m = 0; m < c->width; m++) {
        const int64_t from = t - c->width + 1 + m;
        if (from >= run->start) sum += w[m] * x[from * c->channels + channel];
    }
    return sum * sigmoid(sum);
}

static double conv_loss(const double *x, const void *context) {
    const conv_case *c = context;
    double loss = 0.0;
    for (int64_t i = 0; i < c->b->T * c->channels; i++)
        loss += (double)c->d[i] * conv_element(c, x, i / c->channels, i % c->channels);
    return loss;
}

static void check_conv(int64_t channels, int64_t width) {
    const batch b = random_batch(3, 1, 2 * width);
    const int64_t n = b.T * channels, n_w = channels * width;
    float *x = random_floats(n + n_w, -1.5f, 1.5f), *w = x + n, *y = random_floats(n, -1, 1);
    float *d = random_floats(n, -1, 1), *gradient = random_floats(n + n_w, -1, 1),
          *base = copied(gradient, n + n_w);
    double *x2 = doubles(x, n + n_w);
    const conv_case c = {&b, channels, width, d};
    const wb_short_conv args = {whole_of(&b), (int32_t)channels, (int32_t)width, w, wb_f32_rows(x)};
    assert_ok(dev->short_conv_forward(dev, &args, wb_f32_rows(y)));
    for (int64_t i = 0; i < n; i++) {
        /* Each of the products and sums rounds once, of terms of 2.25 at most; then the silu, whose slope is
         * below 1.1. */
        const double sums = 2.25 * (double)(width * (width + 1)) * u;
        assert_close(y[i], conv_element(&c, x2, i / channels, i % channels),
                     1.1 * sums + 8 * u * fabs((double)y[i]), "short_conv", i);
    }
    assert_ok(dev->short_conv_backward(dev, &args, wb_f32_rows(d), wb_f32_rows(gradient), gradient + n));
    memset(base, 0, (size_t)n * sizeof *base);
    check_gradient(conv_loss, &c, x, n + n_w, gradient, base, 4e-6, "short_conv_backward");
    free(x), free(y), free(d), free(gradient), free(base), free(x2), free(b.runs);
}

static void test_short_conv(void **state) {
    (void)state;
    const int64_t channels[] = {1, 5, 64, 70};
    for (int i = 0; i < 4; i++) check_conv(channels[i], i == 0 ? 1 : i == 1 ? WB_MAX_CONV_WIDTH : 4);
}

static void test_short_conv_cut_anywhere(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        const batch b = random_batch(4, 1, 40);
        const int64_t channels = rng_range(1, 80), width = rng_range(1, 6), n = b.T * channels;
        const int64_t kept = (width - 1) * channels, stride = (kept + 5) * (int64_t)sizeof(float);
        float *x = random_floats(n, -1, 1), *w = random_floats(channels * width, -1, 1), *whole = floats(n);
        char *states = xalloc(b.n_runs, (size_t)stride);
        int64_t done[MAX_RUNS] = {0};
        piece p = open_piece(&b);
        x[0] = NAN; /* stays in its channel and sequence */
        wb_short_conv args = {whole_of(&b), (int32_t)channels, (int32_t)width, w, wb_f32_rows(x)};
        assert_ok(dev->short_conv_forward(dev, &args, wb_f32_rows(whole)));
        for (int64_t i = 0; i < n; i++)
            assert_true(isnan(whole[i]) ==
                        (i % channels == 0 && i / channels < width && run_of(&b, i / channels) == b.runs));
        while (next_piece(&b, done, &p)) {
            float *part = rows_at(x, &p, channels), *y = floats(p.T * channels);
            args.x = wb_f32_rows(part);
            args.of = (wb_sequences){p.T, p.n_runs, p.runs, states, stride};
            assert_ok(dev->short_conv_forward(dev, &args, wb_f32_rows(y)));
            assert_rows_at(y, whole, &p, channels, "short_conv in pieces");
            free(part), free(y);
        }
        free(x), free(w), free(whole), free(states), free(p.row), free(p.runs), free(b.runs);
    }
}

/* ---- the gated delta rule -------------------------------------------------------------------- */

typedef struct delta_case {
    const batch *b;
    wb_delta_heads h;
    const float *d;
} delta_case;

/* What lies one behind the other: qkv, b, a, A_log, dt_bias. */
typedef struct delta_parts {
    int64_t b, a, A_log, dt_bias, n; /* where they begin */
} delta_parts;

static delta_parts parts_of(const delta_case *c) {
    const int64_t gates = c->b->T * c->h.n_value;
    delta_parts p = {.b = c->b->T * wb_delta_width(c->h)};
    p.a = p.b + gates, p.A_log = p.a + gates;
    p.dt_bias = p.A_log + c->h.n_value, p.n = p.dt_bias + c->h.n_value;
    return p;
}

/* x[n] over its length. */
static void to_length(const double *x, int64_t n, double scale, double *y) {
    double squares = 1e-6;
    for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    for (int64_t i = 0; i < n; i++) y[i] = x[i] / sqrt(squares) * scale;
}

/* o[n] of a token's head, from S[dim][n] before it, which is then behind it. */
static void delta_token(const delta_case *c, const double *x, int64_t t, int64_t head, double *S, double *o) {
    const wb_delta_heads h = c->h;
    const delta_parts p = parts_of(c);
    const int64_t dim = h.key_dim, n = h.value_dim, key_head = head / (h.n_value / h.n_key);
    const double *token = x + t * wb_delta_width(h), *v = token + (2 * h.n_key) * dim + head * n;
    const double beta = sigmoid(x[p.b + t * h.n_value + head]);
    const double g =
        -exp(x[p.A_log + head]) * log1p(exp(x[p.a + t * h.n_value + head] + x[p.dt_bias + head]));
    double q[64], k[64];
    to_length(token + key_head * dim, dim, 1.0 / sqrt((double)dim), q);
    to_length(token + (h.n_key + key_head) * dim, dim, 1.0, k);
    for (int64_t j = 0; j < n; j++) {
        double m = 0.0;
        for (int64_t i = 0; i < dim; i++) S[i * n + j] *= exp(g), m += S[i * n + j] * k[i];
        o[j] = 0.0;
        for (int64_t i = 0; i < dim; i++) {
            S[i * n + j] += k[i] * beta * (v[j] - m);
            o[j] += S[i * n + j] * q[i];
        }
    }
}

/* o[T, n_value * value_dim] */
static void delta_reference(const delta_case *c, const double *x, double *o) {
    const wb_delta_heads h = c->h;
    double *S = xalloc((int64_t)h.key_dim * h.value_dim, sizeof *S);
    for (int64_t i = 0; i < c->b->T * h.n_value * h.value_dim; i++) o[i] = 0.0;
    for (int64_t r = 0; r < c->b->n_runs; r++)
        for (int64_t head = 0; head < h.n_value; head++) {
            const wb_sequence_run run = c->b->runs[r];
            memset(S, 0, (size_t)(h.key_dim * h.value_dim) * sizeof *S);
            for (int64_t t = run.start; t < run.start + run.n; t++)
                delta_token(c, x, t, head, S, o + (t * h.n_value + head) * h.value_dim);
        }
    free(S);
}

static double delta_loss(const double *x, const void *context) {
    const delta_case *c = context;
    const int64_t n = c->b->T * c->h.n_value * c->h.value_dim;
    double *o = xalloc(n, sizeof *o), loss = 0.0;
    delta_reference(c, x, o);
    for (int64_t i = 0; i < n; i++) loss += (double)c->d[i] * o[i];
    free(o);
    return loss;
}

static wb_gated_delta delta_args(const delta_case *c, float *x, wb_sequences of) {
    const delta_parts p = parts_of(c);
    return (wb_gated_delta){.of = of,
                            .heads = c->h,
                            .qkv = wb_f32_rows(x),
                            .b = wb_f32_rows(x + p.b),
                            .a = wb_f32_rows(x + p.a),
                            .A_log = x + p.A_log,
                            .dt_bias = x + p.dt_bias};
}

static void check_delta(wb_delta_heads h, int64_t longest) {
    const batch b = random_batch(2, 1, longest);
    const int64_t n = b.T * h.n_value * h.value_dim;
    float *d = random_floats(n, -1, 1), *o = random_floats(n, -1, 1);
    const delta_case c = {&b, h, d};
    const delta_parts p = parts_of(&c);
    float *x = random_floats(p.n, -1.5f, 1.5f), *gradient = random_floats(p.n, -1, 1),
          *base = copied(gradient, p.n);
    float *checkpoints = floats(wb_delta_checkpoint_floats(b.T, h));
    double *x2 = doubles(x, p.n), *expected = xalloc(n, sizeof *expected);
    wb_gated_delta args = delta_args(&c, x, whole_of(&b));
    delta_reference(&c, x2, expected);
    assert_ok(dev->gated_delta_forward(dev, &args, wb_f32_rows(o)));
    /* A token adds less than key_dim + 20 roundings of numbers below 1.5, and what is there does not grow. */
    for (int64_t i = 0; i < n; i++)
        assert_close(o[i], expected[i], 1.5 * (double)(h.key_dim + 20) * (double)longest * u, "gated_delta",
                     i);
    args.checkpoints = checkpoints;
    assert_ok(dev->gated_delta_forward(dev, &args, wb_f32_rows(o)));
    assert_ok(dev->gated_delta_backward(dev, &args, wb_f32_rows(d), wb_f32_rows(gradient),
                                        wb_f32_rows(gradient + p.b), wb_f32_rows(gradient + p.a),
                                        gradient + p.A_log, gradient + p.dt_bias));
    memset(base, 0, (size_t)p.A_log * sizeof *base);
    check_gradient(delta_loss, &c, x, p.n, gradient, base, 2e-5, "gated_delta_backward");
    free(d), free(o), free(x), free(gradient), free(base), free(checkpoints), free(x2), free(expected),
        free(b.runs);
}

static void test_gated_delta(void **state) {
    (void)state;
    check_delta((wb_delta_heads){1, 1, 1, 1}, 9);
    check_delta((wb_delta_heads){2, 4, 5, 3}, 75);
    check_delta((wb_delta_heads){1, 3, 16, 17}, 12);
    check_delta((wb_delta_heads){2, 2, 19, 33}, 6);
}

/* Chunks lie between sequences and inside of them. */
static void test_gated_delta_over_chunks(void **state) {
    (void)state;
    check_delta((wb_delta_heads){1, 2, 2, 2}, 200);
}

static void test_gated_delta_cut_anywhere(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        const batch b = random_batch(4, 1, 90);
        const wb_delta_heads h = {2, 4, (int32_t)rng_range(1, 40), (int32_t)rng_range(1, 40)};
        const int64_t width = (int64_t)h.n_value * h.value_dim, n = b.T * width;
        const int64_t stride = (h.key_dim * width + 3) * (int64_t)sizeof(float);
        const delta_case c = {&b, h, NULL};
        const delta_parts at = parts_of(&c);
        float *x = random_floats(at.n, -2, 2), *whole = floats(n);
        char *states = xalloc(b.n_runs, (size_t)stride);
        int64_t done[MAX_RUNS] = {0};
        piece p = open_piece(&b);
        x[2 * h.n_key * h.key_dim] = NAN; /* of the first value head: stays there, and in its sequence */
        wb_gated_delta args = delta_args(&c, x, whole_of(&b));
        assert_ok(dev->gated_delta_forward(dev, &args, wb_f32_rows(whole)));
        for (int64_t i = 0; i < n; i++)
            assert_true(isnan(whole[i]) == (i % width == 0 && run_of(&b, i / width) == b.runs));
        while (next_piece(&b, done, &p)) {
            float *qkv = rows_at(x, &p, wb_delta_width(h)), *of_b = rows_at(x + at.b, &p, h.n_value),
                  *of_a = rows_at(x + at.a, &p, h.n_value), *o = floats(p.T * width);
            args.qkv = wb_f32_rows(qkv), args.b = wb_f32_rows(of_b), args.a = wb_f32_rows(of_a);
            args.of = (wb_sequences){p.T, p.n_runs, p.runs, states, stride};
            assert_ok(dev->gated_delta_forward(dev, &args, wb_f32_rows(o)));
            assert_rows_at(o, whole, &p, width, "gated_delta in pieces");
            free(qkv), free(of_b), free(of_a), free(o);
        }
        free(x), free(whole), free(states), free(p.row), free(p.runs), free(b.runs);
    }
}

/* ---- what is refused -------------------------------------------------------------------------- */

static void refuse(wb_status status, const char *message) {
    assert_int_equal(status, WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), message);
}

static void test_odd_calls_are_refused(void **state) {
    (void)state;
    float *x = floats(8);
    const wb_rows rows = wb_f32_rows(x), half = {x, WB_BF16};
    wb_short_conv conv = {.channels = 1, .width = 9, .w = x, .x = rows};
    refuse(dev->short_conv_forward(dev, &conv, rows), "short_conv_forward: width: expected 1..8, found 9");
    conv.width = 2;
    refuse(dev->short_conv_forward(dev, &conv, half),
           "short_conv_forward: y: expected f32 like x, found bf16");
    conv.of.states = (char *)x;
    refuse(dev->short_conv_backward(dev, &conv, rows, rows, x),
           "short_conv_backward: states: expected NULL, a backward being of whole sequences");
    wb_gated_delta delta = {
        .heads = {2, 3, 1, 1}, .qkv = rows, .b = rows, .a = rows, .A_log = x, .dt_bias = x};
    refuse(dev->gated_delta_forward(dev, &delta, rows),
           "gated_delta_forward: value heads: expected a multiple of 2 key heads, found 3");
    delta.heads.n_key = 3, delta.a = half;
    refuse(dev->gated_delta_forward(dev, &delta, rows),
           "gated_delta_forward: a: expected f32 like qkv, found bf16");
    delta.a = rows;
    refuse(dev->gated_delta_backward(dev, &delta, rows, rows, rows, rows, x, x),
           "gated_delta_backward: checkpoints: expected what the forward left there, found NULL");
    free(x);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short_conv),
        cmocka_unit_test(test_short_conv_cut_anywhere),
        cmocka_unit_test(test_gated_delta),
        cmocka_unit_test(test_gated_delta_over_chunks),
        cmocka_unit_test(test_gated_delta_cut_anywhere),
        cmocka_unit_test(test_odd_calls_are_refused),
    };
    rng_open(argc, argv);
    open_cuda();
    dev = open_cpu(2);
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(dev);
    if (!cuda) return failures;
    dev = cuda;
    failures += cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
