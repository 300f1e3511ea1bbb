/* test_eplb_dispatch_table.c - the tables of dispatch as kernels get them, with the rule that kernels apply:
 * against the policies written down the long way, against wb_dispatch_rows, after a change of a layer, and
 * what is refused. */
#include "eplb_dispatch_fixture.h"
#include "wb_dispatch_rules.h"

static uint64_t seed = 20261;

enum { POISON = 0x5ca1ab1e };

/* ---- the policies, the long way -------------------------------------------------------------- */

/* splitmix64 (Steele, Lea, Flood 2014) of the state before the step. */
static uint64_t scramble(uint64_t state) {
    uint64_t z = state + 11400714819323198485u;
    z = (z ^ z >> 30) * 13787848793156543929u;
    z = (z ^ z >> 27) * 10723151780598845931u;
    return z ^ z >> 31;
}

/* Which of n equal parts of the numbers below 2^64 `hash` lies in, as far as its upper half tells. */
static uint32_t part_of(uint64_t hash, uint32_t n) {
    uint32_t part = 0;
    while ((uint64_t)(part + 1) << 32 <= (hash >> 32) * n) part++;
    return part;
}

/* The slots of `expert` that lie on `rank`, on `node` or, with both UINT32_MAX, anywhere, ascending. */
static uint32_t slots_on(const wb_placement *p, uint32_t layer, uint32_t expert, uint32_t rank, uint32_t node,
                         uint32_t *slots /* [S] */) {
    uint32_t n = 0;
    for (uint32_t slot = 0; slot < p->topology.n_slots; slot++) {
        uint32_t at = p->rank_of_slot[slot];
        if (wb_placement_experts_of(p, layer)[slot] != (int32_t)expert) continue;
        if (rank != UINT32_MAX && at != rank) continue;
        if (node != UINT32_MAX && p->topology.node_of_rank[at] != node) continue;
        slots[n++] = slot;
    }
    return n;
}

/* static: the first slot of the rank's own; else those of its node, else all, which the live ranks that are
 * as near take in turn, in rank order, from the one on that a hash of layer and expert says. */
static uint32_t near_slot(const wb_placement *p, uint32_t layer, uint32_t expert, uint32_t rank) {
    const wb_topology *t = &p->topology;
    uint32_t *slots = take(t->n_slots, sizeof *slots), *none = take(t->n_slots, sizeof *none), before = 0;
    uint32_t n = slots_on(p, layer, expert, rank, UINT32_MAX, slots);
    if (n == 0) {
        uint32_t node = t->node_of_rank[rank];
        n = slots_on(p, layer, expert, UINT32_MAX, node, slots);
        bool on_node = n > 0;
        if (!on_node) n = slots_on(p, layer, expert, UINT32_MAX, UINT32_MAX, slots);
        for (uint32_t other = 0; other < rank; other++) {
            bool as_near = on_node
                               ? t->node_of_rank[other] == node &&
                                     slots_on(p, layer, expert, other, UINT32_MAX, none) == 0
                               : slots_on(p, layer, expert, UINT32_MAX, t->node_of_rank[other], none) == 0;
            before += as_near && !t->dead[other];
        }
        slots[0] = slots[(before + part_of(scramble((uint64_t)layer << 32 | expert), n)) % n];
    }
    uint32_t found = slots[0];
    free(slots);
    free(none);
    return found;
}

