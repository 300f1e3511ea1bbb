/* test_replay_step.c - a step under each mode: what is handed out, taken back, and found unused at the end.
 * Each test is named after the rule it holds, or the bug it keeps out. */
#include "replay_expect.h"
#include "support/test_seed.h"

#include <math.h>

static uint64_t seed;

/* ---- store ----------------------------------------------------------------------------------- */

static void test_rule_19_record_segments_follow_the_first_pass(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(300, 3, 2); /* u16 */
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    wb_segment s = {WB_SEGMENT_RECORD, NULL, 0, 3, NULL};
    OK(wb_replay_begin(r, WB_REPLAY_RECORD, 1));
    OK(wb_replay_plan(r, 0, 1, &s));
    uint16_t chosen[3][5] = {{299, 1, 2, 0, 0}, {5, 4, 3, 0, 0}, {256, 0, 17, 0, 0}}; /* stride 5 */
    for (int32_t l = 0; l < 2; l++) {
        OK(wb_replay_store(r, 0, l, 0, 2, chosen, 5, chosen, 5)); /* in two slices */
        assert_int_equal(layer_direction(r, 0, l, 2), WB_ROW_NATIVE);
        OK(wb_replay_store(r, 0, l, 2, 1, chosen[2], 5, NULL, 0));
    }
    wb_replay_metrics metrics;
    wb_replay_layer_metrics layers[2];
    wb_replay_get_metrics(r, &metrics, layers);
    assert_true(layers[0].tokens == 0); /* the first pass is not measured against itself */
    uint16_t native[3][3] = {{299, 1, 2}, {5, 4, 9}, {17, 256, 0}};
    OK(wb_replay_store(r, 0, 0, 0, 3, chosen, 5, native, 3));
    wb_replay_get_metrics(r, &metrics, layers);
    assert_true(layers[0].tokens == 3 && layers[1].tokens == 0);
    assert_true(fabs(layers[0].overlap - (1 + 2.0 / 3 + 1) / 3) <= 1e-15);
    assert_true(fabs(layers[0].differ - 1.0 / 3) <= 1e-15); /* the order of choices is no difference */
    wb_replay_slice rows;
    OK(wb_replay_rows(r, 0, WB_ALL_LAYERS, 0, 3, &rows));
    for (uint32_t t = 0; t < 3; t++) {
        assert_int_equal(rows.direction[t], WB_ROW_FORCED);
        for (uint32_t l = 0; l < 2; l++)
            assert_memory_equal((const uint16_t *)rows.ids + (t * 2 + l) * 3, chosen[t], 6);
    }
    wb_replay_close(r);
}

/* What a forward of all layers of a stage tells in one call is what a trainer tells layer by layer. */
enum { BULK_L = 4, BULK_K = 2, BULK_T = 4, BULK_STRIDE = BULK_L * BULK_K };
typedef uint16_t bulk_ids[BULK_T][BULK_L][BULK_K];

typedef struct bulk_case {
    wb_route_model m;
    fixture_record f;
    int32_t first, end;     /* layers of the stage */
    wb_replay *bulk, *each; /* told at once, told layer by layer */
    wb_segment segments[2];
    bulk_ids used, native;
} bulk_case;

static wb_replay *open_stage(const wb_route_model *m, int32_t first, int32_t end) {
    wb_replay_options o = wb_replay_options_default();
    o.first_layer = first;
    o.n_layers = end - first;
    wb_replay *r = NULL;
    OK(wb_replay_open(m, &o, &r));
    return r;
}

static void plan_bulk(const bulk_case *c, wb_replay *r, wb_replay_mode mode) {
    wb_replay_clear(r);
    OK(wb_replay_add(r, &c->m, &c->f.record));
    OK(wb_replay_begin(r, mode, 1));
    OK(wb_replay_plan(r, 0, 2, c->segments));
}

