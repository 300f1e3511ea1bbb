/* test_exchange.c - the data planes of one process: self, and threads at several rank counts. A hang is a
 * failure by alarm. */
#include "comm/exchange_dies.h"
#include "support/alloc_fail.h"
#include "support/test_seed.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
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
    memory.host_alloc = NULL;
    expect_open_refused(comm, memory, WB_INVALID_ARGUMENT, "host_free is NULL");
    memory = device_memory(&d);
    memory.host_free = NULL;
    expect_open_refused(comm, memory, WB_INVALID_ARGUMENT, "host_free is NULL");
    memory = device_memory(&d);
    memory.add = NULL;
    expect_open_refused(comm, memory, WB_INVALID_ARGUMENT, "add is NULL");
    wb_exchange_close(NULL);
    wb_comm_close(comm);
}

/* A transport of one's own, which is asked for nothing but its name. */
static wb_status own_bytes(wb_comm *comm, void *buffer, size_t bytes, int root) {
    (void)comm, (void)buffer, (void)bytes, (void)root;
    return WB_OK;
}

static wb_status own_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    (void)comm, (void)send, (void)bytes, (void)recv;
    return WB_OK;
}

static wb_status own_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                  const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                  const size_t *recv_offsets) {
    (void)comm, (void)send, (void)send_bytes, (void)send_offsets;
    (void)recv, (void)recv_bytes, (void)recv_offsets;
    return WB_OK;
}

static wb_status own_barrier(wb_comm *comm) {
    (void)comm;
    return WB_OK;
}

static void own_abort(wb_comm *comm) {
    (void)comm;
}

static void test_own_transport_without_a_data_plane(void **unused) {
    (void)unused;
    const wb_comm_ops ops = {.size = sizeof ops,
                             .name = "own",
                             .broadcast = own_bytes,
                             .all_gather = own_gather,
                             .all_to_all_v = own_all_to_all_v,
                             .barrier = own_barrier,
                             .abort = own_abort,
                             .close = wb_comm_delete};
    device d = device_of(0, true);
    wb_comm *comm = NULL;
    assert_int_equal(wb_comm_new(&ops, 0, 1, NULL, &comm), WB_OK);
    expect_open_refused(comm, device_memory(&d), WB_UNSUPPORTED, "transport own has no data plane");
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
    every_way(exchange_further);
}

static void test_rule_30_a_rank_gives_up_in_an_exchange(void **unused) {
    (void)unused;
    every_way(exchange_gives_up);
}

/* Rank 0 has no part in what ranks 1 and 2 do, and closes before they have done it. */
static atomic_bool first_has_closed;

static void *close_early(void *argument) {
    worker *me = argument;
    device memory;
    exchange_core state = core_open(me->comm, &memory, true), *c = &state;
    char *at = core_take(c, 100);
    const wb_transfer transfer = {c->rank == 1 ? 2 : 1, c->rank == 2, at, 100};
    uint64_t work;
    while (c->rank == 2 && !first_has_closed) nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    CHECK_STATUS(c, WB_OK,
                 wb_exchange_start_group(c->exchange, c->rank > 0 ? &transfer : NULL, c->rank > 0, &work));
    CHECK_STATUS(c, WB_OK, wb_exchange_wait(c->exchange, work));
    /* The next one needs rank 0. */
    const wb_transfer from_first = {0, true, at, 100};
    if (c->rank == 1) {
        CHECK_STATUS(c, WB_OK, wb_exchange_start_group(c->exchange, &from_first, 1, &work));
        CHECK_STATUS(c, WB_PEER, wb_exchange_wait(c->exchange, work));
        CHECK(c, strstr(wb_error_message(), "rank 0 gave up: it closed its communicator") != NULL);
    }
    wb_exchange_close(c->exchange);
    me->failures = c->failures;
    const bool first = c->rank == 0;
    wb_comm_close(me->comm);
    if (first) first_has_closed = true;
    return NULL;
}

static void test_a_rank_that_is_done_may_close_before_the_others(void **unused) {
    (void)unused;
    first_has_closed = false;
    assert_int_equal(on_threads(3, true, close_early), 0);
}

/* The seeds of the trials follow each other, and the failing one is printed. */
static void *run_dying(void *argument) {
    worker *me = argument;
    me->failures = exchange_dies(me->comm, me->host_access, seed + way, (dying_way)failing);
    wb_comm_close(me->comm);
    return NULL;
}

static void test_rule_30_a_rank_fails_at_any_moment_of_an_exchange(void **unused) {
    (void)unused;
    static const size_t trials[DYING_WAYS] = {[GIVES_UP] = 30, [CLOSES] = 6, [LEAVES] = 4};
    for (failing = 0; failing < IS_KILLED; failing++)
        for (way = 0; way < trials[failing]; way++)
            assert_int_equal(on_threads(2 + (int)way % 3, way % 2 == 0, run_dying), 0);
}

/* ---- memory that is taken back ------------------------------------------------------------------- */

