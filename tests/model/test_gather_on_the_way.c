/* test_gather_on_the_way.c - an MoE layer on a backend that gathers the experts' rows on its way, and so
 * finds nothing in `gathered` but what its own backward reads from x, and that keeps gate and up only where
 * it is told to: the same bits on one rank, the same gradients on two, as on the CPU. */
#include "model_ranks.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { RANKS = 2 };

static uint64_t base_seed;

/* ---- such a backend ------------------------------------------------------------------------------ */

/* The CPU's ops, which gather into memory; of any device. */
static wb_grouped_matmul_fn *cpu_forward;
static wb_grouped_matmul_backward_fn *cpu_backward;

static size_t gathered_bytes(const wb_grouped *g) {
    return (size_t)(g->offsets[g->n_groups] * g->w.cols) * wb_dtype_size(g->gathered.dtype);
}

/* Forwards that kept gate and up, and that did not. */
static atomic_int n_kept, n_not_kept;

/* Leaves NaN where the CPU's op put the rows, and gate and up that are of no use: a backend that needs no
 * such memory writes none. */
static wb_status forward(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows y, wb_rows act) {
    const wb_status status = cpu_forward(dev, g, x, y, act);
    const size_t y_bytes = (size_t)(g->offsets[g->n_groups] * g->w.rows) * wb_dtype_size(y.dtype);
    if (g->gather) memset(g->gathered.data, 0xFF, gathered_bytes(g));
    if (act.data) atomic_fetch_add(g->y_is_scratch ? &n_not_kept : &n_kept, 1);
    if (g->y_is_scratch) memset(y.data, 0xFF, y_bytes);
    return status;
}

static wb_status backward(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows dy, float *dw, wb_rows dx,
                          wb_rows gate_up) {
    if (g->gather) {
        const wb_status status =
            dev->gather_rows(dev, g->offsets[g->n_groups], g->w.cols, g->gather, x, g->gathered);
        if (status != WB_OK) return status;
    }
    return cpu_backward(dev, g, x, dy, dw, dx, gate_up);
}

static void gather_on_the_way(wb_device *dev) {
    dev->grouped_matmul = forward;
    dev->grouped_matmul_backward = backward;
}

/* ---- passes -------------------------------------------------------------------------------------- */

typedef struct rank_job {
    wb_comm *comm;
    int failures;
} rank_job;

/* Every variant over the ranks, against the CPU's own ops on one. */
static void *run_rank(void *argument) {
    rank_job *job = argument;
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        ranks_test test = {.name = "gather on the way", .seed = base_seed};
        test.spread = fixture_create(&config, base_seed, job->comm, 1);
        test.whole = fixture_create(&config, base_seed, self, 1);
        gather_on_the_way(test.spread.device);
        job->failures += ranks_test_run(&test);
    }
    wb_comm_close(self);
    return NULL;
}

static void on_ranks(int n_ranks) {
    wb_comm *comms[RANKS];
    rank_job jobs[RANKS] = {{0}};
    pthread_t threads[RANKS];
    MUST(wb_comm_open_threads(n_ranks, comms));
    for (int r = 0; r < n_ranks; r++) {
        jobs[r].comm = comms[r];
        assert_int_equal(0, pthread_create(&threads[r], NULL, run_rank, &jobs[r]));
    }
    for (int r = 0; r < n_ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < n_ranks; r++) wb_comm_close(comms[r]);
    for (int r = 0; r < n_ranks; r++) assert_int_equal(0, jobs[r].failures);
    /* Inference and layers that are computed again keep none; what a backward reads is kept. */
    assert_true(n_not_kept > 0 && n_kept > 0);
}

static void test_on_one_rank(void **state) {
    (void)state;
    on_ranks(1);
}

static void test_on_two_ranks(void **state) {
    (void)state;
    on_ranks(RANKS);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    alarm(120);
    wb_device *cpu;
    MUST(wb_device_open_cpu(1, &cpu));
    cpu_forward = cpu->grouped_matmul;
    cpu_backward = cpu->grouped_matmul_backward;
    wb_device_close(cpu);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_on_one_rank),
        cmocka_unit_test(test_on_two_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
