/* test_hooks_refuse.c - what the hooks do not let pass: a trainer that does not follow the ids it was given,
 * rows that were left out, a plan dropped by the next step, logits that are no numbers, other tokens. */
#include "replay/replay_fixture.h"

#include "wb_device.h"
#include "wb_train_hooks.h"

#include <math.h>

enum { E = 16, K = 2, L = 2, TOKENS = 6, PADDING = 3, T = TOKENS + PADDING };

typedef struct trainer {
    wb_route_model model;
    wb_device *dev;
    wb_replay *replay;
    wb_hooks *hooks;
    fixture_record record;
    float logits[T][E];
    uint16_t ids[T][K];
    float weights[T][K];
} trainer;

static void open_trainer(trainer *f, wb_router_type type) {
    memset(f, 0, sizeof *f);
    f->model = fixture_model(E, K, L);
    strcpy(f->model.router, wb_router_name(type));
    fixture_complete(&f->record, &f->model, 5, TOKENS);
    OK(wb_device_open_cpu(1, &f->dev));
    OK(wb_replay_open(&f->model, NULL, &f->replay));
    OK(wb_replay_add(f->replay, &f->model, &f->record.record));
    wb_hooks_options options = wb_hooks_options_default();
    options.device = f->dev;
    options.replay = f->replay;
    options.router = (wb_router){type, E, K, 1, 1, true, 1};
    OK(wb_hooks_open(&options, &f->hooks));
    for (int i = 0; i < T * E; i++) f->logits[i / E][i % E] = (float)(i * 7 % 13);
}

static void close_trainer(trainer *f) {
    wb_hooks_close(f->hooks);
    wb_replay_close(f->replay);
    wb_device_close(f->dev);
    fixture_close(&f->record);
}

static wb_status plan(trainer *f) {
    wb_segment s[2] = {wb_replay_segment(f->replay, f->record.rid, 0, TOKENS, f->record.tokens),
                       {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL}};
    return wb_replay_plan(f->replay, 0, 2, s);
}

static void begin(trainer *f, wb_replay_mode mode) {
    OK(wb_hooks_step_begin(f->hooks, mode, 1));
    OK(plan(f));
}

static wb_status gate(trainer *f, int32_t l, uint32_t row, uint32_t rows) {
    return wb_hooks_gate_forward(f->hooks, 0, l, row, rows, f->logits[row], (wb_ids){f->ids[row], WB_U16, K},
                                 f->weights[row]);
}

static wb_status dispatched(trainer *f, int32_t l, uint32_t row, uint32_t rows) {
    return wb_hooks_dispatched(f->hooks, 0, l, row, rows, (wb_ids){f->ids[row], WB_U16, K});
}

/* ---- dispatch -------------------------------------------------------------------------------- */

static void test_rule_15_a_trainer_that_ignores_the_ids_is_found(void **unused) {
    (void)unused;
    for (int mode = WB_REPLAY_RECORD; mode <= WB_REPLAY_ROLLOUT; mode++) {
        trainer f;
        open_trainer(&f, WB_ROUTER_SOFTMAX_NORM);
        begin(&f, (wb_replay_mode)mode);
        for (int32_t l = 0; l < L; l++) OK(gate(&f, l, 0, T));
        assert_int_equal(wb_hooks_step_end(f.hooks, NULL), WB_MISMATCH);
        HAS_MESSAGE("micro-batch 0, MoE layer 0 (model layer 2): expected to be told where all 9 rows went, "
                    "found 9 untold, the first is row 0");
        for (int32_t l = 0; l < L; l++) {
            OK(gate(&f, l, 0, T));
            uint16_t kept = f.ids[2][1];
            f.ids[2][1] = (uint16_t)((kept + 1) % E == f.ids[2][0] ? (kept + 2) % E : (kept + 1) % E);
            assert_int_equal(dispatched(&f, l, 0, T), WB_MISMATCH);
            HAS_MESSAGE(l == 0 ? "MoE layer 0, row 2 was not routed as planned" : "MoE layer 1, row 2");
            f.ids[2][1] = f.ids[2][0]; /* one expert twice */
            assert_int_equal(dispatched(&f, l, 0, T), WB_MISMATCH);
            f.ids[2][1] = E;
            assert_int_equal(dispatched(&f, l, 0, T), WB_INVALID_ARGUMENT);
            HAS_MESSAGE("row 2: expert 16 is out of range");
            f.ids[2][1] = kept;
        }
        assert_int_equal(wb_hooks_step_end(f.hooks, NULL), WB_MISMATCH);
        HAS_MESSAGE("found 9 untold"); /* none of these was taken in part */
        for (int32_t l = 0; l < L; l++) {
            OK(gate(&f, l, 0, T));
            OK(dispatched(&f, l, 0, T));
        }
        OK(wb_hooks_step_end(f.hooks, NULL));
        close_trainer(&f);
    }
}

