/* test_replay_metrics.c - counts known before a step, and the fidelity of one, worked out by hand. */
#include "replay_expect.h"

#include <math.h>

/* ---- counts and metrics ---------------------------------------------------------------------- */

static void test_counts_are_known_before_the_step(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 5);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 0, 5); /* the last chooses natively: not in the counts */
    plan_one(r, 1, &s);
    int64_t counts[16], expected[16] = {0};
    for (uint32_t t = 1; t < 4; t++)
        for (uint32_t k = 0; k < 2; k++) expected[fixture_id(&m, 1, t, 1, k)]++;
    OK(wb_replay_counts(r, 0, 1, 1, 4, counts));
    assert_memory_equal(counts, expected, sizeof counts);
    assert_int_equal(wb_replay_counts(r, 0, 1, 1, 5, counts), WB_INVALID_ARGUMENT);
    assert_memory_equal(counts, expected, sizeof counts);
    assert_int_equal(wb_replay_end(r), WB_MISMATCH); /* counting is not following */
    wb_replay_close(r);
    fixture_close(&f);
}

/* Whether the replay still wants to know what the rows of a layer would choose. */
static bool wants(wb_replay *r, int32_t mb, int32_t layer, uint32_t row, uint32_t rows) {
    wb_replay_slice slice;
    if (wb_replay_rows(r, mb, layer, row, rows, &slice) != WB_OK) return false;
    return r->mode == WB_REPLAY_OFF ? slice.want_used : slice.want_native;
}

/* What a forward tells of rows of 4 choices that would go to `native`: under off that is where they went,
 * else only those that are native did. */
static void tell(wb_replay *r, int32_t layer, uint32_t row, uint32_t rows, uint8_t (*native)[4]) {
    uint8_t used[5][4];
    wb_replay_slice slice;
    OK(wb_replay_rows(r, 0, layer, row, rows, &slice));
    for (uint32_t t = 0; t < rows; t++)
        memcpy(used[t],
               slice.direction[t] == WB_ROW_NATIVE ? native[t]
                                                   : (const uint8_t *)slice.ids + t * (size_t)slice.stride,
               4);
    OK(wb_replay_store(r, 0, layer, row, rows, used, 4, r->mode == WB_REPLAY_OFF ? NULL : native, 4));
}

