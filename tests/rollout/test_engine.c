/* test_engine.c - the engine by its rules: requests in and out, scheduling, preemption, weight versions,
 * failures. That what it captures is what training chooses is test_capture.c's. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine.h"
#include "engine_fixture.h"

#define assert_ok(call) assert_int_equal(WB_OK, call)
#define assert_message(text) assert_non_null(strstr(wb_error_message(), text))

static wb_config config(void) {
    return tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, 3, 2);
}

static rig open_rig(void) {
    const wb_config c = config();
    return rig_open(&c, 5, 1, NULL);
}

static bool step(wb_engine *engine) {
    bool busy = false;
    assert_ok(wb_engine_step(engine, &busy));
    return busy;
}

static wb_completion *complete(wb_engine *engine, ask *a) {
    assert_ok(wb_engine_submit(engine, ask_request(a)));
    run_dry(engine, 5000);
    wb_completion *c = wb_engine_poll(engine);
    assert_non_null(c);
    assert_string_equal(a->rid, c->record.rid);
    return c;
}

static void assert_same(wb_model *model, const wb_completion *expected, const wb_completion *found) {
    const char *what = difference(wb_model_routes(model), expected, found);
    if (what) fail_msg("request %s: %s differ", expected->record.rid, what);
}

static void assert_record_good(wb_model *model, const wb_completion *c) {
    assert_ok(wb_record_check(wb_model_routes(model), &c->record, true));
}

/* ---- what submit refuses ------------------------------------------------------------------------- */

static void test_options_below_one_are_named(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = (void *)&r;
    wb_engine_options options = wb_engine_options_default();
    assert_int_equal(1024, options.n_blocks);
    int32_t *const fields[] = {&options.n_blocks, &options.block_size, &options.max_batch_tokens,
                               &options.max_running};
    const char *const names[] = {"n_blocks", "block_size", "max_batch_tokens", "max_running"};
    for (int i = 0; i < 4; i++) {
        options = wb_engine_options_default();
        *fields[i] = 0;
        assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_open(r.model, &options, &engine));
        assert_message(names[i]);
        assert_ptr_equal(&r, engine);
    }
    options = wb_engine_options_default();
    options.size = 0;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_open(r.model, &options, &engine));
    assert_message("engine: options of 0 bytes");
    assert_ptr_equal(&r, engine);
    assert_ok(wb_engine_open(r.model, NULL, &engine));
    assert_int_equal(1024, wb_engine_get_stats(engine).free_blocks);
    wb_engine_close(engine);
    rig_close(&r);
}

static void assert_refused(wb_engine *engine, wb_status status, const char *text, const wb_request *request) {
    assert_int_equal(status, wb_engine_submit(engine, request));
    assert_message(text);
    assert_int_equal(0, wb_engine_get_stats(engine).waiting);
}

static void test_bad_requests_are_refused_by_name(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 16, 4, 8, 4);
    ask a = ask_fixed("bad", 4, 4);
    const wb_request good = *ask_request(&a);
    const uint32_t outside[] = {1, 61};
    char long_rid[1100];
    memset(long_rid, 'x', sizeof long_rid);
    long_rid[sizeof long_rid - 1] = '\0';
    const wb_status invalid = WB_INVALID_ARGUMENT;
#define REFUSED(text, ...)                           \
    do {                                             \
        wb_request bad = good;                       \
        __VA_ARGS__;                                 \
        assert_refused(engine, invalid, text, &bad); \
    } while (0)
    REFUSED("request: options of 0 bytes", bad.size = 0);
    REFUSED("rid", bad.rid = NULL);
    REFUSED("rid", bad.rid = "");
    REFUSED("rid", bad.rid = long_rid);
    REFUSED("rid", bad.rid = "\xff\xfe");
    REFUSED("prompt has no token", bad.n_tokens = 0);
    REFUSED("found NULL", bad.tokens = NULL);
    REFUSED("prompt tokens[1]: expected below the vocabulary's 61, found 61", bad.tokens = outside;
            bad.n_tokens = 2);
    REFUSED("stop_tokens[1]", bad.stop_tokens = outside; bad.n_stop = 2);
    REFUSED("stop_tokens", bad.stop_tokens = NULL; bad.n_stop = 1);
    REFUSED("temperature", bad.temperature = -1);
    REFUSED("temperature", bad.temperature = NAN);
    REFUSED("temperature", bad.temperature = 1e-38f);
    REFUSED("temperature", bad.temperature = INFINITY);
    REFUSED("top_k", bad.top_k = -1);
    REFUSED("top_p", bad.top_p = 0);
    REFUSED("top_p", bad.top_p = 1.5f);
    REFUSED("top_p", bad.top_p = NAN);
    REFUSED("max_tokens", bad.max_tokens = 0);
    REFUSED("routes_start", bad.routes_start = 5);
