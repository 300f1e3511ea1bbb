/* test_eplb_balanced_exact.c - the balanced solver on small layers: it reaches the optimum, which all
 * placements there are tell, and proves it in a bounded number of steps. Random cases print their seed. */
#include "placement/placement_internal.h"
#include "solve/exact.h"
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

enum { MAX_R = 4, MAX_E = 6, N_CASES = 1000, NODES = 20000, MAX_PLACEMENTS = 200000 };
/* Maxima within this part are equal: the search stops at improvements of a part in 10^9. */
static const double PART = 2e-9;

static uint64_t seed;

static uint32_t below(uint32_t n) {
    return wb_random_below(&seed, n);
}

/* ---- layers ---------------------------------------------------------------------------------- */

typedef struct layer {
    wb_topology topology; /* its arrays are the two below */
    uint32_t slots_of_rank[MAX_R];
    uint8_t dead[MAX_R];
    uint32_t E;
    double loads[MAX_E];
    bool sparse; /* slots may stay empty */
} layer;

static double random_load(uint32_t kind) {
    double u = (below(1000) + 1) / 1000.0;
    switch (kind) {
    case 0:
        return 1; /* all equal */
    case 1:
        return below(3); /* many equal, many 0 */
    case 2:
        return floor(10 / (u * u)); /* one carries most */
    default:
        return u;
    }
}

static layer random_layer(void) {
    layer c = {.E = 1 + below(MAX_E)};
    uint32_t R = 1 + below(MAX_R), even = below(2) ? 1 + below(4) : 0, live, differ;
    do {
        live = differ = 0;
        c.topology = (wb_topology){.n_ranks = R, .n_nodes = 1};
        uint32_t first = UINT32_MAX;
        for (uint32_t r = 0; r < R; r++) {
            c.slots_of_rank[r] = even > 0 ? even : below(5);
            c.dead[r] = below(6) == 0;
            c.topology.n_slots += c.slots_of_rank[r];
            if (c.dead[r]) continue;
            live += c.slots_of_rank[r];
            if (first == UINT32_MAX) first = c.slots_of_rank[r];
            differ |= c.slots_of_rank[r] != first;
        }
        if (c.E > live && c.E > 1) c.E--;
    } while (live < c.E);
    c.sparse = differ && live > c.E;
    uint32_t kind = below(4);
    for (uint32_t e = 0; e < c.E; e++) c.loads[e] = random_load(kind);
    return c;
}

/* The arrays of a copy are its own. */
static wb_topology topology_of(const layer *c) {
    wb_topology t = c->topology;
    t.slots_of_rank = c->slots_of_rank;
    t.dead = c->dead;
    return t;
}

static wb_placement *solve(const layer *c, uint32_t trials) {
    wb_eplb_options options = wb_eplb_options_default();
    options.trials = trials;
    wb_topology t = topology_of(c);
    wb_placement *p = NULL;
    if (wb_eplb_solve(&t, 1, c->E, 1, c->loads, &options, &p) != WB_OK) fail_msg("%s", wb_error_message());
    return p;
}

static double maximum(const wb_placement *p, const double *loads) {
    double of_rank[64] = {0}, max = 0;
    wb_placement_rank_loads(p, 0, loads, of_rank);
    for (uint32_t r = 0; r < wb_placement_topology(p)->n_ranks; r++)
        if (of_rank[r] > max) max = of_rank[r];
    return max;
}

/* ---- all placements there are ---------------------------------------------------------------- */

typedef struct enumeration {
    const layer *c;
    uint32_t held[MAX_R]; /* bit e: the rank has expert e */
    double min;
} enumeration;

static void evaluate(enumeration *x) {
    uint32_t R = x->c->topology.n_ranks, count[MAX_E] = {0};
    double max = 0;
    for (uint32_t e = 0; e < x->c->E; e++) {
        for (uint32_t r = 0; r < R; r++) count[e] += x->held[r] >> e & 1;
        if (count[e] == 0) return;
    }
    for (uint32_t r = 0; r < R; r++) {
        double load = 0;
        for (uint32_t e = 0; e < x->c->E; e++)
            if (x->held[r] >> e & 1) load += x->c->loads[e] / count[e];
        if (load > max) max = load;
    }
    if (max < x->min) x->min = max;
}

static void enumerate(enumeration *x, uint32_t r) {
    if (r == MAX_R || r == x->c->topology.n_ranks) {
        evaluate(x);
        return;
    }
    uint32_t room = x->c->dead[r] ? 0 : x->c->slots_of_rank[r];
    if (room > x->c->E) room = x->c->E;
    for (uint32_t mask = 0; mask < 1u << x->c->E; mask++) {
        uint32_t n = 0;
        for (uint32_t e = 0; e < x->c->E; e++) n += mask >> e & 1;
        if (n > room || (n < room && !x->c->sparse)) continue;
        x->held[r] = mask;
        enumerate(x, r + 1);
    }
}

