/* test_infer_graphs.c - which graph a step of inference gets: none at first, then one of its size, as long as
 * addresses stay; and what becomes of graphs that are not used or whose capture fails. */
#include "infer_graphs.h"
#include "wb_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* A device that counts; a graph is the number of its capture. */
static int begun, ended, launched, freed, runs;
static intptr_t latest; /* launched */
static bool run_fails, end_fails;
static char handles[256];

static wb_status begin(wb_device *dev) {
    (void)dev;
    begun++;
    return WB_OK;
}

static wb_status end(wb_device *dev, void **graph_out) {
    (void)dev;
    if (end_fails) return wb_fail(WB_DEVICE, "end: made to fail");
    *graph_out = &handles[ended++];
    return WB_OK;
}

static wb_status launch(wb_device *dev, void *graph) {
    (void)dev;
    launched++;
    latest = (char *)graph - handles;
    return WB_OK;
}

static void free_graph(wb_device *dev, void *graph) {
    (void)dev;
    freed += graph != NULL;
}

static wb_status run(void *context) {
    (void)context;
    runs++;
    return run_fails ? wb_fail(WB_DEVICE, "run: made to fail") : WB_OK;
}

static wb_device device = {
    .graph_begin = begin, .graph_end = end, .graph_launch = launch, .graph_free = free_graph};
static wb_infer_graphs graphs;

static int set_up(void **state) {
    (void)state;
    begun = ended = launched = freed = runs = 0;
    run_fails = end_fails = false;
    graphs = (wb_infer_graphs){0};
    return 0;
}

static wb_status step(int64_t T, uint64_t stamp) {
    const wb_graph_size size = {.T = T, .n_logits = 1, .max_blocks = 1};
    return wb_infer_graphs_run(&graphs, &device, &size, stamp, run, NULL);
}

#define assert_counts(n_runs, n_ended, n_launched, n_freed)                       \
    do {                                                                          \
        assert_int_equal(runs, n_runs), assert_int_equal(ended, n_ended);         \
        assert_int_equal(launched, n_launched), assert_int_equal(freed, n_freed); \
    } while (0)

static void test_the_second_step_of_a_size_is_captured(void **state) {
    (void)state;
    assert_int_equal(step(4, 1), WB_OK);
    assert_counts(1, 0, 0, 0);
    assert_int_equal(step(8, 1), WB_OK);
    assert_counts(2, 0, 0, 0);
    assert_int_equal(step(4, 1), WB_OK);
    assert_counts(3, 1, 1, 0);
    assert_int_equal(step(8, 1), WB_OK);
    assert_counts(4, 2, 2, 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(step(4, 1), WB_OK);
        assert_int_equal(latest, 0);
        assert_int_equal(step(8, 1), WB_OK);
        assert_int_equal(latest, 1);
    }
    assert_counts(4, 2, 8, 0);
    wb_infer_graphs_close(&graphs, &device);
    assert_int_equal(freed, 2);
}

static void test_another_address_drops_all(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) assert_int_equal(step(4, 1), WB_OK);
    assert_counts(2, 1, 1, 0);
    assert_int_equal(step(4, 2), WB_OK);
    assert_counts(3, 1, 1, 1);
    assert_int_equal(step(4, 2), WB_OK);
    assert_counts(4, 2, 2, 1);
    wb_infer_graphs_close(&graphs, &device);
}

