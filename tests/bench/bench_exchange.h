/* bench_exchange.h - milliseconds of the data plane beside the control plane's for the same work, in turns,
 * of one rank of a communicator: all-reduce of f32 and all-to-all of even parts. Rank 0 prints. */
#ifndef BENCH_EXCHANGE_H
#define BENCH_EXCHANGE_H

#include "bench/bench_tools.h"
#include "wb_exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_SAMPLES 401
#define MIN_SAMPLES 11 /* of more than LONG_BYTES */
#define LONG_BYTES ((size_t)4 << 20)
#define SAMPLE_BYTES ((size_t)256 << 10)
#define MOST_RANKS 16
#define MOST_BYTES ((size_t)64 << 20)

/* One rank's memory, [MOST_BYTES] each. */
typedef struct bench {
    wb_comm *comm;
    wb_exchange *exchange;
    char *buffer, *other;
} bench;

static wb_status bench_host_alloc(void *context, size_t bytes, void **host_out) {
    (void)context;
    *host_out = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return *host_out ? WB_OK : WB_OUT_OF_MEMORY;
}

static void bench_host_free(void *context, void *host) {
    (void)context;
    free(host);
}

static wb_status bench_to_host(void *context, void *host, const void *device, size_t bytes) {
    (void)context;
    if (bytes > 0) memcpy(host, device, bytes);
    return WB_OK;
}

static wb_status bench_copy(void *context, void *to, const void *from, size_t bytes) {
    (void)context;
    memcpy(to, from, bytes);
    return WB_OK;
}

static wb_status bench_add(void *context, size_t n, const float *x, float *y) {
    (void)context;
    for (size_t i = 0; i < n; i++) y[i] += x[i];
    return WB_OK;
}

static void comm_all_reduce(bench *b, size_t bytes) {
    must(wb_comm_all_reduce_f32(b->comm, (float *)(void *)b->buffer, bytes / sizeof(float)));
}

static void exchange_all_reduce(bench *b, size_t bytes) {
    uint64_t work;
    must(wb_exchange_start_all_reduce(b->exchange, (float *)(void *)b->buffer, bytes / sizeof(float),
                                      (float *)(void *)b->other, &work));
    must(wb_exchange_wait(b->exchange, work));
}

static void even_parts(const bench *b, size_t bytes, size_t sizes[], size_t offsets[]) {
    const size_t ranks = (size_t)wb_comm_size(b->comm);
    for (size_t r = 0; r < ranks; r++) {
        sizes[r] = bytes / ranks;
        offsets[r] = r * (bytes / ranks);
    }
}

static void comm_all_to_all(bench *b, size_t bytes) {
    size_t sizes[MOST_RANKS], offsets[MOST_RANKS];
    even_parts(b, bytes, sizes, offsets);
    must(wb_comm_all_to_all_v(b->comm, b->buffer, sizes, offsets, b->other, sizes, offsets));
}

static void exchange_all_to_all(bench *b, size_t bytes) {
    size_t sizes[MOST_RANKS], offsets[MOST_RANKS];
    uint64_t work;
    even_parts(b, bytes, sizes, offsets);
    must(wb_exchange_start_all_to_all_v(b->exchange, b->buffer, sizes, offsets, b->other, sizes, offsets,
                                        &work));
    must(wb_exchange_wait(b->exchange, work));
}

/* Of one call; a sample of short ones is several, in which 256 KiB travel. */
static double bench_time(bench *b, void (*call)(bench *, size_t), size_t bytes) {
    const size_t calls = bytes < SAMPLE_BYTES ? SAMPLE_BYTES / bytes : 1;
    must(wb_comm_barrier(b->comm));
    const double begin = now();
    for (size_t i = 0; i < calls; i++) call(b, bytes);
    return (now() - begin) / (double)calls;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* In turns, after one of each that is not counted. What is printed is the fastest of all samples: where the
 * machine has other work, the median says how often a rank had no core. */
static void bench_pair(bench *b, const char *what, void (*before)(bench *, size_t),
                       void (*after)(bench *, size_t), size_t bytes) {
    double first[MAX_SAMPLES], second[MAX_SAMPLES];
    const int n = bytes > LONG_BYTES ? MIN_SAMPLES : MAX_SAMPLES;
    for (int i = -1; i < n; i++) {
        const double x = bench_time(b, before, bytes), y = bench_time(b, after, bytes);
        if (i < 0) continue;
        first[i] = x;
        second[i] = y;
    }
    qsort(first, (size_t)n, sizeof *first, by_size);
    qsort(second, (size_t)n, sizeof *second, by_size);
    if (wb_comm_rank(b->comm) > 0) return;
    printf("| %s | %zu KiB | %.4f | %.4f | %.2f | %.2f |\n", what, bytes >> 10, 1e3 * first[0],
           1e3 * second[0], first[0] / second[0], first[n / 2] / second[n / 2]);
}

static void bench_run(wb_comm *comm, bool host_access) {
    bench b = {.comm = comm, .buffer = calloc(1, MOST_BYTES), .other = calloc(1, MOST_BYTES)};
    const wb_exchange_memory memory = {.size = sizeof memory,
                                       .host_access = host_access,
                                       .host_alloc = bench_host_alloc,
                                       .host_free = bench_host_free,
                                       .to_host = bench_to_host,
                                       .to_device = bench_copy,
                                       .copy = bench_copy,
                                       .add = bench_add};
    if (!b.buffer || !b.other || wb_comm_size(comm) > MOST_RANKS) exit(1);
    must(wb_exchange_open(comm, &memory, &b.exchange));
    if (wb_comm_rank(comm) == 0)
        printf("\n%s, %d ranks, %s; ms, in turns\n\n"
               "| call | bytes of a rank | wb_comm | wb_exchange | ratio | of medians |\n"
               "|---|---|---|---|---|---|\n",
               wb_comm_name(comm), wb_comm_size(comm), host_access ? "host memory" : "staged");
    static const size_t kib[] = {4, 16, 64, 256, 1 << 10, 4 << 10, 64 << 10};
    for (size_t i = 0; i < sizeof kib / sizeof kib[0]; i++) {
        bench_pair(&b, "all_reduce", comm_all_reduce, exchange_all_reduce, kib[i] << 10);
        bench_pair(&b, "all_to_all", comm_all_to_all, exchange_all_to_all, kib[i] << 10);
    }
    wb_exchange_close(b.exchange);
    free(b.buffer);
    free(b.other);
}

#endif
