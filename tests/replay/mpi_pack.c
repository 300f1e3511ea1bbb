/* mpi_pack.c - packings between processes, which have no memory in common. Argument 1 sets the seed. */
#include "pack_steps.h"
#include "support/test_seed.h"
#include "wb_comm_mpi.h"

#include <unistd.h>

int main(int argc, char **argv) {
    alarm(250); /* a hang is a failure */
    MPI_Init(&argc, &argv);
    base_seed = test_seed(argc, argv);
    MPI_Bcast(&base_seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    rank r = {.state = wb_mix64(base_seed)};
    MUST(wb_comm_open_mpi(MPI_COMM_WORLD, &r.comm));
    r.number = wb_comm_rank(r.comm);
    r.of = wb_comm_size(r.comm);
    if (r.number == 0) printf("mpi_pack: seed %" PRIu64 "\n", base_seed);
    EXPECT(r.of <= MAX_RANKS);
    pack_random_steps(&r);
    move_random_steps(&r);
    wb_comm_close(r.comm);
    MPI_Finalize();
    return 0;
}
