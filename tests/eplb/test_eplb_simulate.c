/* test_eplb_simulate.c - synthetic loads and the simulator: worked examples by hand, and over random
 * placements, policies and traffic what must hold of any: nothing is below the bound, no token is lost,
 * figures are in their ranges. */
#include "placement/placement_internal.h"
#include "support/alloc_fail.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t seed = 20240607;

static void assert_near(double found, double expected, double tolerance) {
    if (!(fabs(found - expected) <= tolerance)) fail_msg("expected %.17g, found %.17g", expected, found);
}

/* ---- traffic from an array ------------------------------------------------------------------- */

typedef struct array_traffic {
    const uint32_t *counts; /* [M][L][R][E] */
    uint32_t L, R, E;
    wb_status status; /* what fill answers */
} array_traffic;

static wb_status fill_array(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    const array_traffic *a = ctx;
    size_t n = (size_t)a->R * a->E;
    if (a->status != WB_OK) return wb_fail(a->status, "fill: no");
    memcpy(counts_out, a->counts + ((size_t)batch * a->L + layer) * n, n * sizeof *counts_out);
    return WB_OK;
}

static wb_cost_model plain_cost(void) {
    wb_cost_model cost = wb_cost_model_default();
    cost.seconds_per_token = 1;
    cost.seconds_per_expert = 10;
    cost.bytes_per_token = 8;
    cost.node_bytes_per_second = 4;
    cost.network_bytes_per_second = 2;
    return cost;
}

/* ---- the simulator by hand ------------------------------------------------------------------- */

/* 2 ranks on 2 nodes, 3 experts in 3 slots: rank 0 has experts 0 and 1, rank 1 has expert 2. */
static void test_by_hand(void **state) {
    (void)state;
    wb_topology topology = {.n_ranks = 2, .n_nodes = 2, .n_slots = 3};
    wb_placement *placement = NULL;
    assert_int_equal(wb_placement_open(&topology, 2, 3, &placement), WB_OK);
    const uint32_t counts[] = {/* batch 0, layer 0 */ 2, 1, 3, 4, 0, 2,
                               /* layer 1 */ 0,          0, 0, 0, 0, 0,
                               /* batch 1, layer 0 */ 1, 0, 0, 0, 0, 0,
                               /* layer 1 */ 2,          2, 0, 0, 0, 4};
    array_traffic array = {counts, 2, 2, 3, WB_OK};
    wb_traffic traffic = {2, fill_array, &array};
    wb_cost_model cost = plain_cost();
    double ranks[2];
    wb_simulation s;
    assert_int_equal(wb_simulate(placement, WB_DISPATCH_STATIC, &traffic, &cost, ranks, &s), WB_OK);
    /* loads (7, 5), none, (1, 0), (4, 4); experts read (2, 1), (1, 0), (2, 1) */
    assert_near(ranks[0], 12, 0);
    assert_near(ranks[1], 9, 0);
    double layer0 = (6.0 / 7 + 0.5) / 2;
    assert_near(s.balancedness, (6.0 / 7 + 0.5 + 1) / 3, 1e-15);
    assert_near(s.balancedness_time, (6 + 0.5 + 4) / (7.0 + 1 + 4), 1e-15);
    assert_near(s.min_layer, layer0, 1e-15);
    /* compute 27, 11, 24. Off their rank: 3 tokens to rank 1 and 4 back; none; none: 2 x 8 bytes x 4 / 2. */
    assert_near(s.seconds, 27 + 32 + 11 + 24, 1e-12);
    assert_near(s.network_bytes, 2 * 8 * 7, 1e-12);
    assert_near(s.node_bytes, 0, 0);
    /* means 6 + 10 x 1.5 against 2 reads and 6 + 10 of expert 0, and rank 1, which has one slot, sends 2
     * tokens of its 6: 2 x 8 bytes x 2 / 2; 0.5 + 5 against 1 read and 1 + 10; 4 + 15 against 2 reads and 4 +
     * 10, nothing sent */
    assert_near(s.bound_seconds, 21 + 16 + 11 + 20, 1e-12);
    /* Fake dispatch is not held to where the router's experts are. */
    assert_int_equal(wb_simulate(placement, WB_DISPATCH_FAKE, &traffic, &cost, ranks, &s), WB_OK);
    assert_near(s.bound_seconds, 21 + 10 + 20, 1e-12);
    wb_placement_close(placement);
}

