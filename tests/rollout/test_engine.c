/* test_engine.c - what comes out of the engine: rows, tokens, logprobs, finish reasons. That what it captures
 * is what training chooses is test_capture.c's. */
#include "engine.h"
#include "engine_rig.h"

#include <math.h>

static void test_rule_4_n_minus_1_rows(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 32, 4, 5, 4);
    for (uint32_t n = 1; n < 12; n += 3) {
        ask a = ask_fixed("rows", n, n);
        a.request.group = 77;
        a.request.sample = n;
        wb_completion *c = complete(engine, &a);
        assert_record_good(r.model, c);
        assert_int_equal(WB_FINISH_LENGTH, c->record.finish);
        assert_int_equal(77, c->record.group);
        assert_int_equal(n, c->record.sample);
        assert_int_equal(n, c->record.prompt_len);
        assert_int_equal(2 * n, c->record.n_tokens);
        assert_memory_equal(a.prompt, c->record.tokens, n * sizeof(uint32_t));
        assert_int_equal(1, c->record.n_routes);
        assert_int_equal(0, c->record.routes[0].start);
        assert_int_equal(2 * n - 1, c->record.routes[0].rows);
        assert_non_null(wb_record_row(wb_model_routes(r.model), &c->record, 2 * n - 2));
        assert_null(wb_record_row(wb_model_routes(r.model), &c->record, 2 * n - 1));
        wb_completion_free(c);
    }
    wb_engine_close(engine);
    rig_close(&r);
}

static void test_rule_9_only_moe_layers_have_rows(void **state) {
    (void)state;
    rig r = open_rig(); /* layer 1 of 3 is dense */
    assert_int_equal(2, wb_model_routes(r.model)->n_moe_layers);
    assert_int_equal(2 * 3, wb_route_row_bytes(wb_model_routes(r.model)));
    rig_close(&r);
}

static void test_rule_12_routes_start_and_return_routes(void **state) {
    (void)state;
    rig r = open_rig();
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(r.model));
    wb_engine *engine = engine_of(r.model, 32, 4, 3, 4);
    ask a = ask_fixed("on demand", 9, 6);
    wb_completion *all = complete(engine, &a);
    for (uint32_t start = 0; start <= 9; start++) {
        a.request.routes_start = start;
        wb_completion *c = complete(engine, &a);
        assert_int_equal(start, c->record.routes[0].start);
        assert_int_equal(14 - start, c->record.routes[0].rows);
        const uint8_t *expected = (const uint8_t *)all->record.routes[0].ids + start * row_bytes;
        assert_memory_equal(expected, c->record.routes[0].ids, (14 - start) * row_bytes);
        assert_record_good(r.model, c);
        wb_completion_free(c);
    }
    a.request.routes_start = 0;
    a.request.return_routes = false;
    wb_completion *none = complete(engine, &a);
    assert_int_equal(0, none->record.n_routes);
    assert_null(none->record.routes);
    assert_memory_equal(all->record.tokens, none->record.tokens, 15 * sizeof(uint32_t));
    wb_completion_free(none);

    a.request.max_tokens = 1;
    a.request.return_routes = true;
    a.request.routes_start = 9; /* the only new token is never fed: nothing is left to return */
    none = complete(engine, &a);
    assert_int_equal(0, none->record.n_routes);
    assert_record_good(r.model, none);
    wb_completion_free(none);
    wb_completion_free(all);
    wb_engine_close(engine);
    rig_close(&r);
}

static void test_greedy_is_the_argmax_of_the_training_logits(void **state) {
    (void)state;
    rig r = open_rig();
    ask a = ask_fixed("greedy", 6, 10);
    a.request.temperature = 0;
    wb_completion *c = run_alone(r.model, &a);
    int32_t tokens[16], targets[16];
    const int32_t seq_start[] = {0, 16};
    for (int i = 0; i < 16; i++) tokens[i] = targets[i] = (int32_t)c->record.tokens[i];
    uint8_t ids[16 * 6];
    float logprobs[16], logits[16 * 61];
    wb_train *train = NULL;
    assert_ok(wb_train_open(r.model, NULL, &train));
    const wb_train_batch batch = {
        .T = 16, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = seq_start};
    assert_ok(wb_train_forward(train, &batch, &(wb_routing){.ids = ids}, NULL, logprobs));
    assert_ok(wb_train_logits(train, logits));
    for (int t = 5; t < 15; t++) {
        uint32_t best = 0;
        for (uint32_t v = 1; v < 61; v++)
            if (logits[t * 61 + (int)v] > logits[t * 61 + (int)best]) best = v;
        assert_int_equal(best, c->record.tokens[t + 1]);
        assert_true(c->record.sampling_logprobs[t - 5] == 0.0f);
    }
    wb_train_close(train);

    /* One candidate is greedy too, whatever the temperature. */
    a.request.temperature = 1.5f;
    a.request.top_k = 1;
    wb_completion *one = run_alone(r.model, &a);
    assert_memory_equal(c->record.tokens, one->record.tokens, 16 * sizeof(uint32_t));
    wb_completion_free(one);
    a.request.top_k = 0;
    a.request.top_p = 1e-6f;
    one = run_alone(r.model, &a);
    assert_memory_equal(c->record.tokens, one->record.tokens, 16 * sizeof(uint32_t));
    wb_completion_free(one);
    wb_completion_free(c);
    rig_close(&r);
}

