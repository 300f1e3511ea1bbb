/* eplb_source.c - steps of micro-batches for `waybill eplb`: a dump's records in file order, passes of
 * files of counts, or synthetic loads. Owns: how tokens of loads are dealt to source ranks. Refuses:
 * walking records (wb_dump_counts does, once a step), counts of more than one step in memory. */
#include "eplb/eplb.h"
#include "eplb/eplb_dump_steps.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* How an expert's tokens are dealt to n ranks: `even` each, and one more to `more` ranks from `first` on,
 * in a circle. */
typedef struct deal {
    uint32_t even, first, more;
} deal;

/* What the quota dispatch takes of one expert. */
#define MAX_TOKENS 2147483648.0

/* What a sum of 1 is taken for where counts are shares. A power of two, so that figures which do not depend
 * on the number of tokens keep their bits. */
#define CHOICES_OF_SHARES 1048576.0

struct eplb_source {
    eplb_source_info info;
    uint32_t n_ranks, n_live;
    uint32_t *live; /* [n_live] ranks that have tokens */
    double *loads;  /* [M][L][E] of the present step; not of a dump */
    wb_synthetic synthetic;
    deal *deals;            /* [E] of the counts being made; not of a dump */
    wb_counts *file_counts; /* of loads; NULL: another source */
    double choices;         /* of loads, that a count of 1 is */
    double scale;           /* choices of loads that are a token, 1 where they fit */
    wb_dump *dump;          /* NULL: another source */
    eplb_steps steps;       /* of the dump */
    wb_topology topology;   /* the settings' */
    wb_dump_counts *counts; /* of the present step of a dump */
};

static wb_status no_memory(void) {
    return wb_fail(WB_OUT_OF_MEMORY, "eplb: no memory for a step of loads");
}

/* ---- a dump ---------------------------------------------------------------------------------- */

static wb_status take_dump_step(eplb_source *s, uint32_t step,
                                void (*progress)(void *ctx, uint64_t done, uint64_t total),
                                void *progress_ctx) {
    const uint64_t first = s->steps.starts[step], n = s->steps.starts[step + 1] - first;
    wb_dump_counts_close(s->counts);
    s->counts = NULL;
    wb_status status = wb_dump_counts_open(s->dump, s->steps.records + first, n, s->info.n_batches,
                                           &s->topology, progress, progress_ctx, &s->counts);
    if (status != WB_OK) return status;
    s->info.records += n;
    s->info.rows += wb_dump_counts_rows(s->counts);
    return WB_OK;
}

/* ---- files of counts --------------------------------------------------------------------------- */

/* A step's passes; the last step may have fewer, and then batches without tokens. Counts of a long time
 * may be more than a dispatch can send: then the tokens are a part of them. */
static void take_passes(eplb_source *s, uint32_t step) {
    const uint32_t M = s->info.n_batches, first = step * M, left = s->info.n_passes - first;
    const size_t cells = (size_t)s->info.n_layers * s->info.n_experts, n = left < M ? left : M;
    double max = 0;
    memset(s->loads, 0, M * cells * sizeof *s->loads);
    memcpy(s->loads, wb_counts_loads(s->file_counts) + first * cells, n * cells * sizeof *s->loads);
    for (size_t i = 0; i < n * cells; i++) {
        s->loads[i] *= s->choices;
        max = s->loads[i] > max ? s->loads[i] : max;
    }
    for (s->scale = 1; max / s->scale > MAX_TOKENS;) s->scale *= 2;
}

/* Mean over the (pass, layer) that have a count. */
static double mean_tokens(const eplb_source_info *info, const double *loads) {
    const size_t rows = (size_t)info->n_passes * info->n_layers;
    double total = 0;
    size_t n = 0;
    for (size_t i = 0; i < rows; i++) {
        double sum = 0;
        for (uint32_t e = 0; e < info->n_experts; e++) sum += loads[i * info->n_experts + e];
        total += sum;
        n += sum > 0;
    }
    return n > 0 ? total / (double)n : 0;
}

/* Fractions that add up to 1 in each layer, summed over the files, or of which none is half a token: they
 * would round to nothing. Counts with decay are fractions too, of far larger sums. */
static bool are_shares(const eplb_source_info *info, const double *loads, uint32_t n_files) {
    const size_t rows = (size_t)info->n_passes * info->n_layers;
    bool whole = true, small = true;
    double max = 0;
    for (size_t i = 0; i < rows; i++) {
        double sum = 0;
        for (uint32_t e = 0; e < info->n_experts; e++) {
            const double load = loads[i * info->n_experts + e];
            sum += load;
            max = load > max ? load : max;
            whole = whole && load == floor(load);
        }
        small = small && sum <= 1.5 * n_files;
    }
    return !whole && (small || max < 0.5);
}

