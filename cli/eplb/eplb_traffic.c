/* eplb_traffic.c - steps of micro-batches for `waybill eplb`: a dump's records dealt out in file order, or
 * synthetic loads. Owns: who the source rank of a token is, and the counts [P][E] of a (micro-batch,
 * layer), made when asked for. Refuses: counts of more than one step in memory. */
#include "eplb.h"

#include <stdlib.h>
#include <string.h>

/* How an expert's tokens are dealt to n ranks: `even` each, and one more to `more` ranks from `first` on,
 * in a circle. */
typedef struct deal {
    uint32_t even, first, more;
} deal;

struct eplb_source {
    eplb_source_info info;
    uint32_t n_ranks, n_live;
    uint32_t *live;   /* [n_live] ranks that have tokens */
    double *loads;    /* [M][L][E] of the present step */
    uint64_t *starts; /* [M + 1] dump: the records of each micro-batch, indices into `records` */
    wb_synthetic synthetic;
    deal *deals;                                    /* [E] synthetic: of the counts being made */
    wb_dump *dump;                                  /* NULL: synthetic */
    uint64_t step_records, n_all, first, n_records; /* a step; of the dump; the present step's */
    wb_record *records;                             /* [step_records] of the present step */
};

static wb_status no_memory(void) {
    return wb_fail(WB_OUT_OF_MEMORY, "eplb: no memory for a step of loads");
}

/* ---- rows of records ------------------------------------------------------------------------- */

typedef void row_visitor(const wb_route_model *model, const void *row, void *ctx);

static uint64_t visit_rows(const wb_route_model *m, const wb_record *r, row_visitor *visit, void *ctx) {
    size_t bytes = wb_route_row_bytes(m);
    uint64_t n = 0;
    for (uint32_t i = 0; i < r->n_routes; i++) {
        const wb_route_rows *run = &r->routes[i];
        for (uint32_t t = 0; t < run->rows; t++) {
            if (run->valid && !(run->valid[t / 8] >> t % 8 & 1)) continue;
            if (visit) visit(m, (const uint8_t *)run->ids + t * bytes, ctx);
            n++;
        }
    }
    return n;
}

/* Adds a row to loads [L][E]. */
static void add_row_to_loads(const wb_route_model *m, const void *row, void *ctx) {
    wb_dtype dtype = wb_route_dtype(m->num_experts);
    double *loads = ctx;
    for (size_t l = 0; l < m->n_moe_layers; l++)
        for (uint32_t k = 0; k < m->top_k; k++)
            loads[l * m->num_experts + wb_route_id(row, dtype, l * m->top_k + k)]++;
}

typedef struct layer_counts {
    uint32_t layer;
    uint32_t *counts; /* [E] of one source rank */
} layer_counts;

static void add_row_to_counts(const wb_route_model *m, const void *row, void *ctx) {
    wb_dtype dtype = wb_route_dtype(m->num_experts);
    const layer_counts *c = ctx;
    for (uint32_t k = 0; k < m->top_k; k++)
        c->counts[wb_route_id(row, dtype, (size_t)c->layer * m->top_k + k)]++;
}

/* ---- a dump ---------------------------------------------------------------------------------- */

static void release_records(eplb_source *s) {
    for (uint64_t i = 0; i < s->n_records; i++) wb_dump_release(s->dump, s->first + i);
    s->n_records = 0;
}

/* Micro-batch b takes the records whose middle row lies in the b-th part of the rows. */
static void cut_batches(eplb_source *s, const uint64_t *rows, uint64_t total) {
    uint32_t M = s->info.n_batches, b = 0;
    double before = 0;
    s->starts[0] = 0;
    for (uint64_t i = 0; i < s->n_records; i++) {
        double middle = before + (double)rows[i] / 2;
        while (b + 1 < M && middle * M >= (double)total * (b + 1)) s->starts[++b] = i;
        before += (double)rows[i];
    }
    while (b < M) s->starts[++b] = s->n_records;
}

static wb_status read_records(eplb_source *s, uint64_t *rows, uint64_t *total_out) {
    const wb_route_model *m = wb_dump_model(s->dump);
    uint64_t end = s->first + s->step_records < s->n_all ? s->first + s->step_records : s->n_all, total = 0;
    for (uint64_t i = s->first; i < end; i++) {
        wb_record *r = &s->records[i - s->first];
        wb_status status = wb_dump_record(s->dump, i, r);
        if (status == WB_OK) status = wb_record_check(m, r, true); /* ids index the counts */
        if (status != WB_OK) return status;
        s->n_records++;
        total += rows[i - s->first] = visit_rows(m, r, NULL, NULL);
    }
    *total_out = total;
    return WB_OK;
}

static wb_status take_dump_step(eplb_source *s, uint32_t step) {
    const wb_route_model *m = wb_dump_model(s->dump);
    size_t layers = (size_t)s->info.n_layers * s->info.n_experts;
    release_records(s);
    s->first = (uint64_t)step * s->step_records;
    uint64_t total = 0, *rows = calloc(s->step_records, sizeof *rows);
    if (!rows) return no_memory();
    wb_status status = read_records(s, rows, &total);
    if (status == WB_OK && total == 0)
        status = wb_fail(WB_MISSING_ROUTES,
                         "eplb: step %u: expected rows in its %llu records, found none that is valid",
                         (unsigned)step, (unsigned long long)s->n_records);
    if (status == WB_OK) {
        cut_batches(s, rows, total);
        memset(s->loads, 0, s->info.n_batches * layers * sizeof *s->loads);
        for (uint32_t b = 0; b < s->info.n_batches; b++)
            for (uint64_t i = s->starts[b]; i < s->starts[b + 1]; i++)
                visit_rows(m, &s->records[i], add_row_to_loads, s->loads + b * layers);
        s->info.records += s->n_records;
        s->info.rows += total;
    }
    free(rows);
    return status;
}

