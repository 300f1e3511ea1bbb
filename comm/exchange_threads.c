/* exchange_threads.c - the data plane between threads of one process: the receiver copies.
 *
 * Owns: the crossings, one for each pair of ranks, in which the sends of the one meet the receives of the
 * other in the order of both; the ranks share them under their team's mutex. Refuses: spinning, threads of
 * its own: data move while a receiver starts or waits.
 *
 * A copy runs outside the mutex, and its sender takes no memory back while it does. Before it the team has
 * not failed; a failure in the middle of it is found after it. */
#include "threads_team.h"
#include "wb_check.h"
#include "wb_exchange.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct queue {
    wb_exchange_item *first, *last; /* by `next`; both NULL when empty */
} queue;

/* From one rank to another. */
typedef struct crossing {
    queue sends, receives;
    bool copying; /* the first send is read now */
} crossing;

/* What the ranks of one exchange share. */
typedef struct hall {
    wb_owner memory;
    crossing *crossings; /* [from][to]; owner: memory */
    bool *waiting;       /* [ranks] is in a wait; owner: memory */
    int open;            /* exchanges not yet closed */
} hall;

typedef struct threads_state {
    wb_comm *comm;
    wb_team *team;
    hall *shared;
    wb_exchange_memory memory;
    int rank, ranks;
} threads_state;

/* ---- queues -------------------------------------------------------------------------------------- */

static crossing *crossing_of(const threads_state *state, int from, int to) {
    return &state->shared->crossings[(size_t)from * (size_t)state->ranks + (size_t)to];
}

static void queue_push(queue *q, wb_exchange_item *item) {
    if (q->last)
        q->last->next = item;
    else
        q->first = item;
    q->last = item;
}

/* The first one is done. */
static void queue_pop(queue *q) {
    q->first->group->left--;
    q->first = q->first->next;
    if (!q->first) q->last = NULL;
}

/* ---- moving -------------------------------------------------------------------------------------- */

static wb_status check_match(const wb_exchange_item *send, const wb_exchange_item *receive, int from,
                             int to) {
    if (send->group->number != receive->group->number)
        return wb_fail(WB_MISMATCH,
                       "exchange: rank %d to rank %d: expected %zu bytes in group %" PRIu64
                       ", found %zu in group %" PRIu64,
                       from, to, receive->transfer.bytes, receive->group->number, send->transfer.bytes,
                       send->group->number);
    if (send->transfer.bytes != receive->transfer.bytes)
        return wb_fail(WB_MISMATCH,
                       "exchange: group %" PRIu64 ": rank %d to rank %d: expected %zu bytes, found %zu",
                       send->group->number, from, to, receive->transfer.bytes, send->transfer.bytes);
    return WB_OK;
}

/* Under the mutex, which is free during the copy. */
static wb_status copy_first(threads_state *state, crossing *c) {
    const wb_transfer *const from = &c->sends.first->transfer, *const to = &c->receives.first->transfer;
    wb_exchange_memory *memory = &state->memory;
    wb_status status = WB_OK;
    c->copying = true;
    pthread_mutex_unlock(&state->team->mutex);
    if (to->bytes > 0) {
        status = memory->copy(memory->context, to->data, from->data, to->bytes);
        if (status == WB_OK) status = memory->to_host(memory->context, NULL, NULL, 0);
    }
    pthread_mutex_lock(&state->team->mutex);
    c->copying = false;
    pthread_cond_broadcast(&state->team->changed);
    return status;
}

/* Under the mutex: all that can be received now from `from`; *moved_out is set when there was something. */
static wb_status receive_from(threads_state *state, int from, bool *moved_out) {
    crossing *c = crossing_of(state, from, state->rank);
    while (!wb_team_stopped(state->team) && c->sends.first && c->receives.first) {
        WB_TRY(check_match(c->sends.first, c->receives.first, from, state->rank));
        WB_TRY(copy_first(state, c));
        if (wb_team_stopped(state->team)) break;
        queue_pop(&c->sends);
        queue_pop(&c->receives);
        *moved_out = true;
    }
    return WB_OK;
}

/* Under the mutex: all that can be received now, from all ranks. During a copy others may have sent, and have
 * said so to nobody who waits: ranks are looked at until a whole round finds nothing. */
static wb_status receive_all(threads_state *state) {
    bool moved = true;
    while (moved) {
        moved = false;
        for (int i = 1; i < state->ranks; i++)
            WB_TRY(receive_from(state, (state->rank + i) % state->ranks, &moved));
    }
    return WB_OK;
}

static wb_status check_team(const threads_state *state) {
    return wb_team_stopped(state->team) ? wb_fail(WB_PEER, "exchange: %s", state->team->failure) : WB_OK;
}

static bool has_item_of(const queue *q, const wb_exchange_group *group) {
    for (const wb_exchange_item *item = q->first; item; item = item->next)
        if (item->group == group) return true;
    return false;
}

/* A rank that is done with its own part may close while others go on among themselves: that ends those alone
 * that wait for it. */
static wb_status check_peers(const threads_state *state, const wb_exchange_group *group) {
    WB_TRY(check_team(state));
    for (int r = 0; state->team->failed && r < state->ranks; r++)
        if (state->team->closed[r] && (has_item_of(&crossing_of(state, state->rank, r)->sends, group) ||
                                       has_item_of(&crossing_of(state, r, state->rank)->receives, group)))
            return wb_fail(WB_PEER, "exchange: rank %d gave up: it closed its communicator", r);
    return WB_OK;
}

