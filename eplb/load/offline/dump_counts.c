/* dump_counts.c - a step of a dump, counted once by micro-batch, source rank, layer and expert. Owns: which
 * micro-batch and which rank a record's tokens belong to. Refuses: what is made of the counts (solvers, the
 * simulator).
 *
 * Records are read one after the other, since a dump serves one thread; their ids are checked and counted by
 * threads, each into a table of its own that it adds to the source's when a record is done. Sums of whole
 * numbers do not depend on the order. */
#include "placement/placement_internal.h"
#include "wb_load.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* Below so many rows a step is counted faster than threads start. */
enum { FEW_ROWS = 4096 };

struct wb_dump_counts {
    wb_owner memory;
    uint32_t n_batches, n_ranks, n_live, n_layers, n_experts;
    uint64_t rows;
    uint32_t *live;         /* [n_live] ranks that have tokens */
    uint64_t *first_source; /* [M + 1] a source: one micro-batch's records of one live rank; in that order */
    uint32_t *counts;       /* [sources][L][E] */
    double *loads;          /* [M][L][E] */
};

/* What is needed while counting. */
typedef struct counting {
    wb_owner memory;
    wb_dump *dump;
    wb_dump_counts *out;
    const uint64_t *numbers; /* [n_records] of the dump's records, or NULL: the first ones */
    uint64_t n_records, n_held;
    void (*progress)(void *ctx, uint64_t done, uint64_t total); /* or NULL */
    void *progress_ctx;
    uint64_t n_done;    /* records that were read, and again those that were counted */
    wb_record *records; /* [n_records] */
    uint64_t *rows;     /* [n_records] valid ones */
    uint64_t *source;   /* [n_records] whom a record belongs to */
    uint64_t *starts;   /* [M + 1] the records of each micro-batch */
    uint32_t n_threads;
    uint64_t *tables; /* [n_threads][L][E] */
    uint64_t failed;  /* the first record that is at fault; n_records: none */
    wb_status status;
    char message[1024];
} counting;

static uint64_t number_of(const counting *c, uint64_t i) {
    return c->numbers ? c->numbers[i] : i;
}

