/* page_drift.c - see page_drift.h. Loads of three versions are in memory at most: the first, the one before,
 * the present one. Refuses: counting rows (wb_dump_counts does). */
#include "report_page/page_drift.h"
#include "command.h"
#include "eplb/eplb_dump_steps.h"
#include "report_page/page_text.h"
#include "top_experts.h"
#include "wb_check.h"
#include "wb_load.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

typedef struct watch {
    cli_progress line;
    uint32_t step, n_steps;
} watch;

typedef struct reading {
    wb_dump *dump;
    const wb_route_model *model;
    eplb_steps steps;
    wb_dump_counts *first, *previous, *present; /* `previous` may be `first` */
    uint32_t *top;                              /* [L][K] the experts that the first version chose most */
    watch watch;
} reading;

static void show(void *ctx, uint64_t done, uint64_t total) {
    watch *w = ctx;
    if (!cli_progress_due(&w->line)) return;
    cli_progress_show(&w->line, w->step + (double)done / (double)total, w->n_steps,
                      "version %" PRIu32 " of %" PRIu32 ", %" PRIu64 " of %" PRIu64 " records", w->step + 1,
                      w->n_steps, done, total);
}

static double sum_of(const double *loads, uint32_t n) {
    double sum = 0;
    for (uint32_t e = 0; e < n; e++) sum += loads[e];
    return sum;
}

static double overlap(const double *a, const double *b, uint32_t E) {
    const double of_a = sum_of(a, E), of_b = sum_of(b, E);
    double common = 0;
    for (uint32_t e = 0; e < E; e++) common += fmin(a[e] / of_a, b[e] / of_b);
    return common;
}

static double share_of(const double *loads, uint32_t E, const uint32_t *experts, uint32_t n) {
    double sum = 0;
    for (uint32_t t = 0; t < n; t++) sum += loads[experts[t]];
    return sum / sum_of(loads, E);
}

/* Means over the layers, and the worst layer. A version has rows, so that each layer has a load. */
static wb_status compare(const reading *r, drift *d, uint32_t v) {
    const uint32_t L = r->model->n_moe_layers, E = wb_route_weighted(r->model);
    const uint32_t K = r->model->top_k < E ? r->model->top_k : E;
    const double *now = wb_dump_counts_loads(r->present), *first = wb_dump_counts_loads(r->first);
    const double *before = r->previous ? wb_dump_counts_loads(r->previous) : NULL;
    double sums[DRIFT_N_SERIES] = {0}, worst = 1;
    uint32_t *own = NULL;
    WB_TRY(WB_NEW(own, K, "top experts"));
    for (uint32_t l = 0; l < L; l++) {
        const double *loads = now + (size_t)l * E;
        const double with_before = before ? overlap(loads, before + (size_t)l * E, E) : (double)NAN;
        if (v == 0) cli_top_experts(loads, E, K, r->top + (size_t)l * K);
        cli_top_experts(loads, E, K, own);
        sums[DRIFT_PREVIOUS] += with_before;
        sums[DRIFT_FIRST] += overlap(loads, first + (size_t)l * E, E);
        sums[DRIFT_TOP] += share_of(loads, E, own, K);
        sums[DRIFT_TOP_OF_FIRST] += share_of(loads, E, r->top + (size_t)l * K, K);
        worst = with_before < worst ? with_before : worst;
    }
    for (int s = 0; s < DRIFT_N_SERIES; s++) d->values[s][v] = sums[s] / L;
    d->values[DRIFT_WORST][v] = before ? worst : (double)NAN;
    free(own);
    return WB_OK;
}

static wb_status read_version(reading *r, drift *d, uint32_t v) {
    const wb_topology one_rank = {.n_ranks = 1, .n_nodes = 1, .n_slots = wb_route_weighted(r->model)};
    const uint64_t *records = r->steps.records + r->steps.starts[v];
    wb_dump_entry entry;
    d->records[v] = r->steps.starts[v + 1] - r->steps.starts[v];
    WB_TRY(wb_dump_get_entry(r->dump, records[0], &entry));
    snprintf(d->labels[v], PLOT_LABEL_BYTES, "%" PRIu64,
             d->by_version ? entry.weight_version : v + (uint64_t)1);
    r->watch.step = v;
    WB_TRY(wb_dump_counts_open(r->dump, records, d->records[v], 1, &one_rank, show, &r->watch, &r->present));
    d->rows[v] = wb_dump_counts_rows(r->present);
    if (v == 0) r->first = r->present;
    WB_TRY(compare(r, d, v));
    if (r->previous != r->first) wb_dump_counts_close(r->previous);
    r->previous = r->present;
    r->present = NULL;
    return WB_OK;
}

