/* test_drafts.c - tokens that are guessed from a request's own text: which ones, that nothing that is
 * returned shows whether they were right, and that the pool is after each step as if they had not been. */
#include "draft.h"
#include "engine.h"
#include "engine_rig.h"

/* ---- which ones ---------------------------------------------------------------------------------- */

/* The latest place, from its definition. */
static uint32_t find_plainly(const uint32_t *tokens, uint32_t n, uint32_t max, uint32_t *out) {
    for (uint32_t length = 3; length >= 2; length--)
        for (uint32_t end = n - 1; n > length && end >= length; end--) {
            bool same = true;
            for (uint32_t k = 0; k < length; k++) same = same && tokens[end - 1 - k] == tokens[n - 1 - k];
            if (!same) continue;
            uint32_t found = 0;
            while (found < max && end + found < n) out[found] = tokens[end + found], found++;
            return found;
        }
    return 0;
}

static void test_drafts_are_what_followed_the_same_words(void **state) {
    (void)state;
    uint32_t n_found = 0;
    for (uint64_t seed = 1; seed <= 3000; seed++) {
        dice d = {seed};
        uint32_t tokens[40], expected[8] = {0}, found[8] = {0};
        const uint32_t n = pick(&d, 1, 32), words = pick(&d, 1, 6), max = pick(&d, 0, 8);
        for (uint32_t i = 0; i < n; i++) tokens[i] = pick(&d, 1, words);
        const uint32_t n_expected = find_plainly(tokens, n, max, expected);
        if (n_expected != wb_draft_find(tokens, n, max, found))
            fail_msg("seed %d: another number", (int)seed);
        assert_memory_equal(expected, found, sizeof found);
        /* Where they are wanted: behind the tokens. */
        assert_int_equal(n_expected, wb_draft_find(tokens, n, max, tokens + n));
        assert_memory_equal(expected, tokens + n, n_expected * sizeof *tokens);
        n_found += n_expected > 0;
    }
    assert_true(n_found > 800);
}

static void test_what_stands_far_back_is_not_looked_for(void **state) {
    (void)state;
    enum { FAR = 6000, FOUND = 4096 };
    uint32_t tokens[FAR], draft = 0;
    for (uint32_t i = 0; i < FAR; i++) tokens[i] = 10 + i;
    for (uint32_t i = 0; i < 2; i++) tokens[i] = tokens[FAR - 2 + i] = i;
    assert_int_equal(wb_draft_find(tokens, FAR, 1, &draft), 0);
    const uint32_t near = FAR - 2 - FOUND;
    for (uint32_t i = 0; i < 2; i++) tokens[near + i] = i;
    assert_int_equal(wb_draft_find(tokens, FAR, 1, &draft), 1);
    assert_int_equal(draft, tokens[near + 2]);
}

/* ---- in the engine ------------------------------------------------------------------------------- */

static wb_engine *engine_with_drafts(wb_model *model, int32_t max_drafts, int32_t block_size) {
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 120 / block_size;
    options.block_size = block_size;
    options.max_drafts = max_drafts;
    options.indexer = wb_indexer_columns(wb_model_routes(model)) > 0;
    wb_engine *engine = NULL;
    assert_ok(wb_engine_open(model, &options, &engine));
    return engine;
}

/* A prompt that repeats itself, so that there is always something to guess. */
static ask ask_repeating(const char *rid, uint32_t n_tokens, uint32_t max_tokens) {
    ask a = ask_fixed(rid, n_tokens, max_tokens);
    for (uint32_t i = 0; i < n_tokens; i++) a.prompt[i] = i % 5;
    return a;
}

/* As many blocks as the tokens that are there fill, whatever was fed beside them. */
static void assert_pool(wb_engine *engine, int32_t block_size) {
    const wb_sched_entry *entry = engine->scheduler.first;
    const wb_engine_stats stats = wb_engine_get_stats(engine);
    if (!entry) return;
    assert_int_equal(entry->n_blocks, wb_kv_blocks_for(block_size, entry->n_in_pool));
    assert_int_equal(stats.n_blocks - stats.free_blocks, entry->n_blocks);
    assert_int_equal(entry->n_in_pool + 1, entry->record->n_tokens);
}

/* Returns the statistics at the end. */
static wb_engine_stats run_with_drafts(wb_model *model, ask *a, int32_t max_drafts, int32_t block_size) {
    wb_completion *alone = run_alone(model, a);
    wb_engine *engine = engine_with_drafts(model, max_drafts, block_size);
    assert_ok(wb_engine_submit(engine, ask_request(a)));
    for (bool busy = true; busy;) {
        const uint64_t before = wb_engine_get_stats(engine).drafts;
        busy = step(engine);
        if (wb_engine_get_stats(engine).drafts > before) assert_pool(engine, block_size);
    }
    wb_completion *done = wb_engine_poll(engine);
    assert_same(model, alone, done);
    assert_record_good(model, done);
    const wb_engine_stats stats = wb_engine_get_stats(engine);
    assert_int_equal(stats.n_blocks, stats.free_blocks);
    wb_completion_free(done);
    wb_completion_free(alone);
    wb_engine_close(engine);
    return stats;
}

static void test_rule_8_rejected_drafts_are_in_no_record(void **state) {
    (void)state;
    rig r = open_rig();
    uint64_t rejected = 0, accepted = 0;
    for (uint64_t seed = 1; seed <= 12; seed++)
        for (int32_t block_size = 1; block_size <= 5; block_size += 2) {
            ask a = ask_repeating("a", 12, 30);
            a.request.seed = seed;
            a.request.temperature = seed % 3 == 0 ? 0 : 0.7f;
            a.request.top_k = seed % 2 == 0 ? 0 : 5;
            a.request.return_sampling_mask = true;
            const wb_engine_stats stats = run_with_drafts(r.model, &a, 4, block_size);
            assert_int_equal(29, stats.decode_tokens);
            assert_true(stats.accepted_drafts <= stats.drafts);
            assert_int_equal(29 - stats.accepted_drafts + 1, stats.steps);
            accepted += stats.accepted_drafts;
            rejected += stats.drafts - stats.accepted_drafts;
        }
    assert_true(rejected > 0 && accepted > 0);
    rig_close(&r);
}

