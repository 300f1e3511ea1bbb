/* test_eplb_placement.c - topologies, maps and their changes, against definitions written out here; and
 * placements between ranks, over self and threads. A hang is a failure by alarm. Random cases print their
 * seed. */
#include "placement_core.h"
#include "support/alloc_fail.h"
#include "support/test_seed.h"

#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { MAX_RANKS = 7 };

static uint64_t seed;

#define assert_message_has(part)                                            \
    do {                                                                    \
        if (!strstr(wb_error_message(), part))                              \
            fail_msg("message '%s' has no '%s'", wb_error_message(), part); \
    } while (0)

#define assert_refused(call, part)                     \
    do {                                               \
        assert_int_equal((call), WB_INVALID_ARGUMENT); \
        assert_message_has(part);                      \
    } while (0)

static wb_placement *open_ok(const wb_topology *t, uint32_t L, uint32_t E) {
    wb_placement *p = NULL;
    if (wb_placement_open(t, L, E, &p) != WB_OK) fail_msg("%s", wb_error_message());
    return p;
}

static wb_placement *clone_ok(const wb_placement *p) {
    wb_placement *copy = NULL;
    assert_int_equal(wb_placement_clone(p, &copy), WB_OK);
    return copy;
}

/* ---- topologies ------------------------------------------------------------------------------ */

static void test_topology_refuses(void **unused) {
    (void)unused;
    const wb_topology good = {.n_ranks = 4, .n_nodes = 2, .n_slots = 10};
    const uint32_t short_slots[] = {3, 3, 3, 0}, long_slots[] = {3, 3, 3, UINT32_MAX};
    const uint32_t down[] = {0, 1, 0, 1}, skip[] = {0, 0, 2, 2}, late[] = {1, 1, 1, 1}, few[] = {0, 0, 0, 0};
    const uint8_t dead[] = {1, 0, 1, 0}, all_dead[] = {1, 2, 3, 4};
    assert_int_equal(wb_topology_check(&good, 10), WB_OK);
    assert_refused(wb_topology_check(NULL, 10), "topology");
    assert_refused(wb_topology_check(&good, 0), "experts: expected 1..65536, found 0");
    assert_refused(wb_topology_check(&good, 65537), "found 65537");
    assert_refused(wb_topology_check(&good, 11), "11 experts");
    wb_topology t = good;
    t.n_ranks = 0;
    assert_refused(wb_topology_check(&t, 10), "ranks");
    t.n_ranks = 65537;
    assert_refused(wb_topology_check(&t, 10), "ranks");
    t = good, t.n_nodes = 0;
    assert_refused(wb_topology_check(&t, 10), "nodes");
    t.n_nodes = 5;
    assert_refused(wb_topology_check(&t, 10), "nodes");
    t = good, t.n_slots = 0;
    assert_refused(wb_topology_check(&t, 10), "slots");
    t.n_slots = (1u << 24) + 1;
    assert_refused(wb_topology_check(&t, 10), "slots");
    t = good, t.slots_of_rank = short_slots;
    assert_refused(wb_topology_check(&t, 9), "slots_of_rank");
    t.slots_of_rank = long_slots; /* adds up to 8 modulo 2^32 */
    t.n_slots = 8;
    assert_refused(wb_topology_check(&t, 8), "slots_of_rank");
    const uint32_t *nodes[] = {down, skip, late, few};
    for (int i = 0; i < 4; i++) {
        t = good, t.node_of_rank = nodes[i];
        assert_refused(wb_topology_check(&t, 10), "node");
    }
    t = good, t.dead = dead; /* slots 3 3 2 2: 5 live */
    assert_int_equal(wb_topology_check(&t, 5), WB_OK);
    assert_refused(wb_topology_check(&t, 6), "live");
    t.dead = all_dead;
    assert_refused(wb_topology_check(&t, 1), "live");
    wb_placement *untouched = (wb_placement *)&seed;
    assert_int_equal(wb_placement_open(&t, 1, 1, &untouched), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_placement_open(&good, 0, 4, &untouched), WB_INVALID_ARGUMENT);
    assert_ptr_equal(untouched, &seed);
}

