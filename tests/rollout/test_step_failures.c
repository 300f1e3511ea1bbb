/* test_step_failures.c - steps that fail: who is named, and what stays as it was. */
#include "engine_rig.h"
#include "wb_check.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

static void test_nan_logits_name_request_and_position(void **state) {
    (void)state;
    rig r = open_rig();
    ask good = ask_fixed("good", 5, 6), bad = ask_fixed("bad", 4, 6);
    good.request.temperature = bad.request.temperature = 0;
    wb_completion *alone = run_alone(r.model, &good);
    uint32_t odd = 0; /* a token that the good request never meets */
    for (uint32_t i = 0; i < alone->record.n_tokens; i++)
        if (alone->record.tokens[i] == odd) {
            odd++;
            i = UINT32_MAX; /* from the start again */
        }
    bad.prompt[3] = odd;
    *embedding_of(r.model, odd) = NAN;

    wb_engine *engine = engine_of(r.model, 16, 4, 16, 4);
    assert_ok(wb_engine_submit(engine, ask_request(&good)));
    assert_true(step(engine));
    assert_ok(wb_engine_submit(engine, ask_request(&bad)));
    for (int i = 0; i < 2; i++) {
        bool busy = true;
        assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_step(engine, &busy));
        assert_message("request bad: token at position 4");
        assert_true(busy);
    }
    assert_ok(wb_engine_abort(engine, "bad"));
    wb_completion *c = wb_engine_poll(engine);
    assert_int_equal(0, c->record.n_routes);
    assert_record_good(r.model, c);
    wb_completion_free(c);
    run_dry(engine, 100);
    c = wb_engine_poll(engine);
    assert_same(r.model, alone, c);
    wb_completion_free(c);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&r);
}

typedef struct rank_job {
    wb_comm *comm;
    wb_status status;
    char message[256];
} rank_job;

static void *step_rank(void *arg) {
    rank_job *job = arg;
    const wb_config c = config();
    rig r = rig_open(&c, 5, 1, job->comm);
    wb_engine *engine = engine_of(r.model, 16, 4, 16, 4);
    if (wb_comm_rank(job->comm) == 1) {
        *embedding_of(r.model, 60) = NAN;
        ask a = ask_fixed("nan", 2, 2);
        a.prompt[1] = 60;
        must(wb_engine_submit(engine, ask_request(&a)), "submit");
    }
    bool busy;
    job->status = wb_engine_step(engine, &busy);
    snprintf(job->message, sizeof job->message, "%s", wb_error_message());
    wb_engine_close(engine);
    wb_model_close(r.model);
    wb_device_close(r.device);
    return NULL;
}

static void test_a_failing_rank_is_named_to_the_others(void **state) {
    (void)state;
    wb_comm *comms[2];
    assert_ok(wb_comm_open_threads(2, comms));
    rank_job jobs[2] = {{.comm = comms[0]}, {.comm = comms[1]}};
    pthread_t thread;
    assert_int_equal(0, pthread_create(&thread, NULL, step_rank, &jobs[1]));
    step_rank(&jobs[0]);
    pthread_join(thread, NULL);
    assert_int_equal(WB_PEER, jobs[0].status);
    assert_non_null(strstr(jobs[0].message, "rank 1"));
    assert_int_equal(WB_INVALID_ARGUMENT, jobs[1].status);
    assert_non_null(strstr(jobs[1].message, "request nan"));
    wb_comm_close(comms[0]);
    wb_comm_close(comms[1]);
}

/* ---- after the sampling -------------------------------------------------------------------------- */

/* Of what a step does to bring its results to the host, the call after calls_left others fails, once;
 * negative: none does. Of this thread's rank. */
static _Thread_local int calls_left = -1;
static _Thread_local bool has_failed;
static _Thread_local wb_start_to_host_fn *device_start_to_host;
static _Thread_local wb_event_wait_fn *device_event_wait;

