/* test_ops_gated.c - the gated norm and the sigmoid gate against a naive reference in double precision, their
 * backward against central differences of it. */
#include "gradient_check.h"

#include <math.h>

/* A float's unit roundoff. */
static const double u = 0x1p-24;

static double sigmoid(double x) {
    return 1.0 / (1.0 + exp(-x));
}

/* n rows; x is followed by the gate, both [n, width], and in a norm by its weights. */
typedef struct gated_case {
    int64_t n, width;
    double offset; /* what is added to the weights */
    const float *d;
} gated_case;

/* ---- the gated norm -------------------------------------------------------------------------- */

static double norm_element(const gated_case *c, const double *x, int64_t i) {
    const int64_t all = c->n * c->width, row = i / c->width * c->width;
    const double z = x[all + i], w = x[2 * all + i % c->width] + c->offset;
    double sum = 0.0;
    for (int64_t j = 0; j < c->width; j++) sum += x[row + j] * x[row + j];
    return x[i] / sqrt(sum / (double)c->width + 1e-6) * w * z * sigmoid(z);
}

static double norm_loss(const double *x, const void *context) {
    const gated_case *c = context;
    double loss = 0.0;
    for (int64_t i = 0; i < c->n * c->width; i++) loss += (double)c->d[i] * norm_element(c, x, i);
    return loss;
}

static void check_gated_norm(wb_device *dev, int64_t n, int64_t width, bool zero_centered) {
    const int64_t all = n * width, count = 2 * all + width;
    float *x = random_floats(count, -2, 2), *z = x + all, *d = random_floats(all, -1, 1), *y = floats(all);
    float *gradient = random_floats(count, -1, 1), *base = copied(gradient, count);
    for (int64_t i = 0; i < all; i++) x[i] += x[i] < 0.0f ? -0.5f : 0.5f; /* a row of about 0 has no slope */
    const gated_case c = {n, width, zero_centered, d};
    const wb_norm norm = norm_of(x + 2 * all, zero_centered);
    const wb_rows of_x = wb_f32_rows(x), of_z = wb_f32_rows(z);
    double *x2 = doubles(x, count);
    assert_ok(dev->gated_rmsnorm_forward(dev, n, width, of_x, norm, of_z, wb_f32_rows(y)));
    for (int64_t i = 0; i < all; i++)
        assert_close(y[i], norm_element(&c, x2, i), ((double)width + 20) * u * fabs((double)y[i]) + 1e-30,
                     "gated_rmsnorm", i);
    assert_ok(dev->gated_rmsnorm_backward(dev, n, width, of_x, norm, of_z, wb_f32_rows(d),
                                          wb_f32_rows(gradient), wb_f32_rows(gradient + all),
                                          gradient + 2 * all));
    memset(base, 0, (size_t)(2 * all) * sizeof *base);
    check_gradient(norm_loss, &c, x, count, gradient, base, 5e-6, "gated_rmsnorm_backward");
    float *in_place = copied(d, all), *own_z = copied(z, all); /* dx may be dy, dz z, dw NULL; y x or z */
    assert_ok(dev->gated_rmsnorm_backward(dev, n, width, of_x, norm, wb_f32_rows(own_z),
                                          wb_f32_rows(in_place), wb_f32_rows(in_place), wb_f32_rows(own_z),
                                          NULL));
    assert_same_bits(in_place, gradient, all, "gated_rmsnorm_backward dx in place");
    assert_same_bits(own_z, gradient + all, all, "gated_rmsnorm_backward dz in place");
    memcpy(own_z, z, (size_t)all * sizeof *z);
    assert_ok(dev->gated_rmsnorm_forward(dev, n, width, of_x, norm, wb_f32_rows(own_z), wb_f32_rows(own_z)));
    assert_same_bits(own_z, y, all, "gated_rmsnorm over z");
    assert_ok(dev->gated_rmsnorm_forward(dev, n, width, of_x, norm, of_z, of_x));
    assert_same_bits(x, y, all, "gated_rmsnorm over x");
    free(x), free(d), free(y), free(gradient), free(base), free(x2), free(in_place), free(own_z);
}

static void test_gated_norm(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t widths[] = {1, 5, 16, 37, 64};
    for (int i = 0; i < 10; i++) check_gated_norm(dev, rng_range(1, 5), widths[i / 2], i % 2 == 1);
    wb_device_close(dev);
}

/* ---- the sigmoid gate ------------------------------------------------------------------------ */

static double gate_loss(const double *x, const void *context) {
    const gated_case *c = context;
    const int64_t all = c->n * c->width;
    double loss = 0.0;
    for (int64_t i = 0; i < all; i++) loss += (double)c->d[i] * x[i] * sigmoid(x[all + i]);
    return loss;
}

/* The gates lie in wider rows, from element 2 on. */
static void check_gate(wb_device *dev, int64_t n, int64_t width) {
    enum { FIRST = 2, MORE = 5 };
    const int64_t all = n * width, stride = width + MORE;
    float *x = random_floats(2 * all, -4, 4), *d = random_floats(all, -1, 1), *y = floats(all);
    float *wide = random_floats(n * stride, -4, 4), *gradient = floats(2 * all);
    for (int64_t i = 0; i < all; i++) wide[i / width * stride + FIRST + i % width] = x[all + i];
    float *before = copied(wide, n * stride);
    const gated_case c = {n, width, 0, d};
    const wb_rows gate = wb_f32_rows(wide + FIRST);
    assert_ok(dev->sigmoid_gate_forward(dev, n, width, wb_f32_rows(x), gate, stride, wb_f32_rows(y)));
    for (int64_t i = 0; i < all; i++) {
        const double expected = (double)x[i] * sigmoid((double)x[all + i]);
        assert_close(y[i], expected, 6 * u * fabs(expected), "sigmoid_gate", i);
    }
    /* In place, both. */
    memcpy(gradient, d, (size_t)all * sizeof *d);
    assert_ok(dev->sigmoid_gate_backward(dev, n, width, wb_f32_rows(x), gate, stride, wb_f32_rows(gradient),
                                         wb_f32_rows(gradient), gate));
    for (int64_t i = 0; i < n * stride; i++) {
        const int64_t column = i % stride - FIRST;
        if (column >= 0 && column < width)
            gradient[all + i / stride * width + column] = wide[i];
        else
            assert_same_bits(wide + i, before + i, 1, "beside the gates");
    }
    check_gradient(gate_loss, &c, x, 2 * all, gradient, NULL, 4e-6, "sigmoid_gate_backward");
    assert_ok(dev->sigmoid_gate_forward(dev, n, width, wb_f32_rows(x), wb_f32_rows(before + FIRST), stride,
                                        wb_f32_rows(x)));
    assert_same_bits(x, y, all, "sigmoid_gate in place");
    free(x), free(d), free(y), free(wide), free(gradient), free(before);
}

static void test_sigmoid_gate(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    check_gate(dev, 1, 1), check_gate(dev, 5, 37), check_gate(dev, 2, 300);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gated_norm),
                                       cmocka_unit_test(test_sigmoid_gate)};
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
