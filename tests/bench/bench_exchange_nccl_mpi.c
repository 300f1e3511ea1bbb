/* bench_exchange_nccl_mpi.c - the data plane over NCCL beside raw ncclSend and ncclRecv of the same bytes, in
 * turns, under mpirun, a GPU a rank: each rank sends so many bytes to each other one and receives as many.
 *
 * Usage: mpirun -n 2 bench_exchange_nccl_mpi
 *
 * Raw is bench_raw_nccl.h's. A sample is several calls one
 * after the other and a wait for the stream; printed are medians, of all ranks' clocks rank 0's. "alone" is
 * the time of a call that is waited for before the next one. */
#include "support/usage.h"

#ifdef WB_HAVE_NCCL
#include "bench/bench_raw_nccl.h"
#include "exchange_memory.h"
#include "wb_comm_mpi.h"
#include "wb_comm_nccl.h"
#endif

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WB_HAVE_NCCL
enum { SAMPLES = 15, MOST_RANKS = 16 };
#define SAMPLE_BYTES ((size_t)256 << 20)
#define MOST_CALLS 64

typedef struct bench {
    wb_device *device;
    wb_comm *comm;
    wb_exchange *exchange;
    raw_nccl raw;
    char *send, *recv; /* device, [ranks][most bytes] */
    int rank, ranks;
} bench;

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "%s\n", wb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

/* ---- one call ------------------------------------------------------------------------------------ */

static void call_raw(bench *b, size_t bytes) {
    raw_call(&b->raw, b->send, b->recv, bytes);
}

static void end_raw(bench *b) {
    raw_wait(&b->raw);
}

static void call_exchange(bench *b, size_t bytes) {
    wb_transfer transfers[2 * MOST_RANKS];
    uint64_t work;
    size_t n = 0;
    for (int i = 1; i < b->ranks; i++) {
        const int to = (b->rank + i) % b->ranks, from = (b->rank - i + b->ranks) % b->ranks;
        transfers[n++] = (wb_transfer){from, true, b->recv + (size_t)from * bytes, bytes};
        transfers[n++] = (wb_transfer){to, false, b->send + (size_t)to * bytes, bytes};
    }
    must(wb_exchange_start_group(b->exchange, transfers, n, &work));
    must(wb_exchange_wait(b->exchange, work));
}

static void end_exchange(bench *b) {
    must(b->device->to_host(b->device, NULL, NULL, 0));
}

/* ---- samples ------------------------------------------------------------------------------------- */

typedef struct side {
    void (*call)(bench *, size_t);
    void (*end)(bench *);
} side;

/* Seconds of one call of `calls`. */
static double sample(bench *b, const side *s, size_t bytes, size_t calls) {
    s->end(b);
    MPI_Barrier(MPI_COMM_WORLD);
    const double begin = MPI_Wtime();
    for (size_t i = 0; i < calls; i++) s->call(b, bytes);
    s->end(b);
    return (MPI_Wtime() - begin) / (double)calls;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Medians of both, after one of each that is not counted. */
static void in_turns(bench *b, size_t bytes, size_t calls, double medians_out[2]) {
    static const side sides[2] = {{call_raw, end_raw}, {call_exchange, end_exchange}};
    double samples[2][SAMPLES];
    for (int i = -1; i < SAMPLES; i++)
        for (int k = 0; k < 2; k++) {
            const double seconds = sample(b, &sides[k], bytes, calls);
            if (i >= 0) samples[k][i] = seconds;
        }
    for (int k = 0; k < 2; k++) {
        qsort(samples[k], SAMPLES, sizeof samples[k][0], by_size);
        medians_out[k] = samples[k][SAMPLES / 2];
    }
}

static void print_size(bench *b, size_t bytes) {
    size_t calls = SAMPLE_BYTES / bytes;
    if (calls > MOST_CALLS) calls = MOST_CALLS;
    double row[2], alone[2];
    in_turns(b, bytes, calls > 0 ? calls : 1, row);
    in_turns(b, bytes, 1, alone);
    const double moved = 1e-9 * (double)bytes * (b->ranks - 1);
    if (b->rank == 0)
        printf("| %zu KiB | %.1f | %.1f | %.1f | %.1f | %.3f | %.1f | %.1f |\n", bytes >> 10, 1e6 * row[0],
               1e6 * row[1], moved / row[0], moved / row[1], row[0] / row[1], 1e6 * alone[0], 1e6 * alone[1]);
}

/* ---- opening ------------------------------------------------------------------------------------- */

static int rank_of_host(void) {
    MPI_Comm host;
    int rank = 0;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &rank);
    MPI_Comm_free(&host);
    return rank;
}

static void open_memory(bench *b, size_t most) {
    const wb_exchange_memory memory = wb_device_exchange_memory(b->device);
    void *at[2];
    for (int i = 0; i < 2; i++) must(wb_device_alloc(b->device, most * (size_t)b->ranks, &at[i]));
    b->send = at[0];
    b->recv = at[1];
    must(wb_exchange_open(b->comm, &memory, &b->exchange));
}

static void run(void) {
    /* 9 MiB: an expert of Qwen3-30B-A3B, bf16. */
    static const size_t kib[] = {16, 256, 1 << 10, 9 << 10, 64 << 10, 256 << 10};
    const size_t n = sizeof kib / sizeof kib[0];
    bench b = {0};
    wb_comm *control = NULL;
    const int gpu = rank_of_host();
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &control));
    b.rank = wb_comm_rank(control);
    b.ranks = wb_comm_size(control);
    if (b.ranks < 2 || b.ranks > MOST_RANKS)
        must(wb_fail(WB_INVALID_ARGUMENT, "expected 2..%d ranks, found %d", MOST_RANKS, b.ranks));
    must(wb_device_open_cuda(gpu, NULL, &b.device));
    must(wb_comm_open_nccl(control, gpu, false, &b.comm));
    raw_open(&b.raw);
    open_memory(&b, kib[n - 1] << 10);
    if (b.rank == 0)
        printf(
            "NCCL %d, %d ranks; us of a call, GB/s of a rank and direction\n\n"
            "| bytes to each rank | raw us | exchange us | raw GB/s | exchange GB/s | of raw | raw, alone us "
            "| exchange, alone us |\n|---|---|---|---|---|---|---|---|\n",
            b.raw.nccl->version, b.ranks);
    for (size_t i = 0; i < n; i++) print_size(&b, kib[i] << 10);
    wb_exchange_close(b.exchange);
    wb_device_free(b.device, b.send);
    wb_device_free(b.device, b.recv);
    raw_close(&b.raw);
    wb_comm_close(b.comm);
    wb_comm_close(control);
    wb_device_close(b.device);
}
#else
static void run(void) {
    printf("skip: built without NCCL\n");
}
#endif

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 0, "usage: mpirun -n RANKS bench_exchange_nccl_mpi\n", &code)) return code;
    MPI_Init(&argc, &argv);
    run();
    MPI_Finalize();
    return 0;
}
