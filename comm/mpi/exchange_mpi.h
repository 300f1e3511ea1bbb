/* exchange_mpi.h - the data plane between MPI processes, as the communicator's adapter offers it
 * (internal). */
#ifndef WB_EXCHANGE_MPI_H
#define WB_EXCHANGE_MPI_H

#include "wb_exchange.h"

/* wb_comm_ops.open_exchange of MPI. */
wb_status wb_mpi_open_exchange(wb_comm *comm, const wb_exchange_memory *memory, wb_exchange **exchange_out);

#endif
