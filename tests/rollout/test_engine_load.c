/* test_engine_load.c - the engine with more to do than it can do at once: who goes first, what a step may
 * prefill while somebody decodes, what is refused, how all stand still, and the counters of it all. */
#include "engine.h"
#include "engine_rig.h"

#include <pthread.h>
#include <unistd.h>

static wb_engine *engine_with(wb_model *model, wb_engine_options options) {
    wb_engine *engine = NULL;
    assert_ok(wb_engine_open(model, &options, &engine));
    return engine;
}

/* ---- priorities ---------------------------------------------------------------------------------- */

static void submit(wb_engine *engine, const char *rid, int32_t priority, uint32_t max_tokens) {
    ask a = ask_fixed(rid, 3, max_tokens);
    a.request.priority = priority;
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
}

static void assert_next(wb_engine *engine, const char *rid) {
    wb_completion *c = wb_engine_poll(engine);
    assert_non_null(c);
    assert_string_equal(rid, c->record.rid);
    wb_completion_free(c);
}

static void test_priority_decides_among_those_that_wait(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 32, 4, 16, 1);
    submit(engine, "runs", 0, 6);
    assert_true(step(engine));
    submit(engine, "low", -1, 2);
    submit(engine, "plain", 0, 2);
    submit(engine, "plain too", 0, 2);
    submit(engine, "high", 3, 2);
    submit(engine, "highest", 9, 2);
    run_dry(engine, 100);
    const char *const order[] = {"runs", "highest", "high", "plain", "plain too", "low"};
    for (int i = 0; i < 6; i++) assert_next(engine, order[i]);
    wb_engine_close(engine);
    rig_close(&r);
}

/* Every step brings a request of priority 8, more than can be answered: one of priority 0 still is, since it
 * is overtaken only by what comes within eight steps after it. */
static void test_nothing_starves(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 32, 4, 16, 1);
    submit(engine, "first", 0, 2);
    submit(engine, "patient", 0, 2);
    bool done = false;
    int steps = 0;
    for (; !done; steps++) {
        char rid[16];
        snprintf(rid, sizeof rid, "%d", steps);
        submit(engine, rid, 8, 2);
        assert_true(step(engine));
        for (wb_completion *c = wb_engine_poll(engine); c; c = wb_engine_poll(engine)) {
            done = done || strcmp(c->record.rid, "patient") == 0;
            wb_completion_free(c);
        }
        assert_true(steps < 60);
    }
    /* It waited for the first, for the eight of the first eight steps and for those that came before. */
    assert_true(steps > 2 * 8);
    wb_engine_close(engine);
    rig_close(&r);
}

/* What has run keeps its place when it is preempted, whoever comes then. */
static void test_what_ran_is_not_overtaken(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 8, 4, 16, 4);
    submit(engine, "old", 0, 28);
    submit(engine, "young", 0, 24);
    while (wb_engine_get_stats(engine).preemptions == 0) assert_true(step(engine));
    submit(engine, "first of priority", 100, 28);
    submit(engine, "second of priority", 100, 28);
    run_dry(engine, 300);
    const char *const order[] = {"old", "young"};
    for (int i = 0; i < 2; i++) assert_next(engine, order[i]);
    wb_engine_close(engine);
    rig_close(&r);
}

/* ---- limits and counters ------------------------------------------------------------------------- */

static void assert_refused(wb_model *model, wb_engine_options options, const char *message) {
    wb_engine *engine = engine_with(model, options);
    ask first = ask_fixed("first", 3, 7), second = ask_fixed("second", 3, 7);
    assert_ok(wb_engine_submit(engine, ask_request(&first)));
    const wb_engine_stats before = wb_engine_get_stats(engine);
    assert_int_equal(WB_CAPACITY, wb_engine_submit(engine, ask_request(&second)));
    assert_message(message);
    const wb_engine_stats after = wb_engine_get_stats(engine);
    assert_int_equal(before.waiting, after.waiting);
    assert_int_equal(before.unfinished_tokens, after.unfinished_tokens);
    assert_int_equal(before.unfinished_bytes, after.unfinished_bytes);
    assert_ok(wb_engine_abort(engine, "first"));
    assert_ok(wb_engine_submit(engine, ask_request(&second))); /* there is room again */
    wb_engine_close(engine);
}

