/* mpi_calls.h - the collective calls between MPI processes (internal): wb_comm_ops says what each does.
 *
 * Every call is made of messages between two ranks, none of MPI's collectives: a wait for messages can be
 * given up (mpi_control.h), and a receive that was posted can be taken back, so that MPI does not write into
 * the caller's memory after the call has failed. */
#ifndef WB_MPI_CALLS_H
#define WB_MPI_CALLS_H

#include "wb_comm.h"

wb_status wb_mpi_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root);
wb_status wb_mpi_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv);
wb_status wb_mpi_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                              const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                              const size_t *recv_offsets);
wb_status wb_mpi_barrier(wb_comm *comm);

#endif
