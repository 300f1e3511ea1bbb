/* rebalance_threads.h - the manager's core on ranks that are threads, and loads for it. */
#ifndef WB_REBALANCE_THREADS_H
#define WB_REBALANCE_THREADS_H

#include "rebalance_core.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>

static uint64_t base_seed;

typedef struct job {
    wb_comm *comm;
    uint64_t seed;
    int (*body)(wb_comm *comm, uint64_t seed);
    int failures;
} job;

static inline void *run_job(void *arg) {
    job *j = arg;
    j->failures = j->body(j->comm, j->seed);
    return NULL;
}

static inline void on_ranks(int n, int (*body)(wb_comm *comm, uint64_t seed)) {
    wb_comm *comms[MAX_CORE_RANKS];
    pthread_t threads[MAX_CORE_RANKS];
    job jobs[MAX_CORE_RANKS];
    assert_int_equal(wb_comm_open_threads(n, comms), WB_OK);
    for (int r = 0; r < n; r++) {
        jobs[r] = (job){comms[r], base_seed, body, 0};
        assert_int_equal(pthread_create(&threads[r], NULL, run_job, &jobs[r]), 0);
    }
    for (int r = 0; r < n; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < n; r++) wb_comm_close(comms[r]);
    for (int r = 0; r < n; r++) assert_int_equal(jobs[r].failures, 0);
}

/* Layer 2 alone, on experts that lie together at first. */
static inline void crowded_pass(core *c, uint64_t *state) {
    double weights[CORE_EXPERTS];
    for (int e = 0; e < CORE_EXPERTS; e++) weights[e] = e >= 8 && e < 12 ? 30 : 1;
    core_record(c, 2, 200, weights, state);
}

/* Reads the seed of argument 1, or takes one, and prints it. A hang is a failure. */
static inline void rebalance_begin(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    alarm(300);
}

#endif
