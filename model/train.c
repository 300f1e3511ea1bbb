/* train.c - training: log-probabilities of packed sequences, and the gradients of their weighted sum.
 *
 * Owns: the gradients, the residual stream between layers (all else is recomputed), the head in chunks of
 * rows. Refuses: losses, the optimizer, how a batch is cut into micro-batches. */
#include <stdlib.h>

#include "forward_internal.h"
#include "needed_ops.h"
#include "wb_memory.h"

/* Logits exist for this many bytes of rows at a time. */
#define WB_LOGITS_BYTES ((int64_t)64 << 20)
#define WB_LOGITS_ROWS 1024

/* Gradients travel in pieces of this many elements. */
#define WB_REDUCE_ELEMENTS ((int64_t)1 << 20)

struct wb_train {
    wb_model *model;
    wb_workspace memory;
    wb_block block;
    wb_buffer *grad_memory; /* [n_params] */
    float **grads;          /* [n_params] device, as long as the parameter's part held here */

    /* The latest forward. */
    bool forward_done; /* residual and batch below are those of a whole forward */
    bool backward_due; /* and its backward has not been */
    bool logits_kept;  /* logits holds all n_head rows of it: they fitted one chunk */
    int64_t T, n_head; /* tokens; those with a target */
    wb_routing routing;
    wb_block_tokens block_tokens;
    wb_buffer tokens, pos, seq, blocks; /* int32; blocks [n_seqs, longest], block_size 1 */
    wb_buffer residual;                 /* [n_layers + 1][T, H] input of each layer, output of the last */
    wb_buffer head_rows, head_targets;  /* int32 [n_head] */
    wb_host_buffer host_rows;           /* int32 [n_head] */

    wb_buffer head_x, head_norm, dhead; /* [n, H] */
    wb_buffer logits;                   /* [chunk, V] */
    wb_buffer logprobs, dlogprobs;      /* [n_head] */
    wb_buffer dx;                       /* [T, H] */
    wb_host_buffer host_ints, host_floats, host_probe;
};

/* ---- open and close -------------------------------------------------------------------------- */

static wb_status open_grads(wb_train *train) {
    const wb_model *model = train->model;
    const size_t n = (size_t)model->n_params;
    WB_TRY(WB_OWN(&train->memory.host, train->grads, n, "gradients"));
    WB_TRY(WB_OWN(&train->memory.host, train->grad_memory, n, "gradients"));
    for (size_t i = 0; i < n; i++) {
        wb_buffer *gradient = &train->grad_memory[i];
        wb_status status = wb_reserve(&train->memory, gradient, model->params[i].n, 1, sizeof(float));
        if (status != WB_OK) return wb_fail_context(status, "gradient of parameter %zu", i);
        train->grads[i] = gradient->data;
    }
    return wb_train_zero_grads(train);
}

wb_status wb_train_open(wb_model *model, wb_train **train_out) {
    if (model->dtype != WB_F32)
        return wb_fail(WB_INVALID_ARGUMENT, "training: expected a model of f32 weights, found %s",
                       wb_dtype_name(model->dtype));
    WB_TRY(wb_train_check_device(model->device));
    wb_train *train = NULL;
    WB_TRY(WB_NEW(train, 1, "training"));
    train->model = model;
    train->memory.device = model->device;
    wb_status status = wb_block_open(model, &train->memory, &train->block);
    if (status == WB_OK) status = open_grads(train);
    if (status != WB_OK) {
        wb_train_close(train);
        return status;
    }
    *train_out = train;
    return WB_OK;
}

void wb_train_close(wb_train *train) {
    if (train == NULL) return;
    wb_workspace_close(&train->memory);
    free(train);
}

/* ---- gradients ----------------------------------------------------------------------------------- */

float *wb_train_grad(const wb_train *train, const wb_tensor *tensor) {
    return tensor->data == NULL ? NULL : train->grads[tensor->param] + tensor->offset;
}

wb_status wb_train_zero_grads(wb_train *train) {
    wb_device *dev = train->model->device;
    for (int32_t i = 0; i < train->model->n_params; i++)
        WB_TRY(dev->zero(dev, train->grads[i], (size_t)train->model->params[i].n * sizeof(float)));
    return WB_OK;
}

/* A piece of the replicated gradients, taken one after the other: small ones share it, large ones are cut. */
typedef struct reduce_piece {
    int32_t param;
    int64_t offset; /* where the piece starts */
} reduce_piece;

