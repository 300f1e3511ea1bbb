/* mpi_comm.c - the MPI transport, under mpirun: the common core with ordinary messages, and with messages so
 * short that every larger buffer takes several; then ranks that are late, give up, or are elsewhere. All
 * ranks exit with the same verdict. */
#include "comm_core_sizes.h"
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
    const int failures = comm_core_run(comm, seed) + comm_core_sizes(comm, seed);
    wb_comm_close(comm);
    return failures;
}

/* The communicator of each is dead at the end; a job of one rank waits for nobody. */
static int run_failures(int (*body)(wb_comm *, size_t), size_t n) {
    int failures = 0;
    for (size_t call = 0; call < n; call++) {
        wb_comm *comm = NULL;
        if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) return failures + 1;
        if (wb_comm_size(comm) > 1) failures += body(comm, call);
        wb_comm_close(comm);
    }
    return failures;
}

/* Rank 0 comes to a barrier, the last rank to nothing, those between to another call. */
static int elsewhere(wb_comm *comm, size_t call) {
    core state = {comm, (size_t)wb_comm_rank(comm), (size_t)wb_comm_size(comm), 0, 0};
    core *c = &state;
    unsigned char byte = 0;
    if (c->ranks < 3 || call > 0) return 0;
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(comm, 0.4));
    if (c->rank == 0) {
        core_check_says(c, wb_comm_barrier(comm), 1, "is in broadcast");
        CHECK(c, strstr(wb_error_message(), "did not come") != NULL);
    } else if (c->rank + 1 < c->ranks) {
        core_check_says(c, wb_comm_broadcast(comm, &byte, 1, (int)c->ranks - 1), c->ranks - 1,
                        "did not come");
    } else {
        core_sleep(2);
    }
    core_check_dead(c);
    return c->failures;
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
    failures += run_failures(comm_core_late, CORE_WAITS);
    failures += run_failures(comm_core_gives_up, CORE_WAITS);
    failures += run_failures(comm_core_broadcast_sizes, CORE_ODD_SIZES);
    failures += run_failures(elsewhere, CORE_WAITS);
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