#undef REFUSED
    wb_engine_close(engine);
    rig_close(&r);
}

static void test_capacity_names_the_numbers(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 4, 4, 8, 4);
    ask a = ask_fixed("long", 18, 4);
    assert_refused(engine, WB_CAPACITY, "18 prompt tokens and 4 new ones", ask_request(&a));
    assert_message("KV pool's 4 blocks of 4 tokens, found 6 blocks for 21 tokens");
    a = ask_fixed("long", 10, 151);
    assert_refused(engine, WB_CAPACITY, "model's 160 positions, found 161", ask_request(&a));
    a = ask_fixed("long", 10, UINT32_MAX);
    assert_refused(engine, WB_CAPACITY, "found 4294967305", ask_request(&a));

    a = ask_fixed("fits", 10, 7); /* feeds 16 tokens: all of the pool */
    wb_completion *c = complete(engine, &a);
    assert_int_equal(17, c->record.n_tokens);
    wb_completion_free(c);
    a = ask_fixed("long", 10, 8);
    assert_refused(engine, WB_CAPACITY, "5 blocks for 17 tokens", ask_request(&a));
    wb_engine_close(engine);
    rig_close(&r);
}

static void test_rid_is_in_use_until_polled(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 16, 4, 8, 4);
    ask a = ask_fixed("same", 3, 2);
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&a)));
    assert_message("request same: this rid is in use");
    run_dry(engine, 100);
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&a)));
    wb_completion_free(wb_engine_poll(engine));
    wb_completion_free(complete(engine, &a));
    wb_completion_free(NULL);
    assert_null(wb_engine_poll(engine));
    wb_engine_close(engine);
    wb_engine_close(NULL);
    rig_close(&r);
}

/* ---- what comes out ------------------------------------------------------------------------------ */

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
    assert_ok(wb_train_open(r.model, &train));
    const wb_train_batch batch = {16, tokens, targets, 1, seq_start};
    assert_ok(wb_train_forward(train, &batch, &(wb_routing){.ids = ids}, NULL, logprobs));
    assert_ok(wb_train_logits(train, logits));
    for (int t = 5; t < 15; t++) {
        uint32_t best = 0;
        for (uint32_t v = 1; v < 61; v++)
            if (logits[t * 61 + (int)v] > logits[t * 61 + (int)best]) best = v;
        assert_int_equal(best, c->record.tokens[t + 1]);
        assert_true(c->sampling_logprobs[t - 5] == 0.0f);
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
    for (int i = 0; i < 40; i++) /* temperature 1, no limits: both are of the same distribution */
        assert_true(fabsf(one->record.logprobs[i] - one->sampling_logprobs[i]) <= 1e-4f);
    a.request.seed = 2;
    wb_completion *two = run_alone(r.model, &a);
    assert_memory_not_equal(one->record.tokens, two->record.tokens, 45 * sizeof(uint32_t));
    a.request.temperature = 0.5f;
    wb_completion *sharp = run_alone(r.model, &a);
    float largest = 0;
    for (int i = 0; i < 40; i++)
        largest = fmaxf(largest, fabsf(sharp->record.logprobs[i] - sharp->sampling_logprobs[i]));
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
    a.stop[0] = a.stop[1] = tokens[end];
    wb_completion *c = run_alone(r.model, &a);
    assert_int_equal(WB_FINISH_STOP, c->record.finish);
    assert_int_equal(end + 1, c->record.n_tokens);
    assert_memory_equal(tokens, c->record.tokens, (end + 1) * sizeof(uint32_t));
    assert_int_equal(end, c->record.routes[0].rows);
    assert_record_good(r.model, c);
    wb_completion_free(c);
    a.request.max_tokens = end + 1 - 5; /* both at once: the stop token wins */
    c = run_alone(r.model, &a);
    assert_int_equal(WB_FINISH_STOP, c->record.finish);
    wb_completion_free(c);
    wb_completion_free(free_run);
    rig_close(&r);
}

