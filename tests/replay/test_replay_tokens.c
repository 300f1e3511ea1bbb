/* test_replay_tokens.c - a plan is given what the trainer will feed, and compares it with the records, token
 * by token. */
#include "replay_expect.h"
#include "support/test_seed.h"

static uint64_t seed;

static void test_rule_32_the_first_token_that_differs_is_named(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 8, 10);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    uint32_t fed[10];
    memcpy(fed, f.tokens, sizeof fed);
    fed[4] = 77;
    fed[7] = 99;
    wb_segment s[] = {fixture_segment(&f, 0, 4), fixture_segment(&f, 0, 10)};
    s[1].tokens = fed;
    assert_int_equal(wb_replay_plan(r, 0, 2, s), WB_MISMATCH);
    HAS_MESSAGE("request r-8, position 4: expected the record's token 8004, found that the trainer feeds 77");
    assert_false(wb_replay_planned(r, 0));
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(metrics.rows == 0);
    s[1] = fixture_segment(&f, 5, 5); /* within the record: positions are absolute */
    s[1].tokens = fed + 5;
    assert_int_equal(wb_replay_plan(r, 0, 2, s), WB_MISMATCH);
    HAS_MESSAGE("request r-8, position 7: expected the record's token 8007, found that the trainer feeds 99");
    s[1].rows = 2; /* up to the difference */
    OK(wb_replay_plan(r, 0, 2, s));
    wb_replay_close(r);
    fixture_close(&f);
}

/* The last token has no row, and a missing row no ids: what is fed there is compared all the same. */
static void test_rule_32_tokens_without_a_row_are_compared(void **unused) {
    (void)unused;
    for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode += 2) {
        wb_route_model m = fixture_model(16, 2, 2);
        fixture_record f;
        fixture_complete(&f, &m, 8, 6);
        fixture_invalidate(&f, 2);
        wb_replay *r = open_replay(&m, WB_MISSING_NATIVE);
        OK(wb_replay_add(r, &m, &f.record));
        OK(wb_replay_begin(r, (wb_replay_mode)mode, 1));
        uint32_t fed[6];
        const uint32_t positions[] = {5, 2};
        for (int i = 0; i < 2; i++) {
            wb_segment s = wb_replay_segment(r, f.rid, 0, 6, fed);
            memcpy(fed, f.tokens, sizeof fed);
            fed[positions[i]]++;
            assert_int_equal(wb_replay_plan(r, 0, 1, &s), WB_MISMATCH);
            HAS_MESSAGE(i == 0 ? "position 5" : "position 2");
        }
        wb_segment s = {WB_SEGMENT_REPLAY, f.rid, 5, 1, NULL};
        assert_int_equal(wb_replay_plan(r, 0, 1, &s), WB_INVALID_ARGUMENT);
        HAS_MESSAGE("request r-8: a REPLAY segment needs the tokens");
        s.rows = 0;
        OK(wb_replay_plan(r, 0, 1, &s));
        wb_replay_close(r);
        fixture_close(&f);
    }
}

/* A shifted prompt under context parallelism: the chunk that has the difference says so, the others fit. */
static void test_rule_32_zigzag_chunks_are_compared(void **unused) {
    (void)unused;
    enum { CHUNK = 4, CP = 4, N = 2 * CP * CHUNK };
    wb_route_model m = fixture_model(64, 3, 2);
    fixture_record f;
    fixture_complete(&f, &m, 3, N);
    uint32_t fed[N];
    uint64_t state = seed;
    for (int round = 0; round < 32; round++) {
        uint32_t odd = wb_random_below(&state, N);
        wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
        OK(wb_replay_add(r, &m, &f.record));
        OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, CP));
        memcpy(fed, f.tokens, sizeof fed);
        fed[odd] ^= 1u << wb_random_below(&state, 32);
        for (uint32_t rank = 0; rank < CP; rank++) {
            uint32_t starts[2] = {rank * CHUNK, (2 * CP - 1 - rank) * CHUNK};
            wb_segment s[2];
            for (int i = 0; i < 2; i++) s[i] = wb_replay_segment(r, f.rid, starts[i], CHUNK, fed + starts[i]);
            bool has = odd / CHUNK == rank || odd / CHUNK == 2 * CP - 1 - rank;
            assert_int_equal(wb_replay_plan(r, (int32_t)rank, 2, s), has ? WB_MISMATCH : WB_OK);
            char position[32];
            snprintf(position, sizeof position, "r-3, position %" PRIu32 ":", odd);
            if (has) HAS_MESSAGE(position);
        }
        wb_replay_close(r);
    }
    fixture_close(&f);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    print_message("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_32_the_first_token_that_differs_is_named),
        cmocka_unit_test(test_rule_32_tokens_without_a_row_are_compared),
        cmocka_unit_test(test_rule_32_zigzag_chunks_are_compared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
