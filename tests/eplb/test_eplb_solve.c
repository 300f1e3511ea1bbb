/* test_eplb_solve.c - what all placement solvers share (checks, threads, any shape), and the solvers that
 * start from a placement or from several micro-batches. Random cases print their seed. */
#include "support/test_seed.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { L = 2, MAX_RANKS = 16 };

static uint64_t seed;

static uint32_t below(uint32_t n) {
    return wb_random_below(&seed, n);
}

#define assert_message_has(part)                                            \
    do {                                                                    \
        if (!strstr(wb_error_message(), part))                              \
            fail_msg("message '%s' has no '%s'", wb_error_message(), part); \
    } while (0)

/* ---- helpers --------------------------------------------------------------------------------- */

static wb_eplb_options with(wb_eplb_algorithm algorithm, const wb_placement *current) {
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = algorithm;
    options.current = current;
    options.trials = algorithm == WB_EPLB_MICROBATCH ? 20000 : 200000;
    return options;
}

static wb_placement *solve(const wb_topology *t, uint32_t E, uint32_t M, const double *loads,
                           const wb_eplb_options *options) {
    wb_placement *p = NULL;
    if (wb_eplb_solve(t, L, E, M, loads, options, &p) != WB_OK) fail_msg("%s", wb_error_message());
    return p;
}

/* [M][L][E] log-normal; owner: caller. */
static double *make_loads(uint32_t E, uint32_t M, uint32_t step, double noise) {
    double *loads = malloc((size_t)M * L * E * sizeof *loads);
    wb_synthetic s = {
        .kind = WB_SYNTHETIC_LOGNORMAL, .skew = 1, .noise = noise, .tokens = 1 << 20, .seed = 7};
    assert_non_null(loads);
    assert_int_equal(wb_synthetic_loads(&s, step, M, L, E, loads), WB_OK);
    return loads;
}

/* Sum over batches of the maximum rank load of a layer. */
static double sum_of_maxima(const wb_placement *p, uint32_t layer, uint32_t M, const double *loads) {
    double *rank = calloc(wb_placement_topology(p)->n_ranks, sizeof *rank), sum = 0;
    uint32_t E = wb_placement_experts(p);
    for (uint32_t m = 0; m < M; m++) {
        wb_placement_rank_loads(p, layer, loads + ((size_t)m * L + layer) * E, rank);
        double max = 0;
        for (uint32_t r = 0; r < wb_placement_topology(p)->n_ranks; r++)
            if (rank[r] > max) max = rank[r];
        sum += max;
    }
    free(rank);
    return sum;
}

static double balancedness(const wb_placement *p, uint32_t layer, const double *loads) {
    double *rank = calloc(wb_placement_topology(p)->n_ranks, sizeof *rank);
    wb_placement_rank_loads(p, layer, loads + (size_t)layer * wb_placement_experts(p), rank);
    double b = wb_placement_balancedness(p, rank);
    free(rank);
    return b;
}

static uint32_t changed_slots(const wb_placement *a, const wb_placement *b, uint32_t layer) {
    uint32_t n = 0;
    for (uint32_t s = 0; s < wb_placement_topology(a)->n_slots; s++)
        n += wb_placement_layer(a, layer).expert_of_slot[s] != wb_placement_layer(b, layer).expert_of_slot[s];
    return n;
}

/* Every expert on a live rank, dead ranks empty, and (but for deepseek) no expert twice on a rank. */
static void check_map(const wb_placement *p, bool distinct) {
    const wb_topology *t = wb_placement_topology(p);
    for (uint32_t l = 0; l < L; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        for (uint32_t e = 0; e < wb_placement_experts(p); e++)
            assert_true(map.replica_begin[e + 1] > map.replica_begin[e]);
        for (uint32_t s = 0; s < t->n_slots; s++) {
            uint32_t rank = wb_placement_rank_of(p, (wb_physical_id){s});
            if (t->dead[rank]) assert_int_equal(map.expert_of_slot[s], WB_NO_EXPERT);
            for (uint32_t i = wb_placement_first_slot(p, rank); distinct && i < s; i++)
                assert_true(map.expert_of_slot[s] < 0 || map.expert_of_slot[i] != map.expert_of_slot[s]);
        }
    }
}

