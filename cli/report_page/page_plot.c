/* page_plot.c - see page_plot.h. */
#include "report_page/page_plot.h"
#include "report/chart_step.h"
#include "report_page/page_text.h"

#include <inttypes.h>
#include <math.h>

enum { WIDTH = 1000, HEIGHT = 300, LEFT = 70, RIGHT = 20, TOP = 34, BOTTOM = 46, MAX_DOTS = 200 };
enum { PLOT_WIDTH = WIDTH - LEFT - RIGHT, PLOT_HEIGHT = HEIGHT - TOP - BOTTOM, LEGEND_WIDTH = 185 };

typedef struct y_scale {
    double low, high, step;
} y_scale;

/* The smallest and the largest value; false without any. */
static bool range_of(const plot_series *s, uint32_t n, double *min, double *max) {
    bool any = false;
    *min = INFINITY;
    *max = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(s->values[i])) continue;
        *min = fmin(*min, s->values[i]);
        *max = fmax(*max, s->values[i]);
        any = true;
    }
    return any;
}

/* From a line of the grid to one, around all values. */
static y_scale scale_of(const plot *p) {
    double low = INFINITY, high = -INFINITY, min, max;
    for (uint32_t s = 0; s < p->n_series; s++) {
        if (!range_of(&p->series[s], p->n_points, &min, &max)) continue;
        low = fmin(low, min);
        high = fmax(high, max);
    }
    if (low > high) low = high = 0;
    const double span = high - low, least = fmax(fmax(fabs(low), fabs(high)) * 1e-6, 1e-12);
    y_scale y = {.step = chart_round_step(fmax(span, least) / 4)};
    y.low = y.step * floor(low / y.step + 1e-9);
    y.high = y.step * ceil(high / y.step - 1e-9);
    if (!(y.high > y.low)) {
        y.low -= y.step;
        y.high += y.step;
    }
    return y;
}

static double x_of(const plot *p, uint32_t i) {
    return LEFT + (i + 0.5) / p->n_points * PLOT_WIDTH;
}

static double y_of(const y_scale *y, double value) {
    return TOP + (y->high - value) / (y->high - y->low) * PLOT_HEIGHT;
}

static void draw_axes(FILE *out, const plot *p, const y_scale *y) {
    const int lines = (int)floor((y->high - y->low) / y->step + 0.5);
    for (int i = 0; i <= lines; i++) {
        const double value = y->low + i * y->step, at = y_of(y, value);
        fprintf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT,
                WIDTH - RIGHT, at, at);
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>\n", LEFT - 8, at + 4,
                fabs(value) < y->step * 1e-6 ? 0 : value);
    }
    const uint32_t step = p->n_points > 12 ? (uint32_t)chart_round_step(p->n_points / 12.0) : 1;
    for (uint32_t i = 0; i < p->n_points; i += step)
        fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x_of(p, i),
                HEIGHT - BOTTOM + 18, p->labels[i]);
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", LEFT + PLOT_WIDTH / 2,
            HEIGHT - 8, p->x_name);
}

/* Of many points only those that no line reaches have a dot. */
static bool has_dot(const plot *p, const double *values, uint32_t i) {
    const bool left = i > 0 && isfinite(values[i - 1]),
               right = i + 1 < p->n_points && isfinite(values[i + 1]);
    return isfinite(values[i]) && (p->n_points <= MAX_DOTS || (!left && !right));
}

static void draw_line(FILE *out, const plot *p, const y_scale *y, uint32_t s) {
    const char *name = p->series[s].name;
    const double *values = p->series[s].values;
    bool pen = false;
    fprintf(out, "<path class=\"line s%" PRIu32 "\" d=\"", s);
    for (uint32_t i = 0; i < p->n_points; i++) {
        const bool has = isfinite(values[i]);
        if (has) fprintf(out, "%c%.1f %.1f", pen ? 'L' : 'M', x_of(p, i), y_of(y, values[i]));
        pen = has;
    }
    fputs("\"/>\n", out);
    for (uint32_t i = 0; i < p->n_points; i++) {
        if (!has_dot(p, values, i)) continue;
        fprintf(out,
                "<circle class=\"dot s%" PRIu32 "\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"><title>%s %s, %s: "
                "%.6g</title></circle>\n",
                s, x_of(p, i), y_of(y, values[i]), p->x_name, p->labels[i], name, values[i]);
    }
}

static void draw_legend(FILE *out, const plot *p, uint32_t s) {
    const int x = LEFT + (int)s * LEGEND_WIDTH;
    fprintf(out, "<path class=\"line s%" PRIu32 "\" d=\"M%d 14H%d\"/><text x=\"%d\" y=\"18\">%s</text>\n", s,
            x, x + 30, x + 36, p->series[s].name);
}

/* What the drawing shows, for those who do not see it. */
static void describe(FILE *out, const plot *p) {
    for (uint32_t s = 0; s < p->n_series; s++) {
        double min, max;
        if (range_of(&p->series[s], p->n_points, &min, &max))
            fprintf(out, "%s: from %.6g to %.6g. ", p->series[s].name, min, max);
        else
            fprintf(out, "%s: no value. ", p->series[s].name);
    }
    fputs("The table below has each value.", out);
}

static void print_table(FILE *out, const plot *p) {
    page_table_begin(out, p->title);
    fprintf(out, "<thead><tr><th scope=\"col\">%s</th>", p->x_name);
    for (uint32_t s = 0; s < p->n_series; s++) fprintf(out, "<th scope=\"col\">%s</th>", p->series[s].name);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (uint32_t i = 0; i < p->n_points; i++) {
        fprintf(out, "<tr><th scope=\"row\">%s</th>", p->labels[i]);
        for (uint32_t s = 0; s < p->n_series; s++) page_number_cell(out, p->series[s].values[i]);
        fputs("</tr>\n", out);
    }
    fputs("</tbody>\n", out);
    page_table_end(out);
}

void page_plot(FILE *out, const plot *p) {
    const y_scale y = scale_of(p);
    fprintf(
        out,
        "<h3>%s</h3>\n<svg id=\"%s\" viewBox=\"0 0 %d %d\" xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" "
        "tabindex=\"0\" aria-labelledby=\"%s-name %s-text\">\n<title id=\"%s-name\">%s</title><desc "
        "id=\"%s-text\">",
        p->title, p->id, WIDTH, HEIGHT, p->id, p->id, p->id, p->title, p->id);
    describe(out, p);
    fputs("</desc>\n", out);
    draw_axes(out, p, &y);
    for (uint32_t s = 0; s < p->n_series; s++) {
        draw_line(out, p, &y, s);
        draw_legend(out, p, s);
    }
    fputs("</svg>\n", out);
    print_table(out, p);
}
