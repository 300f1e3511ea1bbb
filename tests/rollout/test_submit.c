/* test_submit.c - what an engine and its submit take and refuse, and request ids. */
#include "engine_rig.h"
#include "request.h"
#include "sequence_bytes.h"

#include <math.h>

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

static void test_null_is_refused(void **state) {
    (void)state;
    rig r = open_rig();
    const wb_config c = config();
    wb_engine *engine = NULL;
    wb_memory memory;
    bool busy = false;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_open(NULL, NULL, &engine));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_open(r.model, NULL, NULL));
    assert_message("engine: model or engine_out is NULL");
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_measure(NULL, NULL, NULL, 0, 1, 0, &memory));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_measure(&c, NULL, NULL, 0, 1, 0, NULL));
    assert_ok(wb_engine_open(r.model, NULL, &engine));
    ask a = ask_fixed("null", 3, 2);
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(NULL, ask_request(&a)));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, NULL));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_step(NULL, &busy));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_step(engine, NULL));
    assert_int_equal(0, wb_engine_get_stats(engine).steps);
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_abort(NULL, "null"));
    assert_int_equal(WB_NOT_FOUND, wb_engine_abort(engine, NULL));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_set_weights(NULL, r.model, 1));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_set_weights(engine, NULL, 1));
    wb_engine_pause(NULL);
    wb_engine_resume(NULL);
    assert_null(wb_engine_poll(NULL));
    assert_int_equal(0, wb_engine_get_stats(NULL).n_blocks);
    wb_engine_close(engine);
    rig_close(&r);
}

/* What a caller of an earlier version, whose struct ended before the last fields, leaves out keeps its
 * default. */
static void test_structs_of_an_earlier_version(void **state) {
    (void)state;
    rig r = open_rig();
    wb_engine *engine = NULL;
    wb_engine_options options;
    memset(&options, 0x5a, sizeof options);
    wb_engine_options_init(&options, offsetof(wb_engine_options, max_running));
    assert_int_equal(offsetof(wb_engine_options, max_running), options.size);
    assert_int_equal(0x5a5a5a5a, options.max_running);
    assert_ok(wb_engine_open(r.model, &options, &engine));
    ask a = ask_fixed("earlier", 3, 2);
    wb_request request = *ask_request(&a);
    request.size = offsetof(wb_request, return_routes);
    request.return_routes = false;
    request.routes_start = UINT32_MAX;
    assert_ok(wb_engine_submit(engine, &request));
    run_dry(engine, 100);
    wb_completion *c = wb_engine_poll(engine);
    assert_int_equal(4, c->record.routes[0].rows);
    wb_completion_free(c);
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
    REFUSED("request: reserved[1]", bad.reserved[1] = 1);
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

static void test_bytes_of_another_length_are_refused(void **state) {
    (void)state;
    rig r = open_rig();
    const wb_request_limits limits = {.route_model = wb_model_routes(r.model),
                                      .vocab_size = 61,
                                      .max_positions = 160,
                                      .n_blocks = 16,
                                      .block_size = 4};
    ask a = ask_fixed("sent", 3, 5);
    wb_sequence *s = NULL, *again = NULL;
    assert_ok(wb_sequence_create(ask_request(&a), &limits, 2, &s));
    const size_t n = wb_sequence_bytes(s, true);
    uint8_t *bytes = take(n, 1);
    wb_sequence_write(s, true, bytes);
    assert_int_equal(WB_MISMATCH, wb_sequence_create_from(bytes, n - 8, &limits, &again));
    assert_message("request sent: expected");
    assert_null(again);
    assert_ok(wb_sequence_create_from(bytes, n, &limits, &again));
    assert_memory_equal(s->tokens, again->tokens, 3 * sizeof *s->tokens);
    free(bytes);
    wb_sequence_free(again);
    wb_sequence_free(s);
    rig_close(&r);
}

/* Room for a mask is what its limits allow. What a record cannot hold is refused where it is certain, which
 * it is under top-k alone. */
static void test_a_mask_has_room_or_is_refused(void **state) {
    (void)state;
    rig r = open_rig();
    const uint32_t prompt[] = {1};
    const wb_request_limits limits = {.route_model = wb_model_routes(r.model),
                                      .vocab_size = 150000,
                                      .max_positions = 1 << 20,
                                      .n_blocks = 1 << 20,
                                      .block_size = 16};
    wb_request request = wb_request_default();
    request.rid = "mask", request.tokens = prompt, request.n_tokens = 1;
    request.top_k = 1 << 14, request.max_tokens = 1 << 16;
    assert_ok(wb_request_check(&request, &limits)); /* no mask is wanted */
    request.return_sampling_mask = true;
    assert_int_equal(WB_CAPACITY, wb_request_check(&request, &limits));
    assert_message(
        "request mask: its sampling mask: expected fewer than 1073741824 kept tokens, found 16384 for "
        "each of 65536 new ones");
    request.top_k = (1 << 14) - 1;
    assert_ok(wb_request_check(&request, &limits));
    request.top_k = 0, request.top_p = 0.9f; /* a nucleus could be all tokens, and is not */
    assert_ok(wb_request_check(&request, &limits));

    request.top_k = 3, request.max_tokens = 70;
    wb_sequence *s = NULL;
    uint32_t *ids = NULL;
    assert_ok(wb_sequence_create(&request, &limits, 8, &s));
    assert_int_equal(3 * 70, s->mask_room);
    assert_ok(wb_sequence_next_mask(s, 210, &ids));
    assert_ptr_equal(s->mask_ids, ids);
    ids = NULL;
    assert_int_equal(WB_CAPACITY, wb_sequence_next_mask(s, 211, &ids));
    assert_message("request mask: its sampling mask: expected at most 210 kept tokens, found 211");
    assert_null(ids);
    wb_sequence_free(s);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_below_one_are_named),
        cmocka_unit_test(test_null_is_refused),
        cmocka_unit_test(test_structs_of_an_earlier_version),
        cmocka_unit_test(test_bad_requests_are_refused_by_name),
        cmocka_unit_test(test_capacity_names_the_numbers),
        cmocka_unit_test(test_bytes_of_another_length_are_refused),
        cmocka_unit_test(test_a_mask_has_room_or_is_refused),
        cmocka_unit_test(test_rid_is_in_use_until_polled),
        cmocka_unit_test(test_many_rids),
    };
    return cmocka_run_group_tests_name("submit", tests, NULL, NULL);
}
