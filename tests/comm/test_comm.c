/* test_comm.c - the transports of one process: self, and threads at several rank counts. What only threads
 * can do, a rank that gives up, is tested here; a hang is a failure by alarm. */
#include "comm_core_sizes.h"
#include "comm_state.h"
#include "support/alloc_fail.h"
#include "support/test_seed.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define MAX_RANKS 7

static uint64_t seed;

typedef struct worker {
    pthread_t thread;
    wb_comm *comm;
    int failures;
} worker;

/* Runs `body` on each rank's thread; returns the failures of all. */
static int on_threads(int ranks, void *(*body)(void *)) {
    wb_comm *comms[MAX_RANKS];
    worker workers[MAX_RANKS];
    int failures = 0;
    assert_int_equal(wb_comm_open_threads(ranks, comms), WB_OK);
    for (int r = 0; r < ranks; r++) {
        workers[r] = (worker){.comm = comms[r], .failures = 0};
        assert_int_equal(pthread_create(&workers[r].thread, NULL, body, &workers[r]), 0);
    }
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pthread_join(workers[r].thread, NULL), 0);
        failures += workers[r].failures;
    }
    return failures;
}

static void test_self(void **unused) {
    (void)unused;
    wb_comm *comm = NULL;
    assert_int_equal(wb_comm_open_self(&comm), WB_OK);
    assert_int_equal(wb_comm_rank(comm), 0);
    assert_int_equal(wb_comm_size(comm), 1);
    assert_int_equal(comm_core_run(comm, seed), 0);
    assert_int_equal(comm_core_sizes(comm, seed), 0);
    wb_comm_abort(comm);
    wb_comm_close(comm);
    wb_comm_close(NULL);
}

static void *run_core(void *argument) {
    worker *me = argument;
    me->failures = comm_core_run(me->comm, seed) + comm_core_sizes(me->comm, seed);
    wb_comm_close(me->comm);
    return NULL;
}

static void test_threads(void **unused) {
    (void)unused;
    const int sizes[] = {1, 2, 3, 4, MAX_RANKS};
    for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++)
        assert_int_equal(on_threads(sizes[k], run_core), 0);
}

static void test_open_refuses(void **unused) {
    (void)unused;
    wb_comm *comm = (wb_comm *)&seed;
    assert_int_equal(wb_comm_open_threads(0, &comm), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_comm_open_threads(-3, &comm), WB_INVALID_ARGUMENT);
    assert_ptr_equal(comm, (wb_comm *)&seed);
}

/* ---- sums without memory ------------------------------------------------------------------------- */

/* The n elements of every rank are its rank + 1. Negative zeros tell a sum in pieces that begins with 0
 * instead of rank 0's element. */
static int sum_is_right(wb_comm *comm, size_t n) {
    const int ranks = wb_comm_size(comm);
    double *values = take(n * sizeof *values);
    for (size_t i = 0; i < n; i++) values[i] = i % 3 == 0 ? -0.0 : (double)(wb_comm_rank(comm) + 1);
    alloc_fail_this_thread(true);
    int failures = wb_comm_all_reduce_f64(comm, values, n) != WB_OK;
    alloc_fail_this_thread(false);
    for (size_t i = 0; i < n; i++) {
        const double expected = i % 3 == 0 ? -0.0 : (double)(ranks * (ranks + 1) / 2);
        failures += memcmp(&values[i], &expected, sizeof expected) != 0;
    }
    free(values);
    return failures;
}

/* What is open needs no memory for a sum of any size; and one element at a time, as among so many ranks that
 * the scratch holds no more. */
static void *sum_without_memory(void *argument) {
    worker *me = argument;
    const size_t sizes[] = {0, 1, 2, 5, 1000, ((size_t)1 << 18) + 1, ((size_t)5 << 18) + 3};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++)
        me->failures += sum_is_right(me->comm, sizes[k]);
    const size_t bytes = me->comm->scratch_bytes;
    me->comm->scratch_bytes = (size_t)wb_comm_size(me->comm) * sizeof(double);
    me->failures += sum_is_right(me->comm, 5);
    me->comm->scratch_bytes = bytes;
    wb_comm_close(me->comm);
    return NULL;
}

