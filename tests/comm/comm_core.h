/* comm_core.h - what every transport must do: one test core for self, threads and MPI.
 *
 * comm_core_run is called by each rank with the same seed and returns its number of failed checks. It never
 * leaves early, so that ranks stay in step. What a rank should receive is computed, not communicated. */
#ifndef WB_COMM_CORE_H
#define WB_COMM_CORE_H

#include "wb_comm.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define POISON 0xa5

typedef struct core {
    wb_comm *comm;
    size_t rank, ranks;
    uint64_t seed;
    int failures;
} core;

#define CHECK(c, condition) core_check(c, condition, #condition, __LINE__)
#define CHECK_STATUS(c, expected, call) core_check_status(c, expected, call, #call, __LINE__)

static bool core_check(core *c, bool held, const char *what, int line) {
    if (held) return true;
    fprintf(stderr, "%s: rank %zu of %zu, seed %" PRIu64 ", comm_core.h:%d: %s (last message: %s)\n",
            wb_comm_name(c->comm), c->rank, c->ranks, c->seed, line, what, wb_error_message());
    c->failures++;
    return false;
}

static bool core_check_status(core *c, wb_status expected, wb_status found, const char *what, int line) {
    if (expected == found) return true;
    fprintf(stderr, "expected \"%s\", found \"%s\": ", wb_status_string(expected), wb_status_string(found));
    return core_check(c, false, what, line);
}

/* ---- values every rank can compute --------------------------------------------------------------- */

/* A number that depends on the seed, the topic and two more things. */
static uint64_t hash(const core *c, uint64_t topic, uint64_t a, uint64_t b) {
    return wb_mix64(wb_mix64(wb_mix64(wb_mix64(c->seed + 1) + topic) + a) + b);
}

static unsigned char byte_of(uint64_t stream, size_t i) {
    return (unsigned char)((stream >> (i % 57)) + i * 31 + i / 251);
}

static void fill_bytes(unsigned char *at, uint64_t stream, size_t n) {
    for (size_t i = 0; i < n; i++) at[i] = byte_of(stream, i);
}

static bool bytes_are(const unsigned char *at, uint64_t stream, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (at[i] != byte_of(stream, i)) return false;
    return true;
}

/* Magnitudes far apart, so that another order of addition gives other bits. Finite. */
static double value_of(const core *c, uint64_t topic, size_t rank, size_t i) {
    const uint64_t h = wb_mix64(c->seed + topic * 1000 + rank * WB_RANDOM_STEP + i);
    if (h % 61 == 0) return -0.0;
    const double mantissa = (double)(int64_t)(h >> 11) / 4503599627370496.0 - 1.0;
    return ldexp(mantissa, (int)(h % 41) - 20);
}

static void *take(size_t bytes) {
    void *memory = malloc(bytes > 0 ? bytes : 1);
    if (!memory) abort();
    return memory;
}

/* ---- moving bytes -------------------------------------------------------------------------------- */

/* Both sides of 64 KiB, where MPI changes its protocol. */
static const size_t core_sizes[] = {0, 1, 7, 1000, 4096, 65535, 65537, 300001};
#define CORE_SIZES (sizeof(core_sizes) / sizeof(core_sizes[0]))

static void core_broadcast(core *c) {
    for (size_t k = 0; k < CORE_SIZES; k++)
        for (size_t root = 0; root < c->ranks; root++) {
            const size_t n = core_sizes[k];
            const uint64_t stream = hash(c, 1, k, root);
            unsigned char *buffer = take(n + 1);
            memset(buffer, POISON, n + 1);
            if (c->rank == root) fill_bytes(buffer, stream, n);
            CHECK_STATUS(c, WB_OK, wb_comm_broadcast(c->comm, buffer, n, (int)root));
            CHECK(c, bytes_are(buffer, stream, n) && buffer[n] == POISON);
            free(buffer);
        }
    CHECK_STATUS(c, WB_OK, wb_comm_broadcast(c->comm, NULL, 0, 0));
    unsigned char byte = 1;
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_broadcast(c->comm, &byte, 1, -1));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_broadcast(c->comm, &byte, 1, (int)c->ranks));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_broadcast(c->comm, NULL, 1, 0));
}

static void core_all_gather(core *c) {
    for (size_t k = 0; k < CORE_SIZES; k++) {
        const size_t n = core_sizes[k];
        unsigned char *send = take(n), *recv = take(n * c->ranks + 1);
        memset(recv, POISON, n * c->ranks + 1);
        fill_bytes(send, hash(c, 2, k, c->rank), n);
        CHECK_STATUS(c, WB_OK, wb_comm_all_gather(c->comm, send, n, recv));
        for (size_t r = 0; r < c->ranks; r++) CHECK(c, bytes_are(recv + r * n, hash(c, 2, k, r), n));
        CHECK(c, recv[n * c->ranks] == POISON);
        free(send);
        free(recv);
    }
    CHECK_STATUS(c, WB_OK, wb_comm_all_gather(c->comm, NULL, 0, NULL));
    if (c->ranks > 1) {
        unsigned char byte = 0;
        CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_all_gather(c->comm, &byte, SIZE_MAX, &byte));
    }
}

