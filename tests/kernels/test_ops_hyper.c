/* test_ops_hyper.c - hyper-connections against the plainest loop in double precision, their backward against
 * central differences, and the same bits for a token whatever is beside it. */
#include "gradient_check.h"

static const double u = 0x1p-24;

enum { MOST_WIDTH = WB_MAX_STREAMS * (WB_MAX_STREAMS + 2) };

typedef struct streams {
    int64_t T, H;
    int32_t S, iterations;
    double norm_eps, eps;
} streams;

static int64_t width_of(const streams *s) {
    return wb_hyper_width(s->S, s->iterations);
}

/* What a check's numbers are, one behind the other: x [T,S,H], fn [M,S H], scale [1 or 3], base [M], out
 * [T,H]. */
typedef struct places {
    int64_t fn, scale, base, out, n;
} places;

static places places_of(const streams *s) {
    const int64_t row = s->S * s->H, M = width_of(s);
    places p = {.fn = s->T * row};
    p.scale = p.fn + M * row;
    p.base = p.scale + (s->iterations > 0 ? 3 : 1);
    p.out = p.base + M;
    p.n = p.out + s->T * s->H;
    return p;
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

/* As the paper has it: normalised matrices, one after the other. */
static void sinkhorn(int S, int iterations, double eps, const double *z, double *C) {
    for (int j = 0; j < S; j++) {
        double sum = 0;
        for (int k = 0; k < S; k++) sum += exp(z[j * S + k]);
        for (int k = 0; k < S; k++) C[j * S + k] = exp(z[j * S + k]) / sum + eps;
    }
    for (int i = 0; i < iterations; i++) {
        for (int j = 0; j < S && i > 0; j++) {
            double sum = eps;
            for (int k = 0; k < S; k++) sum += C[j * S + k];
            for (int k = 0; k < S; k++) C[j * S + k] /= sum;
        }
        for (int k = 0; k < S; k++) {
            double sum = eps;
            for (int j = 0; j < S; j++) sum += C[j * S + k];
            for (int j = 0; j < S; j++) C[j * S + k] /= sum;
        }
    }
}

/* weights[M] of token t. */
static void plain_weights(const streams *s, const double *x, int64_t t, double *weights) {
    const places p = places_of(s);
    const int64_t row = s->S * s->H;
    const double *token = x + t * row;
    double mean = 0, z[MOST_WIDTH];
    for (int64_t i = 0; i < row; i++) mean += token[i] * token[i] / (double)row;
    for (int64_t c = 0; c < width_of(s); c++) {
        double m = 0;
        for (int64_t i = 0; i < row; i++) m += x[p.fn + c * row + i] * token[i] / sqrt(mean + s->norm_eps);
        z[c] = m * x[p.scale + (c < s->S ? 0 : c < 2 * s->S ? 1 : 2)] + x[p.base + c];
    }
    for (int n = 0; n < s->S; n++) weights[n] = sigmoid(z[n]) + s->eps;
    if (s->iterations == 0) return;
    for (int k = s->S; k < 2 * s->S; k++) weights[k] = 2 * sigmoid(z[k]);
    sinkhorn(s->S, s->iterations, s->eps, z + 2 * s->S, weights + 2 * s->S);
}

static double plain_in(const streams *s, const double *x, const double *weights, int64_t t, int64_t i) {
    double in = 0;
    for (int n = 0; n < s->S; n++) in += weights[n] * x[(t * s->S + n) * s->H + i];
    return in;
}

static double plain_y(const streams *s, const double *x, const double *weights, int64_t t, int k, int64_t i) {
    double y = weights[s->S + k] * x[places_of(s).out + t * s->H + i];
    for (int j = 0; j < s->S; j++) y += weights[2 * s->S + j * s->S + k] * x[(t * s->S + j) * s->H + i];
    return y;
}

/* ---- a check ----------------------------------------------------------------------------------- */

typedef struct problem {
    streams s;
    const float *din, *dy; /* [T,H], [T,S,H] */
} problem;

static double loss(const double *x, const void *context) {
    const problem *p = context;
    const streams *s = &p->s;
    double sum = 0;
    for (int64_t t = 0; t < s->T; t++) {
        double weights[MOST_WIDTH];
        plain_weights(s, x, t, weights);
        for (int64_t i = 0; i < s->H; i++) {
            sum += (double)p->din[t * s->H + i] * plain_in(s, x, weights, t, i);
            for (int k = 0; k < s->S && s->iterations > 0; k++)
                sum += (double)p->dy[(t * s->S + k) * s->H + i] * plain_y(s, x, weights, t, k, i);
        }
    }
    return sum;
}

static wb_hyper args_of(const streams *s, float *x, const float *products) {
    const places p = places_of(s);
    return (wb_hyper){.T = s->T,
                      .H = s->H,
                      .n_streams = s->S,
                      .iterations = s->iterations,
                      .norm_eps = (float)s->norm_eps,
                      .eps = (float)s->eps,
                      .x = wb_f32_rows(x),
                      .products = products,
                      .scale = x + p.scale,
                      .base = x + p.base};
}

/* Its gradient of x, fn, scale, base and out. */
static void run_backward(wb_device *dev, const problem *p, float *x, const float *products,
                         const float *weights, float *grad) {
    const streams *s = &p->s;
    const places at = places_of(s);
    const int64_t M = width_of(s), row = s->S * s->H;
    const wb_hyper args = args_of(s, x, products);
    const wb_rows dx = wb_f32_rows(grad);
    float *d = floats(s->T * M);
    if (s->iterations > 0)
        assert_ok(dev->hyper_post_backward(dev, s->T, s->S, s->H, weights, wb_f32_rows(x),
                                           wb_f32_rows(x + at.out), wb_f32_rows(p->dy),
                                           wb_f32_rows(grad + at.out), dx, d));
    assert_ok(
        dev->hyper_pre_backward(dev, &args, wb_f32_rows(p->din), d, dx, d, grad + at.scale, grad + at.base));
    wb_matmul list[] = {wb_matmul_wgrad(s->T, row, M, wb_f32_rows(d), wb_f32_rows(x), grad + at.fn),
                        wb_matmul_dgrad(s->T, wb_f32_rows(d), matrix(x + at.fn, WB_F32, M, row), dx, true)};
    assert_ok(dev->matmul(dev, 2, list));
    free(d);
}

static float *products_of(wb_device *dev, const streams *s, const float *x) {
    const places at = places_of(s);
    float *products = floats(s->T * width_of(s));
    const wb_matmul m = wb_matmul_forward(
        s->T, wb_f32_rows(x), matrix(x + at.fn, WB_F32, width_of(s), s->S * s->H), wb_f32_rows(products));
    assert_ok(dev->matmul(dev, 1, &m));
    return products;
}

static void check(wb_device *dev, streams s) {
    const places at = places_of(&s);
    const int64_t M = width_of(&s), n_in = s.T * s.H, n_y = n_in * s.S;
    float *x = random_floats(at.n, -1, 1), *din = random_floats(n_in, -1, 1), *dy = random_floats(n_y, -1, 1);
    float *in = floats(n_in), *y = floats(n_y), *weights = floats(s.T * M), *grad = floats(at.n);
    for (int64_t i = at.fn; i < at.scale; i++) x[i] *= 0.3f;
    float *products = products_of(dev, &s, x);
    double *wide = doubles(x, at.n), expected[MOST_WIDTH];
    const wb_hyper args = args_of(&s, x, products);
    const problem p = {s, din, dy};
    assert_ok(dev->hyper_pre_forward(dev, &args, wb_f32_rows(in), weights));
    if (s.iterations > 0)
        assert_ok(dev->hyper_post_forward(dev, s.T, s.S, s.H, weights, wb_f32_rows(x),
                                          wb_f32_rows(x + at.out), wb_f32_rows(y)));
    /* A product of so many terms; each step of Sinkhorn divides by a sum of S. */
    const double bound = u * (double)(4 * s.S * s.H + 8 * (s.S + 4) * (2 * s.iterations + 2));
    for (int64_t t = 0; t < s.T; t++) {
        plain_weights(&s, wide, t, expected);
        for (int64_t c = 0; c < M; c++)
            assert_close(weights[t * M + c], expected[c], bound, "weights", t * M + c);
        for (int64_t i = 0; i < s.H; i++) {
            assert_close(in[t * s.H + i], plain_in(&s, wide, expected, t, i), bound * s.S, "in", t * s.H + i);
            for (int k = 0; k < s.S && s.iterations > 0; k++)
                assert_close(y[(t * s.S + k) * s.H + i], plain_y(&s, wide, expected, t, k, i),
                             2 * bound * s.S, "y", i);
        }
    }
    run_backward(dev, &p, x, products, weights, grad);
    check_gradient(loss, &p, x, s.iterations > 0 ? at.n : at.out, grad, NULL, 2e-5, "hyper backward");
    /* In place, of x and of dy. */
    if (s.iterations > 0) {
        float *same = copied(x, n_y), *d = copied(dy, n_y), *dout = floats(n_in), *dw = floats(s.T * M),
              *dx = floats(n_y);
        const wb_rows out = wb_f32_rows(x + at.out);
        assert_ok(
            dev->hyper_post_forward(dev, s.T, s.S, s.H, weights, wb_f32_rows(same), out, wb_f32_rows(same)));
        assert_same_bits(same, y, n_y, "hyper_post_forward in place");
        assert_ok(dev->hyper_post_backward(dev, s.T, s.S, s.H, weights, wb_f32_rows(x), out, wb_f32_rows(dy),
                                           wb_f32_rows(dout), wb_f32_rows(dx), dw));
        assert_ok(dev->hyper_post_backward(dev, s.T, s.S, s.H, weights, wb_f32_rows(x), out, wb_f32_rows(d),
                                           wb_f32_rows(dout), wb_f32_rows(d), dw));
        assert_same_bits(d, dx, n_y, "hyper_post_backward in place");
        free(same), free(d), free(dout), free(dw), free(dx);
    }
    free(x), free(din), free(dy), free(in), free(y), free(weights), free(grad), free(products), free(wide);
}

static void test_hyper(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const streams list[] = {{3, 11, 4, 20, 1e-6, 1e-6}, {2, 70, 2, 20, 1e-6, 1e-6},
                            {4, 5, 8, 3, 1e-3, 1e-2},   {2, 9, 1, 1, 1e-6, 1e-6},
                            {3, 13, 4, 0, 1e-6, 1e-6},  {1, 17, 4, 32, 1e-6, 1e-6}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) check(dev, list[i]);
    wb_device_close(dev);
}

/* After many iterations rows and columns have the sum 1 each. */
static void test_mixing_matrix_is_doubly_stochastic(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const streams s = {5, 3, 4, 20, 1e-6, 1e-6};
    float *x = random_floats(places_of(&s).n, -0.3f, 0.3f), *products = products_of(dev, &s, x);
    float *in = floats(s.T * s.H), *weights = floats(s.T * width_of(&s));
    const wb_hyper args = args_of(&s, x, products);
    assert_ok(dev->hyper_pre_forward(dev, &args, wb_f32_rows(in), weights));
    for (int64_t t = 0; t < s.T; t++)
        for (int line = 0; line < s.S; line++) {
            const float *C = weights + t * width_of(&s) + 2 * s.S;
            double row = 0, column = 0;
            for (int i = 0; i < s.S; i++)
                row += (double)C[line * s.S + i], column += (double)C[i * s.S + line];
            assert_close(column, 1, 1e-5, "sum of a column", line);
            assert_close(row, 1, 1e-3, "sum of a row", line);
        }
    free(x), free(products), free(in), free(weights);
    wb_device_close(dev);
}

/* One token after the other gives the bits of all at once. */
static void test_tokens_alone(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const streams s = {300, 40, 4, 20, 1e-6, 1e-6};
    const int64_t M = width_of(&s), row = s.S * s.H;
    float *x = random_floats(places_of(&s).n, -1, 1), *products = products_of(dev, &s, x);
    float *in = floats(s.T * s.H), *one = floats(s.H), *weights = floats(s.T * M), *alone = floats(M);
    wb_hyper args = args_of(&s, x, products);
    assert_ok(dev->hyper_pre_forward(dev, &args, wb_f32_rows(in), weights));
    for (int64_t t = 0; t < s.T; t++) {
        args.T = 1, args.x = wb_f32_rows(x + t * row), args.products = products + t * M;
        assert_ok(dev->hyper_pre_forward(dev, &args, wb_f32_rows(one), alone));
        assert_same_bits(one, in + t * s.H, s.H, "in");
        assert_same_bits(alone, weights + t * M, M, "weights");
    }
    free(x), free(products), free(in), free(one), free(weights), free(alone);
    wb_device_close(dev);
}

static void test_refusals(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    float x[4] = {0};
    const wb_rows rows = wb_f32_rows(x);
    wb_hyper args = {
        .T = 0, .H = 1, .n_streams = 1, .iterations = 1, .x = rows, .products = x, .scale = x, .base = x};
    assert_ok(dev->hyper_pre_forward(dev, &args, rows, x));
    assert_ok(dev->hyper_pre_backward(dev, &args, rows, x, rows, x, x, x));
    assert_ok(dev->hyper_post_forward(dev, 0, 1, 1, x, rows, rows, rows));
    assert_ok(dev->hyper_post_backward(dev, 0, 1, 1, x, rows, rows, rows, rows, rows, x));
    args.n_streams = WB_MAX_STREAMS + 1;
    assert_int_equal(dev->hyper_pre_forward(dev, &args, rows, x), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), "hyper_pre_forward: streams: expected 1..8, found 9");
    args.n_streams = 1, args.iterations = WB_MAX_SINKHORN + 1;
    assert_int_equal(dev->hyper_pre_backward(dev, &args, rows, x, rows, x, x, x), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), "hyper_pre_backward: iterations: expected 0..32, found 33");
    assert_int_equal(dev->hyper_post_forward(dev, 0, 0, 1, x, rows, rows, rows), WB_INVALID_ARGUMENT);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hyper),
        cmocka_unit_test(test_mixing_matrix_is_doubly_stochastic),
        cmocka_unit_test(test_tokens_alone),
        cmocka_unit_test(test_refusals),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
