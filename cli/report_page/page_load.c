/* page_load.c - see page_load.h. Colours are the bins of `waybill stats`. Many experts share a cell, which
 * then shows the most chosen of them, so that no peak is lost. */
#include "report_page/page_load.h"
#include "report_page/page_text.h"

#include <inttypes.h>
#include <math.h>

enum { LEFT = 60, TOP = 50, PLOT_WIDTH = 920, CELL_HEIGHT = 16, MAX_CELL_WIDTH = 40, MAX_CELLS = 512 };

static uint32_t experts_per_cell(const stats *s) {
    return (s->model->num_experts + MAX_CELLS - 1) / MAX_CELLS;
}

/* The expert of experts [first, first + n) that was chosen most. */
static uint32_t most_chosen(const uint64_t *counts, uint32_t first, uint32_t n) {
    uint32_t best = first;
    for (uint32_t e = first + 1; e < first + n; e++)
        if (counts[e] > counts[best]) best = e;
    return best;
}

/* ---- the whole dump ------------------------------------------------------------------------------ */

static void print_lengths(FILE *out, const stats *s, const char *name, const uint32_t *sorted, uint64_t sum) {
    fprintf(out, "<dt>%s tokens</dt><dd>", name);
    for (int q = 0; q < STATS_N_QUANTILES; q++)
        fprintf(out, "%d%%: %" PRIu32 ", ", stats_quantiles[q],
                stats_quantile(s, sorted, stats_quantiles[q]));
    fprintf(out, "mean %.1f</dd>\n", stats_mean(s, sum));
}

void page_summary(FILE *out, const stats *s) {
    fputs("<dl>\n<dt>model</dt><dd>", out);
    page_text(out, s->model->name);
    fprintf(out,
            "</dd>\n<dt>shape</dt><dd>%" PRIu32 " MoE layers of %" PRIu32 " layers, %" PRIu32
            " experts, %s%" PRIu32 " chosen for a token</dd>\n<dt>records</dt><dd>%" PRIu64
            "</dd>\n<dt>tokens</dt><dd>%" PRIu64 "</dd>\n<dt>valid rows</dt><dd>%" PRIu64
            "</dd>\n<dt>finished by</dt><dd>",
            s->model->n_moe_layers, s->model->num_hidden_layers, s->model->num_experts,
            s->model->layer_top_k ? "up to " : "", s->model->top_k, s->records,
            s->prompt_sum + s->sampled_sum, s->rows);
    for (int f = 0; f < STATS_N_FINISH; f++)
        fprintf(out, "%s%s %" PRIu64, f ? ", " : "", wb_finish_name((wb_finish)f), s->finish[f]);
    fputs("</dd>\n", out);
    print_lengths(out, s, "prompt", s->prompt, s->prompt_sum);
    print_lengths(out, s, "sampled", s->sampled, s->sampled_sum);
    fputs("</dl>\n", out);
}

/* ---- the heat map -------------------------------------------------------------------------------- */

static void draw_legend(FILE *out) {
    static const char *const bounds[STATS_N_BINS] = {"never",   "below 1/4", "below 1/2", "below the mean",
                                                     "below 2", "below 4",   "4 and more"};
    for (int b = 0; b < STATS_N_BINS; b++)
        fprintf(out,
                "<rect class=\"cell b%d\" x=\"%d\" y=\"4\" width=\"14\" height=\"14\"/><text x=\"%d\" "
                "y=\"15\">%s</text>\n",
                b, LEFT + b * 130, LEFT + b * 130 + 19, bounds[b]);
}

/* A layer can be gone to with the keyboard, and says the figures of its row of the table. */
static void draw_layer(FILE *out, const stats *s, uint32_t l, double width) {
    const uint32_t E = s->model->num_experts, step = experts_per_cell(s), number = s->model->moe_layers[l];
    const uint64_t *counts = s->counts + (size_t)l * E, total = stats_choices(s, l);
    const stats_layer layer = stats_layer_of(s, l);
    const uint32_t y = TOP + l * CELL_HEIGHT;
    fprintf(out, "<g tabindex=\"0\" role=\"img\" aria-label=\"layer %" PRIu32 ": ", number);
    if (layer.n_top > 0)
        fprintf(out, "most chosen expert %" PRIu32 ", %.3g times the mean; entropy %.4f; ", layer.top[0],
                layer.max_over_mean, layer.entropy);
    fprintf(out, "%" PRIu32 " experts never chosen\">\n", layer.unused);
    fprintf(out, "<text x=\"%d\" y=\"%" PRIu32 "\" text-anchor=\"end\">%" PRIu32 "</text>\n", LEFT - 8,
            y + 12, number);
    for (uint32_t first = 0, cell = 0; first < E; first += step, cell++) {
        const uint32_t e = most_chosen(counts, first, first + step < E ? step : E - first);
        fprintf(out,
                "<rect class=\"cell b%" PRIu32 "\" x=\"%.2f\" y=\"%" PRIu32
                "\" width=\"%.2f\" height=\"%d\"><title>"
                "layer %" PRIu32 ", expert %" PRIu32 ": %" PRIu64 "</title></rect>\n",
                stats_bin_of(counts[e], total, E), LEFT + cell * width, y, width, CELL_HEIGHT, number, e,
                counts[e]);
    }
    fputs("</g>\n", out);
}