/* S does not divide by R, nor R by N: the first ones get one more. */
static void test_even_shares(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 5, .n_nodes = 3, .n_slots = 13};
    const uint32_t slots[] = {3, 3, 3, 2, 2}, nodes[] = {0, 0, 1, 1, 2}, first[] = {0, 3, 6, 9, 11, 13};
    wb_placement *p = open_ok(&t, 2, 7);
    const wb_topology *full = wb_placement_topology(p);
    assert_memory_equal(full->slots_of_rank, slots, sizeof slots);
    assert_memory_equal(full->node_of_rank, nodes, sizeof nodes);
    for (uint32_t r = 0; r < 5; r++) assert_int_equal(full->dead[r], 0);
    for (uint32_t r = 0; r <= 5; r++) assert_int_equal(wb_placement_first_slot(p, r), first[r]);
    for (uint32_t r = 0; r < 5; r++)
        for (uint32_t s = first[r]; s < first[r + 1]; s++)
            assert_int_equal(wb_placement_rank_of(p, (wb_physical_id){s}), r);
    assert_int_equal(wb_placement_layers(p), 2);
    assert_int_equal(wb_placement_experts(p), 7);
    wb_placement_close(p);
    wb_placement_close(NULL);
}

/* ---- maps ------------------------------------------------------------------------------------ */

/* Both sides of every layer say the same, and what the header promises of a placement holds. */
static void check_consistent(const wb_placement *p) {
    const wb_topology *t = wb_placement_topology(p);
    const uint32_t E = wb_placement_experts(p);
    for (uint32_t l = 0; l < wb_placement_layers(p); l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        uint32_t held = 0;
        for (uint32_t s = 0; s < t->n_slots; s++) {
            int32_t e = map.expert_of_slot[s];
            assert_true(e >= WB_NO_EXPERT && e < (int64_t)E);
            if (e < 0) {
                assert_int_equal(map.replica_of_slot[s], 0);
                continue;
            }
            held++;
            assert_false(t->dead[wb_placement_rank_of(p, (wb_physical_id){s})]);
            uint32_t i = map.replica_begin[e] + map.replica_of_slot[s];
            assert_true(i < map.replica_begin[e + 1]);
            assert_int_equal(map.replicas[i].slot, s);
        }
        assert_int_equal(map.replica_begin[0], 0);
        assert_int_equal(map.replica_begin[E], held);
        for (uint32_t e = 0; e < E; e++) assert_true(map.replica_begin[e] < map.replica_begin[e + 1]);
    }
}

static void test_trivial(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = open_ok(&t, 3, CORE_E);
    check_consistent(p);
    for (uint32_t l = 0; l < 3; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        uint32_t live = 0;
        for (uint32_t s = 0; s < CORE_R; s++) {
            bool dead = core_dead[wb_placement_rank_of(p, (wb_physical_id){s})];
            assert_int_equal(map.expert_of_slot[s], dead ? WB_NO_EXPERT : (int32_t)(live++ % CORE_E));
        }
        assert_int_equal(map.epoch, 0);
    }
    wb_placement_close(p);
}

/* A rank with more slots than there are experts has each once. */
static void test_trivial_wide_rank(void **unused) {
    (void)unused;
    const uint32_t slots[] = {5, 1, 3};
    const wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 9, .slots_of_rank = slots};
    wb_placement *p = open_ok(&t, 1, 3);
    check_consistent(p);
    wb_layer_map map = wb_placement_layer(p, 0);
    for (uint32_t r = 0; r < 3; r++) {
        uint32_t seen[3] = {0}, held = 0;
        for (uint32_t s = wb_placement_first_slot(p, r); s < wb_placement_first_slot(p, r + 1); s++)
            if (map.expert_of_slot[s] >= 0) seen[map.expert_of_slot[s]]++, held++;
        for (uint32_t e = 0; e < 3; e++) assert_true(seen[e] <= 1);
        assert_int_equal(held, slots[r] < 3 ? slots[r] : 3);
    }
    wb_placement_close(p);
}

static void test_clone(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = core_open(&t, CORE_L, CORE_E, seed), *copy = clone_ok(p);
    check_consistent(copy);
    assert_true(core_same(p, copy));
    core_fill(copy, seed + 1); /* memory of its own */
    assert_false(core_same(p, copy));
    assert_int_not_equal(wb_placement_hash(p), wb_placement_hash(copy));
    wb_placement_close(p);
    assert_memory_equal(wb_placement_topology(copy)->slots_of_rank, core_slots, sizeof core_slots);
    wb_placement_close(copy);
}

