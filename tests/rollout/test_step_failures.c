/* test_step_failures.c - steps that fail: who is named, and what stays as it was. */
#include "engine_rig.h"

#include <math.h>
#include <pthread.h>

/* Makes the embedding of `token` NaN: who has it in the prompt gets NaN logits. */
static void poison(wb_model *model, uint32_t token) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor tensor = wb_model_tensor(model, i);
        if (strcmp(tensor.name, "model.embed_tokens.weight") != 0) continue;
        ((float *)tensor.data)[(int64_t)token * tensor.shape[1]] = NAN;
        return;
    }
    fail_msg("no embedding");
}

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
    poison(r.model, odd);

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
        poison(r.model, 60);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nan_logits_name_request_and_position),
        cmocka_unit_test(test_a_failing_rank_is_named_to_the_others),
    };
    return cmocka_run_group_tests_name("step failures", tests, NULL, NULL);
}
