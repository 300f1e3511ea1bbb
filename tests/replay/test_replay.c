/* test_replay.c - plans of routing replay: records, packing, slices and missing rows. Each test is
 * named after the rule it holds, or the bug it keeps out. */
#include "replay_expect.h"
#include "support/test_seed.h"

#include <math.h>

static uint64_t seed;

/* ---- records --------------------------------------------------------------------------------- */

static void test_rule_30_another_fingerprint_is_refused(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2), other = m;
    strcpy(other.fingerprint, "ffffffffffffffffffffffffffffffff");
    fixture_record f;
    fixture_complete(&f, &m, 1, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    assert_int_equal(wb_replay_add(r, &other, &f.record), WB_MISMATCH);
    HAS_MESSAGE("record r-1");
    HAS_MESSAGE("fingerprint");
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    wb_segment s = fixture_segment(&f, 0, 4);
    assert_int_equal(wb_replay_plan(r, 0, 1, &s), WB_NOT_FOUND);
    HAS_MESSAGE("r-1");
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_bug_37_repeated_or_unknown_ids_are_refused(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    uint8_t *ids = f.blocks[0] + 1, kept = ids[5];
    ids[5] = ids[4];
    assert_int_equal(wb_replay_add(r, &m, &f.record), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("position 1, MoE layer 0");
    ids[5] = 16;
    assert_int_equal(wb_replay_add(r, &m, &f.record), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("out of range");
    ids[5] = kept;
    OK(wb_replay_add(r, &m, &f.record));
    assert_int_equal(wb_replay_add(r, &m, &f.record), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("added before");
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_options_are_checked(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 4);
    wb_replay *r = NULL, *const none = NULL;
    const size_t size = sizeof(wb_replay_options);
    wb_replay_options bad[] = {
        {.size = size, .missing = (wb_missing_policy)7, .n_ranks = 1},
        {.size = size, .n_ranks = 0},
        {.size = size, .n_ranks = 1, .first_layer = -1},
        {.size = size, .n_ranks = 1, .first_layer = 4},
        {.size = size, .n_ranks = 1, .first_layer = 2, .n_layers = 3},
        {.size = size, .n_ranks = 1, .n_layers = -1},
        {.size = size, .n_ranks = 1, .reserved = {1}},
        {.size = 0, .n_ranks = 1}, /* not from the initialiser */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(wb_replay_open(&m, &bad[i], &r), WB_INVALID_ARGUMENT);
        assert_ptr_equal(r, none);
    }
    /* A caller of an earlier version, whose struct ended before the stage's layers. */
    wb_replay_options early = wb_replay_options_default();
    early.size = offsetof(wb_replay_options, first_layer);
    early.first_layer = -1;
    OK(wb_replay_open(&m, &early, &r));
    wb_replay_close(r);
    wb_replay_close(NULL);
}

/* ---- plans ----------------------------------------------------------------------------------- */

static void test_rule_4_last_token_chooses_natively_and_is_not_missing(void **unused) {
    (void)unused;
    for (int policy = WB_MISSING_STRICT; policy <= WB_MISSING_DROP; policy++) {
        wb_route_model m = fixture_model(16, 2, 3);
        fixture_record f;
        fixture_complete(&f, &m, 1, 5);
        wb_replay *r = open_replay(&m, (wb_missing_policy)policy);
        OK(wb_replay_add(r, &m, &f.record));
        wb_segment s = fixture_segment(&f, 0, 5);
        plan_one(r, 1, &s);
        for (uint32_t t = 0; t < 4; t++) expect_forced(r, 0, t, &f, t);
        assert_int_equal(row_direction(r, 0, 4), WB_ROW_NATIVE);
        assert_false(wb_replay_dropped(r, 0, 0));
        wb_replay_metrics metrics;
        wb_replay_get_metrics(r, &metrics, NULL);
        assert_true(metrics.rows == 5 && metrics.forced_rows == 4 && metrics.fallback_rows == 0);
        wb_replay_close(r);
        fixture_close(&f);
    }
}

static void test_bug_39_rows_beyond_the_tokens_are_refused(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 5);
    wb_replay *r = open_replay(&m, WB_MISSING_NATIVE);
    OK(wb_replay_add(r, &m, &f.record));
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    wb_segment bad[] = {fixture_segment(&f, 0, 6), fixture_segment(&f, 6, 0), fixture_segment(&f, 4, 2),
                        fixture_segment(&f, 1, UINT32_MAX)};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(wb_replay_plan(r, 0, 1, &bad[i]), WB_INVALID_ARGUMENT);
        HAS_MESSAGE("r-1");
        assert_false(wb_replay_planned(r, 0));
    }
    wb_segment huge[] = {{WB_SEGMENT_RECORD, NULL, 0, UINT32_MAX, NULL},
                         {WB_SEGMENT_RECORD, NULL, 0, 1, NULL}};
    assert_int_equal(wb_replay_plan(r, 0, 2, huge), WB_INVALID_ARGUMENT);
    wb_segment odd = {(wb_segment_kind)9, NULL, 0, 1, NULL};
    assert_int_equal(wb_replay_plan(r, 0, 1, &odd), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_plan(r, 1, 1, &bad[0]), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_plan(r, -1, 1, &bad[0]), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_plan(r, 0, -1, NULL), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_begin(r, WB_REPLAY_ROLLOUT, -1), WB_INVALID_ARGUMENT);
    wb_segment good = fixture_segment(&f, 0, 5);
    OK(wb_replay_plan(r, 0, 1, &good));
    assert_int_equal(wb_replay_plan(r, 0, 1, &good), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("planned before");
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_rule_3_expert_255_of_256_is_an_expert(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(256, 4, 1);
    fixture_record f;
    fixture_complete(&f, &m, 1, 3);
    uint8_t *ids = f.blocks[0] + 1;
    memcpy(ids, (uint8_t[]){255, 0, 254, 1}, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 0, 2);
    plan_one(r, 1, &s);
    wb_replay_slice slice;
    OK(wb_replay_rows(r, 0, 0, 0, 1, &slice));
    assert_int_equal(slice.direction[0], WB_ROW_FORCED);
    assert_memory_equal(slice.ids, ids, 4);
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_rule_2_u16_rows_at_odd_addresses(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(512, 5, 3);
    fixture_record f;
    fixture_complete(&f, &m, 77, 9);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 2, 6);
    plan_one(r, 1, &s);
    wb_replay_slice slice;
    OK(wb_replay_rows(r, 0, WB_ALL_LAYERS, 0, 6, &slice));
    assert_int_equal((uintptr_t)slice.ids % 2, 0);
    for (uint32_t t = 0; t < 6; t++) expect_forced(r, 0, t, &f, 2 + t);
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_rule_6_runs_of_several_weight_versions_keep_their_rows(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(32, 4, 2);
    fixture_record f;
    fixture_open(&f, 5, 20);
    fixture_add_run(&f, &m, 0, 7); /* a prefix shared with another record */
    fixture_add_run(&f, &m, 7, 5);
    fixture_add_run(&f, &m, 12, 0);
    fixture_add_run(&f, &m, 12, 7);
    wb_span spans[] = {{0, 7, 3}, {7, 12, 4}, {12, 20, 9}};
    f.record.n_spans = 3;
    f.record.spans = spans;
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 3, 17);
    plan_one(r, 1, &s);
    for (uint32_t t = 0; t < 16; t++) expect_forced(r, 0, t, &f, 3 + t);
    assert_int_equal(row_direction(r, 0, 16), WB_ROW_NATIVE);
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_bug_54_packed_sequences_keep_all_their_rows(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(64, 6, 3);
    fixture_record a, b;
    fixture_complete(&a, &m, 1, 4);
    fixture_complete(&b, &m, 2, 6);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &a.record));
    OK(wb_replay_add(r, &m, &b.record));
    wb_segment s[] = {fixture_segment(&a, 0, 3), fixture_segment(&b, 0, 5), fixture_segment(&a, 1, 2)};
    plan_one(r, 3, s);
    for (uint32_t t = 0; t < 3; t++) expect_forced(r, 0, t, &a, t);
    for (uint32_t t = 0; t < 5; t++) expect_forced(r, 0, 3 + t, &b, t);
    for (uint32_t t = 0; t < 2; t++) expect_forced(r, 0, 8 + t, &a, 1 + t);
    wb_replay_close(r);
    fixture_close(&a);
    fixture_close(&b);
}

/* Context parallelism's zigzag (rank i holds chunks i and 2n-1-i), then sequence-parallel slices of each
 * rank's rows. */
static void test_bug_47_zigzag_and_sequence_slices_make_the_whole(void **unused) {
    (void)unused;
    enum { N = 33, CP = 4, SP = 2, CHUNK = 4 };
    wb_route_model m = fixture_model(64, 3, 2);
    fixture_record f;
    fixture_complete(&f, &m, 3, N);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, CP));
    bool seen[N - 1] = {false};
    for (uint32_t rank = 0; rank < CP; rank++) {
        uint32_t starts[2] = {rank * CHUNK, (2 * CP - 1 - rank) * CHUNK};
        wb_segment s[2] = {fixture_segment(&f, starts[0], CHUNK), fixture_segment(&f, starts[1], CHUNK)};
        OK(wb_replay_plan(r, (int32_t)rank, 2, s));
        for (uint32_t sp = 0; sp < SP; sp++) {
            const uint32_t rows = 2 * CHUNK / SP;
            wb_replay_slice slice;
            OK(wb_replay_rows(r, (int32_t)rank, 1, sp * rows, rows, &slice));
            assert_int_equal(slice.rows, rows);
            for (uint32_t i = 0; i < rows; i++) {
                uint32_t t = sp * rows + i, position = starts[t / CHUNK] + t % CHUNK;
                assert_false(seen[position]);
                seen[position] = true;
                const uint8_t *row = (const uint8_t *)slice.ids + i * (size_t)slice.stride;
                for (uint32_t k = 0; k < m.top_k; k++)
                    assert_int_equal(row[k], fixture_id(&m, f.seed, position, 1, k));
            }
        }
    }
    for (int p = 0; p < N - 1; p++) assert_true(seen[p]);
    wb_replay_slice slice = {0};
    assert_int_equal(wb_replay_rows(r, 0, 1, 5, 4, &slice), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_rows(r, 0, 1, 9, 0, &slice), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_rows(r, 0, WB_ALL_LAYERS, 0, 9, &slice), WB_INVALID_ARGUMENT);
    assert_null(slice.ids);
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_bug_45_a_stage_uses_its_own_layers_of_the_whole(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(64, 3, 5);
    fixture_record f;
    fixture_complete(&f, &m, 3, 6);
    wb_replay_options o = wb_replay_options_default();
    o.first_layer = 2;
    o.n_layers = 2;
    wb_replay *r = NULL;
    OK(wb_replay_open(&m, &o, &r));
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 0, 6);
    plan_one(r, 1, &s);
    wb_replay_slice slice;
    assert_int_equal(wb_replay_rows(r, 0, 1, 0, 6, &slice), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_rows(r, 0, 4, 0, 6, &slice), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("MoE layer 2 (model layer 4)");
    uint8_t choice[3] = {9, 8, 7};
    for (int32_t l = 2; l < 4; l++) {
        assert_int_equal(row_direction(r, 0, 5), WB_ROW_NATIVE);
        OK(wb_replay_rows(r, 0, l, 0, 6, &slice));
        assert_int_equal(((const uint8_t *)slice.ids)[0], fixture_id(&m, f.seed, 0, (uint32_t)l, 0));
        OK(wb_replay_store(r, 0, l, 5, 1, choice, 3, NULL, 0));
        OK(follow(r, 0, l, 0, 5));
    }
    assert_int_equal(row_direction(r, 0, 5), WB_ROW_FORCED); /* the stage's layers are all there are for it */
    OK(wb_replay_end(r));
    wb_replay_close(r);
    fixture_close(&f);
}

/* ---- missing rows ---------------------------------------------------------------------------- */

static void test_rule_13_strict_names_request_position_and_layer(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 3);
    fixture_record f;
    fixture_complete(&f, &m, 8, 10);
    fixture_invalidate(&f, 4);
    fixture_invalidate(&f, 7);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    wb_segment s[] = {fixture_segment(&f, 0, 4), fixture_segment(&f, 2, 8)};
    assert_int_equal(wb_replay_plan(r, 0, 2, s), WB_MISSING_ROUTES);
    HAS_MESSAGE("request r-8: no route at position 4, MoE layer 0 (model layer 2");
    HAS_MESSAGE("2 of the segment's 8 rows are missing");
    assert_false(wb_replay_planned(r, 0));
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(metrics.rows == 0);
    OK(wb_replay_plan(r, 0, 1, s));
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_bug_40_a_record_without_routes_is_missing_not_zero(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 3);
    fixture_record f;
    fixture_open(&f, 8, 5);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    wb_segment s = fixture_segment(&f, 1, 4);
    assert_int_equal(wb_replay_plan(r, 0, 1, &s), WB_MISSING_ROUTES);
    HAS_MESSAGE("position 1");
    HAS_MESSAGE("3 of the segment's 4");
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_rule_16_native_row_reused_by_recompute(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 3);
    fixture_record f;
    fixture_open(&f, 8, 10);
    fixture_add_run(&f, &m, 2, 7);
    fixture_invalidate(&f, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_NATIVE);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 1, 9);
    plan_one(r, 1, &s);
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(metrics.fallback_rows == 2 && metrics.forced_rows == 6 && metrics.rows == 9);
    assert_true(fabs(metrics.fallback_share - 2.0 / 9) <= 1e-15);
    assert_false(wb_replay_dropped(r, 0, 0));
    assert_int_equal(row_direction(r, 0, 0), WB_ROW_NATIVE); /* position 1 */
    assert_int_equal(row_direction(r, 0, 3), WB_ROW_NATIVE); /* position 4 */
    assert_int_equal(row_direction(r, 0, 2), WB_ROW_FORCED);

    /* Layers arrive in any order and in slices: layer 2 of row 3 is stored while its layers 0 and 1 are
     * open. */
    uint8_t choice[3][2] = {{1, 2}, {3, 4}, {6, 5}};
    const int32_t order[3] = {2, 0, 1};
    for (int i = 0; i < 3; i++) {
        int32_t l = order[i];
        assert_int_equal(layer_direction(r, 0, l, 3), WB_ROW_NATIVE);
        assert_int_equal(row_direction(r, 0, 3), WB_ROW_NATIVE);
        OK(wb_replay_store(r, 0, l, 3, 1, choice[l], 2, NULL, 0));
        assert_int_equal(layer_direction(r, 0, l, 3), WB_ROW_FORCED);
        assert_int_equal(layer_direction(r, 0, l, 0), WB_ROW_NATIVE);
    }
    assert_int_equal(row_direction(r, 0, 3), WB_ROW_FORCED);
    for (int32_t l = 0; l < 3; l++) {
        wb_replay_slice slice;
        OK(wb_replay_rows(r, 0, l, 3, 1, &slice));
        assert_memory_equal(slice.ids, choice[l], 2);
        uint8_t other[2] = {9, 10}; /* a recompute that went elsewhere is found */
        assert_int_equal(wb_replay_store(r, 0, l, 3, 1, other, 2, NULL, 0), WB_MISMATCH);
        HAS_MESSAGE("row 3 was not routed as planned");
    }
    wb_replay_abort(r);
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1)); /* the next step knows nothing of it */
    OK(wb_replay_plan(r, 0, 1, &s));
    assert_int_equal(row_direction(r, 0, 3), WB_ROW_NATIVE);
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_rule_16_drop_reports_the_segment(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 1);
    fixture_record a, b;
    fixture_complete(&a, &m, 1, 6);
    fixture_complete(&b, &m, 2, 6);
    fixture_invalidate(&b, 3);
    wb_replay *r = open_replay(&m, WB_MISSING_DROP);
    OK(wb_replay_add(r, &m, &a.record));
    OK(wb_replay_add(r, &m, &b.record));
    wb_segment s[] = {fixture_segment(&a, 0, 6),
                      fixture_segment(&b, 0, 6),
                      fixture_segment(&b, 0, 3),
                      {WB_SEGMENT_RECORD, NULL, 0, 2, NULL}};
    plan_one(r, 4, s);
    assert_false(wb_replay_dropped(r, 0, 0));
    assert_true(wb_replay_dropped(r, 0, 1));
    assert_false(wb_replay_dropped(r, 0, 2));
    assert_false(wb_replay_dropped(r, 0, 3));
    assert_false(wb_replay_dropped(r, 0, 4));
    assert_false(wb_replay_dropped(r, 0, -1));
    assert_false(wb_replay_dropped(r, 1, 1));
    assert_int_equal(row_direction(r, 0, 6 + 3), WB_ROW_NATIVE);
    wb_replay_close(r);
    fixture_close(&a);
    fixture_close(&b);
}

