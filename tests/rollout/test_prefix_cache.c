/* test_prefix_cache.c - blocks that are known by their tokens: what is taken over, by whom, for how long, and
 * that nothing that is returned shows it. Schedules of everything at once are in schedules.c. */
#include "engine.h"
#include "engine_rig.h"
#include "model/made_up_family.h"

static wb_engine *engine_with_cache(wb_model *model, int32_t n_blocks, int32_t block_size,
                                    int32_t max_batch_tokens) {
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = n_blocks;
    options.block_size = block_size;
    options.max_batch_tokens = max_batch_tokens;
    options.prefix_cache = true;
    wb_engine *engine = NULL;
    assert_ok(wb_engine_open(model, &options, &engine));
    return engine;
}

/* ---- requests ------------------------------------------------------------------------------------ */

static void test_rule_7_a_hit_brings_rows_that_nobody_asked_for(void **state) {
    (void)state;
    rig r = open_rig();
    ask first = ask_fixed("first", 23, 5), second = ask_fixed("second", 23, 9);
    first.request.return_routes = false;
    second.request.seed = 7;
    wb_completion *alone = run_alone(r.model, &second);
    wb_engine *engine = engine_with_cache(r.model, 32, 4, 64);
    wb_completion *c = complete(engine, &first);
    assert_int_equal(0, c->record.n_routes);
    wb_completion_free(c);
    assert_int_equal(0, wb_engine_get_stats(engine).taken_over_tokens);
    assert_int_equal(6, wb_engine_get_stats(engine).known_blocks); /* of 27 tokens that were fed */
    c = complete(engine, &second);
    assert_same(r.model, alone, c);
    assert_record_good(r.model, c);
    wb_completion_free(c);
    assert_int_equal(20, wb_engine_get_stats(engine).taken_over_tokens);
    assert_int_equal(23 + 3, wb_engine_get_stats(engine).prefill_tokens);
    assert_int_equal(32, wb_engine_get_stats(engine).free_blocks);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&r);
}

/* A prompt that ends with a block: its last token is fed all the same, since a token is sampled after it. */
static void test_the_last_token_is_always_fed(void **state) {
    (void)state;
    rig r = open_rig();
    ask first = ask_fixed("first", 16, 1), second = ask_fixed("second", 16, 4);
    wb_completion *alone = run_alone(r.model, &second);
    wb_engine *engine = engine_with_cache(r.model, 32, 4, 64);
    wb_completion_free(complete(engine, &first));
    wb_completion *c = complete(engine, &second);
    assert_same(r.model, alone, c);
    assert_int_equal(12, wb_engine_get_stats(engine).taken_over_tokens);
    wb_completion_free(c);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&r);
}

enum { GROUP = 8, GROUP_PROMPT = 33, GROUP_NEW = 6 };

/* The samples of a group prefill their prompt once, in whatever chunks, though all are there at once. */
static void check_group(rig r) {
    for (int32_t chunk = 5; chunk <= 80; chunk += 15) {
        ask asks[GROUP];
        wb_engine *engine = engine_with_cache(r.model, 200, 4, chunk);
        for (uint32_t i = 0; i < GROUP; i++) {
            char rid[8];
            snprintf(rid, sizeof rid, "%u", i);
            asks[i] = ask_fixed(rid, GROUP_PROMPT, GROUP_NEW);
            for (uint32_t k = 0; k < GROUP_PROMPT; k++) asks[i].prompt[k] %= 31;
            asks[i].request.seed = 100 + i;
            asks[i].request.return_routes = i > 0;
            assert_ok(wb_engine_submit(engine, ask_request(&asks[i])));
        }
        run_dry(engine, 500);
        assert_int_equal(GROUP_PROMPT + (GROUP - 1) * 1, wb_engine_get_stats(engine).prefill_tokens);
        assert_int_equal((GROUP - 1) * 32, wb_engine_get_stats(engine).taken_over_tokens);
        for (int i = 0; i < GROUP; i++) {
            wb_completion *c = wb_engine_poll(engine);
            assert_non_null(c);
            wb_completion *alone = run_alone(r.model, &asks[atoi(c->record.rid)]);
            assert_same(r.model, alone, c);
            wb_completion_free(alone);
            wb_completion_free(c);
        }
        wb_engine_close(engine);
    }
    rig_close(&r);
}

static void test_a_group_prefills_its_prompt_once(void **state) {
    (void)state;
    check_group(open_rig());
}