/* Moves up to `room` elements from `at` on between the gradients and `piece`; returns how many, and where it
 * stopped. */
static wb_status move_piece(wb_train *train, reduce_piece *at, float *piece, int64_t room, bool to_host,
                            int64_t *n_out) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    int64_t filled = 0;
    while (at->param < model->n_params && filled < room) {
        const wb_param *param = &model->params[at->param];
        const int64_t left = param->sharded ? 0 : param->n - at->offset;
        const int64_t n = left < room - filled ? left : room - filled;
        float *grad = train->grads[at->param] + at->offset;
        const size_t bytes = (size_t)n * sizeof(float);
        if (n > 0)
            WB_TRY(to_host ? dev->to_host(dev, piece + filled, grad, bytes)
                           : dev->to_device(dev, grad, piece + filled, bytes));
        filled += n;
        at->offset += n;
        if (n == left) *at = (reduce_piece){at->param + 1, 0};
    }
    *n_out = filled;
    return WB_OK;
}

wb_status wb_train_reduce_grads(wb_train *train) {
    wb_comm *comm = train->model->comm;
    if (wb_comm_size(comm) == 1) return WB_OK;
    WB_TRY(wb_comm_agree(comm, wb_reserve_host(&train->memory, &train->host_floats, WB_REDUCE_ELEMENTS,
                                               sizeof(float), "gradients in transit")));
    float *piece = train->host_floats.data;
    reduce_piece start = {0, 0}, end = {0, 0};
    for (;;) {
        int64_t n;
        WB_TRY(move_piece(train, &end, piece, WB_REDUCE_ELEMENTS, true, &n));
        if (n == 0) return WB_OK;
        WB_TRY(wb_comm_all_reduce_f32(comm, piece, (size_t)n));
        WB_TRY(move_piece(train, &start, piece, WB_REDUCE_ELEMENTS, false, &n));
    }
}

/* ---- a batch ------------------------------------------------------------------------------------- */

static wb_status check_sequences(const wb_model *model, const wb_train_batch *batch) {
    const int32_t K = model->config.router.top_k, limit = model->config.max_positions;
    if (batch->T < 0 || batch->T > INT32_MAX / K || batch->n_seqs < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "batch: expected 0..%d tokens, found %lld in %d sequences",
                       INT32_MAX / K, (long long)batch->T, batch->n_seqs);
    if (batch->seq_start[0] != 0 || batch->seq_start[batch->n_seqs] != batch->T)
        return wb_fail(WB_INVALID_ARGUMENT, "seq_start: expected to go from 0 to %lld, found %d to %d",
                       (long long)batch->T, batch->seq_start[0], batch->seq_start[batch->n_seqs]);
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t start = batch->seq_start[s], end = batch->seq_start[s + 1];
        if (start < 0 || end < start || end > batch->T)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "sequence %d: expected a start of at most %lld after %d, found %d", s,
                           (long long)batch->T, start, end);
        if (end - start > limit)
            return wb_fail(WB_CAPACITY, "sequence %d: position %d exceeds the model's limit of %d positions",
                           s, limit, limit);
    }
    return WB_OK;
}

static wb_status check_batch(wb_train *train, const wb_train_batch *batch, const wb_routing *routing) {
    const int32_t V = train->model->config.vocab_size;
    WB_TRY(check_sequences(train->model, batch));
    for (int64_t t = 0; t < batch->T; t++) {
        if (batch->tokens[t] < 0 || batch->tokens[t] >= V)
            return wb_fail(WB_INVALID_ARGUMENT, "token %lld: expected an id in 0..%d, found %d", (long long)t,
                           V - 1, batch->tokens[t]);
        if (batch->targets[t] >= V)
            return wb_fail(WB_INVALID_ARGUMENT, "target %lld: expected an id in 0..%d or -1, found %d",
                           (long long)t, V - 1, batch->targets[t]);
    }
    return wb_moe_check_routing(&train->block.moe, batch->T, routing);
}

