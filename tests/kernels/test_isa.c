/* test_isa.c - every instruction set of the CPU backend and every thread count gives the same bits for
 * every op. */
#include "all_ops.h"

static void test_instruction_sets_agree(void **state) {
    (void)state;
    const char *isas[] = {"v3", "v4"};
    wb_device *generic = NULL;
    assert_ok(wb_cpu_open_isa("generic", 2, &generic));
    uint64_t seed = rng_next();
    outputs expected = run_all_ops(generic, seed, false), expected_large = run_all_ops(generic, seed, true);
    outputs expected_wide = run_wide_ops(generic, seed);
    int compared = 0;
    for (int i = 0; i < 2; i++) {
        wb_device *dev = NULL;
        if (wb_cpu_open_isa(isas[i], 3, &dev) != WB_OK) {
            printf("%s\n", wb_error_message());
            continue;
        }
        outputs found = run_all_ops(dev, seed, false), found_large = run_all_ops(dev, seed, true);
        outputs found_wide = run_wide_ops(dev, seed);
        assert_same_outputs(&expected, &found, generic->name, dev->name);
        assert_same_outputs(&expected_large, &found_large, generic->name, dev->name);
        assert_same_outputs(&expected_wide, &found_wide, generic->name, dev->name);
        free(found.bytes), free(found_large.bytes), free(found_wide.bytes);
        wb_device_close(dev);
        compared++;
    }
    free(expected.bytes), free(expected_large.bytes), free(expected_wide.bytes);
    wb_device_close(generic);
    if (compared == 0) {
        printf("skipped: only the generic instruction set is here\n");
        exit(77);
    }
}

static void test_unknown_instruction_set_is_refused(void **state) {
    (void)state;
    wb_device *dev = NULL;
    assert_int_equal(wb_cpu_open_isa("v9", 1, &dev), WB_UNSUPPORTED);
    assert_null(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown_instruction_set_is_refused),
        cmocka_unit_test(test_instruction_sets_agree),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