/* One thread at a time. */
static void tell_progress(counting *c) {
    c->n_done++;
    if (c->progress) c->progress(c->progress_ctx, c->n_done / 2, c->n_records);
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Record n_held could not be read. Records before it may be at fault too, in ids that reading does not look
 * at: then the first of these is what is reported. */
static wb_status first_fault(const counting *c, wb_status status) {
    char message[sizeof c->message];
    snprintf(message, sizeof message, "%s", wb_error_message());
    for (uint64_t i = 0; i < c->n_held; i++)
        WB_TRY(wb_record_check(wb_dump_model(c->dump), &c->records[i], true));
    return wb_fail(status, "%s", message);
}

static wb_status read_records(counting *c) {
    WB_TRY(WB_OWN(&c->memory, c->records, c->n_records, "records of a step"));
    WB_TRY(WB_OWN(&c->memory, c->rows, c->n_records, "records of a step"));
    for (uint64_t i = 0; i < c->n_records; i++) {
        wb_status status = wb_dump_record(c->dump, number_of(c, i), &c->records[i]);
        if (status != WB_OK) return first_fault(c, status);
        c->n_held = i + 1;
        c->rows[i] = wb_record_count_rows(&c->records[i]);
        c->out->rows += c->rows[i];
        tell_progress(c);
    }
    return WB_OK;
}

/* ---- who has which record ------------------------------------------------------------------------- */

/* Micro-batch b takes the records whose middle row lies in the b-th part of the rows. */
static void cut_batches(counting *c) {
    uint32_t M = c->out->n_batches, b = 0;
    double before = 0, total = (double)c->out->rows;
    for (uint64_t i = 0; i < c->n_records; i++) {
        double middle = before + (double)c->rows[i] / 2;
        while (b + 1 < M && middle * M >= total * (b + 1)) c->starts[++b] = i;
        before += (double)c->rows[i];
    }
    while (b < M) c->starts[++b] = c->n_records;
}

/* Sources are numbered by micro-batch, then live rank; a micro-batch of few records has as many sources. Its
 * records go to the live ranks in turn. */
static void number_sources(counting *c) {
    uint64_t *first = c->out->first_source;
    for (uint32_t b = 0; b < c->out->n_batches; b++) {
        uint64_t records = c->starts[b + 1] - c->starts[b];
        first[b + 1] = first[b] + (records < c->out->n_live ? records : c->out->n_live);
        for (uint64_t i = 0; i < records; i++) c->source[c->starts[b] + i] = first[b] + i % c->out->n_live;
    }
}

/* Experts of a row differ, so no count is above the rows: when these fit 32 bits, counts do. */
static wb_status check_room(counting *c) {
    uint64_t *rows = NULL;
    WB_TRY(WB_OWN(&c->memory, rows, c->out->first_source[c->out->n_batches], "counts of a step"));
    for (uint64_t i = 0; i < c->n_records; i++) {
        rows[c->source[i]] += c->rows[i];
        if (rows[c->source[i]] > UINT32_MAX)
            return wb_fail(WB_CAPACITY,
                           "dump: %" PRIu64
                           " rows and more of one rank in a micro-batch, expected at most %" PRIu32,
                           rows[c->source[i]], UINT32_MAX);
    }
    return WB_OK;
}

/* ---- counting ------------------------------------------------------------------------------------- */

/* Keeps the fault of the first record, as if records had been looked at in order. */
static void fail_record(counting *c, uint64_t i, wb_status status) {
#pragma omp critical(wb_dump_counts_fail)
    if (i < c->failed) {
        c->failed = i;
        c->status = status;
        snprintf(c->message, sizeof c->message, "%s", wb_error_message());
    }
}

static void count_record(counting *c, uint64_t i, uint64_t *table) {
    const wb_route_model *model = wb_dump_model(c->dump);
    const size_t E = c->out->n_experts, cells = c->out->n_layers * E;
    const size_t all = (size_t)c->out->n_layers * model->num_experts;
    uint32_t *counts = c->out->counts + c->source[i] * cells;
    wb_status status = wb_record_check(model, &c->records[i], true);
    if (status != WB_OK) {
        fail_record(c, i, status);
        return;
    }
    memset(table, 0, all * sizeof *table);
    wb_record_count(model, &c->records[i], 0, UINT32_MAX, table);
#pragma omp critical(wb_dump_counts_add)
    {
        for (uint32_t l = 0; l < c->out->n_layers; l++)
            for (size_t e = 0; e < E; e++)
                counts[l * E + e] += (uint32_t)table[l * (size_t)model->num_experts + e];
        tell_progress(c);
    }
}

static wb_status count_records(counting *c) {
    /* Of all experts, those without weights too, which are left out when a table is added up. */
    size_t cells = (size_t)c->out->n_layers * wb_dump_model(c->dump)->num_experts;
    WB_TRY(
        WB_OWN_ALLOC(&c->memory, c->tables, c->n_threads, cells * sizeof *c->tables, "counts of a record"));
    if (c->n_threads > 1) {
#pragma omp parallel for schedule(dynamic) num_threads((int)c->n_threads)
        for (uint64_t i = 0; i < c->n_records; i++) {
            size_t thread = 0;
#ifdef _OPENMP
            thread = (size_t)omp_get_thread_num();
#endif
            count_record(c, i, c->tables + thread * cells);
        }
    } else {
        for (uint64_t i = 0; i < c->n_records; i++) count_record(c, i, c->tables);
    }
    if (c->status != WB_OK) return wb_fail(c->status, "%s", c->message);
    return WB_OK;
}

static void sum_loads(wb_dump_counts *out) {
    size_t cells = (size_t)out->n_layers * out->n_experts;
    for (uint32_t b = 0; b < out->n_batches; b++)
        for (uint64_t s = out->first_source[b]; s < out->first_source[b + 1]; s++)
            for (size_t i = 0; i < cells; i++) out->loads[b * cells + i] += out->counts[s * cells + i];
}

static void choose_threads(counting *c) {
    c->n_threads = 1;
#ifdef _OPENMP
    uint64_t threads = (uint64_t)omp_get_max_threads();
    if (threads > c->n_records) threads = c->n_records;
    if (c->out->rows >= FEW_ROWS) c->n_threads = (uint32_t)threads;
#endif
}

static wb_status count_step(counting *c) {
    wb_dump_counts *out = c->out;
    size_t M = out->n_batches, cells = (size_t)out->n_layers * out->n_experts;
    const char *what = "counts of a step";
    WB_TRY(read_records(c));
    WB_TRY(WB_OWN(&c->memory, c->starts, M + 1, what));
    WB_TRY(WB_OWN(&c->memory, c->source, c->n_records, what));
    WB_TRY(WB_OWN(&out->memory, out->first_source, M + 1, what));
    cut_batches(c);
    number_sources(c);
    WB_TRY(check_room(c));
    WB_TRY(WB_OWN_ALLOC(&out->memory, out->counts, out->first_source[M], cells * sizeof *out->counts, what));
    WB_TRY(WB_OWN_ALLOC(&out->memory, out->loads, M, cells * sizeof *out->loads, what));
    choose_threads(c);
    WB_TRY(count_records(c));
    sum_loads(out);
    return WB_OK;
}

/* ---- the object ----------------------------------------------------------------------------------- */

static wb_status check(const wb_dump *dump, const uint64_t *records, uint64_t n_records, uint32_t n_batches,
                       const wb_topology *topology) {
    uint64_t n = wb_dump_get_info(dump).records;
    WB_TRY(wb_topology_check(topology, wb_route_weighted(wb_dump_model(dump))));
    if (n_batches < 1)
        return wb_fail(WB_INVALID_ARGUMENT, "dump counts: micro-batches: expected 1 or more, found 0");
    if (n_records < 1 || (!records && n_records > n))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "dump counts: records: expected 1 or more of the %" PRIu64 ", found %" PRIu64, n,
                       n_records);
    for (uint64_t i = 0; records && i < n_records; i++)
        if (records[i] >= n)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "dump counts: records[%" PRIu64 "]: expected below %" PRIu64 ", found %" PRIu64, i,
                           n, records[i]);
    return WB_OK;
}

