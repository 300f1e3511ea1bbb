/* mpi_comm.c - the MPI transport, under mpirun: the common core with ordinary messages, and with messages so
 * short that every larger buffer takes several; then ranks that are late, give up, or are elsewhere. All
 * ranks exit with the same verdict. */
#include "comm_core_sizes.h"
#include "mpi/comm_mpi.h"
#include "mpi/mpi_messages.h"
#include "support/alloc_fail.h"
#include "support/test_seed.h"

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

/* The N-th allocation of the last rank fails, for every N: it says so, and the others name it. */
static int test_open_without_memory_on_one_rank(void) {
    int rank = 0, size = 0, failures = 0, failed = ALLOC_FAIL_WORKS;
    char text[64];
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    snprintf(text, sizeof text, "rank %d failed: out of memory", size - 1);
    const bool poor = rank == size - 1;
    for (long n = 0; failed; n++) {
        wb_comm *comm = NULL;
        if (poor) alloc_fail_this_thread_at(n);
        const wb_status status = wb_comm_open_mpi(MPI_COMM_WORLD, &comm);
        failed = poor && alloc_fail_this_thread_failed();
        MPI_Bcast(&failed, 1, MPI_INT, size - 1, MPI_COMM_WORLD);
        const bool named = status == WB_PEER && strstr(wb_error_message(), text);
        const bool expected = !failed ? status == WB_OK : poor ? status == WB_OUT_OF_MEMORY : named;
        if (!expected || (failed && comm)) {
            fprintf(stderr, "rank %d, allocation %ld: %s\n", rank, n, wb_error_message());
            failures++;
        }
        if (!failed && n == 0) failures++;
        wb_comm_close(comm);
    }
    return failures;
}

/* What MPI still had to receive when a call failed is taken back: a message that comes later must not be
 * written into memory that is the caller's again. The last rank plays its part of a gather by hand, its frame
 * and no more, so that the others wait for what should follow; then it sends that. */
static int test_receives_are_taken_back(void) {
    enum { BYTES = 2 * WB_MPI_SHORT_BYTES, MESSAGE = 1000 };
    wb_comm *comm = NULL;
    if (wb_comm_open_mpi_messages(MPI_COMM_WORLD, MESSAGE, &comm) != WB_OK) return 1;
    core state = {comm, (size_t)wb_comm_rank(comm), (size_t)wb_comm_size(comm), 0, 0};
    core *c = &state;
    const int last = (int)c->ranks - 1;
    unsigned char *send = take(BYTES), *recv = take(BYTES * c->ranks);
    memset(send, 1, BYTES);
    memset(recv, POISON, BYTES * c->ranks);
    wb_mpi_state *mpi = wb_comm_state(comm);
    CHECK_STATUS(c, WB_OK, wb_comm_set_timeout(comm, 0.4));
    if (c->ranks == 1) goto close;
    if ((int)c->rank == last) {
        CHECK_STATUS(c, WB_OK, wb_mpi_control_enter(comm, &mpi->control, WB_MPI_ALL_GATHER));
        for (int r = 0; r < last; r++) CHECK_STATUS(c, WB_OK, wb_mpi_send_frame(mpi, r, send, BYTES, BYTES));
        CHECK_STATUS(c, WB_OK, wb_mpi_finish(comm));
    } else {
        CHECK_STATUS(c, WB_PEER, wb_comm_all_gather(comm, send, BYTES, recv));
        memset(recv, POISON, BYTES * c->ranks);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    for (int r = 0; (int)c->rank == last && r < last; r++)
        CHECK_STATUS(c, WB_OK, wb_mpi_send(mpi, r, send, MESSAGE));
    MPI_Barrier(MPI_COMM_WORLD);
    core_sleep(0.2);
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(c, all_poison(recv, BYTES * c->ranks));
close:
    wb_comm_close(comm);
    free(send);
    free(recv);
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
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("mpi_comm: seed %" PRIu64 "\n", seed);

    failures += wb_comm_open_mpi(MPI_COMM_NULL, &comm) != WB_INVALID_ARGUMENT;
    failures += test_open_without_memory_on_one_rank();
    failures += run(seed, 0);
    failures += run(seed + 1, SHORT_MESSAGE_BYTES);
    failures += run_failures(comm_core_late, CORE_WAITS);
    failures += run_failures(comm_core_gives_up, CORE_WAITS);
    failures += run_failures(comm_core_broadcast_sizes, CORE_ODD_SIZES);
    failures += run_failures(elsewhere, CORE_WAITS);
    failures += test_receives_are_taken_back();
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