/* Rule 39: of the three rows that have both, by their routes and by what they would choose. */
static void check_loads_by_hand(wb_replay *r) {
    static const double forced[16] = {[1] = 3, [3] = 3, [5] = 3, [7] = 3},
                        native0[16] = {1, 2, 1, 2, 1, 1, 2, 2}, native1[16] = {1, 3, 1, 3, 0, 2, 0, 2};
    double found[2][16], more[16];
    wb_replay_metrics metrics;
    wb_replay_layer_metrics layers[2];
    OK(wb_replay_get_load(r, 0, found[0], found[1]));
    assert_memory_equal(found[0], forced, sizeof forced);
    assert_memory_equal(found[1], native0, sizeof native0);
    OK(wb_replay_get_load(r, 1, found[0], found[1]));
    assert_memory_equal(found[0], forced, sizeof forced);
    assert_memory_equal(found[1], native1, sizeof native1);
    wb_replay_get_metrics(r, &metrics, layers);
    for (int l = 0; l < 2; l++) assert_true(layers[l].forced_balancedness == 0.75 / 3);
    assert_true(layers[0].native_balancedness == 0.75 / 2 && layers[1].native_balancedness == 0.75 / 3);
    assert_true(metrics.forced_balancedness == 0.25 && metrics.native_balancedness == (0.375 + 0.25) / 2);
    assert_int_equal(wb_replay_get_load(r, 2, found[0], more), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("load of MoE layer 2: the model has 2");
    assert_int_equal(wb_replay_get_load(r, 0, NULL, more), WB_INVALID_ARGUMENT);
}

static void fidelity_by_hand(wb_replay_mode mode) {
    wb_route_model m = fixture_model(16, 4, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 4);
    uint8_t *ids = f.blocks[0] + 1; /* three rows of two layers of four */
    for (int i = 0; i < 6; i++) memcpy(ids + 4 * i, (uint8_t[]){3, 1, 7, 5}, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s[] = {fixture_segment(&f, 0, 4), {WB_SEGMENT_PADDING, NULL, 0, 1, NULL}};
    OK(wb_replay_begin(r, mode, 1));
    OK(wb_replay_plan(r, 0, 2, s));
    /* rows: same set in another order | one differs | all differ | last token | padding */
    uint8_t native0[5][4] = {{1, 3, 5, 7}, {3, 1, 7, 6}, {0, 2, 4, 6}, {0, 1, 2, 3}, {0, 1, 2, 3}};
    uint8_t native1[5][4] = {{3, 1, 7, 5}, {3, 1, 7, 5}, {3, 1, 0, 2}, {0, 1, 2, 3}, {0, 1, 2, 3}};
    assert_true(wants(r, 0, 0, 0, 5));
    assert_false(wants(r, 0, 0, 3, 2)); /* nothing to measure in these rows */
    tell(r, 0, 0, 5, native0);
    assert_false(wants(r, 0, 0, 0, 5));
    assert_true(wants(r, 0, 1, 0, 5));
    assert_true(wants(r, 0, WB_ALL_LAYERS, 0, 5));
    tell(r, 1, 3, 1, native1 + 3); /* in slices */
    tell(r, 1, 0, 2, native1);
    tell(r, 1, 2, 3, native1 + 2);
    assert_false(wants(r, 0, WB_ALL_LAYERS, 0, 5));
    for (int again = 0; again < 2; again++) { /* recompute, next update: nothing more is counted */
        tell(r, 0, 0, 5, native1);
        tell(r, 1, 0, 5, native0);
    }
    assert_false(wants(r, 0, 2, 0, 5));
    assert_false(wants(r, 1, 0, 0, 5));
    assert_false(wants(r, 0, 0, 4, 2));
    wb_replay_metrics metrics;
    wb_replay_layer_metrics layers[2];
    wb_replay_get_metrics(r, &metrics, layers);
    assert_true(layers[0].tokens == 3 && layers[1].tokens == 3);
    assert_true(fabs(layers[0].overlap - (1 + 0.75 + 0) / 3) <= 1e-15);
    assert_true(fabs(layers[1].overlap - (1 + 1 + 0.5) / 3) <= 1e-15);
    assert_true(fabs(layers[0].differ - 2.0 / 3) <= 1e-15);
    assert_true(fabs(layers[1].differ - 1.0 / 3) <= 1e-15);
    assert_true(fabs(metrics.token_differ - 2.0 / 3) <= 1e-15);
    assert_true(fabs(metrics.decision_differ - 3.0 / 6) <= 1e-15);
    assert_true(metrics.rows == 5 && metrics.forced_rows == 3 && metrics.padding_rows == 1);
    check_loads_by_hand(r);
    OK(wb_replay_end(r));

    size_t n = 0; /* two equal ranks: means stay, sums double */
    double *sums = wb_replay_metric_sums(r, &n);
    for (size_t i = 0; i < n; i++) sums[i] *= 2;
    wb_replay_metrics both;
    wb_replay_get_metrics(r, &both, layers);
    assert_true(both.rows == 10 && layers[0].tokens == 6);
    assert_true(both.token_differ == metrics.token_differ && both.decision_differ == metrics.decision_differ);
    assert_true(both.native_balancedness == metrics.native_balancedness && both.forced_balancedness == 0.25);

    wb_replay_slice slice;
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    wb_replay_get_metrics(r, &metrics, layers);
    assert_true(metrics.rows == 0 && metrics.token_differ == 0 && layers[0].overlap == 0);
    OK(wb_replay_plan(r, 0, 2, s)); /* a step of the same shape: nothing is used or measured yet */
    assert_int_equal(wb_replay_end(r), WB_MISMATCH);
    HAS_MESSAGE("micro-batch 0, MoE layer 0");
    assert_true(wb_replay_rows(r, 0, 0, 0, 5, &slice) == WB_OK && slice.want_native && slice.want_used);
    wb_replay_close(r);
    fixture_close(&f);
}

/* With the load of both maps (rule 39). */
static void test_rule_18_fidelity_by_hand_and_counted_once(void **unused) {
    (void)unused;
    fidelity_by_hand(WB_REPLAY_OFF);
    fidelity_by_hand(WB_REPLAY_ROLLOUT);
}

/* Rows of a layer with a K of its own end with the buffer that has them, so that one that reads top_k ids is
 * seen by its loads, and by a sanitizer. The last expert has no weights: its load is kept, and is in no
 * balancedness. */
static void test_layers_with_a_k_of_their_own(void **unused) {
    (void)unused;
    static const uint32_t layer_top_k[2] = {3, 1};
    static const double forced0[4] = {2, 1, 1, 2}, native0[4] = {2, 2, 1, 1}, forced1[4] = {0, 2, 0, 0},
                        native1[4] = {1, 0, 0, 1};
    wb_route_model m = fixture_model(4, 3, 2);
    m.layer_top_k = layer_top_k;
    m.n_weightless = 1;
    fixture_record f;
    fixture_complete(&f, &m, 1, 3);
    memcpy(f.blocks[0] + 1, (uint8_t[]){0, 1, 3, 1, 3, 0, 2, 1}, 8); /* two rows of 3 + 1 ids */
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    OK(wb_replay_add(r, &m, &f.record));
    wb_segment s = fixture_segment(&f, 0, 2);
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 1));
    OK(wb_replay_plan(r, 0, 1, &s));
    uint8_t *used1 = malloc(2), *chosen1 = malloc(2);
    memcpy(used1, (uint8_t[]){1, 1}, 2);
    memcpy(chosen1, (uint8_t[]){0, 3}, 2);
    OK(wb_replay_store(r, 0, 0, 0, 2, (uint8_t[]){0, 1, 3, 3, 0, 2}, 3, (uint8_t[]){0, 1, 2, 3, 0, 1}, 3));
    OK(wb_replay_store(r, 0, 1, 0, 2, used1, 1, chosen1, 1));
    double found[2][4];
    OK(wb_replay_get_load(r, 0, found[0], found[1]));
    assert_memory_equal(found[0], forced0, sizeof forced0);
    assert_memory_equal(found[1], native0, sizeof native0);
    OK(wb_replay_get_load(r, 1, found[0], found[1]));
    assert_memory_equal(found[0], forced1, sizeof forced1);
    assert_memory_equal(found[1], native1, sizeof native1);
    wb_replay_metrics metrics;
    wb_replay_layer_metrics layers[2];
    wb_replay_get_metrics(r, &metrics, layers);
    assert_true(layers[0].forced_balancedness == 4.0 / 3 / 2 && layers[0].native_balancedness == 5.0 / 3 / 2);
    assert_true(layers[1].forced_balancedness == 2.0 / 3 / 2 && layers[1].native_balancedness == 1.0 / 3);
    assert_true(layers[1].overlap == 0 && layers[1].differ == 1);
    OK(wb_replay_end(r));
    free(used1);
    free(chosen1);
    wb_replay_close(r);
    fixture_close(&f);
}

