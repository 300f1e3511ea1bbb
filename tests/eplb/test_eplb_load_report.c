/* test_eplb_load_report.c - what load statistics say under a placement: balancedness, spread of tokens. */
#include "eplb_load_fixture.h"
#include "wb_random.h"

/* ---- balancedness ---------------------------------------------------------------------------- */

static void test_vllm_51813_balancedness_is_over_ranks(void **state) {
    (void)state;
    wb_load *load = two_by_two();
    wb_placement *placement = in_order(2, 1, 2, 2);
    double by_layer[2], mean, weighted;
    assert_int_equal(wb_load_balancedness(load, 0, ALL, 0, placement, by_layer, &mean, &weighted), WB_OK);
    assert_near(by_layer[0], (2. / 3 + 1) / 2);
    assert_near(by_layer[1], (1. / 2 + 3. / 5) / 2);
    assert_near(mean, ((2. / 3 + 1) / 2 + (1. / 2 + 3. / 5) / 2) / 2);
    assert_near(weighted, (2. + 2 + 2 + 3) / (3 + 2 + 4 + 5));

    assert_int_equal(wb_load_balancedness(load, 0, ALL, 1, placement, by_layer, NULL, &weighted), WB_OK);
    assert_near(by_layer[0], 1.);
    assert_near(by_layer[1], 3. / 5);
    assert_near(weighted, 5. / 7);
    assert_int_equal(wb_load_balancedness(load, 0, ALL, 99, placement, NULL, &mean, NULL), WB_OK);
    assert_near(mean, ((2. / 3 + 1) / 2 + (1. / 2 + 3. / 5) / 2) / 2);
    wb_placement_close(placement);
    wb_load_close(load);
}

static void test_dead_ranks_and_empty_layers_are_not_averaged(void **state) {
    (void)state;
    wb_load *load = open_one(2, 2, 0, 4);
    wb_placement *placement = NULL;
    const wb_topology topology = {3, 1, 6, NULL, NULL, (uint8_t[]){0, 1, 0}};
    assert_int_equal(wb_placement_open(&topology, 2, 2, &placement), WB_OK);
    const int32_t map[6] = {0, -1, -1, -1, 1, 0}; /* expert 0 has two replicas */
    for (uint32_t l = 0; l < 2; l++)
        assert_int_equal(wb_placement_set_layer(placement, l, map, NULL, 1), WB_OK);
    double by_layer[2] = {-7, -7}, mean = -7, weighted = -7;
    assert_int_equal(wb_load_balancedness(load, 0, ALL, 0, placement, by_layer, &mean, &weighted),
                     WB_NOT_FOUND);
    decode_n(load, 1, 0, 4);
    decode_n(load, 1, 1, 1);
    end_pass(load);
    assert_int_equal(
        wb_load_balancedness(load, 0, 1u << WB_PHASE_REPLAY, 0, placement, by_layer, &mean, &weighted),
        WB_NOT_FOUND);
    assert_doubles((double[]){by_layer[0], by_layer[1], mean, weighted}, (double[]){-7, -7, -7, -7}, 4);
    assert_int_equal(wb_load_balancedness(load, 0, ALL, 0, placement, by_layer, &mean, &weighted), WB_OK);
    assert_near(by_layer[0], 1.);       /* no tokens */
    assert_near(by_layer[1], 2.5 / 3.); /* live ranks have 2 and 2 + 1 */
    assert_near(mean, 2.5 / 3.);
    assert_near(weighted, 2.5 / 3.);
    wb_placement_close(placement);

    placement = in_order(3, 1, 2, 3);
    assert_int_equal(wb_load_balancedness(load, 0, ALL, 0, placement, by_layer, NULL, NULL), WB_MISMATCH);
    assert_message_has("the load region has L 2 and E 2, the placement L 2 and E 3");
    wb_placement_close(placement);
    placement = in_order(1, 1, 3, 2);
    assert_int_equal(wb_load_balancedness(load, 0, ALL, 0, placement, by_layer, NULL, NULL), WB_MISMATCH);
    assert_int_equal(wb_load_balancedness(load, 0, 0, 0, placement, by_layer, NULL, NULL),
                     WB_INVALID_ARGUMENT);
    assert_int_equal(wb_load_balancedness(load, 1, ALL, 0, placement, by_layer, NULL, NULL),
                     WB_INVALID_ARGUMENT);
    wb_placement_close(placement);
    wb_load_close(load);
}

