/* test_eplb_weightless.c - a dump of a model with experts without weights and layers of their own K: such
 * experts have no load and no slot, whoever counts, and plain loops say the same of the others. */
#include "wb_eplb.h"
#include "wb_simulate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

enum { L = 3, E = 12, WEIGHTED = 9, RANKS = 3, SLOTS = 12 };

typedef struct dump_of {
    wb_dump *dump;
    double loads[L][WEIGHTED];
} dump_of;

static int setup(void **state) {
    dump_of *d = calloc(1, sizeof *d);
    char path[512];
    snprintf(path, sizeof path, "%s/dump/good_layers_top_k.wbr", WB_TEST_DATA);
    OK(wb_dump_open(path, &d->dump));
    const wb_route_model *m = wb_dump_model(d->dump);
    assert_true(m->n_moe_layers == L && m->num_experts == E && wb_route_weighted(m) == WEIGHTED);
    for (uint64_t i = 0; i < wb_dump_get_info(d->dump).records; i++) {
        wb_record r;
        OK(wb_dump_record(d->dump, i, &r));
        for (wb_row_walk walk = wb_rows_of(m, &r); wb_row_next(&walk);) {
            const uint8_t *id = walk.row;
            for (uint32_t l = 0; l < L; l++)
                for (uint32_t k = 0; k < m->layer_top_k[l]; k++, id++)
                    if (*id < WEIGHTED) d->loads[l][*id]++;
        }
        wb_dump_release(d->dump, i);
    }
    *state = d;
    return 0;
}

static int teardown(void **state) {
    dump_of *d = *state;
    wb_dump_close(d->dump);
    free(d);
    return 0;
}

static void test_counts_of_a_dump(void **state) {
    const dump_of *d = *state;
    const wb_topology topology = {.n_ranks = RANKS, .n_nodes = 1, .n_slots = WEIGHTED};
    wb_dump_counts *counts = NULL;
    OK(wb_dump_counts_open(d->dump, NULL, 3, 1, &topology, NULL, NULL, &counts));
    assert_memory_equal(wb_dump_counts_loads(counts), d->loads, sizeof d->loads);
    wb_dump_counts_close(counts);
}

static void test_load_of_records(void **state) {
    const dump_of *d = *state;
    const wb_load_region region = {"target", L, WEIGHTED, E - WEIGHTED}, all = {"target", L, E, 0},
                         none = {"target", L, WEIGHTED, 0};
    wb_load *load = NULL, *refused = NULL;
    wb_record r;
    double found[L][WEIGHTED];
    OK(wb_load_open(1, &region, NULL, &load));
    for (uint64_t i = 0; i < 3; i++) {
        OK(wb_dump_record(d->dump, i, &r));
        OK(wb_load_add_record(load, 0, wb_dump_model(d->dump), &r, false));
    }
    OK(wb_load_end_pass(load, NULL));
    OK(wb_load_counts(load, 0, WB_PHASES_ALL, found[0]));
    assert_memory_equal(found, d->loads, sizeof found);
    wb_load_close(load);
    OK(wb_load_open(1, &all, NULL, &refused));
    assert_int_equal(wb_load_add_record(refused, 0, wb_dump_model(d->dump), &r, false), WB_MISMATCH);
    wb_load_close(refused);
    /* Who has not said that there are such experts is told of their ids. */
    OK(wb_load_open(1, &none, NULL, &refused));
    assert_int_equal(wb_load_add_record(refused, 0, wb_dump_model(d->dump), &r, false), WB_INVALID_ARGUMENT);
    wb_load_close(refused);
}

/* A placement has the experts with weights, each in a slot, and a token's ranks are those of their
 * choices. */
static void test_placement_and_spread(void **state) {
    const dump_of *d = *state;
    const wb_route_model *m = wb_dump_model(d->dump);
    const wb_topology topology = {.n_ranks = RANKS, .n_nodes = 1, .n_slots = SLOTS};
    wb_placement *placement = NULL;
    OK(wb_placement_from_dump(d->dump, &topology, NULL, &placement));
    assert_int_equal(wb_placement_experts(placement), WEIGHTED);
    for (uint64_t i = 0; i < 3; i++) {
        wb_record r;
        uint8_t ranks[64 * L];
        size_t out = 0;
        uint32_t without = 0;
        OK(wb_dump_record(d->dump, i, &r));
        OK(wb_token_spread(placement, WB_DISPATCH_STATIC, 1, m, &r, ranks, NULL));
        for (uint32_t n = 0; n < r.n_routes; n++)
            for (uint32_t t = 0; t < r.routes[n].rows; t++) {
                const uint8_t *id = wb_record_row(m, &r, r.routes[n].start + t);
                for (uint32_t l = 0; l < L; l++, out++) {
                    int32_t table[WEIGHTED];
                    uint32_t seen = 0, distinct = 0;
                    OK(wb_dispatch_fill_table(placement, WB_DISPATCH_STATIC, 1, l, table));
                    for (uint32_t k = 0; id && k < m->layer_top_k[l]; k++, id++) {
                        if (*id >= WEIGHTED) continue;
                        const wb_physical_id slot = {(uint32_t)table[*id]};
                        seen |= 1u << wb_placement_rank_of(placement, slot);
                    }
                    for (uint32_t rank = 0; rank < RANKS; rank++) distinct += seen >> rank & 1;
                    assert_int_equal(ranks[out], distinct);
                    without += distinct == 0;
                }
            }
        assert_true(without < out);
        wb_dump_release(d->dump, i);
    }
    wb_placement_close(placement);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts_of_a_dump),
        cmocka_unit_test(test_load_of_records),
        cmocka_unit_test(test_placement_and_spread),
    };
    return cmocka_run_group_tests(tests, setup, teardown) > 0;
}
