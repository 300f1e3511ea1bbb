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

/* The case in which a step allocates for sure: a mask that outgrows WB_MASK_ROOM. */
enum { MASK_PROMPT = 5, MASK_NEW = 9 };

static wb_config wide_config(void) {
    wb_config config = tiny_config(WB_FAMILY_OLMOE, 6, 2, 2, 0);
    /* It grows once, to twice the room. */
    config.vocab_size = 2 * WB_MASK_ROOM;
    return config;
}

static ask ask_wide(const char *rid) {
    ask a = ask_fixed(rid, MASK_PROMPT, MASK_NEW);
    a.request.temperature = 20; /* close to uniform: nearly all tokens are kept */
    a.request.top_p = 0.999f;
    a.request.return_sampling_mask = true;
    return a;
}

/* A step that had no memory, for the model or for the tokens that top-p kept, which is found out after the
 * sampling, changes nothing: the next one feeds the same tokens. */
static void test_a_failed_step_is_repeated(void **state) {
    (void)state;
    const wb_config config = wide_config();
    rig r = rig_open(&config, 1, 1, NULL);
    ask a = ask_wide("again");
    wb_completion *alone = run_alone(r.model, &a);
    assert_true(alone->record.mask_ends[MASK_NEW - 1] > WB_MASK_ROOM * MASK_NEW);
    wb_engine *engine = engine_of(r.model, 12, 4, 8, 4);
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    int without_mask = 0;
    bool busy = true;
    for (long n = 0, live; busy;) {
        alloc_fail_arm(n, false);
        const wb_status status = wb_engine_step(engine, &busy);
        const bool failed = alloc_fail_disarm(&live);
        assert_int_equal(failed ? WB_OUT_OF_MEMORY : WB_OK, status);
        without_mask += failed && strstr(wb_error_message(), "request sampling mask");
        n = failed ? n + 1 : 0;
    }
    assert_int_equal(1, without_mask);
    wb_completion *c = wb_engine_poll(engine);
    const char *what = difference(wb_model_routes(r.model), alone, c);
    if (what) fail_msg("%s differ", what);
    wb_completion_free(c);
    wb_completion_free(alone);
    wb_engine_close(engine);
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

/* ---- on one rank of two -------------------------------------------------------------------------- */

typedef struct rank_job {
    wb_comm *comm;
    wb_completion *done;
    int failed_steps, failed_in_mask;
} rank_job;

static void expect(bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "expected %s; latest failure: %s\n", what, wb_error_message());
    abort(); /* an assert would leave the other rank waiting */
}

/* A step in which rank 1 has no memory: if it needed some, it says so, rank 0 names it, neither is left
 * waiting, and the step is repeated. */
static void step_without_memory(rank_job *job, wb_engine *engine, bool *busy_out) {
    const bool poor = wb_comm_rank(job->comm) == 1;
    alloc_fail_this_thread(poor);
    const wb_status status = wb_engine_step(engine, busy_out);
    alloc_fail_this_thread(false);
    if (status == WB_OK) return;
    expect(status == (poor ? WB_OUT_OF_MEMORY : WB_PEER), "out of memory on rank 1, named on rank 0");
    expect(poor || strstr(wb_error_message(), "rank 1 failed"), "rank 1 named");
    job->failed_steps++;
    job->failed_in_mask += poor && strstr(wb_error_message(), "request sampling mask");
    must(wb_engine_step(engine, busy_out), "step");
}

/* A request with memory, in which the scratch of the CPU's ops grows; then the same one with a mask. */
static void *short_of_memory(void *arg) {
    rank_job *job = arg;
    const wb_config config = wide_config();
    rig r = rig_open(&config, 1, 1, job->comm);
    wb_engine *engine = engine_of(r.model, 12, 4, 8, 4);
    ask a = ask_wide(wb_comm_rank(job->comm) == 0 ? "zero" : "one");
    bool busy = true;
    a.request.return_sampling_mask = false;
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    run_dry(engine, 100);
    wb_completion_free(wb_engine_poll(engine));
    a.request.return_sampling_mask = true;
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    for (busy = true; busy;) step_without_memory(job, engine, &busy);
    job->done = wb_engine_poll(engine);
    wb_engine_close(engine);
    rig_close(&r);
    return NULL;
}

static void test_rule_30_memory_that_one_rank_lacks_leaves_nobody_waiting(void **state) {
    (void)state;
    const wb_config config = wide_config();
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
    ask a = ask_wide("alone");
    wb_completion *alone = run_alone(whole.model, &a);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(jobs[1].failed_steps, jobs[i].failed_steps);
        assert_non_null(jobs[i].done);
        assert_memory_equal(alone->record.tokens, jobs[i].done->record.tokens,
                            (MASK_PROMPT + MASK_NEW) * sizeof(uint32_t));
        assert_memory_equal(alone->record.logprobs, jobs[i].done->record.logprobs, MASK_NEW * sizeof(float));
        assert_null(mask_difference(&alone->record, &jobs[i].done->record));
        wb_completion_free(jobs[i].done);
        wb_comm_close(comms[i]);
    }
    assert_int_equal(1, jobs[1].failed_in_mask);
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
        cmocka_unit_test(test_weights_without_room_for_spans_change_nothing),
        cmocka_unit_test(test_rule_30_memory_that_one_rank_lacks_leaves_nobody_waiting),
    };
    return cmocka_run_group_tests_name("alloc_fail_engine", tests, NULL, NULL);
}