/* ---- against a naive model ------------------------------------------------------------------- */

enum { WORLD_RECORDS = 4, WORLD_ROWS = 256 };

/* What each row of a micro-batch should be, one by one. */
typedef struct naive_row {
    int direction;
    const fixture_record *record;
    uint32_t position;
} naive_row;

static void random_record(fixture_record *f, const wb_route_model *m, uint64_t *state, uint64_t id) {
    uint32_t n = 1 + wb_random_below(state, 40), at = 0;
    fixture_open(f, id, n);
    for (int i = 0; i < 4; i++) {
        at += wb_random_below(state, 3) == 0 ? wb_random_below(state, 4) : 0;
        if (at >= n - 1) break;
        uint32_t rows = wb_random_below(state, n - at);
        fixture_add_run(f, m, at, rows);
        at += rows;
    }
    for (uint32_t i = wb_random_below(state, 4); i > 0; i--) fixture_invalidate(f, wb_random_below(state, n));
}

static uint32_t random_segments(uint64_t *state, const fixture_record *f, const wb_route_model *m,
                                wb_segment *segments, int *n, naive_row *rows, double *fallback) {
    uint32_t T = 0;
    *n = (int)wb_random_below(state, 6);
    for (int i = 0; i < *n; i++) {
        wb_segment *s = &segments[i];
        const fixture_record *one = &f[wb_random_below(state, WORLD_RECORDS)];
        *s = (wb_segment){(wb_segment_kind)wb_random_below(state, 3), NULL, 0, wb_random_below(state, 9),
                          NULL};
        if (s->kind == WB_SEGMENT_REPLAY) {
            s->rid = one->rid;
            s->start = wb_random_below(state, one->record.n_tokens + 1);
            s->rows = wb_random_below(state, one->record.n_tokens - s->start + 1);
            s->tokens = one->tokens + s->start;
        }
        for (uint32_t p = s->start; p < s->start + s->rows; p++) {
            bool forced = s->kind == WB_SEGMENT_REPLAY && wb_record_row(m, &one->record, p);
            bool missing = s->kind == WB_SEGMENT_REPLAY && !forced && p + 1 < one->record.n_tokens;
            int row_is = forced                          ? WB_ROW_FORCED
                         : s->kind == WB_SEGMENT_PADDING ? WB_ROW_PADDING
                                                         : WB_ROW_NATIVE;
            rows[T++] = (naive_row){row_is, one, p};
            *fallback += missing;
        }
    }
    return T;
}

