/* test_alloc_fail_engine.c - every allocation of an engine's life is made to fail in turn: the call says
 * so, nothing leaks, the engine goes on afterwards; and a step in steady state makes none. */
#include "engine_fixture.h"
#include "support/alloc_fail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

/* Open, two requests with a change of weights between, all steps, poll, close. `next` may be NULL: no
 * change. */
static wb_status life(wb_model *model, const wb_model *next) {
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 12;
    options.block_size = 4;
    options.max_batch_tokens = 8;
    options.max_running = 4;
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

/* A step that had no memory for a span changes nothing: the next one feeds the same tokens. */
static void test_a_failed_step_is_repeated(void **state) {
    (void)state;
    const wb_config config = tiny_config(WB_FAMILY_OLMOE, 6, 2, 2, 0);
    rig r = rig_open(&config, 1, 1, NULL);
    ask a = ask_fixed("again", 5, 9);
    wb_completion *alone = run_alone(r.model, &a);
    wb_engine *engine = engine_of(r.model, 12, 4, 8, 4);
    bool busy = true;
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    for (int i = 0; i < 4; i++) must(wb_engine_step(engine, &busy), "step");
    must(wb_engine_set_weights(engine, r.model, 1),
         "weights"); /* the same weights by another name: a second span */
    long live;
    alloc_fail_arm(0, false);
    const wb_status status = wb_engine_step(engine, &busy);
    assert_true(alloc_fail_disarm(&live));
    assert_int_equal(WB_OUT_OF_MEMORY, status);
    run_dry(engine, 100);
    wb_completion *c = wb_engine_poll(engine);
    assert_int_equal(2, c->record.n_spans);
    assert_int_equal(14, c->record.n_tokens);
    assert_memory_equal(alone->record.tokens, c->record.tokens, 14 * sizeof(uint32_t));
    assert_memory_equal(alone->record.logprobs, c->record.logprobs, 9 * sizeof(float));
    wb_completion_free(c);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&r);
}

/* Nor does one that had no memory for the tokens that top-k kept, which is found out after the sampling. */
static void test_a_step_without_room_for_a_mask_is_repeated(void **state) {
    (void)state;
    const wb_config config = tiny_config(WB_FAMILY_OLMOE, 6, 2, 2, 0);
    rig r = rig_open(&config, 1, 1, NULL);
    ask a = ask_fixed("again", 5, 9);
    a.request.top_k = 4;
    a.request.return_sampling_mask = true;
    wb_completion *alone = run_alone(r.model, &a);
    bool failed = true;
    for (long n = 0; failed; n++) {
        wb_engine *engine = engine_of(r.model, 12, 4, 8, 4);
        bool busy = true;
        long live;
        must(wb_engine_submit(engine, ask_request(&a)), "submit");
        alloc_fail_arm(n, false);
        const wb_status status = wb_engine_step(engine, &busy);
        failed = alloc_fail_disarm(&live);
        assert_int_equal(failed ? WB_OUT_OF_MEMORY : WB_OK, status);
        run_dry(engine, 100);
        wb_completion *c = wb_engine_poll(engine);
        const char *what = difference(wb_model_routes(r.model), alone, c);
        if (what) fail_msg("allocation %ld failed: %s differ", n, what);
        wb_completion_free(c);
        wb_engine_close(engine);
    }
    wb_completion_free(alone);
    rig_close(&r);
}

static void test_steady_state_allocates_nothing(void **state) {
    (void)state;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 6, 2, 2, 0);
    rig r = rig_open(&config, 1, 1, NULL);
    wb_engine *engine = engine_of(r.model, 32, 4, 16, 4);
    ask crowd[3];
    bool busy = true;
    for (uint32_t i = 0; i < 3; i++) { /* the same lengths first, to grow the model's workspace */
        char rid[8];
        snprintf(rid, sizeof rid, "w%u", i);
        crowd[i] = ask_fixed(rid, 9, 15);
        must(wb_engine_submit(engine, ask_request(&crowd[i])), "submit");
    }
    run_dry(engine, 100);
    for (uint32_t i = 0; i < 3; i++) wb_completion_free(wb_engine_poll(engine));
    for (uint32_t i = 0; i < 3; i++) must(wb_engine_submit(engine, ask_request(&crowd[i])), "submit");
    long live;
    alloc_fail_arm(0, true);
    wb_status status = WB_OK;
    while (busy && status == WB_OK) status = wb_engine_step(engine, &busy);
    assert_false(alloc_fail_disarm(&live));
    assert_int_equal(WB_OK, status);
    assert_int_equal(0, live);
    assert_int_equal(2 * 3 * 14, wb_engine_get_stats(engine).decode_tokens);
    wb_engine_close(engine);
    rig_close(&r);
}

