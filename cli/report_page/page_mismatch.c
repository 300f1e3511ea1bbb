/* page_mismatch.c - see page_mismatch.h. */
#include "report_page/page_mismatch.h"
#include "report_page/page_plot.h"
#include "report_page/page_text.h"
#include "wb_check.h"

#include <inttypes.h>

enum { N_SERIES = 3 };
static const char *const names[N_SERIES] = {"overlap@K", "same experts", "same order"};

/* Points of sums of rows. */
typedef struct points {
    uint32_t n;
    plot_label *labels;
    double *values[N_SERIES];
    wb_owner memory;
} points;

static wb_status open_points(points *p, uint32_t capacity) {
    WB_TRY(WB_OWN(&p->memory, p->labels, capacity, "points of a plot"));
    for (int s = 0; s < N_SERIES; s++) WB_TRY(WB_OWN(&p->memory, p->values[s], capacity, "points of a plot"));
    return WB_OK;
}

static void add_point(points *p, const diff_sums *sums, uint64_t width) {
    p->values[0][p->n] = diff_overlap(sums, width);
    p->values[1][p->n] = diff_share(sums->same, sums->rows);
    p->values[2][p->n++] = diff_share(sums->exact, sums->rows);
}

static void draw(FILE *out, const points *from, const char *id, const char *title, const char *x_name) {
    plot p = {.id = id,
              .title = title,
              .x_name = x_name,
              .n_points = from->n,
              .labels = (const plot_label *)from->labels,
              .n_series = N_SERIES};
    for (int s = 0; s < N_SERIES; s++) p.series[s] = (plot_series){names[s], from->values[s]};
    page_plot(out, &p);
}

static wb_status by_layer(FILE *out, const diff *d) {
    points p = {0};
    wb_status status = open_points(&p, d->model->n_moe_layers);
    for (uint32_t l = 0; status == WB_OK && l < d->model->n_moe_layers; l++) {
        snprintf(p.labels[l], PLOT_LABEL_BYTES, "%" PRIu32, d->model->moe_layers[l]);
        add_point(&p, &d->layers[l], wb_route_layer_k(d->model, l));
    }
    if (status == WB_OK) draw(out, &p, "mismatch-layer", "Mismatch by layer", "layer");
    wb_owner_close(&p.memory);
    return status;
}

static wb_status by_position(FILE *out, const diff *d) {
    points p = {0};
    wb_status status = open_points(&p, DIFF_N_BUCKETS);
    for (int b = 0; status == WB_OK && b < DIFF_N_BUCKETS; b++) {
        if (d->buckets[b].rows == 0) continue;
        snprintf(p.labels[p.n], PLOT_LABEL_BYTES, "%" PRIu64 "..%" PRIu64, diff_bucket_from(b),
                 diff_bucket_from(b + 1) - 1);
        add_point(&p, &d->buckets[b], diff_row_width(d));
    }
    if (status == WB_OK) draw(out, &p, "mismatch-position", "Mismatch by position", "positions");
    wb_owner_close(&p.memory);
    return status;
}

static void print_kl(FILE *out, const char *name, const diff_kl *kl) {
    if (kl->tokens == 0) return;
    fprintf(out,
            "<dt>%s</dt><dd>k1 %.6g, k3 %.6g nats, ratio outside [0.5, 2] %.6g of %" PRIu64 " tokens</dd>\n",
            name, diff_mean(kl->k1, kl->tokens), diff_mean(kl->k3, kl->tokens),
            diff_share(kl->outside, kl->tokens), kl->tokens);
}

static void print_totals(FILE *out, const diff *d, const char *against) {
    fputs("<dl>\n<dt>A</dt><dd>the dump of this page</dd>\n<dt>B</dt><dd>", out);
    page_text(out, against);
    fprintf(out,
            "</dd>\n<dt>records</dt><dd>%" PRIu64 " in both, %" PRIu64 " only in A, %" PRIu64
            " only in B; %" PRIu64 " have the same tokens</dd>\n<dt>rows</dt><dd>%" PRIu64
            " in both, %" PRIu64 " only in A, %" PRIu64 " only in B; %" PRIu64 " after other tokens</dd>\n",
            d->both, d->only_a, d->only_b, d->same_tokens, d->all.rows, d->rows_only_a, d->rows_only_b,
            d->rows_not_compared);
    if (d->all.rows > 0)
        fprintf(out, "<dt>overlap@K</dt><dd>%.6g of A&apos;s choices are B&apos;s</dd>\n",
                diff_overlap(&d->all, diff_row_width(d)));
    print_kl(out, "KL(A || B)", &d->kl);
    print_kl(out, "KL of the distributions sampled from", &d->kl_sampling);
    if (d->first.rid) {
        fputs("<dt>first difference</dt><dd>record ", out);
        page_text(out, d->first.rid);
        fprintf(out, ", position %" PRIu32 ", layer %" PRIu32 "</dd>\n", d->first.position, d->first.layer);
    }
    fputs("</dl>\n", out);
}

wb_status page_mismatch(FILE *out, const diff *d, const char *against) {
    page_section_begin(out, "mismatch", "Mismatch");
    print_totals(out, d, against);
    if (d->all.rows > 0) {
        WB_TRY(by_layer(out, d));
        WB_TRY(by_position(out, d));
    }
    page_section_end(out);
    return WB_OK;
}
