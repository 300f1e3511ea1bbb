/* exchange_failures.h - how a data plane ends: sizes that disagree, ranks that are late, give up, close early
 * or have a broken device, and calls that are refused. One core for threads and MPI.
 *
 * Each body takes a communicator of its own, of at least two ranks, and whether the host may touch the
 * memory; but for the refused calls it is dead at the end. */
#ifndef EXCHANGE_FAILURES_H
#define EXCHANGE_FAILURES_H

#include "comm/exchange_core.h"

#include <time.h>

static double core_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void core_sleep(double seconds) {
    const struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
}

/* How long a rank waits that nobody ends; where failures are not told at once, tests take as long. */
static double core_timeout = 20;

static exchange_core core_open(wb_comm *comm, device *memory, bool host_access) {
    *memory = device_of(wb_comm_rank(comm), host_access);
    const wb_exchange_memory functions = device_memory(memory);
    exchange_core state = {.comm = comm,
                           .memory = memory,
                           .rank = (size_t)wb_comm_rank(comm),
                           .ranks = (size_t)wb_comm_size(comm)};
    CHECK_STATUS(&state, WB_OK, wb_comm_set_timeout(comm, core_timeout));
    if (!CHECK_STATUS(&state, WB_OK, wb_exchange_open(comm, &functions, &state.exchange))) abort();
    return state;
}

/* PEER, and `what` of the last rank in the message. */
static void core_last_rank(exchange_core *c, wb_status found, const char *what) {
    char text[128];
    snprintf(text, sizeof text, "rank %zu %s", c->ranks - 1, what);
    CHECK_STATUS(c, WB_PEER, found);
    CHECK(c, strstr(wb_error_message(), text) != NULL);
}

/* PEER, since `rank` did not come. On streams nobody tells which one of several. */
static void core_late_rank(exchange_core *c, wb_status found, size_t rank) {
    char late[64], one_of[64];
    snprintf(late, sizeof late, "rank %zu did not come", rank);
    snprintf(one_of, sizeof one_of, "rank %zu", rank);
    CHECK_STATUS(c, WB_PEER, found);
    CHECK(c, strstr(wb_error_message(), late) ||
                 (device_on_streams && c->ranks > 2 && strstr(wb_error_message(), "did not come: ") &&
                  strstr(wb_error_message(), one_of)));
}

/* After a failure every call fails, on both planes, and none waits. */
static int core_close_dead(exchange_core *c) {
    const double begin = core_now();
    uint64_t work = 0;
    CHECK_STATUS(c, WB_PEER, wb_exchange_start_group(c->exchange, NULL, 0, &work));
    CHECK_STATUS(c, WB_PEER, wb_exchange_wait(c->exchange, 1));
    CHECK_STATUS(c, WB_PEER, wb_comm_barrier(c->comm));
    CHECK(c, work == 0 && core_now() - begin < 1);
    wb_exchange_close(c->exchange);
    return c->failures;
}

/* ---- sizes that disagree ------------------------------------------------------------------------- */

/* Rank 0 sends, and the last rank expects, so many bytes. */
static const struct {
    size_t sent, expected;
} mismatches[] = {{10, 200},          {200, 10},          {0, 10},      {10, 0},
                  {3000000, 2000000}, {2000000, 3000000}, {3000000, 16}};
#define MISMATCHES (sizeof mismatches / sizeof mismatches[0])

static int exchange_mismatch(wb_comm *comm, bool host_access, size_t k) {
    device memory;
    exchange_core state = core_open(comm, &memory, host_access), *c = &state;
    const size_t sent = mismatches[k].sent, expected = mismatches[k].expected;
    size_t send_bytes[DEVICE_RANKS] = {0}, recv_bytes[DEVICE_RANKS] = {0}, zeros[DEVICE_RANKS] = {0};
    if (c->rank == 0) send_bytes[c->ranks - 1] = sent;
    if (c->rank == c->ranks - 1) recv_bytes[0] = expected;
    char *send = core_take(c, sent), *recv = core_take(c, expected);
    uint64_t work = 0;
    wb_status found =
        wb_exchange_start_all_to_all_v(c->exchange, send, send_bytes, zeros, recv, recv_bytes, zeros, &work);
    if (found == WB_OK) found = core_wait(c, work);
    if (c->rank == c->ranks - 1) {
        char text[128];
        snprintf(text, sizeof text, "rank 0 to rank %zu: expected %zu bytes, found %zu", c->rank, expected,
                 sent);
        CHECK_STATUS(c, WB_MISMATCH, found);
        CHECK(c, strstr(wb_error_message(), text) != NULL);
    } else {
        /* It may have sent all that it has before it hears. */
        if (found == WB_OK) found = wb_comm_barrier(comm);
        core_last_rank(c, found, "gave up: exchange: group 1: rank 0 to rank");
    }
    CHECK(c, core_intact(c, recv, expected));
    return core_close_dead(c);
}

