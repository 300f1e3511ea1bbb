/* test_preemption.c - the engine when it is crowded: preemption, chunks, turns, and weights that change under
 * running requests. */
#include "engine.h"
#include "engine_rig.h"

#define N_CROWD 6

static void submit_crowd(wb_engine *engine, ask *crowd) {
    for (uint32_t i = 0; i < N_CROWD; i++) {
        char rid[8];
        snprintf(rid, sizeof rid, "%u", i);
        crowd[i] = ask_fixed(rid, 3 + 2 * i, 14);
        crowd[i].prompt[0] = i;
        crowd[i].request.seed = i;
        assert_ok(wb_engine_submit(engine, ask_request(&crowd[i])));
    }
}

static void poll_crowd(wb_engine *engine, wb_completion **done) {
    for (wb_completion *c = wb_engine_poll(engine); c; c = wb_engine_poll(engine))
        done[atoi(c->record.rid)] = c;
    for (int i = 0; i < N_CROWD; i++) assert_non_null(done[i]);
}

static void test_rule_5_preemption_never_changes_rows(void **state) {
    (void)state;
    rig r = open_rig();
    ask crowd[N_CROWD];
    wb_completion *roomy[N_CROWD] = {NULL}, *tight[N_CROWD] = {NULL};
    wb_engine *engine = engine_of(r.model, 256, 2, 64, N_CROWD);
    submit_crowd(engine, crowd);
    run_dry(engine, 100);
    assert_int_equal(0, wb_engine_get_stats(engine).preemptions);
    poll_crowd(engine, roomy);
    wb_engine_close(engine);

    engine = engine_of(r.model, 13, 2, 64, N_CROWD); /* the longest needs all 13 blocks */
    submit_crowd(engine, crowd);
    run_dry(engine, 2000);
    assert_true(wb_engine_get_stats(engine).preemptions > 0);
    assert_int_equal(13, wb_engine_get_stats(engine).free_blocks);
    poll_crowd(engine, tight);
    for (int i = 0; i < N_CROWD; i++) {
        assert_same(r.model, roomy[i], tight[i]);
        wb_completion_free(roomy[i]);
        wb_completion_free(tight[i]);
    }
    wb_engine_close(engine);
    rig_close(&r);
}

/* What a request had when it was preempted. */
typedef struct snapshot {
    uint32_t i; /* of the crowd */
    uint32_t n_fed, n_tokens, n_new;
    uint8_t *rows;
    uint32_t *tokens;
    float *logprobs;
    size_t row_bytes;
} snapshot;

static snapshot take_snapshot(const wb_sequence *victim) {
    const wb_record *record = &victim->completion.record;
    snapshot s = {.i = (uint32_t)atoi(record->rid),
                  .n_fed = victim->n_fed,
                  .n_tokens = record->n_tokens,
                  .n_new = record->n_tokens - record->prompt_len,
                  .row_bytes = victim->row_bytes};
    assert_true(s.n_fed > 0 && s.n_new > 0);
    s.rows = take(s.n_fed, s.row_bytes);
    s.tokens = take(s.n_tokens, sizeof *s.tokens);
    s.logprobs = take(s.n_new, sizeof *s.logprobs);
    memcpy(s.rows, victim->rows, s.n_fed * s.row_bytes);
    memcpy(s.tokens, victim->tokens, s.n_tokens * sizeof *s.tokens);
    memcpy(s.logprobs, victim->logprobs, s.n_new * sizeof *s.logprobs);
    return s;
}

/* The record begins with what the snapshot had, of version 0, and goes on under version 1. */
static void assert_kept(const snapshot *s, const wb_record *record) {
    assert_memory_equal(s->rows, record->routes[0].ids, s->n_fed * s->row_bytes);
    assert_memory_equal(s->tokens, record->tokens, s->n_tokens * sizeof *s->tokens);
    assert_memory_equal(s->logprobs, record->logprobs, s->n_new * sizeof *s->logprobs);
    assert_int_equal(2, record->n_spans);
    assert_int_equal(0, record->spans[0].start);
    assert_int_equal(s->n_fed, record->spans[0].end);
    assert_int_equal(0, record->spans[0].weight_version);
    assert_int_equal(s->n_fed, record->spans[1].start);
    assert_int_equal(record->n_tokens - 1, record->spans[1].end);
    assert_int_equal(1, record->spans[1].weight_version);
    free(s->rows);
    free(s->tokens);
    free(s->logprobs);
}