static void test_more_than_the_limits_is_refused_with_the_numbers(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 16;
    wb_engine *engine = engine_with(r.model, options);
    submit(engine, "one", 0, 7);
    const uint64_t bytes = wb_engine_get_stats(engine).unfinished_bytes;
    assert_true(bytes > 9 * wb_route_row_bytes(wb_model_routes(r.model)));
    wb_engine_close(engine);

    options.max_unfinished = 1;
    assert_refused(r.model, options,
                   "request second: unfinished requests: expected at most 1, found 1 and 1 more");
    options.max_unfinished = 2;
    options.max_unfinished_tokens = 19;
    assert_refused(r.model, options,
                   "request second: unfinished tokens: expected at most 19, found 10 and 10 more");
    options.max_unfinished_tokens = 20;
    options.max_unfinished_bytes = 2 * bytes - 1;
    assert_refused(r.model, options, "request second: unfinished host bytes: expected at most ");
    rig_close(&r);
}

static void test_one_call_has_all_counters(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 16;
    options.block_size = 4;
    options.max_running = 1;
    options.prefix_cache = true;
    wb_engine *engine = engine_with(r.model, options);
    submit(engine, "a", 0, 7);
    submit(engine, "b", 0, 7);
    submit(engine, "c", 0, 7);
    assert_true(step(engine));
    wb_engine_stats stats = wb_engine_get_stats(engine);
    assert_int_equal(1, stats.running);
    assert_int_equal(2, stats.waiting);
    assert_int_equal(3 * 10, stats.unfinished_tokens);
    assert_int_equal(16, stats.n_blocks);
    assert_int_equal(15, stats.free_blocks);
    assert_ok(wb_engine_abort(engine, "b"));
    run_dry(engine, 100);
    stats = wb_engine_get_stats(engine);
    assert_int_equal(2, stats.finished);
    assert_int_equal(1, stats.aborted);
    assert_int_equal(0, stats.unfinished_tokens);
    assert_int_equal(0, stats.unfinished_bytes);
    assert_int_equal(3 + 3, stats.prefill_tokens); /* a prompt of three tokens fills no block */
    assert_int_equal(0, stats.taken_over_tokens);
    assert_int_equal(6 + 6, stats.decode_tokens);
    wb_engine_close(engine);
    rig_close(&r);
}

/* ---- a budget of all ranks ----------------------------------------------------------------------- */

enum { CHUNK = 3, PROMPT = 30 };

typedef struct rank_job {
    wb_comm *comm;
    int32_t max_batch_tokens;
    wb_status status;
    char message[200];
    uint64_t most_while_decoding, most; /* prefill tokens of a step */
} rank_job;

/* Rank 0 answers a short prompt; rank 1 has a long one, which arrives once rank 0 decodes. */
static void *run_rank(void *arg) {
    rank_job *job = arg;
    const wb_config c = config();
    const bool second = wb_comm_rank(job->comm) == 1;
    rig r = rig_open(&c, 5, 1, job->comm);
    wb_engine_options options = wb_engine_options_default();
    options.max_batch_tokens = job->max_batch_tokens;
    options.max_prefill_tokens = CHUNK;
    wb_engine *engine = NULL;
    must(wb_engine_open(r.model, &options, &engine), "engine");
    ask a = ask_fixed("a", second ? PROMPT : 2, second ? 1 : 8);
    bool busy = true;
    for (int i = 0; i < 60 && job->status == WB_OK && (busy || i < 3); i++) {
        if (i == (second ? 2 : 0)) must(wb_engine_submit(engine, ask_request(&a)), "submit");
        const uint64_t before = wb_engine_get_stats(engine).prefill_tokens;
        job->status = wb_engine_step(engine, &busy);
        const uint64_t n = wb_engine_get_stats(engine).prefill_tokens - before;
        if (i < 8 && n > job->most_while_decoding) job->most_while_decoding = n;
        if (n > job->most) job->most = n;
    }
    if (job->status != WB_OK) snprintf(job->message, sizeof job->message, "%s", wb_error_message());
    wb_engine_close(engine);
    rig_close(&r);
    return NULL;
}

static void run_ranks(rank_job *jobs, void *(*scene)(void *)) {
    wb_comm *comms[2];
    pthread_t thread;
    must(wb_comm_open_threads(2, comms), "comms");
    for (int i = 0; i < 2; i++) jobs[i].comm = comms[i];
    alarm(60);
    assert_int_equal(0, pthread_create(&thread, NULL, scene, &jobs[1]));
    scene(&jobs[0]);
    pthread_join(thread, NULL);
    alarm(0);
    for (int i = 0; i < 2; i++) wb_comm_close(comms[i]);
}

static void test_no_rank_prefills_much_while_another_decodes(void **state) {
    (void)state;
    rank_job jobs[2] = {{.max_batch_tokens = 16}, {.max_batch_tokens = 16}};
    run_ranks(jobs, run_rank);
    assert_int_equal(WB_OK, jobs[0].status);
    assert_int_equal(WB_OK, jobs[1].status);
    assert_int_equal(CHUNK, jobs[1].most_while_decoding); /* rank 0 decodes in steps 1..7 */
    assert_int_equal(PROMPT - 6 * CHUNK, jobs[1].most);   /* and then nobody does */
}

