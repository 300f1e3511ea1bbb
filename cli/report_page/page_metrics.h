/* page_metrics.h - curves of a training run's metrics.jsonl (docs/metrics.md). */
#ifndef WB_CLI_PAGE_METRICS_H
#define WB_CLI_PAGE_METRICS_H

#include "report_page/page_plot.h"
#include "wb_memory.h"

enum {
    METRICS_REWARD,
    METRICS_REWARD_STD,
    METRICS_KL_K1,
    METRICS_KL_K3,
    METRICS_KL_K3_OFF,
    METRICS_KL_REFERENCE,
    METRICS_DIFFER,
    METRICS_DIFFER_OFF,
    METRICS_N_SERIES
};

/* A line is a step; a key that it lacks is NAN. */
typedef struct metrics {
    uint32_t n;
    plot_label *labels;               /* [n] the steps; owner: free(), as of the values */
    double *values[METRICS_N_SERIES]; /* [n] */
    size_t capacity[METRICS_N_SERIES + 1];
} metrics;

/* Reads a metrics.jsonl. NOT_FOUND: there is none; CORRUPT, with the line, for one that is no JSON object
 * with numbers. A last line without its end is being written and is left out. To be closed after a failure
 * too. */
wb_status metrics_read(const char *path, metrics *metrics_out);
void metrics_close(metrics *m);

/* `path` is where they were read. */
void page_metrics(FILE *out, const metrics *m, const char *path);

#endif
