/* mpi_shared_memory_cuda.c - memory of GPUs that other ranks reach (wb_shared_memory.h) under mpirun: what is
 * put there arrives whole, beside kernels of either side; memory is freed when the last rank has detached it,
 * and who does not detach it holds nobody up for longer than was said. Ranks beyond the GPUs share them. All
 * ranks exit with the same verdict; 77, with the reason, without a GPU.
 *
 * Usage: mpi_shared_memory_cuda [seed] */
#include "gpu_ranks.h"
#include "support/test_seed.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SKIP = 77, PARTS = 5, ROUNDS = 20, MAX_PART = 3 << 20 };

static void *take(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) MPI_Abort(MPI_COMM_WORLD, 1);
    return memory;
}

typedef struct area {
    wb_device *dev;
    size_t bytes;
    void *of_rank[WB_MAX_SHARERS];
    wb_shared_memory shared[WB_MAX_SHARERS];
} area;

/* Whether all ranks reach each other. */
static bool open_area(area *a, wb_device *dev, size_t bytes) {
    wb_shared_memory own;
    int failed = 0, any = 0;
    *a = (area){.dev = dev, .bytes = bytes};
    must(dev->memory_share(dev, bytes, &a->of_rank[rank], &own));
    MPI_Allgather(&own, (int)sizeof own, MPI_BYTE, a->shared, (int)sizeof own, MPI_BYTE, MPI_COMM_WORLD);
    for (int r = 0; r < ranks && !failed; r++)
        if (r != rank) failed = dev->memory_attach(dev, &a->shared[r], rank, &a->of_rank[r]) != WB_OK;
    MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    return any == 0;
}

static void detach_all(area *a) {
    for (int r = 0; r < ranks; r++)
        if (r != rank) a->dev->memory_detach(a->dev, &a->shared[r], rank, a->of_rank[r]);
}

/* ---- puts ------------------------------------------------------------------------------------------ */

static uint8_t byte_of(uint64_t seed, int from, int to, size_t i) {
    return (uint8_t)(wb_mix64(seed * 4096 + (uint64_t)(from * WB_MAX_SHARERS + to)) >> i % 57 ^ i * 31);
}

/* Part p of what `from` puts: its first byte in the area of any rank, and its end. */
static void part_of(uint64_t seed, int from, int p, size_t *begin, size_t *end) {
    const size_t at = ((size_t)from * PARTS + (size_t)p) * MAX_PART;
    uint64_t random = wb_mix64(seed) + (uint64_t)(from * PARTS + p);
    *begin = at;
    *end = at + 1 + wb_random(&random) % MAX_PART;
}

/* This rank's parts for `to`, written by its stream, and put behind that. */
static void put_parts(area *a, uint64_t seed, int to, char *host, char *from) {
    for (int p = 0; p < PARTS; p++) {
        size_t begin, end;
        part_of(seed, rank, p, &begin, &end);
        for (size_t i = begin; i < end; i++) host[i - begin] = (char)byte_of(seed, rank, to, i);
        must(a->dev->to_device(a->dev, from + p * MAX_PART, host, end - begin));
        must(a->dev->memory_put(a->dev, (char *)a->of_rank[to] + begin, from + p * MAX_PART, end - begin));
    }
}

static void check_parts(area *a, uint64_t seed, char *host) {
    for (int from = 0; from < ranks; from++) {
        bool whole = true;
        for (int p = 0; p < PARTS && from != rank; p++) {
            size_t begin, end;
            part_of(seed, from, p, &begin, &end);
            must(a->dev->to_host(a->dev, host, (char *)a->of_rank[rank] + begin, end - begin));
            for (size_t i = begin; i < end && whole; i++)
                whole = (uint8_t)host[i - begin] == byte_of(seed, from, rank, i);
        }
        check(whole, "what was put");
    }
}

static void run_puts(area *a, uint64_t seed) {
    char *host = take(MAX_PART);
    void *from = NULL;
    must(a->dev->mem_alloc(a->dev, (size_t)ranks * PARTS * MAX_PART, &from));
    for (uint64_t round = 0; round < ROUNDS; round++) {
        for (int to = 0; to < ranks; to++)
            if (to != rank)
                put_parts(a, seed + round, to, host, (char *)from + (size_t)to * PARTS * MAX_PART);
        must(a->dev->memory_settle(a->dev));
        MPI_Barrier(MPI_COMM_WORLD);
        check_parts(a, seed + round, host);
        MPI_Barrier(MPI_COMM_WORLD);
    }
    a->dev->mem_free(a->dev, from);
    free(host);
}

/* ---- closing --------------------------------------------------------------------------------------- */

static double seconds_of_unshare(area *a, double seconds) {
    const double begin = MPI_Wtime();
    a->dev->memory_unshare(a->dev, a->of_rank[rank], seconds);
    return MPI_Wtime() - begin;
}

/* The last rank detaches late, and what it had attached is there until then. */
static void close_late(area *a) {
    if (rank == ranks - 1) {
        char byte;
        sleep(1);
        must(a->dev->to_host(a->dev, &byte, a->of_rank[0], 1));
    }
    detach_all(a);
    const double took = seconds_of_unshare(a, 30);
    check(rank == ranks - 1 ? took < 5 : took > 0.5 && took < 10, "a wait for the last rank to detach");
    MPI_Barrier(MPI_COMM_WORLD);
}

/* The last rank does not detach before the others have unshared, as if it were dead: nobody waits for it. */
static void close_without(area *a) {
    char byte;
    if (rank < ranks - 1) {
        detach_all(a);
        check(seconds_of_unshare(a, 0.2) < 5, "an end in bounded time");
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == ranks - 1) {
        for (int r = 0; r < rank; r++) must(a->dev->to_host(a->dev, &byte, a->of_rank[r], 1));
        detach_all(a);
        check(seconds_of_unshare(a, 30) < 5, "memory that nobody has attached any more");
    }
    MPI_Barrier(MPI_COMM_WORLD);
}

static int run(wb_device *dev, uint64_t seed) {
    const size_t bytes = (size_t)ranks * PARTS * MAX_PART;
    area a;
    if (!open_area(&a, dev, bytes)) return SKIP;
    run_puts(&a, seed);
    close_late(&a);
    if (!open_area(&a, dev, 100)) return SKIP;
    close_without(&a);
    return 0;
}

int main(int argc, char **argv) {
    int none = 0, any = 0, code = SKIP;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    alarm(120);
    wb_device *dev = open_device();
    const int lacks = !dev || !dev->memory_share;
    MPI_Allreduce(&lacks, &none, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (rank == 0)
        printf(none ? "skip: no CUDA device\n" : "mpi_shared_memory_cuda: seed %" PRIu64 "\n", seed);
    if (!none && ranks >= 2) code = run(dev, seed);
    if (rank == 0 && !none && code == SKIP) printf("skip: expected 2 ranks or more that reach each other\n");
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    wb_device_close(dev);
    MPI_Finalize();
    return any > 0 ? 1 : code;
}
