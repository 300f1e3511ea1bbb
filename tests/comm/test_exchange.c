/* test_exchange.c - the data planes of one process: self, and threads at several rank counts. A hang is a
 * failure by alarm. */
#include "comm/exchange_core.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static uint64_t seed;

typedef struct worker {
    pthread_t thread;
    wb_comm *comm;
    bool host_access;
    int failures;
} worker;

/* Runs `body` on each rank's thread; returns the failures of all. */
static int on_threads(int ranks, bool host_access, void *(*body)(void *)) {
    wb_comm *comms[DEVICE_RANKS];
    worker workers[DEVICE_RANKS];
    int failures = 0;
    assert_int_equal(wb_comm_open_threads(ranks, comms), WB_OK);
    for (int r = 0; r < ranks; r++) {
        workers[r] = (worker){.comm = comms[r], .host_access = host_access};
        assert_int_equal(pthread_create(&workers[r].thread, NULL, body, &workers[r]), 0);
    }
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pthread_join(workers[r].thread, NULL), 0);
        failures += workers[r].failures;
    }
    return failures;
}

static void *run_core(void *argument) {
    worker *me = argument;
    me->failures = exchange_core_run(me->comm, me->host_access, seed);
    wb_comm_close(me->comm);
    return NULL;
}

static void test_self(void **unused) {
    (void)unused;
    wb_comm *comm = NULL;
    assert_int_equal(wb_comm_open_self(&comm), WB_OK);
    assert_int_equal(exchange_core_run(comm, true, seed), 0);
    assert_int_equal(exchange_core_run(comm, false, seed), 0);
    wb_comm_close(comm);
}

static void test_threads(void **unused) {
    (void)unused;
    for (int ranks = 1; ranks <= 4; ranks++) {
        assert_int_equal(on_threads(ranks, true, run_core), 0);
        assert_int_equal(on_threads(ranks, false, run_core), 0);
    }
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    printf("test_exchange: seed %" PRIu64 "\n", seed);
    alarm(240);
    device_arena_open();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
