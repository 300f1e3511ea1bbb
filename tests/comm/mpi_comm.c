/* mpi_comm.c - the MPI transport, under mpirun: the common core with ordinary messages, and with messages so
 * short that every larger buffer takes several. All ranks exit with the same verdict. */
#include "comm_core.h"
#include "mpi/comm_mpi.h"

#include <time.h>
#include <unistd.h>

#define SHORT_MESSAGE_BYTES 10007

static int run(uint64_t seed, int message_bytes) {
    wb_comm *comm = NULL;
    const wb_status status = message_bytes > 0
                                 ? wb_comm_open_mpi_messages(MPI_COMM_WORLD, message_bytes, &comm)
                                 : wb_comm_open_mpi(MPI_COMM_WORLD, &comm);
    if (status != WB_OK) {
        fprintf(stderr, "open: %s\n", wb_error_message());
        return 1;
    }
    const int failures = comm_core_run(comm, seed);
    wb_comm_close(comm);
    return failures;
}

int main(int argc, char **argv) {
    wb_comm *comm = NULL;
    int rank = 0, any = 0;
    /* Before MPI_Init it is refused. */
    int failures = wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_INVALID_ARGUMENT;
    /* A hang is a failure. */
    alarm(120);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    uint64_t seed = (uint64_t)time(NULL);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("mpi_comm: seed %" PRIu64 "\n", seed);

    failures += wb_comm_open_mpi(MPI_COMM_NULL, &comm) != WB_INVALID_ARGUMENT;
    failures += run(seed, 0);
    failures += run(seed + 1, SHORT_MESSAGE_BYTES);
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
