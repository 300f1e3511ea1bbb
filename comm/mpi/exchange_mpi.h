/* exchange_mpi.h - the data plane between MPI processes, as the communicator's adapter offers it
 * (internal). */
#ifndef WB_EXCHANGE_MPI_H
#define WB_EXCHANGE_MPI_H

#include "mpi_control.h"
#include "wb_exchange.h"

/* What an exchange needs of its communicator. */
typedef struct wb_mpi_link {
    MPI_Comm comm; /* an exchange duplicates it */
    wb_mpi_control *control;
    size_t message_bytes; /* the longest message */
} wb_mpi_link;

/* wb_comm_ops.open_exchange of MPI; `link` is copied. */
wb_status wb_mpi_open_exchange(wb_comm *comm, const wb_mpi_link *link, const wb_exchange_memory *memory,
                               wb_exchange **exchange_out);

#endif
