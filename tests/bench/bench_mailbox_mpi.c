/* bench_mailbox_mpi.c - what an MoE layer's rows cost between GPUs that store into each other's mailboxes
 * (wb_mailbox.h), under mpirun, a GPU a rank: microseconds of an exchange, there and back, as graphs of many.
 *
 *     mpirun -n 2 bench_mailbox_mpi [TOKENS...]       1, 16, 64, 128 and 256 tokens a rank
 *
 * Sizes are Qwen3-30B-A3B's: bf16 rows of 2048, 8 choices of 128 experts, spread evenly. Beside it the bytes
 * that cross to another rank, each way, over that time. Refuses: what the experts compute. */
#include "support/usage.h"
#include "wb_device.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 2048, CHOICES = 8, SLOTS = 128, MAX_TOKENS = 512, CALLS = 32, LAUNCHES = 20, SAMPLES = 9 };

typedef struct bench {
    wb_device *dev;
    wb_mailboxes boxes;
    wb_shared_memory shared[WB_MAX_MAILBOXES];
    int rank, ranks;
    int32_t offsets[SLOTS + 1], row_token[MAX_TOKENS * CHOICES]; /* host */
    void *x, *d_row_token, *d_offsets, *places, *grouped, *rows; /* device */
} bench;

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "bench_mailbox_mpi: %s\n", wb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static void *device_memory(bench *b, size_t bytes) {
    void *memory = NULL;
    must(b->dev->mem_alloc(b->dev, bytes, &memory));
    must(b->dev->zero(b->dev, memory, bytes));
    return memory;
}

static void open_mailboxes(bench *b) {
    wb_shared_memory own;
    wb_mailboxes *p = &b->boxes;
    *p =
        (wb_mailboxes){.rank = b->rank, .n_ranks = b->ranks, .width = WIDTH, .dtype = WB_BF16, .timeout = 20};
    p->max_rows = MAX_TOKENS * CHOICES;
    for (int r = 0; r <= b->ranks; r++) p->first_slot[r] = SLOTS * r / b->ranks;
    must(b->dev->memory_share(b->dev, wb_mailbox_bytes(p), &p->mailbox[b->rank], &own));
    MPI_Allgather(&own, (int)sizeof own, MPI_BYTE, b->shared, (int)sizeof own, MPI_BYTE, MPI_COMM_WORLD);
    for (int r = 0; r < b->ranks; r++)
        if (r != b->rank) must(b->dev->memory_attach(b->dev, &b->shared[r], b->rank, &p->mailbox[r]));
}

static void open_bench(bench *b) {
    const size_t n = MAX_TOKENS * CHOICES, row = WIDTH * 2, all = (size_t)b->ranks * n;
    const int count = wb_device_count_cuda();
    if (count == 0) must(wb_fail(WB_UNSUPPORTED, "no CUDA device"));
    must(wb_device_open_cuda(b->rank % count, NULL, &b->dev));
    open_mailboxes(b);
    b->x = device_memory(b, MAX_TOKENS * row);
    b->rows = device_memory(b, all * row);
    b->d_row_token = device_memory(b, n * sizeof(int32_t));
    b->d_offsets = device_memory(b, sizeof b->offsets);
    b->grouped = device_memory(b, sizeof b->offsets);
    b->places = device_memory(b, all * sizeof(int32_t));
}

static void close_bench(bench *b) {
    void *const own[] = {b->x, b->rows, b->d_row_token, b->d_offsets, b->grouped, b->places};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) b->dev->mem_free(b->dev, own[i]);
    for (int r = 0; r < b->ranks; r++)
        if (r != b->rank) b->dev->memory_detach(b->dev, &b->shared[r], b->rank, b->boxes.mailbox[r]);
    b->dev->memory_unshare(b->dev, b->boxes.mailbox[b->rank], 20);
    wb_device_close(b->dev);
}

static void put_plan(bench *b, int64_t tokens) {
    const int32_t n = (int32_t)tokens * CHOICES;
    for (int32_t s = 0; s <= SLOTS; s++) b->offsets[s] = (int32_t)((int64_t)n * s / SLOTS);
    for (int32_t i = 0; i < n; i++) b->row_token[i] = i / CHOICES;
    must(b->dev->to_device(b->dev, b->d_offsets, b->offsets, sizeof b->offsets));
    must(b->dev->to_device(b->dev, b->d_row_token, b->row_token, (size_t)n * sizeof(int32_t)));
}

static void *capture(bench *b, int64_t tokens) {
    const wb_mailboxes *p = &b->boxes;
    const wb_rows x = {b->x, WB_BF16}, rows = {b->rows, WB_BF16};
    const int64_t n = tokens * CHOICES;
    void *graph = NULL;
    must(b->dev->graph_begin(b->dev));
    for (int i = 0; i < CALLS; i++) {
        must(b->dev->mailbox_send(b->dev, p, n, b->d_row_token, b->d_offsets, x));
        must(b->dev->mailbox_receive(b->dev, p, b->grouped, b->places));
        must(b->dev->mailbox_return(b->dev, p, n * b->ranks, b->grouped, b->places, rows));
        must(b->dev->mailbox_wait(b->dev, p));
    }
    must(b->dev->graph_end(b->dev, &graph));
    return graph;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(bench *b, int64_t tokens) {
    double samples[SAMPLES];
    put_plan(b, tokens);
    void *graph = capture(b, tokens);
    for (int s = -1; s < SAMPLES; s++) {
        must(b->dev->to_host(b->dev, NULL, NULL, 0));
        MPI_Barrier(MPI_COMM_WORLD);
        const double begin = MPI_Wtime();
        for (int i = 0; i < LAUNCHES; i++) must(b->dev->graph_launch(b->dev, graph));
        must(b->dev->to_host(b->dev, NULL, NULL, 0));
        if (s >= 0) samples[s] = (MPI_Wtime() - begin) / (LAUNCHES * CALLS);
    }
    qsort(samples, SAMPLES, sizeof samples[0], by_size);
    const double us = 1e6 * samples[SAMPLES / 2];
    const double bytes = (double)tokens * CHOICES * WIDTH * 2 * (b->ranks - 1) / b->ranks;
    if (b->rank == 0)
        printf("%4d tokens a rank: %7.2f us an exchange, %6.1f GB/s of both ways\n", (int)tokens, us,
               2e-3 * bytes / us);
    b->dev->graph_free(b->dev, graph);
}

int main(int argc, char **argv) {
    static bench b;
    static const int64_t usual[] = {1, 16, 64, 128, 256};
    int code;
    if (usage_ends(argc, argv, 0, 64, "usage: mpirun -n RANKS bench_mailbox_mpi [TOKENS...]\n", &code))
        return code;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &b.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &b.ranks);
    open_bench(&b);
    for (int i = 0; i < (argc > 1 ? argc - 1 : 5); i++) {
        const int64_t tokens = argc > 1 ? atoi(argv[1 + i]) : usual[i];
        measure(&b, tokens < 1 ? 1 : tokens > MAX_TOKENS ? MAX_TOKENS : tokens);
    }
    close_bench(&b);
    MPI_Finalize();
    return 0;
}