static void test_abort_wherever_the_request_is(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 16, 4, 4, 1);
    ask running = ask_fixed("running", 3, 20), waiting = ask_fixed("waiting", 6, 5),
        partial = ask_fixed("partial", 10, 5);
    assert_ok(wb_engine_submit(engine, ask_request(&running)));
    assert_ok(wb_engine_submit(engine, ask_request(&waiting)));
    assert_int_equal(WB_NOT_FOUND, wb_engine_abort(engine, "nobody"));
    assert_message("nobody");
    for (int i = 0; i < 4; i++) assert_true(step(engine));

    assert_ok(wb_engine_abort(engine, "waiting"));
    wb_completion *c = wb_engine_poll(engine);
    assert_string_equal("waiting", c->record.rid);
    assert_int_equal(WB_FINISH_ABORT, c->record.finish);
    assert_int_equal(6, c->record.n_tokens);
    assert_int_equal(0, c->record.n_routes);
    assert_int_equal(0, c->record.n_spans);
    assert_null(c->record.logprobs);
    assert_record_good(r.model, c);
    wb_completion_free(c);

    assert_ok(wb_engine_abort(engine, "running"));
    assert_ok(wb_engine_abort(engine, "running")); /* it has ended: nothing to do */
    c = wb_engine_poll(engine);
    assert_int_equal(3 + 4, c->record.n_tokens);
    assert_int_equal(6, c->record.routes[0].rows);
    assert_int_equal(6, c->record.spans[0].end);
    assert_record_good(r.model, c);
    wb_completion_free(c);
    assert_int_equal(16, wb_engine_get_stats(engine).free_blocks);

    assert_ok(wb_engine_submit(engine, ask_request(&partial))); /* chunks of 4 */
    assert_true(step(engine));
    assert_true(step(engine));
    assert_ok(wb_engine_abort(engine, "partial"));
    assert_null((void *)(uintptr_t)step(engine));
    c = wb_engine_poll(engine);
    assert_int_equal(10, c->record.n_tokens);
    assert_int_equal(8, c->record.routes[0].rows);
    assert_record_good(r.model, c);
    wb_completion_free(c);
    const wb_engine_stats stats = wb_engine_get_stats(engine);
    assert_int_equal(16, stats.free_blocks);
    assert_int_equal(0, stats.running + stats.waiting);
    wb_engine_close(engine);
    rig_close(&r);
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

/* ---- scheduling ---------------------------------------------------------------------------------- */

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

/* A preempted request is prefilled again by other weights, in chunks of at most `chunk` tokens: its old
 * rows, logprobs and spans stay as they were. */
static void prefill_again(int32_t chunk) {
    rig r = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(r.model));
    wb_engine *engine = engine_of(r.model, 13, 2, 64, N_CROWD);
    ask crowd[N_CROWD];
    submit_crowd(engine, crowd);
    while (wb_engine_get_stats(engine).preemptions == 0) assert_true(step(engine));

    const wb_sequence *victim = wb_sequence_of(engine->scheduler.first_waiting);
    const uint32_t n_fed = victim->n_fed, n_tokens = victim->completion.record.n_tokens;
    const uint32_t n_new = n_tokens - victim->completion.record.prompt_len;
    assert_true(n_fed > 0 && n_new > 0);
    assert_int_equal(0, victim->entry.n_in_pool);
    char rid[8];
    snprintf(rid, sizeof rid, "%s", victim->completion.record.rid);
    uint8_t *rows = take(n_fed, row_bytes);
    uint32_t *tokens = take(n_tokens, sizeof *tokens);
    float *logprobs = take(n_new, sizeof *logprobs);
    memcpy(rows, victim->rows, n_fed * row_bytes);
    memcpy(tokens, victim->tokens, n_tokens * sizeof *tokens);
    memcpy(logprobs, victim->logprobs, n_new * sizeof *logprobs);

    engine->scheduler.max_batch_tokens = chunk;
    assert_ok(wb_engine_set_weights(engine, next.model, 1));
    run_dry(engine, 2000);
    wb_completion *done[N_CROWD] = {NULL};
    poll_crowd(engine, done);
    const wb_record *record = &done[atoi(rid)]->record;
    assert_memory_equal(rows, record->routes[0].ids, n_fed * row_bytes);
    assert_memory_equal(tokens, record->tokens, n_tokens * sizeof *tokens);
    assert_memory_equal(logprobs, record->logprobs, n_new * sizeof *logprobs);
    assert_int_equal(2, record->n_spans);
    assert_int_equal(0, record->spans[0].start);
    assert_int_equal(n_fed, record->spans[0].end);
    assert_int_equal(0, record->spans[0].weight_version);
    assert_int_equal(n_fed, record->spans[1].start);
    assert_int_equal(record->n_tokens - 1, record->spans[1].end);
    assert_int_equal(1, record->spans[1].weight_version);
    for (int i = 0; i < N_CROWD; i++) {
        assert_record_good(r.model, done[i]);
        wb_completion_free(done[i]);
    }
    free(rows);
    free(tokens);
    free(logprobs);
    wb_engine_close(engine);
    rig_close(&next);
    rig_close(&r);
}