/* dynamic: the replica whose number is the hash of key, layer and expert, scaled. */
static uint32_t hashed_slot(const wb_placement *p, uint32_t layer, uint32_t expert, uint64_t key) {
    wb_layer_map map = wb_placement_layer(p, layer);
    uint32_t n = 0, found = UINT32_MAX;
    for (uint32_t slot = 0; slot < p->topology.n_slots; slot++)
        n += map.expert_of_slot[slot] == (int32_t)expert;
    uint32_t replica = part_of(scramble(scramble(key ^ scramble(layer)) ^ expert), n);
    for (uint32_t slot = 0; slot < p->topology.n_slots; slot++)
        if (map.expert_of_slot[slot] == (int32_t)expert && map.replica_of_slot[slot] == replica) found = slot;
    return found;
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* The table of a layer; nothing is written beyond its length, and all within. */
static int32_t *make_table(const wb_placement *p, wb_dispatch_policy policy, uint32_t rank, uint32_t layer) {
    size_t length = 0;
    assert_ok(wb_dispatch_table_length(p, policy, &length));
    int32_t *table = take(length + 8, sizeof *table);
    for (size_t i = 0; i < length + 8; i++) table[i] = POISON;
    assert_ok(wb_dispatch_fill_table(p, policy, rank, layer, table));
    for (size_t i = 0; i < length; i++) assert_in_range(table[i] + 1, 0, p->topology.n_slots + 1);
    for (size_t i = length; i < length + 8; i++) assert_int_equal(table[i], POISON);
    return table;
}

static wb_dispatch_rule rule_of(const wb_placement *p, wb_dispatch_policy policy, const int32_t *table,
                                uint32_t layer) {
    return policy == WB_DISPATCH_STATIC ? wb_dispatch_static_rule(table)
                                        : wb_dispatch_dynamic_rule(table, p->n_experts, layer);
}

/* All experts of T tokens with random keys, one layer, one rank: the rule, rows and the long way agree. */
static void check_layer(const wb_placement *p, wb_dispatch *d, wb_dispatch_policy policy, uint32_t rank,
                        uint32_t layer, uint64_t *random) {
    enum { T = 5 };
    uint32_t E = p->n_experts;
    int32_t *table = make_table(p, policy, rank, layer);
    wb_dispatch_rule rule = rule_of(p, policy, table, layer);
    uint16_t *ids = take((size_t)T * E, sizeof *ids);
    wb_physical_id *out = take((size_t)T * E, sizeof *out);
    uint64_t keys[T];
    for (uint32_t t = 0; t < T; t++) keys[t] = wb_random(random);
    for (uint32_t i = 0; i < T * E; i++) ids[i] = (uint16_t)(i % E);
    wb_routed_rows rows = {.ids = ids, .dtype = WB_U16, .T = T, .K = E};
    assert_ok(wb_dispatch_rows(d, layer, &rows, keys, out));
    for (uint32_t i = 0; i < T * E; i++) {
        uint32_t e = i % E, found = (uint32_t)wb_dispatch_slot(&rule, e, keys[i / E]);
        uint32_t expected = policy == WB_DISPATCH_STATIC ? near_slot(p, layer, e, rank)
                                                         : hashed_slot(p, layer, e, keys[i / E]);
        if (found != expected || out[i].slot != expected)
            fail_msg("%s, layer %" PRIu32 ", rank %" PRIu32 ", expert %" PRIu32 ", key %" PRIx64
                     ": expected slot %" PRIu32 ", found %" PRIu32 ", in rows %" PRIu32,
                     wb_dispatch_policy_name(policy), layer, rank, e, keys[i / E], expected, found,
                     out[i].slot);
    }
    free(table);
    free(ids);
    free(out);
}

/* Each layer of a random placement, for ranks that are dead too, then again after one of them has changed
 * under open handles. */
static void check_placement(wb_dispatch_policy policy, uint64_t *random) {
    enum { L = 3 };
    wb_placement *p = random_placement(random, 9, 8, 24, L);
    for (uint32_t rank = 0; rank < p->topology.n_ranks; rank++) {
        wb_dispatch *d = NULL;
        assert_ok(wb_dispatch_open(p, policy, rank, &d));
        for (uint32_t layer = 0; layer < L; layer++) check_layer(p, d, policy, rank, layer, random);
        set_random_layer(p, pick(random, 0, L - 1), 1, random); /* the epoch says nothing */
        for (uint32_t layer = 0; layer < L; layer++) check_layer(p, d, policy, rank, layer, random);
        wb_dispatch_close(d);
    }
    wb_placement_close(p);
}

static void test_static_table_is_the_policy(void **unused) {
    (void)unused;
    uint64_t random = seed;
    for (uint32_t round = 0; round < 60; round++) check_placement(WB_DISPATCH_STATIC, &random);
}

static void test_dynamic_table_is_the_policy(void **unused) {
    (void)unused;
    uint64_t random = seed + 1;
    for (uint32_t round = 0; round < 60; round++) check_placement(WB_DISPATCH_DYNAMIC, &random);
}

/* A layer's table changes with its map alone, and back with it. */
static void test_a_table_is_of_its_layer(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    const int32_t other_map[] = {1, WB_NO_EXPERT, 0, 1}, first_map[] = {0, 1, 0, 1};
    const int32_t expected[2][2][6] = {{{0, 2, 4, 0, 2, 1}, {0, 1}}, {{0, 1, 3, 2, 0, 3}, {2, 0}}};
    wb_placement *p = NULL;
    assert_ok(wb_placement_open(&t, 2, 2, &p));
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t layer = 0; layer < 2; layer++) {
            const int32_t(*numbers)[6] = expected[layer == 1 && round == 1];
            int32_t *dynamic = make_table(p, WB_DISPATCH_DYNAMIC, 0, layer);
            int32_t *fixed = make_table(p, WB_DISPATCH_STATIC, 0, layer);
            assert_memory_equal(dynamic, numbers[0], 6 * sizeof *dynamic);
            assert_int_equal(dynamic[6], numbers == expected[0] ? 3 : -1);
            assert_memory_equal(fixed, numbers[1], 2 * sizeof *fixed);
            free(dynamic);
            free(fixed);
        }
        assert_ok(wb_placement_set_layer(p, 1, round ? first_map : other_map, NULL, 1));
    }
    wb_placement_close(p);
}