static wb_status open_loads(const eplb_settings *settings, eplb_source *s) {
    const cli_list *files = settings->loads;
    const wb_status status =
        wb_counts_read(files->n, files->items, settings->moe_layers ? &settings->moe : NULL, &s->file_counts);
    if (status != WB_OK) return wb_fail_context(status, "--loads");
    const wb_counts_info found = wb_counts_get_info(s->file_counts);
    if (settings->model_experts > 0 && found.n_experts != settings->model_experts)
        return wb_fail(WB_MISMATCH, "--loads %s: expected the %" PRIu32 " experts of --model, found %" PRIu32,
                       files->items[0], settings->model_experts, found.n_experts);
    s->info = (eplb_source_info){.name = found.layout,
                                 .n_layers = found.n_layers,
                                 .n_experts = found.n_experts,
                                 .top_k = settings->top_k,
                                 .layers = settings->moe_layers ? found.layers : NULL,
                                 .n_passes = found.n_passes,
                                 .n_steps = (found.n_passes - 1) / settings->n_batches + 1};
    s->info.shares = are_shares(&s->info, wb_counts_loads(s->file_counts), files->n);
    if (s->info.shares) s->choices = CHOICES_OF_SHARES;
    s->info.pass_tokens = s->choices * mean_tokens(&s->info, wb_counts_loads(s->file_counts));
    if (s->info.pass_tokens > 0) return WB_OK;
    return wb_fail(WB_MISSING_ROUTES, "--loads %s: expected counts, found none in %" PRIu32 " layers",
                   files->items[0], found.n_layers);
}

/* ---- loads as tokens ------------------------------------------------------------------------------- */

/* Each live rank has count / live tokens of an expert; what remains is dealt one by one, an expert's from
 * where the last one's ended, so that ranks end with about the same number of tokens. */
static wb_status fill_from_loads(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    eplb_source *s = ctx;
    size_t E = s->info.n_experts;
    uint32_t n = s->n_live, first = 0;
    const double *loads = s->loads + ((size_t)batch * s->info.n_layers + layer) * E;
    for (size_t e = 0; e < E; e++) {
        const uint32_t tokens =
            (uint32_t)(loads[e] / s->scale + 0.5); /* counts with decay are no whole numbers */
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
    cli_spooled spooled;
    wb_status status = cli_dump_path(settings->dump, &spooled);
    if (status == WB_OK) status = wb_dump_open(spooled.path, &s->dump);
    if (status != WB_OK) return status;
    const wb_route_model *m = wb_dump_model(s->dump);
    s->info = (eplb_source_info){.name = m->name,
                                 .n_layers = m->n_moe_layers,
                                 .n_experts = wb_route_weighted(m),
                                 .n_weightless = m->n_weightless,
                                 .top_k = m->top_k,
                                 .layers = m->moe_layers};
    s->topology = settings->topology;
    status = eplb_steps_open(s->dump, settings->step_records, &s->steps);
    if (status == WB_MISSING_ROUTES) return wb_fail_context(status, "%s", settings->dump);
    s->info.n_steps = s->steps.n_steps;
    s->info.skipped = s->steps.skipped;
    s->info.steps_by = s->steps.by;
    return status;
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
    if (s->dump) return WB_OK;
    s->n_ranks = t->n_ranks;
    s->live = calloc(t->n_ranks, sizeof *s->live);
    s->loads = calloc((size_t)s->info.n_batches * s->info.n_layers, s->info.n_experts * sizeof *s->loads);
    s->deals = calloc(s->info.n_experts, sizeof *s->deals);
    if (!s->live || !s->loads || !s->deals) return no_memory();
    for (uint32_t r = 0; r < t->n_ranks; r++)
        if (!t->dead || !t->dead[r]) s->live[s->n_live++] = r;
    return WB_OK;
}

wb_status eplb_source_open(const eplb_settings *settings, eplb_source **source_out) {
    eplb_source *s = calloc(1, sizeof *s);
    wb_status status = s ? WB_OK : no_memory();
    if (s) s->scale = s->choices = 1;
    if (status == WB_OK && settings->dump) status = open_dump(settings, s);
    if (status == WB_OK && settings->loads) status = open_loads(settings, s);
    if (status == WB_OK && !settings->dump && !settings->loads) open_synthetic(settings, s);
    if (status == WB_OK) status = open_memory(settings, s);
    if (status == WB_OK)
        *source_out = s;
    else
        eplb_source_close(s);
    return status;
}

void eplb_source_close(eplb_source *source) {
    if (!source) return;
    wb_dump_counts_close(source->counts);
    eplb_steps_close(&source->steps);
    cli_close_dump(source->dump);
    wb_counts_close(source->file_counts);
    free(source->loads);
    free(source->deals);
    free(source->live);
    free(source);
}

eplb_source_info eplb_source_get_info(const eplb_source *source) {
    return source->info;
}

wb_status eplb_source_take_step(eplb_source *s, uint32_t step,
                                void (*progress)(void *ctx, uint64_t done, uint64_t total),
                                void *progress_ctx) {
    if (s->dump) return take_dump_step(s, step, progress, progress_ctx);
    if (s->file_counts) {
        take_passes(s, step);
        return WB_OK;
    }
    return wb_synthetic_loads(&s->synthetic, step, s->info.n_batches, s->info.n_layers, s->info.n_experts,
                              s->loads);
}

const double *eplb_source_loads(const eplb_source *source) {
    return source->dump ? wb_dump_counts_loads(source->counts) : source->loads;
}

wb_traffic eplb_source_traffic(eplb_source *s) {
    wb_traffic traffic = {.n_batches = s->info.n_batches, .fill = fill_from_loads, .ctx = s};
    if (s->dump) {
        traffic.fill = wb_dump_counts_fill;
        traffic.ctx = s->counts;
    }
    return traffic;
}

double eplb_source_scale(const eplb_source *source) {
    return source->scale;
}

const wb_counts *eplb_source_counts(const eplb_source *source) {
    return source->file_counts;
}
