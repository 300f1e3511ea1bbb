/* page_plot.h - lines over points that stand side by side: a drawing, and the same numbers as a table. */
#ifndef WB_CLI_PAGE_PLOT_H
#define WB_CLI_PAGE_PLOT_H

#include "wb_base.h"

#include <stdio.h>

enum { PLOT_MAX_SERIES = 5, PLOT_LABEL_BYTES = 48 };

typedef char plot_label[PLOT_LABEL_BYTES]; /* of a point; our own text, not escaped */

typedef struct plot_series {
    const char *name;
    const double *values; /* [n_points]; NAN: there is none, and the line has a gap */
} plot_series;

/* Texts are ours and not escaped. The arrays are the caller's. */
typedef struct plot {
    const char *id, *title, *x_name;
    uint32_t n_points; /* 1.. */
    const plot_label *labels;
    uint32_t n_series; /* 1..PLOT_MAX_SERIES */
    plot_series series[PLOT_MAX_SERIES];
} plot;

void page_plot(FILE *out, const plot *p);

#endif