/* Records of a micro-batch go to live ranks in turn. */
static wb_status fill_from_dump(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    eplb_source *s = ctx;
    size_t E = s->info.n_experts;
    memset(counts_out, 0, s->n_ranks * E * sizeof *counts_out);
    for (uint64_t i = s->starts[batch]; i < s->starts[batch + 1]; i++) {
        uint32_t rank = s->live[(i - s->starts[batch]) % s->n_live];
        layer_counts c = {layer, counts_out + rank * E};
        visit_rows(wb_dump_model(s->dump), &s->records[i], add_row_to_counts, &c);
    }
    return WB_OK;
}

/* ---- synthetic ------------------------------------------------------------------------------- */

/* Each live rank has count / live tokens of an expert; what remains is dealt one by one, an expert's from
 * where the last one's ended, so that ranks end with about the same number of tokens. */
static wb_status fill_from_loads(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    eplb_source *s = ctx;
    size_t E = s->info.n_experts;
    uint32_t n = s->n_live, first = 0;
    const double *loads = s->loads + ((size_t)batch * s->info.n_layers + layer) * E;
    for (size_t e = 0; e < E; e++) {
        uint32_t tokens = (uint32_t)loads[e];
        s->deals[e] = (deal){tokens / n, first, tokens % n};
        first = (uint32_t)(((uint64_t)first + tokens) % n);
    }
    if (n < s->n_ranks) memset(counts_out, 0, s->n_ranks * E * sizeof *counts_out);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *row = counts_out + s->live[i] * E;
        for (size_t e = 0; e < E; e++) {
            deal d = s->deals[e];
            uint32_t from_first = i >= d.first ? i - d.first : i + n - d.first;
            row[e] = d.even + (from_first < d.more);
        }
    }
    return WB_OK;
}

/* ---- the source ------------------------------------------------------------------------------ */

static wb_status open_dump(const eplb_settings *settings, eplb_source *s) {
    wb_status status = wb_dump_open(settings->dump, &s->dump);
    if (status != WB_OK) return status;
    const wb_route_model *m = wb_dump_model(s->dump);
    s->n_all = wb_dump_get_info(s->dump).records;
    if (s->n_all == 0) return wb_fail(WB_MISSING_ROUTES, "%s: expected records, found none", settings->dump);
    s->step_records = settings->step_records;
    if (s->step_records == 0 || s->step_records > s->n_all) s->step_records = s->n_all;
    uint64_t steps = (s->n_all - 1) / s->step_records + 1;
    if (steps > UINT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected fewer than 2^32 steps", settings->dump);
    s->info = (eplb_source_info){.name = m->name,
                                 .n_layers = m->n_moe_layers,
                                 .n_experts = m->num_experts,
                                 .top_k = m->top_k,
                                 .n_steps = (uint32_t)steps};
    s->records = calloc(s->step_records, sizeof *s->records);
    return s->records ? WB_OK : no_memory();
}

static void open_synthetic(const eplb_settings *settings, eplb_source *s) {
    static const char *const names[] = {"synthetic zipf", "synthetic lognormal", "synthetic drift"};
    s->synthetic = settings->synthetic;
    s->info = (eplb_source_info){.name = names[settings->synthetic.kind],
                                 .n_layers = settings->n_layers,
                                 .n_experts = settings->n_experts,
                                 .top_k = settings->top_k,
                                 .n_steps = settings->n_steps};
}

static wb_status open_memory(const eplb_settings *settings, eplb_source *s) {
    const wb_topology *t = &settings->topology;
    s->info.n_batches = settings->n_batches;
    s->n_ranks = t->n_ranks;
    s->live = calloc(t->n_ranks, sizeof *s->live);
    s->starts = calloc((size_t)s->info.n_batches + 1, sizeof *s->starts);
    s->loads = calloc((size_t)s->info.n_batches * s->info.n_layers, s->info.n_experts * sizeof *s->loads);
    s->deals = calloc(s->info.n_experts, sizeof *s->deals);
    if (!s->live || !s->starts || !s->loads || !s->deals) return no_memory();
    for (uint32_t p = 0; p < t->n_ranks; p++)
        if (!t->dead || !t->dead[p]) s->live[s->n_live++] = p;
    return WB_OK;
}

wb_status eplb_source_open(const eplb_settings *settings, eplb_source **source_out) {
    eplb_source *s = calloc(1, sizeof *s);
    wb_status status = s ? WB_OK : no_memory();
    if (status == WB_OK && settings->dump) status = open_dump(settings, s);
    if (status == WB_OK && !settings->dump) open_synthetic(settings, s);
    if (status == WB_OK) status = open_memory(settings, s);
    if (status == WB_OK)
        *source_out = s;
    else
        eplb_source_close(s);
    return status;
}

void eplb_source_close(eplb_source *source) {
    if (!source) return;
    wb_dump_close(source->dump);
    free(source->records);
    free(source->starts);
    free(source->loads);
    free(source->deals);
    free(source->live);
    free(source);
}

eplb_source_info eplb_source_get_info(const eplb_source *source) {
    return source->info;
}

wb_status eplb_source_take_step(eplb_source *s, uint32_t step) {
    if (s->dump) return take_dump_step(s, step);
    return wb_synthetic_loads(&s->synthetic, step, s->info.n_batches, s->info.n_layers, s->info.n_experts,
                              s->loads);
}

const double *eplb_source_loads(const eplb_source *source) {
    return source->loads;
}

wb_traffic eplb_source_traffic(eplb_source *s) {
    return (wb_traffic){
        .n_batches = s->info.n_batches, .fill = s->dump ? fill_from_dump : fill_from_loads, .ctx = s};
}
