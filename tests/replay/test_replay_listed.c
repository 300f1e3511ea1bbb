/* test_replay_listed.c - what indexers chose, replayed: forced positions by (micro-batch, layer), rows that
 * the record does not have, layers that share an indexer, what is told back, and the metrics of it. usage:
 * test_replay_listed [SEED] */
#include "replay_expect.h"
#include "support/test_seed.h"

#include <math.h>

enum { K = 4, TOKENS_MAX = 64 };

static uint64_t seed;

/* Layers 2, 3 and 5 of six have an indexer; 3 uses that of 2. MoE layers are 2 .. 5. */
static const uint32_t indexer_layers[] = {2, 3, 5}, indexer_source[] = {2, 2, 5};

static wb_route_model listed_model(void) {
    wb_route_model m = fixture_model(16, 2, 4);
    m.n_indexer_layers = 3;
    m.indexer_k = K;
    m.indexer_layers = indexer_layers;
    m.indexer_source = indexer_source;
    OK(wb_route_model_check(&m));
    return m;
}

/* The positions that the token at `position` of record `record_seed` looks at by a column, [K] with -1 behind
 * the last: about every second one, and all of the first few. */
static void choice_of(uint64_t record_seed, uint32_t position, uint32_t column, int32_t listed[K]) {
    uint64_t state = record_seed * 7919 + position * 2 + column;
    uint32_t n = 0;
    const bool all = wb_random_below(&state, 4) == 0;
    for (uint32_t p = 0; p <= position && n < K; p++)
        if (all || wb_random_below(&state, 2) == 0) listed[n++] = (int32_t)p;
    while (n < K) listed[n++] = -1;
}

/* Indexer rows [start, start + rows) of a record; a choice of the first ones is stored without positions
 * where `short_form` is true. */
typedef struct listed_record {
    fixture_record f;
    wb_indexer_rows rows;
    uint32_t counts[2 * TOKENS_MAX], positions[2 * TOKENS_MAX * K];
    uint64_t ends[2 * TOKENS_MAX];
} listed_record;

static void listed_open(listed_record *x, const wb_route_model *m, uint64_t record_seed, uint32_t n_tokens,
                        uint32_t start, uint32_t rows, bool short_form) {
    uint64_t at = 0;
    fixture_complete(&x->f, m, record_seed, n_tokens);
    for (uint32_t cell = 0; cell < 2 * rows; cell++) {
        int32_t listed[K];
        uint32_t n = 0;
        choice_of(record_seed, start + cell / 2, cell % 2, listed);
        while (n < K && listed[n] >= 0) n++;
        x->counts[cell] = n;
        const bool first_ones = n > 0 && listed[n - 1] == (int32_t)n - 1;
        for (uint32_t j = 0; !(first_ones && short_form) && j < n; j++)
            x->positions[at++] = (uint32_t)listed[j];
        x->ends[cell] = at;
    }
    x->rows = (wb_indexer_rows){start, rows, x->counts, x->ends, x->positions};
    x->f.record.indexer = &x->rows;
}

static wb_replay *open_listed(const wb_route_model *m, wb_missing_policy missing) {
    wb_replay_options o = wb_replay_options_default();
    wb_replay *r = NULL;
    o.missing = missing;
    o.indexer = true;
    OK(wb_replay_open(m, &o, &r));
    return r;
}

/* The row's list is that of `position` of the record, or it has none and its direction is `direction`. */
static void expect_row(wb_replay *r, uint32_t i, uint32_t t, int direction, uint64_t record_seed,
                       uint32_t position) {
    const uint32_t column = i == 2;
    int32_t expected[K] = {-1, -1, -1, -1}, listed[K];
    uint8_t found;
    wb_replay_indexer_slice slice;
    OK(wb_replay_indexer_rows(r, 0, i, t, 1, listed, &found, &slice));
    assert_int_equal(found, direction);
    assert_int_equal(slice.any_forced, direction == WB_ROW_FORCED);
    assert_int_equal(slice.any_native, direction == WB_ROW_NATIVE);
    if (direction == WB_ROW_FORCED) choice_of(record_seed, position, column, expected);
    assert_memory_equal(listed, expected, sizeof listed);
}

