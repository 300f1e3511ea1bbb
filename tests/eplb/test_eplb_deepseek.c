/* test_eplb_deepseek.c - the deepseek solver: DeepSeek's README example, small cases whose outcome eplb.py
 * gave, what is refused, and random shapes against a plain implementation with linear searches. Orders of
 * addition that matter are in tests/golden/eplb (eplb_oracle). */
#include "solve/solver.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

typedef struct shape {
    uint32_t E, S, G, N, R;
} shape;

static wb_status solve(shape s, uint32_t L, uint32_t M, const double *loads, wb_placement **placement_out) {
    const wb_topology topology = {.n_ranks = s.R, .n_nodes = s.N, .n_slots = s.S};
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = WB_EPLB_DEEPSEEK;
    options.n_groups = s.G;
    options.threads = 1;
    return wb_eplb_solve(&topology, L, s.E, M, loads, &options, placement_out);
}

static wb_placement *solved(shape s, uint32_t L, uint32_t M, const double *loads) {
    wb_placement *placement = NULL;
    if (solve(s, L, M, loads, &placement) != WB_OK) fail_msg("%s", wb_error_message());
    return placement;
}

static void expect_layer(const wb_placement *placement, uint32_t layer, uint32_t S, const int32_t *experts,
                         const uint32_t *replicas) {
    const wb_layer_map map = wb_placement_layer(placement, layer);
    for (uint32_t slot = 0; slot < S; slot++)
        if (map.expert_of_slot[slot] != experts[slot] || map.replica_of_slot[slot] != replicas[slot])
            fail_msg("layer %u, slot %u: expected expert %d replica %u, found %d replica %u", layer, slot,
                     experts[slot], replicas[slot], map.expert_of_slot[slot], map.replica_of_slot[slot]);
}

/* ---- the README's example -------------------------------------------------------------------- */

static const double readme_loads[2][12] = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                           {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};

