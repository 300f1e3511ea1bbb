/* test_exact_math.c - the functions of wb_exact_math.h against double precision, and at their extremes. */
#include "ops_test.h"

static double ulp_of(double x) {
    return ldexp(1.0, (fabs(x) < 0x1p-126 ? -126 : ilogb(x)) - 23);
}

static void test_functions_are_accurate(void **state) {
    (void)state;
    for (int i = 0; i < 200000; i++) {
        float x = i % 2 == 0 ? rng_uniform(-110.0f, 90.0f) : rng_uniform(-2.0f, 2.0f);
        double e = exp((double)x), s = 1.0 / (1.0 + exp(-(double)x));
        double p = x > 0 ? (double)x + log1p(exp(-(double)x)) : log1p(exp((double)x));
        if (e < 3.4e38) assert_close(wb_expf(x), e, 1.1 * ulp_of(e), "exp", i);
        assert_close(wb_sigmoid(x), s, 3.0 * ulp_of(s), "sigmoid", i);
        assert_close(wb_softplus(x), p, 3.0 * ulp_of(p), "softplus", i);
        double below_normal = p < 1e-37 ? 0x1p-74 : 0.0; /* where softplus itself has few bits left */
        assert_close(wb_sqrtsoftplus(x), sqrt(p), 4.0 * ulp_of(sqrt(p)) + below_normal, "sqrtsoftplus", i);
        assert_close(wb_silu(x), (double)x * s,
                     4.0 * ulp_of((double)x * s) + fabs((double)x) * 3.0 * ulp_of(s), "silu", i);
        float y = wb_expf(x);
        if (y > 0.0f && y < INFINITY)
            assert_close(wb_logf(y), log((double)y), 2.5 * ulp_of(log((double)y)), "log", i);
    }
}

static void test_functions_at_extremes(void **state) {
    (void)state;
    assert_true(wb_expf(-INFINITY) == 0.0f && wb_expf(-1e30f) == 0.0f && wb_expf(0.0f) == 1.0f);
    assert_true(isinf(wb_expf(INFINITY)) && isinf(wb_expf(89.0f)) && isnan(wb_expf(NAN)));
    assert_true(wb_expf(88.5f) < INFINITY && wb_expf(-100.0f) > 0.0f);
    assert_true(wb_logf(0.0f) == -INFINITY && isinf(wb_logf(INFINITY)) && isnan(wb_logf(-1.0f)) &&
                isnan(wb_logf(NAN)));
    assert_true(wb_logf(1.0f) == 0.0f);
    assert_true(wb_sigmoid(-INFINITY) == 0.0f && wb_sigmoid(INFINITY) == 1.0f && wb_sigmoid(0.0f) == 0.5f);
    assert_true(wb_softplus(-INFINITY) == 0.0f && isinf(wb_softplus(INFINITY)));
    assert_true(isnan(wb_sigmoid(NAN)) && isnan(wb_softplus(NAN)) && isnan(wb_sqrtsoftplus(NAN)));
}

static void test_bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (int i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)rng_next();
        if (i % 4 == 0) bits = (bits & 0xffff0000u) | 0x8000u; /* a tie */
        float x = wb_bits_float(bits), found = wb_bf16_to_f32(wb_f32_to_bf16(x));
        if (isnan(x)) {
            assert_true(isnan(found));
            continue;
        }
        uint32_t below = bits & 0xffff0000u, above = below + 0x10000u;
        if ((below & 0x7f800000u) == 0x7f800000u || (above & 0x7f800000u) == 0x7f800000u) continue;
        double low = fabs((double)x - (double)wb_bits_float(below)),
               high = fabs((double)x - (double)wb_bits_float(above));
        uint32_t expected = low < high || (low == high && (below & 0x10000u) == 0) ? below : above;
        assert_int_equal(wb_float_bits(found), expected);
    }
    assert_true(isinf(wb_bf16_to_f32(wb_f32_to_bf16(3.4e38f))));
    assert_true(wb_bf16_to_f32(wb_f32_to_bf16(-INFINITY)) == -INFINITY);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_functions_are_accurate),
        cmocka_unit_test(test_functions_at_extremes),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