static void test_set_layer(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = open_ok(&t, CORE_L, CORE_E);
    int32_t experts[CORE_R];
    uint32_t replicas[CORE_R];
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t l = i % CORE_L;
        core_random_map(p, seed + i, experts, replicas);
        bool ordered = i % 3 == 0;
        assert_int_equal(wb_placement_set_layer(p, l, experts, ordered ? NULL : replicas, 1000 + i), WB_OK);
        check_consistent(p);
        wb_layer_map map = wb_placement_layer(p, l);
        assert_memory_equal(map.expert_of_slot, experts, sizeof experts);
        if (!ordered) assert_memory_equal(map.replica_of_slot, replicas, sizeof replicas);
        for (uint32_t k = 0; ordered && k + 1 < map.replica_begin[CORE_E]; k++) {
            uint32_t slot = map.replicas[k].slot, next = map.replicas[k + 1].slot;
            assert_true(experts[slot] != experts[next] || slot < next);
        }
        assert_int_equal(map.epoch, 1000 + i);
        if (l > 0) assert_int_equal(wb_placement_layer(p, l - 1).epoch, 1000 + i - 1);
    }
    wb_placement_close(p);
}

/* Slots of the test's map by what they hold: one of an expert with several replicas, of one with one, an
 * empty one. */
static void test_set_layer_refuses(void **unused) {
    (void)unused;
    const uint32_t slots[] = {3, 3, 2};
    const uint8_t dead[] = {0, 0, 1};
    const wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 8, .slots_of_rank = slots, .dead = dead};
    const struct {
        const char *part;
        int32_t experts[8];
        uint32_t replicas[8];
    } bad[] = {
        {"layer 1 slot 2 ", {0, 1, 4, 3, 2, 1, -1, -1}, {0, 0, 0, 0, 0, 1, 0, 0}},  /* id E */
        {"layer 1 slot 0 ", {-2, 1, 0, 3, 2, 1, -1, -1}, {0, 0, 0, 0, 0, 1, 0, 0}}, /* below -1 */
        {"layer 1 slot 0 ", {INT32_MAX, 1, 0, 3, 2, 1, -1, -1}, {0}},               /* far above */
        {"expert 3", {0, 1, 0, 1, 2, 1, -1, -1}, {0, 0, 1, 1, 0, 2, 0, 0}},         /* none of expert 3 */
        {"layer 1 slot 6 ", {0, 1, 2, 3, 0, 1, 2, -1}, {0, 0, 0, 0, 1, 1, 1, 0}},   /* on a dead rank */
        {"layer 1 slot 5 ", {0, 1, 2, 3, 2, 1, -1, -1}, {0, 0, 0, 0, 1, 0, 0, 0}},  /* 0 twice */
        {"layer 1 slot 5 ", {0, 1, 2, 3, 2, 1, -1, -1}, {0, 0, 0, 0, 1, 2, 0, 0}},  /* 2 of 0..1 */
        {"layer 1 slot 1 ", {0, 1, 2, 3, 2, 1, -1, -1}, {0, UINT32_MAX, 0, 0, 1, 0, 0, 0}}, /* far above */
    };
    wb_placement *p = core_open(&t, 2, 4, seed), *before = clone_ok(p);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_refused(wb_placement_set_layer(p, 1, bad[i].experts, bad[i].replicas, 99), bad[i].part);
        assert_true(core_same(p, before));
    }
    for (size_t i = 0; i < 5; i++)
        assert_refused(wb_placement_set_layer(p, 1, bad[i].experts, NULL, 99), bad[i].part);
    assert_refused(wb_placement_set_layer(p, 2, bad[5].experts, NULL, 99), "layer: expected 0..1, found 2");
    assert_true(core_same(p, before));
    assert_int_equal(wb_placement_set_layer(p, 1, bad[5].experts, NULL, 99),
                     WB_OK); /* the map itself is good */
    wb_placement_close(before);
    wb_placement_close(p);
}

/* ---- taking over layers ---------------------------------------------------------------------- */

