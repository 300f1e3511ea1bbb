/* nccl_keeper.c - see nccl_keeper.h. */
#include "nccl_keeper.h"
#include "wb_check.h"

#include <stdio.h>
#include <time.h>

/* Between two looks, in seconds. */
#define LOOK_SECONDS 0.005

/* What the keeper waits for now: the groups up to `number`, which were on the stream when it began. */
typedef struct watch {
    uint64_t number; /* 0: nothing */
    double begin;
} watch;

/* Under the mutex: the ranks of open transfers. Which of them did not come, nobody tells. */
static void fail_late(wb_nccl_plane *plane) {
    char text[sizeof plane->failure];
    int n = 0;
    for (int r = 0; r < plane->ranks; r++) n += plane->last_with[r] > plane->done;
    size_t used = (size_t)snprintf(text, sizeof text, "NCCL: waited %g s: %s", plane->timeout,
                                   n > 1 ? "one of these did not come: " : "");
    const char *comma = "";
    for (int r = 0; r < plane->ranks && used < sizeof text; r++) {
        if (plane->last_with[r] <= plane->done) continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%srank %d", comma, r);
        comma = ", ";
    }
    if (n == 1 && used < sizeof text) snprintf(text + used, sizeof text - used, " did not come");
    wb_nccl_plane_fail(plane, text);
}

/* Under the mutex. A group that is being queued is in progress, which is no error. */
static void look_for_errors(wb_nccl_plane *plane) {
    char text[sizeof plane->failure];
    ncclResult_t state = ncclSuccess;
    ncclResult_t code = plane->nccl->CommGetAsyncError(plane->comm, &state);
    if (code == ncclSuccess) code = state;
    if (code == ncclSuccess || code == ncclInProgress) return;
    snprintf(text, sizeof text, "NCCL: %s (%s)", plane->nccl->GetErrorString(code),
             plane->nccl->GetLastError(plane->comm));
    wb_nccl_plane_fail(plane, text);
}

/* Under the mutex. */
static wb_status look(wb_nccl_plane *plane, watch *w) {
    bool come = false;
    if (w->number == 0) {
        WB_TRY(wb_gpu_record(plane->probe, plane->stream));
        *w = (watch){plane->queued, wb_nccl_now()};
    }
    WB_TRY(wb_gpu_has_come(plane->probe, &come));
    if (come) {
        plane->done = w->number;
        w->number = 0;
        pthread_cond_broadcast(&plane->changed);
    } else if (wb_nccl_now() - w->begin > plane->timeout) {
        fail_late(plane);
    } else {
        look_for_errors(plane);
    }
    return WB_OK;
}

/* Until nothing lies on it, or the GPU says that it has failed. */
static void wait_for_stream(wb_nccl_plane *plane) {
    bool come = wb_gpu_record(plane->probe, plane->stream) != WB_OK;
    while (!come && wb_gpu_has_come(plane->probe, &come) == WB_OK && !come)
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

/* Under the mutex, which is free during the abort: nobody calls NCCL any more. Between threads of one process
 * ncclCommAbort tells its kernels to leave, and does not wait for it. */
static void abort_nccl(wb_nccl_plane *plane) {
    const ncclComm_t comm = plane->comm;
    plane->comm = NULL;
    pthread_mutex_unlock(&plane->mutex);
    if (comm) plane->nccl->CommAbort(comm);
    wait_for_stream(plane);
    pthread_mutex_lock(&plane->mutex);
    plane->ended = true;
    pthread_cond_broadcast(&plane->changed);
}

/* Under the mutex, which is free between two looks. */
static void watch_stream(wb_nccl_plane *plane, watch *w) {
    if (look(plane, w) != WB_OK) wb_nccl_plane_fail(plane, wb_error_message());
    const struct timespec then = wb_nccl_time(wb_nccl_now() + LOOK_SECONDS);
    if (!plane->ending) pthread_cond_timedwait(&plane->changed, &plane->mutex, &then);
}

static void *keep(void *opaque) {
    wb_nccl_plane *plane = opaque;
    watch w = {0, 0};
    const wb_status used = wb_gpu_use(plane->gpu);
    pthread_mutex_lock(&plane->mutex);
    if (used != WB_OK) wb_nccl_plane_fail(plane, wb_error_message());
    while (!plane->closing) {
        if (plane->ending && !plane->ended)
            abort_nccl(plane);
        else if (plane->ended || plane->done == plane->queued)
            pthread_cond_wait(&plane->changed, &plane->mutex);
        else
            watch_stream(plane, &w);
    }
    pthread_mutex_unlock(&plane->mutex);
    return NULL;
}

wb_status wb_nccl_keeper_start(wb_nccl_plane *plane) {
    if (pthread_create(&plane->keeper, NULL, keep, plane) != 0)
        return wb_fail(WB_OUT_OF_MEMORY, "NCCL: a thread");
    plane->keeper_runs = true;
    return WB_OK;
}

void wb_nccl_keeper_stop(wb_nccl_plane *plane) {
    if (!plane->keeper_runs) return;
    pthread_mutex_lock(&plane->mutex);
    plane->closing = true;
    pthread_cond_broadcast(&plane->changed);
    pthread_mutex_unlock(&plane->mutex);
    pthread_join(plane->keeper, NULL);
    plane->keeper_runs = false;
}
