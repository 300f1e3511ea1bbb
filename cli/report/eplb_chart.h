/* eplb_chart.h - loads of ranks before and after balancing, drawn as an SVG. */
#ifndef WB_CLI_EPLB_CHART_H
#define WB_CLI_EPLB_CHART_H

#include "wb_base.h"

typedef struct eplb_series {
    const char *name;
    const double *loads; /* [R] tokens */
    double balancedness; /* mean / max of them */
} eplb_series;

typedef struct eplb_panel {
    const char *title;
    eplb_series before, after;
} eplb_panel;

/* Panels of loads by rank, one below the other; the mean line is of the ranks that are not dead ([R]). The
 * file appears only when it is whole. */
wb_status eplb_chart_write(const char *path, uint32_t n_ranks, const uint8_t *dead, uint32_t n_panels,
                           const eplb_panel *panels);

#endif