/* Ids of a forward of the stage's layers; those of other layers are out of range. */
static void forward_bulk(bulk_case *c, const wb_replay_slice *slice) {
    memset(c->used, 0xff, sizeof c->used);
    memset(c->native, 0xff, sizeof c->native);
    for (uint32_t t = 0; t < BULK_T; t++)
        for (int32_t l = c->first; l < c->end; l++) {
            c->native[t][l][0] = (uint16_t)(t + (uint32_t)l);
            c->native[t][l][1] = (uint16_t)(299 - l);
            const uint16_t *planned = (const uint16_t *)slice->ids + t * (size_t)slice->stride + l * BULK_K;
            const bool chose = slice->direction[t] == WB_ROW_NATIVE;
            memcpy(c->used[t][l], chose ? c->native[t][l] : planned, sizeof c->used[t][l]);
        }
}

static void expect_bulk_is_each(const bulk_case *c, wb_replay_mode mode) {
    size_t n = 0;
    double *sums = wb_replay_metric_sums(c->bulk, &n);
    assert_memory_equal(sums, wb_replay_metric_sums(c->each, &n), n * sizeof *sums);
    assert_true(sums[SUMS_FIXED + c->first * SUMS_PER_LAYER + LAYER_TOKENS] == 2);
    wb_replay_slice rows, other;
    OK(wb_replay_rows(c->bulk, 0, WB_ALL_LAYERS, 0, BULK_T, &rows));
    OK(wb_replay_rows(c->each, 0, WB_ALL_LAYERS, 0, BULK_T, &other));
    assert_memory_equal(rows.ids, other.ids, sizeof c->used);
    assert_memory_equal(rows.direction, other.direction, BULK_T);
    assert_int_equal(rows.any_native, mode == WB_REPLAY_OFF);
    const uint16_t(*ids)[BULK_L][BULK_K] = rows.ids;
    for (uint32_t t = 0; t < BULK_T && mode == WB_REPLAY_ROLLOUT; t++)
        for (int32_t l = c->first; l < c->end; l++)
            assert_memory_equal(ids[t][l], c->used[t][l], sizeof c->used[t][l]);
}

/* A fault in the last layer leaves the first ones unchanged too. */
static void expect_bulk_all_or_nothing(bulk_case *c, wb_replay_mode mode) {
    char message[96];
    size_t n = 0;
    wb_replay *r = c->bulk;
    wb_replay_abort(r);
    OK(wb_replay_begin(r, mode, 1));
    OK(wb_replay_plan(r, 0, 2, c->segments));
    uint16_t *last = c->native[0][c->end - 1];
    last[1] = last[0];
    assert_int_equal(
        wb_replay_store(r, 0, WB_ALL_LAYERS, 0, BULK_T, c->used, BULK_STRIDE, c->native, BULK_STRIDE),
        WB_INVALID_ARGUMENT);
    snprintf(message, sizeof message, "MoE layer %d, row 0: native expert %d is chosen twice", c->end - 1,
             last[0]);
    HAS_MESSAGE(message);
    assert_int_equal(wb_replay_store(r, 0, WB_ALL_LAYERS, 0, BULK_T, c->used, BULK_K, NULL, 0),
                     WB_INVALID_ARGUMENT);
    HAS_MESSAGE("stride of 8");
    const double *sums = wb_replay_metric_sums(r, &n) + SUMS_FIXED;
    for (int32_t l = 0; l < BULK_L; l++) assert_true(sums[l * SUMS_PER_LAYER + LAYER_TOKENS] == 0);
    assert_int_equal(row_direction(r, 0, 2), WB_ROW_NATIVE);
}