/* Whether a rank's exchange has ended, and with it the time in which others may read its memory. */
static atomic_bool gone[DEVICE_RANKS];
static atomic_int read_after;

static wb_status slow_copy(void *context, void *to, const void *from, size_t bytes) {
    const size_t owner = (size_t)((const char *)from - device_arena.shadow) / DEVICE_BYTES;
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    const wb_status status = device_copy(context, to, from, bytes);
    device_finish(context);
    if (gone[owner]) read_after++;
    return status;
}

static void *until_told(void *argument) {
    worker *me = argument;
    const int rank = wb_comm_rank(me->comm);
    device memory = device_of(rank, true);
    wb_exchange_memory functions = device_memory(&memory);
    functions.copy = slow_copy;
    exchange_core state = {
        .comm = me->comm, .memory = &memory, .rank = (size_t)rank, .ranks = (size_t)wb_comm_size(me->comm)};
    exchange_core *c = &state;
    wb_status status = wb_exchange_open(me->comm, &functions, &c->exchange);
    while (status == WB_OK) {
        uint64_t works[2];
        memory.used = 0;
        status = start_two(c, 4000, works);
        if (status == WB_OK) status = wait_two(c, works);
    }
    gone[rank] = true;
    me->failures += status != WB_PEER;
    wb_exchange_close(c->exchange);
    return NULL;
}

/* Some copies take long: a rank that copies misses what others send meanwhile, unless it looks again. */
static wb_status uneven_copy(void *context, void *to, const void *from, size_t bytes) {
    static _Thread_local uint64_t copies;
    const uint64_t h = wb_mix64(seed + (uint64_t)(uintptr_t)to + copies++);
    if (h % 3 == 0) core_sleep(3e-3);
    return device_copy(context, to, from, bytes);
}

static void *exchange_unevenly(void *argument) {
    worker *me = argument;
    const int rank = wb_comm_rank(me->comm);
    device memory = device_of(rank, true);
    wb_exchange_memory functions = device_memory(&memory);
    functions.copy = uneven_copy;
    exchange_core state = {
        .comm = me->comm, .memory = &memory, .rank = (size_t)rank, .ranks = (size_t)wb_comm_size(me->comm)};
    exchange_core *c = &state;
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(me->comm, 5));
    wb_status status = wb_exchange_open(me->comm, &functions, &c->exchange);
    for (int round = 0; round < 60 && status == WB_OK; round++) {
        uint64_t works[2];
        memory.used = 0;
        core_sleep((double)(wb_mix64(seed + (uint64_t)(round * 8 + rank)) % 4) * 1e-3);
        status = start_two(c, 64, works);
        if (status == WB_OK) status = wait_two(c, works);
        /* The next start would wake who waits. */
        if (status == WB_OK) status = wb_comm_barrier(me->comm);
    }
    CHECK_STATUS(c, WB_OK, status);
    wb_exchange_close(c->exchange);
    me->failures += c->failures;
    wb_comm_barrier(me->comm);
    wb_comm_close(me->comm);
    return NULL;
}

static void test_what_comes_during_a_copy_is_seen(void **unused) {
    (void)unused;
    assert_int_equal(on_threads(3, true, exchange_unevenly), 0);
    assert_int_equal(on_threads(4, true, exchange_unevenly), 0);
}

/* A watchdog ends it at any point of a copy: nobody goes home while its memory is read. */
static void test_memory_is_not_read_after_the_end(void **unused) {
    (void)unused;
    wb_comm *comms[3];
    worker workers[3];
    for (int trial = 0; trial < 20; trial++) {
        memset(gone, 0, sizeof gone);
        assert_int_equal(wb_comm_open_threads(3, comms), WB_OK);
        for (int r = 0; r < 3; r++) {
            workers[r] = (worker){.comm = comms[r]};
            assert_int_equal(pthread_create(&workers[r].thread, NULL, until_told, &workers[r]), 0);
        }
        const long pause = 10000000 + (long)(wb_mix64(seed + (uint64_t)trial) % 10000000);
        nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
        wb_comm_abort(comms[trial % 3]);
        for (int r = 0; r < 3; r++) {
            assert_int_equal(pthread_join(workers[r].thread, NULL), 0);
            assert_int_equal(workers[r].failures, 0);
        }
        for (int r = 0; r < 3; r++) wb_comm_close(comms[r]);
    }
    assert_int_equal(read_after, 0);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_exchange: seed %" PRIu64 "\n", seed);
    alarm(240);
    device_arena_open();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_open_without_memory),
        cmocka_unit_test(test_every_allocation),
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_own_transport_without_a_data_plane),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_rule_30_a_late_rank_of_an_exchange_is_named),
        cmocka_unit_test(test_rule_30_a_rank_gives_up_in_an_exchange),
        cmocka_unit_test(test_a_rank_that_is_done_may_close_before_the_others),
        cmocka_unit_test(test_rule_30_a_rank_fails_at_any_moment_of_an_exchange),
        cmocka_unit_test(test_what_comes_during_a_copy_is_seen),
        cmocka_unit_test(test_memory_is_not_read_after_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