/* Positions, sequences and the rows of their keys: row t of k and v is token t. */
static wb_status upload_sequences(wb_train *train, const wb_train_batch *batch) {
    int32_t longest = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t length = batch->seq_start[s + 1] - batch->seq_start[s];
        longest = length > longest ? length : longest;
    }
    const int64_t T = batch->T, n_blocks = (int64_t)batch->n_seqs * longest;
    WB_TRY(wb_reserve_host(&train->memory, &train->host_ints, 2 * T + n_blocks, sizeof(int32_t), "batch"));
    int32_t *pos = train->host_ints.data, *seq = pos + T, *blocks = seq + T;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t start = batch->seq_start[s], end = batch->seq_start[s + 1];
        for (int32_t t = start; t < end; t++) {
            pos[t] = t - start;
            seq[t] = s;
        }
        /* Entries after the end are never read; the last row keeps them inside. */
        for (int32_t j = 0; j < longest; j++)
            blocks[(int64_t)s * longest + j] = start + j < T ? start + j : (int32_t)T - 1;
    }
    WB_TRY(wb_upload(&train->memory, &train->pos, pos, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&train->memory, &train->seq, seq, T, sizeof(int32_t)));
    WB_TRY(wb_upload(&train->memory, &train->blocks, blocks, n_blocks, sizeof(int32_t)));
    WB_TRY(wb_upload(&train->memory, &train->tokens, batch->tokens, T, sizeof(int32_t)));
    train->block_tokens =
        (wb_block_tokens){T, train->pos.data, train->seq.data, train->blocks.data, longest, 1};
    return WB_OK;
}

/* The rows that have a target: the head works on these alone. */
static wb_status upload_targets(wb_train *train, const wb_train_batch *batch) {
    WB_TRY(wb_reserve_host(&train->memory, &train->host_rows, batch->T, sizeof(int32_t), "batch"));
    WB_TRY(wb_reserve_host(&train->memory, &train->host_ints, batch->T, sizeof(int32_t), "batch"));
    int32_t *rows = train->host_rows.data, *targets = train->host_ints.data;
    int64_t n = 0;
    for (int64_t t = 0; t < batch->T; t++) {
        if (batch->targets[t] < 0) continue;
        rows[n] = (int32_t)t;
        targets[n++] = batch->targets[t];
    }
    train->n_head = n;
    WB_TRY(wb_upload(&train->memory, &train->head_rows, rows, n, sizeof(int32_t)));
    return wb_upload(&train->memory, &train->head_targets, targets, n, sizeof(int32_t));
}

static int64_t chunk_rows(const wb_train *train) {
    const int64_t fit = WB_LOGITS_BYTES / ((int64_t)sizeof(float) * train->model->config.vocab_size);
    return fit < 1 ? 1 : fit > WB_LOGITS_ROWS ? WB_LOGITS_ROWS : fit;
}

/* All that can fail on one rank alone, before the first exchange of rows. */
static wb_status prepare_forward(wb_train *train, const wb_train_batch *batch, const wb_routing *routing) {
    const wb_config *config = &train->model->config;
    const int64_t H = config->hidden_size;
    train->forward_done = train->backward_due = train->logits_kept = false;
    WB_TRY(check_batch(train, batch, routing));
    WB_TRY(upload_sequences(train, batch));
    WB_TRY(upload_targets(train, batch));
    WB_TRY(wb_reserve(&train->memory, &train->residual, batch->T * (config->n_layers + 1), H, sizeof(float)));
    WB_TRY(wb_reserve(&train->memory, &train->head_x, train->n_head, H, sizeof(float)));
    WB_TRY(wb_reserve(&train->memory, &train->head_norm, train->n_head, H, sizeof(float)));
    WB_TRY(wb_reserve(&train->memory, &train->logits, chunk_rows(train), config->vocab_size, sizeof(float)));
    WB_TRY(wb_reserve(&train->memory, &train->logprobs, train->n_head, 1, sizeof(float)));
    WB_TRY(wb_reserve_host(&train->memory, &train->host_floats, train->n_head, sizeof(float),
                           "log-probabilities"));
    train->T = batch->T;
    train->routing = routing != NULL ? *routing : (wb_routing){0};
    return WB_OK;
}

/* ---- forward ------------------------------------------------------------------------------------- */

static float *residual_of(const wb_train *train, int32_t l) {
    return (float *)train->residual.data + (int64_t)l * train->T * train->model->config.hidden_size;
}