static void test_rule_5_prefill_again_under_new_weights_changes_nothing(void **state) {
    (void)state;
    prefill_again(64);
    prefill_again(3);
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
    assert_int_equal(3, after->record.n_spans);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(expected[i].start, after->record.spans[i].start);
        assert_int_equal(expected[i].end, after->record.spans[i].end);
        assert_int_equal(expected[i].weight_version, after->record.spans[i].weight_version);
    }
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

static void test_many_rids(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_of(r.model, 16, 4, 8, 4);
    char rid[24];
    for (uint32_t i = 0; i < 300; i++) {
        snprintf(rid, sizeof rid, "many %u", i);
        ask a = ask_fixed(rid, 2, 2);
        assert_ok(wb_engine_submit(engine, ask_request(&a)));
    }
    for (uint32_t i = 0; i < 300; i += 2) {
        snprintf(rid, sizeof rid, "many %u", i);
        assert_ok(wb_engine_abort(engine, rid));
    }
    for (uint32_t n = 0; n < 150; n++) wb_completion_free(wb_engine_poll(engine));
    assert_null(wb_engine_poll(engine));
    for (uint32_t i = 0; i < 300; i++) {
        snprintf(rid, sizeof rid, "many %u", i);
        assert_int_equal(i % 2 == 0 ? WB_NOT_FOUND : WB_OK, wb_engine_abort(engine, rid));
    }
    wb_engine_close(engine);
    rig_close(&r);
}

/* ---- failures ------------------------------------------------------------------------------------ */

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
        cmocka_unit_test(test_options_below_one_are_named),
        cmocka_unit_test(test_bad_requests_are_refused_by_name),
        cmocka_unit_test(test_capacity_names_the_numbers),
        cmocka_unit_test(test_rid_is_in_use_until_polled),
        cmocka_unit_test(test_rule_4_n_minus_1_rows),
        cmocka_unit_test(test_rule_9_only_moe_layers_have_rows),
        cmocka_unit_test(test_rule_12_routes_start_and_return_routes),
        cmocka_unit_test(test_greedy_is_the_argmax_of_the_training_logits),
        cmocka_unit_test(test_seeds_decide_and_logprobs_have_two_meanings),
        cmocka_unit_test(test_uniform_numbers),
        cmocka_unit_test(test_stop_token_is_the_last),
        cmocka_unit_test(test_abort_wherever_the_request_is),
        cmocka_unit_test(test_close_drops_unfinished_and_leaves_polled),
        cmocka_unit_test(test_rule_5_preemption_never_changes_rows),
        cmocka_unit_test(test_rule_5_prefill_again_under_new_weights_changes_nothing),
        cmocka_unit_test(test_rule_6_spans_show_where_weights_changed),
        cmocka_unit_test(test_rule_7_chunked_or_not_the_same_routes),
        cmocka_unit_test(test_decodes_take_turns),
        cmocka_unit_test(test_many_rids),
        cmocka_unit_test(test_nan_logits_name_request_and_position),
        cmocka_unit_test(test_a_failing_rank_is_named_to_the_others),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