/* Layers that keep state of a fixed size: behind a snapshot of it. */
static void test_a_group_goes_on_behind_a_snapshot(void **state) {
    (void)state;
    wb_config c;
    rig r = {NULL, NULL, NULL};
    must(made_up_config(&c), "config");
    must(wb_device_open_cpu(1, &r.device), "device");
    must(wb_comm_open_self(&r.own_comm), "comm");
    wb_model_options model = wb_model_options_default();
    model.device = r.device;
    model.comm = r.own_comm;
    must(wb_model_new(&c, &made_up_family, &model, &r.model), "model");
    must(wb_model_fill_random(r.model, 1, 0.4f), "weights");
    must(wb_model_open_exchange(r.model), "exchange");
    check_group(r);
}

static void test_rule_6_new_weights_forget_every_prefix(void **state) {
    (void)state;
    rig r = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    ask first = ask_fixed("first", 23, 5), second = ask_fixed("second", 23, 5);
    wb_engine *engine = engine_with_cache(r.model, 32, 4, 64);
    wb_completion_free(complete(engine, &first));
    assert_ok(wb_engine_set_weights(engine, next.model, 1));
    assert_int_equal(0, wb_engine_get_stats(engine).known_blocks);
    wb_completion *alone = run_alone(next.model, &second), *done = complete(engine, &second);
    assert_int_equal(0, wb_engine_get_stats(engine).taken_over_tokens);
    assert_memory_equal(alone->record.tokens, done->record.tokens, 28 * sizeof(uint32_t));
    assert_memory_equal(alone->record.logprobs, done->record.logprobs, 5 * sizeof(float));
    wb_completion_free(done);
    /* Other weights by the name of the version that there is, which nobody is being answered by. */
    assert_true(wb_engine_get_stats(engine).known_blocks > 0);
    rig other = rig_open(&c, 5, 1, NULL);
    assert_ok(wb_engine_set_weights(engine, other.model, 1));
    assert_int_equal(0, wb_engine_get_stats(engine).known_blocks);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&other);
    rig_close(&next);
    rig_close(&r);
}

/* Weights that are refused are not the engine's: what it knows by the present ones is still had. */
static void test_refused_weights_forget_nothing(void **state) {
    (void)state;
    rig r = open_rig();
    const wb_config c = config();
    wb_config wider = config();
    wider.vocab_size += 1;
    wb_device *device = NULL;
    must(wb_device_open_cpu(1, &device), "device");
    rig packed = rig_open_with(&c, 6, device, NULL, WB_F32, WB_F32, true),
        other = rig_open(&wider, 6, 1, NULL);
    ask first = ask_fixed("first", 23, 5), second = ask_fixed("second", 23, 5);
    wb_engine *engine = engine_with_cache(r.model, 32, 4, 64);
    wb_completion_free(complete(engine, &first));
    assert_int_equal(WB_UNSUPPORTED, wb_engine_set_weights(engine, packed.model, 1));
    assert_non_null(strstr(wb_error_message(), "inference only"));
    assert_int_equal(WB_MISMATCH, wb_engine_set_weights(engine, other.model, 1));
    assert_int_equal(6, wb_engine_get_stats(engine).known_blocks);
    wb_completion *alone = run_alone(r.model, &second), *done = complete(engine, &second);
    assert_same(r.model, alone, done);
    assert_int_equal(20, wb_engine_get_stats(engine).taken_over_tokens);
    wb_completion_free(done);
    wb_completion_free(alone);
    wb_engine_close(engine);
    rig_close(&other);
    rig_close(&packed);
    rig_close(&r);
}

/* Keys that were begun by the old weights never become known, however the request goes on. */
static void test_keys_of_two_versions_stay_unknown(void **state) {
    (void)state;
    rig r = open_rig();
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, NULL);
    ask a = ask_fixed("changed", 9, 30);
    wb_engine *engine = engine_with_cache(r.model, 32, 4, 64);
    assert_ok(wb_engine_submit(engine, ask_request(&a)));
    for (int i = 0; i < 4; i++) assert_true(step(engine));
    assert_int_equal(3, wb_engine_get_stats(engine).known_blocks); /* 12 tokens fed */
    assert_ok(wb_engine_set_weights(engine, next.model, 1));
    run_dry(engine, 100);
    assert_int_equal(0, wb_engine_get_stats(engine).known_blocks);
    assert_int_equal(32, wb_engine_get_stats(engine).free_blocks);
    wb_completion_free(wb_engine_poll(engine));
    wb_engine_close(engine);
    rig_close(&next);
    rig_close(&r);
}