static void draw_map(FILE *out, const stats *s) {
    const uint32_t L = s->model->n_moe_layers, E = s->model->num_experts, step = experts_per_cell(s);
    const uint32_t cells = (E + step - 1) / step, labels = cells > 16 ? (cells + 15) / 16 : 1;
    const double width =
        PLOT_WIDTH / (double)cells < MAX_CELL_WIDTH ? PLOT_WIDTH / (double)cells : MAX_CELL_WIDTH;
    fprintf(
        out,
        "<svg id=\"heat\" viewBox=\"0 0 %d %" PRIu32 "\" xmlns=\"http://www.w3.org/2000/svg\" role=\"group\" "
        "aria-labelledby=\"heat-name heat-text\">\n<title id=\"heat-name\">Load of each expert in each "
        "layer</title><desc id=\"heat-text\">A row for each MoE layer, a cell for each expert, coloured by "
        "its load over the layer&apos;s mean. The tables below have each number.</desc>\n",
        LEFT + PLOT_WIDTH + 20, TOP + L * CELL_HEIGHT + 10);
    draw_legend(out);
    for (uint32_t c = 0; c < cells; c += labels)
        fprintf(out, "<text x=\"%.2f\" y=\"%d\" text-anchor=\"middle\">%" PRIu32 "</text>\n",
                LEFT + (c + 0.5) * width, TOP - 6, c * step);
    for (uint32_t l = 0; l < L; l++) draw_layer(out, s, l, width);
    fputs("</svg>\n", out);
}

/* ---- tables -------------------------------------------------------------------------------------- */

static void print_layers(FILE *out, const stats *s) {
    static const char *const columns[] = {"layer",        "max over mean", "entropy", "top expert",
                                          "share of top", "never chosen",  "repeats"};
    page_table_begin(out, "figures of each layer");
    fputs("<thead><tr>", out);
    for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++)
        fprintf(out, "<th scope=\"col\">%s</th>", columns[c]);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) {
        const stats_layer layer = stats_layer_of(s, l);
        fprintf(out, "<tr><th scope=\"row\">%" PRIu32 "</th>", s->model->moe_layers[l]);
        page_number_cell(out, layer.max_over_mean);
        page_number_cell(out, layer.entropy);
        page_number_cell(out, layer.n_top > 0 ? (double)layer.top[0] : (double)NAN);
        page_number_cell(out, layer.top_share);
        fprintf(out, "<td>%" PRIu32 "</td>", layer.unused);
        page_number_cell(out, layer.repeats);
        fputs("</tr>\n", out);
    }
    fputs("</tbody>\n", out);
    page_table_end(out);
}

static void print_counts(FILE *out, const stats *s) {
    const uint32_t E = s->model->num_experts, step = experts_per_cell(s);
    page_table_begin(out, "choices of each expert");
    fputs("<thead><tr><th scope=\"col\">layer</th>", out);
    for (uint32_t e = 0; e < E; e += step) fprintf(out, "<th scope=\"col\">%" PRIu32 "</th>", e);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (uint32_t l = 0; l < s->model->n_moe_layers; l++) {
        const uint64_t *counts = s->counts + (size_t)l * E;
        fprintf(out, "<tr><th scope=\"row\">%" PRIu32 "</th>", s->model->moe_layers[l]);
        for (uint32_t e = 0; e < E; e += step)
            fprintf(out, "<td>%" PRIu64 "</td>", counts[most_chosen(counts, e, e + step < E ? step : E - e)]);
        fputs("</tr>\n", out);
    }
    fputs("</tbody>\n", out);
    page_table_end(out);
}

void page_load(FILE *out, const stats *s) {
    page_section_begin(out, "load", "Load of the experts");
    fprintf(out, "<p class=\"note\">Choices of valid rows. Layers downwards, experts to the right, load over "
                 "the mean of "
                 "the layer.");
    if (experts_per_cell(s) > 1)
        fprintf(out, " A cell shows the most chosen of %" PRIu32 " experts.", experts_per_cell(s));
    fputs("</p>\n", out);
    draw_map(out, s);
    print_layers(out, s);
    print_counts(out, s);
    page_section_end(out);
}