/* ---- any shape ------------------------------------------------------------------------------- */

typedef struct random_shape {
    wb_topology t;
    uint32_t slots[MAX_RANKS], E;
    uint8_t dead[MAX_RANKS];
} random_shape;

static void make_shape(random_shape *s) {
    uint32_t live = 0;
    *s = (random_shape){.t = {.n_ranks = 1 + below(MAX_RANKS)}};
    s->t.n_nodes = 1 + below(s->t.n_ranks);
    for (uint32_t r = 0; r < s->t.n_ranks; r++) {
        s->slots[r] = below(6);
        s->dead[r] = r > 0 && below(6) == 0;
        if (r == 0) s->slots[r]++;
        s->t.n_slots += s->slots[r];
        live += s->dead[r] ? 0 : s->slots[r];
    }
    s->E = 1 + below(live);
    s->t.slots_of_rank = s->slots;
    s->t.dead = s->dead;
}

/* SGLang #7575, #6813, #7024, #8253, #6617: 3 nodes, ranks that nodes do not divide, slots that ranks do
 * not. */
static void test_sglang_7575_any_ranks_nodes_and_slots(void **state) {
    (void)state;
    for (int round = 0; round < 150; round++) {
        random_shape s;
        make_shape(&s);
        double *loads = make_loads(s.E, 3, (uint32_t)round, 0.4);
        if (round % 7 == 0) memset(loads, 0, 3 * L * s.E * sizeof *loads);
        wb_topology all_live = s.t;
        all_live.dead = NULL;
        wb_placement *before = NULL;
        assert_int_equal(wb_placement_open(&all_live, L, s.E, &before), WB_OK);
        for (wb_eplb_algorithm a = WB_EPLB_BALANCED; a <= WB_EPLB_MICROBATCH; a++) {
            wb_eplb_options options = with(a, a == WB_EPLB_INCREMENTAL ? before : NULL);
            options.trials = 3000;
            wb_placement *p = solve(&s.t, s.E, 3, loads, &options);
            check_map(p, true);
            wb_placement_close(p);
        }
        wb_placement_close(before);
        free(loads);
    }
}

static void test_the_same_bytes_for_any_number_of_threads(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 6, .n_nodes = 2, .n_slots = 24};
    double *loads = make_loads(20, 4, 0, 0.5);
    wb_placement *current = NULL;
    assert_int_equal(wb_placement_open(&t, L, 20, &current), WB_OK);
    for (wb_eplb_algorithm a = WB_EPLB_DEEPSEEK; a <= WB_EPLB_MICROBATCH; a++) {
        uint64_t hash = 0;
        for (uint32_t threads = 0; threads < 100000; threads = threads * 3 + 1) {
            wb_eplb_options options = with(a, a == WB_EPLB_INCREMENTAL ? current : NULL);
            options.threads = threads;
            wb_placement *p = solve(&t, 20, 4, loads, &options);
            if (threads == 0) hash = wb_placement_hash(p);
            assert_true(wb_placement_hash(p) == hash);
            wb_placement_close(p);
        }
    }
    wb_placement_close(current);
    free(loads);
}