/* ---- replicas -------------------------------------------------------------------------------- */

/* The table is every rank's, and tokens enough find every replica that there is, and no other slot. */
static void test_dynamic_uses_every_replica_from_every_rank(void **unused) {
    (void)unused;
    uint64_t random = seed + 2;
    for (uint32_t round = 0; round < 60; round++) {
        wb_placement *p = random_placement(&random, 9, 6, 36, 2);
        uint32_t S = p->topology.n_slots, layer = pick(&random, 0, 1), rank = 0;
        size_t length = 0;
        int32_t *table = make_table(p, WB_DISPATCH_DYNAMIC, rank, layer), *theirs = NULL;
        wb_dispatch_rule rule = wb_dispatch_dynamic_rule(table, p->n_experts, layer);
        assert_ok(wb_dispatch_table_length(p, WB_DISPATCH_DYNAMIC, &length));
        for (rank++; rank < p->topology.n_ranks; rank++) {
            theirs = make_table(p, WB_DISPATCH_DYNAMIC, rank, layer);
            assert_memory_equal(theirs, table, length * sizeof *table);
            free(theirs);
        }
        bool *used = take(S, sizeof *used);
        for (uint32_t e = 0; e < p->n_experts; e++) /* a replica of n is missed by chance e^-60 */
            for (uint32_t i = 0; i < 60 * S; i++) used[wb_dispatch_slot(&rule, e, wb_random(&random))] = true;
        for (uint32_t slot = 0; slot < S; slot++)
            assert_int_equal(used[slot], wb_placement_experts_of(p, layer)[slot] != WB_NO_EXPERT);
        free(used);
        free(table);
        wb_placement_close(p);
    }
}

/* ---- refused --------------------------------------------------------------------------------- */

static void test_table_refusals(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 8};
    const struct {
        int policy;
        uint32_t rank, layer;
        const char *words;
    } bad[] = {
        {WB_DISPATCH_QUOTA, 0, 0, "found quota"},
        {WB_DISPATCH_FAKE, 0, 0, "found fake"},
        {4, 0, 0, "found unknown"},
        {WB_DISPATCH_STATIC, 2, 0, "rank: expected 0..1, found 2"},
        {WB_DISPATCH_DYNAMIC, 2, 0, "rank: expected 0..1, found 2"},
        {WB_DISPATCH_STATIC, 0, 3, "layer: expected 0..2, found 3"},
        {WB_DISPATCH_DYNAMIC, 0, 3, "layer: expected 0..2, found 3"},
    };
    wb_placement *p = NULL;
    assert_ok(wb_placement_open(&t, 3, 2, &p));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int32_t table[11];
        size_t length = 77;
        for (int j = 0; j < 11; j++) table[j] = POISON;
        assert_fails(
            wb_dispatch_fill_table(p, (wb_dispatch_policy)bad[i].policy, bad[i].rank, bad[i].layer, table),
            WB_INVALID_ARGUMENT, bad[i].words);
        for (int j = 0; j < 11; j++) assert_int_equal(table[j], POISON);
        if (bad[i].policy == WB_DISPATCH_STATIC || bad[i].policy == WB_DISPATCH_DYNAMIC) continue;
        assert_fails(wb_dispatch_table_length(p, (wb_dispatch_policy)bad[i].policy, &length),
                     WB_INVALID_ARGUMENT, bad[i].words);
        assert_int_equal(length, 77);
    }
    wb_placement_close(p);
}

int main(int argc, char **argv) {
    if (argc > 1) seed = strtoull(argv[1], NULL, 10);
    printf("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_static_table_is_the_policy),
        cmocka_unit_test(test_dynamic_table_is_the_policy),
        cmocka_unit_test(test_a_table_is_of_its_layer),
        cmocka_unit_test(test_dynamic_uses_every_replica_from_every_rank),
        cmocka_unit_test(test_table_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