static void test_other_sizes_on_another_rank_are_refused(void **state) {
    (void)state;
    rank_job jobs[2] = {{.max_batch_tokens = 16}, {.max_batch_tokens = 15}};
    run_ranks(jobs, run_rank);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(WB_PEER, jobs[i].status);
        assert_non_null(strstr(jobs[i].message,
                               "rank 1 has max_batch_tokens 15 and max_prefill_tokens 3, rank "
                               "0 16 and 3: expected the same on all ranks"));
    }
}

/* ---- a pause ------------------------------------------------------------------------------------- */

/* Rank 1 asks, and both ranks stand still after the same step until both have the new weights. */
static void *pause_rank(void *arg) {
    rank_job *job = arg;
    const wb_config c = config();
    const bool asks = wb_comm_rank(job->comm) == 1;
    rig r = rig_open(&c, 5, 1, job->comm), next = rig_open(&c, 6, 1, job->comm);
    wb_engine *engine = engine_of(r.model, 32, 4, 16, 4);
    ask a = ask_fixed(asks ? "b" : "a", 3, 12);
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    uint64_t fed[9];
    bool paused[9], busy;
    for (int i = 0; i < 9; i++) {
        if (i == 3 && asks) wb_engine_pause(engine);
        if (i == 5) must(wb_engine_set_weights(engine, next.model, 1), "weights");
        if (i == 6 && asks) wb_engine_resume(engine);
        must(wb_engine_step(engine, &busy), "step");
        const wb_engine_stats stats = wb_engine_get_stats(engine);
        fed[i] = stats.prefill_tokens + stats.decode_tokens;
        paused[i] = stats.paused;
    }
    job->most = fed[8];
    /* Step 3 tells of the pause, step 6 of its end. */
    const uint64_t expected[9] = {3, 4, 5, 6, 6, 6, 6, 7, 8};
    for (int i = 0; i < 9; i++)
        if (fed[i] != expected[i] || paused[i] != (i >= 3 && i < 6)) job->status = WB_MISMATCH;
    run_dry(engine, 100);
    wb_completion *done = wb_engine_poll(engine);
    if (done->record.n_spans != 2 || done->record.spans[1].start != 6) job->status = WB_MISMATCH;
    wb_completion_free(done);
    wb_engine_close(engine);
    rig_close(&next);
    rig_close(&r);
    return NULL;
}

static void test_a_pause_is_of_all_ranks(void **state) {
    (void)state;
    rank_job jobs[2] = {{0}};
    run_ranks(jobs, pause_rank);
    for (int i = 0; i < 2; i++) assert_int_equal(WB_OK, jobs[i].status);
}

/* ---- keys of new weights ------------------------------------------------------------------------- */

static void test_keys_are_computed_again_where_asked(void **state) {
    (void)state;
    rig r = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    for (int again = 0; again < 2; again++) {
        wb_engine_options options = wb_engine_options_default();
        options.recompute_keys = again;
        wb_engine *engine = engine_with(r.model, options);
        submit(engine, "a", 0, 9);
        for (int i = 0; i < 4; i++) assert_true(step(engine)); /* 6 tokens fed, 4 sampled */
        assert_ok(wb_engine_set_weights(engine, next.model, 1));
        assert_true(step(engine));
        assert_int_equal(again ? 3 + 7 : 3, wb_engine_get_stats(engine).prefill_tokens);
        run_dry(engine, 100);
        wb_completion *done = wb_engine_poll(engine);
        assert_int_equal(2, done->record.n_spans);
        assert_int_equal(6, done->record.spans[0].end);
        assert_record_good(r.model, done);
        wb_completion_free(done);
        wb_engine_close(engine);
        rig again_rig = open_rig();
        assert_ok(wb_model_copy_weights(r.model, again_rig.model));
        rig_close(&again_rig);
    }
    rig_close(&next);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_priority_decides_among_those_that_wait),
        cmocka_unit_test(test_nothing_starves),
        cmocka_unit_test(test_what_ran_is_not_overtaken),
        cmocka_unit_test(test_more_than_the_limits_is_refused_with_the_numbers),
        cmocka_unit_test(test_one_call_has_all_counters),
        cmocka_unit_test(test_no_rank_prefills_much_while_another_decodes),
        cmocka_unit_test(test_other_sizes_on_another_rank_are_refused),
        cmocka_unit_test(test_a_pause_is_of_all_ranks),
        cmocka_unit_test(test_keys_are_computed_again_where_asked),
    };
    return cmocka_run_group_tests_name("engine load", tests, NULL, NULL);
}