static void test_sums_need_no_memory(void **unused) {
    (void)unused;
    if (!ALLOC_FAIL_WORKS) skip();
    for (int ranks = 1; ranks <= 4; ranks++) assert_int_equal(on_threads(ranks, sum_without_memory), 0);
}

/* ---- a rank gives up ----------------------------------------------------------------------------- */

/* Collectives with buffers that die with each call: a peer that reads one after its owner was sent home is
 * seen by the sanitizers. */
static wb_status busy_step(wb_comm *comm, int step) {
    const size_t n = (size_t)(wb_mix64(seed + (uint64_t)step) % 40000);
    float *values = take(n * sizeof(*values));
    for (size_t i = 0; i < n; i++) values[i] = 1.0f;
    wb_status status = wb_comm_all_reduce_f32(comm, values, n);
    if (status == WB_OK)
        status = wb_comm_broadcast(comm, values, n * sizeof(*values), step % wb_comm_size(comm));
    free(values);
    return status;
}

/* Rank 1 aborts at its step `last_step`; the others go on until told. */
static int last_step;

static void *abort_midway(void *argument) {
    worker *me = argument;
    wb_status status = WB_OK;
    for (int step = 0; status == WB_OK; step++) {
        if (wb_comm_rank(me->comm) == 1 && step == last_step) wb_comm_abort(me->comm);
        status = busy_step(me->comm, step);
    }
    me->failures += status != WB_PEER;
    me->failures += !strstr(wb_error_message(), "rank 1 gave up");
    me->failures += wb_comm_barrier(me->comm) != WB_PEER; /* later calls too */
    me->failures += wb_comm_agree(me->comm, WB_OK) != WB_PEER;
    wb_fail(WB_IO, "mine");
    me->failures += wb_comm_agree(me->comm, WB_IO) != WB_IO;
    me->failures += strcmp(wb_error_message(), "mine") != 0;
    wb_comm_close(me->comm);
    return NULL;
}

static void test_abort(void **unused) {
    (void)unused;
    for (int ranks = 2; ranks <= MAX_RANKS; ranks++)
        for (last_step = 0; last_step < 5; last_step++) assert_int_equal(on_threads(ranks, abort_midway), 0);
}

/* Rank 1 gives up while the others certainly wait for it. */
static void *abort_late(void *argument) {
    worker *me = argument;
    if (wb_comm_rank(me->comm) == 1) {
        nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
        wb_comm_abort(me->comm);
    } else {
        me->failures += wb_comm_barrier(me->comm) != WB_PEER;
    }
    wb_comm_close(me->comm);
    return NULL;
}

static void test_abort_wakes(void **unused) {
    (void)unused;
    assert_int_equal(on_threads(4, abort_late), 0);
}

static void *until_told(void *argument) {
    worker *me = argument;
    wb_status status = WB_OK;
    for (int step = 0; status == WB_OK; step++) status = busy_step(me->comm, step);
    me->failures += status != WB_PEER;
    return NULL;
}

/* A watchdog aborts for rank 0 at any point of a call: the peers must not go home while they are read. */
static void test_abort_from_outside(void **unused) {
    (void)unused;
    wb_comm *comms[MAX_RANKS];
    worker workers[MAX_RANKS];
    for (int trial = 0; trial < 40; trial++) {
        assert_int_equal(wb_comm_open_threads(3, comms), WB_OK);
        for (int r = 0; r < 3; r++) {
            workers[r] = (worker){.comm = comms[r], .failures = 0};
            assert_int_equal(pthread_create(&workers[r].thread, NULL, until_told, &workers[r]), 0);
        }
        nanosleep(&(struct timespec){.tv_nsec = (long)(wb_mix64(seed + (uint64_t)trial) % 4000000)}, NULL);
        wb_comm_abort(comms[0]);
        for (int r = 0; r < 3; r++) {
            assert_int_equal(pthread_join(workers[r].thread, NULL), 0);
            assert_int_equal(workers[r].failures, 0);
        }
        for (int r = 0; r < 3; r++) wb_comm_close(comms[r]);
    }
}