/* ---- the adapter --------------------------------------------------------------------------------- */

static wb_status threads_start(void *opaque, wb_exchange_group *group) {
    threads_state *state = opaque;
    /* Other ranks' streams know nothing of this one's. */
    if (group->n > 0) WB_TRY(state->memory.to_host(state->memory.context, NULL, NULL, 0));
    pthread_mutex_lock(&state->team->mutex);
    wb_status status = check_team(state);
    for (size_t i = 0; status == WB_OK && i < group->n; i++) {
        wb_exchange_item *item = &group->items[i];
        if (item->transfer.receive)
            queue_push(&crossing_of(state, item->transfer.peer, state->rank)->receives, item);
        else
            queue_push(&crossing_of(state, state->rank, item->transfer.peer)->sends, item);
    }
    pthread_cond_broadcast(&state->team->changed);
    if (status == WB_OK) status = receive_all(state);
    if (status == WB_OK) status = check_team(state);
    pthread_mutex_unlock(&state->team->mutex);
    return status;
}

/* Under the mutex. */
static wb_status wait_until_done(threads_state *state, const wb_exchange_group *group) {
    const double seconds = wb_comm_timeout(state->comm);
    const struct timespec deadline = wb_team_deadline(seconds);
    for (;;) {
        WB_TRY(receive_all(state));
        if (group->left == 0) return WB_OK;
        WB_TRY(check_peers(state, group));
        if (pthread_cond_timedwait(&state->team->changed, &state->team->mutex, &deadline) == ETIMEDOUT &&
            group->left > 0 && !wb_team_stopped(state->team))
            wb_team_fail_late(state->team, state->shared->waiting, seconds);
    }
}

static wb_status threads_wait(void *opaque, wb_exchange_group *group) {
    threads_state *state = opaque;
    pthread_mutex_lock(&state->team->mutex);
    state->shared->waiting[state->rank] = true;
    const wb_status status = wait_until_done(state, group);
    state->shared->waiting[state->rank] = false;
    pthread_mutex_unlock(&state->team->mutex);
    return status;
}

/* The team has failed: no new copy begins. */
static void threads_drop(void *opaque) {
    threads_state *state = opaque;
    pthread_mutex_lock(&state->team->mutex);
    for (int r = 0; r < state->ranks; r++) {
        crossing *out = crossing_of(state, state->rank, r);
        while (out->copying) pthread_cond_wait(&state->team->changed, &state->team->mutex);
        out->sends = crossing_of(state, r, state->rank)->receives = (queue){NULL, NULL};
    }
    pthread_mutex_unlock(&state->team->mutex);
}

/* ---- opening and closing ------------------------------------------------------------------------- */

static void hall_free(hall *shared) {
    if (!shared) return;
    wb_owner_close(&shared->memory);
    free(shared);
}

static void threads_close(void *opaque) {
    threads_state *state = opaque;
    pthread_mutex_lock(&state->team->mutex);
    const bool last = state->shared && --state->shared->open == 0;
    pthread_mutex_unlock(&state->team->mutex);
    if (last) hall_free(state->shared);
    free(state);
}

static wb_status hall_new(int ranks, hall **shared_out) {
    wb_status status;
    hall *shared = NULL;
    const size_t n = (size_t)ranks;
    WB_TRY(WB_NEW(shared, 1, "exchange between threads"));
    WB_GOTO(WB_OWN(&shared->memory, shared->crossings, n * n, "exchange between threads"), free_hall);
    WB_GOTO(WB_OWN(&shared->memory, shared->waiting, n, "exchange between threads"), free_hall);
    shared->open = ranks;
    *shared_out = shared;
    return WB_OK;

free_hall:
    hall_free(shared);
    return status;
}

static const wb_exchange_ops threads_ops = {.size = sizeof(wb_exchange_ops),
                                            .start = threads_start,
                                            .wait = threads_wait,
                                            .drop = threads_drop,
                                            .close = threads_close};

/* What can fail on this rank alone. */
static wb_status open_local(wb_comm *comm, const wb_exchange_memory *memory, threads_state **state_out,
                            wb_exchange **exchange_out) {
    threads_state *state = NULL;
    WB_TRY(WB_NEW(state, 1, "exchange between threads"));
    *state = (threads_state){.comm = comm,
                             .team = wb_comm_state(comm),
                             .memory = *memory,
                             .rank = wb_comm_rank(comm),
                             .ranks = wb_comm_size(comm)};
    wb_status status = state->rank == 0 ? hall_new(state->ranks, &state->shared) : WB_OK;
    if (status == WB_OK) status = wb_exchange_new(&threads_ops, comm, memory, state, exchange_out);
    if (status == WB_OK) {
        *state_out = state;
        return WB_OK;
    }
    hall_free(state->shared);
    free(state);
    return status;
}

/* Rank 0 makes the hall and tells the others where it is, which all ranks hear or none. */
wb_status wb_threads_open_exchange(wb_comm *comm, const wb_exchange_memory *memory,
                                   wb_exchange **exchange_out) {
    threads_state *state = NULL;
    wb_exchange *exchange = NULL;
    wb_status status = wb_comm_agree(comm, open_local(comm, memory, &state, &exchange));
    if (status == WB_OK) status = wb_comm_broadcast(comm, &state->shared, sizeof state->shared, 0);
    if (status == WB_OK) {
        *exchange_out = exchange;
        return WB_OK;
    }
    if (state && state->shared) state->shared->open = 1;
    wb_exchange_close(exchange);
    return status;
}