/* Every row of every layer is told, as a forward does that would choose what choice_of says of
 * `native_seed`. */
static wb_status tell_all(wb_replay *r, uint32_t i, uint32_t T, const uint32_t *positions,
                          uint64_t native_seed, bool first_pass) {
    int32_t used[TOKENS_MAX * K], native[TOKENS_MAX * K];
    uint8_t direction[TOKENS_MAX];
    wb_replay_indexer_slice slice;
    wb_status status = wb_replay_indexer_rows(r, 0, i, 0, T, used, direction, &slice);
    if (status != WB_OK) return status;
    for (uint32_t t = 0; t < T; t++) {
        choice_of(native_seed, positions[t], i == 2, native + (size_t)t * K);
        if (direction[t] == WB_ROW_NATIVE)
            memcpy(used + (size_t)t * K, native + (size_t)t * K, K * sizeof *used);
    }
    if (!first_pass) assert_false(slice.any_native);
    return wb_replay_indexer_store(r, 0, i, 0, T, used, native);
}

static void follow_experts(wb_replay *r, uint32_t T) {
    for (int32_t l = 0; l < 4; l++) OK(follow(r, 0, l, 0, T));
}

/* ---- planned ---------------------------------------------------------------------------------- */

/* Random packings of records in both forms: each row looks where its record says; the last token and padding
 * have no list. Rows asked for in slices are those of the whole. */
static void test_forced_rows(void **unused) {
    (void)unused;
    uint64_t state = seed;
    const wb_route_model m = listed_model();
    for (int round = 0; round < 40; round++) {
        listed_record x[3];
        wb_segment segments[4];
        uint32_t T = 0, first[4];
        wb_replay *r = open_listed(&m, WB_MISSING_STRICT);
        for (uint32_t i = 0; i < 3; i++) {
            const uint32_t n = 2 + wb_random_below(&state, 10), start = wb_random_below(&state, n);
            listed_open(&x[i], &m, 100 + i, n, 0, n - 1, wb_random_below(&state, 2));
            OK(wb_replay_add(r, &m, &x[i].f.record));
            segments[i] = fixture_segment(&x[i].f, start, n - start);
            first[i] = T;
            T += n - start;
        }
        segments[3] = (wb_segment){WB_SEGMENT_PADDING, NULL, 0, 3, NULL};
        first[3] = T;
        plan_one(r, 4, segments);
        for (uint32_t i = 0; i < 3; i++)
            for (uint32_t layer = 0; layer < 3; layer++)
                for (uint32_t t = 0; t < segments[i].rows; t++) {
                    const uint32_t p = segments[i].start + t;
                    const bool last = p + 1 == x[i].f.record.n_tokens;
                    expect_row(r, layer, first[i] + t, last ? WB_ROW_NATIVE : WB_ROW_FORCED, 100 + i, p);
                }
        for (uint32_t t = 0; t < 3; t++) expect_row(r, 1, first[3] + t, WB_ROW_PADDING, 0, 0);
        int32_t whole[TOKENS_MAX * K], one[K];
        uint8_t directions[TOKENS_MAX], direction;
        wb_replay_indexer_slice slice;
        OK(wb_replay_indexer_rows(r, 0, 2, 0, T + 3, whole, directions, &slice));
        for (uint32_t t = 0; t < T + 3; t++) {
            OK(wb_replay_indexer_rows(r, 0, 2, t, 1, one, &direction, &slice));
            assert_memory_equal(one, whole + (size_t)t * K, sizeof one);
            assert_int_equal(direction, directions[t]);
        }
        wb_replay_close(r);
        for (uint32_t i = 0; i < 3; i++) fixture_close(&x[i].f);
    }
}