static void test_rule_15_one_row_of_nine_is_not_all(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM);
    begin(&f, WB_REPLAY_ROLLOUT);
    OK(gate(&f, 0, 0, T));
    OK(dispatched(&f, 0, 0, T));
    OK(gate(&f, 1, 0, 1));
    OK(dispatched(&f, 1, 0, 1));
    wb_replay_metrics metrics = {.rows = -1};
    assert_int_equal(wb_hooks_step_end(f.hooks, &metrics), WB_MISMATCH);
    HAS_MESSAGE("MoE layer 1 (model layer 3): expected to be told where all 9 rows went, found 8 untold, the "
                "first is row 1");
    assert_true(metrics.rows == -1);
    const uint32_t cuts[][2] = {{1, 4}, {3, 4}, {0, 5}, {6, 3}}; /* recomputes overlap */
    for (int i = 0; i < 4; i++) {
        assert_int_equal(wb_hooks_step_end(f.hooks, &metrics), WB_MISMATCH);
        OK(gate(&f, 1, cuts[i][0], cuts[i][1]));
        OK(dispatched(&f, 1, cuts[i][0], cuts[i][1]));
    }
    OK(wb_hooks_step_end(f.hooks, &metrics));
    assert_true(metrics.rows == T && metrics.padding_rows == PADDING);
    close_trainer(&f);
}

/* A routing map has no order; where the ids lie, and how wide they are, is the trainer's. */
static void test_dispatched_takes_ids_in_any_order_and_place(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SIGMOID);
    begin(&f, WB_REPLAY_ROLLOUT);
    uint8_t narrow[T][L + 1][K];
    assert_int_equal(dispatched(&f, 0, 0, T),
                     WB_INVALID_ARGUMENT); /* the last token has chosen nothing yet */
    HAS_MESSAGE("dispatched rows that no forward has routed");
    for (int32_t l = 0; l < L; l++) {
        OK(gate(&f, l, 0, T));
        memset(narrow, 0xee, sizeof narrow);
        for (int t = 0; t < T; t++)
            for (int k = 0; k < K; k++) narrow[t][l][k] = (uint8_t)f.ids[t][K - 1 - k];
        OK(wb_hooks_dispatched(f.hooks, 0, l, 0, T, (wb_ids){narrow[0][l], WB_U8, (L + 1) * K}));
    }
    wb_ids odd = {f.ids, WB_I32, K}, thin = {f.ids, WB_U16, K - 1}, none = {NULL, WB_U16, K};
    assert_int_equal(wb_hooks_dispatched(f.hooks, 0, 0, 0, T, odd), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_hooks_dispatched(f.hooks, 0, 0, 0, T, thin), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_hooks_dispatched(f.hooks, 0, 0, 0, T, none), WB_INVALID_ARGUMENT);
    assert_int_equal(dispatched(&f, L, 0, T), WB_INVALID_ARGUMENT);
    assert_int_equal(dispatched(&f, 0, 1, T), WB_INVALID_ARGUMENT);
    OK(wb_hooks_step_end(f.hooks, NULL));
    assert_int_equal(dispatched(&f, 0, 0, T), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("outside of a step");
    begin(&f, WB_REPLAY_OFF); /* nothing to compare with */
    OK(gate(&f, 0, 0, T));
    memset(f.ids, 0, sizeof f.ids);
    OK(dispatched(&f, 0, 0, T));
    OK(wb_hooks_step_end(f.hooks, NULL));
    close_trainer(&f);
}

/* ---- steps and plans ------------------------------------------------------------------------- */

static void test_rule_15_a_second_begin_drops_no_plan(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM);
    wb_hooks *other = NULL, *free_standing = NULL;
    wb_hooks_options options = wb_hooks_options_default();
    options.device = f.dev;
    options.router = (wb_router){WB_ROUTER_SOFTMAX_NORM, E, K, 1, 1, true, 1};
    OK(wb_hooks_open(&options, &free_standing));
    options.replay = f.replay;
    OK(wb_hooks_open(&options, &other));
    begin(&f, WB_REPLAY_ROLLOUT);
    OK(gate(&f, 0, 0, T));
    assert_int_equal(wb_hooks_step_begin(f.hooks, WB_REPLAY_ROLLOUT, 1), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("is open");
    assert_int_equal(wb_hooks_step_begin(other, WB_REPLAY_OFF, 1), WB_INVALID_ARGUMENT);
    assert_true(wb_replay_planned(f.replay, 0));
    assert_int_equal(wb_hooks_step_end(f.hooks, NULL), WB_MISMATCH); /* it stays open */
    assert_int_equal(wb_hooks_step_begin(f.hooks, WB_REPLAY_ROLLOUT, 1), WB_INVALID_ARGUMENT);
    wb_hooks_step_abort(other); /* has none */
    assert_true(wb_replay_planned(f.replay, 0));
    wb_hooks_step_abort(f.hooks);
    assert_int_equal(gate(&f, 0, 0, T), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_hooks_step_end(f.hooks, NULL), WB_INVALID_ARGUMENT);
    begin(&f, WB_REPLAY_ROLLOUT);
    for (int32_t l = 0; l < L; l++) {
        OK(gate(&f, l, 0, T));
        OK(dispatched(&f, l, 0, T));
    }
    OK(wb_hooks_step_end(f.hooks, NULL));
    OK(wb_hooks_step_begin(free_standing, WB_REPLAY_OFF, 1));
    assert_int_equal(wb_hooks_step_begin(free_standing, WB_REPLAY_OFF, 1), WB_INVALID_ARGUMENT);
    wb_hooks_step_abort(free_standing);
    OK(wb_hooks_step_begin(free_standing, WB_REPLAY_OFF, 1));
    wb_hooks_step_abort(NULL);
    wb_hooks_close(other);
    wb_hooks_close(free_standing);
    close_trainer(&f);
}