/* The last rank expects nothing of a send, which is met by the receive of the next group. */
static int exchange_unlisted(wb_comm *comm, bool host_access, size_t k) {
    device memory;
    exchange_core state = core_open(comm, &memory, host_access), *c = &state;
    char *at = core_take(c, 100);
    const wb_transfer to_last = {(int)c->ranks - 1, false, at, 100}, from_first = {0, true, at, 100};
    const bool first = c->rank == 0, last = c->rank == c->ranks - 1;
    uint64_t works[2] = {0, 0};
    wb_status found = WB_OK;
    for (size_t i = 0; i < 2 && found == WB_OK; i++) {
        const bool receives = last && i == (k == 0 ? 1 : 0), sends = first && i == (k == 0 ? 0 : 1);
        const wb_transfer *transfer = receives ? &from_first : sends ? &to_last : NULL;
        found = wb_exchange_start_group(c->exchange, transfer, transfer ? 1 : 0, &works[i]);
    }
    for (size_t i = 0; i < 2 && found == WB_OK; i++) found = core_wait(c, works[i]);
    if (last) {
        CHECK_STATUS(c, WB_MISMATCH, found);
        CHECK(c, strstr(wb_error_message(), "rank 0 to rank") != NULL);
    } else {
        if (found == WB_OK) found = wb_comm_barrier(comm);
        core_last_rank(c, found, "gave up: exchange:");
    }
    CHECK(c, !last || poisoned(c, at, 100));
    return core_close_dead(c);
}

/* ---- ranks that do not come ---------------------------------------------------------------------- */

/* Starts an all-to-all of `bytes` to and from each rank, and an all-reduce of so many that it has two steps:
 * the first of them does not end it, however well a rank has listened at the start. */
#define TWO_STEPS 20000
static wb_status start_two(exchange_core *c, size_t bytes, uint64_t works[2]) {
    size_t sizes[DEVICE_RANKS], offsets[DEVICE_RANKS];
    for (size_t r = 0; r < c->ranks; r++) {
        sizes[r] = bytes;
        offsets[r] = r * bytes;
    }
    char *send = core_take(c, bytes * c->ranks), *recv = core_take(c, bytes * c->ranks);
    const size_t n = bytes / sizeof(float) + TWO_STEPS;
    const size_t n_scratch = wb_exchange_all_reduce_scratch(c->exchange, n);
    float *sums = (float *)(void *)core_take(c, n * sizeof(float));
    float *scratch = (float *)(void *)core_take(c, n_scratch * sizeof(float));
    memset(core_view(c, sums), 0, n * sizeof(float));
    const wb_status status = wb_exchange_start_all_reduce(c->exchange, sums, n, scratch, &works[0]);
    if (status != WB_OK) return status;
    return wb_exchange_start_all_to_all_v(c->exchange, send, sizes, offsets, recv, sizes, offsets, &works[1]);
}

/* Until the first failure. */
static wb_status wait_two(exchange_core *c, const uint64_t works[2]) {
    const wb_status status = wb_exchange_wait(c->exchange, works[1]);
    return status == WB_OK ? core_wait(c, works[0]) : status;
}

static size_t failing_bytes(size_t k) {
    return k % 2 == 0 ? 400 : 1200000;
}

/* The last rank starts as the others do, but waits when they have left. */
static int exchange_late(wb_comm *comm, bool host_access, size_t k) {
    device memory;
    exchange_core state = core_open(comm, &memory, host_access), *c = &state;
    uint64_t works[2];
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(comm, 0.4));
    const double begin = core_now();
    const bool late = c->rank == c->ranks - 1;
    if (late && k < 2) core_sleep(2);
    wb_status found = start_two(c, failing_bytes(k), works);
    if (late && k >= 2) core_sleep(2);
    if (found == WB_OK) found = wait_two(c, works);
    if (late)
        CHECK_STATUS(c, WB_PEER, found);
    else
        core_late_rank(c, found, c->ranks - 1);
    CHECK(c, core_now() - begin >= 0.3 && core_now() - begin < 15);
    return core_close_dead(c);
}

/* The last rank has begun more calls than the others when it waits, in another one: it does not answer them,
 * and is named by who waits for it. The others alone lose patience. */