/* ---- on one rank of two -------------------------------------------------------------------------- */

typedef struct rank_job {
    wb_comm *comm;
    wb_completion *done;
    int failed_steps;
} rank_job;

static void expect(bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "expected %s; latest failure: %s\n", what, wb_error_message());
    abort(); /* an assert would leave the other rank waiting */
}

/* A step in which rank 1 has no memory: it says so, rank 0 names it, and neither is left waiting. */
static void step_without_memory(rank_job *job, wb_engine *engine) {
    bool busy = true;
    const bool poor = wb_comm_rank(job->comm) == 1;
    alloc_fail_this_thread(poor);
    const wb_status status = wb_engine_step(engine, &busy);
    alloc_fail_this_thread(false);
    expect(status == (poor ? WB_OUT_OF_MEMORY : WB_PEER), "out of memory on rank 1, named on rank 0");
    expect(poor || strstr(wb_error_message(), "rank 1 failed"), "rank 1 named");
    job->failed_steps++;
}

/* Its first step, in which the model's workspace grows; and one in which spans begin. */
static void *short_of_memory(void *arg) {
    rank_job *job = arg;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 6, 2, 2, 0);
    rig r = rig_open(&config, 1, 1, job->comm);
    wb_engine *engine = engine_of(r.model, 12, 4, 8, 4);
    ask a = ask_fixed(wb_comm_rank(job->comm) == 0 ? "zero" : "one", 5, 9);
    bool busy = true;
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    step_without_memory(job, engine);
    for (int i = 0; i < 4; i++) must(wb_engine_step(engine, &busy), "step");
    must(wb_engine_set_weights(engine, r.model, 1), "weights");
    step_without_memory(job, engine);
    run_dry(engine, 100);
    job->done = wb_engine_poll(engine);
    wb_engine_close(engine);
    rig_close(&r);
    return NULL;
}

static void test_rule_30_memory_that_one_rank_lacks_leaves_nobody_waiting(void **state) {
    (void)state;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 6, 2, 2, 0);
    wb_comm *comms[2];
    must(wb_comm_open_threads(2, comms), "comms");
    rank_job jobs[2] = {{.comm = comms[0]}, {.comm = comms[1]}};
    pthread_t thread;
    alarm(60); /* a hang is a failure */
    assert_int_equal(0, pthread_create(&thread, NULL, short_of_memory, &jobs[1]));
    short_of_memory(&jobs[0]);
    pthread_join(thread, NULL);
    alarm(0);
    rig whole = rig_open(&config, 1, 1, NULL);
    ask a = ask_fixed("alone", 5, 9);
    wb_completion *alone = run_alone(whole.model, &a);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(2, jobs[i].failed_steps);
        assert_non_null(jobs[i].done);
        assert_int_equal(2, jobs[i].done->record.n_spans);
        assert_memory_equal(alone->record.tokens, jobs[i].done->record.tokens, 14 * sizeof(uint32_t));
        assert_memory_equal(alone->record.logprobs, jobs[i].done->record.logprobs, 9 * sizeof(float));
        wb_completion_free(jobs[i].done);
        wb_comm_close(comms[i]);
    }
    wb_completion_free(alone);
    rig_close(&whole);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        printf("skipped: the sanitizer has its own allocator\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_nth_allocation_fails),
        cmocka_unit_test(test_a_failed_step_is_repeated),
        cmocka_unit_test(test_a_step_without_room_for_a_mask_is_repeated),
        cmocka_unit_test(test_steady_state_allocates_nothing),
        cmocka_unit_test(test_rule_30_memory_that_one_rank_lacks_leaves_nobody_waiting),
    };
    return cmocka_run_group_tests_name("alloc_fail_engine", tests, NULL, NULL);
}
