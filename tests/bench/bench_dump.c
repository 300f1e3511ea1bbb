/* bench_dump.c - how fast a dump is written and read, against memcpy and against plain write(2) of the same
 * bytes into the same directory.
 *
 *   bench_dump DIRECTORY [MIB]      e.g. bench_dump /dev/shm 512
 *
 * Prints what it ran and, for each figure, the best of five runs and its ratio to memcpy. Records have 4096
 * tokens, 48 layers, 8 of 128 experts (u8), each its own group, codec raw. */
#include "bench/bench_tools.h"
#include "support/usage.h"
#include "wb_formats.h"
#include "wb_random.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 4097, LAYERS = 48, K = 8, E = 128, RUNS = 5 };

typedef struct bench {
    char path[512];
    wb_route_model model;
    uint32_t layers[LAYERS];
    size_t n_records, record_bytes;
    uint8_t *ids, *copy; /* [n_records][record_bytes] */
    uint32_t tokens[TOKENS];
    wb_dump_options options;
} bench;

/* In place of libc's: the writer's own work is measured by letting its bytes go to memory, not to the
 * system. */
static uint8_t *sink; /* [sink_bytes], or NULL: the system */
static size_t sink_bytes;

ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t offset) {
    if (!sink) return syscall(SYS_pwritev, fd, parts, n, offset, 0);
    size_t at = (size_t)offset, begin = at;
    for (int i = 0; i < n; i++) {
        if (parts[i].iov_len > sink_bytes - at) {
            errno = ENOSPC;
            return -1;
        }
        memcpy(sink + at, parts[i].iov_base, parts[i].iov_len);
        at += parts[i].iov_len;
    }
    return (ssize_t)(at - begin);
}

static void fill_ids(bench *b) {
    uint64_t random = 1;
    for (size_t i = 0; i < b->n_records * b->record_bytes; i += K) {
        uint64_t x = wb_random(&random);
        /* Eight different ids: an odd stride walks all of a power of two. */
        for (size_t k = 0; k < K; k++) b->ids[i + k] = (uint8_t)((x + k * (2 * (x >> 32) + 1)) % E);
    }
}

static wb_record record_of(const bench *b, size_t i, char rid[32], wb_route_rows *run) {
    snprintf(rid, 32, "record-%zu", i);
    *run = (wb_route_rows){0, TOKENS - 1, b->ids + i * b->record_bytes, NULL};
    return (wb_record){.rid = rid,
                       .group = i,
                       .prompt_len = 1,
                       .n_tokens = TOKENS,
                       .tokens = b->tokens,
                       .finish = WB_FINISH_STOP,
                       .n_routes = 1,
                       .routes = run};
}

static void run_memcpy(bench *b) {
    memcpy(b->copy, b->ids, b->n_records * b->record_bytes);
}

static void run_write(bench *b) {
    int fd = open(b->path, O_WRONLY | O_CREAT | O_EXCL, 0666);
    for (size_t i = 0; i < b->n_records; i++)
        if (write(fd, b->ids + i * b->record_bytes, b->record_bytes) != (ssize_t)b->record_bytes) exit(1);
    close(fd);
}

static void run_check(bench *b) {
    char rid[32];
    wb_route_rows run;
    for (size_t i = 0; i < b->n_records; i++) {
        wb_record r = record_of(b, i, rid, &run);
        must(wb_record_check(&b->model, &r, true));
    }
}

static void run_count(bench *b) {
    static uint64_t counts[LAYERS * E];
    char rid[32];
    wb_route_rows run;
    for (size_t i = 0; i < b->n_records; i++) {
        wb_record r = record_of(b, i, rid, &run);
        wb_record_count(&b->model, &r, 0, UINT32_MAX, counts);
    }
}

