/* test_reserve_scratch_cuda.c - after reserve_scratch, no op of the sizes that were announced makes the
 * scratch of a CUDA device larger, and of a device such as wb_scratch_bytes_cuda is of it is as large as that
 * says. 77 where there is no device. */
#include "cuda_memory.h"

#include "cuda/cuda_device.h"
#include "scratch_cases.h"

enum { TRIALS = 24 };

static void run_trial(int number) {
    trial t = random_trial(number);
    for (int i = 0; i < N_FAMILIES; i++) {
        assert_ok(wb_device_open_cuda(0, NULL, &t.dev));
        const wb_cuda_device *opened = (const wb_cuda_device *)t.dev;
        assert_ok(t.dev->reserve_scratch(t.dev, &t.most));
        const size_t before = opened->scratch_bytes;
        if (opened->multiprocessors == 132 && opened->capability == 9)
            assert_int_equal(before, wb_scratch_bytes_cuda(&t.most));
        pool_used = 0;
        families[i](&t);
        if (opened->scratch_bytes != before)
            fail_msg("trial %d, family %d: expected %zu bytes of scratch, found %zu", number, i, before,
                     opened->scratch_bytes);
        wb_device_close(t.dev);
    }
}

static void test_announced_ops_make_no_scratch(void **state) {
    (void)state;
    for (int i = 0; i < TRIALS; i++) run_trial(i);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_announced_ops_make_no_scratch)};
    rng_open(argc, argv);
    open_cuda();
    if (!cuda) return 77;
    pool = calloc(pool_bytes, 1);
    assert_non_null(pool);
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    free(pool);
    wb_device_close(cuda);
    return failures;
}
