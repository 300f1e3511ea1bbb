/* infer_sequences.c - the sequences of a batch: one run of tokens each, and where the state of fixed size
 * stands that it has. Refuses: what stands in a state (the layers), which sequence has which (the caller). */
#include "infer_state.h"

#include <inttypes.h>

/* A state of which a forward failed. */
enum { UNKNOWN = -1 };

/* ---- runs ------------------------------------------------------------------------------------------ */

/* The run behind `run`; false at the end. Before the first one `run` is zeros. */
static bool next_run(const wb_infer_batch *batch, wb_sequence_run *run) {
    int64_t end = run->start + run->n;
    if (end == batch->T || batch->seq[end] < 0) return false;
    run->start = (int32_t)end;
    while (end < batch->T && batch->seq[end] == batch->seq[run->start]) end++;
    run->n = (int32_t)end - run->start;
    return true;
}

static int32_t state_of(const wb_infer *infer, const wb_infer_batch *batch, const wb_sequence_run *run) {
    return infer->sequences.bytes > 0 ? batch->states[batch->seq[run->start]] : -1;
}

void wb_infer_put_runs(const wb_infer *infer, const wb_infer_batch *batch, wb_sequence_run *runs) {
    wb_sequence_run run = {0};
    while (next_run(batch, &run)) {
        run.state = state_of(infer, batch, &run);
        *runs++ = run;
    }
}

/* ---- checks ---------------------------------------------------------------------------------------- */

/* The state goes on where it stands, token by token. */
static wb_status check_positions(const wb_infer_batch *batch, const wb_sequence_run *run, int32_t position) {
    const int32_t seq = batch->seq[run->start], state = batch->states[seq], *pos = batch->pos + run->start;
    if (pos[0] != 0 && position == UNKNOWN)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sequence %d: expected position 0, since a forward with its state %d failed, found %d",
                       seq, state, pos[0]);
    if (pos[0] != 0 && pos[0] != position)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sequence %d: expected position 0 or %d, where its state %d stands, found %d", seq,
                       position, state, pos[0]);
    for (int32_t i = 1; i < run->n; i++)
        if (pos[i] != pos[0] + i)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "token %d of sequence %d: expected position %d, since its state leaves none out, "
                           "found %d",
                           run->start + i, seq, pos[0] + i, pos[i]);
    return WB_OK;
}

static wb_status check_state(wb_infer *infer, const wb_infer_batch *batch, const wb_sequence_run *run) {
    wb_sequence_pool *pool = &infer->sequences;
    const int32_t seq = batch->seq[run->start], state = batch->states[seq];
    if (state < 0 || state >= infer->options.n_states)
        return wb_fail(WB_INVALID_ARGUMENT, "sequence %d: expected a state in 0..%d, found %d", seq,
                       infer->options.n_states - 1, state);
    if (pool->marks[state].batch == pool->n_batches)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sequence %d: expected a state of its own, found %d, which another sequence has", seq,
                       state);
    pool->marks[state].batch = pool->n_batches;
    return check_positions(batch, run, pool->marks[state].position);
}

wb_status wb_infer_check_runs(wb_infer *infer, const wb_infer_batch *batch, int64_t *n_runs_out) {
    wb_sequence_pool *pool = &infer->sequences;
    wb_sequence_run run = {0};
    int64_t n = 0;
    if (pool->bytes > 0 && batch->n_seqs > 0 && !batch->states)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "batch: states: expected %d, since layers keep %" PRId64
                       " bytes of each sequence, found NULL",
                       batch->n_seqs, pool->bytes);
    pool->n_batches++;
    for (; next_run(batch, &run); n++) {
        const int32_t seq = batch->seq[run.start];
        if (pool->seq_marks[seq] == pool->n_batches)
            return wb_fail(
                WB_INVALID_ARGUMENT,
                "token %d: expected the tokens of sequence %d side by side, found others before it",
                run.start, seq);
        pool->seq_marks[seq] = pool->n_batches;
        if (pool->bytes > 0) WB_TRY(check_state(infer, batch, &run));
    }
    *n_runs_out = n;
    return WB_OK;
}

/* ---- states ---------------------------------------------------------------------------------------- */

wb_status wb_infer_begin_states(wb_infer *infer, const wb_infer_batch *batch) {
    const wb_sequence_pool *pool = &infer->sequences;
    wb_device *dev = infer->model->device;
    wb_sequence_run run = {0};
    if (pool->bytes == 0) return WB_OK;
    while (next_run(batch, &run)) {
        const int32_t state = state_of(infer, batch, &run);
        pool->marks[state].position = UNKNOWN;
        if (batch->pos[run.start] > 0) continue;
        WB_TRY(dev->zero(dev, (char *)pool->states.data + state * pool->bytes, (size_t)pool->bytes));
    }
    return WB_OK;
}

void wb_infer_end_states(wb_infer *infer, const wb_infer_batch *batch) {
    const wb_sequence_pool *pool = &infer->sequences;
    wb_sequence_run run = {0};
    if (pool->bytes == 0) return;
    while (next_run(batch, &run))
        pool->marks[state_of(infer, batch, &run)].position = batch->pos[run.start + run.n - 1] + 1;
}

wb_status wb_infer_copy_state(wb_infer *infer, int32_t from, int32_t to) {
    const wb_sequence_pool *pool = &infer->sequences;
    const int32_t n = pool->bytes > 0 ? infer->options.n_states : 0;
    char *states = pool->states.data;
    if (from < 0 || from >= n || to < 0 || to >= n)
        return wb_fail(WB_INVALID_ARGUMENT, "copy of a state: expected two of %d, found %d and %d", n, from,
                       to);
    pool->marks[to].position = UNKNOWN;
    WB_TRY(infer->model->device->copy(infer->model->device, states + to * pool->bytes,
                                      states + from * pool->bytes, (size_t)pool->bytes));
    pool->marks[to].position = pool->marks[from].position;
    return WB_OK;
}
