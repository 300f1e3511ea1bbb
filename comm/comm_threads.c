/* comm_threads.c - the transport between threads of one process.
 *
 * Owns: the team the ranks share. A call posts its arguments, meets the others, copies from their buffers and
 * leaves with the others. Refuses: processes, spinning.
 *
 * How the wait ends (wb_comm_abort, the timeout): meeting fails for all ranks or for none, so that either
 * every rank reads its peers' buffers or no rank does; the first failure is the one that all are told.
 * Leaving cannot fail and has no deadline: a rank that has met does nothing but copy before it leaves, and
 * until all have left a posted buffer may still be read. To the others a rank that closes has given up
 * too. */
#include "threads_team.h"
#include "wb_check.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum call_kind { CALL_BROADCAST, CALL_ALL_GATHER, CALL_ALL_TO_ALL_V, CALL_BARRIER } call_kind;

static const char *const call_names[] = {"broadcast", "all_gather", "all_to_all_v", "barrier"};

/* What a rank called; the first three must be the same on all ranks. Pointers are the caller's. */
struct wb_team_posting {
    call_kind call;
    size_t bytes;
    int root;
    const void *send;
    const size_t *send_bytes, *send_offsets, *recv_bytes; /* all_to_all_v: [size] */
};

/* ---- meeting and leaving ------------------------------------------------------------------------- */

/* Under the mutex: the last one to arrive sends all on. */
static void team_arrive(wb_team *shared, int rank) {
    shared->here[rank] = true;
    if (++shared->arrived < shared->size) return;
    shared->arrived = 0;
    memset(shared->here, 0, (size_t)shared->size * sizeof *shared->here);
    shared->passed++;
    pthread_cond_broadcast(&shared->changed);
}

/* Under the mutex; false when the team failed first. */
static bool team_wait(wb_team *shared, int rank, double seconds) {
    const struct timespec deadline = wb_team_deadline(seconds);
    const uint64_t before = shared->passed;
    if (!shared->failed) team_arrive(shared, rank);
    while (shared->passed == before && !shared->failed) {
        const int code = pthread_cond_timedwait(&shared->changed, &shared->mutex, &deadline);
        if (code == ETIMEDOUT && shared->passed == before) wb_team_fail_late(shared, shared->here, seconds);
    }
    return shared->passed != before;
}

/* Every rank looks at all postings and comes to the same verdict. */
static wb_status check_same_call(const wb_team *shared) {
    const wb_team_posting *first = &shared->postings[0];
    for (int r = 1; r < shared->size; r++) {
        const wb_team_posting *other = &shared->postings[r];
        if (other->call != first->call || other->bytes != first->bytes || other->root != first->root)
            return wb_fail(WB_MISMATCH,
                           "rank %d: expected rank 0's call %s (%zu bytes, root %d), found %s (%zu bytes, "
                           "root %d)",
                           r, call_names[first->call], first->bytes, first->root, call_names[other->call],
                           other->bytes, other->root);
    }
    return WB_OK;
}

static void team_leave(wb_comm *comm) {
    wb_team *shared = wb_comm_state(comm);
    pthread_mutex_lock(&shared->mutex);
    const uint64_t before = shared->passed;
    team_arrive(shared, wb_comm_rank(comm));
    while (shared->passed == before) pthread_cond_wait(&shared->changed, &shared->mutex);
    pthread_mutex_unlock(&shared->mutex);
}

/* On success the caller may read the postings and what they point to until team_leave. */
static wb_status team_meet(wb_comm *comm, wb_team_posting mine) {
    wb_team *shared = wb_comm_state(comm);
    shared->postings[wb_comm_rank(comm)] = mine;
    wb_status status = WB_OK;
    pthread_mutex_lock(&shared->mutex);
    if (!team_wait(shared, wb_comm_rank(comm), wb_comm_timeout(comm)))
        status = wb_fail(WB_PEER, "%s: %s", call_names[mine.call], shared->failure);
    pthread_mutex_unlock(&shared->mutex);
    if (status != WB_OK) return status;
    status = check_same_call(shared);
    if (status != WB_OK) team_leave(comm);
    return status;
}

static void team_give_up(wb_comm *comm, const char *reason) {
    wb_team *shared = wb_comm_state(comm);
    char text[sizeof shared->failure];
    snprintf(text, sizeof text, "rank %d gave up%s%s", wb_comm_rank(comm), reason[0] ? ": " : "", reason);
    pthread_mutex_lock(&shared->mutex);
    wb_team_fail(shared, text);
    pthread_mutex_unlock(&shared->mutex);
}

/* ---- operations ---------------------------------------------------------------------------------- */

static wb_status threads_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    wb_team *shared = wb_comm_state(comm);
    WB_TRY(team_meet(comm, (wb_team_posting){CALL_BROADCAST, bytes, root, buffer, NULL, NULL, NULL}));
    if (bytes > 0 && wb_comm_rank(comm) != root) memcpy(buffer, shared->postings[root].send, bytes);
    team_leave(comm);
    return WB_OK;
}

static wb_status threads_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    wb_team *shared = wb_comm_state(comm);
    WB_TRY(team_meet(comm, (wb_team_posting){CALL_ALL_GATHER, bytes, 0, send, NULL, NULL, NULL}));
    for (size_t r = 0; bytes > 0 && r < (size_t)wb_comm_size(comm); r++)
        memcpy((char *)recv + r * bytes, shared->postings[r].send, bytes);
    team_leave(comm);
    return WB_OK;
}

