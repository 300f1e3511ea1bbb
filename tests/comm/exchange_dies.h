/* exchange_dies.h - a rank fails at a random moment of a random schedule of starts and waits: every other one
 * ends in bounded time, with a message that names it. One core for threads and MPI. */
#ifndef EXCHANGE_DIES_H
#define EXCHANGE_DIES_H

#include "comm/exchange_failures.h"

#include <signal.h>

/* How the rank fails. */
typedef enum dying_way {
    GIVES_UP,
    CLOSES, /* its exchange, perhaps with work in flight */
    LEAVES, /* without a word: it comes to no further call */
    IS_KILLED,
    DYING_WAYS
} dying_way;

/* Far more than a step takes on a busy machine. After it those who wait confer, and drop what travels. */
#define DYING_TIMEOUT 2.0
#define DYING_BOUND (DYING_TIMEOUT + 12)
#define DYING_STEPS 120

typedef struct dying {
    size_t rank, step; /* who fails, and before which step */
    size_t steps;      /* so far */
} dying;

/* Ranks are not in step, but never far apart. */
static bool dying_step(exchange_core *c, void *context) {
    dying *d = context;
    const uint64_t pause = hash(c, 5, c->rank, d->steps);
    if (pause % 8 == 0) core_sleep(1e-6 * (double)(pause / 8 % 3000));
    return ++d->steps <= d->step || c->rank != d->rank;
}

/* A rank that leaves holds its memory until the others have gone. */
static void fail_now(exchange_core *c, dying_way way) {
    if (way == IS_KILLED) raise(SIGKILL);
    if (way == GIVES_UP) {
        wb_fail(WB_IO, "the disk is full");
        wb_comm_abort(c->comm);
    }
    if (way == LEAVES) core_sleep(2 * DYING_TIMEOUT);
}

/* The rank that fails is the seed's. The communicator is dead at the end. */
static int exchange_dies(wb_comm *comm, bool host_access, uint64_t seed, dying_way way) {
    device memory;
    exchange_core state = core_open(comm, &memory, host_access), *c = &state;
    c->seed = seed;
    dying d = {.rank = hash(c, 6, 0, 0) % c->ranks, .step = hash(c, 7, 0, 0) % DYING_STEPS};
    CHECK_STATUS(c, WB_OK, wb_exchange_reserve(c->exchange, 2 * CORE_TRANSFERS * c->ranks));
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(comm, DYING_TIMEOUT));
    double begin = core_now();
    wb_status found = WB_OK;
    for (size_t round = 0; found == WB_OK && (d.steps <= d.step || c->rank != d.rank); round++) {
        begin = core_now();
        found = core_round(c, round, dying_step, &d);
    }
    if (c->rank == d.rank) {
        CHECK_STATUS(c, WB_OK, found);
        fail_now(c, way);
        wb_exchange_close(c->exchange);
        return c->failures;
    }
    char gave_up[64];
    snprintf(gave_up, sizeof gave_up, "rank %zu gave up", d.rank);
    if (strstr(wb_error_message(), gave_up))
        CHECK_STATUS(c, WB_PEER, found);
    else
        core_late_rank(c, found, d.rank);
    CHECK(c, core_now() - begin < DYING_BOUND);
    return core_close_dead(c);
}

#endif