static void test_bad_loads_and_options_are_refused(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 8};
    double loads[2 * L * 4] = {1, 2, 3, 4};
    wb_placement *p = (wb_placement *)&t;
    const double bad[] = {NAN, -1, INFINITY};
    for (wb_eplb_algorithm a = WB_EPLB_DEEPSEEK; a <= WB_EPLB_MICROBATCH; a++)
        for (int i = 0; i < 3; i++) {
            wb_placement *current = NULL;
            assert_int_equal(wb_placement_open(&t, L, 4, &current), WB_OK);
            wb_eplb_options options = with(a, current);
            loads[(1 * L + 1) * 4 + 2] = bad[i];
            if (a != WB_EPLB_DEEPSEEK || i == 0) {
                assert_int_equal(wb_eplb_solve(&t, L, 4, 2, loads, &options, &p), WB_INVALID_ARGUMENT);
                assert_message_has("batch 1 layer 1 expert 2");
                assert_ptr_equal(p, &t);
            }
            wb_placement_close(current);
        }
    loads[(1 * L + 1) * 4 + 2] = 0;
    assert_int_equal(wb_eplb_solve(&t, L, 9, 1, loads, NULL, &p), WB_INVALID_ARGUMENT);
    assert_message_has("9 experts");
    uint8_t dead[] = {0, 1};
    t.dead = dead; /* 4 live slots */
    assert_int_equal(wb_eplb_solve(&t, L, 5, 1, loads, NULL, &p), WB_INVALID_ARGUMENT);
    assert_message_has("5 experts at least, found 4 (of 8 in all)");
    t.dead = NULL;
    wb_eplb_options options = with(WB_EPLB_INCREMENTAL, NULL);
    assert_int_equal(wb_eplb_solve(&t, L, 4, 1, loads, &options, &p), WB_INVALID_ARGUMENT);
    assert_message_has("current");
    wb_placement *other = NULL;
    wb_topology wide = {.n_ranks = 2, .n_nodes = 1, .n_slots = 10};
    assert_int_equal(wb_placement_open(&wide, L, 4, &other), WB_OK);
    options.current = other;
    assert_int_equal(wb_eplb_solve(&t, L, 4, 1, loads, &options, &p), WB_MISMATCH);
    wb_placement_close(other);
    assert_ptr_equal(p, &t);
}

/* Each load is a number, their sum is none. */
static void test_sums_that_are_no_numbers_are_refused(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    double loads[2 * L * 4] = {0};
    wb_placement *current = NULL, *p = NULL;
    assert_int_equal(wb_placement_open(&t, L, 4, &current), WB_OK);
    loads[4 + 1] = loads[L * 4 + 4 + 1] = 1.7e308;
    for (wb_eplb_algorithm a = WB_EPLB_BALANCED; a <= WB_EPLB_MICROBATCH; a++) {
        wb_eplb_options options = with(a, a == WB_EPLB_INCREMENTAL ? current : NULL);
        assert_int_equal(wb_eplb_solve(&t, L, 4, 2, loads, &options, &p), WB_INVALID_ARGUMENT);
        assert_message_has("layer 1");
        assert_message_has("expert 1");
    }
    loads[4 + 1] = INFINITY;
    loads[L * 4 + 4 + 1] = -INFINITY;
    wb_eplb_options options = with(WB_EPLB_DEEPSEEK, NULL);
    assert_int_equal(wb_eplb_solve(&t, L, 4, 2, loads, &options, &p), WB_INVALID_ARGUMENT);
    assert_message_has("layer 1");
    assert_null(p);
    wb_placement_close(current);
}

/* deepseek's bytes are those of eplb.py whatever is in place; the others say that it does not fit. */
static void test_current_of_another_shape(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4},
                wide = {.n_ranks = 2, .n_nodes = 1, .n_slots = 6};
    double loads[L * 4] = {1, 2, 3, 4, 5, 6, 7, 8};
    wb_placement *current = NULL, *p = NULL;
    assert_int_equal(wb_placement_open(&wide, L, 4, &current), WB_OK);
    wb_eplb_options options = with(WB_EPLB_BALANCED, current);
    assert_int_equal(wb_eplb_solve(&t, L, 4, 1, loads, &options, &p), WB_MISMATCH);
    assert_message_has("options.current");
    options.algorithm = WB_EPLB_DEEPSEEK;
    p = solve(&t, 4, 1, loads, &options);
    wb_placement_close(p);
    wb_placement_close(current);
}

/* Counts that float32 cannot hold: 2^24 and 2^24 + 1 are one number there. */
static void test_counts_above_2_24_are_exact(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    double loads[L * 4] = {16777217, 16777216, 16777216, 16777217, 16777217, 16777216, 16777216, 16777217};
    wb_placement *p = solve(&t, 4, 1, loads, NULL);
    for (uint32_t l = 0; l < L; l++) assert_true(balancedness(p, l, loads) == 1);
    wb_placement_close(p);
}