/* How many placements `enumerate` tries. */
static double placements(const layer *c) {
    double n = 1;
    for (uint32_t r = 0; r < c->topology.n_ranks; r++) {
        uint32_t room = c->dead[r] ? 0 : c->slots_of_rank[r] < c->E ? c->slots_of_rank[r] : c->E;
        double choices = 1, all = 1;
        for (uint32_t k = 0; k < room; k++) all += choices = choices * (c->E - k) / (k + 1);
        n *= c->sparse ? all : choices;
    }
    return n;
}

static layer make_layer(void) {
    layer c;
    do c = random_layer();
    while (placements(&c) > MAX_PLACEMENTS);
    return c;
}

static double optimum(const layer *c) {
    enumeration x = {.c = c, .min = INFINITY};
    enumerate(&x, 0);
    return x.min;
}

static void test_random_small_layers_reach_the_optimum(void **unused) {
    (void)unused;
    for (int i = 0; i < N_CASES; i++) {
        layer c = make_layer();
        wb_placement *p = solve(&c, 0);
        double best = optimum(&c), found = maximum(p, c.loads);
        if (!(fabs(found - best) <= best * PART))
            fail_msg("case %d: %u experts, %u ranks, %u slots: expected %.17g, found %.17g", i, c.E,
                     c.topology.n_ranks, c.topology.n_slots, best, found);
        wb_placement_close(p);
    }
}

/* ---- the proof itself ------------------------------------------------------------------------ */

/* A search that holds what the placement holds. */
static wb_search open_search(const wb_placement *p, const double *loads) {
    wb_search s;
    assert_int_equal(wb_search_open(p, loads, 1, 1, &s), WB_OK);
    const int32_t *experts = wb_placement_experts_of(p, 0);
    for (uint32_t i = 0; i < s.n_slots; i++)
        if (experts[i] >= 0) wb_search_put(&s, i, (uint32_t)experts[i]);
    wb_search_settle(&s);
    return s;
}

/* From a mere packing, and from the placement that an engine starts with. */
static void test_what_is_proven_is_the_optimum(void **unused) {
    (void)unused;
    for (int i = 0; i < N_CASES; i++) {
        layer c = make_layer();
        wb_topology t = topology_of(&c);
        wb_placement *p = NULL;
        if (i % 2)
            p = solve(&c, 1);
        else
            assert_int_equal(wb_placement_open(&t, 1, c.E, &p), WB_OK);
        wb_search s = open_search(p, c.loads);
        assert_true(wb_search_prove(&s, !c.sparse, 1000000));
        double found = s.rank_load[wb_search_hottest(&s)], best = optimum(&c);
        /* A start with empty slots may be below what full ones can reach. */
        assert_true(found <= best * (1 + PART));
        if (i % 2) assert_true(found >= best * (1 - PART));
        wb_search_close(&s);
        wb_placement_close(p);
    }
}

/* 8 experts on 8 ranks of 2 slots: water-filling and moves of single replicas end at 200. */
static void test_the_counts_are_searched(void **unused) {
    (void)unused;
    const double loads[] = {600, 560, 120, 120, 20, 10, 10, 10};
    wb_topology t = {.n_ranks = 8, .n_nodes = 1, .n_slots = 16};
    wb_placement *p = NULL;
    assert_int_equal(wb_eplb_solve(&t, 1, 8, 1, loads, NULL, &p), WB_OK);
    double found = maximum(p, loads);
    if (!(fabs(found - 590.0 / 3) <= 1e-6)) fail_msg("expected %.9f, found %.9f", 590.0 / 3, found);
    wb_placement_close(p);
}

/* Too few steps, or too large a layer: nothing is proven and nothing changes. */
static void test_without_steps_nothing_changes(void **unused) {
    (void)unused;
    const double loads[] = {600, 560, 120, 120, 20, 10, 10, 10};
    double many[33];
    for (int e = 0; e < 33; e++) many[e] = e + 1;
    const struct {
        wb_topology t;
        uint32_t E;
        const double *loads;
        int64_t nodes;
    } cases[] = {{{.n_ranks = 8, .n_nodes = 1, .n_slots = 16}, 8, loads, 100},
                 {{.n_ranks = 2, .n_nodes = 1, .n_slots = 34}, 33, many, NODES},
                 {{.n_ranks = 17, .n_nodes = 1, .n_slots = 34}, 8, loads, NODES}};
    for (int i = 0; i < 3; i++) {
        wb_placement *p = NULL;
        assert_int_equal(wb_placement_open(&cases[i].t, 1, cases[i].E, &p), WB_OK);
        wb_search s = open_search(p, cases[i].loads);
        assert_false(wb_search_prove(&s, true, cases[i].nodes));
        assert_memory_equal(s.expert, wb_placement_experts_of(p, 0), s.n_slots * sizeof *s.expert);
        wb_search_close(&s);
        wb_placement_close(p);
    }
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_eplb_balanced_exact: seed %" PRIu64 "\n", seed);
    seed = wb_mix64(seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_small_layers_reach_the_optimum),
        cmocka_unit_test(test_what_is_proven_is_the_optimum),
        cmocka_unit_test(test_the_counts_are_searched),
        cmocka_unit_test(test_without_steps_nothing_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
