/* infer_batch.c - a step's batch, checked and put on the device. Refuses: computing on it, routing
 * (routing_check.c). */
#include "infer_state.h"

#include <inttypes.h>
#include <string.h>

/* The sequence of a row of padding. */
enum { PADDING = -1 };

/* ---- checks -------------------------------------------------------------------------------------- */

/* Token t: its id, its position, and at the end of a run the blocks of all positions up to it. */
static wb_status check_token(const wb_infer *infer, const wb_infer_batch *batch, int64_t t) {
    const wb_config *config = &infer->model->config;
    const int32_t seq = batch->seq[t], pos = batch->pos[t];
    if (batch->tokens[t] < 0 || batch->tokens[t] >= config->vocab_size)
        return wb_fail(WB_INVALID_ARGUMENT, "token %" PRId64 ": expected an id in 0..%d, found %d", t,
                       config->vocab_size - 1, batch->tokens[t]);
    if (seq < 0 || seq >= batch->n_seqs)
        return wb_fail(WB_INVALID_ARGUMENT, "token %" PRId64 ": expected a sequence in 0..%d, found %d", t,
                       batch->n_seqs - 1, seq);
    if (pos >= config->max_positions)
        return wb_fail(WB_CAPACITY,
                       "token %" PRId64
                       " of sequence %d: position %d exceeds the model's limit of %d positions",
                       t, seq, pos, config->max_positions);
    if (t > 0 && batch->seq[t - 1] == PADDING)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "token %" PRId64 ": expected padding to the end, found sequence %d", t, seq);
    const bool run_starts = t == 0 || batch->seq[t - 1] != seq;
    if (pos < 0 || (!run_starts && pos <= batch->pos[t - 1]))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "token %" PRId64 " of sequence %d: expected ascending positions, found %d", t, seq,
                       pos);
    if (t + 1 < batch->T && batch->seq[t + 1] == seq) return WB_OK;

    const int32_t last_block = pos / infer->options.block_size;
    if (last_block >= batch->max_blocks)
        return wb_fail(WB_INVALID_ARGUMENT, "sequence %d: position %d lies in block %d, the table has %d",
                       seq, pos, last_block, batch->max_blocks);
    for (int32_t b = 0; b <= last_block; b++) {
        const int32_t block = batch->blocks[(int64_t)seq * batch->max_blocks + b];
        if (block < 0 || block >= infer->options.n_blocks)
            return wb_fail(WB_INVALID_ARGUMENT, "sequence %d, entry %d: expected a block in 0..%d, found %d",
                           seq, b, infer->options.n_blocks - 1, block);
    }
    return WB_OK;
}

static wb_status check_sizes(const wb_infer_options *options, const wb_infer_batch *batch) {
    const struct {
        const char *name;
        int64_t found, most;
    } sizes[] = {{"tokens", batch->T, options->max_tokens},
                 {"sequences", batch->n_seqs, options->max_sequences},
                 {"blocks of a sequence", batch->max_blocks, options->max_blocks},
                 {"logit rows", batch->n_logits, options->max_logits}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].found < 0 || sizes[i].found > sizes[i].most)
            return wb_fail(sizes[i].found < 0 ? WB_INVALID_ARGUMENT : WB_CAPACITY,
                           "batch: %s: expected 0..%" PRId64 ", found %" PRId64, sizes[i].name, sizes[i].most,
                           sizes[i].found);
    return WB_OK;
}

/* Of a batch of MTP layers: rows of the latest one that they go on from. */
static wb_status check_hidden_rows(const wb_infer *infer, const wb_infer_batch *batch) {
    const int64_t n = infer->hidden_of->inputs.T;
    for (int64_t t = 0; t < batch->T; t++)
        if (infer->hidden_rows[t] < 0 || infer->hidden_rows[t] >= n)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "token %" PRId64 ": expected a row below %" PRId64
                           " of the latest forward, found %d",
                           t, n, infer->hidden_rows[t]);
    return WB_OK;
}

