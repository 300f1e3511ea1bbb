/* export_columns.h - arrays with an element for each record of a dump, which verl's batches and npz have
 * alike (internal). */
#ifndef WB_EXPORT_COLUMNS_H
#define WB_EXPORT_COLUMNS_H

#include "export/export_out.h"

/* What is known of all records before the first array is written. */
typedef struct export_sizes {
    uint64_t max_prompt, max_new, tokens; /* the largest, and the sum */
    uint64_t max_rid;                     /* bytes of the longest id */
} export_sizes;

wb_status wb_export_measure(export_job *job, export_sizes *sizes_out);

/* rid, finish_reason, group, sample, weight_version (-1: none for all tokens): five passes. */
wb_status wb_export_columns(export_job *job, const export_sizes *sizes);
enum { EXPORT_COLUMN_PASSES = 5 };

/* An array that `each` writes record by record. */
wb_status wb_export_array(export_job *job, const char *name, const char *type, unsigned n_dims,
                          const uint64_t *shape, export_each *each, void *ctx);

#endif
