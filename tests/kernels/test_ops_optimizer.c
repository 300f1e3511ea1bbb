/* test_ops_optimizer.c - the gradient norm and AdamW against double precision, and AdamW with weights in bf16
 * and their masters in f32. */
#include "gradient_check.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

static void test_sum_squares_and_adamw(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const int64_t n = 50003;
    float *g = random_floats(n, -2, 2), *w = random_floats(n, -1, 1), *m = floats(n), *v = floats(n);
    double *w2 = doubles(w, n), *m2 = xalloc(n, sizeof(double)), *v2 = xalloc(n, sizeof(double)), sum = 0.0,
           found = NAN;
    for (int64_t i = 0; i < n; i++) sum += (double)g[i] * (double)g[i];
    assert_ok(dev->sum_squares(dev, 1, n, wb_f32_rows(g), &found));
    assert_close(found, sum, 1e-12 * sum, "sum_squares", 0);
    for (uint64_t step = 1; step <= 5; step++) {
        wb_adamw h = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, step};
        double b1 = (double)h.beta1, b2 = (double)h.beta2, lr = (double)h.lr;
        assert_ok(dev->adamw(dev, n, &h, g, m, v, w, NULL));
        for (int64_t i = 0; i < n; i++) {
            double grad = (double)g[i] * (double)h.grad_scale;
            w2[i] -= lr * (double)h.weight_decay * w2[i];
            m2[i] = b1 * m2[i] + (1 - b1) * grad;
            v2[i] = b2 * v2[i] + (1 - b2) * grad * grad;
            double m_hat = m2[i] / (1 - pow(b1, (double)step)), v_hat = v2[i] / (1 - pow(b2, (double)step));
            w2[i] -= lr * m_hat / (sqrt(v_hat) + (double)h.eps);
            assert_close(w[i], w2[i], 10 * (double)step * u, "adamw", i);
        }
    }
    wb_adamw zero = {.step = 0};
    assert_int_equal(dev->adamw(dev, n, &zero, g, m, v, w, NULL), WB_INVALID_ARGUMENT);
    free(g), free(w), free(m), free(v), free(w2), free(m2), free(v2);
    wb_device_close(dev);
}

/* ---- bf16 ------------------------------------------------------------------------------------------ */

/* The bits of the same numbers in f32, and no other dtype. */
static void test_sum_squares_of_bf16(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    for (int64_t n = 0; n < 3 * 8192; n += 1 + n * 2 / 3) {
        float *x = random_floats(n, -2, 2);
        uint16_t *half = xalloc(n, sizeof *half);
        for (int64_t i = 0; i < n; i++) half[i] = wb_f32_to_bf16(x[i]), x[i] = wb_bf16_to_f32(half[i]);
        double found = NAN, expected = NAN;
        assert_ok(dev->sum_squares(dev, 1, n, (wb_rows){half, WB_BF16}, &found));
        assert_ok(dev->sum_squares(dev, 1, n, wb_f32_rows(x), &expected));
        assert_true(found == expected && (n > 0 || found == 0));
        free(x), free(half);
    }
    double untouched = -1;
    assert_int_equal(dev->sum_squares(dev, 1, 0, (wb_rows){NULL, WB_U8}, &untouched), WB_INVALID_ARGUMENT);
    assert_true(untouched == -1);
    wb_device_close(dev);
}

/* The master has the bits that it has without them, and each weight is it, rounded: no element is left out,
 * and none is written beyond the last. */
static void test_adamw_rounds_its_master(void **state) {
    enum { POISON = 0xA5A5 };
    (void)state;
    wb_device *dev = open_cpu(3);
    const int64_t n = 20011;
    float *g = random_floats(n, -2, 2), *w = random_floats(n, -1, 1), *m = floats(n), *v = floats(n);
    float *w2 = copied(w, n), *m2 = floats(n), *v2 = floats(n);
    uint16_t *rounded = xalloc(n + 1, sizeof *rounded);
    for (uint64_t step = 1; step <= 3; step++) {
        const wb_adamw h = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, step};
        for (int64_t i = 0; i <= n; i++) rounded[i] = POISON;
        assert_ok(dev->adamw(dev, n, &h, g, m, v, w, rounded));
        assert_ok(dev->adamw(dev, n, &h, g, m2, v2, w2, NULL));
        assert_same_bits(w, w2, n, "adamw master");
        assert_same_bits(m, m2, n, "adamw m"), assert_same_bits(v, v2, n, "adamw v");
        for (int64_t i = 0; i < n; i++) assert_int_equal(rounded[i], wb_f32_to_bf16(w[i]));
        assert_int_equal(rounded[n], POISON);
    }
    float *const all[] = {g, w, m, v, w2, m2, v2};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    free(rounded);
    wb_device_close(dev);
}

/* An update moves a weight of 1 by about 1e-4, of which bf16 sees nothing: it stays where each update begins
 * from what was rounded, and follows where there is a master. */
static void test_updates_below_the_resolution_of_bf16_add_up(void **state) {
    enum { STEPS = 200 };
    (void)state;
    wb_device *dev = open_cpu(1);
    float g = 1, m = 0, v = 0, master = 1, m2 = 0, v2 = 0, alone = 1;
    uint16_t weight = 0, rounded = 0;
    for (uint64_t step = 1; step <= STEPS; step++) {
        const wb_adamw h = {1e-4f, 0.9f, 0.95f, 1e-8f, 0, 1, step};
        assert_ok(dev->adamw(dev, 1, &h, &g, &m, &v, &master, &weight));
        alone = step == 1 ? 1 : wb_bf16_to_f32(rounded);
        assert_ok(dev->adamw(dev, 1, &h, &g, &m2, &v2, &alone, &rounded));
    }
    assert_true(wb_bf16_to_f32(rounded) == 1);
    /* With a gradient that is always the same each step is the learning rate. */
    assert_close(master, 1 - STEPS * 1e-4, STEPS * 4 * u, "master", 0);
    assert_close(wb_bf16_to_f32(weight), master, 0x1p-9, "weight", 0);
    wb_device_close(dev);
}

/* Each of several sums is what it is alone. */
static void test_sums_of_squares_beside_each_other(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    for (int i = 0; i < 5; i++) {
        const int64_t count = rng_range(1, 6), n = rng_range(1, 20000);
        float *x = random_floats(count * n, -3, 3);
        double *found = xalloc(count, sizeof *found), expected;
        assert_ok(dev->sum_squares(dev, count, n, wb_f32_rows(x), found));
        for (int64_t k = 0; k < count; k++) {
            assert_ok(dev->sum_squares(dev, 1, n, wb_f32_rows(x + k * n), &expected));
            assert_true(found[k] == expected);
        }
        free(x), free(found);
    }
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_squares_and_adamw),
        cmocka_unit_test(test_sum_squares_of_bf16),
        cmocka_unit_test(test_sums_of_squares_beside_each_other),
        cmocka_unit_test(test_adamw_rounds_its_master),
        cmocka_unit_test(test_updates_below_the_resolution_of_bf16_add_up),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
