/* results.c - see results.h. */
#include "results.h"
#include "wb_check.h"

#include <sched.h>

static size_t aligned(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

static void place(size_t max_tokens, size_t max_sampled, size_t row_bytes, wb_step_results *results) {
    results->max_tokens = max_tokens;
    results->max_sampled = max_sampled;
    results->row_bytes = row_bytes;
    results->logprobs_offset = max_sampled * sizeof(int32_t);
    results->sampling_logprobs_offset = results->logprobs_offset + max_sampled * sizeof(float);
    results->kept_counts_offset = results->sampling_logprobs_offset + max_sampled * sizeof(float);
    results->rows_offset = aligned(results->kept_counts_offset + max_sampled * sizeof(int32_t));
    wb_step_results_begin(results, max_tokens);
}

static wb_status bytes_for(const wb_step_results *results, int64_t max_kept, size_t *bytes_out) {
    const size_t fixed = aligned(results->rows_offset + results->max_tokens * results->row_bytes);
    size_t kept = 0;
    if (max_kept > 0)
        WB_TRY(wb_workspace_bytes((int64_t)results->max_sampled, max_kept, sizeof(uint32_t), &kept));
    if (kept > PTRDIFF_MAX - fixed)
        return wb_fail(WB_CAPACITY, "engine results: %zu bytes and %zu of kept tokens overflow", fixed, kept);
    *bytes_out = fixed + kept;
    return WB_OK;
}

wb_status wb_step_results_bytes(size_t max_tokens, size_t max_sampled, int64_t max_kept, size_t row_bytes,
                                size_t *bytes_out) {
    wb_step_results results = {0};
    place(max_tokens, max_sampled, row_bytes, &results);
    return bytes_for(&results, max_kept, bytes_out);
}

/* ---- memory -------------------------------------------------------------------------------------- */

wb_status wb_step_results_open(wb_workspace *workspace, size_t max_tokens, size_t max_sampled,
                               size_t row_bytes, wb_step_results *results) {
    wb_device *dev = workspace->device;
    results->workspace = workspace;
    place(max_tokens, max_sampled, row_bytes, results);
    WB_TRY(dev->event_open(dev, &results->arrival));
    return wb_step_results_make_room(results, 0);
}

void wb_step_results_close(wb_step_results *results) {
    if (!results->workspace) return;
    wb_device *dev = results->workspace->device;
    dev->event_close(dev, results->arrival);
    for (int i = 0; i < 2; i++) dev->host_free(dev, results->host[i]);
}

bool wb_step_results_have_room(const wb_step_results *results, int64_t max_kept) {
    size_t bytes = 0;
    return bytes_for(results, max_kept, &bytes) == WB_OK && bytes <= results->host_bytes;
}

/* What there was stays until all of what comes in its place is there. */
wb_status wb_step_results_make_room(wb_step_results *results, int64_t max_kept) {
    wb_device *dev = results->workspace->device;
    size_t bytes = 0;
    WB_TRY(bytes_for(results, max_kept, &bytes));
    if (bytes <= results->host_bytes) return WB_OK;
    void *host[2] = {NULL, NULL};
    wb_status status = dev->host_alloc(dev, bytes, &host[0]);
    if (status == WB_OK) status = dev->host_alloc(dev, bytes, &host[1]);
    if (status == WB_OK) status = wb_reserve(results->workspace, &results->block, (int64_t)bytes, 1, 1);
    for (int i = 0; i < 2; i++) {
        dev->host_free(dev, status == WB_OK ? results->host[i] : host[i]);
        if (status == WB_OK) results->host[i] = host[i];
    }
    if (status == WB_OK) results->host_bytes = bytes;
    return status;
}

/* ---- a step -------------------------------------------------------------------------------------- */

void wb_step_results_begin(wb_step_results *results, size_t n_rows) {
    results->kept_offset = aligned(results->rows_offset + n_rows * results->row_bytes);
}

static wb_results_view view_of(const wb_step_results *results, uint8_t *base) {
    return (wb_results_view){
        .tokens = (int32_t *)(void *)base,
        .logprobs = (float *)(void *)(base + results->logprobs_offset),
        .sampling_logprobs = (float *)(void *)(base + results->sampling_logprobs_offset),
        .kept_counts = (int32_t *)(void *)(base + results->kept_counts_offset),
        .rows = base + results->rows_offset,
        .kept_ids = (uint32_t *)(void *)(base + results->kept_offset),
    };
}

wb_results_view wb_step_results_on_device(const wb_step_results *results) {
    return view_of(results, results->block.data);
}

wb_results_view wb_step_results_on_host(const wb_step_results *results) {
    return view_of(results, results->host[results->turn]);
}

wb_status wb_step_results_start(wb_step_results *results, size_t n_kept) {
    wb_device *dev = results->workspace->device;
    return dev->start_to_host(dev, results->host[results->turn], results->block.data,
                              results->kept_offset + n_kept * sizeof(uint32_t), results->arrival);
}

/* Until the copy is there or a rank has given up. What this rank's stream waits for then does not come, and
 * without a word from here it would do so for as long as the communicator's timeout says. */
static wb_status hear_while_waiting(wb_step_results *results, wb_comm *comm) {
    wb_device *dev = results->workspace->device;
    bool come = false;
    for (;;) {
        WB_TRY(dev->event_look(dev, results->arrival, &come));
        if (come) return WB_OK;
        if (wb_comm_look(comm) != WB_OK) break;
        sched_yield();
    }
    dev->lose(dev, wb_error_message());
    return WB_OK;
}

wb_status wb_step_results_wait(wb_step_results *results, wb_comm *comm) {
    wb_device *dev = results->workspace->device;
    if (dev->lose && wb_comm_size(comm) > 1) WB_TRY(hear_while_waiting(results, comm));
    return dev->event_wait(dev, results->arrival);
}