/* ---- spread of tokens ------------------------------------------------------------------------ */

static void test_sglang_13206_spread_counts_distinct_ranks_and_nodes(void **state) {
    (void)state;
    wb_placement *placement = in_order(4, 2, 2, 8); /* two experts a rank, two ranks a node */
    wb_route_model model = model_of(2, 8, 3);
    const uint8_t first[] = {0, 1, 2, /**/ 7, 5, 3, /* row 0: ranks 0 1, node 0; ranks 3 2 1, both nodes */
                             9, 9, 9, /**/ 9, 9, 9, /* not valid */
                             6, 7, 5, /**/ 2, 0, 6};
    const uint8_t second[] = {4, 6, 5, /**/ 0, 2, 1};
    const wb_route_rows runs[] = {{0, 3, first, (uint8_t[]){0x05}}, {5, 1, second, NULL}};
    wb_record record = record_of(2, 8, 2, runs);
    for (wb_dispatch_policy policy = WB_DISPATCH_STATIC; policy <= WB_DISPATCH_DYNAMIC; policy++) {
        uint8_t ranks[8], nodes[8];
        assert_int_equal(wb_token_spread(placement, policy, 1, &model, &record, ranks, nodes), WB_OK);
        assert_memory_equal(ranks, ((uint8_t[]){2, 3, 0, 0, 2, 3, 2, 2}), 8);
        assert_memory_equal(nodes, ((uint8_t[]){1, 2, 0, 0, 1, 2, 1, 1}), 8);
        assert_int_equal(wb_token_spread(placement, policy, 1, &model, &record, NULL, NULL), WB_OK);
    }
    uint8_t ranks[8] = {77};
    assert_int_equal(wb_token_spread(placement, WB_DISPATCH_QUOTA, 1, &model, &record, ranks, NULL),
                     WB_INVALID_ARGUMENT);
    assert_message_has("expected static or dynamic, found quota");
    assert_int_equal(wb_token_spread(placement, WB_DISPATCH_FAKE, 1, &model, &record, ranks, NULL),
                     WB_INVALID_ARGUMENT);
    assert_int_equal(wb_token_spread(placement, WB_DISPATCH_STATIC, 4, &model, &record, ranks, NULL),
                     WB_INVALID_ARGUMENT);
    wb_route_model other = model_of(2, 9, 3);
    assert_int_equal(wb_token_spread(placement, WB_DISPATCH_STATIC, 1, &other, &record, ranks, NULL),
                     WB_MISMATCH);
    const wb_route_rows bad = {0, 1, (uint8_t[]){0, 1, 2, 7, 5, 8}, NULL};
    record = record_of(2, 8, 1, &bad);
    assert_int_equal(wb_token_spread(placement, WB_DISPATCH_STATIC, 1, &model, &record, ranks, NULL),
                     WB_INVALID_ARGUMENT);
    assert_int_equal(ranks[0], 77);
    wb_placement_close(placement);
}