static void test_refusals(void **state) {
    (void)state;
    wb_topology topology = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    wb_placement *placement = NULL;
    assert_int_equal(wb_placement_open(&topology, 1, 4, &placement), WB_OK);
    const uint32_t counts[8] = {0};
    array_traffic array = {counts, 1, 2, 4, WB_OK};
    wb_traffic traffic = {1, fill_array, &array};
    wb_cost_model cost = wb_cost_model_default();
    double ranks[2] = {-1, -1};
    wb_simulation s = {.seconds = -1}, untouched = s;
    cost.network_bytes_per_second = 0;
    assert_int_equal(wb_simulate(placement, WB_DISPATCH_STATIC, &traffic, &cost, ranks, &s),
                     WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "network_bytes_per_second"));
    cost = wb_cost_model_default();
    cost.seconds_per_token = NAN;
    assert_int_equal(wb_simulate(placement, WB_DISPATCH_STATIC, &traffic, &cost, ranks, &s),
                     WB_INVALID_ARGUMENT);
    cost = wb_cost_model_default();
    assert_int_equal(wb_simulate(NULL, WB_DISPATCH_STATIC, &traffic, &cost, ranks, &s), WB_INVALID_ARGUMENT);
    array.status = WB_NOT_FOUND;
    assert_int_equal(wb_simulate(placement, WB_DISPATCH_STATIC, &traffic, &cost, ranks, &s), WB_NOT_FOUND);
    assert_memory_equal(&s, &untouched, sizeof s);
    assert_near(ranks[0], -1, 0);
    array.status = WB_OK; /* no tokens at all: nothing to do, perfectly balanced */
    assert_int_equal(wb_simulate(placement, WB_DISPATCH_QUOTA, &traffic, &cost, ranks, &s), WB_OK);
    assert_near(s.balancedness, 1, 0);
    assert_near(s.balancedness_time, 1, 0);
    assert_near(s.min_layer, 1, 0);
    assert_near(s.seconds, 0, 0);
    assert_near(s.bound_seconds, 0, 0);
    wb_placement_close(placement);
}

/* ---- what holds of any placement, policy and traffic ----------------------------------------- */

typedef struct random_case {
    uint32_t M, L, E;
    wb_topology topology;
    uint8_t dead[32];
    wb_placement *placement;
    uint32_t *counts;
    uint64_t tokens, n_live;
} random_case;

/* Random experts in live slots, every expert once at least, now and then an empty slot, doubles on a rank
 * allowed. */
static void random_placement(random_case *c, uint64_t *rng) {
    uint32_t S = c->topology.n_slots;
    int32_t *map = malloc(S * sizeof *map);
    uint32_t *live = malloc(S * sizeof *live), n_live = 0;
    assert_true(map && live);
    for (uint32_t l = 0; l < c->L; l++) {
        n_live = 0;
        for (uint32_t i = 0; i < S; i++) {
            map[i] = WB_NO_EXPERT;
            if (!c->dead[wb_placement_rank_of(c->placement, (wb_physical_id){i})]) live[n_live++] = i;
        }
        for (uint32_t i = n_live; i > 1; i--) {
            uint32_t j = wb_random_below(rng, i), last = live[i - 1];
            live[i - 1] = live[j];
            live[j] = last;
        }
        for (uint32_t i = 0; i < n_live; i++)
            if (i < c->E || wb_random_below(rng, 8) > 0)
                map[live[i]] = (int32_t)(i < c->E ? i : wb_random_below(rng, c->E));
        assert_int_equal(wb_placement_set_layer(c->placement, l, map, NULL, 1), WB_OK);
    }
    free(map);
    free(live);
}

static void random_counts(random_case *c, uint64_t *rng) {
    uint32_t R = c->topology.n_ranks;
    size_t n = (size_t)c->M * c->L * R * c->E;
    uint32_t max = 1 + wb_random_below(rng, 200), some = 1 + wb_random_below(rng, 4);
    c->counts = calloc(n, sizeof *c->counts);
    assert_non_null(c->counts);
    for (size_t i = 0; i < n; i++) {
        if (c->dead[i / c->E % R] || wb_random_below(rng, 4) >= some) continue;
        c->counts[i] = wb_random_below(rng, max) / (1 + wb_random_below(rng, 20));
        c->tokens += c->counts[i];
    }
}

