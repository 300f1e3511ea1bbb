/* test_grpo_rate.c - the learning rate of a step: values worked out by hand, and what holds of every
 * schedule. */
#include "../../examples/grpo/learning_rate.c"
#include "support/test_seed.h"
#include "wb_random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>

static void assert_rates(const options *o, const double *expected, uint64_t n) {
    for (uint64_t step = 0; step < n; step++)
        if (!(fabs(learning_rate(o, step) - expected[step]) <= 1e-12))
            fail_msg("step %" PRIu64 ": expected %.12g, found %.12g", step, expected[step],
                     learning_rate(o, step));
}

static void test_values(void **state) {
    (void)state;
    options o = {.lr = 8, .lr_warmup = 2, .lr_steps = 6, .lr_end = 0.25};
    static const double constant[] = {4, 8, 8, 8, 8, 8, 8, 8}, linear[] = {4, 8, 8, 6.5, 5, 3.5, 2, 2};
    const double cosine[] = {4, 8, 8, 2 + 6 * (0.5 + 0.5 * sqrt(0.5)), 5, 2 + 6 * (0.5 - 0.5 * sqrt(0.5)),
                             2, 2};
    assert_rates(&o, constant, 8);
    o.schedule = LR_LINEAR;
    assert_rates(&o, linear, 8);
    o.schedule = LR_COSINE;
    assert_rates(&o, cosine, 8);
}

/* Above zero in every step that there is, never above --lr, falling behind the warm-up, whatever the
 * numbers. */
static void test_properties(void **state) {
    (void)state;
    uint64_t seed = test_seed(0, NULL);
    print_message("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < 2000; i++) {
        options o = {.lr = 1e-3, .schedule = (lr_schedule)(wb_random(&seed) % 3)};
        o.lr_warmup = (int64_t)(wb_random(&seed) % 20);
        o.lr_steps = 1 + (int64_t)(wb_random(&seed) % 40); /* also fewer than the warm-up */
        o.lr_end = wb_random(&seed) % 2 == 0 ? 0 : 0.1;
        double before = o.lr;
        for (int64_t step = 0; step < 60; step++) {
            const double rate = learning_rate(&o, (uint64_t)step);
            assert_true(rate >= 0 && rate <= o.lr * (1 + 1e-15));
            assert_true(step >= o.lr_steps || rate > 0 || o.lr_steps <= o.lr_warmup);
            assert_true(step < o.lr_warmup || rate <= before);
            if (step >= o.lr_warmup) before = rate;
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_properties)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
