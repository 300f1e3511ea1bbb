/* nccl_plane.c - see nccl_plane.h. */
#include "nccl_plane.h"
#include "wb_check.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What an abort of NCCL may take, in seconds: its kernels leave their loops at once, and what lies on the
 * stream before them has to end. */
#define ABORT_SECONDS 30.0

double wb_nccl_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

struct timespec wb_nccl_time(double seconds) {
    const time_t whole = (time_t)seconds;
    return (struct timespec){whole, (long)((seconds - (double)whole) * 1e9)};
}

/* ---- the object ---------------------------------------------------------------------------------- */

static bool open_locks(wb_nccl_plane *plane) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return false;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    const bool has_changed = pthread_cond_init(&plane->changed, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    if (!has_changed) return false;
    if (pthread_mutex_init(&plane->mutex, NULL) == 0) return true;
    pthread_cond_destroy(&plane->changed);
    return false;
}

wb_status wb_nccl_plane_new(int gpu, int rank, int ranks, wb_nccl_plane **plane_out) {
    wb_nccl_plane *plane = calloc(1, sizeof *plane);
    if (plane) plane->last_with = calloc((size_t)ranks, sizeof *plane->last_with);
    if (!plane || !plane->last_with || !open_locks(plane)) {
        if (plane) free(plane->last_with);
        free(plane);
        return wb_fail(WB_OUT_OF_MEMORY, "NCCL communicator");
    }
    plane->gpu = gpu;
    plane->rank = rank;
    plane->ranks = ranks;
    *plane_out = plane;
    return WB_OK;
}

void wb_nccl_plane_free(wb_nccl_plane *plane) {
    wb_gpu_event_close(plane->joined);
    wb_gpu_event_close(plane->probe);
    wb_gpu_stream_close(plane->stream);
    pthread_cond_destroy(&plane->changed);
    pthread_mutex_destroy(&plane->mutex);
    free(plane->last_with);
    free(plane);
}

/* ---- how it ends --------------------------------------------------------------------------------- */

/* Under the mutex. */
static wb_status check_alive(const wb_nccl_plane *plane) {
    if (plane->failed) return wb_fail(WB_PEER, "exchange: %s", plane->failure);
    return plane->ending ? wb_fail(WB_PEER, "exchange: NCCL was closed") : WB_OK;
}

wb_status wb_nccl_plane_check(wb_nccl_plane *plane) {
    pthread_mutex_lock(&plane->mutex);
    const wb_status status = check_alive(plane);
    pthread_mutex_unlock(&plane->mutex);
    return status;
}

/* Listeners hear it before NCCL is aborted: a host that waits for the stream goes on by the abort, and finds
 * then that it has nothing. */
void wb_nccl_plane_fail(wb_nccl_plane *plane, const char *failure) {
    if (plane->ending) return;
    plane->failed = plane->ending = true;
    snprintf(plane->failure, sizeof plane->failure, "%s", failure);
    for (const wb_nccl_listener *l = plane->listeners; l; l = l->next) l->lose(l->context, plane->failure);
    pthread_cond_broadcast(&plane->changed);
}

void wb_nccl_plane_give_up(wb_nccl_plane *plane, const char *failure) {
    pthread_mutex_lock(&plane->mutex);
    wb_nccl_plane_fail(plane, failure);
    pthread_mutex_unlock(&plane->mutex);
}

bool wb_nccl_plane_end(wb_nccl_plane *plane) {
    pthread_mutex_lock(&plane->mutex);
    plane->ending = true;
    /* Before it is opened there is nobody who would. */
    if (!plane->keeper_runs) plane->ended = true;
    pthread_cond_broadcast(&plane->changed);
    const struct timespec deadline = wb_nccl_time(wb_nccl_now() + ABORT_SECONDS);
    int code = 0;
    while (!plane->ended && code != ETIMEDOUT)
        code = pthread_cond_timedwait(&plane->changed, &plane->mutex, &deadline);
    const bool ended = plane->ended;
    pthread_mutex_unlock(&plane->mutex);
    return ended;
}

wb_status wb_nccl_plane_drain(wb_nccl_plane *plane) {
    pthread_mutex_lock(&plane->mutex);
    while (plane->done < plane->queued && !plane->ending) pthread_cond_wait(&plane->changed, &plane->mutex);
    const wb_status status = check_alive(plane);
    pthread_mutex_unlock(&plane->mutex);
    return status;
}

/* ---- NCCL's calls -------------------------------------------------------------------------------- */