static wb_status call_probe(wb_train *train, int32_t moe_layer, const wb_router_probe *probe) {
    const wb_router *router = &train->model->config.router;
    wb_device *dev = train->model->device;
    const int64_t n_logits = train->T * router->n_experts, n_weights = train->T * router->top_k;
    WB_TRY(wb_reserve_host(&train->memory, &train->host_probe, n_logits + n_weights, sizeof(float),
                           "router probe"));
    float *logits = train->host_probe.data, *weights = logits + n_logits;
    WB_TRY(dev->to_host(dev, logits, train->block.moe.logits.data, (size_t)n_logits * sizeof(float)));
    WB_TRY(dev->to_host(dev, weights, train->block.moe.weights.data, (size_t)n_weights * sizeof(float)));
    probe->call(probe->ctx, moe_layer, train->T, logits, weights);
    return WB_OK;
}

static wb_status layers_forward(wb_train *train, const wb_router_probe *probe) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    WB_TRY(dev->embed_forward(dev, train->T, model->config.hidden_size, train->tokens.data,
                              wb_param_data(model, model->embed), model->params[model->embed].dtype,
                              residual_of(train, 0)));
    for (int32_t l = 0; l < model->config.n_layers; l++) {
        WB_TRY(wb_block_forward(&train->block, l, &train->block_tokens, NULL, &train->routing, false,
                                residual_of(train, l), residual_of(train, l + 1)));
        if (probe != NULL && model->layers[l].moe_index >= 0)
            WB_TRY(call_probe(train, model->layers[l].moe_index, probe));
    }
    return WB_OK;
}

/* logits[n, V] of the rows x[n, H]; normed [n, H] is kept. */
static wb_status head_logits(wb_train *train, int64_t n, const float *x, float *normed) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size;
    WB_TRY(dev->rmsnorm_forward(dev, n, H, x, wb_param_data(model, model->final_norm), model->config.norm_eps,
                                normed));
    const wb_matmul product =
        wb_matmul_forward(n, H, model->config.vocab_size, normed, wb_param_data(model, model->lm_head),
                          model->params[model->lm_head].dtype, train->logits.data);
    return dev->matmul(dev, 1, &product);
}

/* The i-th chunk of `total` rows starts at i * chunk_rows. */
static int64_t rows_of_chunk(const wb_train *train, int64_t start, int64_t total) {
    const int64_t rows = chunk_rows(train);
    return total - start < rows ? total - start : rows;
}

static wb_status head_forward(wb_train *train) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    const int64_t n = train->n_head, H = model->config.hidden_size;
    float *x = train->head_x.data, *normed = train->head_norm.data;
    WB_TRY(dev->gather_rows(dev, n, H, train->head_rows.data, residual_of(train, model->config.n_layers), x));
    for (int64_t start = 0; start < n; start += chunk_rows(train)) {
        const int64_t rows = rows_of_chunk(train, start, n);
        WB_TRY(head_logits(train, rows, x + start * H, normed + start * H));
        WB_TRY(dev->logprob_forward(dev, rows, model->config.vocab_size, train->logits.data,
                                    (const int32_t *)train->head_targets.data + start,
                                    (float *)train->logprobs.data + start));
    }
    train->logits_kept = n <= chunk_rows(train);
    return WB_OK;
}

wb_status wb_train_forward(wb_train *train, const wb_train_batch *batch, const wb_routing *routing,
                           const wb_router_probe *probe, float *logprobs_out) {
    wb_device *dev = train->model->device;
    WB_TRY(wb_comm_agree(train->model->comm, prepare_forward(train, batch, routing)));
    WB_TRY(layers_forward(train, probe));
    WB_TRY(head_forward(train));

    float *logprobs = train->host_floats.data;
    const int32_t *rows = train->host_rows.data;
    WB_TRY(dev->to_host(dev, logprobs, train->logprobs.data, (size_t)train->n_head * sizeof(float)));
    for (int64_t t = 0; t < train->T; t++) logprobs_out[t] = 0;
    for (int64_t i = 0; i < train->n_head; i++) logprobs_out[rows[i]] = logprobs[i];
    train->forward_done = train->backward_due = true;
    return WB_OK;
}

