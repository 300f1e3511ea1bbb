/* mpi_messages.h - the messages between two MPI processes (internal).
 *
 * Owns: the state of the adapter on one rank, the messages that are on their way, and the frame, in which
 * each message of unknown length arrives. Refuses: who talks to whom (mpi_calls.h).
 *
 * A size that two ranks disagree on must write nothing and leave nothing in the network. So the first message
 * between two ranks in a call is a frame: it is received into memory that holds any frame, it carries a part
 * of at most WB_MPI_SHORT_BYTES, and it says which call it belongs to and what its sender sends and expects.
 * A longer part follows its frame, in messages of `message_bytes`, only where both sizes are the same. */
#ifndef WB_MPI_MESSAGES_H
#define WB_MPI_MESSAGES_H

#include "mpi_control.h"

/* A frame with as much as this leaves at once in Open MPI, whose shared memory takes 4 KiB eagerly. */
#define WB_MPI_SHORT_BYTES 4000

typedef struct wb_mpi_frame {
    uint64_t call;           /* the number of the call, from 1, times WB_MPI_CALLS, plus its wb_mpi_call */
    uint64_t sends, expects; /* bytes: what its sender sends to its receiver, and expects of it */
    unsigned char part[WB_MPI_SHORT_BYTES];
} wb_mpi_frame;

typedef struct wb_mpi_state {
    MPI_Comm comm; /* MPI_COMM_NULL until duplicated */
    wb_mpi_control control;
    size_t message_bytes;
    MPI_Request *messages; /* [2 * size] those posted: receives, then sends */
    int n_receives, n_messages;
    wb_mpi_frame *sent, *received; /* [size] */
    /* [size] the arguments of an exchange in which every part has the same size */
    size_t *same_bytes, *same_offsets, *rising_offsets;
} wb_mpi_state;

/* OK, or PEER with MPI's own text. */
wb_status wb_mpi_check(int code, const char *call);

/* Each posts one message; all receives are posted before the first send. The memory is MPI's until
 * wb_mpi_finish or wb_mpi_drop. */
wb_status wb_mpi_receive(wb_mpi_state *state, int from, void *at, size_t length);
wb_status wb_mpi_send(wb_mpi_state *state, int to, const void *at, size_t length);

/* The frame from rank `from` arrives in state->received[from]. */
wb_status wb_mpi_receive_frame(wb_mpi_state *state, int from);

/* part: [sends], copied into the frame when it is short. */
wb_status wb_mpi_send_frame(wb_mpi_state *state, int to, const void *part, size_t sends, size_t expects);

/* A frame that has arrived: PEER when it belongs to another call than this rank's. */
wb_status wb_mpi_check_frame(const wb_mpi_state *state, int from);

/* Waits for all messages that were posted; PEER when the wait ended first. */
wb_status wb_mpi_finish(wb_comm *comm);

/* The memory of messages is the caller's again: receives are taken back, and what is under way at this moment
 * is waited for, but not for ever. A long message that nobody receives stays MPI's. */
void wb_mpi_drop(wb_mpi_state *state);

#endif