/* More than 256 slots for 256 experts or fewer: physical ids are not of the logical ids' type. */
static void test_prime_rl_3051_more_than_255_slots(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 100, .n_nodes = 10, .n_slots = 300};
    double *loads = make_loads(40, 1, 0, 0);
    wb_placement *p = solve(&t, 40, 1, loads, NULL);
    check_map(p, true);
    wb_layer_map map = wb_placement_layer(p, 0);
    assert_int_equal(map.replica_begin[40], 300);
    uint32_t highest = 0;
    for (uint32_t i = 0; i < 300; i++)
        if (map.replicas[i].slot > highest) highest = map.replicas[i].slot;
    assert_int_equal(highest, 299);
    wb_placement_close(p);
    free(loads);
}

/* EPLB #22: the second replica on a rank is a slot wasted; eplb.py does it on these loads, and so must
 * `deepseek`. */
static void test_eplb_22_replicas_never_share_a_rank(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 8, .n_nodes = 1, .n_slots = 16};
    double loads[L * 12] = {90, 132, 40,  61, 104, 165, 39,  4,   73,  56, 183, 86,
                            20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
    wb_eplb_options deepseek = with(WB_EPLB_DEEPSEEK, NULL);
    wb_placement *theirs = solve(&t, 12, 1, loads, &deepseek), *ours = solve(&t, 12, 1, loads, NULL);
    assert_int_equal(wb_placement_layer(theirs, 0).expert_of_slot[14],
                     wb_placement_layer(theirs, 0).expert_of_slot[15]);
    check_map(ours, true);
    for (uint32_t l = 0; l < L; l++)
        assert_true(balancedness(ours, l, loads) >= balancedness(theirs, l, loads));
    wb_placement_close(ours);
    wb_placement_close(theirs);
}

/* ---- incremental ----------------------------------------------------------------------------- */

/* EPLB #25: a new solution changes nearly every slot; few changes do nearly as well. */
static void test_eplb_25_few_slots_change(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 32, .n_nodes = 4, .n_slots = 288};
    double *before = make_loads(256, 1, 0, 0), *after = make_loads(256, 1, 1, 0.2);
    wb_placement *current = solve(&t, 256, 1, before, NULL);
    wb_eplb_options options = with(WB_EPLB_INCREMENTAL, current);
    options.trials = 0;
    options.horizon_steps = 1e9;
    wb_placement *next = solve(&t, 256, 1, after, &options);
    for (uint32_t l = 0; l < L; l++) {
        assert_true(balancedness(current, l, after) < 0.93);
        assert_true(balancedness(next, l, after) >= 0.98);
        assert_in_range(changed_slots(current, next, l), 1, 60);
    }
    options.max_changes = 5;
    wb_placement *bounded = solve(&t, 256, 1, after, &options);
    for (uint32_t l = 0; l < L; l++) {
        assert_in_range(changed_slots(current, bounded, l), 1, 5);
        assert_true(balancedness(bounded, l, after) > balancedness(current, l, after));
    }
    wb_placement_close(bounded);
    wb_placement_close(next);
    wb_placement_close(current);
    free(after);
    free(before);
}

/* From experts in turn on thousands of ranks, which by the hottest rank alone ends at .53 to .75 here. */
static void test_incremental_from_far_off_on_many_ranks(void **state) {
    (void)state;
    static const uint32_t slots[] = {8192, 12288, 36864};
    double *loads = make_loads(256, 1, 0, 0);
    for (int i = 0; i < 3; i++) {
        wb_topology t = {.n_ranks = 4096, .n_nodes = 512, .n_slots = slots[i]};
        wb_placement *current = NULL;
        assert_int_equal(wb_placement_open(&t, L, 256, &current), WB_OK);
        wb_eplb_options options = with(WB_EPLB_INCREMENTAL, current);
        options.trials = 0;
        options.horizon_steps = 1e9;
        wb_placement *p = solve(&t, 256, 1, loads, &options);
        check_map(p, false);
        for (uint32_t l = 0; l < L; l++) {
            assert_true(balancedness(current, l, loads) < 0.6);
            double found = balancedness(p, l, loads);
            if (!(found >= 0.94)) fail_msg("%u slots, layer %u: expected .94, found %g", slots[i], l, found);
            assert_in_range(changed_slots(current, p, l), 1, slots[i] / 3);
        }
        wb_placement_close(p);
        wb_placement_close(current);
    }
    free(loads);
}