static void case_open(random_case *c, uint64_t *rng) {
    *c = (random_case){0};
    c->M = 1 + wb_random_below(rng, 3);
    c->L = 1 + wb_random_below(rng, 3);
    c->E = 1 + wb_random_below(rng, 24);
    uint32_t R = 1 + wb_random_below(rng, 16), n_dead = wb_random_below(rng, 3) == 0 ? R / 4 : 0;
    for (uint32_t i = 0; i < n_dead; i++) c->dead[wb_random_below(rng, R)] = 1;
    for (uint32_t r = 0; r < R; r++) c->n_live += !c->dead[r];
    uint32_t needed = (uint32_t)((c->E + c->n_live - 1) / c->n_live) * R;
    c->topology = (wb_topology){.n_ranks = R,
                                .n_nodes = 1 + wb_random_below(rng, R),
                                .n_slots = needed + wb_random_below(rng, 2 * R),
                                .dead = c->dead};
    assert_int_equal(wb_placement_open(&c->topology, c->L, c->E, &c->placement), WB_OK);
    random_placement(c, rng);
    random_counts(c, rng);
}

static void case_close(random_case *c) {
    wb_placement_close(c->placement);
    free(c->counts);
}

static void in_unit(const char *what, double value) {
    if (!(value > 0 && value <= 1 + 1e-12)) fail_msg("%s: expected within (0, 1], found %.17g", what, value);
}

static wb_simulation simulate_case(const random_case *c, wb_dispatch_policy policy,
                                   const wb_cost_model *cost) {
    array_traffic array = {c->counts, c->L, c->topology.n_ranks, c->E, WB_OK};
    wb_traffic traffic = {c->M, fill_array, &array};
    double ranks[32], sum = 0;
    wb_simulation s;
    if (wb_simulate(c->placement, policy, &traffic, cost, ranks, &s) != WB_OK)
        fail_msg("%s", wb_error_message());
    for (uint32_t p = 0; p < c->topology.n_ranks; p++) {
        if (c->dead[p]) assert_near(ranks[p], 0, 0);
        sum += ranks[p];
    }
    assert_near(sum, (double)c->tokens, 1e-9 * (double)c->tokens);
    in_unit("balancedness", s.balancedness);
    in_unit("balancedness_time", s.balancedness_time);
    in_unit("min_layer", s.min_layer);
    if (!(s.min_layer <= s.balancedness + 1e-12))
        fail_msg("worst layer %g above the mean %g", s.min_layer, s.balancedness);
    if (!(s.seconds >= s.bound_seconds * (1 - 1e-12)))
        fail_msg("%s: %.17g s are below the bound %.17g s", wb_dispatch_policy_name(policy), s.seconds,
                 s.bound_seconds);
    return s;
}

static wb_cost_model random_cost(uint64_t *rng) {
    wb_cost_model cost = plain_cost();
    cost.seconds_per_token = wb_random_below(rng, 4);
    cost.seconds_per_expert = wb_random_below(rng, 40);
    cost.bytes_per_token = wb_random_below(rng, 8);
    return cost;
}

static void test_properties(void **state) {
    (void)state;
    uint64_t rng = seed;
    print_message("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < 400; i++) {
        random_case c;
        case_open(&c, &rng);
        wb_cost_model cost = random_cost(&rng);
        wb_simulation fixed = simulate_case(&c, WB_DISPATCH_STATIC, &cost);
        wb_simulation hashed = simulate_case(&c, WB_DISPATCH_DYNAMIC, &cost);
        wb_simulation quota = simulate_case(&c, WB_DISPATCH_QUOTA, &cost);
        simulate_case(&c, WB_DISPATCH_FAKE, &cost);
        assert_near(fixed.bound_seconds, quota.bound_seconds, 0); /* knows neither placement nor policy */
        /* static's tokens are whole, as quota's are; dynamic's are expectations: up to a token less a rank
         * at its most, and in each (batch, layer). */
        double maxima = (double)c.tokens / (double)c.n_live / quota.balancedness_time;
        double hashed_maxima = (double)c.tokens / (double)c.n_live / hashed.balancedness_time;
        if (!(quota.balancedness_time >= fixed.balancedness_time - 1e-12))
            fail_msg("case %d: quota %g, static %g", i, quota.balancedness_time, fixed.balancedness_time);
        if (!(maxima <= hashed_maxima + c.M * c.L))
            fail_msg("case %d: most loaded ranks: quota %g, dynamic %g", i, maxima, hashed_maxima);
        case_close(&c);
    }
}

