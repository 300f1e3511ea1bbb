/* test_rebalance_gain.c - rule 33's bounds by hand: counts just above and just below what noise explains, and
 * what a move costs; with replicas, a finite horizon, passes that have decayed and a phase left out. */
#include "manage/rebalance_state.h"
#include "wb_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

enum { E = 4, R = 2 };

/* A manager of one layer, as far as a decision looks at it. */
typedef struct bench {
    wb_rebalance m;
    double counts[E], rank_loads[R];
    bool usable[1];
    uint32_t layers[1], next_group[1];
    wb_move_plan *plans[1];
    wb_placement *found;
} bench;

static wb_placement *placement_of(uint32_t n_slots, const int32_t *experts) {
    const wb_topology topology = {.n_ranks = R, .n_nodes = 1, .n_slots = n_slots};
    wb_placement *placement;
    assert_int_equal(wb_placement_open(&topology, 1, E, &placement), WB_OK);
    assert_int_equal(wb_placement_set_layer(placement, 0, experts, NULL, 1), WB_OK);
    return placement;
}

static void open_bench(bench *b, uint32_t n_slots, const int32_t *now, const int32_t *found) {
    *b = (bench){.usable = {true}};
    b->m = (wb_rebalance){.options = wb_rebalance_options_default(),
                          .n_layers = 1,
                          .n_experts = E,
                          .n_ranks = R,
                          .counts = b->counts,
                          .passes = 8,
                          .usable = b->usable,
                          .rank_loads = b->rank_loads,
                          .layers = b->layers,
                          .plans = b->plans,
                          .next_group = b->next_group};
    b->m.migration.placement = placement_of(n_slots, now);
    b->m.options.horizon_passes = 1e18;
    b->found = placement_of(n_slots, found);
}

static void close_bench(bench *b) {
    wb_placement_close(b->m.migration.placement);
    wb_placement_close(b->found);
}

static void expect(bench *b, const double *counts, wb_rebalance_verdict verdict) {
    for (int e = 0; e < E; e++) b->counts[e] = counts[e];
    assert_int_equal(wb_rebalance_choose_layers(&b->m, b->found), WB_OK);
    assert_string_equal(wb_rebalance_verdict_name(b->m.chosen), wb_rebalance_verdict_name(verdict));
    assert_int_equal(b->m.n_chosen, verdict == WB_REBALANCE_MOVED);
    wb_rebalance_drop_plans(&b->m);
}

/* sqrt(2 ln R) + sigmas, of R = 2. */
static double deviations(double sigmas) {
    return 1.17741002251547469 + sigmas;
}

static const int32_t pairs[] = {0, 1, 2, 3}, crossed[] = {0, 2, 1, 3};

/* Rank 0 has 2000, of the standard deviation sqrt(2000); crossing the pairs takes `gain` from it. */
static void test_rule_33_a_gain_is_more_than_noise(void **state) {
    (void)state;
    for (int sigmas = 0; sigmas <= 3; sigmas++) {
        bench b;
        open_bench(&b, 4, pairs, crossed);
        b.m.options.sigmas = sigmas;
        const double bound = deviations(sigmas) * sqrt(2000);
        for (int above = 0; above <= 1; above++) {
            const double gain = bound * (above ? 1.001 : 0.999), y = 1000 - gain;
            expect(&b, (double[]){1000, 1000, y, y}, above ? WB_REBALANCE_MOVED : WB_REBALANCE_NOISE);
        }
        close_bench(&b);
    }
}

/* Expert 0 has two replicas, so a quarter of its variance is each rank's. A second one of expert 1 takes half
 * of its 100 from rank 0. */
static void test_rule_33_replicas_have_less_noise(void **state) {
    (void)state;
    bench b;
    open_bench(&b, 6, (int32_t[]){0, 1, 2, 0, 2, 3}, (int32_t[]){0, 1, 2, 0, 1, 3});
    for (int above = 0; above <= 1; above++) {
        const double deviation = 50 / deviations(2) / (above ? 1.001 : 0.999);
        const double hot = 4 * (deviation * deviation - 100);
        expect(&b, (double[]){hot, 100, 0, 0}, above ? WB_REBALANCE_MOVED : WB_REBALANCE_NOISE);
    }
    close_bench(&b);
}

/* 500 of 8 passes, over the horizon, against the seconds of the move. */
static void test_rule_33_a_gain_pays_its_move(void **state) {
    (void)state;
    bench b;
    wb_move_plan *plan;
    open_bench(&b, 4, pairs, crossed);
    b.m.options.move.cost.seconds_per_token = 3e-7;
    assert_int_equal(wb_move_plan_open(b.m.migration.placement, b.found, 1, NULL, &b.m.options.move, &plan),
                     WB_OK);
    const double passes = plan->seconds / (500.0 / 8 * 3e-7);
    wb_move_plan_close(plan);
    for (int above = 0; above <= 1; above++) {
        b.m.options.horizon_passes = passes * (above ? 1.001 : 0.999);
        expect(&b, (double[]){1000, 1000, 500, 500}, above ? WB_REBALANCE_MOVED : WB_REBALANCE_NO_GAIN);
    }
    close_bench(&b);
}

static void count(wb_load *load, wb_phase phase, uint8_t expert, uint32_t n) {
    const uint8_t ids[16] = {expert, expert, expert, expert, expert, expert, expert, expert};
    const wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = n, .K = 1};
    assert_int_equal(wb_load_record(load, 0, phase, 0, &rows), WB_OK);
}

/* Three passes that weigh 1, 1/2 and 1/4; what is of no phase that decides is not looked at. */
static void test_rule_33_passes_decay_and_phases_are_chosen(void **state) {
    (void)state;
    bench b;
    const wb_load_region region = {"target", 1, E, 0};
    open_bench(&b, 4, pairs, crossed);
    b.m.options.load.window = 5;
    b.m.options.load.decay = 0.5;
    b.m.options.phases = 1u << WB_PHASE_DECODE;
    assert_int_equal(wb_comm_open_self(&b.m.comm), WB_OK);
    assert_int_equal(wb_load_open(1, &region, &b.m.options.load, &b.m.load), WB_OK);
    for (uint32_t pass = 1; pass <= 3; pass++) {
        count(b.m.load, WB_PHASE_DECODE, 1, pass);
        count(b.m.load, WB_PHASE_PREFILL, 2, 8);
        count(b.m.load, WB_PHASE_REPLAY, 3, 8);
        wb_load_end_own_pass(b.m.load);
    }
    assert_int_equal(wb_rebalance_take_counts(&b.m), WB_OK);
    const double expected[] = {0, 3 + 2 * 0.5 + 1 * 0.25, 0, 0};
    for (int e = 0; e < E; e++) assert_true(b.counts[e] == expected[e]);
    assert_true(fabs(b.m.passes - 1.75) < 1e-12);
    assert_true(b.usable[0] && b.m.stats.layers_without_load == 0);
    wb_load_close(b.m.load);
    wb_comm_close(b.m.comm);
    close_bench(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_33_a_gain_is_more_than_noise),
        cmocka_unit_test(test_rule_33_replicas_have_less_noise),
        cmocka_unit_test(test_rule_33_a_gain_pays_its_move),
        cmocka_unit_test(test_rule_33_passes_decay_and_phases_are_chosen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