/* ---- a step ----------------------------------------------------------------------------------- */

/* The rows that chose in the first pass are forced to it in the second, by both layers of the indexer; the
 * step ends when every row of every indexer was told, and not before. */
static void test_a_step(void **unused) {
    (void)unused;
    const wb_route_model m = listed_model();
    listed_record x;
    listed_open(&x, &m, 5, 12, 0, 11, true);
    const uint32_t positions[13] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0};
    const wb_segment s[] = {fixture_segment(&x.f, 0, 12), {WB_SEGMENT_PADDING, NULL, 0, 1, NULL}};
    for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode++) {
        wb_replay *r = open_listed(&m, WB_MISSING_STRICT);
        OK(wb_replay_add(r, &m, &x.f.record));
        OK(wb_replay_begin(r, (wb_replay_mode)mode, 1));
        const wb_segment own[] = {wb_replay_segment(r, x.f.rid, 0, 12, x.f.tokens), s[1]};
        OK(wb_replay_plan(r, 0, 2, own));
        if (mode != WB_REPLAY_OFF) {
            follow_experts(r, 13);
            assert_int_equal(wb_replay_end(r), WB_MISMATCH);
            HAS_MESSAGE(
                "indexer of model layer 2: expected to be told where all 13 rows looked, found row 0");
        }
        OK(tell_all(r, 1, 13, positions, 6, true));
        if (mode != WB_REPLAY_OFF) {
            assert_int_equal(wb_replay_end(r), WB_MISMATCH);
            HAS_MESSAGE("indexer of model layer 5");
        }
        OK(tell_all(r, 2, 13, positions, 6, true));
        if (mode != WB_REPLAY_OFF) OK(tell_all(r, 0, 13, positions, 8, false));
        /* R3: the record's, and the last token's own; R2: all its own; off: nothing is kept. */
        for (uint32_t t = 0; t < 12; t++) {
            const bool own_choice = mode == WB_REPLAY_RECORD || t == 11;
            expect_row(r, 0, t, mode == WB_REPLAY_OFF ? WB_ROW_NATIVE : WB_ROW_FORCED, own_choice ? 6 : 5, t);
        }
        OK(wb_replay_end(r));
        wb_replay_close(r);
    }
    fixture_close(&x.f);
}