static void test_sglang_25882_layers_change_together_or_not_at_all(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = open_ok(&t, CORE_L, CORE_E), *from = core_open(&t, CORE_L, CORE_E, seed);
    const int32_t *in_place = wb_placement_layer(p, 3).expert_of_slot;
    const uint32_t chosen[] = {3, 1}, beyond[] = {0, CORE_L};
    assert_int_equal(wb_placement_copy_layers(p, from, 0, chosen, 5), WB_OK); /* a no-op */
    for (uint32_t l = 0; l < CORE_L; l++) assert_int_equal(wb_placement_layer(p, l).epoch, 0);
    assert_int_equal(wb_placement_copy_layers(p, from, 2, chosen, 5), WB_OK);
    check_consistent(p);
    for (uint32_t l = 0; l < CORE_L; l++) {
        wb_layer_map mine = wb_placement_layer(p, l), theirs = wb_placement_layer(from, l);
        assert_int_equal(mine.epoch, l % 2 ? 5 : 0);
        if (l % 2) assert_memory_equal(mine.expert_of_slot, theirs.expert_of_slot, CORE_R * 4);
        if (l % 2) assert_memory_equal(mine.replica_of_slot, theirs.replica_of_slot, CORE_R * 4);
    }
    assert_ptr_equal(in_place, wb_placement_layer(p, 3).expert_of_slot);

    wb_placement *before = clone_ok(p);
    core_fill(from, seed + 1);
    assert_refused(wb_placement_copy_layers(p, from, CORE_L, NULL, 5),
                   "epoch"); /* layer 1 has it: none changes */
    assert_refused(wb_placement_copy_layers(p, from, CORE_L, NULL, 4), "layer 1");
    assert_refused(wb_placement_copy_layers(p, from, 1, chosen, 0), "layer 3");
    assert_refused(wb_placement_copy_layers(p, from, 2, beyond, 9), "layer: expected 0..3, found 4");
    assert_true(core_same(p, before));
    assert_int_equal(wb_placement_copy_layers(p, from, CORE_L, NULL, 6), WB_OK);
    for (uint32_t l = 0; l < CORE_L; l++) assert_int_equal(wb_placement_layer(p, l).epoch, 6);
    assert_int_equal(wb_placement_hash(p), wb_placement_hash(from));
    wb_placement_close(before);
    wb_placement_close(from);
    wb_placement_close(p);
}

static void test_other_shapes(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    const uint32_t slots[CORE_P] = {6, 1, 5, 6, 5};
    wb_topology others[4] = {t, t, t, t};
    others[2].slots_of_rank = slots;
    others[3].n_slots++, others[3].slots_of_rank = NULL;
    wb_placement *p = core_open(&t, CORE_L, CORE_E, seed), *before = clone_ok(p);
    for (uint32_t i = 0; i < 4; i++) {
        wb_placement *other = open_ok(&others[i], CORE_L + (i == 0), CORE_E - (i == 1));
        assert_int_equal(wb_placement_copy_layers(p, other, CORE_L, NULL, 1000), WB_MISMATCH);
        assert_int_equal(wb_placement_keep_slots(p, other), WB_MISMATCH);
        wb_placement_close(other);
    }
    /* A slot that is filled there but dead here. */
    wb_topology alive = t;
    alive.dead = NULL;
    wb_placement *other = core_open(&alive, CORE_L, CORE_E, seed);
    wb_status status = wb_placement_copy_layers(p, other, CORE_L, NULL, 1000);
    assert_int_equal(status, WB_MISMATCH);
    assert_message_has("dead");
    assert_true(core_same(p, before));
    wb_placement_close(other);
    wb_placement_close(before);
    wb_placement_close(p);
}

/* How often a rank has an expert, for each (rank, expert). */
static void count_on_ranks(const wb_placement *p, uint32_t layer, uint32_t count[CORE_P][CORE_E]) {
    memset(count, 0, sizeof(uint32_t) * CORE_P * CORE_E);
    wb_layer_map map = wb_placement_layer(p, layer);
    for (uint32_t s = 0; s < CORE_R; s++)
        if (map.expert_of_slot[s] >= 0)
            count[wb_placement_rank_of(p, (wb_physical_id){s})][map.expert_of_slot[s]]++;
}

