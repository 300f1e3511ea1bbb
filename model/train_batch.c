/* train_batch.c - a batch of packed sequences, checked and put on the device. Refuses: computing on it. */
#include "train_state.h"

#include <inttypes.h>

static wb_status check_sequences(const wb_model *model, const wb_train_batch *batch) {
    const int32_t K = model->config.router.top_k, limit = model->config.max_positions;
    if (batch->T < 0 || batch->T > INT32_MAX / K || batch->n_seqs < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "batch: expected 0..%d tokens, found %" PRId64 " in %d sequences",
                       INT32_MAX / K, batch->T, batch->n_seqs);
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
    WB_TRY(check_sequences(train->model, batch));
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

/* Positions, and of each token its sequence's first row of `blocks`, the rows of keys: row t of k and v is
 * token t. One row a token, whatever the lengths. */
static wb_status upload_sequences(wb_train *train, const wb_train_batch *batch) {
    const int64_t T = batch->T;
    WB_TRY(wb_reserve_host(&train->memory, &train->host_ints, 3 * T, sizeof(int32_t), "batch"));
    int32_t *pos = train->host_ints.data, *seq = pos + T, *blocks = seq + T;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t start = batch->seq_start[s], end = batch->seq_start[s + 1];
        for (int32_t t = start; t < end; t++) {
            pos[t] = t - start;
            seq[t] = start;
            blocks[t] = t;
        }
    }
    WB_TRY(wb_upload(&train->memory, &train->pos, pos, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&train->memory, &train->seq, seq, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&train->memory, &train->blocks, blocks, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&train->memory, &train->tokens, batch->tokens, T, sizeof(int32_t)));
    train->pass.T = T;
    train->pass.tokens = train->tokens.data;
    train->pass.pos = train->pos.data;
    train->pass.seq = train->seq.data;
    train->pass.blocks = train->blocks.data;
    train->pass.max_blocks = train->pass.block_size = 1;
    return WB_OK;
}

/* The rows that have a target: the head works on these alone. No loss looks at padding. */
static wb_status upload_targets(wb_train *train, const wb_train_batch *batch) {
    WB_TRY(wb_reserve_host(&train->memory, &train->host_rows, batch->T, sizeof(int32_t), "batch"));
    WB_TRY(wb_reserve_host(&train->memory, &train->host_ints, batch->T, sizeof(int32_t), "batch"));
    int32_t *rows = train->host_rows.data, *targets = train->host_ints.data;
    const wb_row_run *padding = train->pass.padding;
    int64_t n = 0, runs = train->pass.n_padding;
    for (int64_t t = 0; t < batch->T; t++) {
        if (runs > 0 && t == padding->start + padding->n) padding++, runs--;
        const bool is_padding = runs > 0 && t >= padding->start;
        if (batch->targets[t] < 0 || is_padding) continue;
        rows[n] = (int32_t)t;
        targets[n++] = batch->targets[t];
    }
    train->n_head = n;
    WB_TRY(wb_upload(&train->memory, &train->head_rows, rows, n, sizeof(int32_t)));
    return wb_upload(&train->memory, &train->head_targets, targets, n, sizeof(int32_t));
}

wb_status wb_train_take_batch(wb_train *train, const wb_train_batch *batch, const wb_routing *routing) {
    WB_TRY(check_batch(train, batch));
    train->pass = (wb_pass){0};
    train->routing = routing ? *routing : (wb_routing){0};
    WB_TRY(wb_routing_take(train->model, &train->memory, &train->routing_stage, batch->T,
                           routing ? &train->routing : NULL, &train->pass));
    WB_TRY(upload_sequences(train, batch));
    WB_TRY(upload_targets(train, batch));
    WB_TRY(wb_train_upload_sampling(train, batch));
    train->T = batch->T;
    return WB_OK;
}
