/* mpi_rebalance.c - a manager's ranks under mpirun: the core that threads run too. All ranks exit with the
 * same verdict.
 *
 * Usage: mpi_rebalance [seed [killed]]: the second kills the last rank in mid-move and does nothing else. */
#include "rebalance_core.h"
#include "support/test_seed.h"
#include "wb_comm_mpi.h"

#include <mpi.h>

static int run(uint64_t seed) {
    wb_comm *comm = NULL;
    if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) {
        fprintf(stderr, "open: %s\n", wb_error_message());
        return 1;
    }
    const int failures = rebalance_core_run(comm, seed);
    wb_comm_close(comm);
    return failures;
}

/* The others say how they ended, and leave as a program does that has lost a rank: MPI_Finalize would wait
 * for it. */
static void run_killed(uint64_t seed) {
    core state = {.seed = seed}, *c = &state;
    if (wb_comm_open_mpi(MPI_COMM_WORLD, &c->comm) != WB_OK || wb_comm_set_timeout(c->comm, 2) != WB_OK)
        _exit(1);
    const int rank = wb_comm_rank(c->comm), last = wb_comm_size(c->comm) - 1;
    const wb_rebalance_options options = core_options();
    uint64_t random = seed * 64 + (uint64_t)rank;
    char name[32];
    core_open(c, &options);
    if (rank == last) c->dies_after = 1 + (long)(wb_mix64(seed) % 40);
    wb_status status = WB_OK;
    for (int i = 0; i < 100000 && status == WB_OK; i++) {
        core_skewed_pass(c, i % 16 < 8 ? 20 : -0.99, &random);
        status = core_boundary(c);
    }
    snprintf(name, sizeof name, "rank %d", last);
    const bool named = status == WB_PEER && strstr(wb_error_message(), name);
    printf("rank %d of %d %s: %s\n", rank, last + 1, named ? "survived" : "failed", wb_error_message());
    fflush(NULL);
    _exit(named ? 0 : 1);
}

int main(int argc, char **argv) {
    int rank = 0, failures = 0, any = 0;
    alarm(120); /* a hang is a failure */
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("mpi_rebalance: seed %" PRIu64 "\n", seed);
    if (argc > 2 && strcmp(argv[2], "killed") == 0) run_killed(seed);
    failures = run(seed);
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