static void test_readme(void **state) {
    (void)state;
    wb_placement *placement = solved((shape){12, 16, 4, 2, 8}, 2, 1, readme_loads[0]);
    expect_layer(placement, 0, 16, (const int32_t[]){5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                 (const uint32_t[]){0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0});
    expect_layer(placement, 1, 16, (const int32_t[]){7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1},
                 (const uint32_t[]){0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0});
    wb_placement_close(placement);
}

/* Replica order is not slot order: expert 4 of layer 0 has slots 7, 5. */
static void test_readme_export(void **state) {
    (void)state;
    static const int32_t slots[2][12][2] = {{{12, -1},
                                             {15, 13},
                                             {11, -1},
                                             {6, -1},
                                             {7, 5},
                                             {0, 2},
                                             {1, -1},
                                             {3, -1},
                                             {4, -1},
                                             {9, -1},
                                             {8, 10},
                                             {14, -1}},
                                            {{13, -1},
                                             {15, 11},
                                             {8, -1},
                                             {14, -1},
                                             {9, -1},
                                             {10, 12},
                                             {2, 4},
                                             {0, -1},
                                             {6, 3},
                                             {7, -1},
                                             {1, -1},
                                             {5, -1}}};
    static const int32_t counts[2][12] = {{1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1},
                                          {1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1}};
    wb_placement *placement = solved((shape){12, 16, 4, 2, 8}, 2, 1, readme_loads[0]);
    int32_t log2phy[2][12][2], logcnt[2][12];
    assert_int_equal(wb_placement_max_replicas(placement), 2);
    wb_placement_export(placement, log2phy[0][0], logcnt[0]);
    assert_memory_equal(log2phy, slots, sizeof slots);
    assert_memory_equal(logcnt, counts, sizeof counts);
    wb_placement_close(placement);
}

static void expect_readme_global(shape s) {
    wb_placement *placement = solved(s, 2, 1, readme_loads[0]);
    expect_layer(placement, 0, 16, (const int32_t[]){10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1},
                 (const uint32_t[]){0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1});
    expect_layer(placement, 1, 16, (const int32_t[]){1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7},
                 (const uint32_t[]){0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0});
    wb_placement_close(placement);
}

/* Groups that do not divide over nodes are forgotten, and so are nodes; nor need experts divide into
 * groups then. */
static void test_readme_global(void **state) {
    (void)state;
    expect_readme_global((shape){12, 16, 1, 1, 8});
    expect_readme_global((shape){12, 16, 4, 3, 8});
    expect_readme_global((shape){12, 16, 1, 2, 8});
    expect_readme_global((shape){12, 16, 5, 2, 8});
}

/* The loads of batches are added. */
static void test_batches(void **state) {
    (void)state;
    double loads[2][12];
    for (int e = 0; e < 12; e++) {
        loads[0][e] = readme_loads[0][e] - 3;
        loads[1][e] = 3;
    }
    wb_placement *placement = solved((shape){12, 16, 4, 2, 8}, 1, 2, loads[0]);
    expect_layer(placement, 0, 16, (const int32_t[]){5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                 (const uint32_t[]){0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0});
    wb_placement_close(placement);
}

/* ---- small cases, as eplb.py has them -------------------------------------------------------- */

static const struct {
    const char *name;
    shape s;
    double loads[8];
    int32_t experts[12];
    uint32_t replicas[12];
} small_cases[] = {
    {"one slot a rank, no sorting", {4, 4, 1, 1, 4}, {1, 9, 3, 7}, {0, 1, 2, 3}, {0}},
    {"one slot a rank, replicas in order of creation",
     {4, 8, 1, 1, 8},
     {1, 9, 3, 7},
     {0, 1, 2, 3, 1, 3, 1, 3},
     {0, 0, 0, 0, 1, 1, 2, 2}},
    {"all equal", {6, 8, 1, 1, 4}, {5, 5, 5, 5, 5, 5}, {2, 0, 3, 1, 4, 0, 5, 1}, {0, 0, 0, 0, 0, 1, 0, 1}},
    {"all equal, groups and nodes",
     {8, 12, 4, 2, 4},
     {5, 5, 5, 5, 5, 5, 5, 5},
     {4, 0, 0, 5, 1, 1, 6, 2, 2, 7, 3, 3},
     {0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1}},
    {"all zero", {6, 8, 1, 1, 2}, {0}, {0, 1, 2, 3, 4, 5, 0, 0}, {0, 0, 0, 0, 0, 0, 1, 2}},
    {"-0 is 0", {4, 6, 1, 1, 3}, {0.0, -0.0, 0.0, -0.0}, {0, 1, 2, 3, 0, 0}, {0, 0, 0, 0, 1, 2}},
    {"groups that do not divide over nodes",
     {8, 12, 3, 2, 4},
     {3, 1, 4, 1, 5, 9, 2, 6},
     {2, 4, 3, 0, 5, 4, 5, 7, 6, 7, 5, 1},
     {0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 2, 0}},
    {"no redundant slots", {8, 8, 1, 1, 4}, {3, 1, 4, 1, 5, 9, 2, 6}, {5, 3, 7, 1, 4, 6, 2, 0}, {0}},
    {"counts above 2^24 are rounded",
     {4, 6, 1, 1, 2},
     {16777217, 16777216, 16777218, 16777219},
     {0, 3, 2, 1, 3, 2},
     {0, 0, 0, 0, 1, 1}},
    {"sums above 2^24 are rounded",
     {6, 6, 1, 1, 3},
     {16777216, 16777217, 1, 1, 16777217, 16777216},
     {0, 5, 1, 2, 4, 3},
     {0}},
    {"negative", {4, 6, 1, 1, 3}, {-3, -1, -4, -1}, {1, 1, 1, 3, 0, 2}, {0, 1, 2, 0, 0, 0}},
    {"infinite", {4, 6, 1, 1, 3}, {1, INFINITY, 2, -INFINITY}, {1, 2, 1, 0, 1, 3}, {0, 0, 1, 0, 2, 0}},
    {"inf - inf in the last pack",
     {8, 8, 1, 1, 2},
     {INFINITY, INFINITY, -INFINITY, -INFINITY, 3, 5, 7, 1},
     {0, 6, 5, 4, 1, 7, 2, 3},
     {0}},
    {"inf - inf in groups",
     {8, 8, 4, 2, 4},
     {INFINITY, -INFINITY, 1, 2, 3, 4, 9, 8},
     {0, 1, 6, 7, 5, 2, 4, 3},
     {0}},
    {"one expert", {1, 4, 1, 1, 2}, {7}, {0, 0, 0, 0}, {0, 2, 1, 3}},
};

static void test_small(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof small_cases / sizeof small_cases[0]; i++) {
        print_message("  %s\n", small_cases[i].name);
        wb_placement *placement = solved(small_cases[i].s, 1, 1, small_cases[i].loads);
        expect_layer(placement, 0, small_cases[i].s.S, small_cases[i].experts, small_cases[i].replicas);
        wb_placement_close(placement);
    }
}

/* ---- a plain implementation ------------------------------------------------------------------ */

/* k-th largest first, by repeated search; place_out: pack x items a pack + number in the pack. */
static void plain_pack(const float *weight, uint32_t n, uint32_t packs, uint32_t *place_out) {
    const uint32_t room = n / packs;
    float *sum = calloc(packs, sizeof *sum);
    uint32_t *items = calloc(packs, sizeof *items);
    bool *placed = calloc(n, sizeof *placed);
    assert_true(sum && items && placed);
    for (uint32_t k = 0; k < n; k++) {
        uint32_t item = n, p = packs;
        for (uint32_t i = 0; i < n; i++)
            if (!placed[i] && (item == n || (room > 1 && weight[i] > weight[item]))) item = i;
        for (uint32_t q = 0; q < packs; q++)
            if (items[q] < room && (p == packs || (room > 1 && sum[q] < sum[p]))) p = q;
        placed[item] = true;
        place_out[item] = p * room + items[p]++;
        sum[p] += weight[item];
    }
    free(sum);
    free(items);
    free(placed);
}

/* load [n]; slots [n_slots] in order of creation. */
static void plain_replicate(const float *load, uint32_t n, uint32_t n_slots, uint32_t *expert_out,
                            uint32_t *replica_out, float *share_out) {
    uint32_t *count = calloc(n, sizeof *count);
    assert_non_null(count);
    for (uint32_t slot = 0; slot < n_slots; slot++) {
        uint32_t best = slot;
        if (slot >= n) {
            best = 0;
            for (uint32_t e = 1; e < n; e++)
                if (load[e] / (float)count[e] > load[best] / (float)count[best]) best = e;
        }
        expert_out[slot] = best;
        replica_out[slot] = count[best]++;
    }
    for (uint32_t slot = 0; slot < n_slots; slot++)
        share_out[slot] = load[expert_out[slot]] / (float)count[expert_out[slot]];
    free(count);
}

/* One layer of whole-number loads, whose sums are exact in any order. Hierarchical. */
static void plain_solve(shape s, const double *loads, int32_t *experts_out, uint32_t *replicas_out) {
    const uint32_t group = s.E / s.G, e_n = s.E / s.N, r_n = s.S / s.N;
    float *sums = calloc(s.G, sizeof(float)), *load = calloc(s.E, sizeof(float));
    float *share = calloc(r_n, sizeof(float));
    uint32_t *place = calloc(s.S, sizeof(uint32_t)), *at = calloc(s.E, sizeof(uint32_t));
    uint32_t *expert = calloc(r_n, sizeof(uint32_t)), *replica = calloc(r_n, sizeof(uint32_t));
    assert_true(sums && load && share && place && at && expert && replica);
    for (uint32_t e = 0; e < s.E; e++) sums[e / group] += (float)loads[e];
    plain_pack(sums, s.G, s.N, place);
    for (uint32_t e = 0; e < s.E; e++) at[place[e / group] * group + e % group] = e;
    for (uint32_t e = 0; e < s.E; e++) load[e] = (float)loads[at[e]];
    for (uint32_t node = 0; node < s.N; node++) {
        plain_replicate(load + node * e_n, e_n, r_n, expert, replica, share);
        plain_pack(share, r_n, s.R / s.N, place);
        for (uint32_t i = 0; i < r_n; i++) {
            experts_out[node * r_n + place[i]] = (int32_t)at[node * e_n + expert[i]];
            replicas_out[node * r_n + place[i]] = replica[i];
        }
    }
    void *blocks[] = {sums, load, share, place, at, expert, replica};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}

/* `kind` 0: up to a thousand; 1: few values; 2: negative ones too. */
static void compare_with_plain(shape s, uint32_t kind, uint64_t *random) {
    double *loads = calloc(s.E, sizeof *loads);
    int32_t *experts = calloc(s.S, sizeof *experts);
    uint32_t *replicas = calloc(s.S, sizeof *replicas);
    assert_true(loads && experts && replicas);
    for (uint32_t e = 0; e < s.E; e++)
        loads[e] = (double)wb_random_below(random, kind == 1 ? 4 : 1000) - (kind == 2 ? 500 : 0);
    const shape plain = s.G % s.N == 0 ? s : (shape){s.E, s.S, 1, 1, s.R};
    plain_solve(plain, loads, experts, replicas);
    wb_placement *placement = solved(s, 1, 1, loads);
    expect_layer(placement, 0, s.S, experts, replicas);
    wb_placement_close(placement);
    free(loads);
    free(experts);
    free(replicas);
}

static void test_random(void **state) {
    (void)state;
    uint64_t random = 20250812;
    print_message("  seed %" PRIu64 "\n", random);
    for (uint32_t i = 0; i < 600; i++) {
        const uint32_t N = 1 + wb_random_below(&random, 4);
        const uint32_t G =
            i % 4 == 3 ? 1 + wb_random_below(&random, 7) : N * (1 + wb_random_below(&random, 4));
        const uint32_t E = G * (1 + wb_random_below(&random, 12)), R = N * (1 + wb_random_below(&random, 8));
        const uint32_t slots = (E + R - 1) / R + wb_random_below(&random, 4);
        compare_with_plain((shape){E, R * slots, G, N, R}, i % 3, &random);
    }
}

static void test_published_shapes(void **state) {
    (void)state;
    uint64_t random = 7;
    static const shape shapes[] = {{256, 288, 8, 4, 32}, {256, 288, 1, 1, 32},  {256, 320, 8, 4, 64},
                                   {384, 448, 1, 1, 64}, {256, 512, 1, 1, 256}, {384, 384, 1, 8, 64},
                                   {60, 64, 1, 1, 4},    {512, 6144, 8, 4, 768}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (uint32_t kind = 0; kind < 3; kind++) compare_with_plain(shapes[i], kind, &random);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_refused_shapes(void **state) {
    (void)state;
    static const struct {
        shape s;
        const char *message;
    } refused[] = {
        {{256, 288, 1, 1, 20}, "288 slots do not divide over 20 ranks"},
        {{256, 288, 8, 4, 30}, "30 ranks do not divide over 4 nodes"},
        {{256, 320, 8, 18, 72}, "320 slots do not divide over 72 ranks"},
        {{256, 288, 7, 1, 32}, "256 experts do not divide into 7 groups"},
        {{256, 288, 12, 4, 32}, "256 experts do not divide into 12 groups"},
        {{256, 288, 0, 1, 32}, "0 groups"},
        {{256, 224, 1, 1, 32}, "256"},
    };
    static const double loads[256] = {0};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        wb_placement *placement = NULL;
        assert_int_equal(solve(refused[i].s, 1, 1, loads, &placement), WB_INVALID_ARGUMENT);
        assert_null(placement);
        if (!strstr(wb_error_message(), refused[i].message))
            fail_msg("expected \"%s\" in: %s", refused[i].message, wb_error_message());
    }
}

/* Fewer slots than experts, and what wb_topology_check lets no one see. */
static void test_check_alone(void **state) {
    (void)state;
    const wb_topology good = {.n_ranks = 4, .n_nodes = 2, .n_slots = 8};
    assert_int_equal(wb_solve_deepseek_check(&good, 8, 2), WB_OK);
    assert_int_equal(wb_solve_deepseek_check(&good, 9, 3), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "8 slots do not hold 9 experts"));
    wb_topology none = good;
    none.n_nodes = 0;
    assert_int_equal(wb_solve_deepseek_check(&none, 8, 2), WB_INVALID_ARGUMENT);
    none = good;
    none.n_ranks = 0;
    assert_int_equal(wb_solve_deepseek_check(&none, 8, 2), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_solve_deepseek_check(&good, 0, 2), WB_INVALID_ARGUMENT);
}

static void expect_refused_topology(const wb_topology *topology, uint32_t n_groups, const char *message) {
    static const double loads[8] = {0};
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = WB_EPLB_DEEPSEEK;
    options.n_groups = n_groups;
    wb_placement *placement = NULL;
    const wb_status status = wb_eplb_solve(topology, 1, 8, 1, loads, &options, &placement);
    if (!message) {
        assert_int_equal(status, WB_OK);
        wb_placement_close(placement);
        return;
    }
    assert_int_equal(status, WB_INVALID_ARGUMENT);
    assert_null(placement);
    assert_non_null(strstr(wb_error_message(), message));
}

static void test_refused_topologies(void **state) {
    (void)state;
    const uint8_t dead[4] = {0, 0, 0, 1};
    const uint32_t even[4] = {3, 3, 3, 3}, uneven[4] = {3, 3, 2, 4};
    const uint32_t halves[4] = {0, 0, 1, 1}, lopsided[4] = {0, 1, 1, 1};
    wb_topology t = {
        .n_ranks = 4, .n_nodes = 2, .n_slots = 12, .slots_of_rank = even, .node_of_rank = halves};
    expect_refused_topology(&t, 2, NULL);
    t.dead = dead;
    expect_refused_topology(&t, 2, "deepseek: rank 3 is dead");
    t.dead = NULL;
    t.slots_of_rank = uneven;
    expect_refused_topology(&t, 2, "rank 2: expected 3 slots as on every rank, found 2");
    t.slots_of_rank = even;
    t.node_of_rank = lopsided;
    expect_refused_topology(&t, 2, "rank 1: expected node 0");
    expect_refused_topology(&t, 1, NULL); /* global mode knows no nodes */
}

static void test_refused_nan(void **state) {
    (void)state;
    const double loads[4] = {1, 2, NAN, 3};
    wb_placement *placement = NULL;
    assert_int_equal(solve((shape){4, 4, 1, 1, 2}, 1, 1, loads, &placement), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "expert 2"));
    assert_null(placement);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_readme),
        cmocka_unit_test(test_readme_export),
        cmocka_unit_test(test_readme_global),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_published_shapes),
        cmocka_unit_test(test_refused_shapes),
        cmocka_unit_test(test_check_alone),
        cmocka_unit_test(test_refused_topologies),
        cmocka_unit_test(test_refused_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
