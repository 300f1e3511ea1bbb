/* test_missing_op_engine.c - the engine refuses a device that lacks an op when it is opened, by the op's
 * name, whether it or the model calls it; and generates on a device with no other op. */
#include "rollout/engine_fixture.h"
#include "support/missing_op.h"
#include "wb_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const wb_engine_options small_engine = {
    .size = sizeof small_engine, .n_blocks = 16, .block_size = 4, .max_batch_tokens = 32, .max_running = 2};

static wb_status open_engine(void *model) {
    wb_engine *engine = NULL;
    WB_TRY(wb_engine_open(model, &small_engine, &engine));
    wb_engine_close(engine);
    return WB_OK;
}

/* Refusals of one who asks. Ops that it does not ask for are there, so that others' refusals stay away. */
static void test_each_op_is_missed_by_name(void **state) {
    (void)state;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 8, 2, 2, 1);
    rig r = rig_open(&config, 3, 1, NULL);
    const wb_device whole = *r.device;
    bool needed[WB_OP_COUNT];
    int n_engine = 0, n_model = 0;
    for (wb_op op = 0; op < WB_OP_COUNT; op++) {
        missing_op_remove(r.device, op);
        const wb_status status = open_engine(r.model);
        *r.device = whole;
        needed[op] = status != WB_OK;
        if (status == WB_OK) continue;
        char end[64];
        snprintf(end, sizeof end, ": expected the op %s, found none", missing_op_name(op));
        assert_int_equal(status, WB_UNSUPPORTED);
        assert_non_null(strstr(wb_error_message(), end));
        n_engine += strncmp(wb_error_message(), "engine: ", 8) == 0;
        n_model += strncmp(wb_error_message(), "inference: ", 11) == 0;
    }
    assert_true(needed[WB_OP_sample] && needed[WB_OP_logprob_forward] && needed[WB_OP_matmul]);
    assert_true(n_engine > 2 && n_model > 10);

    missing_op_keep(r.device, needed);
    ask a = ask_fixed("alone", 5, 4), hot = ask_fixed("hot", 5, 4);
    hot.request.temperature = 0.8f;
    hot.request.top_p = 0.9f;
    wb_completion_free(run_alone(r.model, &a));
    wb_completion_free(run_alone(r.model, &hot));
    *r.device = whole;
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_op_is_missed_by_name)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
