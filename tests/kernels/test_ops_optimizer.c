/* test_ops_optimizer.c - the gradient norm and AdamW against double precision. */
#include "gradient_check.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

static void test_sum_squares_and_adamw(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const int64_t n = 50003;
    float *g = random_floats(n, -2, 2), *w = random_floats(n, -1, 1), *m = floats(n), *v = floats(n);
    double *w2 = doubles(w, n), *m2 = xalloc(n, sizeof(double)), *v2 = xalloc(n, sizeof(double)), sum = 0.0,
           found = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)g[i] * (double)g[i];
    assert_ok(dev->sum_squares(dev, n, g, &found));
    assert_close(found, sum, 1e-12 * sum, "sum_squares", 0);
    for (uint64_t step = 1; step <= 5; step++) {
        wb_adamw h = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, step};
        double b1 = (double)h.beta1, b2 = (double)h.beta2, lr = (double)h.lr;
        assert_ok(dev->adamw(dev, n, &h, g, m, v, w));
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
    assert_int_equal(dev->adamw(dev, n, &zero, g, m, v, w), WB_INVALID_ARGUMENT);
    free(g), free(w), free(m), free(v), free(w2), free(m2), free(v2);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_squares_and_adamw),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
