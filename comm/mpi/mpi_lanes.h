/* mpi_lanes.h - the lanes of the data plane between MPI processes (internal).
 *
 * Owns: a lane to and from each other rank, on which transfers go one after the other, each as a frame and,
 * where it is long, as messages of data behind it; up to WB_LANE_MESSAGES of a lane are on their way at once,
 * and receives are posted before the messages come. Where the host has no access to the memory, data pass
 * through the messages' buffers, of which one is filled or emptied while the others travel. Refuses: how long
 * a rank waits, and for whom (exchange_mpi.c).
 *
 * Both sides know all sizes, so that nobody asks: sender and receiver post the same messages in the same
 * order. The frame says what its sender believes. It is looked at before anything that came behind it, and a
 * receive never takes more than its transfer has room for, so that a size that the two sides disagree on is
 * found, and writes nothing outside. */
#ifndef WB_MPI_LANES_H
#define WB_MPI_LANES_H

#include "mpi_messages.h"
#include "wb_exchange.h"

#define WB_LANE_MESSAGES 4

/* The first message of a transfer, with all of it where it has at most WB_MPI_SHORT_BYTES. */
typedef struct wb_lane_frame {
    uint64_t group, bytes;
    unsigned char part[WB_MPI_SHORT_BYTES];
} wb_lane_frame;

typedef struct wb_lane_message {
    MPI_Request request;
    wb_exchange_item *item;
    bool is_frame, is_last; /* of its item */
    void *data;             /* device [length]: the part of a frame, or what a message of data is */
    size_t length;
    unsigned char *buffer; /* a frame, or a staged piece of data */
} wb_lane_message;

typedef struct wb_lane {
    int peer;
    bool receives;                  /* or sends */
    wb_exchange_item *first, *last; /* those with messages still to be posted, by `next`; NULL: none */
    bool announced;                 /* the frame of `first` was posted */
    wb_lane_message messages[WB_LANE_MESSAGES];
    unsigned begin, n; /* those on their way: n from `begin` on, around the end */
} wb_lane;

typedef struct wb_lanes {
    wb_exchange_memory memory;
    MPI_Comm comm; /* MPI_COMM_NULL until opened */
    int rank, ranks;
    size_t piece_bytes;     /* of the longest message of data; the same on all ranks */
    wb_lane *lanes;         /* [2 * ranks] receives, then sends; this rank's own stay empty */
    unsigned char *buffers; /* of all messages, one block of memory.host_alloc */
} wb_lanes;

/* Memory of this rank, for lanes whose memory, rank and ranks are set. `staged_bytes`: of a piece, where the
 * host has no access. Without a communicator yet. */
wb_status wb_lanes_prepare(wb_lanes *lanes, size_t staged_bytes);

/* Frees what wb_lanes_prepare took, and the communicator. Not after a failure: MPI may still write. */
void wb_lanes_close(wb_lanes *lanes);

/* Behind what its lane has. */
void wb_lanes_push(wb_lanes *lanes, wb_exchange_item *item);

/* Takes what has come, and posts what there is room for; does not wait. */
wb_status wb_lanes_move(wb_lanes *lanes);

/* The memory of all items is the caller's again: receives are taken back, and what is under way at this
 * moment is waited for, but not for ever: a long message that nobody receives stays MPI's. */
void wb_lanes_drop(wb_lanes *lanes);

#endif
