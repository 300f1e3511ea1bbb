/* test_exchange_nccl.c - the NCCL adapter of the data plane on simulated GPUs and a simulated NCCL, with
 * threads as control plane: the common core, how it ends, and what NCCL itself does not do. A hang is a
 * failure by alarm. Needs nccl.h, and no GPU. */
#ifdef WB_HAVE_NCCL
#include "comm/exchange_dies.h"
#include "comm/nccl_simulated.h"
#include "support/test_seed.h"
#include "wb_check.h"
#include "wb_comm_nccl.h"

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static uint64_t seed;
static bool check_sizes;

typedef struct worker {
    pthread_t thread;
    wb_comm *control, *comm; /* comm: NULL before it is opened */
    int failures;
} worker;

/* Runs `body` on each rank's thread, which opens what it needs; returns the failures of all. */
static int on_threads(int ranks, void *(*body)(void *)) {
    wb_comm *comms[DEVICE_RANKS];
    worker workers[DEVICE_RANKS];
    int failures = 0;
    assert_int_equal(wb_comm_open_threads(ranks, comms), WB_OK);
    for (int r = 0; r < ranks; r++) {
        workers[r] = (worker){.control = comms[r]};
        assert_int_equal(wb_comm_set_timeout(comms[r], core_timeout), WB_OK);
        assert_int_equal(pthread_create(&workers[r].thread, NULL, body, &workers[r]), 0);
    }
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pthread_join(workers[r].thread, NULL), 0);
        failures += workers[r].failures;
    }
    return failures;
}

/* What a test before has lost is not this one's. */
static wb_comm *open_comm(worker *me) {
    sim_devices[wb_comm_rank(me->control)].lost = false;
    if (wb_comm_open_nccl(me->control, wb_comm_rank(me->control), check_sizes, &me->comm) == WB_OK)
        return me->comm;
    fprintf(stderr, "open: %s\n", wb_error_message());
    abort();
}

static void *close_comm(worker *me) {
    wb_comm_close(me->comm);
    wb_comm_close(me->control);
    return NULL;
}

static void *run_core(void *argument) {
    worker *me = argument;
    me->failures = exchange_core_run(open_comm(me), false, seed);
    return close_comm(me);
}

static void test_core(void **unused) {
    (void)unused;
    for (int checked = 0; checked < 2; checked++) {
        check_sizes = core_foreign_allocations = checked;
        for (int ranks = 1; ranks <= 4; ranks++) assert_int_equal(on_threads(ranks, run_core), 0);
    }
    check_sizes = core_foreign_allocations = false;
}

/* ---- how it ends --------------------------------------------------------------------------------- */

static size_t failing, way;

static void *run_failure(void *argument) {
    worker *me = argument;
    me->failures = exchange_failures[failing].body(open_comm(me), false, way);
    return close_comm(me);
}

static void every_way(int (*body)(wb_comm *, bool, size_t)) {
    for (failing = 0; exchange_failures[failing].body != body;) failing++;
    for (way = 0; way < exchange_failures[failing].ways; way++)
        for (int ranks = 2; ranks <= 3; ranks++) assert_int_equal(on_threads(ranks, run_failure), 0);
}

static void test_refuses(void **unused) {
    (void)unused;
    every_way(exchange_refuses);
}

static void test_mismatch(void **unused) {
    (void)unused;
    check_sizes = true;
    every_way(exchange_mismatch);
    every_way(exchange_unlisted);
    check_sizes = false;
}

static void test_rule_30_a_late_rank_over_nccl_is_named(void **unused) {
    (void)unused;
    every_way(exchange_late);
}

static void test_rule_30_a_rank_gives_up_over_nccl(void **unused) {
    (void)unused;
    every_way(exchange_gives_up);
}

static void *run_dying(void *argument) {
    worker *me = argument;
    me->failures = exchange_dies(open_comm(me), false, seed + way, (dying_way)failing);
    return close_comm(me);
}

static void test_rule_30_a_rank_fails_at_any_moment_over_nccl(void **unused) {
    (void)unused;
    static const size_t trials[DYING_WAYS] = {[GIVES_UP] = 12, [CLOSES] = 4, [LEAVES] = 3};
    for (failing = 0; failing < IS_KILLED; failing++)
        for (way = 0; way < trials[failing]; way++)
            assert_int_equal(on_threads(2 + (int)way % 3, run_dying), 0);
}