/* Ranks in turn are even. */
static void test_fake_is_even(void **state) {
    (void)state;
    wb_topology topology = {.n_ranks = 8, .n_nodes = 2, .n_slots = 32};
    random_case c = {.M = 2, .L = 3, .E = 24, .topology = topology, .n_live = 8};
    uint64_t rng = seed + 1;
    assert_int_equal(wb_placement_open(&topology, c.L, c.E, &c.placement), WB_OK);
    random_counts(&c, &rng);
    wb_cost_model cost = plain_cost();
    wb_simulation fake = simulate_case(&c, WB_DISPATCH_FAKE, &cost);
    wb_simulation fixed = simulate_case(&c, WB_DISPATCH_STATIC, &cost);
    assert_near(fake.balancedness_time, 1, 1e-3);
    assert_near(fake.balancedness, 1, 1e-3);
    if (!(fixed.balancedness_time < 0.99)) fail_msg("the traffic is too even for a test");
    case_close(&c);
}

/* Large passes run several layers at a time: the same sums as one layer after the other. */
typedef struct one_layer {
    array_traffic *all;
    uint32_t layer;
} one_layer;

static wb_status fill_one_layer(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    const one_layer *one = ctx;
    return fill_array(one->all, batch, layer + one->layer, counts_out);
}

static void test_many_ranks(void **state) {
    (void)state;
    enum { R = 512, E = 128, LAYERS = 5 };
    wb_topology topology = {.n_ranks = R, .n_nodes = 64, .n_slots = 2 * R};
    random_case c = {.M = 2, .L = LAYERS, .E = E, .topology = topology};
    static uint8_t dead[R]; /* all live: larger than a random case's */
    uint64_t rng = seed + 3, tokens = 0;
    size_t n = (size_t)c.M * c.L * R * E;
    c.counts = malloc(n * sizeof *c.counts);
    assert_non_null(c.counts);
    for (size_t i = 0; i < n; i++)
        tokens += c.counts[i] = wb_random_below(&rng, 3) * (uint32_t)(i / E / R + 1);
    topology.dead = dead;
    wb_placement *all = NULL, *one = NULL;
    assert_int_equal(wb_placement_open(&topology, c.L, E, &all), WB_OK);
    assert_int_equal(wb_placement_open(&topology, 1, E, &one), WB_OK);
    array_traffic array = {c.counts, c.L, R, E, WB_OK};
    wb_traffic traffic = {c.M, fill_array, &array};
    wb_cost_model cost = plain_cost();
    double ranks[R], sums[R] = {0}, rank_tokens = 0, seconds = 0, bound = 0, bytes = 0;
    wb_simulation s, part;
    assert_int_equal(wb_simulate(all, WB_DISPATCH_DYNAMIC, &traffic, &cost, ranks, &s), WB_OK);
    for (uint32_t l = 0; l < c.L; l++) {
        double layer_ranks[R];
        one_layer ctx = {&array, l};
        wb_traffic single = {c.M, fill_one_layer, &ctx};
        assert_int_equal(wb_simulate(one, WB_DISPATCH_DYNAMIC, &single, &cost, layer_ranks, &part), WB_OK);
        for (int p = 0; p < R; p++) sums[p] += layer_ranks[p];
        seconds += part.seconds;
        bound += part.bound_seconds;
        bytes += part.node_bytes + part.network_bytes;
    }
    for (int p = 0; p < R; p++) {
        assert_near(ranks[p], sums[p], 1e-9 * sums[p]);
        rank_tokens += ranks[p];
    }
    assert_near(rank_tokens, (double)tokens, 1e-9 * (double)tokens);
    assert_near(s.seconds, seconds, 1e-9 * seconds);
    assert_near(s.bound_seconds, bound, 1e-9 * bound);
    assert_near(s.node_bytes + s.network_bytes, bytes, 1e-9 * bytes);
    dead[7] = 1; /* its tokens are refused in whatever thread: the message arrives */
    wb_placement_close(one);
    assert_int_equal(wb_placement_open(&topology, c.L, E, &one), WB_OK);
    wb_status status = wb_simulate(one, WB_DISPATCH_QUOTA, &traffic, &cost, ranks, &s);
    assert_int_equal(status, WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "rank 7"));
    wb_placement_close(all);
    wb_placement_close(one);
    free(c.counts);
}

