/* eplb_chart.c - the SVG of `waybill eplb --chart`: tokens of each rank before and after, in panels one
 * below the other. Few ranks are pairs of bars; many are two lines, and where several ranks share a line's
 * pixel the area from the smallest to the largest load of them is filled, so that no peak is lost. Refuses:
 * fonts, scripts and anything from elsewhere. */
#include "report/eplb_chart.h"
#include "report/chart_step.h"
#include "wb_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { WIDTH = 1000, PANEL = 330, LEFT = 80, RIGHT = 20, TOP = 62, PLOT = 210, FEW_RANKS = 64, BINS = 450 };
enum { PLOT_WIDTH = WIDTH - LEFT - RIGHT, N_SERIES = 2 };

static const char *const colours[N_SERIES] = {"#d1603d", "#2a6f97"};

/* Where a panel lies and its scales. */
typedef struct frame {
    FILE *out;
    uint32_t n_ranks;
    double base;     /* y of load 0 */
    double top_load; /* at the upper edge of the plot */
    double mean;     /* of the ranks that are not dead */
} frame;

static double x_of(const frame *f, double rank) {
    return LEFT + rank / f->n_ranks * PLOT_WIDTH;
}

static double y_of(const frame *f, double load) {
    return f->base - load / f->top_load * PLOT;
}

static void print_load(FILE *out, double load) {
    static const char *const units[] = {"", "k", "M", "G", "T"};
    int u = 0;
    while (u < 4 && load >= 1000) {
        load /= 1000;
        u++;
    }
    fprintf(out, "%.4g%s", load, units[u]);
}

static void draw_y_axis(const frame *f) {
    double step = chart_round_step(f->top_load / 5);
    for (int i = 0; i * step <= f->top_load * (1 + 1e-9); i++) {
        double y = y_of(f, i * step);
        fprintf(f->out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", LEFT,
                WIDTH - RIGHT, y, y);
        fprintf(f->out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", LEFT - 8, y + 4);
        print_load(f->out, i * step);
        fputs("</text>\n", f->out);
    }
    fprintf(f->out,
            "<text transform=\"translate(18 %.1f) rotate(-90)\" text-anchor=\"middle\">tokens of a "
            "rank</text>\n",
            f->base - PLOT / 2.0);
}

static void draw_x_axis(const frame *f) {
    double step = f->n_ranks > 16 ? chart_round_step(f->n_ranks / 12.0) : 1;
    fprintf(f->out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#333\"/>\n", LEFT,
            WIDTH - RIGHT, f->base, f->base);
    for (double rank = 0; rank < f->n_ranks; rank += step)
        fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>\n",
                x_of(f, rank + 0.5), f->base + 16, rank);
    fprintf(f->out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"middle\">rank</text>\n", LEFT + PLOT_WIDTH / 2,
            f->base + 32);
}

static void draw_mean(const frame *f) {
    double y = y_of(f, f->mean);
    fprintf(f->out,
            "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#333\" stroke-dasharray=\"6 4\"/>\n",
            LEFT, WIDTH - RIGHT, y, y);
}

static void draw_bars(const frame *f, const eplb_series *s, int which) {
    double width = PLOT_WIDTH / (double)f->n_ranks * 0.4;
    fprintf(f->out, "<g fill=\"%s\">\n", colours[which]);
    for (uint32_t p = 0; p < f->n_ranks; p++) {
        double y = y_of(f, s->loads[p]);
        fprintf(f->out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"/>\n",
                x_of(f, p + 0.1) + which * width, y, width, f->base - y);
    }
    fputs("</g>\n", f->out);
}

/* The load of bin i of n: the smallest or the largest of its ranks, of which it has one at least. */
static double bin_load(const frame *f, const eplb_series *s, uint32_t i, uint32_t n, bool want_max) {
    uint32_t begin = (uint32_t)((uint64_t)i * f->n_ranks / n);
    uint32_t end = (uint32_t)((uint64_t)(i + 1) * f->n_ranks / n);
    double found = s->loads[begin];
    for (uint32_t p = begin + 1; p < end; p++)
        found = want_max ? fmax(found, s->loads[p]) : fmin(found, s->loads[p]);
    return found;
}