static void test_rule_32_a_trainer_that_feeds_other_tokens_is_found(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM);
    OK(wb_hooks_step_begin(f.hooks, WB_REPLAY_ROLLOUT, 1));
    uint32_t fed[TOKENS], *recorded = f.record.tokens;
    for (uint32_t i = 0; i < TOKENS; i++) fed[i] = i < 2 ? recorded[i] : recorded[i - 1]; /* shifted by one */
    wb_segment s = wb_replay_segment(f.replay, f.record.rid, 0, TOKENS, fed);
    assert_int_equal(wb_replay_plan(f.replay, 0, 1, &s), WB_MISMATCH);
    HAS_MESSAGE(
        "request r-5, position 2: expected the record's token 5002, found that the trainer feeds 5001");
    assert_int_equal(gate(&f, 0, 0, TOKENS), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("not planned");
    OK(plan(&f));
    close_trainer(&f);
}

/* ---- logits ---------------------------------------------------------------------------------- */

static void test_a_recompute_looks_at_the_weights_too(void **unused) {
    (void)unused;
    trainer f;
    open_trainer(&f, WB_ROUTER_SOFTMAX_NORM);
    begin(&f, WB_REPLAY_ROLLOUT);
    float *logit = &f.logits[3][fixture_id(&f.model, 5, 3, 0, 1)], kept = *logit;
    OK(gate(&f, 0, 0, T));
    *logit = NAN;
    assert_int_equal(gate(&f, 0, 0, T), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("MoE layer 0, row 3");
    assert_true(isnan(f.weights[3][0]) && isnan(f.weights[3][1]));
    *logit = kept;
    OK(gate(&f, 0, 0, T));
    close_trainer(&f);
}

static void test_logits_that_are_no_numbers_are_named(void **unused) {
    (void)unused;
    const float odd[] = {NAN, INFINITY};
    for (int type = WB_ROUTER_SOFTMAX; type < WB_ROUTER_HASH; type++)
        for (int i = 0; i < 2; i++) {
            trainer f;
            /* A sigmoid of infinity is 1: no fault. */
            if (i == 1 && type == WB_ROUTER_SIGMOID) continue;
            open_trainer(&f, (wb_router_type)type);
            begin(&f, WB_REPLAY_ROLLOUT);
            uint32_t id = fixture_id(&f.model, 5, 3, 1, 1);
            float kept = f.logits[3][id];
            f.logits[3][id] = odd[i];                              /* of a forced row */
            for (int e = 0; e < E; e++) f.logits[TOKENS][e] = NAN; /* padding may hold anything */
            memset(f.ids, 0xee, sizeof f.ids);
            assert_int_equal(gate(&f, 1, 0, T), WB_INVALID_ARGUMENT);
            HAS_MESSAGE("micro-batch 0, MoE layer 1, row 3: expected finite logits, found a weight of");
            assert_int_equal(f.ids[0][0], 0xeeee);
            wb_replay_slice slice; /* nothing was kept: the last token has no choice, nothing is measured */
            OK(wb_replay_rows(f.replay, 0, 1, 0, T, &slice));
            assert_true(slice.undecided && slice.want_native);
            f.logits[3][id] = kept;
            OK(gate(&f, 1, 0, T));
            for (int k = 0; k < K; k++) assert_true(f.weights[TOKENS][k] == 0);
            f.logits[4][fixture_id(&f.model, 5, 4, 1, 0)] = NAN; /* in a recompute too */
            assert_int_equal(gate(&f, 1, 2, 4), WB_INVALID_ARGUMENT);
            HAS_MESSAGE("MoE layer 1, row 4");
            close_trainer(&f);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_15_a_trainer_that_ignores_the_ids_is_found),
        cmocka_unit_test(test_rule_15_one_row_of_nine_is_not_all),
        cmocka_unit_test(test_dispatched_takes_ids_in_any_order_and_place),
        cmocka_unit_test(test_rule_15_a_second_begin_drops_no_plan),
        cmocka_unit_test(test_rule_32_a_trainer_that_feeds_other_tokens_is_found),
        cmocka_unit_test(test_logits_that_are_no_numbers_are_named),
        cmocka_unit_test(test_a_recompute_looks_at_the_weights_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