wb_status wb_train_logits(wb_train *train, float *logits_out) {
    const wb_config *config = &train->model->config;
    wb_device *dev = train->model->device;
    if (!train->forward_done)
        return wb_fail(WB_INVALID_ARGUMENT, "logits: expected a forward before, found none");
    const int64_t H = config->hidden_size, V = config->vocab_size;
    const float *x = residual_of(train, config->n_layers);
    /* The norm's rows go to dhead: head_norm belongs to the backward that may be due. */
    WB_TRY(wb_reserve(&train->memory, &train->dhead, chunk_rows(train), H, sizeof(float)));
    train->logits_kept = false;
    for (int64_t start = 0; start < train->T; start += chunk_rows(train)) {
        const int64_t rows = rows_of_chunk(train, start, train->T);
        WB_TRY(head_logits(train, rows, x + start * H, train->dhead.data));
        WB_TRY(dev->to_host(dev, logits_out + start * V, train->logits.data,
                            (size_t)(rows * V) * sizeof(float)));
    }
    return WB_OK;
}

/* ---- backward ------------------------------------------------------------------------------------ */

static wb_status prepare_backward(wb_train *train, const float *dlogprobs) {
    const int64_t n = train->n_head, H = train->model->config.hidden_size;
    if (!train->backward_due)
        return wb_fail(WB_INVALID_ARGUMENT, "backward: expected a forward whose backward is due, found none");
    const int32_t *rows = train->host_rows.data;
    WB_TRY(wb_reserve_host(&train->memory, &train->host_floats, n, sizeof(float),
                           "gradient of log-probabilities"));
    float *wanted = train->host_floats.data;
    for (int64_t i = 0; i < n; i++) wanted[i] = dlogprobs[rows[i]];
    WB_TRY(wb_upload(&train->memory, &train->dlogprobs, wanted, n, sizeof(float)));
    WB_TRY(wb_reserve(&train->memory, &train->dhead, n, H, sizeof(float)));
    return wb_reserve(&train->memory, &train->dx, train->T, H, sizeof(float));
}

/* dx (=) gradient of the last layer's output. */
static wb_status head_backward(wb_train *train) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    const int64_t n = train->n_head, H = model->config.hidden_size, V = model->config.vocab_size;
    float *x = train->head_x.data, *normed = train->head_norm.data, *dhead = train->dhead.data;
    float *logits = train->logits.data;
    for (int64_t start = 0; start < n; start += chunk_rows(train)) {
        const int64_t rows = rows_of_chunk(train, start, n);
        if (!train->logits_kept) WB_TRY(head_logits(train, rows, x + start * H, normed + start * H));
        train->logits_kept = false; /* their gradient takes their place */
        WB_TRY(dev->logprob_backward(dev, rows, V, logits, (const int32_t *)train->head_targets.data + start,
                                     (const float *)train->dlogprobs.data + start, logits));
        const wb_matmul list[] = {
            wb_matmul_wgrad(rows, H, V, logits, normed + start * H, train->grads[model->lm_head]),
            wb_matmul_dgrad(rows, H, V, logits, wb_param_data(model, model->lm_head),
                            model->params[model->lm_head].dtype, dhead + start * H, false)};
        WB_TRY(dev->matmul(dev, 2, list));
    }
    WB_TRY(dev->rmsnorm_backward(dev, n, H, x, wb_param_data(model, model->final_norm),
                                 model->config.norm_eps, dhead, dhead, train->grads[model->final_norm]));
    /* Scatter: each row of the head is one row of dx, as a token's gradient is one row of a table. */
    WB_TRY(dev->zero(dev, train->dx.data, (size_t)(train->T * H) * sizeof(float)));
    return dev->embed_backward(dev, n, H, train->head_rows.data, dhead, train->dx.data);
}

wb_status wb_train_backward(wb_train *train, const float *dlogprobs) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    WB_TRY(wb_comm_agree(model->comm, prepare_backward(train, dlogprobs)));
    train->backward_due = false;
    WB_TRY(head_backward(train));
    for (int32_t l = model->config.n_layers - 1; l >= 0; l--) {
        /* The recompute writes the same bits over the layer's output. The last layer's workspace is still
         * the forward's. */
        if (l + 1 < model->config.n_layers)
            WB_TRY(wb_block_forward(&train->block, l, &train->block_tokens, NULL, &train->routing, true,
                                    residual_of(train, l), residual_of(train, l + 1)));
        WB_TRY(wb_block_backward(&train->block, l, &train->block_tokens, &train->routing,
                                 residual_of(train, l), train->grads, train->dx.data));
    }
    return dev->embed_backward(dev, train->T, model->config.hidden_size, train->tokens.data, train->dx.data,
                               train->grads[model->embed]);
}
