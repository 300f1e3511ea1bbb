/* mpi_eplb.c - placements between ranks under mpirun: the core that threads run too. All ranks exit with
 * the same verdict. */
#include "placement_core.h"
#include "support/test_seed.h"
#include "wb_comm_mpi.h"

#include <inttypes.h>
#include <mpi.h>
#include <unistd.h>

static int run(uint64_t seed) {
    wb_comm *comm = NULL;
    if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) {
        fprintf(stderr, "open: %s\n", wb_error_message());
        return 1;
    }
    const int failures = placement_core_run(comm, seed);
    wb_comm_close(comm);
    return failures;
}

int main(int argc, char **argv) {
    int rank = 0, failures = 0, any = 0;
    alarm(120); /* a hang is a failure */
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("mpi_eplb: seed %" PRIu64 "\n", seed);
    failures = run(seed);
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
