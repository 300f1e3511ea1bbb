/* test_device_require.c - a device that lacks an op is refused by the op's name, whichever it is. */
#include "support/missing_op.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Those that every backend has. */
static const wb_op all_ops[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_COMPUTE_OPS(WB_OP_NUMBER)};
enum { ALL_OPS = sizeof all_ops / sizeof all_ops[0] };

static wb_status require_all(void *device) {
    return wb_device_require(device, "all of them", all_ops, ALL_OPS);
}

static void test_cpu_has_every_op(void **state) {
    (void)state;
    wb_device *device;
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    assert_int_equal(require_all(device), WB_OK);
    assert_int_equal(wb_device_require(device, "nobody", NULL, 0), WB_OK);
    wb_device_close(device);
}

static void test_each_op_is_missed_by_name(void **state) {
    (void)state;
    wb_device *device;
    bool needed[WB_OP_COUNT];
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    missing_op_try_all(device, "all of them", require_all, device, needed);
    for (size_t i = 0; i < ALL_OPS; i++) assert_true(needed[all_ops[i]]);
    wb_device_close(device);
}

static void test_an_op_that_nobody_asks_for_may_be_missing(void **state) {
    (void)state;
    static const wb_op needed[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_topk};
    wb_device *device;
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    device->matmul = NULL;
    assert_int_equal(wb_device_require(device, "router", needed, sizeof needed / sizeof needed[0]), WB_OK);
    device->topk = NULL;
    assert_int_equal(wb_device_require(device, "router", needed, sizeof needed / sizeof needed[0]),
                     WB_UNSUPPORTED);
    wb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_has_every_op),
        cmocka_unit_test(test_each_op_is_missed_by_name),
        cmocka_unit_test(test_an_op_that_nobody_asks_for_may_be_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
