/* results.c - see results.h. */
#include "results.h"
#include "wb_check.h"

static size_t place(size_t max_tokens, size_t max_sampled, size_t row_bytes, wb_step_results *results) {
    results->row_bytes = row_bytes;
    results->logprobs_offset = max_sampled * sizeof(int32_t);
    results->sampling_logprobs_offset = results->logprobs_offset + max_sampled * sizeof(float);
    results->kept_counts_offset = results->sampling_logprobs_offset + max_sampled * sizeof(float);
    results->rows_offset = (results->kept_counts_offset + max_sampled * sizeof(int32_t) + 63) & ~(size_t)63;
    return results->rows_offset + max_tokens * row_bytes;
}

size_t wb_step_results_bytes(size_t max_tokens, size_t max_sampled, size_t row_bytes) {
    wb_step_results results = {0};
    return place(max_tokens, max_sampled, row_bytes, &results);
}

wb_status wb_step_results_open(wb_workspace *workspace, size_t max_tokens, size_t max_sampled,
                               size_t row_bytes, wb_step_results *results) {
    const size_t bytes = place(max_tokens, max_sampled, row_bytes, results);
    WB_TRY(WB_OWN(&workspace->host, results->host, bytes, "engine results"));
    return wb_reserve(workspace, &results->device, (int64_t)bytes, 1, 1);
}

static wb_results_view view_of(const wb_step_results *results, uint8_t *base) {
    return (wb_results_view){
        .tokens = (int32_t *)(void *)base,
        .logprobs = (float *)(void *)(base + results->logprobs_offset),
        .sampling_logprobs = (float *)(void *)(base + results->sampling_logprobs_offset),
        .kept_counts = (int32_t *)(void *)(base + results->kept_counts_offset),
        .rows = base + results->rows_offset,
    };
}

wb_results_view wb_step_results_on_device(const wb_step_results *results) {
    return view_of(results, results->device.data);
}

wb_results_view wb_step_results_on_host(const wb_step_results *results) {
    return view_of(results, results->host);
}

wb_status wb_step_results_fetch(const wb_step_results *results, wb_device *device, size_t n_rows) {
    return device->to_host(device, results->host, results->device.data,
                           results->rows_offset + n_rows * results->row_bytes);
}
