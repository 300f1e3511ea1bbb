/* mpi_exchange.c - the data plane between MPI processes, under mpirun: the common core, with ordinary
 * messages and with messages so short that every larger transfer takes several; then how it ends. All ranks
 * exit with the same verdict.
 *
 * Usage: mpi_exchange [seed [killed]]: the second kills a rank at a random moment and does nothing else. */
#include "comm/exchange_dies.h"
#include "mpi/comm_mpi.h"
#include "mpi/mpi_messages.h"
#include "support/test_seed.h"

#define SHORT_MESSAGE_BYTES 10007

static int run(uint64_t seed, int message_bytes, bool host_access) {
    wb_comm *comm = NULL;
    if (wb_comm_open_mpi_messages(MPI_COMM_WORLD, message_bytes, &comm) != WB_OK) {
        fprintf(stderr, "open: %s\n", wb_error_message());
        return 1;
    }
    const int failures = exchange_core_run(comm, host_access, seed);
    wb_comm_close(comm);
    return failures;
}

/* The communicator of each is dead at the end, but for the first; a job of one rank waits for nobody. */
static int run_failures(size_t failing) {
    int failures = 0;
    for (size_t way = 0; way < exchange_failures[failing].ways; way++)
        for (int host_access = 0; host_access < 2; host_access++) {
            /* Each costs seconds. */
            if (exchange_failures[failing].body == exchange_late && host_access != (int)way % 2) continue;
            wb_comm *comm = NULL;
            if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) return failures + 1;
            if (wb_comm_size(comm) > 1)
                failures += exchange_failures[failing].body(comm, host_access != 0, way);
            wb_comm_close(comm);
        }
    return failures;
}

/* A rank that leaves costs seconds. */
static int run_dying(uint64_t seed) {
    static const size_t trials[DYING_WAYS] = {[GIVES_UP] = 12, [CLOSES] = 3, [LEAVES] = 2};
    int failures = 0;
    for (size_t way = 0; way < IS_KILLED; way++)
        for (size_t i = 0; i < trials[way]; i++) {
            wb_comm *comm = NULL;
            if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) return failures + 1;
            if (wb_comm_size(comm) > 1) failures += exchange_dies(comm, i % 2 == 0, seed + i, (dying_way)way);
            wb_comm_close(comm);
        }
    return failures;
}

/* What was posted when an exchange ended is taken back: bytes that come later must not be written into memory
 * that is the caller's again. The last rank, which reads letters when it waits, starts to send when the
 * others have given up. */
static int receives_are_taken_back(size_t bytes) {
    wb_comm *comm = NULL;
    device memory;
    if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) return 1;
    exchange_core state = core_open(comm, &memory, true), *c = &state;
    wb_transfer transfers[DEVICE_RANKS];
    const size_t last = c->ranks - 1, n = c->rank == last ? last : 1;
    const bool receives = c->rank != last;
    uint64_t work = 0;
    char *const at = core_take(c, bytes);
    if (!receives) core_fill(c, at, 1, bytes);
    for (size_t i = 0; i < n; i++)
        transfers[i] = (wb_transfer){receives ? (int)last : (int)i, receives, at, bytes};
    if (receives) {
        CHECK_STATUS(c, WB_OK, wb_exchange_start_group(c->exchange, transfers, n, &work));
        wb_comm_abort(comm);
        CHECK_STATUS(c, WB_PEER, wb_exchange_wait(c->exchange, work));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (!receives) {
        CHECK_STATUS(c, WB_OK, wb_exchange_start_group(c->exchange, transfers, n, &work));
        if (n > 0) CHECK_STATUS(c, WB_PEER, wb_exchange_wait(c->exchange, work));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(c, !receives || (poisoned(c, at, bytes) && core_intact(c, at, bytes)));
    if (n == 0) CHECK_STATUS(c, WB_OK, wb_exchange_wait(c->exchange, work));
    wb_exchange_close(c->exchange);
    wb_comm_close(comm);
    return c->failures;
}

/* Messages' buffers are one block of the device's host_alloc: a rank that gets none opens no exchange, the
 * others are told, and every block goes back. The last trial has no such rank. */
static int opens_with_memory_of_the_device(bool host_access) {
    wb_comm *comm = NULL;
    if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) return 1;
    int failures = 0;
    const int rank = wb_comm_rank(comm), ranks = wb_comm_size(comm);
    for (int poor = 0; poor <= ranks; poor++) {
        device memory = device_of(rank, host_access);
        exchange_core state = {.comm = comm, .memory = &memory, .rank = (size_t)rank, .ranks = (size_t)ranks};
        exchange_core *c = &state;
        const wb_exchange_memory functions = device_memory(&memory);
        const wb_status expected = poor == ranks ? WB_OK : rank == poor ? WB_DEVICE : WB_PEER;
        char text[64];
        snprintf(text, sizeof text, rank == poor ? "the device is broken" : "rank %d failed", poor);
        if (rank == poor) memory.fails_after = 0;
        CHECK_STATUS(c, expected, wb_exchange_open(comm, &functions, &c->exchange));
        CHECK(c, poor == ranks || strstr(wb_error_message(), text));
        CHECK(c, memory.hosts == (poor == ranks) && !c->exchange == (poor < ranks));
        wb_exchange_close(c->exchange);
        CHECK(c, memory.hosts == 0);
        failures += c->failures;
    }
    wb_comm_close(comm);
    return failures;
}

/* One rank kills itself. The others say how they ended, and leave as a program does that has lost a rank:
 * MPI_Finalize would wait for it. */
static void run_killed(uint64_t seed) {
    wb_comm *comm = NULL;
    if (wb_comm_open_mpi(MPI_COMM_WORLD, &comm) != WB_OK) _exit(1);
    const int failures = exchange_dies(comm, seed % 2 == 0, seed, IS_KILLED);
    printf("rank %d of %d %s: %s\n", wb_comm_rank(comm), wb_comm_size(comm),
           failures == 0 ? "survived" : "failed", wb_error_message());
    fflush(NULL);
    _exit(failures == 0 ? 0 : 1);
}

int main(int argc, char **argv) {
    int rank = 0, any = 0, failures = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, (int)sizeof seed, MPI_BYTE, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("mpi_exchange: seed %" PRIu64 "\n", seed);
    alarm(240);
    device_arena_open();
    if (argc > 2 && strcmp(argv[2], "killed") == 0) run_killed(seed);
    for (int host_access = 0; host_access < 2; host_access++) {
        failures += run(seed, 1 << 30, host_access);
        failures += run(seed, SHORT_MESSAGE_BYTES, host_access);
        failures += opens_with_memory_of_the_device(host_access);
    }
    for (size_t i = 0; i < EXCHANGE_FAILURES; i++) failures += run_failures(i);
    failures += run_dying(seed);
    /* All in the frame, one message behind it, and one that takes both sides to move. */
    failures += receives_are_taken_back(1000);
    failures += receives_are_taken_back(WB_MPI_SHORT_BYTES + 10);
    failures += receives_are_taken_back(1 << 20);
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
