/* bench_dump.c - how fast a dump is written and read, against memcpy, into pages that are there and into new
 * ones, and against plain write(2) and read(2) of the same bytes in the same directory; and how small codecs
 * make routes.
 *
 *   bench_dump DIRECTORY [MIB] [DUMP]      e.g. bench_dump /dev/shm 512
 *
 * Prints what it ran and, for each figure, the best of five rounds in which all are measured in turn, in
 * bytes of rows a second of processor time (of the system's work too), and its ratios. Records have 4096
 * rows, 48 layers, 8 of 128 experts (u8), each its own group. With DUMP: the bytes a row that its routes take
 * by each codec. */
#include "bench/route_laws.h"
#include "packed.h"
#include "support/usage.h"
#include "wb_formats.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 4097, LAYERS = 48, RUNS = 5, DISTINCT = 3, CHUNK_ROWS = 2730 /* 1 MiB */ };

typedef struct bench {
    char path[512];
    wb_route_model model;
    uint32_t layers[LAYERS];
    size_t n_records, record_bytes;
    uint8_t *ids, *copy; /* [n_records][record_bytes] */
    uint32_t tokens[TOKENS];
    wb_dump_options options;
    uint8_t *chunk; /* [chunk_bytes] the first CHUNK_ROWS rows as codec packed stores them */
    size_t chunk_bytes;
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

/* A few records of the law, over and over. */
static void fill_ids(bench *b, route_law law) {
    for (size_t i = 0; i < b->n_records; i++) {
        uint8_t *ids = b->ids + i * b->record_bytes;
        if (i < DISTINCT)
            law_rows(law, i, TOKENS - 1, LAYERS, ids);
        else
            memcpy(ids, ids - DISTINCT * b->record_bytes, b->record_bytes);
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

/* What the pages of a file that grows are too: each is given, and cleared, when it is first written. */
static void run_memcpy_new(bench *b) {
    const size_t bytes = b->n_records * b->record_bytes;
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) exit(1);
    memcpy(pages, b->ids, bytes);
    munmap(pages, bytes);
}

static void run_write(bench *b) {
    unlink(b->path);
    int fd = open(b->path, O_WRONLY | O_CREAT | O_EXCL, 0666);
    for (size_t i = 0; i < b->n_records; i++)
        if (write(fd, b->ids + i * b->record_bytes, b->record_bytes) != (ssize_t)b->record_bytes) exit(1);
    close(fd);
}

/* Into memory that is there already. */
static void run_plain_read(bench *b) {
    int fd = open(b->path, O_RDONLY);
    for (size_t i = 0; i < b->n_records; i++)
        if (read(fd, b->copy + i * b->record_bytes, b->record_bytes) != (ssize_t)b->record_bytes) exit(1);
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
    static uint64_t counts[LAYERS * LAW_E];
    char rid[32];
    wb_route_rows run;
    for (size_t i = 0; i < b->n_records; i++) {
        wb_record r = record_of(b, i, rid, &run);
        wb_record_count(&b->model, &r, 0, UINT32_MAX, counts);
    }
}

static void append_all(bench *b) {
    wb_dump_writer *w = NULL;
    char rid[32];
    wb_route_rows run;
    unlink(b->path);
    must(wb_dump_create(b->path, &b->model, &b->options, &w));
    for (size_t i = 0; i < b->n_records; i++) {
        wb_record r = record_of(b, i, rid, &run);
        must(wb_dump_append(w, &r));
    }
    must(wb_dump_finish(w));
}

static void run_append(bench *b) {
    b->options = wb_dump_options_default();
    append_all(b);
}

static void run_append_trusted(bench *b) {
    b->options = wb_dump_options_default();
    b->options.trust_ids = true;
    append_all(b);
}

static void run_append_packed(bench *b) {
    b->options = wb_dump_options_default();
    b->options.codec = WB_CODEC_PACKED;
    append_all(b);
}

static void run_append_to_memory(bench *b) {
    sink = b->copy;
    run_append(b);
    sink = NULL;
}

static void run_append_to_memory_trusted(bench *b) {
    sink = b->copy;
    run_append_trusted(b);
    sink = NULL;
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

/* As many bytes as the others, of one chunk over and over: what a reader does beside the checksum, the file
 * and memory that is new. */
static void run_decode(bench *b) {
    static wb_packed_scratch scratch;
    const size_t room = CHUNK_ROWS * wb_route_row_bytes(&b->model);
    size_t found = 0;
    for (size_t done = 0; done < b->n_records * b->record_bytes; done += found)
        must(wb_packed_decode(&b->model, b->chunk, b->chunk_bytes, &scratch, b->copy, room, &found));
}

/* Those whose name begins with "read" read what the one before them wrote. */
static const struct {
    const char *name;
    void (*body)(bench *);
} cases[] = {
    {"memcpy", run_memcpy},
    {"write(2) of the same bytes, a record a call", run_write},
    {"read(2) of the same bytes, a record a call", run_plain_read},
    {"memcpy into pages that are new", run_memcpy_new},
    {"wb_record_check, deep", run_check},
    {"wb_record_count", run_count},
    {"wb_dump_append to memory", run_append_to_memory},
    {"wb_dump_append to memory, trust_ids", run_append_to_memory_trusted},
    {"wb_dump_append to a file", run_append},
    {"wb_dump_append to a file, trust_ids", run_append_trusted},
    {"read: wb_dump_record (xxh3 of all rows)", run_read},
    {"wb_dump_append to a file, packed", run_append_packed},
    {"read: wb_dump_record, packed", run_read},
    {"packed, decoding alone", run_decode},
};
enum { CASES = sizeof cases / sizeof cases[0], MEMCPY = 0, WRITE = 1, READ = 2 };

static double processor_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void measure(bench *b) {
    double best[CASES] = {0};
    for (int i = 0; i < RUNS; i++)
        for (int c = 0; c < CASES; c++) {
            double begin = processor_time();
            cases[c].body(b);
            double gbs = (double)(b->n_records * b->record_bytes) / (processor_time() - begin) / 1e9;
            if (gbs > best[c]) best[c] = gbs;
        }
    for (int c = 0; c < CASES; c++)
        printf("%-44s %7.2f GB/s  %5.2f of memcpy  %5.2f of write(2)  %5.2f of read(2)\n", cases[c].name,
               best[c], best[c] / best[MEMCPY], best[c] / best[WRITE], best[c] / best[READ]);
}

/* Bytes a row of what the dump at `path` stores. */
static double stored(const char *path) {
    wb_dump *d = NULL;
    uint64_t rows = 0, bytes = 0;
    must(wb_dump_open(path, &d));
    for (uint64_t i = 0; i < wb_dump_get_info(d).records; i++) {
        wb_dump_entry e;
        must(wb_dump_get_entry(d, i, &e));
        rows += e.stored_rows;
        bytes += e.stored_row_bytes;
    }
    wb_dump_close(d);
    return rows ? (double)bytes / (double)rows : 0;
}

static void print_sizes(bench *b) {
    static const wb_codec codecs[] = {WB_CODEC_RAW, WB_CODEC_ZSTD, WB_CODEC_PACKED};
    size_t all = b->n_records;
    b->n_records = DISTINCT;
    for (route_law law = LAW_UNIFORM; law < LAWS; law++) {
        fill_ids(b, law);
        print_law(law, b->ids, 1024, LAYERS);
        for (int c = 0; c < 3; c++) {
            b->options = wb_dump_options_default();
            b->options.codec = codecs[c];
            append_all(b);
            printf("  %-8s %6.1f bytes a token\n", wb_codec_name(codecs[c]), stored(b->path));
        }
    }
    b->n_records = all;
}

/* The records of a dump by each codec. */
static void print_dump(const bench *b, const char *path) {
    wb_dump *from = NULL;
    must(wb_dump_open(path, &from));
    for (wb_codec codec = WB_CODEC_RAW; codec <= WB_CODEC_PACKED; codec++) {
        wb_dump_writer *w = NULL;
        wb_dump_options options = wb_dump_options_default();
        options.codec = codec;
        unlink(b->path);
        must(wb_dump_create(b->path, wb_dump_model(from), &options, &w));
        for (uint64_t i = 0; i < wb_dump_get_info(from).records; i++) {
            wb_record r;
            must(wb_dump_record(from, i, &r));
            must(wb_dump_append(w, &r));
            wb_dump_release(from, i);
        }
        must(wb_dump_finish(w));
        printf("%s: %-8s %6.1f bytes a row\n", path, wb_codec_name(codec), stored(b->path));
    }
    wb_dump_close(from);
}

static void make_model(bench *b) {
    for (uint32_t l = 0; l < LAYERS; l++) b->layers[l] = l;
    b->model = (wb_route_model){.num_hidden_layers = LAYERS,
                                .n_moe_layers = LAYERS,
                                .moe_layers = b->layers,
                                .num_experts = LAW_E,
                                .top_k = LAW_K};
    strcpy(b->model.name, "bench");
    strcpy(b->model.router, "softmax_norm");
    memset(b->model.fingerprint, '0', 32);
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 1, 3, "usage: bench_dump DIRECTORY [MIB] [DUMP]\n", &code)) return code;
    static bench b;
    size_t mib = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 256;
    snprintf(b.path, sizeof b.path, "%s/bench_dump.%ld.wbr", argv[1], (long)getpid());
    make_model(&b);
    b.record_bytes = (size_t)(TOKENS - 1) * LAYERS * LAW_K;
    b.n_records = (mib << 20) / b.record_bytes + DISTINCT;
    sink_bytes = b.n_records * (b.record_bytes + 32768);
    b.ids = take(b.n_records, b.record_bytes);
    b.copy = take(sink_bytes, 1);
    printf("waybill %s, %zu records of 4096 rows x 48 layers x 8 ids (u8), %.0f MB, in %s, best of %d\n",
           wb_version(), b.n_records, (double)(b.n_records * b.record_bytes) / 1e6, argv[1], RUNS);
    print_sizes(&b);
    if (argc > 3) print_dump(&b, argv[3]);
    fill_ids(&b, LAW_RUN);
    b.chunk = take(wb_packed_bound(&b.model, CHUNK_ROWS), 1);
    must(wb_packed_encode(&b.model, b.ids, CHUNK_ROWS, NULL, 0, b.chunk,
                          wb_packed_bound(&b.model, CHUNK_ROWS), &b.chunk_bytes));
    measure(&b);
    unlink(b.path);
    free(b.chunk);
    free(b.ids);
    free(b.copy);
    return 0;
}