static void test_missing_rows(void **unused) {
    (void)unused;
    const wb_route_model m = listed_model();
    const uint32_t positions[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    for (int policy = WB_MISSING_STRICT; policy <= WB_MISSING_DROP; policy++) {
        listed_record x;
        listed_open(&x, &m, 5, 12, 3, 6, false); /* rows 3 .. 8 of 0 .. 10 */
        const wb_segment all = fixture_segment(&x.f, 0, 12), some = fixture_segment(&x.f, 3, 6);
        const wb_segment behind = fixture_segment(&x.f, 4, 7);
        wb_replay *r = open_listed(&m, (wb_missing_policy)policy);
        OK(wb_replay_add(r, &m, &x.f.record));
        OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
        if (policy == WB_MISSING_STRICT) {
            assert_int_equal(wb_replay_plan(r, 0, 1, &all), WB_MISSING_ROUTES);
            HAS_MESSAGE(
                "request r-5: the record does not say what indexers chose at position 0, model layer 2; "
                "5 of the segment's 12 rows are missing");
            assert_int_equal(wb_replay_plan(r, 0, 1, &behind), WB_MISSING_ROUTES);
            HAS_MESSAGE("at position 9, model layer 2; 2 of the segment's 7 rows");
            OK(wb_replay_plan(r, 0, 1, &some));
        } else {
            double fallback = 0;
            OK(wb_replay_plan(r, 0, 1, &all));
            assert_int_equal(wb_replay_dropped(r, 0, 0), policy == WB_MISSING_DROP);
            wb_replay_get_indexer_metrics(r, &fallback, NULL);
            assert_true(fallback == 5);
            for (uint32_t t = 0; t < 12; t++)
                expect_row(r, 2, t, t >= 3 && t < 9 ? WB_ROW_FORCED : WB_ROW_NATIVE, 5, t);
            OK(tell_all(r, 2, 12, positions, 6, true));
            for (uint32_t t = 0; t < 12; t++) expect_row(r, 2, t, WB_ROW_FORCED, t >= 3 && t < 9 ? 5 : 6, t);
        }
        wb_replay_close(r);
        fixture_close(&x.f);
    }
}

/* ---- told and measured ------------------------------------------------------------------------- */

static void test_what_is_refused(void **unused) {
    (void)unused;
    const wb_route_model m = listed_model();
    wb_route_model without = m;
    wb_replay_options o = wb_replay_options_default();
    listed_record x;
    wb_replay *r = NULL;
    int32_t listed[K], wrong[K];
    uint8_t direction;
    wb_replay_indexer_slice slice;
    without.n_indexer_layers = without.indexer_k = 0;
    o.indexer = true;
    assert_int_equal(wb_replay_open(&without, &o, &r), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("the model has no layer with an indexer");
    listed_open(&x, &m, 5, 12, 0, 11, false);
    r = open_listed(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &x.f.record));
    const wb_segment s = fixture_segment(&x.f, 0, 12);
    plan_one(r, 1, &s);
    OK(wb_replay_indexer_rows(r, 0, 0, 7, 1, listed, &direction, &slice));
    OK(wb_replay_indexer_store(r, 0, 0, 7, 1, listed, NULL));
    char planned[96];
    assert_true(listed[3] >= 0);
    memcpy(wrong, (const int32_t[K]){listed[0], listed[1], listed[2], -1}, sizeof wrong);
    snprintf(planned, sizeof planned,
             "number 3 of its list: expected as planned %" PRId32 " of 4 positions, found -1 of 3",
             listed[3]);
    assert_int_equal(wb_replay_indexer_store(r, 0, 0, 7, 1, wrong, NULL), WB_MISMATCH);
    HAS_MESSAGE("micro-batch 0, indexer of model layer 2, row 7: request r-5, position 7: ");
    HAS_MESSAGE(planned);
    memcpy(wrong, (const int32_t[K]){3, 2, -1, -1}, sizeof wrong);
    assert_int_equal(wb_replay_indexer_store(r, 0, 0, 7, 1, listed, wrong), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("request r-5, position 7: number 1 of its list: expected a position above 3, found 2");
    memcpy(wrong, (const int32_t[K]){3, -1, 5, -1}, sizeof wrong);
    assert_int_equal(wb_replay_indexer_store(r, 0, 0, 7, 1, listed, wrong), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("number 2 of its list: expected behind the last position -1, found 5");
    memcpy(wrong, (const int32_t[K]){3, 8, -1, -1}, sizeof wrong);
    assert_int_equal(wb_replay_indexer_store(r, 0, 0, 7, 1, listed, wrong), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("number 1 of its list: expected a position below 8, found 8");
    assert_int_equal(wb_replay_indexer_store(r, 0, 0, 11, 1, NULL, NULL), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("row 11: request r-5, position 11: it chose natively: expected the positions");
    assert_int_equal(wb_replay_indexer_rows(r, 0, 3, 0, 1, listed, &direction, &slice), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("indexer layer 3: the replay was opened with 3");
    assert_int_equal(wb_replay_indexer_rows(r, 0, 0, 12, 1, listed, &direction, &slice), WB_INVALID_ARGUMENT);
    wb_replay_close(r);
    r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &x.f.record));
    plan_one(r, 1, &s);
    assert_int_equal(wb_replay_indexer_rows(r, 0, 0, 0, 1, listed, &direction, &slice), WB_INVALID_ARGUMENT);
    wb_replay_close(r);
    fixture_close(&x.f);
}

/* Where the model knows its rate, what is replayed and told is of the entries that are complete, as many. */
static void test_entries_that_are_complete(void **unused) {
    (void)unused;
    wb_route_model m = listed_model();
    listed_record x;
    const int32_t future[K] = {0, 1, 2, 4}, fewer[K] = {0, 1, 3, -1}, all[K] = {0, 1, 2, 3};
    m.indexer_rate = 2;
    listed_open(&x, &m, 5, 12, 0, 11, false);
    wb_replay *r = open_listed(&m, WB_MISSING_NATIVE);
    assert_int_equal(wb_replay_add(r, &m, &x.f.record), WB_INVALID_ARGUMENT);
    HAS_MESSAGE(": indexer: position ");
    x.f.record.indexer = NULL;
    OK(wb_replay_add(r, &m, &x.f.record));
    const wb_segment s = fixture_segment(&x.f, 0, 12);
    plan_one(r, 1, &s);
    assert_int_equal(wb_replay_indexer_store(r, 0, 0, 7, 1, future, NULL), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("row 7: request r-5, position 7: number 3 of its list: expected a position below 4, found 4");
    assert_int_equal(wb_replay_indexer_store(r, 0, 0, 7, 1, fewer, NULL), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("row 7: request r-5, position 7: expected a count of 4, found 3");
    OK(wb_replay_indexer_store(r, 0, 0, 7, 1, all, NULL));
    wb_replay_close(r);
    fixture_close(&x.f);
}

/* Three rows: the same positions, one of two shared, and none against some. Told again they count no more. */
static void test_fidelity_by_hand(void **unused) {
    (void)unused;
    const wb_route_model m = listed_model();
    uint32_t counts[6] = {1, 1, 2, 2, 0, 0}, positions[6] = {0, 0, 0, 1, 0, 1};
    uint64_t ends[6] = {1, 2, 4, 6, 6, 6};
    const wb_indexer_rows rows = {0, 3, counts, ends, positions};
    const int32_t native[4][K] = {{0, -1, -1, -1}, {1, -1, -1, -1}, {2, -1, -1, -1}, {-1, -1, -1, -1}};
    for (int off = 0; off < 2; off++) {
        fixture_record f;
        wb_replay *r = open_listed(&m, WB_MISSING_STRICT);
        wb_replay_indexer_metrics layers[3];
        fixture_complete(&f, &m, 1, 4);
        f.record.indexer = &rows;
        OK(wb_replay_add(r, &m, &f.record));
        const wb_segment s = fixture_segment(&f, 0, 4);
        OK(wb_replay_begin(r, off ? WB_REPLAY_OFF : WB_REPLAY_ROLLOUT, 1));
        OK(wb_replay_plan(r, 0, 1, &s));
        for (int again = 0; again < 2; again++) {
            int32_t used[4][K];
            uint8_t direction[4];
            wb_replay_indexer_slice slice;
            OK(wb_replay_indexer_rows(r, 0, 0, 0, 4, used[0], direction, &slice));
            assert_int_equal(slice.want_native, !off && !again);
            assert_int_equal(slice.want_used, !again);
            if (off)
                OK(wb_replay_indexer_store(r, 0, 0, 0, 4, native[0], NULL));
            else
                OK(wb_replay_indexer_store(r, 0, 0, 0, 4, used[0], native[0]));
        }
        wb_replay_get_indexer_metrics(r, NULL, layers);
        assert_true(layers[0].tokens == 3 && layers[1].tokens == 3 && layers[2].tokens == 0);
        assert_true(fabs(layers[1].overlap - (1 + 0.5 + 1) / 3) <= 1e-15);
        assert_true(fabs(layers[0].differ - 2.0 / 3) <= 1e-15);
        wb_replay_close(r);
        fixture_close(&f);
    }
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forced_rows),
        cmocka_unit_test(test_a_step),
        cmocka_unit_test(test_missing_rows),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_entries_that_are_complete),
        cmocka_unit_test(test_fidelity_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
