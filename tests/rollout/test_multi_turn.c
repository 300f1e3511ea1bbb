/* test_multi_turn.c - requests that go on from an earlier record: what they follow, what they return of it,
 * and which records they refuse. */
#include "engine.h"
#include "engine_rig.h"

static wb_engine *engine_with_cache(wb_model *model, bool prefix_cache) {
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 40;
    options.block_size = 4;
    options.prefix_cache = prefix_cache;
    wb_engine *engine = NULL;
    assert_ok(wb_engine_open(model, &options, &engine));
    return engine;
}

/* The record's tokens, then those of `a`. */
static ask ask_going_on(const char *rid, const wb_record *record, uint32_t n_tokens, uint32_t max_tokens) {
    ask a = ask_fixed(rid, n_tokens, max_tokens);
    a.request.continues = record;
    a.request.routes_start = record->n_tokens - 1;
    return a;
}

/* One request whose prompt is the whole text up to `record`'s sampled tokens. */
static void assert_as_in_one_go(wb_model *model, const wb_record *record, uint64_t seed) {
    ask a = ask_fixed(record->rid, record->prompt_len, record->n_tokens - record->prompt_len);
    memcpy(a.prompt, record->tokens, record->prompt_len * sizeof *a.prompt);
    a.request.seed = seed;
    a.request.routes_start = record->routes[0].start;
    wb_completion *alone = run_alone(model, &a);
    const wb_completion found = {*record};
    assert_same(model, alone, &found);
    wb_completion_free(alone);
}

static void test_rule_12_a_turn_returns_the_rows_that_are_new(void **state) {
    (void)state;
    rig r = open_rig();
    for (int cache = 0; cache < 2; cache++) {
        wb_engine *engine = engine_with_cache(r.model, cache);
        ask a = ask_fixed("turn 1", 9, 5);
        wb_completion *first = complete(engine, &a);
        ask b = ask_going_on("turn 2", &first->record, 4, 6);
        wb_completion *second = complete(engine, &b);
        assert_int_equal(9 + 5 + 4, second->record.prompt_len);
        /* The last token of the first turn was never fed there: the row is new. */
        assert_int_equal(13, second->record.routes[0].start);
        assert_int_equal(23 - 13, second->record.routes[0].rows);
        assert_int_equal(1, second->record.n_spans);
        assert_as_in_one_go(r.model, &second->record, b.request.seed);
        assert_int_equal(cache ? 12 : 0, wb_engine_get_stats(engine).taken_over_tokens);

        /* Rows of both turns, in a run each, are one record. */
        const wb_route_rows runs[2] = {first->record.routes[0], second->record.routes[0]};
        wb_record whole = second->record;
        whole.n_routes = 2;
        whole.routes = runs;
        assert_ok(wb_record_check(wb_model_routes(r.model), &whole, true));
        ask c = ask_going_on("turn 3", &whole, 0, 3);
        c.request.routes_start = 0;
        wb_completion *third = complete(engine, &c);
        assert_int_equal(26, third->record.routes[0].rows);
        assert_as_in_one_go(r.model, &third->record, c.request.seed);
        wb_completion_free(third);
        wb_completion_free(second);
        wb_completion_free(first);
        wb_engine_close(engine);
    }
    rig_close(&r);
}

/* Partial rollouts: what was aborted goes on as if nothing had happened, by the same weights. */
static void test_what_was_aborted_goes_on(void **state) {
    (void)state;
    rig r = open_rig();
    ask a = ask_fixed("part", 9, 12), whole_ask = ask_fixed("rest", 9, 12);
    wb_completion *whole = run_alone(r.model, &whole_ask);
    for (int steps = 0; steps < 12; steps++) {
        wb_engine *engine = engine_with_cache(r.model, false);
        engine->scheduler.max_batch_tokens = 4; /* the prompt takes three steps */
        assert_ok(wb_engine_submit(engine, ask_request(&a)));
        for (int i = 0; i < steps; i++) assert_true(step(engine));
        assert_ok(wb_engine_abort(engine, "part"));
        wb_completion *part = wb_engine_poll(engine);
        const wb_record *record = &part->record;
        ask b = ask_going_on("rest", record, 0, 12 - (record->n_tokens - record->prompt_len));
        b.request.routes_start = 0;
        wb_completion *rest = complete(engine, &b);
        assert_int_equal(21, rest->record.n_tokens);
        assert_memory_equal(whole->record.tokens, rest->record.tokens, 21 * sizeof(uint32_t));
        assert_int_equal(20, rest->record.routes[0].rows);
        assert_memory_equal(whole->record.routes[0].ids, rest->record.routes[0].ids,
                            20 * wb_route_row_bytes(wb_model_routes(r.model)));
        const uint32_t had = record->n_tokens - record->prompt_len;
        assert_memory_equal(whole->record.logprobs + had, rest->record.logprobs, (12 - had) * sizeof(float));
        wb_completion_free(rest);
        wb_completion_free(part);
        wb_engine_close(engine);
    }
    wb_completion_free(whole);
    rig_close(&r);
}

