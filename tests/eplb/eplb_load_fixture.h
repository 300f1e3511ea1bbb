/* eplb_load_fixture.h - handles, rows and records for the tests of load statistics. Failures are cmocka's. */
#ifndef WB_TEST_EPLB_LOAD_FIXTURE_H
#define WB_TEST_EPLB_LOAD_FIXTURE_H

#include "load/load_internal.h"
#include "placement/placement_internal.h"
#include "support/temp_files.h"
#include "wb_eplb.h"

#include <math.h>

enum { ALL = WB_PHASES_ALL };

static inline wb_load *open_load(uint32_t n, const wb_load_region *regions, uint32_t window, double decay) {
    wb_load *load = NULL;
    assert_int_equal(
        wb_load_open(n, regions, &(wb_load_options){sizeof(wb_load_options), window, decay}, &load), WB_OK);
    return load;
}

static inline wb_load *open_one(uint32_t L, uint32_t E, uint32_t n_shared, uint32_t window) {
    return open_load(1, &(wb_load_region){"target", L, E, n_shared}, window, 1);
}

static inline wb_routed_rows rows_u8(uint32_t T, uint32_t K, const uint8_t *ids) {
    return (wb_routed_rows){.ids = ids, .dtype = WB_U8, .T = T, .K = K};
}

static inline void decode(wb_load *load, uint32_t region, int32_t layer, uint32_t T, uint32_t K,
                          const uint8_t *ids) {
    wb_routed_rows rows = rows_u8(T, K, ids);
    assert_int_equal(wb_load_record(load, region, WB_PHASE_DECODE, layer, &rows), WB_OK);
}

/* Counts `n` tokens for one expert. */
static inline void decode_n(wb_load *load, int32_t layer, uint8_t expert, uint32_t n) {
    uint8_t ids[4096];
    assert_true(n <= sizeof ids);
    memset(ids, expert, sizeof ids);
    decode(load, 0, layer, n, 1, ids);
}

static inline void end_pass(wb_load *load) {
    assert_int_equal(wb_load_end_pass(load, NULL), WB_OK);
}

static inline void assert_doubles(const double *found, const double *expected, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(found[i] == expected[i])) fail_msg("[%zu]: expected %g, found %g", i, expected[i], found[i]);
}

#define assert_near(found, expected)                                                  \
    do {                                                                              \
        if (!(fabs((found) - (expected)) <= 1e-12))                                   \
            fail_msg("%s: expected %.17g, found %.17g", #found, (expected), (found)); \
    } while (0)

/* Counts over the window, all phases. */
#define assert_counts(load, region, ...)                                           \
    do {                                                                           \
        const double expected_[] = {__VA_ARGS__};                                  \
        double found_[sizeof expected_ / sizeof expected_[0]];                     \
        assert_int_equal(wb_load_counts(load, region, ALL, found_), WB_OK);        \
        assert_doubles(found_, expected_, sizeof expected_ / sizeof expected_[0]); \
    } while (0)

static const uint32_t layer_indices[] = {0, 1, 2, 3, 4, 5, 6, 7};

static inline wb_route_model model_of(uint32_t L, uint32_t E, uint32_t K) {
    return (wb_route_model){.name = "test",
                            .fingerprint = "0123456789abcdef0123456789abcdef",
                            .router = "softmax_norm",
                            .num_hidden_layers = L,
                            .n_moe_layers = L,
                            .moe_layers = layer_indices,
                            .num_experts = E,
                            .top_k = K};
}

static const uint32_t tokens[2048];

static inline wb_record record_of(uint32_t prompt_len, uint32_t n_tokens, uint32_t n_runs,
                                  const wb_route_rows *runs) {
    return (wb_record){.rid = "r-1",
                       .prompt_len = prompt_len,
                       .n_tokens = n_tokens,
                       .tokens = tokens,
                       .n_routes = n_runs,
                       .routes = runs};
}

/* E = S experts in order, so that rank r of R has experts [r E/R, (r + 1) E/R). */
static inline wb_placement *in_order(uint32_t R, uint32_t N, uint32_t L, uint32_t E) {
    wb_placement *placement = NULL;
    assert_int_equal(wb_placement_open(&(wb_topology){R, N, E, NULL, NULL, NULL}, L, E, &placement), WB_OK);
    return placement;
}

/* Two ranks, two experts, two layers, two passes; loads of the ranks:
 *            pass 0 (older)   pass 1
 *   layer 0     1   3          2   2     ratios 2/3 and 1
 *   layer 1     0   4          5   1     ratios 1/2 and 3/5
 * Over the ranks of each (pass, layer), not over layers, passes or the sums of the window. */
static inline wb_load *two_by_two(void) {
    static const uint32_t ranks[2][2][2] = {{{1, 3}, {0, 4}}, {{2, 2}, {5, 1}}};
    wb_load *load = open_one(2, 2, 0, 4);
    for (int p = 0; p < 2; p++) {
        for (int32_t l = 0; l < 2; l++)
            for (uint8_t r = 0; r < 2; r++) decode_n(load, l, r, ranks[p][l][r]);
        end_pass(load);
    }
    return load;
}

#endif