static wb_status check_parts_match(const wb_team *shared) {
    for (int from = 0; from < shared->size; from++)
        for (int to = 0; to < shared->size; to++) {
            const size_t found = shared->postings[from].send_bytes[to];
            const size_t expected = shared->postings[to].recv_bytes[from];
            if (expected != found)
                return wb_fail(WB_MISMATCH, "all_to_all_v: rank %d to rank %d: expected %zu bytes, found %zu",
                               from, to, expected, found);
        }
    return WB_OK;
}

static wb_status threads_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                      const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                      const size_t *recv_offsets) {
    wb_team *shared = wb_comm_state(comm);
    WB_TRY(team_meet(comm,
                     (wb_team_posting){CALL_ALL_TO_ALL_V, 0, 0, send, send_bytes, send_offsets, recv_bytes}));
    const wb_status status = check_parts_match(shared);
    for (int r = 0; status == WB_OK && r < wb_comm_size(comm); r++) {
        const wb_team_posting *peer = &shared->postings[r];
        if (recv_bytes[r] == 0) continue;
        memcpy((char *)recv + recv_offsets[r],
               (const char *)peer->send + peer->send_offsets[wb_comm_rank(comm)], recv_bytes[r]);
    }
    team_leave(comm);
    return status;
}

static wb_status threads_barrier(wb_comm *comm) {
    WB_TRY(team_meet(comm, (wb_team_posting){CALL_BARRIER, 0, 0, NULL, NULL, NULL, NULL}));
    team_leave(comm);
    return WB_OK;
}

static void threads_abort(wb_comm *comm) {
    team_give_up(comm, wb_error_message());
}

/* ---- opening and closing ------------------------------------------------------------------------- */

static void team_free(wb_team *shared) {
    pthread_cond_destroy(&shared->changed);
    pthread_mutex_destroy(&shared->mutex);
    wb_owner_close(&shared->memory);
    free(shared);
}

static void threads_close(wb_comm *comm) {
    wb_team *shared = wb_comm_state(comm);
    pthread_mutex_lock(&shared->mutex);
    wb_team_close_rank(shared, wb_comm_rank(comm));
    const bool last = --shared->open == 0;
    pthread_mutex_unlock(&shared->mutex);
    if (last) team_free(shared);
    wb_comm_delete(comm);
}

/* A rank that has only closed may be done with its part. */
static wb_status threads_look(wb_comm *comm) {
    wb_team *shared = wb_comm_state(comm);
    pthread_mutex_lock(&shared->mutex);
    const wb_status status = wb_team_stopped(shared) ? wb_fail(WB_PEER, "%s", shared->failure) : WB_OK;
    pthread_mutex_unlock(&shared->mutex);
    return status;
}

static const wb_comm_ops threads_ops = {.size = sizeof(wb_comm_ops),
                                        .name = "threads",
                                        .broadcast = threads_broadcast,
                                        .all_gather = threads_all_gather,
                                        .all_to_all_v = threads_all_to_all_v,
                                        .barrier = threads_barrier,
                                        .abort = threads_abort,
                                        .close = threads_close,
                                        .open_exchange = wb_threads_open_exchange,
                                        .look = threads_look};

/* Its deadlines are of the clock that nobody sets. */
static bool init_condition(pthread_cond_t *condition) {
    pthread_condattr_t monotonic;
    if (pthread_condattr_init(&monotonic) != 0) return false;
    const bool made = pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) == 0 &&
                      pthread_cond_init(condition, &monotonic) == 0;
    pthread_condattr_destroy(&monotonic);
    return made;
}

static wb_status team_new(int size, wb_team **team_out) {
    wb_status status;
    wb_team *shared = NULL;
    WB_TRY(WB_NEW(shared, 1, "thread team"));
    shared->size = size;
    WB_GOTO(WB_OWN(&shared->memory, shared->postings, (size_t)size, "thread team postings"), free_team);
    WB_GOTO(WB_OWN(&shared->memory, shared->here, (size_t)size, "thread team ranks"), free_team);
    WB_GOTO(WB_OWN(&shared->memory, shared->closed, (size_t)size, "thread team ranks"), free_team);
    if (pthread_mutex_init(&shared->mutex, NULL) != 0) {
        status = wb_fail(WB_OUT_OF_MEMORY, "thread team: mutex");
        goto free_team;
    }
    if (!init_condition(&shared->changed)) {
        status = wb_fail(WB_OUT_OF_MEMORY, "thread team: condition variable");
        goto destroy_mutex;
    }
    *team_out = shared;
    return WB_OK;

destroy_mutex:
    pthread_mutex_destroy(&shared->mutex);
free_team:
    wb_owner_close(&shared->memory);
    free(shared);
    return status;
}

/* The handles of all ranks, [size]; all or none. */
static wb_status open_ranks(wb_team *shared, wb_comm **comms) {
    for (int r = 0; r < shared->size; r++) {
        const wb_status status = wb_comm_new(&threads_ops, r, shared->size, shared, &comms[r]);
        if (status == WB_OK) continue;
        while (r-- > 0) wb_comm_delete(comms[r]);
        return status;
    }
    shared->open = shared->size;
    return WB_OK;
}

wb_status wb_comm_open_threads(int size, wb_comm **comms_out) {
    if (size < 1) return wb_fail(WB_INVALID_ARGUMENT, "open_threads: size: expected >= 1, found %d", size);
    wb_status status;
    wb_team *shared = NULL;
    wb_comm **comms = NULL;
    WB_TRY(WB_NEW(comms, (size_t)size, "thread communicators"));
    WB_GOTO(team_new(size, &shared), free_comms);
    WB_GOTO(open_ranks(shared, comms), free_team);
    memcpy(comms_out, comms, (size_t)size * sizeof *comms);
    free(comms);
    return WB_OK;

free_team:
    team_free(shared);
free_comms:
    free(comms);
    return status;
}