static wb_status simulate_failing(void *ctx) {
    const random_case *c = ctx;
    array_traffic array = {c->counts, c->L, c->topology.n_ranks, c->E, WB_OK};
    wb_traffic traffic = {c->M, fill_array, &array};
    wb_cost_model cost = plain_cost();
    wb_simulation s;
    return wb_simulate(c->placement, WB_DISPATCH_QUOTA, &traffic, &cost, NULL, &s);
}

/* ---- synthetic loads ------------------------------------------------------------------------- */

enum { SM = 3, SL = 4, SE = 64 };

static void loads_of(const wb_synthetic *s, uint32_t step, double *out) {
    if (wb_synthetic_loads(s, step, SM, SL, SE, out) != WB_OK) fail_msg("%s", wb_error_message());
}

static void test_synthetic_sums(void **state) {
    (void)state;
    double loads[SM * SL * SE], again[SM * SL * SE];
    for (int kind = 0; kind < 3; kind++) {
        for (uint64_t tokens = 0; tokens < 200000; tokens = tokens * 7 + 13) {
            wb_synthetic s = {(wb_synthetic_kind)kind, 1.2, 0.3, tokens, 7};
            loads_of(&s, 2, loads);
            loads_of(&s, 2, again);
            assert_memory_equal(loads, again, sizeof loads);
            for (int i = 0; i < SM * SL; i++) {
                double sum = 0;
                for (int e = 0; e < SE; e++) {
                    double load = loads[i * SE + e];
                    if (!(load >= 0 && load == floor(load))) fail_msg("load %g is not whole", load);
                    sum += load;
                }
                assert_near(sum, (double)tokens, 0);
            }
        }
    }
}

/* Without noise: the i-th of the sorted loads is in proportion to (i + 1)^-skew, another order in each
 * layer, and neither batch nor step matter. */
static void test_zipf(void **state) {
    (void)state;
    wb_synthetic s = {WB_SYNTHETIC_ZIPF, 0.8, 0, 1u << 30, 3};
    double loads[SM * SL * SE], later[SM * SL * SE], sum = 0;
    loads_of(&s, 0, loads);
    loads_of(&s, 5, later);
    assert_memory_equal(loads, later, sizeof loads);
    assert_memory_equal(loads, loads + SL * SE, SL * SE * sizeof *loads);
    assert_memory_not_equal(loads, loads + SE, SE * sizeof *loads);
    for (int i = 0; i < SE; i++) sum += pow(i + 1, -0.8);
    for (int l = 0; l < SL; l++)
        for (int i = 0; i < SE; i++) {
            double expected = pow(i + 1, -0.8) / sum * (1u << 30);
            bool found = false;
            for (int e = 0; e < SE; e++) found |= fabs(loads[l * SE + e] - expected) <= 1;
            if (!found) fail_msg("layer %d: no expert has the %d-th load %g", l, i, expected);
        }
}

/* Mean and deviation of the logarithms of loads over means. */
static void log_moments(const double *loads, const double *base, int n, double *mean_out,
                        double *deviation_out) {
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        double x = log(loads[i]) - (base ? log(base[i]) : 0);
        sum += x;
        squares += x * x;
    }
    *mean_out = sum / n;
    *deviation_out = sqrt(squares / n - sum / n * sum / n);
}

static void test_lognormal_and_noise(void **state) {
    (void)state;
    enum { E = 4096 };
    double *loads = malloc(2 * E * sizeof *loads), mean, deviation;
    assert_non_null(loads);
    wb_synthetic s = {WB_SYNTHETIC_LOGNORMAL, 0.5, 0, (uint64_t)1 << 40, 11};
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, E, loads), WB_OK);
    log_moments(loads, NULL, E, &mean, &deviation);
    assert_near(deviation, 0.5, 0.03);
    s.noise = 0.2;
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, E, loads + E), WB_OK);
    log_moments(loads + E, loads, E, &mean, &deviation);
    assert_near(deviation, 0.2, 0.01);
    free(loads);
}

