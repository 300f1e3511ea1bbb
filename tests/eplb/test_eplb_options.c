/* test_eplb_options.c - options structs that begin with their size: of callers of an earlier library
 * (shorter), of a later one (longer), and of callers that skipped the initialiser. */
#include "wb_eplb.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { L = 2, E = 4 };

static const wb_topology topology = {.n_ranks = 2, .n_nodes = 1, .n_slots = 6};
static const wb_load_region region = {.name = "target", .n_layers = L, .n_experts = E};
static const double loads[L * E] = {9, 1, 1, 1, 1, 1, 1, 9};

static wb_status open_load(const void *options) {
    wb_load *load = NULL;
    wb_status status = wb_load_open(1, &region, options, &load);
    wb_load_close(load);
    return status;
}

static wb_status solve(const void *options) {
    wb_placement *placement = NULL;
    wb_status status = wb_eplb_solve(&topology, L, E, 1, loads, options, &placement);
    wb_placement_close(placement);
    return status;
}

static wb_status plan(const void *options) {
    wb_placement *placement = NULL;
    wb_move_plan *moves = NULL;
    assert_int_equal(wb_placement_open(&topology, L, E, &placement), WB_OK);
    wb_status status = wb_move_plan_open(placement, placement, L, NULL, options, &moves);
    wb_move_plan_close(moves);
    wb_placement_close(placement);
    return status;
}

/* Room for a struct of a later version: the one of this version and a word that it does not know. */
typedef union room {
    wb_load_options load;
    wb_eplb_options eplb;
    wb_move_options move;
    unsigned char bytes[sizeof(wb_eplb_options) + 8];
} room;

static void refused(wb_status (*call)(const void *), const room *options, const char *part) {
    assert_int_equal(call(options), WB_INVALID_ARGUMENT);
    if (!strstr(wb_error_message(), part)) fail_msg("message '%s' lacks '%s'", wb_error_message(), part);
}

/* `own`: bytes of this version's struct, in `options` as its initialiser leaves them at own + 8 bytes. */
static void check_sizes(wb_status (*call)(const void *), room *options, size_t own) {
    size_t size = 0;
    memcpy(&size, options, sizeof size);
    assert_int_equal(size, own + 8);
    assert_int_equal(call(options), WB_OK);
    options->bytes[own + 3] = 1;
    refused(call, options, "expected a later library");
    options->bytes[own + 3] = 0;
    memset(options, 0, sizeof size);
    refused(call, options, "expected them to come from the initialiser");
    /* A caller that knows nothing but the size gets the defaults, whatever lies behind. */
    memset(options, 0xff, sizeof *options);
    size = sizeof size;
    memcpy(options, &size, sizeof size);
    assert_int_equal(call(options), WB_OK);
    assert_int_equal(call(NULL), WB_OK);
}

static void test_sizes(void **unused) {
    (void)unused;
    room options;
    wb_load_options_init(&options.load, sizeof options.load + 8);
    check_sizes(open_load, &options, sizeof options.load);
    wb_eplb_options_init(&options.eplb, sizeof options.eplb + 8);
    check_sizes(solve, &options, sizeof options.eplb);
    wb_move_options_init(&options.move, sizeof options.move + 8);
    check_sizes(plan, &options, sizeof options.move);
}

/* The documented defaults, as the header's functions give them. */
static void test_defaults(void **unused) {
    (void)unused;
    wb_load_options load = wb_load_options_default();
    wb_eplb_options eplb = wb_eplb_options_default();
    wb_move_options move = wb_move_options_default();
    assert_int_equal(load.size, sizeof load);
    assert_true(load.window == 100 && load.decay == 1);
    assert_int_equal(eplb.size, sizeof eplb);
    assert_true(eplb.algorithm == WB_EPLB_BALANCED && eplb.n_groups == 1 && eplb.trials == 0);
    assert_true(!eplb.current && eplb.max_changes == 0 && eplb.target == 0.98);
    assert_true(eplb.horizon_steps == 1000 && eplb.threads == 0 && !eplb.progress);
    assert_int_equal(move.size, sizeof move);
    assert_true(move.n_shadow == 1 && move.group_moves == 32);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sizes), cmocka_unit_test(test_defaults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
