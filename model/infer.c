/* infer.c - inference: a step's tokens through all layers, over a paged pool of what layers keep of
 * sequences.
 *
 * Owns: the pool, the check of a batch, the logits of the wanted rows. Refuses: scheduling, sampling, which
 * block belongs to whom, what a layer keeps. */
#include "collective.h"
#include "layers/block.h"
#include "layers/head.h"
#include "needed_ops.h"
#include "routing_check.h"
#include "wb_options.h"

#include <inttypes.h>
#include <stdlib.h>

/* The pool's part of one layer: the tables of its state, [n_blocks * block_size, width] of the model's
 * dtype. */
typedef struct layer_pool {
    wb_buffer tables[WB_MAX_STATE_TABLES];
} layer_pool;

struct wb_infer {
    wb_model *model;
    wb_infer_options options;
    wb_workspace memory;
    wb_block block;
    layer_pool *pools; /* [n_layers] */

    wb_buffer tokens, pos, seq, blocks; /* int32, the batch on the device */
    wb_buffer pool_rows;                /* int64 [T] */
    wb_buffer logit_rows;               /* int32 [n_logits] */
    wb_buffer x, y;                     /* [T, H] residual stream, in turns */
    wb_buffer last, normed, logits;     /* [n_logits, H], [n_logits, H], [n_logits, V] */
    wb_host_buffer host_rows;           /* int64 [T] */
    wb_routing_stage routing_stage;
};

/* ---- open and close -------------------------------------------------------------------------- */

WB_OPTIONS_END(wb_infer_options, block_size);
static const wb_infer_options default_options = {.size = sizeof default_options, .block_size = 16};

void wb_infer_options_init(wb_infer_options *options_out, size_t size) {
    wb_options_init(options_out, size, &default_options, sizeof default_options);
}

static wb_status read_options(const wb_infer_options *options, wb_infer_options *own_out) {
    wb_infer_options own = default_options;
    WB_TRY(wb_options_read(&own, sizeof own, options, "inference options"));
    if (own.n_blocks < 1 || own.block_size < 1)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "KV pool: expected at least 1 block of 1 token, found %d blocks of %d tokens",
                       own.n_blocks, own.block_size);
    *own_out = own;
    return WB_OK;
}

/* What layer l keeps of a sequence, if there is a pool for it. */
static wb_status state_shape_of(const wb_model *model, int32_t l, wb_state_shape *shape_out) {
    const wb_layer *layer = &model->layers[l];
    wb_state_shape shape = {0};
    if (layer->feed_forward.kind->state)
        return wb_fail(WB_UNSUPPORTED,
                       "expected state of the mixer only, found a feed-forward part with state");
    if (layer->mixer.kind->state) layer->mixer.kind->state(&model->config, &shape);
    if (shape.n_tables < 0 || shape.n_tables > WB_MAX_STATE_TABLES)
        return wb_fail(WB_CAPACITY, "expected state in 0..%d tables, found %d", WB_MAX_STATE_TABLES,
                       shape.n_tables);
    if (shape.sequence_bytes != 0)
        return wb_fail(WB_UNSUPPORTED, "expected state by position only, found %" PRId64 " bytes a sequence",
                       shape.sequence_bytes);
    *shape_out = shape;
    return WB_OK;
}

static wb_status open_layer_pool(wb_infer *infer, int32_t l) {
    const wb_model *model = infer->model;
    const int64_t rows = (int64_t)infer->options.n_blocks * infer->options.block_size;
    wb_state_shape shape = {0};
    WB_TRY(state_shape_of(model, l, &shape));
    for (int32_t i = 0; i < shape.n_tables; i++)
        WB_TRY(wb_reserve(&infer->memory, &infer->pools[l].tables[i], rows, shape.width[i],
                          wb_dtype_size(wb_state_dtype(model))));
    return WB_OK;
}

static wb_status open_pools(wb_infer *infer) {
    const int32_t n_layers = infer->model->config.n_layers;
    WB_TRY(WB_OWN(&infer->memory.host, infer->pools, (size_t)n_layers, "KV pools"));
    for (int32_t l = 0; l < n_layers; l++) {
        const wb_status status = open_layer_pool(infer, l);
        if (status != WB_OK) return wb_fail_context(status, "KV pool of layer %d", l);
    }
    return WB_OK;
}

wb_status wb_infer_open(wb_model *model, const wb_infer_options *options, wb_infer **infer_out) {
    WB_TRY(wb_infer_check_device(model->device));
    wb_infer_options own;
    wb_infer *infer = NULL;
    WB_TRY(read_options(options, &own));
    WB_TRY(WB_NEW(infer, 1, "inference"));
    infer->model = model;
    infer->options = own;
    infer->memory.device = model->device;
    wb_status status = wb_block_open(model, &infer->memory, &infer->block);
    if (status == WB_OK) status = open_pools(infer);
    if (status != WB_OK) {
        wb_infer_close(infer);
        return status;
    }
    *infer_out = infer;
    return WB_OK;
}

void wb_infer_close(wb_infer *infer) {
    if (!infer) return;
    wb_workspace_close(&infer->memory);
    free(infer);
}

/* ---- a batch ------------------------------------------------------------------------------------- */

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