/* Under the mutex. `code` is of the call `what`, which may not have ended. */
static wb_status check_call(wb_nccl_plane *plane, ncclResult_t code, const char *what) {
    if (code == ncclSuccess || code == ncclInProgress) return WB_OK;
    char text[sizeof plane->failure];
    snprintf(text, sizeof text, "NCCL: %s: %s (%s)", what, plane->nccl->GetErrorString(code),
             plane->nccl->GetLastError(plane->comm));
    wb_nccl_plane_fail(plane, text);
    return check_alive(plane);
}

/* One look: *done_out. */
static wb_status look(wb_nccl_plane *plane, const char *what, double deadline, bool *done_out) {
    pthread_mutex_lock(&plane->mutex);
    ncclResult_t state = ncclSuccess;
    wb_status status = check_alive(plane);
    if (status == WB_OK)
        status = check_call(plane, plane->nccl->CommGetAsyncError(plane->comm, &state), what);
    if (status == WB_OK) status = check_call(plane, state, what);
    if (status == WB_OK && state == ncclInProgress && wb_nccl_now() > deadline) {
        char text[128];
        snprintf(text, sizeof text, "NCCL: %s: waited %g s", what, plane->timeout);
        wb_nccl_plane_fail(plane, text);
        status = check_alive(plane);
    }
    pthread_mutex_unlock(&plane->mutex);
    *done_out = state != ncclInProgress;
    return status;
}

/* Waits, at most the timeout, until NCCL has done on the host what it was last asked to: transfers are on the
 * stream then. */
static wb_status settle(wb_nccl_plane *plane, const char *what) {
    const double deadline = wb_nccl_now() + plane->timeout;
    bool done = false;
    for (;;) {
        WB_TRY(look(plane, what, deadline, &done));
        if (done) return WB_OK;
        /* NCCL works in a thread of its own, which may need this core. */
        sched_yield();
    }
}

wb_status wb_nccl_plane_connect(wb_nccl_plane *plane, const ncclUniqueId *id) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    pthread_mutex_lock(&plane->mutex);
    wb_status status = check_alive(plane);
    if (status == WB_OK)
        status = check_call(
            plane, plane->nccl->CommInitRankConfig(&plane->comm, plane->ranks, *id, plane->rank, &config),
            "open");
    pthread_mutex_unlock(&plane->mutex);
    WB_TRY(status);
    return settle(plane, "open");
}

/* ---- groups -------------------------------------------------------------------------------------- */

static ncclResult_t call_item(const wb_nccl_plane *plane, const wb_transfer *t) {
    return t->receive ? plane->nccl->Recv(t->data, t->bytes, ncclInt8, t->peer, plane->comm, plane->stream)
                      : plane->nccl->Send(t->data, t->bytes, ncclInt8, t->peer, plane->comm, plane->stream);
}

/* Under the mutex. A group that was begun is always ended, or the thread's next one would be part of it. */
static ncclResult_t call_group(const wb_nccl_plane *plane, const wb_exchange_item *items, size_t n) {
    ncclResult_t code = plane->nccl->GroupStart();
    if (code != ncclSuccess) return code;
    for (size_t i = 0; i < n && (code == ncclSuccess || code == ncclInProgress); i++)
        if (items[i].transfer.bytes > 0) code = call_item(plane, &items[i].transfer);
    const ncclResult_t end = plane->nccl->GroupEnd();
    return code == ncclSuccess || code == ncclInProgress ? end : code;
}

/* The keeper looks at groups from here on. */
static void count_group(wb_nccl_plane *plane, const wb_exchange_item *items, size_t n) {
    pthread_mutex_lock(&plane->mutex);
    plane->queued++;
    for (size_t i = 0; i < n; i++)
        if (items[i].transfer.bytes > 0) plane->last_with[items[i].transfer.peer] = plane->queued;
    pthread_cond_broadcast(&plane->changed);
    pthread_mutex_unlock(&plane->mutex);
}

wb_status wb_nccl_plane_queue(wb_nccl_plane *plane, void *after, const wb_exchange_item *items, size_t n,
                              void *come) {
    WB_TRY(wb_gpu_record(plane->joined, after));
    WB_TRY(wb_gpu_wait(plane->stream, plane->joined));
    pthread_mutex_lock(&plane->mutex);
    wb_status status = check_alive(plane);
    if (status == WB_OK) status = check_call(plane, call_group(plane, items, n), "group");
    pthread_mutex_unlock(&plane->mutex);
    WB_TRY(status);
    WB_TRY(settle(plane, "group"));
    count_group(plane, items, n);
    return wb_gpu_record(come, plane->stream);
}
