/* comm_mpi.h - the MPI adapter with its message size exposed (internal, not installed): tests set it low to
 * walk the path of buffers that one MPI count cannot hold. */
#ifndef WB_COMM_MPI_INTERNAL_H
#define WB_COMM_MPI_INTERNAL_H

#include "wb_comm_mpi.h"

/* wb_comm_open_mpi with messages of at most `message_bytes`, 1..INT_MAX, the same on all ranks. */
wb_status wb_comm_open_mpi_messages(MPI_Comm mpi_comm, int message_bytes, wb_comm **comm_out);

#endif
