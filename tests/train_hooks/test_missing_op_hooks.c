/* test_missing_op_hooks.c - the hooks refuse a device that lacks memory or an op of the router when they are
 * opened, by the op's name, and need no other op: CUDA has these, and is enough for a foreign trainer. */
#include "support/missing_op.h"
#include "wb_check.h"
#include "wb_train_hooks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static wb_status open_hooks(void *device) {
    wb_hooks_options options = wb_hooks_options_default();
    options.device = device;
    options.router = (wb_router){
        .type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 8, .top_k = 2, .normalize = true, .scale = 1};
    wb_hooks *hooks = NULL;
    WB_TRY(wb_hooks_open(&options, &hooks));
    wb_hooks_close(hooks);
    return WB_OK;
}

static void test_memory_and_the_routers_ops_are_needed(void **state) {
    (void)state;
    static const wb_op expected[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_topk, WB_OP_gate_forward,
                                     WB_OP_gate_backward, WB_OP_copy_ids, WB_OP_check_routes};
    wb_device *device;
    bool needed[WB_OP_COUNT];
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    missing_op_try_all(device, "hooks", open_hooks, device, needed);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        assert_true(needed[expected[i]]);
        needed[expected[i]] = false;
    }
    for (wb_op op = 0; op < WB_OP_COUNT; op++) assert_false(needed[op]);
    wb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory_and_the_routers_ops_are_needed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