/* A preempted request is prefilled again by other weights, in chunks of at most `chunk` tokens: its old
 * rows, logprobs and spans stay as they were. */
static void prefill_again(int32_t chunk) {
    rig r = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    wb_engine *engine = engine_of(r.model, 13, 2, 64, N_CROWD);
    ask crowd[N_CROWD];
    submit_crowd(engine, crowd);
    while (wb_engine_get_stats(engine).preemptions == 0) assert_true(step(engine));
    const wb_sequence *victim = wb_sequence_of(engine->scheduler.first_waiting);
    assert_int_equal(0, victim->entry.n_in_pool);
    const snapshot s = take_snapshot(victim);

    engine->scheduler.max_batch_tokens = chunk;
    assert_ok(wb_engine_set_weights(engine, next.model, 1));
    run_dry(engine, 2000);
    wb_completion *done[N_CROWD] = {NULL};
    poll_crowd(engine, done);
    assert_kept(&s, &done[s.i]->record);
    for (int i = 0; i < N_CROWD; i++) {
        assert_record_good(r.model, done[i]);
        wb_completion_free(done[i]);
    }
    wb_engine_close(engine);
    rig_close(&next);
    rig_close(&r);
}

static void test_rule_5_prefill_again_under_new_weights_changes_nothing(void **state) {
    (void)state;
    prefill_again(64);
    prefill_again(3);
}

static void assert_spans(const wb_record *record, uint32_t n, const wb_span *expected) {
    assert_int_equal(n, record->n_spans);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(expected[i].start, record->spans[i].start);
        assert_int_equal(expected[i].end, record->spans[i].end);
        assert_int_equal(expected[i].weight_version, record->spans[i].weight_version);
    }
}

static void test_rule_6_spans_show_where_weights_changed(void **state) {
    (void)state;
    rig r = open_rig(), old = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    ask a = ask_fixed("spans", 7, 20);
    wb_completion *before = run_alone(old.model, &a);

    wb_engine *engine = engine_of(r.model, 32, 4, 4, 2);
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    for (int i = 0; i < 5; i++) assert_true(step(engine)); /* 4 + 3 of the prompt, 3 decodes: 10 fed */
    assert_ok(wb_engine_set_weights(engine, next.model, 3));
    for (int i = 0; i < 4; i++) assert_true(step(engine)); /* 14 fed */
    assert_ok(wb_engine_set_weights(engine, old.model, 4));
    assert_ok(wb_engine_set_weights(engine, next.model, 5)); /* nothing was fed under 4 */
    run_dry(engine, 100);
    wb_completion *after = wb_engine_poll(engine);
    const wb_span expected[] = {{0, 10, 0}, {10, 14, 3}, {14, 26, 5}};
    assert_spans(&after->record, 3, expected);
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(r.model));
    assert_memory_equal(before->record.routes[0].ids, after->record.routes[0].ids, 10 * row_bytes);
    assert_memory_equal(before->record.tokens, after->record.tokens, 11 * sizeof(uint32_t));
    assert_memory_not_equal(before->record.logprobs, after->record.logprobs, 20 * sizeof(float));
    assert_record_good(r.model, after);
    wb_completion_free(after);

    after = complete(engine, &a); /* what starts now is all version 5 */
    wb_completion *fresh = run_alone(next.model, &a);
    assert_int_equal(1, after->record.n_spans);
    assert_int_equal(5, after->record.spans[0].weight_version);
    assert_memory_equal(fresh->record.logprobs, after->record.logprobs, 20 * sizeof(float));
    wb_completion_free(fresh);
    wb_completion_free(after);
    wb_completion_free(before);
    wb_engine_close(engine);
    rig_close(&next);
    rig_close(&old);
    rig_close(&r);
}

