/* bench_packed_mpi.c - a replayed step as it came beside the same step packed and planned, between MPI
 * processes.
 *
 * Usage: mpirun -n 4 bench_packed_mpi [REPEATS]
 */
#include "bench/bench_packed.h"
#include "support/usage.h"
#include "wb_comm_mpi.h"

int main(int argc, char **argv) {
    wb_comm *comm = NULL;
    int code;
    if (usage_ends(argc, argv, 0, 1, "usage: mpirun -n RANKS bench_packed_mpi [REPEATS]\n", &code))
        return code;
    MPI_Init(&argc, &argv);
    const int repeats = argc > 1 ? atoi(argv[1]) : 11;
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &comm));
    if (repeats >= 1 && repeats <= MAX_REPEATS) bench_run(comm, repeats);
    wb_comm_close(comm);
    MPI_Finalize();
    return 0;
}