/* Along the largest load of each bin to the right, back along the smallest. */
static void draw_band(const frame *f, const eplb_series *s, int which) {
    uint32_t n = f->n_ranks < BINS ? f->n_ranks : BINS;
    fprintf(f->out,
            "<path fill=\"%s\" fill-opacity=\"0.35\" stroke=\"%s\" stroke-width=\"1\" "
            "stroke-linejoin=\"round\" d=\"",
            colours[which], colours[which]);
    for (uint32_t i = 0; i < 2 * n; i++) {
        bool right = i < n;
        uint32_t bin = right ? i : 2 * n - 1 - i;
        double left = LEFT + (double)bin / n * PLOT_WIDTH, next = LEFT + (double)(bin + 1) / n * PLOT_WIDTH;
        double y = y_of(f, bin_load(f, s, bin, n, right));
        fprintf(f->out, "%c%.1f %.1fH%.1f", i ? 'L' : 'M', right ? left : next, y, right ? next : left);
    }
    fputs("Z\"/>\n", f->out);
}

static void draw_legend(const frame *f, double top, const char *title, const eplb_series *const *series) {
    fprintf(f->out, "<text x=\"%d\" y=\"%.1f\" font-size=\"15\" font-weight=\"bold\">%s</text>\n", LEFT,
            top + 24, title);
    for (int i = 0; i < N_SERIES; i++) {
        double x = LEFT + i * 320, y = top + 46;
        fprintf(f->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n", x, y - 11,
                colours[i]);
        fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\">%s: %s, balancedness %.4f</text>\n", x + 18, y,
                i ? "after" : "before", series[i]->name, series[i]->balancedness);
    }
    fprintf(f->out, "<text x=\"%d\" y=\"%.1f\">- - mean ", LEFT + 2 * 320, top + 46);
    print_load(f->out, f->mean);
    fputs("</text>\n", f->out);
}

static void draw_panel(FILE *out, uint32_t n_ranks, const uint8_t *dead, uint32_t index,
                       const eplb_panel *panel) {
    const eplb_series *const series[N_SERIES] = {&panel->before, &panel->after};
    double top = (double)index * PANEL, max = 0, sum = 0;
    uint32_t live = 0;
    for (uint32_t p = 0; p < n_ranks; p++) {
        max = fmax(max, fmax(panel->before.loads[p], panel->after.loads[p]));
        sum += panel->before.loads[p];
        live += !dead[p];
    }
    if (!(max > 0)) max = 1;
    double step = chart_round_step(max / 5);
    frame f = {.out = out,
               .n_ranks = n_ranks,
               .base = top + TOP + PLOT,
               .top_load = step * ceil(max / step * (1 - 1e-9)),
               .mean = live ? sum / live : 0};
    draw_y_axis(&f);
    for (int i = 0; i < N_SERIES; i++)
        n_ranks <= FEW_RANKS ? draw_bars(&f, series[i], i) : draw_band(&f, series[i], i);
    draw_mean(&f);
    draw_x_axis(&f);
    draw_legend(&f, top, panel->title, series);
}

static void draw(FILE *out, uint32_t n_ranks, const uint8_t *dead, uint32_t n_panels,
                 const eplb_panel *panels) {
    uint32_t height = n_panels * PANEL;
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" "
            "width=\"%d\" height=\"%" PRIu32 "\" viewBox=\"0 0 %d %" PRIu32
            "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n",
            WIDTH, height, WIDTH, height);
    fprintf(out,
            "<title>Tokens of %" PRIu32
            " ranks</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            n_ranks);
    for (uint32_t i = 0; i < n_panels; i++) draw_panel(out, n_ranks, dead, i, &panels[i]);
    fputs("</svg>\n", out);
}

wb_status eplb_chart_write(const char *path, uint32_t n_ranks, const uint8_t *dead, uint32_t n_panels,
                           const eplb_panel *panels) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for the chart", path);
    draw(out, n_ranks, dead, n_panels, panels);
    const bool whole = !ferror(out);
    wb_status status = fclose(out) == 0 && whole ? wb_file_replace(path, text, bytes)
                                                 : wb_fail(WB_OUT_OF_MEMORY, "no memory for the chart");
    if (status != WB_OK) status = wb_fail_context(status, "--chart %s", path);
    free(text);
    return status;
}