/* A small pool forgets what has rested for the longest, from the end of its chain. */
static void test_the_pool_forgets_what_rested_longest(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = engine_with_cache(r.model, 8, 4, 64);
    ask a = ask_fixed("a", 13, 1), b = ask_fixed("b", 13, 1), c = ask_fixed("c", 13, 1);
    b.prompt[0] = 60;
    c.prompt[0] = 59;
    wb_completion_free(complete(engine, &a));
    wb_completion_free(complete(engine, &b)); /* three known blocks each, two free ones */
    assert_int_equal(6, wb_engine_get_stats(engine).known_blocks);
    wb_completion_free(complete(engine, &c)); /* takes the two, and the last two of a's */
    assert_int_equal(7, wb_engine_get_stats(engine).known_blocks);
    strcpy(a.rid, "a again");
    wb_completion *alone = run_alone(r.model, &a), *done = complete(engine, &a);
    assert_same(r.model, alone, done);
    assert_int_equal(4, wb_engine_get_stats(engine).taken_over_tokens);
    wb_completion_free(alone);
    wb_completion_free(done);
    wb_engine_close(engine);
    rig_close(&r);
}

/* ---- the cache alone ----------------------------------------------------------------------------- */

static void test_a_block_is_known_by_what_is_before_it_too(void **state) {
    (void)state;
    enum { SIZE = 3, ROW = 5 };
    wb_owner owner = {0};
    wb_prefix_cache cache = {0};
    const uint32_t tokens[SIZE] = {1, 2, 3}, others[SIZE] = {1, 2, 4};
    uint8_t rows[2][SIZE * ROW];
    memset(rows[0], 0xaa, sizeof rows[0]);
    memset(rows[1], 0xbb, sizeof rows[1]);
    assert_int_equal(WB_NO_BLOCK, wb_prefix_cache_find(&cache, WB_NO_BLOCK, tokens));
    assert_ok(wb_prefix_cache_open(&owner, 6, SIZE, ROW, &cache));
    memcpy(wb_prefix_cache_add(&cache, 4, WB_NO_BLOCK, tokens), rows[0], sizeof rows[0]);
    memcpy(wb_prefix_cache_add(&cache, 2, 4, tokens), rows[1], sizeof rows[1]);
    assert_int_equal(4, wb_prefix_cache_find(&cache, WB_NO_BLOCK, tokens));
    assert_int_equal(2, wb_prefix_cache_find(&cache, 4, tokens));
    assert_int_equal(WB_NO_BLOCK, wb_prefix_cache_find(&cache, 2, tokens));
    assert_int_equal(WB_NO_BLOCK, wb_prefix_cache_find(&cache, 4, others));
    assert_memory_equal(rows[0], wb_prefix_cache_rows(&cache, 4), sizeof rows[0]);
    assert_memory_equal(rows[1], wb_prefix_cache_rows(&cache, 2), sizeof rows[1]);
    wb_owner_close(&owner);
}

/* Beside its keys the cache takes a row a token, as wide as E needs, whatever was seen of it. */
static void test_rows_take_a_row_a_token(void **state) {
    (void)state;
    const size_t keys = wb_prefix_cache_bytes(64, 16, 0);
    assert_int_equal(64 * 16 * 48 * 8, wb_prefix_cache_bytes(64, 16, 48 * 8) - keys);
    assert_int_equal(64 * 16 * 4 + 64 * (4 + sizeof(wb_known_block)), keys);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_7_a_hit_brings_rows_that_nobody_asked_for),
        cmocka_unit_test(test_the_last_token_is_always_fed),
        cmocka_unit_test(test_a_group_prefills_its_prompt_once),
        cmocka_unit_test(test_rule_6_new_weights_forget_every_prefix),
        cmocka_unit_test(test_refused_weights_forget_nothing),
        cmocka_unit_test(test_keys_of_two_versions_stay_unknown),
        cmocka_unit_test(test_the_pool_forgets_what_rested_longest),
        cmocka_unit_test(test_a_group_goes_on_behind_a_snapshot),
        cmocka_unit_test(test_a_block_is_known_by_what_is_before_it_too),
        cmocka_unit_test(test_rows_take_a_row_a_token),
    };
    return cmocka_run_group_tests_name("prefix cache", tests, NULL, NULL);
}
