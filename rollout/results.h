/* results.h - what a step leaves on the device, and the one place where it crosses to the host: by one copy,
 * which the step starts behind its work on the device and waits for.
 *
 * The host has two blocks, in turns. A step that is committed leaves what is to be filed (filing.h) in its
 * own; the next one is fetched into the other. Refuses: what is made of the results. */
#ifndef WB_RESULTS_H
#define WB_RESULTS_H

#include "wb_comm.h"
#include "wb_workspace.h"

/* Sampled tokens, their two logprobs, how many tokens were kept for each, then from rows_offset on the rows
 * of all tokens of the step, and behind them the kept tokens. */
typedef struct wb_step_results {
    wb_workspace *workspace;
    wb_buffer block;  /* device */
    uint8_t *host[2]; /* of host_alloc */
    size_t host_bytes;
    void *arrival; /* event: the copy to the host is done */
    int turn;      /* the host block of the present step */
    size_t max_tokens, max_sampled, row_bytes;
    size_t logprobs_offset, sampling_logprobs_offset, kept_counts_offset, rows_offset; /* bytes */
    size_t kept_offset; /* of the present step */
} wb_step_results;

/* The same arrays on the device or on the host. */
typedef struct wb_results_view {
    int32_t *tokens;                     /* [max_sampled] */
    float *logprobs, *sampling_logprobs; /* [max_sampled] */
    int32_t *kept_counts;                /* [max_sampled] */
    uint8_t *rows;                       /* [max_tokens] of row_bytes */
    uint32_t *kept_ids;                  /* behind the rows of the present step */
} wb_results_view;

/* Bytes of a step's results on the device, with room for max_kept kept tokens of each sampled one; the host
 * has them twice. CAPACITY where they are more than memory can have. */
wb_status wb_step_results_bytes(size_t max_tokens, size_t max_sampled, int64_t max_kept, size_t row_bytes,
                                size_t *bytes_out);

/* Makes the memory, without room for kept tokens, in a zeroed struct whose address stays. The device's is
 * the workspace's. On failure too it is to be closed, before the workspace. */
wb_status wb_step_results_open(wb_workspace *workspace, size_t max_tokens, size_t max_sampled,
                               size_t row_bytes, wb_step_results *results);
void wb_step_results_close(wb_step_results *results);

/* Between steps: whether there is room for max_kept kept tokens of each sampled one; and makes it, after
 * which both host blocks are empty. */
bool wb_step_results_have_room(const wb_step_results *results, int64_t max_kept);
wb_status wb_step_results_make_room(wb_step_results *results, int64_t max_kept);

/* The present step has n_rows rows: places the kept tokens behind them. */
void wb_step_results_begin(wb_step_results *results, size_t n_rows);

wb_results_view wb_step_results_on_device(const wb_step_results *results);
wb_results_view wb_step_results_on_host(const wb_step_results *results);

/* Starts the copy of tokens, logprobs, counts, rows and the first n_kept kept tokens, behind what is on the
 * stream. Until wb_step_results_wait returned, nobody looks at the host's. */
wb_status wb_step_results_start(wb_step_results *results, size_t n_kept);

/* Waits for that copy. Also what an op of the step found wrong (wb_kernels.h, Errors). The stream may wait
 * for other ranks of comm (wb_mailbox.h): one that gives up meanwhile is heard, and ends it: PEER. */
wb_status wb_step_results_wait(wb_step_results *results, wb_comm *comm);

/* The present step is committed: the next one has the other host block. */
static inline void wb_step_results_turn(wb_step_results *results) {
    results->turn = 1 - results->turn;
}

#endif
