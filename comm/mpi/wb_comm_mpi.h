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
 * Sizes that disagree between two ranks are an error of the caller. It is found (MISMATCH) where MPI says
 * that a message was cut, but Open MPI 4.1 writes one above its eager limit (some KiB) whole, beyond the part
 * that was given for it; and of parts above 1 GiB what is left of the longer side goes to the next call.
 *
 * After a failure wb_comm_close leaves the duplicates to MPI, which may have messages for ranks that are
 * gone; MPI_Finalize may wait for such ranks. A program that does not go on without them ends the job with
 * MPI_Abort, which wb_comm_abort does not call. */
WB_API wb_status wb_comm_open_mpi(MPI_Comm mpi_comm, wb_comm **comm_out);

#ifdef __cplusplus
}
#endif
#endif