static bool is_to_fail(void) {
    if (calls_left < 0 || calls_left-- > 0) return false;
    return has_failed = true;
}

static wb_status failing_start_to_host(wb_device *dev, void *host, const void *device, size_t bytes,
                                       void *event) {
    if (is_to_fail()) return wb_fail(WB_DEVICE, "start_to_host: made to fail");
    return device_start_to_host(dev, host, device, bytes, event);
}

static wb_status failing_event_wait(wb_device *dev, void *event) {
    return is_to_fail() ? wb_fail(WB_DEVICE, "event_wait: made to fail") : device_event_wait(dev, event);
}

enum { MASK_PROMPT = 5, MASK_NEW = 9 };

static ask ask_masked(void) {
    ask a = ask_fixed("masked", MASK_PROMPT, MASK_NEW);
    a.request.temperature = 20; /* close to uniform: nearly all tokens are kept */
    a.request.top_p = 0.999f;
    a.request.return_sampling_mask = true;
    return a;
}

static void expect(bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "expected %s; latest failure: %s\n", what, wb_error_message());
    abort(); /* an assert would leave the other rank waiting */
}

/* Each step of one request, in which the copy cannot be started, then does not arrive, until nothing is left
 * to fail. A step that failed changed nothing: the next one feeds the same tokens. With several ranks it is
 * rank 1 that fails. */
static wb_completion *complete_in_spite(wb_comm *comm, int *failures_out) {
    const wb_config c = config();
    rig r = rig_open(&c, 5, 1, comm);
    wb_engine *engine = engine_of(r.model, 12, 4, 8, 4);
    const bool fails = !comm || wb_comm_rank(comm) == 1;
    ask a = ask_masked();
    device_start_to_host = r.device->start_to_host, device_event_wait = r.device->event_wait;
    r.device->start_to_host = failing_start_to_host, r.device->event_wait = failing_event_wait;
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    *failures_out = 0;
    bool busy = true;
    for (int n = 0; busy;) {
        has_failed = false;
        calls_left = fails ? n : -1;
        const wb_status status = wb_engine_step(engine, &busy);
        expect(!fails || status == (has_failed ? WB_DEVICE : WB_OK), "the failure of the device alone");
        expect(fails || status == WB_OK || status == WB_PEER, "the failure of a peer alone");
        if (status == WB_PEER) expect(strstr(wb_error_message(), "rank 1 failed"), "rank 1 named");
        *failures_out += status != WB_OK;
        n = status == WB_OK ? 0 : n + 1;
    }
    wb_completion *done = wb_engine_poll(engine);
    wb_engine_close(engine);
    rig_close(&r);
    return done;
}

static void assert_completes_as_alone(int failures, wb_completion *found) {
    rig r = open_rig();
    ask a = ask_masked();
    wb_completion *alone = run_alone(r.model, &a);
    assert_int_equal(2 * MASK_NEW, failures); /* the start and the wait */
    assert_non_null(found);
    assert_same(r.model, alone, found);
    wb_completion_free(found);
    wb_completion_free(alone);
    rig_close(&r);
}

static void test_a_failed_step_is_repeated(void **state) {
    (void)state;
    int failures;
    wb_completion *found = complete_in_spite(NULL, &failures);
    assert_completes_as_alone(failures, found);
}

typedef struct spite_job {
    wb_comm *comm;
    wb_completion *done;
    int failures;
} spite_job;

static void *complete_rank(void *arg) {
    spite_job *job = arg;
    job->done = complete_in_spite(job->comm, &job->failures);
    return NULL;
}

