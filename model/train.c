/* train.c - training: log-probabilities of packed sequences, and the gradients of their weighted sum.
 *
 * Owns: the passes, and the residual stream between layers (all else is recomputed). Refuses: losses, the
 * optimizer, how a batch is cut into micro-batches. */
#include "collective.h"
#include "layers/head.h"
#include "needed_ops.h"
#include "train_state.h"
#include "wb_options.h"

#include <stdlib.h>

/* ---- open and close -------------------------------------------------------------------------- */

WB_OPTIONS_END(wb_train_options, reserved);
static const wb_train_options default_options = {.size = sizeof default_options};

void wb_train_options_init(wb_train_options *options_out, size_t size) {
    wb_options_init(options_out, size, &default_options, sizeof default_options);
}

wb_status wb_train_open(wb_model *model, const wb_train_options *options, wb_train **train_out) {
    wb_train_options own = default_options;
    if (options) WB_TRY(wb_options_read(&own, sizeof own, options, "training options"));
    WB_TRY(wb_options_check_reserved(own.reserved, sizeof own.reserved, "training options"));
    if (model->dtype != WB_F32)
        return wb_fail(WB_INVALID_ARGUMENT, "training: expected a model of f32 weights, found %s",
                       wb_dtype_name(model->dtype));
    WB_TRY(wb_train_check_device(model->device));
    wb_train *train = NULL;
    WB_TRY(WB_NEW(train, 1, "training"));
    train->model = model;
    train->forward_only = own.forward_only;
    train->memory.device = model->device;
    wb_status status = wb_block_open(model, &train->memory, &train->block);
    if (status == WB_OK && !train->forward_only) status = wb_train_open_grads(train);
    if (status != WB_OK) {
        wb_train_close(train);
        return status;
    }
    *train_out = train;
    return WB_OK;
}

void wb_train_close(wb_train *train) {
    if (!train) return;
    wb_workspace_close(&train->memory);
    free(train);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* All that can fail on one rank alone, before the first exchange of rows. */
static wb_status prepare_forward(wb_train *train, const wb_train_batch *batch, const wb_routing *routing) {
    const wb_config *config = &train->model->config;
    train->forward_done = train->backward_due = train->logits_kept = false;
    WB_TRY(wb_train_take_batch(train, batch, routing));
    const int64_t n_residuals = train->forward_only ? 2 : config->n_layers + 1;
    WB_TRY(wb_reserve_activations(train->model, &train->memory, &train->residual, batch->T * n_residuals,
                                  config->hidden_size));
    WB_TRY(wb_block_reserve(&train->block, batch->T, !train->forward_only));
    return wb_train_reserve_head(train);
}

static wb_status layers_forward(wb_train *train, const wb_router_probe *probe) {
    wb_pass pass = train->pass;
    pass.probe = probe;
    WB_TRY(wb_embed_forward(train->model, train->T, train->tokens.data, wb_train_residual(train, 0)));
    for (int32_t l = 0; l < train->model->config.n_layers; l++)
        WB_TRY(wb_block_forward(&train->block, l, &pass, NULL, wb_train_residual(train, l),
                                wb_train_residual(train, l + 1)));
    WB_TRY(wb_routing_give(train->model, &train->memory, &pass));
    WB_TRY(wb_train_head_forward(train, wb_train_residual(train, train->model->config.n_layers)));
    wb_device *dev = train->model->device;
    return dev->to_host(dev, train->host_floats.data, train->logprobs.data,
                        (size_t)train->n_head * sizeof(float));
}

wb_status wb_train_forward(wb_train *train, const wb_train_batch *batch, const wb_routing *routing,
                           const wb_router_probe *probe, float *logprobs_out) {
    WB_TRY(wb_comm_agree(train->model->comm, prepare_forward(train, batch, routing)));
    WB_TRY(wb_collective_end(train->model, layers_forward(train, probe)));

    const float *logprobs = train->host_floats.data;
    const int32_t *rows = train->host_rows.data;
    for (int64_t t = 0; t < train->T; t++) logprobs_out[t] = 0;
    for (int64_t i = 0; i < train->n_head; i++) logprobs_out[rows[i]] = logprobs[i];
    train->forward_done = true;
    train->backward_due = !train->forward_only;
    return WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

static wb_status prepare_backward(wb_train *train, const float *dlogprobs) {
    const int64_t n = train->n_head, H = train->model->config.hidden_size;
    if (train->forward_only)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "backward: expected gradients, found a trainer for forwards only");
    if (!train->backward_due)
        return wb_fail(WB_INVALID_ARGUMENT, "backward: expected a forward whose backward is due, found none");
    const int32_t *rows = train->host_rows.data;
    WB_TRY(wb_reserve_host(&train->memory, &train->host_floats, n, sizeof(float),
                           "gradient of log-probabilities"));
    float *wanted = train->host_floats.data;
    for (int64_t i = 0; i < n; i++) wanted[i] = dlogprobs[rows[i]];
    WB_TRY(wb_upload(&train->memory, &train->dlogprobs, wanted, n, sizeof(float)));
    WB_TRY(wb_reserve_activations(train->model, &train->memory, &train->dhead, n, H));
    return wb_reserve_activations(train->model, &train->memory, &train->dx, train->T, H);
}

static wb_status layers_backward(wb_train *train) {
    const wb_model *model = train->model;
    const wb_rows dx = wb_activations(model, &train->dx);
    WB_TRY(wb_train_head_backward(train, dx));
    wb_pass pass = train->pass;
    pass.recompute = true;
    for (int32_t l = model->config.n_layers - 1; l >= 0; l--) {
        /* The recompute writes the same bits over the layer's output. The last layer's workspace is still
         * the forward's. */
        if (l + 1 < model->config.n_layers)
            WB_TRY(wb_block_forward(&train->block, l, &pass, NULL, wb_train_residual(train, l),
                                    wb_train_residual(train, l + 1)));
        WB_TRY(wb_block_backward(&train->block, l, &pass, wb_train_residual(train, l), train->grads, dx));
    }
    return wb_embed_backward(model, train->T, train->tokens.data, dx, train->grads);
}

wb_status wb_train_backward(wb_train *train, const float *dlogprobs) {
    WB_TRY(wb_comm_agree(train->model->comm, prepare_backward(train, dlogprobs)));
    train->backward_due = false;
    return wb_collective_end(train->model, layers_backward(train));
}