/* ---- what NCCL does not do ----------------------------------------------------------------------- */

/* Sizes that differ hang in NCCL: the wait ends all the same, and nothing is written outside. */
static void *run_hanging(void *argument) {
    worker *me = argument;
    device memory;
    exchange_core state = core_open(open_comm(me), &memory, false), *c = &state;
    char *const at = core_take(c, 1000);
    const wb_transfer transfer = {c->rank == 0 ? 1 : 0, c->rank == 0, at, c->rank == 0 ? 1000 : 900};
    uint64_t work;
    const double begin = core_now();
    CHECK_STATUS(c, WB_OK, wb_exchange_start_group(c->exchange, &transfer, 1, &work));
    CHECK_STATUS(c, WB_OK, wb_exchange_wait(c->exchange, work));
    CHECK(c, core_now() - begin < 0.5 * core_timeout); /* the host did not wait */
    CHECK_STATUS(c, WB_PEER, core_settle(c));
    CHECK(c, strstr(wb_error_message(), c->rank == 0 ? "rank 1" : "rank 0") != NULL);
    CHECK(c, core_now() - begin < 3 * core_timeout && core_intact(c, at, 1000));
    CHECK_STATUS(c, WB_OK, core_settle(c)); /* it is said once */
    me->failures = core_close_dead(c);
    return close_comm(me);
}

static void test_rule_30_nccl_hangs_on_the_stream(void **unused) {
    (void)unused;
    assert_int_equal(on_threads(2, run_hanging), 0);
}

/* The last rank's NCCL does not go on, in a way that the host sees: each rank ends, and says what. */
static void *run_faulty(void *argument) {
    worker *me = argument;
    device memory;
    exchange_core state = core_open(open_comm(me), &memory, false), *c = &state;
    const bool faulty = c->rank == c->ranks - 1;
    uint64_t works[2];
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(c->comm));
    if (faulty) sim_faults[c->rank] = (sim_fault)way;
    const double begin = core_now();
    wb_status found = start_two(c, 400, works);
    if (found == WB_OK) found = wait_two(c, works);
    CHECK_STATUS(c, WB_PEER, found);
    CHECK(c, core_now() - begin < 5 * core_timeout);
    if (faulty)
        CHECK(c,
              strstr(wb_error_message(), way == SIM_REMOTE_ERROR ? "remote error" : "group: waited") != NULL);
    CHECK_STATUS(c, WB_PEER, wb_exchange_start_group(c->exchange, NULL, 0, &works[0]));
    me->failures = core_close_dead(c);
    return close_comm(me);
}

static void test_rule_30_nccl_hangs_or_fails_on_the_host(void **unused) {
    (void)unused;
    for (way = SIM_NEVER_STARTS; way <= SIM_REMOTE_ERROR; way++) {
        assert_int_equal(on_threads(2, run_faulty), 0);
        memset(sim_faults, 0, sizeof sim_faults);
    }
}

/* ---- opening ------------------------------------------------------------------------------------- */

static wb_status expected_open;
static const char *expected_text;
static int gpu_of[DEVICE_RANKS];

/* Refused on all ranks, and the control plane goes on where nothing has failed. */
static void *open_refused(void *argument) {
    worker *me = argument;
    const int rank = wb_comm_rank(me->control);
    wb_comm *comm = NULL;
    /* The thread's GPU is what the simulation knows it by. */
    if (wb_gpu_use(rank) != WB_OK) abort();
    const wb_status status = wb_comm_open_nccl(me->control, gpu_of[rank], false, &comm);
    me->failures = comm || status != expected_open || !strstr(wb_error_message(), expected_text);
    if (me->failures > 0) fprintf(stderr, "rank %d: %d, %s\n", rank, (int)status, wb_error_message());
    me->failures += expected_open == WB_UNSUPPORTED && wb_comm_barrier(me->control) != WB_OK;
    wb_comm_close(me->control);
    return NULL;
}

static void expect_refused(wb_status status, const char *text) {
    expected_open = status;
    expected_text = text;
    assert_int_equal(on_threads(3, open_refused), 0);
    for (int r = 0; r < DEVICE_RANKS; r++) gpu_of[r] = r;
    memset(sim_faults, 0, sizeof sim_faults);
}