/* A step feeds no more than it may: drafts get what is left. */
static void test_drafts_get_what_a_step_has_left(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_with_drafts(r.model, 10, 4);
    ask a = ask_repeating("a", 12, 20);
    engine->scheduler.max_batch_tokens = 4;
    wb_completion *alone = run_alone(r.model, &a), *done;
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    while (step(engine)) assert_true(engine->scheduler.batch.n_tokens <= 4);
    done = wb_engine_poll(engine);
    assert_same(r.model, alone, done);
    assert_true(wb_engine_get_stats(engine).drafts > 0);
    wb_completion_free(done);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&r);
}

static void test_odd_options_are_refused(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine_options options = wb_engine_options_default();
    wb_engine *engine = NULL;
    options.max_drafts = -1;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_open(r.model, &options, &engine));
    assert_message("max_prefill_tokens, max_drafts and n_snapshots: expected at least 0, found 0, -1 and 0");
    assert_null(engine);
    rig_close(&r);
}

/* ---- where layers keep state of a fixed size ------------------------------------------------------ */

/* A gated delta net in every second layer, or indexers; drafts of the text, some of which are right in so few
 * words. */
static rig open_rig_with_state(wb_family family, uint64_t seed) {
    wb_config c = tiny_config(family, 12, 3, family == WB_FAMILY_DEEPSEEK_V4 ? 4 : 2, 0);
    c.n_mtp_layers = 0;
    c.vocab_size = 6;
    return rig_open(&c, seed, 1, NULL);
}

/* Whether its state went back from a wrong draft behind one that was right. */
static bool went_back(const wb_engine *engine) {
    return engine->scheduler.first && engine->scheduler.first->n_went_back > 1;
}

/* The request as it ends, of which weights[1] feed the tokens from `end` on; the tokens before it have been
 * fed by weights[0]. An end of 0 is found: where a state has gone back. */
static wb_completion *change_weights_at(ask *a, int32_t max_drafts, const rig *weights, uint32_t *end) {
    rig r = open_rig_with_state(wb_model_config(weights[0].model)->family, 5);
    wb_engine *engine = engine_with_drafts(r.model, max_drafts, 4);
    assert_ok(wb_engine_set_weights(engine, weights[0].model, 0));
    assert_ok(wb_engine_submit(engine, ask_request(a)));
    const wb_sched_entry *entry = engine->scheduler.first;
    const bool finds = *end == 0;
    while (engine->scheduler.first && (finds ? !went_back(engine) : entry->n_in_pool < *end)) step(engine);
    if (engine->scheduler.first) {
        const uint32_t unfed = entry->n_went_back;
        *end = entry->n_in_pool;
        assert_int_equal(*end + 1 + unfed, entry->record->n_tokens);
        assert_ok(wb_engine_set_weights(engine, weights[1].model, 1));
        assert_int_equal(*end + 1, entry->record->n_tokens);
        assert_true(entry->n_blocks <= wb_kv_blocks_for(4, *end + 1));
        run_dry(engine, 200);
    }
    wb_completion *done = wb_engine_poll(engine);
    assert_record_good(r.model, done);
    wb_engine_close(engine);
    rig_close(&r);
    return done;
}

static void check_new_weights(wb_family family) {
    rig weights[2] = {open_rig_with_state(family, 5), open_rig_with_state(family, 6)};
    uint32_t n_found = 0;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        ask a = ask_repeating("a", 12, 30);
        a.request.seed = seed;
        a.request.temperature = 0.7f;
        a.request.top_k = seed % 2 == 0 ? 0 : 3;
        a.request.return_sampling_mask = true;
        a.request.return_indexer = family == WB_FAMILY_DEEPSEEK_V4;
        uint32_t end = 0;
        wb_completion *drafted = change_weights_at(&a, 4, weights, &end);
        if (end > 0) {
            wb_completion *plain = change_weights_at(&a, 0, weights, &end);
            assert_same(weights[0].model, plain, drafted);
            assert_int_equal(2, drafted->record.n_spans);
            wb_completion_free(plain);
            n_found++;
        }
        wb_completion_free(drafted);
    }
    assert_true(n_found > 8);
    for (int v = 0; v < 2; v++) rig_close(&weights[v]);
}

static void test_tokens_that_a_state_has_not_been_fed_are_drawn_by_the_new_weights(void **state) {
    (void)state;
    check_new_weights(WB_FAMILY_QWEN3_NEXT);
}

static void test_what_indexers_chose_for_tokens_taken_back_is_gone(void **state) {
    (void)state;
    check_new_weights(WB_FAMILY_DEEPSEEK_V4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drafts_are_what_followed_the_same_words),
        cmocka_unit_test(test_what_stands_far_back_is_not_looked_for),
        cmocka_unit_test(test_rule_8_rejected_drafts_are_in_no_record),
        cmocka_unit_test(test_drafts_get_what_a_step_has_left),
        cmocka_unit_test(test_tokens_that_a_state_has_not_been_fed_are_drawn_by_the_new_weights),
        cmocka_unit_test(test_what_indexers_chose_for_tokens_taken_back_is_gone),
        cmocka_unit_test(test_odd_options_are_refused),
    };
    return cmocka_run_group_tests_name("drafts", tests, NULL, NULL);
}
