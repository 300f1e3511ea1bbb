/* test_eplb_bound.c - the bounds that no placement can better, against all placements of small cases. */
#include "simulate/bound.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_EXPERTS = 5, MAX_RANKS = 4, MAX_SLOTS = 8 };

static uint64_t seed = 20260611;

typedef struct small_case {
    uint32_t E, R, S; /* S is a multiple of R */
    uint64_t tokens[MAX_EXPERTS];
    uint32_t slots[MAX_SLOTS]; /* expert of each slot, of the placement at hand */
    double best_hottest; /* over placements: tokens of the hottest (expert, rank), dealt evenly to ranks */
    double best_rank;    /* over placements: tokens of the fullest rank, dealt as well as can be */
    uint32_t best_kept;  /* over placements: tokens of rank 0 that stay on it, `tokens` being its own */
} small_case;

/* The ranks that hold one of the experts of the set. */
static uint32_t count_ranks(const small_case *c, uint32_t set) {
    uint32_t n = 0;
    for (uint32_t r = 0; r < c->R; r++) {
        uint32_t held = 0;
        for (uint32_t i = r * c->S / c->R; i < (r + 1) * c->S / c->R; i++) held |= set >> c->slots[i] & 1;
        n += held;
    }
    return n;
}

/* Of the best dispatch: by Hall's theorem the fullest rank has the tokens of a set of experts divided by the
 * ranks that hold them, for the worst set. */
static double fullest_rank(const small_case *c) {
    double worst = 0;
    for (uint32_t set = 1; set < 1u << c->E; set++) {
        uint64_t tokens = 0;
        for (uint32_t e = 0; e < c->E; e++) tokens += set >> e & 1 ? c->tokens[e] : 0;
        worst = fmax(worst, (double)tokens / count_ranks(c, set));
    }
    return worst;
}

static void look_at(small_case *c) {
    double hottest = 0;
    uint32_t held = 0, kept = 0;
    for (uint32_t e = 0; e < c->E; e++) {
        const uint32_t n = count_ranks(c, 1u << e);
        if (n == 0) return; /* no placement */
        hottest = fmax(hottest, (double)c->tokens[e] / n);
    }
    for (uint32_t i = 0; i < c->S / c->R; i++) held |= 1u << c->slots[i];
    for (uint32_t e = 0; e < c->E; e++) kept += held >> e & 1 ? (uint32_t)c->tokens[e] : 0;
    c->best_hottest = fmin(c->best_hottest, hottest);
    c->best_rank = fmin(c->best_rank, fullest_rank(c));
    c->best_kept = kept > c->best_kept ? kept : c->best_kept;
}

static void enumerate(small_case *c, uint32_t slot) {
    if (slot == c->S) {
        look_at(c);
        return;
    }
    for (c->slots[slot] = 0; c->slots[slot] < c->E; c->slots[slot]++) enumerate(c, slot + 1);
}

static void test_against_enumeration(void **state) {
    (void)state;
    uint64_t random = seed;
    for (int round = 0; round < 60; round++) {
        small_case c = {.R = 1 + wb_random_below(&random, MAX_RANKS), .best_hottest = 1e9, .best_rank = 1e9};
        const uint32_t a_rank = 1 + wb_random_below(&random, (c.R < 3 ? 6 : 7) / c.R);
        c.S = c.R * a_rank;
        c.E = 1 + wb_random_below(&random, c.S < MAX_EXPERTS ? c.S : MAX_EXPERTS);
        uint32_t counts[MAX_EXPERTS], top[MAX_SLOTS];
        uint64_t total = 0;
        for (uint32_t e = 0; e < c.E; e++) {
            c.tokens[e] = wb_random_below(&random, 4) == 0 ? 0 : wb_random_below(&random, 100);
            counts[e] = (uint32_t)c.tokens[e];
            total += c.tokens[e];
        }
        enumerate(&c, 0);
        const double bound = wb_bound_of_hottest(c.E, c.tokens, c.S, c.R);
        const uint64_t sent = wb_bound_of_sent(c.E, counts, a_rank, top);
        if (!(bound <= c.best_hottest * (1 + 1e-12) && bound <= c.best_rank * (1 + 1e-12)))
            fail_msg("seed %" PRIu64 ", round %d: bound %g, the best placement has %g and %g", seed, round,
                     bound, c.best_hottest, c.best_rank);
        /* Where ranks do not force replicas beside each other the bound is reached. */
        if (a_rank == 1) assert_true(fabs(bound - c.best_hottest) <= 1e-12 * bound);
        assert_int_equal(sent, total - c.best_kept);
    }
}

/* 12 slots for loads 60, 20, 10, 10 on 8 ranks: 7, 3, 1, 1 replicas or 8, 2, 1, 1 leave a 10. */
static void test_by_hand(void **state) {
    (void)state;
    const uint64_t loads[] = {60, 20, 10, 10}, none[] = {0, 0};
    assert_true(wb_bound_of_hottest(4, loads, 12, 8) == 10);
    assert_true(wb_bound_of_hottest(4, loads, 4, 4) == 60);
    assert_true(wb_bound_of_hottest(4, loads, 5, 5) == 30);
    assert_true(wb_bound_of_hottest(4, loads, 1000, 2) == 30); /* a third replica would be beside another */
    assert_true(wb_bound_of_hottest(2, none, 4, 2) == 0);
}

/* Tokens of rank 0: 60 of expert 0, 10 of expert 1. */
static wb_status fill_rank_0(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    (void)ctx, (void)batch, (void)layer;
    memset(counts_out, 0, 4 * 2 * sizeof *counts_out);
    counts_out[0] = 60;
    counts_out[1] = 10;
    return WB_OK;
}

/* 4 ranks of one slot, the last one dead: the 3 slots that live hold expert 0 twice, 30 tokens each, and not
 * three times, 20 each. Rank 0 sends the 10 tokens that its one slot cannot keep, and combine sends them
 * back. */
static void test_slots_of_dead_ranks_hold_nothing(void **state) {
    (void)state;
    const uint8_t dead[] = {0, 0, 0, 1};
    const wb_topology topology = {.n_ranks = 4, .n_nodes = 1, .n_slots = 4, .dead = dead};
    const wb_traffic traffic = {1, fill_rank_0, NULL};
    wb_cost_model cost = wb_cost_model_default();
    cost.seconds_per_token = 1;
    cost.seconds_per_expert = 10;
    cost.bytes_per_token = 8;
    cost.node_bytes_per_second = 4;
    wb_placement *placement = NULL;
    double ranks[4];
    wb_simulation s;
    assert_int_equal(wb_placement_open(&topology, 1, 2, &placement), WB_OK);
    assert_int_equal(wb_simulate(placement, WB_DISPATCH_STATIC, &traffic, &cost, ranks, &s), WB_OK);
    assert_true(s.bound_seconds == 30 * 1 + 10 + 2 * 8 * 10 / 4);
    wb_placement_close(placement);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_enumeration),
                                       cmocka_unit_test(test_by_hand),
                                       cmocka_unit_test(test_slots_of_dead_ranks_hold_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