static void test_open_refuses(void **unused) {
    (void)unused;
    for (int r = 0; r < DEVICE_RANKS; r++) gpu_of[r] = r;
    gpu_of[2] = 0;
    expect_refused(WB_UNSUPPORTED, "ranks 0 and 2 have the same GPU");
    gpu_of[1] = 99;
    expect_refused(WB_UNSUPPORTED, "rank 1: GPU 99: this machine has 8");
    sim_faults[2] = SIM_NO_NCCL;
    expect_refused(WB_UNSUPPORTED, "rank 2: NCCL: libnccl.so.2");
    sim_faults[1] = SIM_NEVER_OPENS;
    expect_refused(WB_PEER, "NCCL: open: waited");
    wb_comm *comm = NULL;
    assert_int_equal(wb_comm_open_nccl(NULL, 0, false, &comm), WB_INVALID_ARGUMENT);
}

/* Each allocation of an open fails once, on one rank: the others are told, and nothing is kept. */
static void *open_without_memory(void *argument) {
    worker *me = argument;
    const int rank = wb_comm_rank(me->control);
    for (long n = 0;; n++) {
        wb_comm *comm = NULL;
        wb_exchange *exchange = NULL;
        device memory = device_of(rank, false);
        const wb_exchange_memory functions = device_memory(&memory);
        if (rank == 1) alloc_fail_this_thread_at(n);
        wb_status status = wb_comm_open_nccl(me->control, rank, false, &comm);
        if (status == WB_OK) status = wb_exchange_open(comm, &functions, &exchange);
        const bool failed = rank == 1 && alloc_fail_this_thread_failed();
        uint64_t any = failed;
        wb_exchange_close(exchange);
        wb_comm_close(comm);
        me->failures += wb_comm_all_reduce_max_u64(me->control, &any) != WB_OK;
        if (any == 0) {
            me->failures += status != WB_OK || n < 5;
            break;
        }
        if (status == (rank == 1 ? WB_OUT_OF_MEMORY : WB_PEER)) continue;
        fprintf(stderr, "allocation %ld, rank %d: %d, %s\n", n, rank, (int)status, wb_error_message());
        me->failures++;
    }
    wb_comm_close(me->control);
    return NULL;
}

static void test_open_without_memory(void **unused) {
    (void)unused;
    if (!ALLOC_FAIL_WORKS) skip();
    assert_int_equal(on_threads(3, open_without_memory), 0);
}

/* Memory that the host may touch, or that cannot be lost, is not for a stream that nobody waits for. */
static void *refuse_memory(void *argument) {
    worker *me = argument;
    device d = device_of(wb_comm_rank(me->control), false);
    wb_comm *comm = open_comm(me);
    wb_exchange *exchange = NULL;
    wb_exchange_memory memory = device_memory(&d);
    memory.lose = NULL;
    me->failures += wb_exchange_open(comm, &memory, &exchange) != WB_INVALID_ARGUMENT;
    me->failures += !strstr(wb_error_message(), "lose is NULL");
    memory = device_memory(&d);
    memory.host_access = true;
    me->failures += wb_exchange_open(comm, &memory, &exchange) != WB_INVALID_ARGUMENT || exchange;
    me->failures += strcmp(wb_comm_name(comm), "nccl") != 0;
    return close_comm(me);
}

static void test_refused_memory(void **unused) {
    (void)unused;
    assert_int_equal(on_threads(2, refuse_memory), 0);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_exchange_nccl: seed %" PRIu64 "\n", seed);
    alarm(300);
    device_arena_open();
    device_on_streams = sim_memory;
    core_timeout = 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_core),
                                       cmocka_unit_test(test_refuses),
                                       cmocka_unit_test(test_mismatch),
                                       cmocka_unit_test(test_rule_30_a_late_rank_over_nccl_is_named),
                                       cmocka_unit_test(test_rule_30_a_rank_gives_up_over_nccl),
                                       cmocka_unit_test(test_rule_30_a_rank_fails_at_any_moment_over_nccl),
                                       cmocka_unit_test(test_rule_30_nccl_hangs_on_the_stream),
                                       cmocka_unit_test(test_rule_30_nccl_hangs_or_fails_on_the_host),
                                       cmocka_unit_test(test_open_refuses),
                                       cmocka_unit_test(test_open_without_memory),
                                       cmocka_unit_test(test_refused_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else
#include <stdio.h>

int main(void) {
    printf("skip: built without NCCL\n");
    return 77;
}
#endif