/* Rank 1 closes without a word. */
static void *close_early(void *argument) {
    worker *me = argument;
    if (wb_comm_rank(me->comm) != 1) me->failures += wb_comm_barrier(me->comm) != WB_PEER;
    wb_comm_close(me->comm);
    return NULL;
}

static void test_close_is_giving_up(void **unused) {
    (void)unused;
    assert_int_equal(on_threads(4, close_early), 0);
}

/* The common core of failures, in each call. */
static int (*failing)(wb_comm *, size_t);
static size_t waiting_call;

static void *run_failing(void *argument) {
    worker *me = argument;
    me->failures += failing(me->comm, waiting_call);
    wb_comm_close(me->comm);
    return NULL;
}

static void every_case(int (*body)(wb_comm *, size_t), size_t n) {
    failing = body;
    for (waiting_call = 0; waiting_call < n; waiting_call++)
        assert_int_equal(on_threads(2 + (int)waiting_call % 3, run_failing), 0);
}

static void test_rule_30_a_late_rank_is_named(void **unused) {
    (void)unused;
    every_case(comm_core_late, CORE_WAITS);
}

static void test_rule_30_a_rank_gives_up_with_its_reason(void **unused) {
    (void)unused;
    every_case(comm_core_gives_up, CORE_WAITS);
}

static void test_broadcast_sizes(void **unused) {
    (void)unused;
    every_case(comm_core_broadcast_sizes, CORE_ODD_SIZES);
}

/* Rank 1 ends without a word, and without closing: its communicator is closed when the others have left. */
static void *vanish(void *argument) {
    worker *me = argument;
    if (wb_comm_rank(me->comm) == 1) return NULL;
    me->failures += wb_comm_set_timeout(me->comm, 0.3) != WB_OK;
    me->failures += wb_comm_barrier(me->comm) != WB_PEER;
    me->failures += !strstr(wb_error_message(), "rank 1 did not come");
    return NULL;
}

static void test_rule_30_a_vanished_rank_is_named(void **unused) {
    (void)unused;
    wb_comm *comms[3];
    worker workers[3];
    assert_int_equal(wb_comm_open_threads(3, comms), WB_OK);
    for (int r = 0; r < 3; r++) {
        workers[r] = (worker){.comm = comms[r]};
        assert_int_equal(pthread_create(&workers[r].thread, NULL, vanish, &workers[r]), 0);
    }
    for (int r = 0; r < 3; r++) {
        assert_int_equal(pthread_join(workers[r].thread, NULL), 0);
        assert_int_equal(workers[r].failures, 0);
    }
    for (int r = 0; r < 3; r++) wb_comm_close(comms[r]);
}

/* Ranks that make different calls all learn it. */
static void *different_calls(void *argument) {
    worker *me = argument;
    unsigned char byte = 0;
    const wb_status found =
        wb_comm_rank(me->comm) == 1 ? wb_comm_broadcast(me->comm, &byte, 1, 0) : wb_comm_barrier(me->comm);
    me->failures += found != WB_MISMATCH;
    me->failures += !strstr(wb_error_message(), "rank 1:");
    me->failures += wb_comm_barrier(me->comm) != WB_OK;
    wb_comm_close(me->comm);
    return NULL;
}

static void test_different_calls(void **unused) {
    (void)unused;
    assert_int_equal(on_threads(3, different_calls), 0);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_comm: seed %" PRIu64 "\n", seed);
    alarm(120);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_sums_need_no_memory),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_abort_wakes),
        cmocka_unit_test(test_abort_from_outside),
        cmocka_unit_test(test_close_is_giving_up),
        cmocka_unit_test(test_rule_30_a_late_rank_is_named),
        cmocka_unit_test(test_rule_30_a_rank_gives_up_with_its_reason),
        cmocka_unit_test(test_rule_30_a_vanished_rank_is_named),
        cmocka_unit_test(test_broadcast_sizes),
        cmocka_unit_test(test_different_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
