/* mpi_control.h - how a wait between MPI processes ends when no message comes (internal).
 *
 * Owns: a second duplicate of the caller's communicator, on which ranks tell each other two things, each at
 * most once: "I give up", and "I have waited too long", with the call that the rank is in. Whoever reads the
 * second while it waits says the same, and so all that are there learn within a grace period who is not.
 * After either the communicator is dead. Refuses: moving the caller's bytes.
 *
 * Letters are read when a call begins and while it waits; a rank that computes reads none, and is late. */
#ifndef WB_MPI_CONTROL_H
#define WB_MPI_CONTROL_H

#include "wb_comm_mpi.h"

typedef enum wb_mpi_call {
    WB_MPI_BROADCAST,
    WB_MPI_ALL_GATHER,
    WB_MPI_ALL_TO_ALL_V,
    WB_MPI_BARRIER,
    WB_MPI_EXCHANGE, /* a start or a wait of an exchange */
    WB_MPI_CALLS     /* how many there are */
} wb_mpi_call;

typedef struct wb_mpi_letter {
    int32_t kind;    /* of letter */
    int32_t call;    /* a wb_mpi_call ... */
    uint64_t number; /* ... and which call of the communicator it is, from 1 */
    char text[496];
} wb_mpi_letter;

/* What a rank is known to wait in; number 0: nothing was heard of it. */
typedef struct wb_mpi_heard {
    uint64_t number;
    wb_mpi_call call;
} wb_mpi_heard;

typedef struct wb_mpi_control {
    MPI_Comm comm;       /* MPI_COMM_NULL until opened */
    wb_mpi_letter next;  /* where the next letter of any rank arrives ... */
    MPI_Request receive; /* ... always posted */
    bool dead;
    char failure[512];     /* why, once dead */
    wb_mpi_call call;      /* this rank's latest ... */
    uint64_t number;       /* ... and its number */
    double deadline;       /* of that call, MPI_Wtime; 0: it has not waited yet */
    wb_mpi_letter mine[2]; /* this rank's, by kind, as long as MPI may read them */
    MPI_Request *sends;    /* [size], of the latest letter */
    wb_mpi_heard *heard;   /* [size] */
} wb_mpi_control;

/* Memory of this rank, without a communicator yet. */
wb_status wb_mpi_control_prepare(int size, wb_mpi_control *control);

/* The channel, over a duplicate of `over`. Collective. */
wb_status wb_mpi_control_open(MPI_Comm over, wb_mpi_control *control);

/* Not after a failure: MPI may still read letters. */
void wb_mpi_control_close(wb_mpi_control *control);

/* Begins a call, in two steps, of which one that does not wait needs no second: PEER when the communicator is
 * dead; and when a letter has come that says so, or that this rank is late. */
wb_status wb_mpi_control_begin(wb_mpi_control *control, wb_mpi_call call);
wb_status wb_mpi_control_hear(wb_comm *comm, wb_mpi_control *control);

/* Both steps. */
wb_status wb_mpi_control_enter(wb_comm *comm, wb_mpi_control *control, wb_mpi_call call);

/* Waits for `request`, with its code and status; PEER when the wait ended first. */
wb_status wb_mpi_control_wait(wb_comm *comm, wb_mpi_control *control, MPI_Request *request, int *code_out,
                              MPI_Status *status_out);

/* To be called now and then while this rank waits by itself, after wb_mpi_control_enter: PEER when the wait
 * has to end. */
wb_status wb_mpi_control_look(wb_comm *comm, wb_mpi_control *control);

/* Between calls: PEER when the communicator is dead, and when a letter has come that says so. */
wb_status wb_mpi_control_peek(wb_mpi_control *control);

/* Tells all others that this rank gives up, for `reason`. */
void wb_mpi_control_give_up(wb_comm *comm, wb_mpi_control *control, const char *reason);

const char *wb_mpi_call_name(wb_mpi_call call);

#endif