static void all_layers_at_once(int32_t first, int32_t end) {
    bulk_case c = {.m = fixture_model(300, BULK_K, BULK_L), .first = first, .end = end}; /* u16 */
    fixture_complete(&c.f, &c.m, 9, 3); /* two rows; the last token chooses */
    c.bulk = open_stage(&c.m, first, end);
    c.each = open_stage(&c.m, first, end);
    c.segments[0] = fixture_segment(&c.f, 0, 3);
    c.segments[1] = (wb_segment){WB_SEGMENT_PADDING, NULL, 0, 1, NULL};
    for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode += 2) {
        plan_bulk(&c, c.bulk, (wb_replay_mode)mode);
        plan_bulk(&c, c.each, (wb_replay_mode)mode);
        wb_replay_slice slice;
        OK(wb_replay_rows(c.bulk, 0, WB_ALL_LAYERS, 0, BULK_T, &slice));
        assert_true(slice.any_native && slice.any_forced); /* the last token; padding at least */
        assert_int_equal(slice.undecided, mode != WB_REPLAY_OFF);
        forward_bulk(&c, &slice);
        OK(wb_replay_store(c.bulk, 0, WB_ALL_LAYERS, 0, BULK_T, c.used, BULK_STRIDE, c.native, BULK_STRIDE));
        for (int32_t l = first; l < end; l++)
            OK(wb_replay_store(c.each, 0, l, 0, BULK_T, c.used[0][l], BULK_STRIDE, c.native[0][l],
                               BULK_STRIDE));
        OK(wb_replay_end(c.bulk));
        expect_bulk_is_each(&c, (wb_replay_mode)mode);
        expect_bulk_all_or_nothing(&c, (wb_replay_mode)mode);
    }
    wb_replay_close(c.bulk);
    wb_replay_close(c.each);
    fixture_close(&c.f);
}

static void test_rule_19_all_layers_at_once_are_the_layers_one_by_one(void **unused) {
    (void)unused;
    all_layers_at_once(0, BULK_L);
    all_layers_at_once(1, 3); /* a pipeline stage */
}

static void test_rule_19_record_mode_refuses_replay_segments(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 1);
    fixture_record f;
    fixture_complete(&f, &m, 1, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    OK(wb_replay_begin(r, WB_REPLAY_RECORD, 1));
    wb_segment s = fixture_segment(&f, 0, 3);
    assert_int_equal(wb_replay_plan(r, 0, 1, &s), WB_MISMATCH);
    HAS_MESSAGE("mode record");
    assert_false(wb_replay_planned(r, 0));
    s = wb_replay_segment(r, f.rid, 0, 3, f.tokens);
    assert_int_equal(s.kind, WB_SEGMENT_RECORD);
    OK(wb_replay_plan(r, 0, 1, &s));
    wb_replay_abort(r);
    OK(wb_replay_begin(r, WB_REPLAY_OFF, 1));
    s = wb_replay_segment(r, f.rid, 1, 2, f.tokens + 1);
    assert_true(s.kind == WB_SEGMENT_REPLAY && s.rid == f.rid && s.start == 1 && s.rows == 2);
    assert_ptr_equal(s.tokens, f.tokens + 1);
    wb_replay_abort(r);
    assert_int_equal(wb_replay_begin(r, (wb_replay_mode)3, 1), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_replay_mode_name((wb_replay_mode)3), "unknown");
    wb_replay_close(r);
    fixture_close(&f);
}

