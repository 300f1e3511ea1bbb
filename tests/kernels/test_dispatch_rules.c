/* test_dispatch_rules.c - the rule of wb_dispatch_rules.h by itself, over tables made here: fixed numbers,
 * against the hash written down the long way, and how evenly replicas are used. Refuses: whether the tables
 * of placements follow the policies (test_eplb_dispatch_table.c). */
#include "ops_test.h"
#include "wb_dispatch_rules.h"

/* ---- fixed numbers --------------------------------------------------------------------------- */

/* Picks may never change: ranks of two builds would send tokens past each other. From a program in Python. */
static void test_picks_are_fixed(void **unused) {
    (void)unused;
    const struct {
        uint64_t key;
        uint32_t layer, expert, n, replica;
    } known[] = {
        {0, 0, 0, 1, 0},
        {0, 0, 0, 2, 0},
        {0, 0, 0, 8, 1},
        {1, 0, 0, 8, 2},
        {1, 1, 0, 8, 2},
        {1, 1, 1, 8, 3},
        {UINT64_C(0x0123456789abcdef), 47, 127, 1000, 893},
        {UINT64_MAX, 93, 65535, 65536, 21700},
        {UINT64_C(1) << 63, 3, 255, 7, 4},
        {UINT64_C(12345678901234567890), UINT32_MAX, 0, 4000000, 94612},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(wb_dispatch_replica(known[i].key, known[i].layer, known[i].expert, known[i].n),
                         known[i].replica);
}

/* Neither may keys. The token is above the position, and a number below 0 spills into neither. */
static void test_keys_are_fixed(void **unused) {
    (void)unused;
    const struct {
        int32_t token, pos;
        uint64_t key;
    } known[] = {
        {0, 0, 0},
        {0, 1, UINT64_C(0x0000000000000001)},
        {1, 0, UINT64_C(0x0000000100000000)},
        {7, 9, UINT64_C(0x0000000700000009)},
        {151643, 40959, UINT64_C(0x0002505b00009fff)},
        {0, INT32_MAX, UINT64_C(0x000000007fffffff)},
        {INT32_MAX, 0, UINT64_C(0x7fffffff00000000)},
        {0, -1, UINT64_C(0x00000000ffffffff)},
        {-1, 0, UINT64_C(0xffffffff00000000)},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(wb_dispatch_key(known[i].token, known[i].pos), known[i].key);
}

/* ---- against the hash, the long way ---------------------------------------------------------- */

/* splitmix64 (Steele, Lea, Flood 2014) of the state before the step. */
static uint64_t scramble(uint64_t state) {
    uint64_t z = state + 11400714819323198485u;
    z = (z ^ z >> 30) * 13787848793156543929u;
    z = (z ^ z >> 27) * 10723151780598845931u;
    return z ^ z >> 31;
}

/* Which of n equal parts of the numbers below 2^64 the hash lies in, as far as its upper half tells. */
static uint32_t replica_naively(uint64_t key, uint32_t layer, uint32_t expert, uint32_t n) {
    uint64_t hash = scramble(scramble(key ^ scramble(layer)) ^ expert) >> 32;
    uint32_t part = 0;
    while ((uint64_t)(part + 1) << 32 <= hash * n) part++;
    return part;
}

/* Random tables of both kinds, with 1..8 replicas an expert. Slots are a permutation, so that one that is
 * taken from elsewhere in the table shows. Arrays end where the table does: a sanitizer sees a read beyond
 * it. */
static void test_slots_of_random_tables(void **unused) {
    (void)unused;
    for (int round = 0; round < 300; round++) {
        uint32_t E = (uint32_t)rng_range(1, 40), layer = (uint32_t)rng_range(0, 93), n = 0;
        int32_t *begin = xalloc(E + 1, sizeof *begin), *slots = NULL, *table = NULL;
        for (uint32_t e = 0; e < E; e++) begin[e + 1] = (int32_t)(n += (uint32_t)rng_range(1, 8));
        slots = xalloc(n, sizeof *slots);
        for (uint32_t j = 0; j < n; j++) { /* each new one swaps with one of those before */
            uint32_t at = (uint32_t)rng_range(0, j);
            slots[j] = slots[at];
            slots[at] = (int32_t)j;
        }
        table = xalloc(E + 1 + n, sizeof *table);
        memcpy(table, begin, (E + 1) * sizeof *table);
        memcpy(table + E + 1, slots, n * sizeof *table);
        wb_dispatch_rule dynamic = wb_dispatch_table_rule(true, table, E, layer);
        wb_dispatch_rule fixed = wb_dispatch_table_rule(false, slots, E, layer);
        for (uint32_t e = 0; e < E; e++) {
            uint64_t key = rng_next();
            uint32_t replicas = (uint32_t)(begin[e + 1] - begin[e]);
            int32_t expected = slots[begin[e] + (int32_t)replica_naively(key, layer, e, replicas)];
            assert_int_equal(wb_dispatch_slot(&dynamic, e, key), expected);
            assert_int_equal(wb_dispatch_slot(&fixed, e, key), slots[e]);
        }
        free(begin);
        free(slots);
        free(table);
    }
}

/* ---- evenness -------------------------------------------------------------------------------- */

/* The picks of 4096 tokens n times over: each replica's share is within 6 standard deviations of the even
 * one, for keys in a row as for keys that only differ in their upper half. */
static void test_replicas_are_used_evenly(void **unused) {
    (void)unused;
    const int shifts[] = {0, 3, 32, 48};
    for (uint32_t n = 1; n <= 8; n++)
        for (size_t s = 0; s < sizeof shifts / sizeof *shifts; s++) {
            uint32_t counts[8] = {0}, layer = (uint32_t)rng_range(0, 93),
                     expert = (uint32_t)rng_range(0, 511);
            uint64_t first = rng_next();
            for (uint64_t i = 0; i < 4096 * (uint64_t)n; i++)
                counts[wb_dispatch_replica(first + (i << shifts[s]), layer, expert, n)]++;
            for (uint32_t j = 0; j < n; j++) assert_in_range(counts[j], 4096 - 6 * 64, 4096 + 6 * 64);
        }
}

int main(int argc, char **argv) {
    rng_open(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_picks_are_fixed),
        cmocka_unit_test(test_keys_are_fixed),
        cmocka_unit_test(test_slots_of_random_tables),
        cmocka_unit_test(test_replicas_are_used_evenly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
