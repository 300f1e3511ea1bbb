/* train_batch.c - a batch of packed sequences, checked and put on the device. Refuses: computing on it. */
#include "train_state.h"

#include <inttypes.h>
#include <string.h>

/* ---- checks -------------------------------------------------------------------------------------- */

static wb_status check_sequences(const wb_train *train, const wb_train_batch *batch) {
    const int32_t limit = train->model->config.max_positions;
    const int64_t most = train->options.max_tokens;
    if (batch->T < 0 || batch->n_seqs < 0 || batch->T > most)
        return wb_fail(batch->T > most ? WB_CAPACITY : WB_INVALID_ARGUMENT,
                       "batch: expected 0..%" PRId64 " tokens (max_tokens), found %" PRId64
                       " in %d sequences",
                       most, batch->T, batch->n_seqs);
    if (batch->seq_start[0] != 0 || batch->seq_start[batch->n_seqs] != batch->T)
        return wb_fail(WB_INVALID_ARGUMENT, "seq_start: expected to go from 0 to %" PRId64 ", found %d to %d",
                       batch->T, batch->seq_start[0], batch->seq_start[batch->n_seqs]);
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t start = batch->seq_start[s], end = batch->seq_start[s + 1];
        if (start < 0 || end < start || end > batch->T)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "sequence %d: expected a start of at most %" PRId64 " after %d, found %d", s,
                           batch->T, start, end);
        if (end - start > limit)
            return wb_fail(WB_CAPACITY, "sequence %d: position %d exceeds the model's limit of %d positions",
                           s, limit, limit);
    }
    return WB_OK;
}

static wb_status check_batch(const wb_train *train, const wb_train_batch *batch) {
    const int32_t V = train->model->config.vocab_size;
    WB_TRY(check_sequences(train, batch));
    for (int64_t t = 0; t < batch->T; t++) {
        if (batch->tokens[t] < 0 || batch->tokens[t] >= V)
            return wb_fail(WB_INVALID_ARGUMENT, "token %" PRId64 ": expected an id in 0..%d, found %d", t,
                           V - 1, batch->tokens[t]);
        if (batch->targets[t] >= V)
            return wb_fail(WB_INVALID_ARGUMENT, "target %" PRId64 ": expected an id in 0..%d or -1, found %d",
                           t, V - 1, batch->targets[t]);
    }
    return wb_train_check_sampling(train, batch);
}

/* ---- on the device ------------------------------------------------------------------------------- */

static void walk_inputs(void *user, wb_arena *step) {
    wb_train_inputs *in = user;
    wb_place_input(step, &in->tokens, in->T, sizeof(int32_t));
    wb_place_input(step, &in->pos, in->T, sizeof(int32_t));
    wb_place_input(step, &in->seq, in->T, sizeof(int32_t));
    wb_place_input(step, &in->blocks, in->T, sizeof(int32_t));
    wb_place_input(step, &in->runs, in->n_runs, sizeof(wb_sequence_run));
    wb_place_input(step, &in->head_rows, in->n_head, sizeof(int32_t));
    wb_place_input(step, &in->head_targets, in->n_head, sizeof(int32_t));
    wb_place_input(step, &in->temperature, in->n_temperature, sizeof(float));
    wb_place_input(step, &in->kept_start, in->n_kept_start, sizeof(int64_t));
    wb_place_input(step, &in->kept_ids, in->n_kept_ids, sizeof(uint32_t));
}

void wb_train_layout_batch(wb_train *train, wb_arena *arena) {
    const int64_t T = train->sizes.tokens;
    wb_train_inputs most = {.T = T,
                            .n_runs = T,
                            .n_head = T,
                            .n_temperature = T,
                            .n_kept_start = T + 1,
                            .n_kept_ids = train->options.max_kept_ids};
    wb_place_ring(arena, &train->ring, walk_inputs, &most);
    WB_PLACE_HOST(arena, train->is_head, T);
    wb_routing_layout(train->model, T, &train->routing_stage, arena);
}

/* Positions, and of each token its sequence's first row of `blocks`, the rows of keys: row t of k and v is
 * token t. One row a token, whatever the lengths. */
static void put_sequences(const wb_train_inputs *in, const wb_train_batch *batch) {
    int32_t *pos = in->pos.host, *seq = in->seq.host, *blocks = in->blocks.host;
    wb_sequence_run *runs = in->runs.host;
    if (batch->T > 0) memcpy(in->tokens.host, batch->tokens, (size_t)batch->T * sizeof *batch->tokens);
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t start = batch->seq_start[s], end = batch->seq_start[s + 1];
        if (end > start) *runs++ = (wb_sequence_run){start, end - start, -1};
        for (int32_t t = start; t < end; t++) {
            pos[t] = t - start;
            seq[t] = start;
            blocks[t] = t;
        }
    }
}

static int64_t count_runs(const wb_train_batch *batch) {
    int64_t n = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) n += batch->seq_start[s + 1] > batch->seq_start[s];
    return n;
}

/* The rows that have a target: the head works on these alone. No loss looks at padding. */
static int64_t find_head(const wb_train *train, const wb_train_batch *batch) {
    const wb_row_run *padding = train->pass.padding;
    int64_t n = 0, runs = train->pass.n_padding;
    for (int64_t t = 0; t < batch->T; t++) {
        if (runs > 0 && t == padding->start + padding->n) padding++, runs--;
        const bool is_padding = runs > 0 && t >= padding->start;
        train->is_head[t] = batch->targets[t] >= 0 && !is_padding;
        n += train->is_head[t];
    }
    return n;
}

static void put_targets(const wb_train *train, const wb_train_batch *batch) {
    int32_t *rows = train->inputs.head_rows.host, *targets = train->inputs.head_targets.host;
    for (int64_t t = 0; t < batch->T; t++) {
        if (!train->is_head[t]) continue;
        *rows++ = (int32_t)t;
        *targets++ = batch->targets[t];
    }
}

static wb_status upload(wb_train *train, const wb_train_batch *batch) {
    wb_train_inputs *in = &train->inputs;
    in->T = batch->T;
    in->n_runs = count_runs(batch);
    in->n_head = find_head(train, batch);
    WB_TRY(wb_train_count_sampling(train, batch));
    WB_TRY(wb_upload_begin(&train->ring, walk_inputs, in));
    put_sequences(in, batch);
    put_targets(train, batch);
    wb_train_put_sampling(train, batch);
    WB_TRY(wb_upload_send(&train->ring, train->model->device));
    train->pass.T = in->T;
    train->pass.tokens = in->tokens.device;
    train->pass.pos = in->pos.device;
    train->pass.seq = in->seq.device;
    train->pass.blocks = in->blocks.device;
    train->pass.max_blocks = train->pass.block_size = 1;
    train->pass.n_runs = in->n_runs;
    train->pass.runs = in->runs.device;
    return WB_OK;
}

wb_status wb_train_take_batch(wb_train *train, const wb_train_batch *batch, const wb_routing *routing) {
    WB_TRY(check_batch(train, batch));
    train->pass = (wb_pass){0};
    train->routing = routing ? *routing : (wb_routing){0};
    WB_TRY(wb_routing_take(train->model, &train->routing_stage, batch->T, routing ? &train->routing : NULL,
                           &train->pass));
    WB_TRY(upload(train, batch));
    train->T = batch->T;
    train->n_head = train->inputs.n_head;
    if (!train->routing.planned) return WB_OK;
    return wb_planned_check(train->model, &train->routing_stage.planned, &train->pass);
}