static int exchange_further(wb_comm *comm, bool host_access, size_t k) {
    device memory;
    exchange_core state = core_open(comm, &memory, host_access), *c = &state;
    uint64_t works[6];
    (void)k;
    if (c->rank < c->ranks - 1) {
        CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(comm, 0.4));
        wb_status found = start_two(c, 400, works);
        if (found == WB_OK) found = wait_two(c, works);
        core_last_rank(c, found, "");
        CHECK(c, strstr(wb_error_message(), "did not come") || strstr(wb_error_message(), "is in barrier, "));
        return core_close_dead(c);
    }
    for (size_t i = 0; i < 6; i++)
        CHECK_STATUS(c, WB_OK, wb_exchange_start_group(c->exchange, NULL, 0, &works[i]));
    CHECK_STATUS(c, WB_PEER, wb_comm_barrier(comm));
    return core_close_dead(c);
}

/* The last rank gives up with its work half done; it may be that of a broken device, or close. */
static int exchange_gives_up(wb_comm *comm, bool host_access, size_t k) {
    device memory;
    exchange_core state = core_open(comm, &memory, host_access), *c = &state;
    static const char *const reasons[] = {"gave up: the disk is full", "gave up: the device is broken",
                                          "gave up: it closed its exchange"};
    const size_t way = k / 2;
    const bool gives_up = c->rank == c->ranks - 1;
    uint64_t works[2];
    /* Its functions are called less often where nothing is staged. */
    const int calls = device_on_streams ? 1 + (int)k % 2 : 2 + 2 * ((int)k % 2);
    if (gives_up && way == 1) memory.fails_after = calls;
    wb_status found = start_two(c, failing_bytes(k), works);
    if (!gives_up) {
        if (found == WB_OK) found = wait_two(c, works);
        core_last_rank(c, found, reasons[way]);
        return core_close_dead(c);
    }
    if (way == 1) {
        if (found == WB_OK) found = wait_two(c, works);
        CHECK_STATUS(c, WB_DEVICE, found);
        return core_close_dead(c);
    }
    core_sleep(0.1);
    if (way == 0) {
        wb_fail(WB_IO, "the disk is full");
        wb_comm_abort(comm);
        core_last_rank(c, wait_two(c, works), reasons[way]);
        return core_close_dead(c);
    }
    wb_exchange_close(c->exchange);
    CHECK_STATUS(c, WB_PEER, wb_comm_barrier(comm));
    return c->failures;
}

/* ---- refused calls, and what is counted ---------------------------------------------------------- */

static wb_exchange_count counted(exchange_core *c, wb_exchange_kind kind) {
    wb_exchange_count count = {0, 0, 0};
    CHECK_STATUS(c, WB_OK, wb_exchange_stats(c->exchange, kind, &count));
    return count;
}

/* A short sum has one step: each rank sends all of it. */
static void core_one_step(exchange_core *c) {
    const wb_exchange_count before = counted(c, WB_EXCHANGE_ALL_REDUCE);
    float *sums = (float *)(void *)core_take(c, 100 * sizeof(float));
    float *scratch = (float *)(void *)core_take(c, 100 * (c->ranks - 1) * sizeof(float));
    uint64_t work = 0;
    memset(core_view(c, sums), 0, 100 * sizeof(float));
    CHECK(c, wb_exchange_all_reduce_scratch(c->exchange, 100) == 100 * (c->ranks - 1));
    CHECK_STATUS(c, WB_OK, wb_exchange_start_all_reduce(c->exchange, sums, 100, scratch, &work));
    CHECK_STATUS(c, WB_OK, core_wait(c, work));
    const wb_exchange_count after = counted(c, WB_EXCHANGE_ALL_REDUCE);
    CHECK(c, after.sends - before.sends == c->ranks - 1);
    CHECK(c, after.bytes - before.bytes == 100 * sizeof(float) * (c->ranks - 1));
}

static void core_counts(exchange_core *c) {
    const size_t others = c->ranks - 1;
    const wb_comm_count before = wb_comm_stats(c->comm);
    uint64_t works[2];
    CHECK_STATUS(c, WB_OK, start_two(c, 400, works));
    CHECK_STATUS(c, WB_OK, wait_two(c, works));
    wb_exchange_count count = counted(c, WB_EXCHANGE_ALL_TO_ALL_V);
    CHECK(c, count.calls == 1 && count.sends == others && count.bytes == 400 * others);
    count = counted(c, WB_EXCHANGE_ALL_REDUCE);
    CHECK(c, count.calls == 1 && count.sends == 2 * others);
    core_one_step(c);
    CHECK(c, counted(c, WB_EXCHANGE_GROUP).calls == 0);
    /* Sizes are known to both sides: the control plane was silent. */
    wb_comm_count after = wb_comm_stats(c->comm);
    CHECK(c, memcmp(&before, &after, sizeof after) == 0);
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(c->comm));
    after = wb_comm_stats(c->comm);
    CHECK(c, after.barriers == before.barriers + 1 && after.all_gathers == before.all_gathers);
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_exchange_stats(c->exchange, WB_EXCHANGE_KINDS, &count));
}