static wb_status check_batch(wb_infer *infer, const wb_infer_batch *batch) {
    WB_TRY(check_sizes(&infer->options, batch));
    if (infer->decoder) WB_TRY(check_hidden_rows(infer, batch));
    for (int64_t t = 0; t < batch->T; t++)
        if (batch->seq[t] != PADDING) WB_TRY(check_token(infer, batch, t));
    for (int64_t i = 0; i < batch->n_logits; i++)
        if (batch->logit_rows[i] < 0 || batch->logit_rows[i] >= batch->T ||
            batch->seq[batch->logit_rows[i]] == PADDING)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "logit row %" PRId64 ": expected a token below %" PRId64 ", found %d", i, batch->T,
                           batch->logit_rows[i]);
    return wb_infer_check_runs(infer, batch, &infer->inputs.n_runs);
}

/* ---- on the device ------------------------------------------------------------------------------- */

static void walk_inputs(void *user, wb_arena *step) {
    wb_infer_inputs *in = user;
    wb_place_input(step, &in->pool_rows, in->T, sizeof(int64_t));
    for (int i = 0; i < WB_MAX_PERIODS; i++)
        wb_place_input(step, &in->period_rows[i], in->n_period_rows[i], sizeof(int64_t));
    wb_place_input(step, &in->tokens, in->T, sizeof(int32_t));
    wb_place_input(step, &in->pos, in->T, sizeof(int32_t));
    wb_place_input(step, &in->seq, in->T, sizeof(int32_t));
    wb_place_input(step, &in->runs, in->n_runs, sizeof(wb_sequence_run));
    wb_place_input(step, &in->logit_rows, in->n_logits, sizeof(int32_t));
    wb_place_input(step, &in->direction, in->T, 1);
    wb_place_input(step, &in->blocks, in->n_blocks, sizeof(int32_t));
    wb_place_input(step, &in->hidden_rows, in->n_hidden_rows, sizeof(int32_t));
}

void wb_infer_layout_batch(wb_infer *infer, wb_arena *arena) {
    const wb_infer_options *o = &infer->options;
    wb_infer_inputs most = {.T = o->max_tokens,
                            .n_blocks = (int64_t)o->max_sequences * o->max_blocks,
                            .n_logits = o->max_logits,
                            .n_runs = o->max_sequences,
                            .n_hidden_rows = infer->decoder ? o->max_tokens : 0};
    for (int i = 0; i < WB_MAX_PERIODS; i++)
        most.n_period_rows[i] = infer->periods[i] > 0 ? o->max_tokens : 0;
    wb_place_ring(arena, &infer->ring, walk_inputs, &most);
    wb_routing_layout(infer->model, o->max_tokens, &infer->routing_stage, arena);
}

static void put(wb_input *input, const int32_t *from, int64_t n) {
    if (n > 0) memcpy(input->host, from, (size_t)n * sizeof *from);
}

/* Block tables in->max_blocks wide. */
static void put_blocks(const wb_infer_inputs *in, const wb_infer_batch *batch) {
    int32_t *to = in->blocks.host;
    const size_t had = (size_t)batch->max_blocks, has = (size_t)in->max_blocks;
    for (int32_t i = 0; i < batch->n_seqs; i++, to += has) {
        if (had > 0) memcpy(to, batch->blocks + (size_t)i * had, had * sizeof *to);
        memset(to + had, 0, (has - had) * sizeof *to);
    }
}

/* The wanted rows, and row 0 for what the size of a graph has beside them. */
static void put_logit_rows(const wb_infer_inputs *in, const wb_infer_batch *batch) {
    int32_t *to = in->logit_rows.host;
    for (int64_t i = 0; i < in->n_logits; i++) to[i] = i < batch->n_logits ? batch->logit_rows[i] : 0;
}

/* Row of the pool that each token's state has. */
static void put_pool_rows(const wb_infer *infer, const wb_infer_batch *batch, int64_t n, int64_t *rows) {
    const int64_t block_size = infer->options.block_size;
    for (int64_t t = 0; t < n; t++) {
        const int32_t pos = batch->pos[t];
        rows[t] = batch->blocks[(int64_t)batch->seq[t] * batch->max_blocks + pos / block_size] * block_size +
                  pos % block_size;
    }
}