/* Bytes from rank `from` to rank `to`: none, a few, or many. */
static size_t part_size(const core *c, size_t round, size_t from, size_t to) {
    const uint64_t h = hash(c, 3, round, from * 64 + to);
    if (round == 0 || h % 4 == 0) return 0;
    return (size_t)((h >> 8) % (h % 4 == 1 ? 200000 : 300));
}

typedef struct parts {
    size_t *bytes, *offsets, total;
    unsigned char *buffer; /* poisoned */
} parts;

/* Parts of this rank with a gap of one byte behind each, in reverse rank order. */
static parts parts_new(const core *c, size_t round, bool sending) {
    parts p = {take(c->ranks * sizeof(size_t)), take(c->ranks * sizeof(size_t)), 0, NULL};
    for (size_t r = c->ranks; r-- > 0;) {
        p.bytes[r] = sending ? part_size(c, round, c->rank, r) : part_size(c, round, r, c->rank);
        p.offsets[r] = p.total;
        p.total += p.bytes[r] + 1;
    }
    p.buffer = take(p.total);
    memset(p.buffer, POISON, p.total);
    return p;
}

static void parts_free(parts *p) {
    free(p->bytes);
    free(p->offsets);
    free(p->buffer);
}

static wb_status exchange(core *c, const parts *send, const parts *recv) {
    return wb_comm_all_to_all_v(c->comm, send->buffer, send->bytes, send->offsets, recv->buffer, recv->bytes,
                                recv->offsets);
}

static void core_all_to_all_v(core *c) {
    for (size_t round = 0; round < 12; round++) {
        parts send = parts_new(c, round, true), recv = parts_new(c, round, false);
        for (size_t r = 0; r < c->ranks; r++)
            fill_bytes(send.buffer + send.offsets[r], hash(c, 4 + round, c->rank, r), send.bytes[r]);
        CHECK_STATUS(c, WB_OK, exchange(c, &send, &recv));
        for (size_t r = 0; r < c->ranks; r++) {
            const unsigned char *at = recv.buffer + recv.offsets[r];
            CHECK(c, bytes_are(at, hash(c, 4 + round, r, c->rank), recv.bytes[r]));
            CHECK(c, at[recv.bytes[r]] == POISON);
        }
        parts_free(&send);
        parts_free(&recv);
    }
    size_t *none = take(c->ranks * sizeof(*none)), *huge = take(c->ranks * sizeof(*huge));
    for (size_t r = 0; r < c->ranks; r++) none[r] = 0, huge[r] = SIZE_MAX;
    CHECK_STATUS(c, WB_OK, wb_comm_all_to_all_v(c->comm, NULL, none, none, NULL, none, none));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_all_to_all_v(c->comm, none, huge, huge, none, none, none));
    free(none);
    free(huge);
}

/* ---- sums ---------------------------------------------------------------------------------------- */

static float sum_f32(const core *c, uint64_t topic, size_t i, bool reverse) {
    float sum = (float)value_of(c, topic, reverse ? c->ranks - 1 : 0, i);
    for (size_t r = 1; r < c->ranks; r++) sum += (float)value_of(c, topic, reverse ? c->ranks - 1 - r : r, i);
    return sum;
}

static double sum_f64(const core *c, uint64_t topic, size_t i) {
    double sum = value_of(c, topic, 0, i);
    for (size_t r = 1; r < c->ranks; r++) sum += value_of(c, topic, r, i);
    return sum;
}

static void core_all_reduce_f32(core *c, size_t n) {
    float *buffer = take((n + 1) * sizeof(*buffer)), *expected = take(n * sizeof(*expected));
    size_t order_matters = 0;
    for (size_t i = 0; i < n; i++) {
        buffer[i] = (float)value_of(c, n, c->rank, i);
        expected[i] = sum_f32(c, n, i, false);
        const float reversed = sum_f32(c, n, i, true);
        order_matters += memcmp(&reversed, &expected[i], sizeof(reversed)) != 0;
    }
    buffer[n] = 12345.0f;
    CHECK_STATUS(c, WB_OK, wb_comm_all_reduce_f32(c->comm, buffer, n));
    CHECK(c, memcmp(buffer, expected, n * sizeof(*buffer)) == 0);
    CHECK(c, buffer[n] == 12345.0f);
    CHECK_STATUS(c, WB_OK, wb_comm_check_equal(c->comm, buffer, n * sizeof(*buffer), "sums"));
    if (c->ranks > 2 && n >= 1000) CHECK(c, order_matters > 0); /* or this test could not fail */
    free(buffer);
    free(expected);
}