/* The base walks: after n steps it is noise x sqrt(n) away, to which the noise of the batches comes. */
static void test_drift(void **state) {
    (void)state;
    enum { E = 4096 };
    double *loads = malloc(3 * E * sizeof *loads), mean, near, far;
    assert_non_null(loads);
    wb_synthetic s = {WB_SYNTHETIC_DRIFT, 1, 0.1, (uint64_t)1 << 40, 5};
    const uint32_t steps[3] = {3, 4, 28};
    for (int i = 0; i < 3; i++)
        assert_int_equal(wb_synthetic_loads(&s, steps[i], 1, 1, E, loads + i * E), WB_OK);
    log_moments(loads + E, loads, E, &mean, &near);
    log_moments(loads + 2 * E, loads, E, &mean, &far);
    assert_near(near, 0.1 * sqrt(3), 0.02);
    assert_near(far, 0.1 * sqrt(27), 0.05);
    free(loads);
}

/* The same numbers on every machine: some of them, once and for all. */
static void test_synthetic_fixed(void **state) {
    (void)state;
    wb_synthetic s = {WB_SYNTHETIC_DRIFT, 1.1, 0.3, 100000, 42};
    double loads[SM * SL * SE];
    uint64_t hash = 0;
    for (int kind = 0; kind < 3; kind++) {
        s.kind = (wb_synthetic_kind)kind;
        loads_of(&s, 6, loads);
        for (int i = 0; i < SM * SL * SE; i++) hash = wb_mix64(hash ^ (uint64_t)loads[i]);
    }
    assert_int_equal(hash, 0x923be6919ff27073u);
}

static void test_synthetic_refusals(void **state) {
    (void)state;
    double load = -1;
    wb_synthetic s = {WB_SYNTHETIC_ZIPF, NAN, 0, 10, 1};
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, 1, &load), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "skew"));
    s = (wb_synthetic){WB_SYNTHETIC_ZIPF, 1, -0.1, 10, 1};
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, 1, &load), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "noise"));
    s = (wb_synthetic){(wb_synthetic_kind)3, 1, 0, 10, 1};
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, 1, &load), WB_INVALID_ARGUMENT);
    s = (wb_synthetic){WB_SYNTHETIC_ZIPF, 1, 0, UINT64_MAX, 1};
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, 1, &load), WB_INVALID_ARGUMENT);
    s.tokens = 10;
    assert_int_equal(wb_synthetic_loads(NULL, 0, 1, 1, 1, &load), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, 0, &load), WB_INVALID_ARGUMENT);
    assert_near(load, -1, 0);
    assert_int_equal(wb_synthetic_loads(&s, 0, 1, 1, 1, &load), WB_OK);
    assert_near(load, 10, 0);
}

static wb_status synthetic_failing(void *ctx) {
    static double loads[SM * SL * SE];
    return wb_synthetic_loads(ctx, 1, SM, SL, SE, loads);
}

/* ---- no memory ------------------------------------------------------------------------------- */

static void fail_each(const char *what, wb_status (*body)(void *), void *ctx) {
    for (long n = 0;; n++) {
        long live = 0;
        alloc_fail_arm(n, false);
        wb_status status = body(ctx);
        bool failed = alloc_fail_disarm(&live);
        if (live != 0) fail_msg("%s: allocation %ld: %ld blocks are left", what, n, live);
        if (!failed) {
            assert_int_equal(status, WB_OK);
            if (n < 2) fail_msg("%s: expected some allocations, found %ld", what, n);
            return;
        }
        if (status != WB_OUT_OF_MEMORY) fail_msg("%s: allocation %ld: found status %d", what, n, (int)status);
    }
}

static void test_no_memory(void **state) {
    (void)state;
    if (!ALLOC_FAIL_WORKS) skip();
    wb_synthetic s = {WB_SYNTHETIC_ZIPF, 1, 0.1, 1000, 1};
    fail_each("synthetic loads", synthetic_failing, &s);
    random_case c;
    uint64_t rng = seed + 2;
    case_open(&c, &rng);
    fail_each("simulate", simulate_failing, &c);
    case_close(&c);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_fake_is_even),
        cmocka_unit_test(test_many_ranks),
        cmocka_unit_test(test_synthetic_sums),
        cmocka_unit_test(test_zipf),
        cmocka_unit_test(test_lognormal_and_noise),
        cmocka_unit_test(test_drift),
        cmocka_unit_test(test_synthetic_fixed),
        cmocka_unit_test(test_synthetic_refusals),
        cmocka_unit_test(test_no_memory),
    };
    if (argc > 1) seed = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