/* Under new weights the earlier rows are followed: the keys are theirs, as after a preemption. */
static void test_rule_36_a_turn_under_new_weights_follows_the_earlier_rows(void **state) {
    (void)state;
    rig r = open_rig(), same = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(r.model));
    ask a = ask_fixed("a", 9, 14), part = ask_fixed("a", 9, 5);

    /* One request that is preempted when its weights change ... */
    wb_engine *engine = engine_with_cache(r.model, false);
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    for (int i = 0; i < 5; i++) assert_true(step(engine)); /* 13 tokens fed, 14 there */
    assert_ok(wb_engine_set_weights(engine, next.model, 1));
    wb_scheduler_preempt_all(&engine->scheduler);
    run_dry(engine, 100);
    wb_completion *preempted = wb_engine_poll(engine);
    wb_engine_close(engine);

    /* ... and one that ends there and goes on by the new weights, with a cache that knows nothing of use. */
    engine = engine_with_cache(same.model, true);
    wb_completion *first = complete(engine, &part);
    assert_ok(wb_engine_set_weights(engine, next.model, 1));
    ask other = ask_fixed("other", 9, 5), b = ask_going_on("a", &first->record, 0, 9);
    wb_completion_free(complete(engine, &other));
    b.request.routes_start = 0;
    wb_completion *second = complete(engine, &b);
    assert_int_equal(0, wb_engine_get_stats(engine).taken_over_tokens);
    assert_int_equal(2, second->record.n_spans);
    assert_int_equal(13, second->record.spans[1].start);
    assert_memory_equal(preempted->record.tokens, second->record.tokens, 23 * sizeof(uint32_t));
    assert_memory_equal(preempted->record.logprobs + 5, second->record.logprobs, 9 * sizeof(float));
    assert_memory_equal(preempted->record.routes[0].ids, second->record.routes[0].ids, 22 * row_bytes);
    assert_memory_equal(first->record.routes[0].ids, second->record.routes[0].ids, 13 * row_bytes);
    wb_completion_free(second);
    wb_completion_free(first);
    wb_completion_free(preempted);
    wb_engine_close(engine);
    rig_close(&next);
    rig_close(&same);
    rig_close(&r);
}

static void test_rule_13_records_that_lack_something_are_refused(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_with_cache(r.model, false);
    ask a = ask_fixed("a", 9, 5);
    wb_completion *first = complete(engine, &a);
    wb_record record = first->record;
    ask b = ask_going_on("b", &record, 1, 3);

    wb_route_rows rows = first->record.routes[0];
    const uint8_t valid[] = {0xff, 0xef};
    rows.valid = valid;
    record.routes = &rows;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&b)));
    assert_message(
        "request b: it continues a: expected the rows of all 13 tokens that were fed, found none at "
        "position 12");
    record.routes = first->record.routes;

    const wb_span gap[] = {{0, 4, 0}, {5, 13, 0}}, long_one = {0, 14, 0};
    record.spans = gap;
    record.n_spans = 2;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&b)));
    assert_message("request b: it continues a: expected a span from position 4 on, found one from 5");
    record.spans = &long_one;
    record.n_spans = 1;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&b)));
    assert_message("expected spans of at most its 14 tokens but the last, found them up to 14");
    record.spans = first->record.spans;

    b.request.max_tokens = 160 - 15 + 1;
    assert_int_equal(WB_CAPACITY, wb_engine_submit(engine, ask_request(&b)));
    assert_message(
        "request b: 15 prompt tokens and 146 new ones: expected at most the model's 160 positions");
    b.request.max_tokens = 3;
    wb_completion_free(complete(engine, &b));
    wb_completion_free(first);
    wb_engine_close(engine);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_12_a_turn_returns_the_rows_that_are_new),
        cmocka_unit_test(test_what_was_aborted_goes_on),
        cmocka_unit_test(test_rule_36_a_turn_under_new_weights_follows_the_earlier_rows),
        cmocka_unit_test(test_rule_13_records_that_lack_something_are_refused),
    };
    return cmocka_run_group_tests_name("multi turn", tests, NULL, NULL);
}
