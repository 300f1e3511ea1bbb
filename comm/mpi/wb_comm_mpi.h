/* wb_comm_mpi.h - the MPI adapter of wb_comm.h. The only public header that needs mpi.h. */
#ifndef WB_COMM_MPI_H
#define WB_COMM_MPI_H

#include "wb_comm.h"

#include <mpi.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A communicator over two duplicates of `mpi_comm`; the caller has called MPI_Init (or MPI_Init_thread) and
 * calls MPI_Finalize after wb_comm_close. Collective over mpi_comm, and the one call here whose wait is
 * MPI's own and has no bound. MPI's errors come back as WB_PEER.
 *
 * Sizes that two ranks do not share are found before a byte of the part is written. In all_gather and
 * all_to_all_v both ranks get MISMATCH and the communicator lives. In broadcast the rank that finds it gets
 * MISMATCH and gives up, since the root may have left: the others get PEER with its message, at the latest in
 * their next call. Each communicator keeps 8 KiB a rank for the first message of each pair.
 *
 * After a failure wb_comm_close leaves the duplicates to MPI, which may have messages for ranks that are
 * gone; MPI_Finalize may wait for such ranks. A program that does not go on without them ends the job with
 * MPI_Abort, which wb_comm_abort does not call. */
WB_API wb_status wb_comm_open_mpi(MPI_Comm mpi_comm, wb_comm **comm_out);

#ifdef __cplusplus
}
#endif
#endif
