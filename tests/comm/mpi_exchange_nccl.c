/* mpi_exchange_nccl.c - the data plane between GPUs by NCCL with MPI as control plane, under mpirun, a GPU a
 * rank: the common core, then how it ends. All ranks exit with the same verdict; 77, with the reason, where
 * there is one rank, or where the ranks have no GPUs of their own.
 *
 * Usage: mpi_exchange_nccl [seed [killed]]: the second kills a rank at a random moment and does nothing
 * else. */
#ifdef WB_HAVE_NCCL
#include "comm/exchange_cuda.h"
#include "comm/exchange_dies.h"
#include "support/test_seed.h"
#include "wb_comm_mpi.h"
#include "wb_comm_nccl.h"

enum { SKIP = 77 };

/* The rank, and the rank on its host, which is its GPU. */
static int rank, gpu;

static int rank_of_host(void) {
    MPI_Comm host;
    int on_host = 0;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &on_host);
    MPI_Comm_free(&host);
    return on_host;
}

typedef struct planes {
    wb_comm *control, *comm;
} planes;

static wb_status planes_open(planes *p, bool check_sizes) {
    wb_status status = wb_comm_open_mpi(MPI_COMM_WORLD, &p->control);
    if (status == WB_OK) status = wb_comm_set_timeout(p->control, 60);
    if (status == WB_OK) status = wb_comm_open_nccl(p->control, gpu, check_sizes, &p->comm);
    return status;
}

static void planes_close(planes *p) {
    wb_comm_close(p->comm);
    wb_comm_close(p->control);
}

/* Those of a trial; a rank without them cannot go on with the others. */
static planes must_open(bool check_sizes) {
    planes p = {NULL, NULL};
    if (planes_open(&p, check_sizes) == WB_OK) return p;
    fprintf(stderr, "open: %s\n", wb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 1);
    abort();
}

static int run_core(uint64_t seed, bool check_sizes) {
    planes p = must_open(check_sizes);
    const int failures = exchange_core_run(p.comm, false, seed);
    planes_close(&p);
    return failures;
}

/* Sizes that disagree are found where they are compared. */
static int run_failures(size_t failing) {
    int (*const body)(wb_comm *, bool, size_t) = exchange_failures[failing].body;
    int failures = 0;
    for (size_t way = 0; way < exchange_failures[failing].ways; way++) {
        planes p = must_open(body == exchange_mismatch || body == exchange_unlisted);
        failures += body(p.comm, false, way);
        planes_close(&p);
        cuda_forget(rank);
    }
    return failures;
}

static int run_dying(uint64_t seed) {
    static const size_t trials[DYING_WAYS] = {[GIVES_UP] = 6, [CLOSES] = 3, [LEAVES] = 2};
    int failures = 0;
    for (size_t way = 0; way < IS_KILLED; way++)
        for (size_t i = 0; i < trials[way]; i++) {
            planes p = must_open(false);
            failures += exchange_dies(p.comm, false, seed + i, (dying_way)way);
            planes_close(&p);
            cuda_forget(rank);
        }
    return failures;
}

/* One rank kills itself. The others say how they ended, and leave as a program does that has lost a rank. */
static void run_killed(uint64_t seed) {
    planes p = must_open(false);
    const int failures = exchange_dies(p.comm, false, seed, IS_KILLED);
    printf("rank %d of %d %s: %s\n", wb_comm_rank(p.comm), wb_comm_size(p.comm),
           failures == 0 ? "survived" : "failed", wb_error_message());
    fflush(NULL);
    _exit(failures == 0 ? 0 : 1);
}

/* 0, or SKIP on all ranks. */
static int open_gpu(void) {
    planes p = {NULL, NULL};
    int ranks = 1;
    gpu = rank_of_host();
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    const bool fits = ranks >= 2 && ranks <= DEVICE_RANKS;
    wb_status arena = fits ? cuda_open_rank(rank, gpu) : WB_OK;
    if (arena == WB_OK) arena = cuda_arena_open();
    if (arena != WB_OK) printf("rank %d: %s\n", rank, wb_error_message());
    int code = fits && arena == WB_OK ? 0 : SKIP, any = 0;
    if (code == SKIP && rank == 0) printf("skip: expected 2..%d ranks with a GPU each\n", DEVICE_RANKS);
    MPI_Allreduce(&code, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (any != 0) return SKIP;
    const wb_status status = planes_open(&p, false);
    if (status == WB_OK) planes_close(&p);
    if (status == WB_UNSUPPORTED && rank == 0) printf("skip: %s\n", wb_error_message());
    if (status == WB_UNSUPPORTED) wb_comm_close(p.control);
    return status == WB_UNSUPPORTED ? SKIP : 0;
}

static int run_all(uint64_t seed) {
    int failures = run_core(seed, false) + run_core(seed + 1, true);
    core_timeout = 2;
    for (size_t i = 0; i < EXCHANGE_FAILURES; i++) failures += run_failures(i);
    return failures + run_dying(seed);
}

int main(int argc, char **argv) {
    int any = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, (int)sizeof seed, MPI_BYTE, 0, MPI_COMM_WORLD);
    alarm(280);
    const int code = open_gpu();
    if (code == 0) {
        if (rank == 0) printf("mpi_exchange_nccl: seed %" PRIu64 "\n", seed);
        core_foreign_allocations = true;
        if (argc > 2 && strcmp(argv[2], "killed") == 0) run_killed(seed);
        const int failures = run_all(seed);
        MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    }
    cuda_arena_close();
    MPI_Finalize();
    return code != 0 ? code : any > 0;
}

#else
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    printf("skip: built without NCCL\n");
    MPI_Finalize();
    return 77;
}
#endif
