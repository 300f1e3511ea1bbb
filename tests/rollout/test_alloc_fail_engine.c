/* test_alloc_fail_engine.c - every allocation of an engine's life is made to fail in turn: the call says
 * so, nothing leaks, the engine goes on afterwards. */
#include "engine.h"
#include "engine_fixture.h"
#include "support/alloc_fail.h"
#include "weights_digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* Open, two requests with a change of weights between, all steps, poll, close. `next` may be NULL: no
 * change. */
static wb_status life(wb_model *model, const wb_model *next) {
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 12;
    options.block_size = 4;
    options.max_batch_tokens = 8;
    options.max_running = 4;
    options.prefix_cache = true;
    options.max_drafts = 3;
    ask asks[2] = {ask_fixed("a", 9, 6), ask_fixed("b", 3, 12)};
    asks[1].request.top_k = 3;
    asks[1].request.return_sampling_mask = true;
    wb_engine *engine = NULL;
    wb_status status = wb_engine_open(model, &options, &engine);
    if (status != WB_OK) return status;
    for (int i = 0; i < 2 && status == WB_OK; i++) status = wb_engine_submit(engine, ask_request(&asks[i]));
    bool busy = true;
    for (uint64_t version = 1; busy && status == WB_OK; version++) {
        status = wb_engine_step(engine, &busy);
        if (next && status == WB_OK) status = wb_engine_set_weights(engine, next, version);
    }
    for (wb_completion *c = wb_engine_poll(engine); c; c = wb_engine_poll(engine)) wb_completion_free(c);
    wb_engine_close(engine);
    return status;
}

static void test_the_nth_allocation_fails(void **state) {
    (void)state;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 6, 2, 2, 0);
    rig r = rig_open(&config, 1, 1, NULL), next = rig_open(&config, 2, 1, NULL);
    assert_int_equal(WB_OK, life(r.model, next.model)); /* what the device keeps is allocated now */
    long n = 0;
    for (bool failed = true; failed; n++) {
        long live = 0;
        alloc_fail_arm(n, false);
        const wb_status status = life(r.model, next.model);
        failed = alloc_fail_disarm(&live);
        if (live != 0) fail_msg("allocation %ld failed: %ld blocks are not freed", n, live);
        assert_int_equal(failed ? WB_OUT_OF_MEMORY : WB_OK, status);
    }
    assert_true(n > 20);
    rig_close(&next);
    rig_close(&r);
}

enum { MASK_PROMPT = 5, MASK_NEW = 9 };

static wb_config wide_config(void) {
    wb_config config = tiny_config(WB_FAMILY_OLMOE, 6, 2, 2, 0);
    config.vocab_size = 30000; /* what sampling a row takes is more than other ops need */
    return config;
}

static ask ask_wide(const char *rid) {
    ask a = ask_fixed(rid, MASK_PROMPT, MASK_NEW);
    a.request.temperature = 20; /* close to uniform: nearly all tokens are kept */
    a.request.top_p = 0.999f;
    a.request.return_sampling_mask = true;
    return a;
}

/* From the first step on, whatever the request came to. */
static void test_steps_need_no_memory(void **state) {
    (void)state;
    const wb_config config = wide_config();
    rig r = rig_open(&config, 1, 1, NULL), again = rig_open(&config, 1, 1, NULL);
    ask a = ask_wide("again");
    wb_completion *alone = run_alone(r.model, &a);
    assert_true(alone->record.mask_ends[MASK_NEW - 1] > 200 * MASK_NEW);
    wb_engine *engine = engine_of(again.model, 12, 4, 8, 4);
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    bool busy = true;
    for (long live; busy;) {
        alloc_fail_arm(0, true);
        const wb_status status = wb_engine_step(engine, &busy);
        assert_false(alloc_fail_disarm(&live));
        assert_int_equal(WB_OK, status);
    }
    wb_completion *c = wb_engine_poll(engine);
    const char *what = difference(wb_model_routes(r.model), alone, c);
    if (what) fail_msg("%s differ", what);
    wb_completion_free(c);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&again);
    rig_close(&r);
}

/* Weights whose spans have no room are not set. */
static void test_weights_without_room_for_spans_change_nothing(void **state) {
    (void)state;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 6, 2, 2, 0);
    rig r = rig_open(&config, 1, 1, NULL);
    rig next[2] = {rig_open(&config, 2, 1, NULL), rig_open(&config, 3, 1, NULL)};
    wb_engine *engine = engine_of(r.model, 20, 4, 8, 4);
    ask a = ask_fixed("long", 4, 70);
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    bool busy = true;
    int refused = 0;
    for (uint64_t version = 1; busy; version++) {
        must(wb_engine_step(engine, &busy), "step");
        const uint64_t digest = engine->weights_digest;
        const wb_model *from = next[version % 2].model;
        long live;
        alloc_fail_arm(0, false);
        const wb_status status = wb_engine_set_weights(engine, from, version);
        if (!alloc_fail_disarm(&live)) continue;
        uint64_t found;
        must(wb_weights_digest(engine->model, &found), "digest");
        assert_int_equal(WB_OUT_OF_MEMORY, status);
        assert_non_null(strstr(wb_error_message(), "request spans"));
        assert_int_equal(version - 1, engine->weight_version);
        assert_int_equal(digest, found);
        must(wb_engine_set_weights(engine, from, version), "weights");
        refused++;
    }
    assert_int_equal(1, refused);
    wb_completion *c = wb_engine_poll(engine);
    assert_int_equal(70, c->record.n_spans);
    wb_completion_free(c);
    wb_engine_close(engine);
    for (int i = 0; i < 2; i++) rig_close(&next[i]);
    rig_close(&r);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        printf("skipped: the sanitizer has its own allocator\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_nth_allocation_fails),
        cmocka_unit_test(test_steps_need_no_memory),
        cmocka_unit_test(test_weights_without_room_for_spans_change_nothing),
    };
    return cmocka_run_group_tests_name("alloc_fail_engine", tests, NULL, NULL);
}