static void test_rule_30_a_rank_that_fails_after_sampling_leaves_nobody_waiting(void **state) {
    (void)state;
    spite_job jobs[2] = {{0}};
    wb_comm *comms[2];
    pthread_t thread;
    assert_ok(wb_comm_open_threads(2, comms));
    for (int i = 0; i < 2; i++) jobs[i].comm = comms[i];
    alarm(60); /* a hang is a failure */
    assert_int_equal(0, pthread_create(&thread, NULL, complete_rank, &jobs[1]));
    complete_rank(&jobs[0]);
    pthread_join(thread, NULL);
    alarm(0);
    for (int i = 0; i < 2; i++) {
        assert_completes_as_alone(jobs[i].failures, jobs[i].done);
        wb_comm_close(comms[i]);
    }
}

/* ---- while a rank waits for its device ----------------------------------------------------------- */

/* Rank 0's device is one whose stream waits for rank 1, and would for ever; rank 1 gives up after it has
 * sampled. */
static struct {
    int lost; /* calls */
    char why[256];
} stuck;

static wb_status stuck_event_look(wb_device *dev, void *event, bool *come_out) {
    (void)dev, (void)event;
    *come_out = false;
    return WB_OK;
}

static wb_status stuck_event_wait(wb_device *dev, void *event) {
    (void)dev, (void)event;
    expect(stuck.lost == 1, "a wait that was ended");
    return wb_fail(WB_PEER, "event_wait: %s", stuck.why);
}

static void stuck_lose(wb_device *dev, const char *why) {
    (void)dev;
    stuck.lost++;
    snprintf(stuck.why, sizeof stuck.why, "%s", why);
}

static _Thread_local wb_comm *given_up;

static wb_status give_up_instead(wb_device *dev, void *host, const void *device, size_t bytes, void *event) {
    (void)dev, (void)host, (void)device, (void)bytes, (void)event;
    const wb_status status = wb_fail(WB_DEVICE, "start_to_host: made to fail");
    wb_comm_abort(given_up);
    return status;
}

static void *wait_or_give_up(void *arg) {
    rank_job *job = arg;
    const wb_config c = config();
    rig r = rig_open(&c, 5, 1, job->comm);
    wb_engine *engine = engine_of(r.model, 16, 4, 16, 4);
    ask a = ask_fixed("any", 4, 3);
    bool busy = true;
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    given_up = job->comm;
    if (wb_comm_rank(job->comm) == 0)
        r.device->event_look = stuck_event_look, r.device->event_wait = stuck_event_wait,
        r.device->lose = stuck_lose;
    else
        r.device->start_to_host = give_up_instead;
    job->status = wb_engine_step(engine, &busy);
    snprintf(job->message, sizeof job->message, "%s", wb_error_message());
    wb_engine_close(engine);
    rig_close(&r);
    return NULL;
}

static void test_rule_30_a_rank_that_gives_up_is_heard_by_who_waits_for_its_device(void **state) {
    (void)state;
    rank_job jobs[2] = {{0}};
    wb_comm *comms[2];
    pthread_t thread;
    assert_ok(wb_comm_open_threads(2, comms));
    for (int i = 0; i < 2; i++) jobs[i].comm = comms[i];
    alarm(60); /* a hang is a failure */
    assert_int_equal(0, pthread_create(&thread, NULL, wait_or_give_up, &jobs[1]));
    wait_or_give_up(&jobs[0]);
    pthread_join(thread, NULL);
    alarm(0);
    assert_int_equal(WB_PEER, jobs[0].status);
    if (!strstr(jobs[0].message, "rank 1") || !strstr(jobs[0].message, "made to fail"))
        fail_msg("%s", jobs[0].message);
    for (int i = 0; i < 2; i++) wb_comm_close(comms[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nan_logits_name_request_and_position),
        cmocka_unit_test(test_a_failing_rank_is_named_to_the_others),
        cmocka_unit_test(test_a_failed_step_is_repeated),
        cmocka_unit_test(test_rule_30_a_rank_that_fails_after_sampling_leaves_nobody_waiting),
        cmocka_unit_test(test_rule_30_a_rank_that_gives_up_is_heard_by_who_waits_for_its_device),
    };
    return cmocka_run_group_tests_name("step failures", tests, NULL, NULL);
}