static void test_seeds_decide_and_logprobs_have_two_meanings(void **state) {
    (void)state;
    rig r = open_rig();
    ask a = ask_fixed("seeded", 5, 40);
    a.request.seed = 1;
    wb_completion *one = run_alone(r.model, &a), *again = run_alone(r.model, &a);
    assert_same(r.model, one, again);
    /* Temperature 1, no limits: both are of the same distribution, and the same bits. */
    assert_memory_equal(one->record.logprobs, one->record.sampling_logprobs, 40 * sizeof(float));
    a.request.seed = 2;
    wb_completion *two = run_alone(r.model, &a);
    assert_memory_not_equal(one->record.tokens, two->record.tokens, 45 * sizeof(uint32_t));
    a.request.temperature = 0.5f;
    wb_completion *sharp = run_alone(r.model, &a);
    float largest = 0;
    for (int i = 0; i < 40; i++)
        largest = fmaxf(largest, fabsf(sharp->record.logprobs[i] - sharp->record.sampling_logprobs[i]));
    assert_true(largest > 1e-3f);
    wb_completion_free(one);
    wb_completion_free(again);
    wb_completion_free(two);
    wb_completion_free(sharp);
    rig_close(&r);
}

static void test_uniform_numbers(void **state) {
    (void)state;
    double sum = 0, products = 0;
    int tenths[10] = {0};
    const int n = 100000;
    for (int i = 0; i < n; i++) {
        const float u = wb_sampling_uniform((uint64_t)(i / 1000), (uint32_t)(i % 1000));
        assert_true(u >= 0 && u < 1);
        sum += (double)u;
        products += (double)u * (double)wb_sampling_uniform((uint64_t)(i / 1000) + 1, (uint32_t)(i % 1000));
        tenths[(int)(u * 10)]++;
    }
    assert_true(fabs(sum / n - 0.5) <= 0.005);       /* 5 sigma */
    assert_true(fabs(products / n - 0.25) <= 0.004); /* neighbouring seeds are independent */
    for (int i = 0; i < 10; i++) assert_true(abs(tenths[i] - n / 10) <= 500);
    assert_true(wb_sampling_uniform(1, 2) != wb_sampling_uniform(2, 1));
}

/* A token that is not among tokens[n]. */
static uint32_t token_without(uint32_t n, const uint32_t *tokens) {
    uint32_t other = 0;
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] == other) {
            other++;
            i = UINT32_MAX; /* from the start again */
        }
    return other;
}

/* Any of several stop tokens, whichever is sampled first. */
static void test_stop_token_is_the_last(void **state) {
    (void)state;
    rig r = open_rig();
    ask a = ask_fixed("stopped", 5, 30);
    wb_completion *free_run = run_alone(r.model, &a);
    const uint32_t *tokens = free_run->record.tokens;
    uint32_t end = 5 + 8;
    for (uint32_t t = 5; t < end; t++)
        if (tokens[t] == tokens[end]) end = t;
    a.request.n_stop = 2;
    for (int place = 0; place < 2; place++) {
        a.stop[place] = tokens[end];
        a.stop[1 - place] = token_without(end + 1, tokens);
        wb_completion *c = run_alone(r.model, &a);
        assert_int_equal(WB_FINISH_STOP, c->record.finish);
        assert_int_equal(end + 1, c->record.n_tokens);
        assert_memory_equal(tokens, c->record.tokens, (end + 1) * sizeof(uint32_t));
        assert_int_equal(end, c->record.routes[0].rows);
        assert_record_good(r.model, c);
        wb_completion_free(c);
    }
    a.request.max_tokens = end + 1 - 5; /* both at once: the stop token wins */
    wb_completion *c = run_alone(r.model, &a);
    assert_int_equal(WB_FINISH_STOP, c->record.finish);
    wb_completion_free(c);
    wb_completion_free(free_run);
    rig_close(&r);
}