/* Off forces and keeps nothing, plan or no plan; padding is no token and goes where it is told. */
static void test_rule_19_off_forces_nothing(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    OK(wb_replay_begin(r, WB_REPLAY_OFF, 2));
    wb_segment s[] = {fixture_segment(&f, 0, 3), {WB_SEGMENT_PADDING, NULL, 0, 1, NULL}};
    OK(wb_replay_plan(r, 0, 2, s));
    uint8_t used[4][2] = {{0, 1}, {0, 1}, {0, 1}, {9, 8}};
    wb_replay_slice slice;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t t = 0; t < 3; t++) assert_int_equal(layer_direction(r, 0, 0, t), WB_ROW_NATIVE);
        assert_int_equal(layer_direction(r, 0, 0, 3), WB_ROW_PADDING);
        OK(wb_replay_rows(r, 0, 0, 0, 4, &slice));
        assert_true(slice.want_used == (pass == 0) && !slice.want_native && !slice.undecided);
        OK(wb_replay_store(r, 0, 0, 0, 3, used, 2, NULL, 0));
    }
    assert_int_equal(wb_replay_store(r, 0, 0, 0, 4, used, 2, NULL, 0), WB_MISMATCH); /* padding went astray */
    int64_t counts[16], total = 0;
    OK(wb_replay_counts(r, 0, 0, 0, 4, counts));
    for (int e = 0; e < 16; e++) total += counts[e];
    assert_int_equal(total, 0);
    OK(wb_replay_rows(r, 1, 0, 0, 7, &slice)); /* never planned */
    assert_true(slice.rows == 7 && slice.any_native && !slice.any_forced && !slice.direction &&
                !slice.want_used);
    OK(wb_replay_store(r, 1, 0, 0, 7, NULL, 0, NULL, 0));
    OK(wb_replay_end(r));
    wb_replay_layer_metrics layers[2];
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, layers);
    assert_true(layers[0].tokens == 3 && layers[1].tokens == 0);
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_store_checks_before_it_changes_anything(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 1);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    wb_segment s = {WB_SEGMENT_RECORD, NULL, 0, 3, NULL};
    plan_one(r, 1, &s);
    uint8_t twice[] = {1, 2, 3, 4, 5, 5}, outside[] = {1, 2, 3, 4, 5, 16}, good[] = {1, 2, 3, 4, 5, 6};
    assert_int_equal(wb_replay_store(r, 0, 0, 0, 3, twice, 2, NULL, 0), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("row 2: used expert 5 is chosen twice");
    assert_int_equal(wb_replay_store(r, 0, 0, 0, 3, outside, 2, NULL, 0), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("out of range");
    assert_int_equal(wb_replay_store(r, 0, 0, 0, 3, NULL, 0, NULL, 0), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("row 0 chose natively");
    assert_int_equal(wb_replay_store(r, 0, 0, 0, 3, good, 1, NULL, 0), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("stride");
    assert_int_equal(wb_replay_store(r, 0, 1, 0, 3, good, 2, NULL, 0), WB_INVALID_ARGUMENT);
    for (uint32_t t = 0; t < 3; t++) assert_int_equal(row_direction(r, 0, t), WB_ROW_NATIVE);
    assert_int_equal(wb_replay_end(r), WB_MISMATCH); /* none of these was a use */
    OK(wb_replay_store(r, 0, 0, 0, 3, good, 2, NULL, 0));
    OK(wb_replay_end(r));
    assert_int_equal(wb_replay_end(r), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("no step is open");
    assert_int_equal(wb_replay_store(r, 0, 0, 0, 3, good, 2, outside, 2), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("native expert 16");
    wb_replay_layer_metrics layer;
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, &layer);
    assert_true(layer.tokens == 0);
    wb_replay_close(r);
}

/* ---- use ------------------------------------------------------------------------------------- */

static void test_rule_15_any_order_any_number_of_times(void **unused) {
    (void)unused;
    enum { MBS = 4, L = 3, ROWS = 4, CELLS = MBS * L * ROWS };
    wb_route_model m = fixture_model(64, 4, L);
    fixture_record f[MBS];
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, MBS));
    for (int i = 0; i < MBS; i++) {
        fixture_complete(&f[i], &m, 10 + (uint64_t)i, 5);
        OK(wb_replay_add(r, &m, &f[i].record));
        wb_segment s = fixture_segment(&f[i], 0, ROWS);
        OK(wb_replay_plan(r, i, 1, &s));
    }
    uint64_t state = seed;
    /* Cells at random, and in the end each once, since draws alone may leave one out. */
    for (uint32_t n = 0; n < 500 + CELLS; n++) {
        const uint32_t cell = n < 500 ? wb_random_below(&state, CELLS) : n - 500;
        const int32_t mb = (int32_t)(cell / ROWS / L), l = (int32_t)(cell / ROWS % L);
        const uint32_t t = cell % ROWS;
        wb_replay_slice slice;
        OK(wb_replay_rows(r, mb, l, t, 1, &slice));
        for (uint32_t k = 0; k < 4; k++)
            assert_int_equal(((const uint8_t *)slice.ids)[k], fixture_id(&m, f[mb].seed, t, (uint32_t)l, k));
        OK(follow(r, mb, l, t, 1));
    }
    OK(wb_replay_end(r));
    wb_replay_close(r);
    for (int i = 0; i < MBS; i++) fixture_close(&f[i]);
}

static void test_rule_15_an_unused_pair_is_named(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 3));
    wb_segment s = {WB_SEGMENT_PADDING, NULL, 0, 2, NULL};
    OK(wb_replay_plan(r, 0, 1, &s));
    OK(wb_replay_plan(r, 1, 1, &s));
    for (int pair = 0; pair < 3; pair++) OK(follow(r, pair / 2, pair % 2, 0, 2));
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("micro-batch 1, MoE layer 1 (model layer 3)");
    OK(follow(r, 1, 1, 0, 2));
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("micro-batch 2 was not planned");
    wb_replay_slice slice;
    assert_int_equal(wb_replay_rows(r, 2, 0, 0, 0, &slice), WB_INVALID_ARGUMENT);
    OK(wb_replay_plan(r, 2, 0, NULL)); /* no rows: nothing to use */
    OK(wb_replay_end(r));
    wb_replay_close(r);
}