/* So many works in flight and no more; numbers that are not in flight. */
static void core_in_flight(exchange_core *c) {
    uint64_t works[WB_EXCHANGE_IN_FLIGHT], none = 0;
    for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++)
        CHECK_STATUS(c, WB_OK, wb_exchange_start_group(c->exchange, NULL, 0, &works[i]));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_exchange_start_group(c->exchange, NULL, 0, &none));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_exchange_reserve(c->exchange, 1000));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_exchange_wait(c->exchange, 0));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_exchange_wait(c->exchange, works[5] + 1000));
    for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++)
        CHECK_STATUS(c, WB_OK, wb_exchange_wait(c->exchange, works[WB_EXCHANGE_IN_FLIGHT - 1 - i]));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_exchange_wait(c->exchange, works[0]));
    CHECK_STATUS(c, WB_OK, wb_exchange_reserve(c->exchange, 1000));
    CHECK(c, none == 0);
}

/* Each is refused on this rank before anything is sent: the others never hear of it. */
static int exchange_refuses(wb_comm *comm, bool host_access, size_t k) {
    device memory;
    exchange_core state = core_open(comm, &memory, host_access), *c = &state;
    (void)k;
    core_counts(c);
    core_in_flight(c);
    size_t huge[DEVICE_RANKS], falling[DEVICE_RANKS + 1], none[DEVICE_RANKS + 1] = {0},
                                                                              own[DEVICE_RANKS] = {0};
    for (size_t r = 0; r < c->ranks; r++) huge[r] = SIZE_MAX;
    for (size_t r = 0; r <= c->ranks; r++) falling[r] = c->ranks - r;
    own[c->rank] = 4;
    char *at = core_take(c, 64);
    float *floats = (float *)(void *)at;
    uint64_t work = 0;
    wb_exchange *x = c->exchange;
#define EXPECT_REFUSED(call) CHECK_STATUS(c, WB_INVALID_ARGUMENT, call)
    EXPECT_REFUSED(wb_exchange_start_all_to_all_v(x, at, huge, huge, at, none, none, &work));
    EXPECT_REFUSED(wb_exchange_start_all_to_all_v(x, at, own, none, at, none, none, &work));
    EXPECT_REFUSED(wb_exchange_start_all_to_all_v(x, NULL, own, none, at, own, none, &work));
    EXPECT_REFUSED(wb_exchange_start_all_to_all_v(x, at, NULL, none, at, none, none, &work));
    EXPECT_REFUSED(wb_exchange_start_all_gather(x, at, falling, &work));
    EXPECT_REFUSED(wb_exchange_start_all_gather(x, at, NULL, &work));
    EXPECT_REFUSED(wb_exchange_start_reduce_scatter(x, floats, falling, floats, &work));
    EXPECT_REFUSED(wb_exchange_start_all_reduce(x, floats, SIZE_MAX / 2, floats, &work));
    EXPECT_REFUSED(wb_exchange_start_all_reduce(x, NULL, 8, floats, &work));
    EXPECT_REFUSED(wb_exchange_start_all_reduce(x, floats, 8, NULL, &work));
    const wb_transfer bad[] = {
        {-1, true, at, 4}, {(int)c->ranks, true, at, 4}, {0, true, NULL, 4}, {(int)c->rank, true, at, 4}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        EXPECT_REFUSED(wb_exchange_start_group(x, &bad[i], 1, &work));
    EXPECT_REFUSED(wb_exchange_start_group(x, NULL, 1, &work));
#undef EXPECT_REFUSED
    CHECK(c, work == 0 && poisoned(c, at, 64));
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(comm));
    wb_exchange_close(x);
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(comm));
    return c->failures;
}

/* All of them: a body and how many ways it has. */
static const struct {
    int (*body)(wb_comm *, bool, size_t);
    size_t ways;
} exchange_failures[] = {{exchange_refuses, 1},  {exchange_mismatch, MISMATCHES},
                         {exchange_unlisted, 2}, {exchange_gives_up, 6},
                         {exchange_late, 4},     {exchange_further, 1}};
#define EXCHANGE_FAILURES (sizeof exchange_failures / sizeof exchange_failures[0])

#endif
