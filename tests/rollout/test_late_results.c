/* test_late_results.c - a step's results cross to the host by one copy that the step waits for: on a device
 * whose copies arrive at the wait, and not before, every schedule gives the records that a request gives
 * alone, and a step is filed while the next one is on its way. */
#include "engine.h"
#include "engine_rig.h"
#include "wb_check.h"

/* ---- a device that is late ----------------------------------------------------------------------- */

enum { POISON = 0xa7 };

/* The copy that is on its way: what the device had when it was started. */
static struct {
    wb_start_to_host_fn *start;
    wb_event_wait_fn *wait;
    wb_to_host_fn *to_host;
    wb_engine *engine; /* whose steps are watched */
    void *host;
    unsigned char *snapshot;
    size_t bytes;
    uint64_t copies, reads, filed_meanwhile;
    bool to_be_filed;
    bool fails; /* the next wait */
} late;

static wb_status late_start_to_host(wb_device *dev, void *host, const void *device, size_t bytes,
                                    void *event) {
    assert_null(late.host);
    late.snapshot = take(bytes, 1);
    assert_ok(late.start(dev, late.snapshot, device, bytes, event));
    late.host = host;
    late.bytes = bytes;
    late.copies++;
    late.to_be_filed = late.engine->filing.n > 0;
    memset(host, POISON, bytes);
    return WB_OK;
}

static wb_status late_event_wait(wb_device *dev, void *event) {
    assert_ok(late.wait(dev, event));
    assert_non_null(late.host);
    assert_int_equal(late.engine->filing.n, 0);
    late.filed_meanwhile += late.to_be_filed;
    if (!late.fails) memcpy(late.host, late.snapshot, late.bytes);
    free(late.snapshot);
    late.host = NULL;
    return late.fails ? wb_fail(WB_DEVICE, "event_wait: made to fail") : WB_OK;
}

static wb_status counted_to_host(wb_device *dev, void *host, const void *device, size_t bytes) {
    late.reads++;
    return late.to_host(dev, host, device, bytes);
}

static void make_late(wb_device *dev, wb_engine *engine) {
    memset(&late, 0, sizeof late);
    late.start = dev->start_to_host;
    late.wait = dev->event_wait;
    late.to_host = dev->to_host;
    late.engine = engine;
    dev->start_to_host = late_start_to_host;
    dev->event_wait = late_event_wait;
    dev->to_host = counted_to_host;
}

/* ---- any schedule -------------------------------------------------------------------------------- */

enum { N_ASKS = 16, MAX_UNFINISHED = 6 };

typedef struct play {
    rig late, plain; /* the same model */
    wb_engine *engine;
    ask asks[N_ASKS];
    uint32_t submitted, done, aborted;
} play;

static ask *ask_of(play *p, const char *rid) {
    for (uint32_t i = 0; i < p->submitted; i++)
        if (strcmp(p->asks[i].rid, rid) == 0) return &p->asks[i];
    fail_msg("no request %s", rid);
    return NULL;
}

/* An aborted request has the beginning of what it would have had. */
static void assert_begins_as(const wb_route_model *routes, const wb_record *whole, const wb_record *found) {
    assert_in_range(found->n_tokens, found->prompt_len, whole->n_tokens);
    assert_memory_equal(found->tokens, whole->tokens, found->n_tokens * sizeof *found->tokens);
    const uint32_t n_new = found->n_tokens - found->prompt_len;
    if (n_new > 0) assert_memory_equal(found->logprobs, whole->logprobs, n_new * sizeof(float));
    if (n_new > 0 && found->mask_ends && found->mask_ends[n_new - 1] > 0)
        assert_memory_equal(found->mask_ids, whole->mask_ids, found->mask_ends[n_new - 1] * sizeof(uint32_t));
    if (found->n_routes == 0) return;
    assert_in_range(found->routes[0].rows, 1, whole->routes[0].rows);
    assert_memory_equal(found->routes[0].ids, whole->routes[0].ids,
                        found->routes[0].rows * wb_route_row_bytes(routes));
}

static void check_completion(play *p, wb_completion *c) {
    wb_completion *alone = run_alone(p->plain.model, ask_of(p, c->record.rid));
    if (c->record.finish == WB_FINISH_ABORT)
        assert_begins_as(wb_model_routes(p->plain.model), &alone->record, &c->record);
    else
        assert_same(p->plain.model, alone, c);
    wb_completion_free(alone);
    wb_completion_free(c);
    p->done++;
}

/* A step whose results do not come, and that is then made again. */
static void fail_step(play *p) {
    const wb_engine_stats before = wb_engine_get_stats(p->engine);
    bool busy = true;
    late.fails = true;
    const wb_status status = wb_engine_step(p->engine, &busy);
    assert_true(status == WB_DEVICE || status == WB_OK); /* OK: it had nothing to feed */
    late.fails = false;
    if (status != WB_OK) assert_int_equal(wb_engine_get_stats(p->engine).steps, before.steps);
}

