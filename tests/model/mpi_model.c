/* mpi_model.c - a model over MPI ranks against the same model on one rank: the core of model_ranks.h on
 * the golden checkpoints and on random models. All ranks exit with the same verdict. */
#include "model_ranks.h"
#include "support/test_seed.h"
#include "wb_comm_mpi.h"

#include <unistd.h>

static fixture fixture_open(const char *dir, wb_comm *comm) {
    fixture f = {.comm = comm};
    MUST(wb_device_open_cpu(1, &f.device));
    wb_model_options options = wb_model_options_default();
    options.device = f.device;
    options.comm = comm;
    MUST(wb_model_open(dir, &options, &f.model));
    fixture_finish(&f);
    return f;
}

static int run_golden(wb_comm *comm, const char *family, uint64_t seed) {
    char dir[1024];
    snprintf(dir, sizeof dir, "%s/%s", WB_TEST_DATA, family);
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    ranks_test test = {.name = family, .seed = seed};
    test.spread = fixture_open(dir, comm);
    test.whole = fixture_open(dir, self);
    const int failures = ranks_test_run(&test);
    wb_comm_close(self);
    return failures;
}

int main(int argc, char **argv) {
    alarm(250); /* a hang is a failure */
    MPI_Init(&argc, &argv);
    wb_comm *comm;
    MUST(wb_comm_open_mpi(MPI_COMM_WORLD, &comm));
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (wb_comm_rank(comm) == 0) printf("mpi_model: seed %" PRIu64 "\n", seed);

    int failures = run_golden(comm, "qwen3_moe", seed) + run_golden(comm, "olmoe", seed) +
                   run_golden(comm, "deepseek_v2", seed) + run_golden(comm, "deepseek_v3", seed),
        any = 0;
    failures += model_ranks_run_random(comm, seed);
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    wb_comm_close(comm);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