static void test_rule_18_kl_by_hand(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 1);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    float rollout[5] = {-1.0f, -2.0f, -0.5f, -3.0f, -9.0f};
    float trainer[5] = {-1.25f, -1.0f, -0.5f, -4.0f, 100.0f};
    uint8_t mask[5] = {1, 1, 1, 1, 0};
    OK(wb_replay_observe_logprobs(r, 2, rollout, trainer, NULL));
    OK(wb_replay_observe_logprobs(r, 3, rollout + 2, trainer + 2, mask + 2));
    OK(wb_replay_observe_logprobs(r, 0, NULL, NULL, NULL));
    double log_r[4] = {0.25, -1.0, 0.0, 1.0}, k1 = 0, k3 = 0;
    for (int i = 0; i < 4; i++) {
        k1 += log_r[i] / 4;
        k3 += (exp(-log_r[i]) - 1 + log_r[i]) / 4;
    }
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(metrics.logprobs == 4);
    assert_true(fabs(metrics.kl_k1 - k1) <= 1e-12);
    assert_true(fabs(metrics.kl_k3 - k3) <= 1e-12);
    assert_true(metrics.ratio_outside == 0.5); /* e^1 and e^-1 */
    float nan_logprob = NAN;
    OK(wb_replay_observe_logprobs(r, 1, &nan_logprob, trainer, NULL));
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(isnan(metrics.kl_k1) && fabs(metrics.ratio_outside - 0.6) <= 1e-15);
    assert_int_equal(wb_replay_observe_logprobs(r, 1, NULL, trainer, NULL), WB_INVALID_ARGUMENT);
    wb_replay_close(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts_are_known_before_the_step),
        cmocka_unit_test(test_rule_18_fidelity_by_hand_and_counted_once),
        cmocka_unit_test(test_layers_with_a_k_of_their_own),
        cmocka_unit_test(test_rule_18_kl_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
