/* bench_exchange_mpi.c - the data plane beside the control plane, between MPI processes, with host memory and
 * with memory that has to be staged.
 *
 * Usage: mpirun -n 2 bench_exchange_mpi
 */
#include "bench/bench_exchange.h"
#include "wb_comm_mpi.h"

int main(int argc, char **argv) {
    wb_comm *comm = NULL;
    MPI_Init(&argc, &argv);
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &comm));
    bench_run(comm, true);
    bench_run(comm, false);
    wb_comm_close(comm);
    MPI_Finalize();
    return 0;
}