static void run_append(bench *b) {
    wb_dump_writer *w = NULL;
    char rid[32];
    wb_route_rows run;
    must(wb_dump_create(b->path, &b->model, &b->options, &w));
    for (size_t i = 0; i < b->n_records; i++) {
        wb_record r = record_of(b, i, rid, &run);
        must(wb_dump_append(w, &r));
    }
    must(wb_dump_finish(w));
}

static void run_read(bench *b) {
    wb_dump *d = NULL;
    must(wb_dump_open(b->path, &d));
    for (size_t i = 0; i < b->n_records; i++) {
        wb_record r;
        must(wb_dump_record(d, i, &r));
        wb_dump_release(d, i);
    }
    wb_dump_close(d);
}

/* Best GB/s of the rows' bytes. `keep` leaves the file of the last run. */
static double rate(bench *b, void (*body)(bench *), int keep) {
    double best = 0;
    for (int i = 0; i < RUNS; i++) {
        double begin = now();
        body(b);
        double gbs = (double)(b->n_records * b->record_bytes) / (now() - begin) / 1e9;
        if (gbs > best) best = gbs;
        if (!keep || i + 1 < RUNS) unlink(b->path);
    }
    return best;
}

static double rate_read(bench *b) {
    double best = 0;
    for (int i = 0; i < RUNS; i++) {
        double begin = now();
        run_read(b);
        double gbs = (double)(b->n_records * b->record_bytes) / (now() - begin) / 1e9;
        if (gbs > best) best = gbs;
    }
    return best;
}

static void print(const char *what, double gbs, double memcpy_gbs) {
    printf("%-44s %7.2f GB/s  %5.2f of memcpy\n", what, gbs, gbs / memcpy_gbs);
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 1, 2, "usage: bench_dump DIRECTORY [MIB]\n", &code)) return code;
    static bench b;
    size_t mib = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 256;
    snprintf(b.path, sizeof b.path, "%s/bench_dump.%ld.wbr", argv[1], (long)getpid());
    for (uint32_t l = 0; l < LAYERS; l++) b.layers[l] = l;
    b.model = (wb_route_model){.num_hidden_layers = LAYERS,
                               .n_moe_layers = LAYERS,
                               .moe_layers = b.layers,
                               .num_experts = E,
                               .top_k = K};
    strcpy(b.model.name, "bench");
    strcpy(b.model.router, "softmax_norm");
    memset(b.model.fingerprint, '0', 32);
    b.record_bytes = (size_t)(TOKENS - 1) * LAYERS * K;
    b.n_records = (mib << 20) / b.record_bytes + 1;
    b.ids = malloc(b.n_records * b.record_bytes);
    sink_bytes = b.n_records * (b.record_bytes + 32768);
    b.copy = malloc(sink_bytes);
    if (!b.ids || !b.copy) return 1;
    fill_ids(&b);
    b.options = wb_dump_options_default();
    printf("waybill %s, %zu records of 4096 rows x 48 layers x 8 ids (u8), %.0f MB, in %s, best of %d\n",
           wb_version(), b.n_records, (double)(b.n_records * b.record_bytes) / 1e6, argv[1], RUNS);
    double copy = rate(&b, run_memcpy, 0);
    print("memcpy", copy, copy);
    print("write(2) of the same bytes, a record a call", rate(&b, run_write, 0), copy);
    print("wb_record_check, deep", rate(&b, run_check, 0), copy);
    print("wb_record_count", rate(&b, run_count, 0), copy);
    sink = b.copy;
    print("wb_dump_append to memory", rate(&b, run_append, 0), copy);
    b.options.trust_ids = true;
    print("wb_dump_append to memory, trust_ids", rate(&b, run_append, 0), copy);
    sink = NULL;
    print("wb_dump_append to a file, trust_ids", rate(&b, run_append, 0), copy);
    b.options.trust_ids = false;
    print("wb_dump_append to a file", rate(&b, run_append, 1), copy);
    print("wb_dump_record (xxh3 of all rows)", rate_read(&b), copy);
    unlink(b.path);
    free(b.ids);
    free(b.copy);
    return 0;
}
