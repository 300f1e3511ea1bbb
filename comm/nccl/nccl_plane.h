/* nccl_plane.h - one rank's NCCL communicator and the stream that all its transfers lie on (internal).
 *
 * Owns: the order of NCCL's calls, of which there is one at a time; what was queued and how far it has come;
 * how it ends. Two threads use it: the caller's, and the keeper (nccl_keeper.h), which alone aborts NCCL.
 * Nobody waits without a bound for what the other or another rank does. Refuses: the control plane
 * (comm_nccl.c), what a group is made of (exchange_nccl.c). */
#ifndef WB_NCCL_PLANE_H
#define WB_NCCL_PLANE_H

#include "nccl_cuda.h"
#include "nccl_library.h"
#include "wb_exchange.h"

#include <pthread.h>

/* Who has to hear that what lies on its stream is worth nothing; in a list. */
typedef struct wb_nccl_listener {
    struct wb_nccl_listener *next;
    void (*lose)(void *context, const char *why);
    void *context;
} wb_nccl_listener;

typedef struct wb_nccl_plane {
    const wb_nccl_library *nccl;
    int gpu, rank, ranks;
    void *stream; /* NULL until opened */
    void *joined; /* event: what lay on a caller's stream at the latest start */
    void *probe;  /* event, the keeper's: what lay on `stream` when it last looked */
    pthread_t keeper;
    bool keeper_runs;

    pthread_mutex_t mutex;  /* guards what follows, and each call of NCCL but ncclCommAbort */
    pthread_cond_t changed; /* on the monotonic clock */
    ncclComm_t comm;        /* NULL: not opened, or taken by the keeper */
    bool ending;            /* no call of NCCL begins any more ... */
    bool ended;             /* ... and none of its kernels runs any more */
    bool closing;           /* the keeper has to return */
    bool failed;
    char failure[512]; /* why, once failed */
    double timeout;    /* seconds */
    /* Groups that were put on the stream, and of these, as the keeper has found, have ended. */
    uint64_t queued, done;
    uint64_t *last_with; /* [ranks] the latest of the groups that rank r is part of; 0: none */
    wb_nccl_listener *listeners;
} wb_nccl_plane;

/* Memory of this rank, without stream, communicator and keeper. */
wb_status wb_nccl_plane_new(int gpu, int rank, int ranks, wb_nccl_plane **plane_out);

/* Neither NCCL nor the keeper may run any more. */
void wb_nccl_plane_free(wb_nccl_plane *plane);

/* PEER once it has failed, and once it ends. */
wb_status wb_nccl_plane_check(wb_nccl_plane *plane);

/* The first failure stays: listeners hear it, and the keeper aborts NCCL. Of any thread, the first of them
 * under the mutex. */
void wb_nccl_plane_fail(wb_nccl_plane *plane, const char *failure);
void wb_nccl_plane_give_up(wb_nccl_plane *plane, const char *failure);

/* NCCL is no longer used, well or not: waits for the keeper's abort, but not for ever; whether it came. */
bool wb_nccl_plane_end(wb_nccl_plane *plane);

/* Waits until all that was queued has come, which the keeper bounds. */
wb_status wb_nccl_plane_drain(wb_nccl_plane *plane);

/* Opens the communicator, in which all ranks meet. */
wb_status wb_nccl_plane_connect(wb_nccl_plane *plane, const ncclUniqueId *id);

/* Puts the transfers of items, [n], that have bytes on the stream, after what lies on `after`, between two
 * ranks in the order of the items. Does not wait for other ranks, once connected with them. `come`: an event
 * that is recorded behind them. */
wb_status wb_nccl_plane_queue(wb_nccl_plane *plane, void *after, const wb_exchange_item *items, size_t n,
                              void *come);

/* Now, on the clock of `changed`, in seconds; and the point of time then. */
double wb_nccl_now(void);
struct timespec wb_nccl_time(double seconds);

#endif
