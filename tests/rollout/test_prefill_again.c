/* test_prefill_again.c - a request that was preempted and is fed again, by other weights: it follows the rows
 * that it was answered with, whether the caller asked for them or not. */
#include "engine.h"
#include "engine_rig.h"

#define N_CROWD 6
#define CHUNK 64 /* tokens a step, at first */

/* How a crowd is run: the same requests and steps every time. */
typedef struct variant {
    int32_t chunk; /* tokens a step from the change of weights on */
    bool return_routes;
    bool start_after_prompt; /* routes_start = prompt_len */
    bool change_weights;
} variant;

/* The request that was preempted: what it had then, and what it has at its end. */
typedef struct victim {
    uint32_t n_fed, n_tokens; /* then */
    wb_completion *done;
} victim;

static void submit_crowd(wb_engine *engine, const variant *v, ask *crowd) {
    for (uint32_t i = 0; i < N_CROWD; i++) {
        char rid[8];
        snprintf(rid, sizeof rid, "%u", i);
        crowd[i] = ask_fixed(rid, 3 + 2 * i, 14);
        crowd[i].prompt[0] = i;
        crowd[i].request.seed = i;
        crowd[i].request.return_routes = v->return_routes;
        crowd[i].request.routes_start = v->start_after_prompt ? crowd[i].request.n_tokens : 0;
        assert_ok(wb_engine_submit(engine, ask_request(&crowd[i])));
    }
}

/* Steps until somebody is preempted, changes the weights to those of `next`, version 1, and goes on to the
 * end. */
static victim run_crowd(const variant *v, const wb_model *next) {
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 13, 2, CHUNK, N_CROWD);
    ask crowd[N_CROWD];
    submit_crowd(engine, v, crowd);
    while (wb_engine_get_stats(engine).preemptions == 0) assert_true(step(engine));
    const wb_sequence *preempted = wb_sequence_of(engine->scheduler.first_waiting);
    const char *rid = preempted->completion.record.rid;
    victim found = {.n_fed = preempted->n_fed, .n_tokens = preempted->completion.record.n_tokens};
    const uint32_t number = (uint32_t)atoi(rid);
    assert_true(found.n_fed > 3);

    engine->scheduler.max_batch_tokens = v->chunk;
    if (v->change_weights) assert_ok(wb_engine_set_weights(engine, next, 1));
    run_dry(engine, 2000);
    for (wb_completion *c = wb_engine_poll(engine); c; c = wb_engine_poll(engine)) {
        assert_record_good(r.model, c);
        if ((uint32_t)atoi(c->record.rid) == number)
            found.done = c;
        else
            wb_completion_free(c);
    }
    assert_non_null(found.done);
    assert_true(found.done->record.n_tokens > found.n_tokens);
    wb_engine_close(engine);
    rig_close(&r);
    return found;
}

/* The whole text through a training forward by `model`, forced down the first n_forced rows of the record.
 * logprobs_out [n_tokens - 1]: after each token; ids_out: the rows. */
static void train_along(wb_model *model, const wb_record *record, uint32_t n_forced, float *logprobs_out,
                        uint8_t *ids_out) {
    enum { MAX = 64 };
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(model));
    int32_t tokens[MAX], targets[MAX], seq_start[2] = {0, (int32_t)record->n_tokens - 1};
    uint8_t direction[MAX] = {0};
    assert_true(record->n_tokens <= MAX && record->routes[0].start == 0);
    memcpy(ids_out, record->routes[0].ids, n_forced * row_bytes);
    memset(direction, WB_ROW_FORCED, n_forced);
    for (int32_t t = 0; t < seq_start[1]; t++) {
        tokens[t] = (int32_t)record->tokens[t];
        targets[t] = (int32_t)record->tokens[t + 1];
    }
    const wb_train_batch batch = {
        .T = seq_start[1], .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = seq_start};
    const wb_routing routing = {.ids = ids_out, .direction = direction};
    wb_train *train = NULL;
    assert_ok(wb_train_open(model, NULL, &train));
    assert_ok(wb_train_forward(train, &batch, &routing, NULL, logprobs_out));
    wb_train_close(train);
}

/* What was sampled after the change is what the new weights give over keys and values of the recorded
 * experts; the rows before are those that the answer was made with, and choose otherwise by themselves. */
