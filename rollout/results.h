/* results.h - what a step leaves on the device, and the one place where it crosses to the host. */
#ifndef WB_RESULTS_H
#define WB_RESULTS_H

#include "wb_workspace.h"

/* Sampled tokens, their two logprobs, how many tokens were kept for each, then from rows_offset on the rows
 * of all fed tokens: in one piece, so that one copy brings a step's results to the host. */
typedef struct wb_step_results {
    wb_buffer device;
    uint8_t *host;
    size_t row_bytes;
    size_t logprobs_offset, sampling_logprobs_offset, kept_counts_offset, rows_offset; /* bytes */
} wb_step_results;

/* The same arrays on the device or on the host. */
typedef struct wb_results_view {
    int32_t *tokens;                     /* [max_sampled] */
    float *logprobs, *sampling_logprobs; /* [max_sampled] */
    int32_t *kept_counts;                /* [max_sampled] */
    uint8_t *rows;                       /* [max_tokens] of row_bytes */
} wb_results_view;

/* Bytes of a step's results, on the device and again on the host. */
size_t wb_step_results_bytes(size_t max_tokens, size_t max_sampled, size_t row_bytes);

/* Makes the memory, which belongs to `workspace`, in a zeroed struct whose address stays. */
wb_status wb_step_results_open(wb_workspace *workspace, size_t max_tokens, size_t max_sampled,
                               size_t row_bytes, wb_step_results *results);

wb_results_view wb_step_results_on_device(const wb_step_results *results);
wb_results_view wb_step_results_on_host(const wb_step_results *results);

/* Brings tokens, logprobs, counts and the first n_rows rows to the host; done on return. */
wb_status wb_step_results_fetch(const wb_step_results *results, wb_device *device, size_t n_rows);

#endif
