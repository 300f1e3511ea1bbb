/* comm_core_sizes.h - what every transport must do with sizes that two ranks do not share: one test core for
 * self, threads and MPI, beside comm_core.h. */
#ifndef WB_COMM_CORE_SIZES_H
#define WB_COMM_CORE_SIZES_H

#include "comm_core.h"

/* The latest message names both ranks and both sizes. */
static void core_check_sizes(core *c, size_t from, size_t to, size_t sent, size_t expected) {
    char text[4][32];
    snprintf(text[0], sizeof text[0], "rank %zu", from);
    snprintf(text[1], sizeof text[1], "rank %zu", to);
    snprintf(text[2], sizeof text[2], "%zu", expected);
    snprintf(text[3], sizeof text[3], "%zu", sent);
    for (size_t i = 0; i < 4; i++) CHECK(c, strstr(wb_error_message(), text[i]));
}

static bool all_poison(const unsigned char *at, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (at[i] != POISON) return false;
    return true;
}

/* Each size, and one that another rank takes for it: within what travels with the first message, and beyond,
 * where MPI and this adapter change their protocols, and in several messages. */
static const size_t core_odd_sizes[][2] = {{10, 200},     {200, 10},       {0, 10},         {10, 0},
                                           {10, 70001},   {70001, 10},     {4000, 4001},    {4001, 4000},
                                           {0, 123457},   {123457, 0},     {70001, 123457}, {123457, 70001},
                                           {90000, 9000}, {1048576, 5000}, {5000, 1048576}};
#define CORE_ODD_SIZES (sizeof core_odd_sizes / sizeof core_odd_sizes[0])

/* The last rank expects `expected` bytes of rank 0, which sends `sent`: both say so, nothing is written
 * beyond what is expected, and the next exchange is not disturbed. */
static void core_mismatch(core *c, size_t sent, size_t expected) {
    const size_t last = c->ranks - 1, n = sent + expected;
    size_t *send_bytes = take(c->ranks * sizeof(size_t)), *recv_bytes = take(c->ranks * sizeof(size_t)),
           *zeros = take(c->ranks * sizeof(size_t));
    for (size_t r = 0; r < c->ranks; r++) send_bytes[r] = recv_bytes[r] = zeros[r] = 0;
    if (c->rank == 0) send_bytes[last] = sent;
    if (c->rank == last) recv_bytes[0] = expected;
    unsigned char *send = take(n), *recv = take(n);
    fill_bytes(send, hash(c, 5, sent, expected), n);
    memset(recv, POISON, n);
    const wb_status found = wb_comm_all_to_all_v(c->comm, send, send_bytes, zeros, recv, recv_bytes, zeros);
    if (c->rank == last || c->rank == 0) {
        CHECK_STATUS(c, WB_MISMATCH, found);
        core_check_sizes(c, 0, last, sent, expected);
    } else {
        CHECK(c, found == WB_OK || found == WB_MISMATCH);
    }
    CHECK(c, all_poison(recv + recv_bytes[0], n - recv_bytes[0]));

    if (c->rank == 0) send_bytes[last] = expected;
    CHECK_STATUS(c, WB_OK, wb_comm_all_to_all_v(c->comm, send, send_bytes, zeros, recv, recv_bytes, zeros));
    CHECK(c, bytes_are(recv, hash(c, 5, sent, expected), recv_bytes[0]));
    CHECK(c, all_poison(recv + recv_bytes[0], n - recv_bytes[0]));
    free(send_bytes);
    free(recv_bytes);
    free(zeros);
    free(send);
    free(recv);
}

/* The last rank gathers `odd` bytes, the others `usual`. */
static void core_gather_mismatch(core *c, size_t usual, size_t odd) {
    const size_t last = c->ranks - 1, n = (usual + odd) * c->ranks, mine = c->rank == last ? odd : usual;
    unsigned char *send = take(n), *recv = take(n);
    if (c->ranks == 1) goto free_both;
    fill_bytes(send, 7, n);
    memset(recv, POISON, n);
    CHECK_STATUS(c, WB_MISMATCH, wb_comm_all_gather(c->comm, send, mine, recv));
    core_check_sizes(c, last, c->rank == last ? 0 : last, c->rank == last ? usual : odd, mine);
    CHECK(c, all_poison(recv + mine * c->ranks, n - mine * c->ranks));
    CHECK_STATUS(c, WB_OK, wb_comm_all_gather(c->comm, send, usual, recv));
    for (size_t r = 0; r < c->ranks; r++) CHECK(c, bytes_are(recv + r * usual, 7, usual));
free_both:
    free(send);
    free(recv);
}

/* The communicator lives on. */
static int comm_core_sizes(wb_comm *comm, uint64_t seed) {
    core state = {comm, (size_t)wb_comm_rank(comm), (size_t)wb_comm_size(comm), seed, 0};
    core *c = &state;
    for (size_t i = 0; i < CORE_ODD_SIZES; i++) {
        core_mismatch(c, core_odd_sizes[i][0], core_odd_sizes[i][1]);
        core_gather_mismatch(c, core_odd_sizes[i][0], core_odd_sizes[i][1]);
    }
    return c->failures;
}

/* The last rank takes another size for the broadcast than the root. Who finds it says so, and the others
 * learn it in this call or the next. The communicator may be dead then. */
static int comm_core_broadcast_sizes(wb_comm *comm, size_t sizes) {
    core state = {comm, (size_t)wb_comm_rank(comm), (size_t)wb_comm_size(comm), 0, 0};
    core *c = &state;
    const size_t last = c->ranks - 1, sent = core_odd_sizes[sizes][0], expected = core_odd_sizes[sizes][1];
    const size_t mine = c->rank == last ? expected : sent, n = sent + expected;
    unsigned char *buffer = take(n);
    memset(buffer, POISON, n);
    const double begin = core_now();
    wb_status found = wb_comm_broadcast(comm, buffer, mine, 0);
    for (int i = 0; i < 2 && found == WB_OK; i++) found = wb_comm_barrier(comm);
    CHECK(c, found == WB_MISMATCH || found == WB_PEER);
    core_check_sizes(c, last, last, sent, expected);
    CHECK(c, core_now() - begin < 20);
    CHECK(c, all_poison(buffer + mine, n - mine));
    free(buffer);
    return c->failures;
}

#endif
