/* test_exchange.c - the data planes of one process: self, and threads at several rank counts. A hang is a
 * failure by alarm. */
#include "comm/exchange_failures.h"
#include "support/alloc_fail.h"

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

/* ---- opening ------------------------------------------------------------------------------------- */

/* Each allocation of an open fails once, on one rank: the others are told, and nothing is kept. */
static int poor_rank;

static void *open_without_memory(void *argument) {
    worker *me = argument;
    const int rank = wb_comm_rank(me->comm);
    device memory = device_of(rank, true);
    const wb_exchange_memory functions = device_memory(&memory);
    char name[32];
    snprintf(name, sizeof name, "rank %d failed", poor_rank);
    for (long n = 0;; n++) {
        wb_exchange *exchange = NULL;
        if (rank == poor_rank) alloc_fail_this_thread_at(n);
        const wb_status status = wb_exchange_open(me->comm, &functions, &exchange);
        const bool failed = rank == poor_rank && alloc_fail_this_thread_failed();
        wb_exchange_close(exchange);
        uint64_t any = failed;
        me->failures += wb_comm_all_reduce_max_u64(me->comm, &any) != WB_OK;
        if (any == 0) {
            me->failures += status != WB_OK || n < 3;
            break;
        }
        me->failures += status != (rank == poor_rank ? WB_OUT_OF_MEMORY : WB_PEER);
        me->failures += exchange || (rank != poor_rank && !strstr(wb_error_message(), name));
    }
    wb_comm_close(me->comm);
    return NULL;
}

static void test_open_without_memory(void **unused) {
    (void)unused;
    if (!ALLOC_FAIL_WORKS) skip();
    for (poor_rank = 0; poor_rank < 3; poor_rank++)
        assert_int_equal(on_threads(3, true, open_without_memory), 0);
}

static wb_status open_self_once(void) {
    device memory = device_of(0, true);
    const wb_exchange_memory functions = device_memory(&memory);
    wb_comm *comm = NULL;
    wb_exchange *exchange = NULL;
    wb_status status = wb_comm_open_self(&comm);
    if (status == WB_OK) status = wb_exchange_open(comm, &functions, &exchange);
    if (status == WB_OK) status = wb_exchange_reserve(exchange, 100);
    wb_exchange_close(exchange);
    wb_comm_close(comm);
    return status;
}

static void test_every_allocation(void **unused) {
    (void)unused;
    if (!ALLOC_FAIL_WORKS) skip();
    long live = 0;
    bool failed = true;
    for (long n = 0; failed; n++) {
        alloc_fail_arm(n, false);
        const wb_status status = open_self_once();
        failed = alloc_fail_disarm(&live);
        assert_int_equal(status, failed ? WB_OUT_OF_MEMORY : WB_OK);
        assert_int_equal(live, 0);
    }
}

static void expect_open_refused(wb_comm *comm, wb_exchange_memory memory, wb_status expected,
                                const char *text) {
    wb_exchange *exchange = NULL;
    assert_int_equal(wb_exchange_open(comm, &memory, &exchange), expected);
    assert_non_null(strstr(wb_error_message(), text));
    assert_null(exchange);
}

static void test_open_refuses(void **unused) {
    (void)unused;
    device d = device_of(0, true);
    wb_comm *comm = NULL;
    wb_exchange_memory memory = device_memory(&d);
    assert_int_equal(wb_comm_open_self(&comm), WB_OK);
    memory.size--;
    expect_open_refused(comm, memory, WB_INVALID_ARGUMENT, "memory of");
    memory = device_memory(&d);
    memory.add = NULL;
    expect_open_refused(comm, memory, WB_INVALID_ARGUMENT, "add is NULL");
    wb_exchange_close(NULL);
    wb_comm_close(comm);
}

/* ---- how it ends --------------------------------------------------------------------------------- */

static size_t failing, way;

static void *run_failure(void *argument) {
    worker *me = argument;
    me->failures = exchange_failures[failing].body(me->comm, me->host_access, way);
    wb_comm_close(me->comm);
    return NULL;
}

static void every_way(int (*body)(wb_comm *, bool, size_t)) {
    for (failing = 0; exchange_failures[failing].body != body;) failing++;
    for (way = 0; way < exchange_failures[failing].ways; way++) {
        assert_int_equal(on_threads(2 + (int)way % 3, way % 2 == 0, run_failure), 0);
        assert_int_equal(on_threads(2 + (int)way % 2, way % 2 != 0, run_failure), 0);
    }
}

static void test_refuses(void **unused) {
    (void)unused;
    every_way(exchange_refuses);
}

static void test_mismatch(void **unused) {
    (void)unused;
    every_way(exchange_mismatch);
    every_way(exchange_unlisted);
}

static void test_rule_30_a_late_rank_of_an_exchange_is_named(void **unused) {
    (void)unused;
    every_way(exchange_late);
}

static void test_rule_30_a_rank_gives_up_in_an_exchange(void **unused) {
    (void)unused;
    every_way(exchange_gives_up);
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    printf("test_exchange: seed %" PRIu64 "\n", seed);
    alarm(240);
    device_arena_open();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_open_without_memory),
        cmocka_unit_test(test_every_allocation),
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_rule_30_a_late_rank_of_an_exchange_is_named),
        cmocka_unit_test(test_rule_30_a_rank_gives_up_in_an_exchange),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