/* SGLang #8345, vLLM #47206, #50647: a rebalance that costs more than it gains is not made. */
static void test_vllm_50647_a_move_that_does_not_pay_is_not_made(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 8, .n_nodes = 2, .n_slots = 36};
    double *before = make_loads(32, 1, 0, 0), *after = make_loads(32, 1, 1, 0.3);
    wb_placement *current = solve(&t, 32, 1, before, NULL);
    wb_eplb_options options = with(WB_EPLB_INCREMENTAL, current);
    options.horizon_steps = 0;
    wb_placement *same = solve(&t, 32, 1, after, &options);
    assert_true(wb_placement_hash(same) == wb_placement_hash(current));
    options.horizon_steps = 1e6;
    wb_placement *moved = solve(&t, 32, 1, after, &options);
    assert_true(wb_placement_hash(moved) != wb_placement_hash(current));
    options.cost.expert_bytes *= 1e12;
    wb_placement *dear = solve(&t, 32, 1, after, &options);
    assert_true(wb_placement_hash(dear) == wb_placement_hash(current));
    options.cost = wb_cost_model_default();
    options.target = balancedness(current, 0, after) * 0.9; /* good enough as it is */
    wb_placement *content = solve(&t, 32, 1, after, &options);
    assert_int_equal(changed_slots(current, content, 0), 0);
    wb_placement_close(content);
    wb_placement_close(dear);
    wb_placement_close(moved);
    wb_placement_close(same);
    wb_placement_close(current);
    free(after);
    free(before);
}

/* SGLang #10606: the experts of ranks that died live on, whatever it costs; the other slots stay. */
static void test_sglang_10606_dead_ranks_are_repaired(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 6, .n_nodes = 2, .n_slots = 30};
    double *loads = make_loads(20, 1, 0, 0);
    wb_placement *current = solve(&t, 20, 1, loads, NULL);
    uint8_t dead[] = {0, 1, 0, 0, 1, 0};
    t.dead = dead;
    wb_eplb_options options = with(WB_EPLB_INCREMENTAL, current);
    options.horizon_steps = 0; /* nothing but repairs */
    wb_placement *next = solve(&t, 20, 1, loads, &options);
    check_map(next, true);
    for (uint32_t l = 0; l < L; l++)
        assert_in_range(changed_slots(current, next, l), 10, 10 + 10); /* 10 died */
    wb_placement_close(next);
    wb_placement_close(current);
    free(loads);
}

/* ---- microbatch ------------------------------------------------------------------------------ */

static void test_microbatch_beats_deepseek_by_15_points(void **state) {
    (void)state;
    enum { M = 4 };
    wb_topology t = {.n_ranks = 32, .n_nodes = 1, .n_slots = 160};
    double *loads = make_loads(128, M, 0, 0.5);
    wb_eplb_options options = with(WB_EPLB_DEEPSEEK, NULL);
    wb_placement *deepseek = solve(&t, 128, M, loads, &options);
    options = with(WB_EPLB_MICROBATCH, NULL);
    options.trials = 100000;
    wb_placement *ours = solve(&t, 128, M, loads, &options);
    check_map(ours, true);
    for (uint32_t l = 0; l < L; l++) {
        double mean = 0;
        for (uint32_t m = 0; m < M; m++)
            for (uint32_t e = 0; e < 128; e++) mean += loads[((size_t)m * L + l) * 128 + e] / 32;
        assert_true(mean / sum_of_maxima(ours, l, M, loads) - mean / sum_of_maxima(deepseek, l, M, loads) >=
                    0.15);
    }
    wb_placement_close(ours);
    wb_placement_close(deepseek);
    free(loads);
}