static wb_status read_versions(reading *r, drift *d) {
    WB_TRY(eplb_steps_open(r->dump, 0, &r->steps));
    const uint32_t n = r->steps.n_steps;
    d->by_version = r->steps.by_version;
    if (n < 2) return WB_OK;
    WB_TRY(WB_OWN(&d->memory, d->labels, n, "versions"));
    WB_TRY(WB_OWN(&d->memory, d->records, n, "versions"));
    WB_TRY(WB_OWN(&d->memory, d->rows, n, "versions"));
    for (int s = 0; s < DRIFT_N_SERIES; s++) WB_TRY(WB_OWN(&d->memory, d->values[s], n, "versions"));
    WB_TRY(WB_NEW(r->top, (size_t)r->model->n_moe_layers * r->model->top_k, "top experts"));
    r->watch.n_steps = n;
    for (uint32_t v = 0; v < n; v++) WB_TRY(read_version(r, d, v));
    d->n = n;
    return WB_OK;
}

int drift_collect(wb_dump *dump, drift *d) {
    reading r = {.dump = dump, .model = wb_dump_model(dump), .watch = {.line = cli_progress_start()}};
    *d = (drift){0};
    const wb_status status = read_versions(&r, d);
    cli_progress_end(&r.watch.line);
    /* After a failure the present version may be the first one too. */
    if (r.present != r.first) wb_dump_counts_close(r.present);
    if (r.previous != r.first) wb_dump_counts_close(r.previous);
    wb_dump_counts_close(r.first);
    eplb_steps_close(&r.steps);
    free(r.top);
    return status == WB_OK ? CLI_OK : cli_fail();
}

/* ---- the section --------------------------------------------------------------------------------- */

static void print_sizes(FILE *out, const drift *d, const char *x_name) {
    page_table_begin(out, "records and rows of each");
    fprintf(
        out,
        "<thead><tr><th scope=\"col\">%s</th><th scope=\"col\">records</th><th scope=\"col\">valid rows</th>"
        "</tr></thead>\n<tbody>\n",
        x_name);
    for (uint32_t v = 0; v < d->n; v++)
        fprintf(out, "<tr><th scope=\"row\">%s</th><td>%" PRIu64 "</td><td>%" PRIu64 "</td></tr>\n",
                d->labels[v], d->records[v], d->rows[v]);
    fputs("</tbody>\n", out);
    page_table_end(out);
}

static void draw(FILE *out, const drift *d, const char *id, const char *title, int first, int end) {
    static const char *const names[DRIFT_N_SERIES] = {"with the one before", "worst layer", "with the first",
                                                      "its own top K", "the first one's top K"};
    plot p = {.id = id,
              .title = title,
              .x_name = d->by_version ? "weight version" : "file",
              .n_points = d->n,
              .labels = (const plot_label *)d->labels};
    for (int s = first; s < end; s++) p.series[p.n_series++] = (plot_series){names[s], d->values[s]};
    page_plot(out, &p);
}

void page_drift(FILE *out, const drift *d) {
    page_section_begin(out, "drift", d->by_version ? "Drift over weight versions" : "Drift over files");
    fputs("<p class=\"note\">Overlap of two loads of a layer: the sum over its experts of the smaller of "
          "their two "
          "shares, 1 where they are spread alike. Records count where they were finished. Means over the "
          "layers, "
          "and for the one before the worst layer.</p>\n",
          out);
    draw(out, d, "drift-overlap", "Overlap of load", DRIFT_PREVIOUS, DRIFT_TOP);
    draw(out, d, "drift-top", "Share of load that the K top experts of a layer have", DRIFT_TOP,
         DRIFT_N_SERIES);
    print_sizes(out, d, d->by_version ? "weight version" : "file");
    page_section_end(out);
}
