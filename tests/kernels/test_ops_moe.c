/* test_ops_moe.c - moe_sort against its rule, moe_combine and its backward against a reference in double
 * precision. */
#include "gradient_check.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

typedef struct combine_case {
    int64_t T, K, H;
    const int32_t *choice_row;
    const float *dy;
} combine_case;

/* x: rows [T * K, H], then weights [T, K]. */
static double combine_element(const combine_case *c, const double *x, int64_t t, int64_t i) {
    double y = 0.0;
    for (int64_t k = 0; k < c->K; k++)
        y += x[c->T * c->K * c->H + t * c->K + k] * x[c->choice_row[t * c->K + k] * c->H + i];
    return y;
}

static double combine_loss(const double *x, const void *context) {
    const combine_case *c = context;
    double loss = 0.0;
    for (int64_t i = 0; i < c->T * c->H; i++)
        loss += (double)c->dy[i] * combine_element(c, x, i / c->H, i % c->H);
    return loss;
}

static void test_moe_sort_and_combine(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 9, K = 3, H = 19, E = 7, n = T * K * H + T * K;
    uint8_t ids[27];
    int32_t choice_row[27], row_token[27], seen = 0;
    int64_t counts[7];
    for (int i = 0; i < 27; i++) ids[i] = (uint8_t)rng_range(0, E - 2); /* the last expert stays empty */
    assert_ok(dev->moe_sort(dev, T, (int32_t)K, (int32_t)E, (wb_ids){ids, WB_U8, K}, choice_row, row_token,
                            counts));
    for (int e = 0; e < E; e++) { /* stable: pairs of an expert in (t, k) order */
        int64_t count = 0;
        for (int i = 0; i < 27; i++)
            if (ids[i] == e) {
                assert_int_equal(choice_row[i], seen);
                assert_int_equal(row_token[seen++], i / K);
                count++;
            }
        assert_int_equal(counts[e], count);
    }
    float *x = random_floats(n, -1, 1), *w = x + T * K * H, *y = floats(T * H),
          *dy = random_floats(T * H, -1, 1);
    float *grad = floats(n), *accumulated = random_floats(T * H, -1, 1), *base = copied(accumulated, T * H);
    double *x2 = doubles(x, n);
    combine_case c = {T, K, H, choice_row, dy};
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, x, choice_row, w, false, y));
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, x, choice_row, w, true, accumulated));
    for (int64_t i = 0; i < T * H; i++) {
        double expected = combine_element(&c, x2, i / H, i % H);
        assert_close(y[i], expected, 8 * u * (double)K, "moe_combine", i);
        assert_close(accumulated[i], (double)base[i] + expected, 8 * u * (double)K, "moe_combine accumulate",
                     i);
    }
    assert_ok(dev->moe_combine_backward(dev, T, (int32_t)K, H, x, choice_row, w, dy, grad, grad + T * K * H));
    check_gradient(combine_loss, &c, x, n, grad, NULL, 2e-6, "moe_combine_backward");
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, x, choice_row, NULL, false, y)); /* weights 1 */
    for (int64_t i = 0; i < T * K; i++) x2[T * K * H + i] = 1.0;
    for (int64_t i = 0; i < T * H; i++)
        assert_close(y[i], combine_element(&c, x2, i / H, i % H), 8 * u * (double)K, "moe_combine of ones",
                     i);
    ids[4] = (uint8_t)E;
    memset(counts, 0x55, sizeof counts);
    assert_int_equal(
        dev->moe_sort(dev, T, (int32_t)K, (int32_t)E, (wb_ids){ids, WB_U8, K}, choice_row, row_token, counts),
        WB_INVALID_ARGUMENT);
    assert_int_equal(counts[0], 0x5555555555555555);
    free(x), free(y), free(dy), free(grad), free(accumulated), free(base), free(x2);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moe_sort_and_combine),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