/* An engine with room for one running request, and its model. */
typedef struct narrow_engine {
    rig r;
    wb_engine *engine;
} narrow_engine;

static narrow_engine open_narrow(void) {
    narrow_engine n = {.r = open_rig()};
    n.engine = engine_of(n.r.model, 16, 4, 4, 1);
    return n;
}

static void close_narrow(narrow_engine *n) {
    const wb_engine_stats stats = wb_engine_get_stats(n->engine);
    assert_int_equal(16, stats.free_blocks);
    assert_int_equal(0, stats.running + stats.waiting);
    wb_engine_close(n->engine);
    rig_close(&n->r);
}

/* The aborted request, to be freed. */
static wb_completion *abort_request(narrow_engine *n, const char *rid) {
    assert_ok(wb_engine_abort(n->engine, rid));
    assert_ok(wb_engine_abort(n->engine, rid)); /* it has ended: nothing to do */
    wb_completion *c = wb_engine_poll(n->engine);
    assert_string_equal(rid, c->record.rid);
    assert_int_equal(WB_FINISH_ABORT, c->record.finish);
    assert_record_good(n->r.model, c);
    return c;
}

static void test_abort_of_a_waiting_and_a_running_request(void **state) {
    (void)state;
    narrow_engine n = open_narrow();
    ask running = ask_fixed("running", 3, 20), waiting = ask_fixed("waiting", 6, 5);
    assert_ok(wb_engine_submit(n.engine, ask_request(&running)));
    assert_ok(wb_engine_submit(n.engine, ask_request(&waiting)));
    assert_int_equal(WB_NOT_FOUND, wb_engine_abort(n.engine, "nobody"));
    assert_message("nobody");
    assert_int_equal(WB_NOT_FOUND, wb_engine_abort(n.engine, NULL));
    for (int i = 0; i < 4; i++) assert_true(step(n.engine));

    wb_completion *c = abort_request(&n, "waiting");
    assert_int_equal(6, c->record.n_tokens);
    assert_int_equal(0, c->record.n_routes);
    assert_int_equal(0, c->record.n_spans);
    assert_null(c->record.logprobs);
    wb_completion_free(c);

    c = abort_request(&n, "running");
    assert_int_equal(3 + 4, c->record.n_tokens);
    assert_int_equal(6, c->record.routes[0].rows);
    assert_int_equal(6, c->record.spans[0].end);
    wb_completion_free(c);
    close_narrow(&n);
}

static void test_abort_in_the_middle_of_a_prefill(void **state) {
    (void)state;
    narrow_engine n = open_narrow();
    ask partial = ask_fixed("partial", 10, 5);
    assert_ok(wb_engine_submit(n.engine, ask_request(&partial))); /* chunks of 4 */
    assert_true(step(n.engine));
    assert_true(step(n.engine));
    wb_completion *c = abort_request(&n, "partial");
    assert_false(step(n.engine));
    assert_int_equal(10, c->record.n_tokens);
    assert_int_equal(8, c->record.routes[0].rows);
    wb_completion_free(c);
    close_narrow(&n);
}

static void test_close_drops_unfinished_and_leaves_polled(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 16, 4, 8, 1);
    ask a = ask_fixed("a", 3, 2), b = ask_fixed("b", 3, 9), c = ask_fixed("c", 3, 9);
    wb_completion *done = complete(engine, &a);
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    run_dry(engine, 100);
    assert_ok(wb_engine_submit(engine, ask_request(&b)));
    assert_ok(wb_engine_submit(engine, ask_request(&c)));
    assert_true(step(engine));
    wb_engine_close(engine); /* one finished, one running, one waiting */
    assert_record_good(r.model, done);
    wb_completion_free(done);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_4_n_minus_1_rows),
        cmocka_unit_test(test_rule_9_only_moe_layers_have_rows),
        cmocka_unit_test(test_rule_12_routes_start_and_return_routes),
        cmocka_unit_test(test_greedy_is_the_argmax_of_the_training_logits),
        cmocka_unit_test(test_seeds_decide_and_logprobs_have_two_meanings),
        cmocka_unit_test(test_uniform_numbers),
        cmocka_unit_test(test_stop_token_is_the_last),
        cmocka_unit_test(test_abort_of_a_waiting_and_a_running_request),
        cmocka_unit_test(test_abort_in_the_middle_of_a_prefill),
        cmocka_unit_test(test_close_drops_unfinished_and_leaves_polled),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