/* Each replica stays on its rank, and as many slots as can keep their expert. */
static void test_keep_slots(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    for (uint64_t trial = 0; trial < 50; trial++) {
        wb_placement *p = core_open(&t, CORE_L, CORE_E, seed + 2 * trial);
        wb_placement *current = core_open(&t, CORE_L, CORE_E, seed + 2 * trial + 1), *before = clone_ok(p);
        assert_int_equal(wb_placement_keep_slots(p, current), WB_OK);
        check_consistent(p);
        for (uint32_t l = 0; l < CORE_L; l++) {
            uint32_t here[CORE_P][CORE_E], there[CORE_P][CORE_E], same = 0, max = 0;
            wb_layer_map now = wb_placement_layer(p, l), old = wb_placement_layer(before, l);
            assert_memory_equal(now.replica_begin, old.replica_begin, (CORE_E + 1) * 4);
            for (uint32_t i = 0; i < now.replica_begin[CORE_E]; i++)
                assert_int_equal(wb_placement_rank_of(p, now.replicas[i]),
                                 wb_placement_rank_of(p, old.replicas[i]));
            count_on_ranks(p, l, here);
            count_on_ranks(current, l, there);
            for (uint32_t r = 0; r < CORE_P; r++)
                for (uint32_t e = 0; e < CORE_E; e++)
                    max += here[r][e] < there[r][e] ? here[r][e] : there[r][e];
            for (uint32_t s = 0; s < CORE_R; s++)
                same += now.expert_of_slot[s] >= 0 &&
                        now.expert_of_slot[s] == wb_placement_layer(current, l).expert_of_slot[s];
            assert_int_equal(same, max);
        }
        wb_placement_close(before);
        wb_placement_close(current);
        wb_placement_close(p);
    }
}

/* ---- what follows from maps ------------------------------------------------------------------ */

/* Two replicas of an expert that trade places on their rank: the same experts, other replica numbers. */
static void test_keep_slots_of_replicas_on_one_rank(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 1, .n_nodes = 1, .n_slots = 3};
    const int32_t doubled[] = {0, 1, 0}, other[] = {-1, 1, 0};
    wb_placement *p = open_ok(&t, 1, 2), *current = open_ok(&t, 1, 2);
    assert_int_equal(wb_placement_set_layer(p, 0, doubled, NULL, 1), WB_OK);
    assert_int_equal(wb_placement_set_layer(current, 0, other, NULL, 1), WB_OK);
    assert_int_equal(wb_placement_keep_slots(p, current), WB_OK);
    check_consistent(p);
    wb_placement_close(current);
    wb_placement_close(p);
}

static void test_export(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = core_open(&t, CORE_L, CORE_E, seed);
    const uint32_t X = wb_placement_max_replicas(p);
    int32_t *log2phy = malloc(sizeof(int32_t) * CORE_L * CORE_E * X), logcnt[CORE_L][CORE_E],
            again[CORE_L][CORE_E];
    wb_placement_export(p, log2phy, logcnt[0]);
    wb_placement_export(p, log2phy, NULL);
    wb_placement_export(p, NULL, again[0]);
    assert_memory_equal(logcnt, again, sizeof logcnt);
    uint32_t max = 0;
    for (uint32_t l = 0; l < CORE_L; l++)
        for (uint32_t e = 0; e < CORE_E; e++) {
            wb_layer_map map = wb_placement_layer(p, l);
            uint32_t n = 0;
            for (uint32_t s = 0; s < CORE_R; s++) {
                if (map.expert_of_slot[s] != (int32_t)e) continue;
                assert_int_equal(log2phy[(l * CORE_E + e) * X + map.replica_of_slot[s]], s);
                n++;
            }
            assert_int_equal(logcnt[l][e], n);
            for (uint32_t i = n; i < X; i++) assert_int_equal(log2phy[(l * CORE_E + e) * X + i], -1);
            if (n > max) max = n;
        }
    assert_int_equal(X, max);
    free(log2phy);
    wb_placement_close(p);
}

static void test_rank_loads(void **unused) {
    (void)unused;
    const uint8_t dead[] = {0, 0, 1};
    const wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 9, .dead = dead};
    const int32_t experts[] = {0, 1, 0, 0, 2, 0, -1, -1, -1}; /* expert 0: two replicas here, two there */
    const double loads[] = {8, 5, 3};
    double of_rank[3] = {-1, -1, -1};
    wb_placement *p = open_ok(&t, 1, 3);
    assert_int_equal(wb_placement_set_layer(p, 0, experts, NULL, 1), WB_OK);
    wb_placement_rank_loads(p, 0, loads, of_rank);
    assert_true(of_rank[0] == 9.0 && of_rank[1] == 7.0 && of_rank[2] == 0.0);
    assert_true(wb_placement_balancedness(p, of_rank) == 8.0 / 9.0); /* over two live ranks */
    const double none[3] = {0, 0, 0};
    assert_true(wb_placement_balancedness(p, none) == 1.0);
    wb_placement_close(p);
}

