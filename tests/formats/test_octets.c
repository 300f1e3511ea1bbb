/* test_octets.c - the check of groups of eight ids, of every instruction set that this machine has, against a
 * plain one. Usage: [SEED] */
#include "octets.h"
#include "support/test_seed.h"
#include "wb_isa.h"
#include "wb_random.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { GROUPS = 70 };

static uint64_t seed;

static bool plain_ok(const uint8_t *ids, size_t n, uint32_t E) {
    for (size_t i = 0; i < 8 * n; i++) {
        if (ids[i] >= E) return false;
        for (size_t j = i / 8 * 8; j < i; j++)
            if (ids[j] == ids[i]) return false;
    }
    return true;
}

/* Distinct ids below E, from a random first one on. */
static void fill_good(uint8_t *ids, size_t n, uint32_t E, uint64_t *random) {
    for (size_t g = 0; g < n; g++) {
        uint32_t first = (uint32_t)(wb_random(random) % E);
        for (uint32_t k = 0; k < 8; k++) ids[8 * g + k] = (uint8_t)((first + k) % E);
    }
}

/* Groups that are good, and the same with one byte changed to any other: which may still be good. */
static void test_against_plain(void **state) {
    (void)state;
    static wb_octets_fn *const octets_ok[WB_ISAS] = WB_ISA_EACH(wb_octets_ok);
    const int isas = (int)wb_isa_of_machine() + 1;
    uint64_t random = seed;
    uint8_t ids[8 * GROUPS];
    for (int i = 0; i < 4000; i++) {
        uint32_t E = 8 + (uint32_t)(wb_random(&random) % 249);
        size_t n = (size_t)(wb_random(&random) % (GROUPS + 1));
        fill_good(ids, n, E, &random);
        for (int isa = 0; isa < isas; isa++) assert_true(octets_ok[isa](ids, n, E));
        if (n == 0) continue;
        ids[wb_random(&random) % (8 * n)] = (uint8_t)wb_random(&random);
        for (int isa = 0; isa < isas; isa++) assert_int_equal(octets_ok[isa](ids, n, E), plain_ok(ids, n, E));
    }
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_plain)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
