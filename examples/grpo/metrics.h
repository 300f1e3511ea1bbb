/* metrics.h - the numbers of a step, as one table, and the two places that a run writes them to:
 * OUT/metrics.jsonl, and OUT/tensorboard under --tensorboard. What report.c writes with. */
#ifndef GRPO_METRICS_H
#define GRPO_METRICS_H

#include "grpo.h"

/* ---- metrics_table.c ------------------------------------------------------------------------- */

/* The line itself, and the objects in it. */
typedef enum metric_group {
    OF_STEP,
    OF_EXPERTS,
    OF_EVALUATION,
    OF_FIDELITY,
    OF_FIDELITY_OFF,
    N_METRIC_GROUPS,
} metric_group;

typedef struct metric_row {
    metric_group group;
    const char *key;
    enum { REAL_METRIC, INTEGER_METRIC } kind; /* double, or 64 bits that are at least 0 */
    size_t offset;                             /* of the field in step_metrics */
} metric_row;

/* The key of a group's object, and the first part of its tags in TensorBoard. */
extern const char *const metric_group_names[N_METRIC_GROUPS];
extern const metric_row metric_rows[];
extern const int n_metric_rows;

/* Whether the step has the numbers of the group: some are made now and then. */
bool metrics_have(const step_metrics *m, metric_group group);
double metric_value(const metric_row *row, const step_metrics *m);
/* The step as a line of metrics.jsonl, without its end; malloc'ed. */
wb_status metrics_line(const options *o, uint64_t step, const step_metrics *m, char **line_out);

/* ---- metrics_file.c -------------------------------------------------------------------------- */

/* OUT/metrics.jsonl, opened to append to, with the lines of steps before first_step. */
wb_status metrics_file_open(const options *o, uint64_t first_step, FILE **file_out);

/* ---- event_file.c ---------------------------------------------------------------------------- */

/* A file of events as TensorBoard reads them. Each run that goes on has one of its own, which says from which
 * step on those before it are void. */
typedef struct event_file event_file;
/* A new file in `dir`, which is created. */
wb_status event_file_open(const char *dir, uint64_t first_step, event_file **file_out);
/* A number of the step at hand, by its tag "group/key". */
wb_status event_file_add(event_file *file, const char *group, const char *key, double value);
/* The numbers added since the last call become those of `step`, and are in the file when this returns. */
wb_status event_file_end_step(event_file *file, uint64_t step);
void event_file_close(event_file *file); /* NULL is a no-op */

#endif