/* Slots beyond 65535 and ids beyond 32767 are numbers like others. */
static void test_70000_slots(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 11, .n_nodes = 3, .n_slots = 70000};
    enum { E = 65536 };
    wb_placement *p = core_open(&t, 2, E, seed);
    check_consistent(p);
    assert_int_equal(wb_placement_first_slot(p, 11), 70000);
    assert_int_equal(wb_placement_rank_of(p, (wb_physical_id){69999}), 10);
    const uint32_t X = wb_placement_max_replicas(p);
    int32_t *log2phy = malloc(sizeof(int32_t) * 2 * E * X);
    assert_non_null(log2phy);
    wb_placement_export(p, log2phy, NULL);
    wb_layer_map map = wb_placement_layer(p, 1);
    for (uint32_t s = 0; s < 70000; s++)
        if (map.expert_of_slot[s] >= 0)
            assert_int_equal(log2phy[(E + (size_t)map.expert_of_slot[s]) * X + map.replica_of_slot[s]], s);
    free(log2phy);
    wb_placement_close(p);
}

/* ---- hash ------------------------------------------------------------------------------------ */

static void test_hash(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = core_open(&t, CORE_L, CORE_E, seed), *same = clone_ok(p);
    const uint64_t hash = wb_placement_hash(p);
    same->epoch[0]++; /* epochs do not enter */
    assert_int_equal(wb_placement_hash(same), hash);
    wb_layer_map map = wb_placement_layer(p, CORE_L - 1);
    assert_int_equal(wb_placement_set_layer(same, CORE_L - 1, map.expert_of_slot, NULL, 1), WB_OK);
    bool ordered = memcmp(wb_placement_layer(same, CORE_L - 1).replica_of_slot, map.replica_of_slot,
                          CORE_R * sizeof(uint32_t)) == 0;
    assert_true(ordered == (wb_placement_hash(same) == hash)); /* replica order enters */
    wb_topology other = t;
    const uint32_t nodes[CORE_P] = {0, 1, 1, 1, 1};
    other.node_of_rank = nodes;
    wb_placement *q = core_open(&other, CORE_L, CORE_E, seed);
    assert_int_not_equal(wb_placement_hash(q), hash);
    wb_placement_close(q);
    wb_placement_close(same);
    wb_placement_close(p);
}

/* ---- between ranks --------------------------------------------------------------------------- */

typedef struct worker {
    pthread_t thread;
    wb_comm *comm;
    int failures;
    struct hold *hold; /* of test_rank_without_memory */
} worker;

static int on_threads(int ranks, void *(*body)(void *), worker proto) {
    wb_comm *comms[MAX_RANKS];
    worker workers[MAX_RANKS];
    int failures = 0;
    assert_int_equal(wb_comm_open_threads(ranks, comms), WB_OK);
    for (int r = 0; r < ranks; r++) {
        workers[r] = proto;
        workers[r].comm = comms[r];
        assert_int_equal(pthread_create(&workers[r].thread, NULL, body, &workers[r]), 0);
    }
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pthread_join(workers[r].thread, NULL), 0);
        failures += workers[r].failures;
    }
    return failures;
}

static void test_self(void **unused) {
    (void)unused;
    wb_comm *comm = NULL;
    assert_int_equal(wb_comm_open_self(&comm), WB_OK);
    assert_int_equal(placement_core_run(comm, seed), 0);
    wb_comm_close(comm);
}

static void *run_core(void *argument) {
    worker *me = argument;
    me->failures = placement_core_run(me->comm, seed);
    wb_comm_close(me->comm);
    return NULL;
}

static void test_threads(void **unused) {
    (void)unused;
    const int sizes[] = {1, 2, 3, 4, MAX_RANKS};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++)
        assert_int_equal(on_threads(sizes[k], run_core, (worker){.failures = 0}), 0);
}

/* ---- a rank without memory ------------------------------------------------------------------- */

enum { WANT_RANKS = 3 };

/* Between its call `moment` and the next one, rank `odd` gets no memory; the others stand still meanwhile,
 * because allocations fail in the whole process. */
typedef struct hold {
    pthread_mutex_t mutex;
    pthread_cond_t moved;
    int moment, odd;
    int started[WANT_RANKS], finished[WANT_RANKS]; /* calls */
    bool refused;                                  /* an allocation was asked for, and refused */
} hold;