/* Asking for rows is not following them, and choosing neither; each row counts, and counts once. */
static void test_rule_15_each_row_is_followed_or_named(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 7);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s[] = {fixture_segment(&f, 0, 7), {WB_SEGMENT_PADDING, NULL, 0, 2, NULL}};
    plan_one(r, 2, s);
    uint8_t chosen[9][2];
    for (int32_t l = 0; l < 2; l++) {
        wb_replay_slice slice;
        OK(wb_replay_rows(r, 0, l, 0, 9, &slice));
        assert_true(slice.want_chosen && slice.want_used);
        for (int t = 0; t < 9; t++) memcpy(chosen[t], (const uint8_t *)slice.ids + t * slice.stride, 2);
        memcpy(chosen[6], (uint8_t[]){5, 4}, 2); /* the last token chooses */
        OK(wb_replay_choose(r, 0, l, 0, 9, chosen, 2, NULL, 0));
        assert_int_equal(layer_direction(r, 0, l, 6), WB_ROW_FORCED);
        OK(wb_replay_rows(r, 0, l, 0, 9, &slice));
        assert_true(!slice.want_chosen && slice.want_used);
    }
    OK(wb_replay_store(r, 0, 0, 0, 9, NULL, 0, chosen, 2)); /* what they would choose is not where they go */
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("micro-batch 0, MoE layer 0 (model layer 2): expected to be told where all 9 rows went, "
                "found 9 untold, the first is row 0");
    OK(follow(r, 0, 0, 0, 1)); /* 1 of 9 */
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("found 8 untold, the first is row 1");
    OK(follow(r, 0, 0, 0, 5)); /* slices that overlap, as recomputes do */
    OK(follow(r, 0, 0, 3, 4));
    OK(follow(r, 0, 0, 3, 4));
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("found 2 untold, the first is row 7");
    OK(follow(r, 0, 0, 7, 2));
    OK(follow(r, 0, 1, 1, 8));
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("MoE layer 1 (model layer 3): expected to be told where all 9 rows went, found 1");
    memcpy(chosen[0], (uint8_t[]){9, 8}, 2); /* a row that goes elsewhere does not follow */
    assert_int_equal(wb_replay_store(r, 0, 1, 0, 1, chosen, 2, NULL, 0), WB_MISMATCH);
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    OK(follow(r, 0, 1, 0, 1));
    wb_replay_slice slice;
    OK(wb_replay_rows(r, 0, WB_ALL_LAYERS, 0, 9, &slice));
    assert_false(slice.want_used);
    OK(wb_replay_end(r));
    plan_one(r, 2, s); /* the next step of the same shape begins anew */
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("found 9");
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_rule_15_an_open_step_is_not_dropped(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 1);
    fixture_record f;
    fixture_complete(&f, &m, 1, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 0, 4);
    plan_one(r, 1, &s);
    for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode++) {
        assert_int_equal(wb_replay_begin(r, (wb_replay_mode)mode, 2), WB_INVALID_ARGUMENT);
        HAS_MESSAGE("a step in mode rollout with 1 micro-batches is open");
        expect_forced(r, 0, 1, &f, 1); /* the plan is there */
    }
    assert_int_equal(wb_replay_end(r), WB_MISMATCH); /* a step that did not end well stays open */
    assert_int_equal(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1), WB_INVALID_ARGUMENT);
    wb_replay_abort(r);
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(metrics.rows == 0);
    assert_int_equal(wb_replay_end(r), WB_INVALID_ARGUMENT);
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1)); /* with the records of before */
    OK(wb_replay_plan(r, 0, 1, &s));
    OK(follow(r, 0, 0, 0, 4));
    OK(wb_replay_end(r));
    OK(wb_replay_begin(r, WB_REPLAY_OFF, 1));
    assert_int_equal(wb_replay_begin(r, WB_REPLAY_OFF, 1), WB_INVALID_ARGUMENT);
    wb_replay_clear(r);
    OK(wb_replay_begin(r, WB_REPLAY_OFF, 1));
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_bug_43_handles_share_nothing(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 4);
    wb_replay *policy = open_replay(&m, WB_MISSING_STRICT), *reference = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(policy, &m, &f.record));
    wb_segment s = fixture_segment(&f, 0, 4);
    plan_one(policy, 1, &s);
    OK(wb_replay_begin(reference, WB_REPLAY_ROLLOUT, 1));
    assert_int_equal(wb_replay_plan(reference, 0, 1, &s), WB_NOT_FOUND);
    wb_replay_clear(reference);
    wb_replay_close(reference);
    expect_forced(policy, 0, 2, &f, 2);
    wb_replay_metrics metrics;
    wb_replay_get_metrics(policy, &metrics, NULL);
    assert_true(metrics.rows == 4);
    wb_replay_clear(policy);
    wb_replay_get_metrics(policy, &metrics, NULL);
    assert_true(metrics.rows == 0 && metrics.forced_rows == 0);
    assert_false(wb_replay_planned(policy, 0));
    OK(wb_replay_begin(policy, WB_REPLAY_ROLLOUT, 1));
    assert_int_equal(wb_replay_plan(policy, 0, 1, &s), WB_NOT_FOUND);
    OK(wb_replay_add(policy, &m, &f.record));
    OK(wb_replay_plan(policy, 0, 1, &s));
    wb_replay_close(policy);
    fixture_close(&f);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    print_message("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_19_record_segments_follow_the_first_pass),
        cmocka_unit_test(test_rule_19_all_layers_at_once_are_the_layers_one_by_one),
        cmocka_unit_test(test_rule_19_record_mode_refuses_replay_segments),
        cmocka_unit_test(test_rule_19_off_forces_nothing),
        cmocka_unit_test(test_store_checks_before_it_changes_anything),
        cmocka_unit_test(test_rule_15_any_order_any_number_of_times),
        cmocka_unit_test(test_rule_15_an_unused_pair_is_named),
        cmocka_unit_test(test_rule_15_each_row_is_followed_or_named),
        cmocka_unit_test(test_rule_15_an_open_step_is_not_dropped),
        cmocka_unit_test(test_bug_43_handles_share_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