/* Over more rows than are sent at a time, with replicas, against dispatch asked for one token at a time. */
static void test_spread_is_what_dispatch_does_to_each_token(void **state) {
    (void)state;
    enum { ROWS = 700, L = 2, E = 8, K = 2, S = 16, R = 4 };
    uint64_t random = 5;
    static uint8_t ids[ROWS][L][K], valid[(ROWS + 7) / 8], ranks[ROWS][L], nodes[ROWS][L];
    wb_placement *placement = NULL;
    assert_int_equal(wb_placement_open(&(wb_topology){R, 2, S, NULL, NULL, NULL}, L, E, &placement), WB_OK);
    for (uint32_t i = 0; i < ROWS * L; i++) {
        uint8_t *pair = ids[i / L][i % L];
        pair[0] = (uint8_t)wb_random_below(&random, E);
        pair[1] = (uint8_t)((pair[0] + 1 + wb_random_below(&random, E - 1)) % E);
    }
    for (size_t i = 0; i < sizeof valid; i++) valid[i] = (uint8_t)wb_random(&random);
    const wb_route_rows run = {30, ROWS, ids, valid};
    wb_route_model model = model_of(L, E, K);
    wb_record record = record_of(40, 1024, 1, &run);
    static uint32_t fed[1024];
    for (uint32_t i = 0; i < 1024; i++) fed[i] = wb_random_below(&random, 60);
    record.tokens = fed;
    bool spread_differs = false;
    for (wb_dispatch_policy policy = WB_DISPATCH_STATIC; policy <= WB_DISPATCH_DYNAMIC; policy++) {
        wb_dispatch *dispatch = NULL;
        assert_int_equal(wb_dispatch_open(placement, policy, 2, &dispatch), WB_OK);
        assert_int_equal(wb_token_spread(placement, policy, 2, &model, &record, ranks[0], nodes[0]), WB_OK);
        for (uint32_t i = 0; i < ROWS * L; i++) {
            uint32_t r = i / L, l = i % L;
            wb_physical_id slots[K];
            const uint64_t key = (uint64_t)record.tokens[30 + r] << 32 | (30 + r);
            wb_routed_rows rows = rows_u8(1, K, ids[r][l]);
            assert_int_equal(
                wb_dispatch_rows(dispatch, l, &rows, policy == WB_DISPATCH_DYNAMIC ? &key : NULL, slots),
                WB_OK);
            uint32_t a = wb_placement_rank_of(placement, slots[0]),
                     b = wb_placement_rank_of(placement, slots[1]);
            bool is_valid = valid[r / 8] >> (r % 8) & 1;
            assert_int_equal(ranks[r][l], is_valid ? 1 + (a != b) : 0);
            assert_int_equal(nodes[r][l], is_valid ? 1 + (a / 2 != b / 2) : 0);
            spread_differs |= is_valid && policy == WB_DISPATCH_DYNAMIC && ranks[r][l] != ranks[0][l];
        }
        wb_dispatch_close(dispatch);
    }
    assert_true(spread_differs);
    wb_placement_close(placement);
}

static void test_spread_saturates_at_255(void **state) {
    (void)state;
    enum { E = 300 };
    wb_placement *placement = in_order(E, E, 1, E);
    wb_route_model model = model_of(1, E, E);
    uint16_t ids[2 * E];
    for (uint32_t k = 0; k < 2 * E; k++) ids[k] = (uint16_t)(k % E);
    const wb_route_rows run = {0, 2, ids, NULL};
    wb_record record = record_of(1, 3, 1, &run);
    uint8_t ranks[2], nodes[2];
    assert_int_equal(wb_token_spread(placement, WB_DISPATCH_STATIC, 0, &model, &record, ranks, nodes), WB_OK);
    assert_memory_equal(ranks, ((uint8_t[]){255, 255}), 2);
    assert_memory_equal(nodes, ((uint8_t[]){255, 255}), 2);
    wb_placement_close(placement);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vllm_51813_balancedness_is_over_ranks),
        cmocka_unit_test(test_dead_ranks_and_empty_layers_are_not_averaged),
        cmocka_unit_test(test_sglang_13206_spread_counts_distinct_ranks_and_nodes),
        cmocka_unit_test(test_spread_is_what_dispatch_does_to_each_token),
        cmocka_unit_test(test_spread_saturates_at_255),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