static void assert_followed_rows(wb_model *next, const victim *found) {
    const wb_record *record = &found->done->record;
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(next));
    float logprobs[64], natively[64];
    uint8_t *ids = take(64, row_bytes), *native = take(64, row_bytes);
    train_along(next, record, found->n_fed, logprobs, ids);
    train_along(next, record, 0, natively, native);
    assert_memory_equal(ids, record->routes[0].ids, (record->n_tokens - 1) * row_bytes);
    const size_t n_new = record->n_tokens - found->n_tokens;
    assert_memory_equal(&logprobs[found->n_tokens - 1],
                        &record->logprobs[found->n_tokens - record->prompt_len], n_new * sizeof(float));
    assert_memory_not_equal(native, ids, found->n_fed * row_bytes);
    assert_memory_not_equal(&logprobs[found->n_tokens - 1], &natively[found->n_tokens - 1],
                            n_new * sizeof(float));
    free(ids);
    free(native);
}

static void test_rule_36_a_prefill_again_follows_the_rows_of_the_answer(void **state) {
    (void)state;
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    const int32_t chunks[] = {CHUNK, 3, 1};
    for (size_t i = 0; i < 3; i++) {
        const victim found = run_crowd(
            &(variant){.chunk = chunks[i], .return_routes = true, .change_weights = true}, next.model);
        assert_int_equal(2, found.done->record.n_spans);
        assert_int_equal(found.n_fed, found.done->record.spans[0].end);
        assert_followed_rows(next.model, &found);
        wb_completion_free(found.done);
    }
    rig_close(&next);
}

/* Rows that the caller does not want are followed all the same. */
static void test_rule_36_rows_that_are_not_returned_are_followed_too(void **state) {
    (void)state;
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    const victim all =
        run_crowd(&(variant){.chunk = CHUNK, .return_routes = true, .change_weights = true}, next.model);
    const victim none =
        run_crowd(&(variant){.chunk = CHUNK, .return_routes = false, .change_weights = true}, next.model);
    const victim some = run_crowd(
        &(variant){.chunk = CHUNK, .return_routes = true, .start_after_prompt = true, .change_weights = true},
        next.model);
    const wb_record *expected = &all.done->record;
    const wb_completion *const others[] = {none.done, some.done};
    for (size_t i = 0; i < 2; i++) {
        const wb_record *record = &others[i]->record;
        assert_int_equal(expected->n_tokens, record->n_tokens);
        assert_memory_equal(expected->tokens, record->tokens, expected->n_tokens * sizeof(uint32_t));
        assert_memory_equal(expected->logprobs, record->logprobs,
                            (expected->n_tokens - expected->prompt_len) * sizeof(float));
    }
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(next.model));
    assert_int_equal(0, none.done->record.n_routes);
    assert_int_equal(expected->prompt_len, some.done->record.routes[0].start);
    assert_int_equal(expected->n_tokens - 1 - expected->prompt_len, some.done->record.routes[0].rows);
    assert_memory_equal((const uint8_t *)expected->routes[0].ids + expected->prompt_len * row_bytes,
                        some.done->record.routes[0].ids, some.done->record.routes[0].rows * row_bytes);
    wb_completion_free(all.done);
    wb_completion_free(none.done);
    wb_completion_free(some.done);
    rig_close(&next);
}

/* By the same weights a row that is followed is the row that would be chosen. */
static void test_rule_5_a_prefill_again_by_the_same_weights_gives_the_same_bits(void **state) {
    (void)state;
    rig r = open_rig();
    const victim found = run_crowd(&(variant){.chunk = CHUNK, .return_routes = true}, NULL);
    ask a = ask_fixed(found.done->record.rid, found.done->record.prompt_len, 14);
    memcpy(a.prompt, found.done->record.tokens, found.done->record.prompt_len * sizeof(uint32_t));
    a.request.seed = (uint64_t)atoi(a.rid);
    wb_completion *alone = run_alone(r.model, &a);
    assert_same(r.model, alone, found.done);
    wb_completion_free(alone);
    wb_completion_free(found.done);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_36_a_prefill_again_follows_the_rows_of_the_answer),
        cmocka_unit_test(test_rule_36_rows_that_are_not_returned_are_followed_too),
        cmocka_unit_test(test_rule_5_a_prefill_again_by_the_same_weights_gives_the_same_bits),
    };
    return cmocka_run_group_tests_name("prefill again", tests, NULL, NULL);
}