/* Other weights by the name under which a request is answered: its spans could not show the change. */
static void test_rule_6_one_version_names_one_set_of_weights(void **state) {
    (void)state;
    rig r = open_rig(), same = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    ask a = ask_fixed("named", 7, 20);
    wb_completion *alone = run_alone(same.model, &a);
    wb_engine *engine = engine_of(r.model, 32, 4, 16, 2);
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    assert_ok(wb_engine_set_weights(engine, next.model, 0)); /* nothing was fed yet */
    assert_ok(wb_engine_set_weights(engine, same.model, 0));
    for (int i = 0; i < 3; i++) assert_true(step(engine));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_set_weights(engine, next.model, 0));
    assert_message("expected a new version, found 0 for other weights: request named has been fed under it");
    assert_ok(wb_engine_set_weights(engine, same.model, 0));
    run_dry(engine, 100);
    wb_completion *done = wb_engine_poll(engine);
    assert_same(same.model, alone, done);                    /* what was refused changed nothing */
    assert_ok(wb_engine_set_weights(engine, next.model, 0)); /* nobody is being answered */
    wb_completion_free(done);

    /* Nor by the name of an earlier version, with another one in between. */
    ask b = ask_fixed("again", 7, 20);
    assert_ok(wb_engine_submit(engine, ask_request(&b)));
    for (int i = 0; i < 3; i++) assert_true(step(engine));
    assert_ok(wb_engine_set_weights(engine, same.model, 1));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_set_weights(engine, same.model, 0));
    assert_message("expected a new version, found 0 for other weights: request again has been fed under it");
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&next);
    rig_close(&same);
    rig_close(&r);
}

static void test_rule_7_chunked_or_not_the_same_routes(void **state) {
    (void)state;
    rig r = open_rig();
    ask a = ask_fixed("chunks", 23, 5);
    wb_completion *whole = run_alone(r.model, &a);
    for (int32_t chunk = 1; chunk <= 24; chunk++) {
        wb_engine *engine = engine_of(r.model, 10, 3, chunk, 1);
        wb_completion *c = complete(engine, &a);
        assert_same(r.model, whole, c);
        wb_completion_free(c);
        wb_engine_close(engine);
    }
    wb_completion_free(whole);
    rig_close(&r);
}

/* More decodes than a step holds: they take turns, and no one falls behind by more than a turn. */
static void test_decodes_take_turns(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 64, 4, 8, N_CROWD);
    ask crowd[N_CROWD];
    for (uint32_t i = 0; i < N_CROWD; i++) {
        char rid[8];
        snprintf(rid, sizeof rid, "%u", i);
        crowd[i] = ask_fixed(rid, 1, 20);
        assert_ok(wb_engine_submit(engine, ask_request(&crowd[i])));
    }
    assert_true(step(engine));
    assert_int_equal(N_CROWD, wb_engine_get_stats(engine).running);
    engine->scheduler.max_batch_tokens = 4;
    while (engine->scheduler.first) {
        uint32_t min = UINT32_MAX, max = 0;
        for (const wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next) {
            const uint32_t n = entry->record->n_tokens;
            min = n < min ? n : min;
            max = n > max ? n : max;
        }
        assert_true(max - min <= 1);
        step(engine);
    }
    assert_int_equal(N_CROWD, wb_engine_get_stats(engine).prefill_tokens);
    assert_int_equal(N_CROWD * 19, wb_engine_get_stats(engine).decode_tokens);
    wb_completion *done[N_CROWD] = {NULL};
    poll_crowd(engine, done);
    for (int i = 0; i < N_CROWD; i++) wb_completion_free(done[i]);
    wb_engine_close(engine);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_5_preemption_never_changes_rows),
        cmocka_unit_test(test_rule_5_prefill_again_under_new_weights_changes_nothing),
        cmocka_unit_test(test_rule_6_spans_show_where_weights_changed),
        cmocka_unit_test(test_rule_6_one_version_names_one_set_of_weights),
        cmocka_unit_test(test_rule_7_chunked_or_not_the_same_routes),
        cmocka_unit_test(test_decodes_take_turns),
    };
    return cmocka_run_group_tests_name("preemption", tests, NULL, NULL);
}