static wb_status check_batch(const wb_infer *infer, const wb_infer_batch *batch) {
    const int32_t K = infer->model->config.router.top_k;
    if (batch->T < 0 || batch->T > INT32_MAX / K || batch->n_seqs < 0 || batch->max_blocks < 0 ||
        batch->n_logits < 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "batch: expected sizes of at least 0 and at most %d tokens, found %" PRId64,
                       INT32_MAX / K, batch->T);
    for (int64_t t = 0; t < batch->T; t++) WB_TRY(check_token(infer, batch, t));
    for (int64_t i = 0; i < batch->n_logits; i++)
        if (batch->logit_rows[i] < 0 || batch->logit_rows[i] >= batch->T)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "logit row %" PRId64 ": expected a token below %" PRId64 ", found %d", i, batch->T,
                           batch->logit_rows[i]);
    return WB_OK;
}

static wb_status upload_batch(wb_infer *infer, const wb_infer_batch *batch) {
    const int64_t T = batch->T, block_size = infer->options.block_size;
    WB_TRY(wb_reserve_host(&infer->memory, &infer->host_rows, T, sizeof(int64_t), "KV pool rows"));
    int64_t *rows = infer->host_rows.data;
    for (int64_t t = 0; t < T; t++) {
        const int32_t pos = batch->pos[t];
        rows[t] = batch->blocks[(int64_t)batch->seq[t] * batch->max_blocks + pos / block_size] * block_size +
                  pos % block_size;
    }
    WB_TRY(wb_upload(&infer->memory, &infer->pool_rows, rows, T, sizeof(int64_t)));
    WB_TRY(wb_upload(&infer->memory, &infer->tokens, batch->tokens, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&infer->memory, &infer->pos, batch->pos, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&infer->memory, &infer->seq, batch->seq, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&infer->memory, &infer->blocks, batch->blocks,
                     (int64_t)batch->n_seqs * batch->max_blocks, sizeof(int32_t)));
    return wb_upload(&infer->memory, &infer->logit_rows, batch->logit_rows, batch->n_logits, sizeof(int32_t));
}

/* ---- forward ------------------------------------------------------------------------------------- */

/* All that can fail on one rank alone, before the first exchange of rows. */
static wb_status prepare(wb_infer *infer, const wb_infer_batch *batch, const wb_routing *routing,
                         wb_pass *pass) {
    const wb_model *model = infer->model;
    const int64_t H = model->config.hidden_size;
    WB_TRY(check_batch(infer, batch));
    WB_TRY(upload_batch(infer, batch));
    WB_TRY(wb_reserve_activations(model, &infer->memory, &infer->x, batch->T, H));
    WB_TRY(wb_reserve_activations(model, &infer->memory, &infer->y, batch->T, H));
    WB_TRY(wb_reserve_activations(model, &infer->memory, &infer->last, batch->n_logits, H));
    WB_TRY(wb_reserve_activations(model, &infer->memory, &infer->normed, batch->n_logits, H));
    WB_TRY(
        wb_reserve(&infer->memory, &infer->logits, batch->n_logits, model->config.vocab_size, sizeof(float)));
    WB_TRY(wb_block_reserve(&infer->block, batch->T, false));
    *pass = (wb_pass){.T = batch->T,
                      .tokens = infer->tokens.data,
                      .pos = infer->pos.data,
                      .seq = infer->seq.data,
                      .blocks = infer->blocks.data,
                      .max_blocks = batch->max_blocks,
                      .block_size = infer->options.block_size,
                      .state_rows = infer->pool_rows.data};
    return wb_routing_take(infer->model, &infer->memory, &infer->routing_stage, batch->T, routing, pass);
}

/* logits of the wanted rows of x. */
static wb_status head_forward(wb_infer *infer, int64_t n, wb_rows x) {
    const wb_model *model = infer->model;
    wb_device *dev = model->device;
    const wb_rows last = wb_activations(model, &infer->last);
    WB_TRY(dev->gather_rows(dev, n, model->config.hidden_size, infer->logit_rows.data, x, last));
    return wb_head_forward(model, n, last, wb_activations(model, &infer->normed), infer->logits.data);
}

static wb_state state_of(const wb_infer *infer, int32_t l) {
    wb_state state = {.dtype = wb_state_dtype(infer->model)};
    for (int i = 0; i < WB_MAX_STATE_TABLES; i++) state.tables[i] = infer->pools[l].tables[i].data;
    return state;
}

/* *x_out: the last layer's output, [T, H]. */
static wb_status layers_forward(wb_infer *infer, const wb_infer_batch *batch, const wb_pass *pass,
                                wb_rows *x_out) {
    const wb_model *model = infer->model;
    wb_rows x = wb_activations(model, &infer->x), y = wb_activations(model, &infer->y);
    WB_TRY(wb_embed_forward(model, batch->T, infer->tokens.data, x));
    for (int32_t l = 0; l < model->config.n_layers; l++) {
        const wb_state state = state_of(infer, l);
        WB_TRY(wb_block_forward(&infer->block, l, pass, &state, x, y));
        const wb_rows swap = x;
        x = y;
        y = swap;
    }
    *x_out = x;
    return WB_OK;
}

wb_status wb_infer_forward(wb_infer *infer, const wb_infer_batch *batch, const wb_routing *routing,
                           const float **logits_out) {
    wb_pass pass;
    wb_rows x = {0};
    WB_TRY(wb_comm_agree(infer->model->comm, prepare(infer, batch, routing, &pass)));
    WB_TRY(wb_collective_end(infer->model, layers_forward(infer, batch, &pass, &x)));
    /* After the last exchange nobody waits for this rank: a failure is its own, the communicator lives. */
    WB_TRY(head_forward(infer, batch->n_logits, x));
    WB_TRY(wb_routing_give(infer->model, &infer->memory, &pass));
    *logits_out = infer->logits.data;
    return WB_OK;
}
