/* test_reserve_scratch.c - after reserve_scratch, no op of the sizes that were announced allocates: each op
 * at these sizes, in f32 and bf16, on devices of one thread and of several. */
#include "scratch_cases.h"
#include "support/alloc_fail.h"

enum { TRIALS = 96 };

static void run_trial(int number) {
    trial t = random_trial(number);
    for (int i = 0; i < N_FAMILIES; i++) {
        /* A device for each: the need of one is not to cover for that of another. */
        t.dev = open_cpu((int)rng_range(1, 3));
        assert_ok(t.dev->reserve_scratch(t.dev, &t.most));
        pool_used = 0;
        size_t bytes;
        alloc_count_start();
        families[i](&t);
        const long n = alloc_count_stop(&bytes);
        if (n != 0)
            fail_msg("trial %d, family %d: %ld allocations, the latest of %zu bytes", number, i, n, bytes);
        wb_device_close(t.dev);
    }
}

static void test_announced_ops_allocate_nothing(void **state) {
    (void)state;
    for (int i = 0; i < TRIALS; i++) run_trial(i);
}

static void test_a_reserve_that_fails_keeps_the_device(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const wb_op_sizes most = {.tokens = 100, .hidden = 64, .vocab_size = 100000, .dtype = WB_BF16};
    for (long n = 0, live; n < 10; n++) {
        alloc_fail_arm(n, false);
        const wb_status status = dev->reserve_scratch(dev, &most);
        const bool failed = alloc_fail_disarm(&live);
        assert_int_equal(failed ? WB_OUT_OF_MEMORY : WB_OK, status);
        if (!failed) break;
    }
    const trial t = {dev, {.vocab_size = 100, .summed = 10, .dtype = WB_F32}, 0, 0};
    pool_used = 0;
    run_sampling(&t);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    if (!ALLOC_FAIL_WORKS) {
        fprintf(stderr, "skipped: a sanitizer replaces malloc\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_announced_ops_allocate_nothing),
        cmocka_unit_test(test_a_reserve_that_fails_keeps_the_device),
    };
    rng_open(argc, argv);
    pool = malloc(pool_bytes);
    assert_non_null(pool);
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    free(pool);
    return failures;
}