/* Never worse than where it starts, and one micro-batch is the ordinary problem. */
static void test_microbatch_never_loses_to_balanced(void **state) {
    (void)state;
    for (uint32_t round = 0; round < 20; round++) {
        uint32_t M = 1 + below(5), E = 8 + below(40), R = 2 + below(7);
        wb_topology t = {.n_ranks = R, .n_nodes = 1, .n_slots = E + below(2 * R)};
        double *loads = make_loads(E, M, round, 0.5);
        for (uint32_t i = 0; round % 4 == 0 && i < L * E; i++) loads[i] = 0; /* an empty micro-batch */
        wb_eplb_options options = with(WB_EPLB_BALANCED, NULL);
        wb_placement *balanced = solve(&t, E, M, loads, &options);
        options = with(WB_EPLB_MICROBATCH, NULL);
        if (round % 2) options.trials = 200; /* too few to come down from the first temperatures */
        wb_placement *ours = solve(&t, E, M, loads, &options);
        for (uint32_t l = 0; l < L; l++)
            assert_true(sum_of_maxima(ours, l, M, loads) <=
                        sum_of_maxima(balanced, l, M, loads) * (1 + 1e-12));
        wb_placement_close(ours);
        wb_placement_close(balanced);
        free(loads);
    }
}

/* With two slots a rank the numbers of replicas must change too: swaps alone end at .56 here. */
static void test_microbatch_moves_replicas(void **state) {
    (void)state;
    enum { M = 4, E = 64, R = 64 };
    wb_topology t = {.n_ranks = R, .n_nodes = 1, .n_slots = 128};
    double *loads = make_loads(E, M, 0, 0.5);
    wb_eplb_options options = with(WB_EPLB_MICROBATCH, NULL);
    options.trials = 200000;
    wb_placement *p = solve(&t, E, M, loads, &options);
    check_map(p, true);
    for (uint32_t l = 0; l < L; l++) {
        double mean = 0;
        for (uint32_t m = 0; m < M; m++)
            for (uint32_t e = 0; e < E; e++) mean += loads[((size_t)m * L + l) * E + e] / R;
        assert_true(mean / sum_of_maxima(p, l, M, loads) >= 0.7);
    }
    wb_placement_close(p);
    free(loads);
}

/* Two micro-batches that load opposite halves: by the sum every placement is perfect, one is in truth. */
static void test_microbatch_sees_what_the_sum_hides(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    double loads[2 * L * 4] = {1, 1, 0, 0, 1, 0, 1, 0, /* batch 1: */ 0, 0, 1, 1, 0, 1, 0, 1};
    wb_eplb_options options = with(WB_EPLB_MICROBATCH, NULL);
    wb_placement *p = solve(&t, 4, 2, loads, &options);
    for (uint32_t l = 0; l < L; l++) assert_true(sum_of_maxima(p, l, 2, loads) == 2);
    wb_placement_close(p);
}

static void count_calls(void *ctx, uint32_t done, uint32_t n_layers) {
    uint32_t *calls = ctx;
    assert_int_equal(done, ++*calls);
    assert_int_equal(n_layers, L);
}

/* A random order of the experts in S = E slots. */
static wb_placement *shuffled(const wb_topology *t, uint32_t E) {
    wb_placement *p = NULL;
    int32_t experts[64];
    assert_int_equal(wb_placement_open(t, L, E, &p), WB_OK);
    for (uint32_t l = 0; l < L; l++) {
        for (uint32_t e = 0; e < E; e++) {
            const uint32_t at = below(e + 1);
            experts[e] = experts[at];
            experts[at] = (int32_t)e;
        }
        assert_int_equal(wb_placement_set_layer(p, l, experts, NULL, 0), WB_OK);
    }
    return p;
}

/* Without replicas a layer changes only where its maximum becomes lower; an expert a rank: never. */
static void test_what_is_as_good_stays(void **unused) {
    (void)unused;
    for (int trial = 0; trial < 60; trial++) {
        const uint32_t per_rank = trial % 3 == 0 ? 1 : 1 + below(4), R = 2 + below(14), E = R * per_rank;
        const wb_topology t = {.n_ranks = R, .n_nodes = 1, .n_slots = E};
        double *loads = make_loads(E, 2, (uint32_t)trial, 0.3);
        for (int a = 0; a < 2; a++) {
            const wb_eplb_algorithm algorithm = a ? WB_EPLB_MICROBATCH : WB_EPLB_BALANCED;
            wb_placement *current = shuffled(&t, E);
            wb_eplb_options options = with(algorithm, current);
            wb_placement *p = solve(&t, E, 2, loads, &options);
            options.current = p;
            wb_placement *again = solve(&t, E, 2, loads, &options);
            for (uint32_t l = 0; l < L; l++) {
                const uint32_t changed = changed_slots(current, p, l);
                assert_true(per_rank > 1 || changed == 0);
                if (algorithm == WB_EPLB_MICROBATCH && changed > 0)
                    assert_true(sum_of_maxima(p, l, 2, loads) < sum_of_maxima(current, l, 2, loads));
                assert_int_equal(changed_slots(p, again, l), 0);
            }
            wb_placement_close(again);
            wb_placement_close(p);
            wb_placement_close(current);
        }
        free(loads);
    }
}

