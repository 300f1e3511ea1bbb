/* mpi_moving.c - an engine under mpirun whose experts move while it generates: every answer is that of the
 * request alone on one rank; with layers that a table routes too; then once more with a rank that is dead.
 * All ranks exit with the same verdict: a difference aborts. */
#include "rebalance_fixture.h"
#include "support/test_seed.h"
#include "wb_comm_mpi.h"

#include <mpi.h>

/* Runs, each of another placement, until something moves. */
enum { MAX_MORE = 20 };

static void play(mover *m) {
    answer_as_alone(m, 5, 0, 8);
    answer_as_alone(m, 5, 8, 8);
}

int main(int argc, char **argv) {
    int rank = 0;
    alarm(200); /* a hang is a failure */
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("mpi_moving: seed %" PRIu64 "\n", seed);
    mover m = {.seed = seed, .options = eager_options(), .play = play};
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &m.comm), "comm");
    const int n = wb_comm_size(m.comm);
    run_mover(&m);
    /* A random placement may be one that no move can better, as where each rank has every expert. */
    for (int more = 0; n > 1 && m.stats.moves == 0 && more < MAX_MORE; more++) {
        m.seed++;
        run_mover(&m);
    }
    const uint64_t moves = m.stats.moves;
    m.config = hashing_config();
    run_mover(&m);
    m.config = moving_config();
    m.dead[seed % (uint64_t)n] = n > 1;
    run_mover(&m);
    wb_comm_close(m.comm);
    /* Of several ranks something must have moved. */
    if (n > 1 && moves == 0) fprintf(stderr, "rank %d: no expert moved\n", rank);
    MPI_Finalize();
    return n == 1 || moves > 0 ? 0 : 1;
}