/* Likewise in tables with a row for `period` positions. */
static void put_period_rows(const wb_infer *infer, const wb_infer_batch *batch, int64_t n, int32_t period,
                            int64_t *rows) {
    const int32_t block_size = infer->options.block_size;
    const int64_t block_rows = wb_period_block_rows(block_size, period);
    for (int64_t t = 0; t < infer->inputs.T; t++) {
        rows[t] = PADDING;
        if (t >= n || (batch->pos[t] + 1) % period != 0) continue;
        const int32_t pos = batch->pos[t];
        rows[t] = batch->blocks[(int64_t)batch->seq[t] * batch->max_blocks + pos / block_size] * block_rows +
                  pos % block_size / period;
    }
}

/* Padding is token 0 at position 0 of no sequence, without a row in the pool. */
static void put_padding(const wb_infer_inputs *in) {
    uint8_t *direction = in->direction.host;
    memset(direction, WB_ROW_NATIVE, (size_t)in->n_tokens);
    for (int64_t t = in->n_tokens; t < in->T; t++) {
        ((int32_t *)in->tokens.host)[t] = ((int32_t *)in->pos.host)[t] = 0;
        ((int32_t *)in->seq.host)[t] = PADDING;
        ((int64_t *)in->pool_rows.host)[t] = PADDING;
        direction[t] = WB_ROW_PADDING;
    }
}

bool wb_infer_has_graphs(const wb_infer *infer) {
    const wb_model *model = infer->model;
    return model->device->graph_begin && infer->sequences.bytes == 0 &&
           (model->n_ranks == 1 || wb_has_mailboxes(&model->mailboxes));
}

/* No two tokens of one sequence. */
static bool has_one_a_sequence(const wb_infer_batch *batch) {
    for (int64_t t = 1; t < batch->T; t++)
        if (batch->seq[t] != PADDING && batch->seq[t] == batch->seq[t - 1]) return false;
    return true;
}

/* The size of the batch's graph, or none. */
static wb_graph_size graph_size_of(const wb_infer *infer, const wb_infer_batch *batch,
                                   const wb_routing *routing) {
    const wb_infer_options *o = &infer->options;
    const bool looked_at = routing && (routing->direction || routing->native || routing->used ||
                                       routing->planned || routing->listed);
    if (!wb_infer_has_graphs(infer) || looked_at || !wb_graph_is_size(batch->T, o->max_tokens))
        return (wb_graph_size){0};
    return (wb_graph_size){.T = batch->T,
                           .n_logits = wb_graph_rows(batch->n_logits, o->max_logits),
                           .max_blocks = wb_graph_blocks(batch->max_blocks, o->max_blocks),
                           .one_a_sequence = has_one_a_sequence(batch),
                           .ids = routing ? routing->ids : NULL,
                           .hidden_of = infer->hidden_of};
}

/* The sizes of the batch's inputs. Those of a graph depend on nothing but its own, n_blocks excepted. */
static void size_inputs(wb_infer *infer, const wb_infer_batch *batch) {
    const wb_graph_size *size = &infer->graph_size;
    wb_infer_inputs *in = &infer->inputs;
    const bool fixed = size->T > 0;
    in->T = in->n_tokens = batch->T;
    while (in->n_tokens > 0 && batch->seq[in->n_tokens - 1] == PADDING) in->n_tokens--;
    in->max_blocks = fixed ? size->max_blocks : batch->max_blocks;
    in->n_logits = fixed ? size->n_logits : batch->n_logits;
    if (fixed) in->n_runs = batch->T < infer->options.max_sequences ? batch->T : infer->options.max_sequences;
    in->n_blocks = (int64_t)batch->n_seqs * in->max_blocks;
    in->n_hidden_rows = infer->decoder ? in->T : 0;
    for (int i = 0; i < WB_MAX_PERIODS; i++) in->n_period_rows[i] = infer->periods[i] > 0 ? in->T : 0;
}

static wb_status upload(wb_infer *infer, const wb_infer_batch *batch) {
    wb_infer_inputs *in = &infer->inputs;
    const int64_t n_runs = in->n_runs;
    size_inputs(infer, batch);
    WB_TRY(wb_upload_begin(&infer->ring, walk_inputs, in));
    put_pool_rows(infer, batch, in->n_tokens, in->pool_rows.host);
    for (int i = 0; i < WB_MAX_PERIODS && infer->periods[i] > 0; i++)
        put_period_rows(infer, batch, in->n_tokens, infer->periods[i], in->period_rows[i].host);
    put(&in->tokens, batch->tokens, in->n_tokens);
    put(&in->pos, batch->pos, in->n_tokens);
    put(&in->seq, batch->seq, in->n_tokens);
    put(&in->hidden_rows, infer->hidden_rows, in->n_hidden_rows);
    put_logit_rows(in, batch);
    put_blocks(in, batch);
    wb_infer_put_runs(infer, batch, in->runs.host);
    for (int64_t i = n_runs; i < in->n_runs; i++)
        ((wb_sequence_run *)in->runs.host)[i] = (wb_sequence_run){(int32_t)in->n_tokens, 0, -1};
    put_padding(in);
    return wb_upload_send(&infer->ring, infer->model->device);
}