/* A map of before a rank died is none to keep, however low its maximum. */
static void test_a_map_on_dead_ranks_does_not_stay(void **unused) {
    (void)unused;
    const uint8_t dead[] = {0, 1, 0};
    const uint32_t slots[] = {2, 1, 2};
    wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 5, .slots_of_rank = slots};
    const double loads[L * 4] = {1, 1, 1, 1, 1, 1, 1, 1};
    const int32_t before[] = {0, WB_NO_EXPERT, 1, 2, 3};
    wb_placement *current = NULL;
    assert_int_equal(wb_placement_open(&t, L, 4, &current), WB_OK);
    for (uint32_t l = 0; l < L; l++)
        assert_int_equal(wb_placement_set_layer(current, l, before, NULL, 0), WB_OK);
    t.dead = dead;
    const wb_eplb_options options = with(WB_EPLB_BALANCED, current);
    wb_placement *p = solve(&t, 4, 1, loads, &options);
    check_map(p, true);
    wb_placement_close(p);
    wb_placement_close(current);
}

static void test_progress_and_names(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    double loads[L * 4] = {1, 2, 3, 4, 4, 3, 2, 1};
    uint32_t calls = 0;
    wb_eplb_options options = wb_eplb_options_default();
    options.progress = count_calls;
    options.progress_ctx = &calls;
    wb_placement *p = solve(&t, 4, 1, loads, &options);
    assert_int_equal(calls, L);
    wb_placement_close(p);
    for (wb_eplb_algorithm a = WB_EPLB_DEEPSEEK; a <= WB_EPLB_MICROBATCH; a++) {
        wb_eplb_algorithm parsed = (wb_eplb_algorithm)99;
        assert_int_equal(wb_eplb_algorithm_parse(wb_eplb_algorithm_name(a), &parsed), WB_OK);
        assert_int_equal(parsed, a);
    }
    wb_eplb_algorithm untouched = WB_EPLB_MICROBATCH;
    assert_int_equal(wb_eplb_algorithm_parse("greedy", &untouched), WB_INVALID_ARGUMENT);
    assert_int_equal(untouched, WB_EPLB_MICROBATCH);
    assert_message_has("greedy");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sglang_7575_any_ranks_nodes_and_slots),
        cmocka_unit_test(test_the_same_bytes_for_any_number_of_threads),
        cmocka_unit_test(test_bad_loads_and_options_are_refused),
        cmocka_unit_test(test_sums_that_are_no_numbers_are_refused),
        cmocka_unit_test(test_current_of_another_shape),
        cmocka_unit_test(test_counts_above_2_24_are_exact),
        cmocka_unit_test(test_prime_rl_3051_more_than_255_slots),
        cmocka_unit_test(test_eplb_22_replicas_never_share_a_rank),
        cmocka_unit_test(test_eplb_25_few_slots_change),
        cmocka_unit_test(test_incremental_from_far_off_on_many_ranks),
        cmocka_unit_test(test_vllm_50647_a_move_that_does_not_pay_is_not_made),
        cmocka_unit_test(test_sglang_10606_dead_ranks_are_repaired),
        cmocka_unit_test(test_microbatch_beats_deepseek_by_15_points),
        cmocka_unit_test(test_microbatch_never_loses_to_balanced),
        cmocka_unit_test(test_microbatch_moves_replicas),
        cmocka_unit_test(test_microbatch_sees_what_the_sum_hides),
        cmocka_unit_test(test_what_is_as_good_stays),
        cmocka_unit_test(test_a_map_on_dead_ranks_does_not_stay),
        cmocka_unit_test(test_progress_and_names),
    };
    seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