static void abort_one(play *p, dice *d) {
    const wb_status status = wb_engine_abort(p->engine, p->asks[pick(d, 0, p->submitted - 1)].rid);
    assert_true(status == WB_OK || status == WB_NOT_FOUND);
    p->aborted += status == WB_OK;
}

/* One copy for a step that feeds any token. */
static bool checked_step(wb_engine *engine) {
    const wb_engine_stats before = wb_engine_get_stats(engine);
    const uint64_t copies = late.copies;
    const bool busy = step(engine);
    const wb_engine_stats after = wb_engine_get_stats(engine);
    const uint64_t fed =
        after.prefill_tokens - before.prefill_tokens + after.decode_tokens - before.decode_tokens;
    assert_int_equal(late.copies - copies, fed > 0);
    return busy;
}

/* Submits, aborts, polls and failures at random times between steps. The first request's prompt takes two
 * steps at least, so that there is something to be filed in the second one. */
static void run(play *p, dice *d) {
    assert_ok(wb_engine_submit(p->engine, ask_request(&p->asks[p->submitted++])));
    bool busy = checked_step(p->engine);
    busy = checked_step(p->engine);
    while (busy || p->submitted < N_ASKS) {
        while (p->submitted < N_ASKS && p->submitted - p->done < MAX_UNFINISHED && pick(d, 0, 2) > 0)
            assert_ok(wb_engine_submit(p->engine, ask_request(&p->asks[p->submitted++])));
        busy = checked_step(p->engine);
        if (pick(d, 0, 19) == 0) abort_one(p, d);
        if (pick(d, 0, 9) == 0) fail_step(p);
        /* As after a step that failed where layers keep state: the next one feeds again what is not filed. */
        if (pick(d, 0, 9) == 0) wb_scheduler_preempt_all(&p->engine->scheduler);
        for (wb_completion *c = NULL; pick(d, 0, 2) == 0 && (c = wb_engine_poll(p->engine));)
            check_completion(p, c);
    }
    for (wb_completion *c; (c = wb_engine_poll(p->engine));) check_completion(p, c);
}

static void play_seed(uint64_t seed) {
    dice d = {seed};
    play *p = take(1, sizeof *p);
    p->late = open_rig(), p->plain = open_rig();
    /* Small enough for chunked prefills and preemptions. */
    p->engine = engine_of(p->late.model, (int32_t)pick(&d, 12, 20), 4, (int32_t)pick(&d, 3, 12), 5);
    make_late(p->late.device, p->engine);
    for (uint32_t i = 0; i < N_ASKS; i++) p->asks[i] = ask_random(&d, i, 61, 20, 24);
    p->asks[0].request.n_tokens = 20;
    run(p, &d);
    assert_int_equal(p->done, N_ASKS);
    assert_true(late.filed_meanwhile > 0);
    assert_int_equal(late.reads, 0); /* nothing else waits for the device */
    wb_engine_close(p->engine);
    rig_close(&p->late);
    rig_close(&p->plain);
    free(p);
}

static uint64_t first_seed = 1, n_seeds = 30;

static void test_late_results_change_no_record(void **state) {
    (void)state;
    for (uint64_t i = 0; i < n_seeds; i++) {
        print_message("seed %" PRIu64 "\n", first_seed + i);
        play_seed(first_seed + i);
    }
}

/* A record that was polled right behind its last step is whole, and stays so when the next steps come. */
static void test_who_polls_has_the_step_filed(void **state) {
    (void)state;
    rig r = open_rig(), plain = open_rig();
    wb_engine *engine = engine_of(r.model, 40, 4, 16, 4);
    make_late(r.device, engine);
    ask a = ask_fixed("first", 5, 1), b = ask_fixed("second", 9, 3);
    wb_completion *alone = run_alone(plain.model, &a);
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    step(engine);
    assert_true(engine->filing.n > 0);
    wb_completion *c = wb_engine_poll(engine);
    assert_non_null(c);
    assert_int_equal(engine->filing.n, 0);
    assert_same(plain.model, alone, c);
    assert_ok(wb_engine_submit(engine, ask_request(&b)));
    run_dry(engine, 10);
    assert_same(plain.model, alone, c);
    wb_completion_free(alone);
    wb_completion_free(c);
    wb_engine_close(engine);
    rig_close(&r);
    rig_close(&plain);
}

int main(int argc, char **argv) {
    if (argc > 1) first_seed = strtoull(argv[1], NULL, 10);
    if (argc > 2) n_seeds = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_late_results_change_no_record),
                                       cmocka_unit_test(test_who_polls_has_the_step_filed)};
    return cmocka_run_group_tests_name("late results", tests, NULL, NULL);
}