static void test_random_plans_against_a_naive_model(void **unused) {
    (void)unused;
    uint64_t state = seed;
    for (int round = 0; round < 200; round++) {
        uint32_t E = wb_random_below(&state, 2) ? 16 + wb_random_below(&state, 240)
                                                : 257 + wb_random_below(&state, 99);
        wb_route_model m = fixture_model(E, 1 + wb_random_below(&state, 9), 1 + wb_random_below(&state, 4));
        fixture_record f[WORLD_RECORDS];
        wb_replay *r = open_replay(&m, WB_MISSING_NATIVE);
        for (uint64_t i = 0; i < WORLD_RECORDS; i++) {
            random_record(&f[i], &m, &state, i);
            OK(wb_replay_add(r, &m, &f[i].record));
        }
        for (int step = 0; step < 3; step++) { /* the memory of a larger plan before must not show */
            wb_segment segments[8];
            naive_row rows[WORLD_ROWS];
            int n;
            double fallback = 0;
            uint32_t T = random_segments(&state, f, &m, segments, &n, rows, &fallback);
            plan_one(r, n, segments);
            wb_replay_slice plan;
            assert_int_equal(wb_replay_rows(r, 0, WB_ALL_LAYERS, 0, T + 1, &plan), WB_INVALID_ARGUMENT);
            OK(wb_replay_rows(r, 0, WB_ALL_LAYERS, 0, T, &plan));
            for (uint32_t t = 0; t < T; t++) {
                assert_int_equal(plan.direction[t], rows[t].direction);
                if (rows[t].direction == WB_ROW_FORCED)
                    expect_forced(r, 0, t, rows[t].record, rows[t].position);
                const uint8_t *row = (const uint8_t *)plan.ids + t * wb_route_row_bytes(&m);
                for (size_t i = 0; i < (size_t)m.n_moe_layers * m.top_k; i++)
                    assert_true(wb_route_id(row, r->dtype, i) < E);
            }
            wb_replay_metrics metrics;
            wb_replay_get_metrics(r, &metrics, NULL);
            assert_true(metrics.rows == T && metrics.fallback_rows == fallback);
        }
        wb_replay_close(r);
        for (int i = 0; i < WORLD_RECORDS; i++) fixture_close(&f[i]);
    }
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    print_message("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_30_another_fingerprint_is_refused),
        cmocka_unit_test(test_bug_37_repeated_or_unknown_ids_are_refused),
        cmocka_unit_test(test_options_are_checked),
        cmocka_unit_test(test_rule_4_last_token_chooses_natively_and_is_not_missing),
        cmocka_unit_test(test_bug_39_rows_beyond_the_tokens_are_refused),
        cmocka_unit_test(test_rule_3_expert_255_of_256_is_an_expert),
        cmocka_unit_test(test_rule_2_u16_rows_at_odd_addresses),
        cmocka_unit_test(test_rule_6_runs_of_several_weight_versions_keep_their_rows),
        cmocka_unit_test(test_bug_54_packed_sequences_keep_all_their_rows),
        cmocka_unit_test(test_bug_47_zigzag_and_sequence_slices_make_the_whole),
        cmocka_unit_test(test_bug_45_a_stage_uses_its_own_layers_of_the_whole),
        cmocka_unit_test(test_rule_13_strict_names_request_position_and_layer),
        cmocka_unit_test(test_bug_40_a_record_without_routes_is_missing_not_zero),
        cmocka_unit_test(test_rule_16_native_row_reused_by_recompute),
        cmocka_unit_test(test_rule_16_drop_reports_the_segment),
        cmocka_unit_test(test_random_plans_against_a_naive_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