static void core_all_reduce_f64(core *c, size_t n) {
    double *buffer = take((n + 1) * sizeof(*buffer)), *expected = take(n * sizeof(*expected));
    for (size_t i = 0; i < n; i++) {
        buffer[i] = value_of(c, n, c->rank, i);
        expected[i] = sum_f64(c, n, i);
    }
    buffer[n] = 12345.0;
    CHECK_STATUS(c, WB_OK, wb_comm_all_reduce_f64(c->comm, buffer, n));
    CHECK(c, memcmp(buffer, expected, n * sizeof(*buffer)) == 0);
    CHECK(c, buffer[n] == 12345.0);
    free(buffer);
    free(expected);
}

/* From below R (gathered) over 64 KiB / R and 64 KiB (the switch to parts) to over one block of 4 MiB; the
 * same n again at the end, with scratch grown meanwhile. */
static void core_all_reduce(core *c) {
    const size_t ns[] = {0,
                         1,
                         2,
                         c->ranks - 1,
                         c->ranks,
                         c->ranks + 1,
                         1000,
                         16384 / c->ranks,
                         16384 / c->ranks + 1,
                         65537,
                         1048576 + 16390,
                         1000};
    for (size_t k = 0; k < sizeof(ns) / sizeof(ns[0]); k++) {
        core_all_reduce_f32(c, ns[k]);
        if (ns[k] < 100000) core_all_reduce_f64(c, ns[k]);
    }
    core_all_reduce_f64(c, (size_t)(hash(c, 20, 0, 0) % 50000));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_all_reduce_f32(c->comm, NULL, SIZE_MAX));
    CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_all_reduce_f32(c->comm, NULL, 1));

    for (size_t largest = 0; largest < c->ranks; largest++) {
        uint64_t value = c->rank == largest ? UINT64_MAX - 5 : c->rank;
        CHECK_STATUS(c, WB_OK, wb_comm_all_reduce_max_u64(c->comm, &value));
        CHECK(c, value == UINT64_MAX - 5);
    }
}

/* ---- verdicts ------------------------------------------------------------------------------------ */

/* All ranks get PEER, with `what` and the rank in the message. */
static void core_check_names(core *c, wb_status found, const char *what, size_t rank) {
    char name[32];
    snprintf(name, sizeof(name), "rank %zu ", rank);
    CHECK_STATUS(c, WB_PEER, found);
    CHECK(c, strstr(wb_error_message(), what) != NULL);
    CHECK(c, strstr(wb_error_message(), name) != NULL);
}

static void core_check_equal(core *c) {
    for (size_t k = 0; k < CORE_SIZES; k++) {
        const size_t n = core_sizes[k];
        unsigned char *bytes = take(n + 1);
        fill_bytes(bytes, hash(c, 30, k, 0), n + 1);
        CHECK_STATUS(c, WB_OK, wb_comm_check_equal(c->comm, bytes, n, "step"));
        for (size_t odd = 1; odd < c->ranks; odd++) {
            const size_t longer = c->rank == odd ? n + 1 : n;
            core_check_names(c, wb_comm_check_equal(c->comm, bytes, longer, "step"), "step", odd);
            if (n == 0) continue;
            const size_t at = odd % 2 == 0 ? n - 1 : 0;
            if (c->rank == odd) bytes[at] ^= 1;
            core_check_names(c, wb_comm_check_equal(c->comm, bytes, n, "step"), "step", odd);
            if (c->rank == odd) bytes[at] ^= 1;
        }
        if (n > 0 && c->ranks > 1) { /* rank 0 is the odd one: rank 1 is the first that differs from it */
            if (c->rank == 0) bytes[n / 2] ^= 1;
            core_check_names(c, wb_comm_check_equal(c->comm, bytes, n, "step"), "step", 1);
        }
        free(bytes);
    }
}

static void core_agree(core *c) {
    CHECK_STATUS(c, WB_OK, wb_comm_agree(c->comm, WB_OK));
    for (size_t failed = 0; failed < c->ranks; failed++) {
        if (c->rank == failed) {
            CHECK_STATUS(c, WB_CORRUPT,
                         wb_comm_agree(c->comm, wb_fail(WB_CORRUPT, "byte 7 of rank %zu", failed)));
            CHECK(c, strncmp(wb_error_message(), "byte 7 of rank", 14) == 0);
        } else {
            core_check_names(c, wb_comm_agree(c->comm, WB_OK), wb_status_string(WB_CORRUPT), failed);
        }
    }
    CHECK_STATUS(c, WB_OK, wb_comm_agree(c->comm, WB_OK));
}