static void test_the_oldest_makes_room(void **state) {
    (void)state;
    for (int64_t T = 1; T <= WB_MAX_GRAPHS; T++)
        for (int i = 0; i < 2; i++) assert_int_equal(step(T, 0), WB_OK);
    assert_int_equal(step(1, 0), WB_OK); /* now 2 is the oldest */
    assert_counts(2 * WB_MAX_GRAPHS, WB_MAX_GRAPHS, WB_MAX_GRAPHS + 1, 0);
    assert_int_equal(step(WB_MAX_GRAPHS + 1, 0), WB_OK);
    assert_counts(2 * WB_MAX_GRAPHS + 1, WB_MAX_GRAPHS, WB_MAX_GRAPHS + 1, 1);
    assert_int_equal(step(1, 0), WB_OK);
    assert_int_equal(step(3, 0), WB_OK);
    assert_counts(2 * WB_MAX_GRAPHS + 1, WB_MAX_GRAPHS, WB_MAX_GRAPHS + 3, 1);
    assert_int_equal(step(2, 0), WB_OK);
    assert_counts(2 * WB_MAX_GRAPHS + 2, WB_MAX_GRAPHS, WB_MAX_GRAPHS + 3, 2);
    wb_infer_graphs_close(&graphs, &device);
    assert_int_equal(freed, WB_MAX_GRAPHS);
}

static void test_failures_leave_no_graph(void **state) {
    (void)state;
    run_fails = true;
    for (int i = 0; i < 2; i++) assert_int_equal(step(4, 1), WB_DEVICE);
    assert_counts(2, 0, 0, 0);
    assert_int_equal(begun, 0); /* no step of the size has run yet */
    run_fails = false;
    assert_int_equal(step(4, 1), WB_OK);
    run_fails = true;
    assert_int_equal(step(4, 1), WB_DEVICE);
    assert_int_equal(freed, 1); /* what had been captured when the run failed */
    run_fails = false;
    wb_infer_graphs_close(&graphs, &device);
}

static void test_without_a_graph_the_step_runs_op_by_op(void **state) {
    (void)state;
    assert_int_equal(step(4, 1), WB_OK);
    end_fails = true;
    assert_int_equal(step(4, 1), WB_OK);
    assert_counts(3, 0, 0, 0); /* the second step ran twice: captured in vain, and for its results */
    end_fails = false;
    assert_int_equal(step(4, 1), WB_OK);
    assert_counts(4, 0, 0, 0); /* the device is not asked again ... */
    for (int i = 0; i < 2; i++) assert_int_equal(step(4, 2), WB_OK);
    assert_counts(6, 1, 1, 0); /* ... until graphs begin anew */
    wb_infer_graphs_close(&graphs, &device);
}

/* Sizes hold what they are for, are few, and waste a quarter at most above 16 rows. */
static void test_sizes(void **state) {
    (void)state;
    int64_t sizes = 0, before = 0;
    for (int64_t n = 1; n <= 512; n++) {
        const int64_t size = wb_graph_rows(n, 1000);
        assert_in_range(size, n, n <= 16 ? 2 * n : n + n / 4);
        assert_int_equal(wb_graph_rows(size, 1000), size);
        assert_true(wb_graph_is_size(size, 1000) && wb_graph_is_size(n, n));
        assert_true(size >= before);
        sizes += size != before;
        before = size;
        assert_int_equal(wb_graph_rows(n, n), n);
        assert_in_range(wb_graph_blocks(n, 1000), n, 2 * n);
        assert_int_equal(wb_graph_blocks(n, n), n);
    }
    assert_in_range(sizes, 1, WB_MAX_GRAPHS / 2);
    assert_int_equal(wb_graph_rows(513, 1000), 513);
    assert_int_equal(wb_graph_rows(0, 1000), 0);
    assert_false(wb_graph_is_size(513, 1000) || wb_graph_is_size(0, 1000) || wb_graph_is_size(17, 1000));
    assert_int_equal(wb_graph_blocks(0, 1000), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_the_second_step_of_a_size_is_captured, set_up),
        cmocka_unit_test_setup(test_another_address_drops_all, set_up),
        cmocka_unit_test_setup(test_the_oldest_makes_room, set_up),
        cmocka_unit_test_setup(test_failures_leave_no_graph, set_up),
        cmocka_unit_test_setup(test_without_a_graph_the_step_runs_op_by_op, set_up),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests_name("infer graphs", tests, NULL, NULL);
}