static void before_call(relay *r) {
    hold *h = r->ctx;
    const int rank = wb_comm_rank(r->inner);
    pthread_mutex_lock(&h->mutex);
    if (rank == h->odd && h->started[rank] == h->moment) {
        long live;
        h->refused = alloc_fail_disarm(&live);
    }
    h->started[rank]++;
    pthread_cond_broadcast(&h->moved);
    pthread_mutex_unlock(&h->mutex);
}

static bool all_finished(const hold *h) {
    for (int r = 0; r < WANT_RANKS; r++)
        if (h->finished[r] < h->moment) return false;
    return true;
}

static void after_call(relay *r, void *buffer, size_t bytes) {
    (void)buffer, (void)bytes;
    hold *h = r->ctx;
    const int rank = wb_comm_rank(r->inner);
    pthread_mutex_lock(&h->mutex);
    const bool now = ++h->finished[rank] == h->moment;
    pthread_cond_broadcast(&h->moved);
    if (now && rank == h->odd) {
        while (!all_finished(h)) pthread_cond_wait(&h->moved, &h->mutex);
        alloc_fail_arm(0, true);
    } else if (now) {
        while (h->started[h->odd] == h->moment) pthread_cond_wait(&h->moved, &h->mutex);
    }
    pthread_mutex_unlock(&h->mutex);
}

static void *want_memory(void *argument) {
    worker *me = argument;
    core state = {me->comm, wb_comm_rank(me->comm), wb_comm_size(me->comm), seed, 0};
    core *c = &state;
    relay r = {.inner = me->comm, .before = before_call, .after = after_call, .ctx = me->hold};
    wb_comm *comm = relay_open(&r);
    wb_placement *mine = core_mine(c, c->rank), *expected = core_mine(c, 0), *before = core_mine(c, c->rank);
    CHECK(c, wb_comm_barrier(me->comm) == WB_OK);
    wb_status status = wb_placement_broadcast(mine, comm, 0);
    before_call(&r); /* for a moment after the last call */
    const int odd = me->hold->odd;
    if (!me->hold->refused)
        CHECK(c, status == WB_OK && core_same(mine, expected));
    else if (c->rank == odd)
        CHECK(c, status == WB_OUT_OF_MEMORY && core_same(mine, before));
    else
        CHECK(c, core_names(status, wb_status_string(WB_OUT_OF_MEMORY), odd) && core_same(mine, before));
    wb_placement_close(mine);
    wb_placement_close(expected);
    wb_placement_close(before);
    wb_comm_close(comm);
    me->failures = c->failures;
    wb_comm_close(me->comm);
    return NULL;
}

/* Wherever in a broadcast a rank runs out of memory: all know, and nothing has changed on any. */
static void test_rank_without_memory(void **unused) {
    (void)unused;
    if (!ALLOC_FAIL_WORKS) skip();
    for (int odd = 0; odd < WANT_RANKS; odd++) {
        int refused = 0, calls = 1;
        for (int moment = 1; moment <= calls; moment++) {
            hold h = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                      .moved = PTHREAD_COND_INITIALIZER,
                      .moment = moment,
                      .odd = odd};
            assert_int_equal(on_threads(WANT_RANKS, want_memory, (worker){.hold = &h}), 0);
            if (h.finished[odd] > calls) calls = h.finished[odd];
            refused += h.refused;
        }
        assert_true(refused >= 2); /* the buffer, and the check of what came */
    }
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_eplb_placement: seed %" PRIu64 "\n", seed);
    alarm(120);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_topology_refuses),
        cmocka_unit_test(test_even_shares),
        cmocka_unit_test(test_trivial),
        cmocka_unit_test(test_trivial_wide_rank),
        cmocka_unit_test(test_clone),
        cmocka_unit_test(test_set_layer),
        cmocka_unit_test(test_set_layer_refuses),
        cmocka_unit_test(test_sglang_25882_layers_change_together_or_not_at_all),
        cmocka_unit_test(test_other_shapes),
        cmocka_unit_test(test_keep_slots),
        cmocka_unit_test(test_keep_slots_of_replicas_on_one_rank),
        cmocka_unit_test(test_export),
        cmocka_unit_test(test_rank_loads),
        cmocka_unit_test(test_70000_slots),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_rank_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