/* Rows of padding get ids that exist. */
static wb_status pad_ids(wb_infer *infer) {
    const wb_infer_inputs *in = &infer->inputs;
    wb_device *dev = infer->model->device;
    const size_t row_bytes = wb_route_row_bytes(&infer->model->route_model),
                 n = (size_t)(in->T - in->n_tokens);
    if (n == 0 || row_bytes == 0 || !infer->routing.ids) return WB_OK;
    return dev->zero(dev, (char *)infer->routing.ids + (size_t)in->n_tokens * row_bytes, n * row_bytes);
}

/* That the directions, which are the caller's, have the batch's padding at their end. */
static wb_status check_padding(const wb_infer *infer, const wb_pass *pass) {
    const wb_infer_inputs *in = &infer->inputs;
    if (in->n_tokens == in->T || infer->model->route_model.n_moe_layers == 0) return WB_OK;
    const wb_row_run none = {in->T, 0};
    const wb_row_run last = pass->n_padding > 0 ? pass->padding[pass->n_padding - 1] : none;
    if (last.start <= in->n_tokens && last.start + last.n == in->T) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "routing: expected padding from token %" PRId64
                   " on, as in the batch, found another direction",
                   in->n_tokens);
}

/* Where no row has a direction yet, and there is padding or a graph, all get that of the upload block, which
 * the host knows. */
static wb_status take_routing(wb_infer *infer, const wb_routing *routing, wb_pass *pass) {
    const wb_infer_inputs *in = &infer->inputs;
    const bool padded = in->n_tokens < in->T;
    wb_routing_stage *stage = &infer->routing_stage;
    WB_TRY(pad_ids(infer));
    if (routing && routing->planned && padded && !routing->direction)
        infer->routing.direction = in->direction.device;
    WB_TRY(wb_routing_take(infer->model, stage, in->T, routing ? &infer->routing : NULL, pass));
    if (infer->routing.direction) return check_padding(infer, pass);
    if (!padded && infer->graph_size.T == 0) return WB_OK;
    infer->routing.direction = in->direction.device;
    stage->padding[0] = (wb_row_run){in->n_tokens, in->T - in->n_tokens};
    pass->padding = stage->padding;
    pass->n_padding = padded;
    return WB_OK;
}

wb_status wb_infer_take_batch(wb_infer *infer, const wb_infer_batch *batch, const wb_routing *routing,
                              wb_pass *pass_out) {
    const wb_infer_inputs *in = &infer->inputs;
    WB_TRY(check_batch(infer, batch));
    infer->graph_size = graph_size_of(infer, batch, routing);
    infer->routing = routing ? *routing : (wb_routing){0};
    WB_TRY(upload(infer, batch));
    WB_TRY(wb_infer_begin_states(infer, batch));
    *pass_out = (wb_pass){.T = batch->T,
                          .tokens = in->tokens.device,
                          .pos = in->pos.device,
                          .seq = in->seq.device,
                          .blocks = in->blocks.device,
                          .max_blocks = (int32_t)in->max_blocks,
                          .block_size = infer->options.block_size,
                          .state_rows = in->pool_rows.device,
                          .one_a_sequence = has_one_a_sequence(batch),
                          .n_runs = in->n_runs,
                          .runs = in->runs.device};
    for (int i = 0; i < WB_MAX_PERIODS; i++)
        pass_out->periods[i] = (wb_period_rows){infer->periods[i], in->period_rows[i].device};
    WB_TRY(take_routing(infer, routing, pass_out));
    if (!infer->routing.planned) return WB_OK;
    return wb_planned_check(infer->model, &infer->routing_stage.planned, pass_out);
}