/* ---- how a wait ends ----------------------------------------------------------------------------- */

static double core_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void core_sleep(double seconds) {
    const struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
}

/* PEER, and `what` of rank `rank` in the message. */
static void core_check_says(core *c, wb_status found, size_t rank, const char *what) {
    char text[128];
    snprintf(text, sizeof text, "rank %zu %s", rank, what);
    CHECK_STATUS(c, WB_PEER, found);
    CHECK(c, strstr(wb_error_message(), text) != NULL);
}

/* After a failure every call of every rank fails, and none waits. */
static void core_check_dead(core *c) {
    const double begin = core_now();
    size_t *none = take(c->ranks * sizeof *none);
    memset(none, 0, c->ranks * sizeof *none);
    float value = 1;
    CHECK_STATUS(c, WB_PEER, wb_comm_barrier(c->comm));
    CHECK_STATUS(c, WB_PEER, wb_comm_broadcast(c->comm, &value, sizeof value, (int)c->rank));
    CHECK_STATUS(c, WB_PEER, wb_comm_all_to_all_v(c->comm, NULL, none, none, NULL, none, none));
    CHECK_STATUS(c, WB_PEER, wb_comm_all_reduce_f32(c->comm, &value, 1));
    CHECK_STATUS(c, WB_PEER, wb_comm_agree(c->comm, WB_OK));
    CHECK(c, core_now() - begin < 1);
    free(none);
}

/* What a rank that waits may be in; `memory` is freed as soon as the call has failed. */
static wb_status core_wait_in(core *c, size_t call) {
    const size_t n = (size_t)1 << 20;
    const int last = (int)c->ranks - 1;
    unsigned char *send = take(n), *recv = take(n * c->ranks);
    memset(send, 0, n);
    wb_status status = WB_OK;
    if (call == 0) status = wb_comm_barrier(c->comm);
    if (call == 1) status = wb_comm_broadcast(c->comm, recv, n, last);
    if (call == 2) status = wb_comm_all_gather(c->comm, send, n, recv);
    if (call == 3) status = wb_comm_agree(c->comm, WB_OK);
    free(send);
    free(recv);
    return status;
}
#define CORE_WAITS 4

/* Each of these takes a communicator of its own, which is dead at the end, and the call that is waited in. */

/* The last rank comes when the others have left. */
static int comm_core_late(wb_comm *comm, size_t call) {
    core state = {comm, (size_t)wb_comm_rank(comm), (size_t)wb_comm_size(comm), 0, 0};
    core *c = &state;
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(comm, 0.4));
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(comm));
    const double begin = core_now();
    if (c->rank + 1 == c->ranks) {
        core_sleep(2);
    } else {
        core_check_says(c, core_wait_in(c, call), c->ranks - 1, "did not come");
        CHECK(c, core_now() - begin >= 0.3 && core_now() - begin < 20);
    }
    core_check_dead(c);
    return c->failures;
}

/* The last rank gives up before its call; the others wait or will. */
static int comm_core_gives_up(wb_comm *comm, size_t call) {
    core state = {comm, (size_t)wb_comm_rank(comm), (size_t)wb_comm_size(comm), 0, 0};
    core *c = &state;
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(comm));
    const double begin = core_now();
    if (c->rank + 1 == c->ranks) {
        core_sleep(0.2);
        wb_fail(WB_IO, "the disk is full");
        wb_comm_abort(comm);
        core_check_says(c, wb_comm_barrier(comm), c->rank, "gave up: the disk is full");
    } else {
        core_check_says(c, core_wait_in(c, call), c->ranks - 1, "gave up: the disk is full");
    }
    CHECK(c, core_now() - begin < 20);
    core_check_dead(c);
    return c->failures;
}

static void core_timeout(core *c) {
    const double bad[] = {0, -1, NAN, INFINITY, 1e10};
    CHECK(c, wb_comm_timeout(c->comm) == 1800);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_STATUS(c, WB_INVALID_ARGUMENT, wb_comm_set_timeout(c->comm, bad[i]));
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(c->comm, 60));
    CHECK(c, wb_comm_timeout(c->comm) == 60);
}

/* ---- all ----------------------------------------------------------------------------------------- */

static int comm_core_run(wb_comm *comm, uint64_t seed) {
    core state = {comm, (size_t)wb_comm_rank(comm), (size_t)wb_comm_size(comm), seed, 0};
    core *c = &state;
    core_timeout(c);
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(comm));
    core_broadcast(c);
    core_all_gather(c);
    core_all_to_all_v(c);
    core_all_reduce(c);
    core_check_equal(c);
    core_agree(c);
    CHECK_STATUS(c, WB_OK, wb_comm_barrier(comm));
    return c->failures;
}

#endif