static wb_status open_live(wb_dump_counts *out, const wb_topology *topology) {
    WB_TRY(WB_OWN(&out->memory, out->live, topology->n_ranks, "counts of a step"));
    for (uint32_t r = 0; r < topology->n_ranks; r++)
        if (!topology->dead || !topology->dead[r]) out->live[out->n_live++] = r;
    return WB_OK;
}

wb_status wb_dump_counts_open(wb_dump *dump, const uint64_t *records, uint64_t n_records, uint32_t n_batches,
                              const wb_topology *topology,
                              void (*progress)(void *ctx, uint64_t done, uint64_t total), void *progress_ctx,
                              wb_dump_counts **counts_out) {
    WB_TRY(check(dump, records, n_records, n_batches, topology));
    wb_dump_counts *out = NULL;
    WB_TRY(WB_NEW(out, 1, "counts of a step"));
    out->n_batches = n_batches;
    out->n_ranks = topology->n_ranks;
    out->n_layers = wb_dump_model(dump)->n_moe_layers;
    out->n_experts = wb_route_weighted(wb_dump_model(dump));
    counting c = {.dump = dump,
                  .out = out,
                  .numbers = records,
                  .n_records = n_records,
                  .failed = n_records,
                  .progress = progress,
                  .progress_ctx = progress_ctx};
    wb_status status = open_live(out, topology);
    if (status == WB_OK) status = count_step(&c);
    for (uint64_t i = 0; i < c.n_held; i++) wb_dump_release(dump, number_of(&c, i));
    wb_owner_close(&c.memory);
    if (status == WB_OK)
        *counts_out = out;
    else
        wb_dump_counts_close(out);
    return status;
}

void wb_dump_counts_close(wb_dump_counts *counts) {
    if (!counts) return;
    wb_owner_close(&counts->memory);
    free(counts);
}

uint64_t wb_dump_counts_rows(const wb_dump_counts *counts) {
    return counts->rows;
}

const double *wb_dump_counts_loads(const wb_dump_counts *counts) {
    return counts->loads;
}

wb_status wb_dump_counts_fill(void *counts, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    const wb_dump_counts *c = counts;
    size_t E = c->n_experts;
    uint64_t first = c->first_source[batch], n = c->first_source[batch + 1] - first;
    memset(counts_out, 0, c->n_ranks * E * sizeof *counts_out);
    for (uint64_t k = 0; k < n; k++)
        memcpy(counts_out + c->live[k] * E, c->counts + ((first + k) * c->n_layers + layer) * E,
               E * sizeof *counts_out);
    return WB_OK;
}
