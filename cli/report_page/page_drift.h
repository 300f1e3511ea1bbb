/* page_drift.h - how the load of the experts changes from one weight version to the next. */
#ifndef WB_CLI_PAGE_DRIFT_H
#define WB_CLI_PAGE_DRIFT_H

#include "report_page/page_plot.h"
#include "wb_formats.h"
#include "wb_memory.h"

/* Overlap of two loads of a layer: the sum over its experts of the smaller of their two shares, 1 where both
 * are spread alike. */
enum { DRIFT_PREVIOUS, DRIFT_WORST, DRIFT_FIRST, DRIFT_TOP, DRIFT_TOP_OF_FIRST, DRIFT_N_SERIES };

/* Of the steps of the dump, as `waybill eplb` cuts it: weight versions, or files where they are not known. */
typedef struct drift {
    uint32_t n; /* 0: there is only one, and nothing to compare */
    bool by_version;
    plot_label *labels;             /* [n] */
    double *values[DRIFT_N_SERIES]; /* [n]; NAN of the first version where there is none before it */
    uint64_t *records, *rows;       /* [n] */
    wb_owner memory;
} drift;

/* Reads the dump again, a version at a time. Returns the exit code; a failure has been said. The memory is
 * the caller's to close, after a failure too. */
int drift_collect(wb_dump *dump, drift *drift_out);

void page_drift(FILE *out, const drift *d);

#endif
