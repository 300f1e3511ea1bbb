/* train.c - training: log-probabilities of packed sequences, and the gradients of their weighted sum.
 *
 * Owns: the passes, and the residual stream between layers (all else is recomputed). Refuses: losses, the
 * optimizer, how a batch is cut into micro-batches. */
#include "collective.h"
#include "layers/head.h"
#include "needed_ops.h"
#include "op_sizes.h"
#include "packed_weights.h"
#include "train_state.h"
#include "wb_options.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- open and close -------------------------------------------------------------------------- */

WB_OPTIONS_END(wb_train_options, keep_bytes);
static const wb_train_options default_options = {.size = sizeof default_options, .max_tokens = 4096};

void wb_train_options_init(wb_train_options *options_out, size_t size) {
    wb_options_init(options_out, size, &default_options, sizeof default_options);
}

static wb_status read_options(const wb_train_options *options, wb_train_options *own_out) {
    wb_train_options own = default_options;
    if (options) WB_TRY(wb_options_read(&own, sizeof own, options, "training options"));
    WB_TRY(wb_options_check_reserved(own.reserved, sizeof own.reserved, "training options"));
    if (own.max_kept_ids < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "max_kept_ids: expected at least 0, found %" PRId64,
                       own.max_kept_ids);
    if (own.max_kept_ids == 0) own.max_kept_ids = 64 * own.max_tokens;
    *own_out = own;
    return WB_OK;
}

static void layout(void *user, wb_arena *arena) {
    wb_train *train = user;
    const wb_model *model = train->model;
    const int64_t T = train->sizes.tokens, W = wb_model_stream_width(model);
    const int64_t n_residuals = train->forward_only ? 2 : model->config.n_layers + 1;
    wb_arena_part(arena, "upload ring");
    wb_train_layout_batch(train, arena);
    wb_arena_part(arena, "activations kept");
    wb_place_activations(arena, model, &train->residual, T * n_residuals, W);
    wb_block_layout(&train->block, &train->sizes, arena);
    wb_arena_part(arena, "logits");
    wb_train_layout_head(train, arena);
    if (train->forward_only) return;
    wb_arena_part(arena, "activations");
    wb_place_activations(arena, model, &train->dx, T, W);
    wb_arena_part(arena, "gradients");
    wb_train_layout_grads(train, arena);
}

/* All but the memory, with options that were read. */
static wb_status prepare_open(wb_model *model, const wb_train_options *o, wb_train *train) {
    size_t left = 0;
    train->model = model;
    train->options = *o;
    train->forward_only = o->forward_only;
    train->memory.device = model->device;
    WB_TRY(wb_model_check_rows(model, "training"));
    WB_TRY(wb_block_sizes(model, o->max_tokens, o->max_expert_rows, !o->forward_only, &train->sizes));
    WB_TRY(wb_block_open(model, &train->memory.host, &train->block));
    wb_train_keep_logits(train, 0);
    if (o->forward_only) return WB_OK;
    WB_TRY(wb_block_keep(&train->block, &train->memory.host, &train->sizes, o->keep_bytes, &left));
    wb_train_keep_logits(train, left);
    return wb_train_open_grads(train);
}

static wb_op_sizes largest_ops(const wb_train *train) {
    return wb_largest_ops(train->model, &train->sizes, train->sizes.tokens, train->chunk_rows);
}

static wb_status reserve_ops(wb_train *train) {
    const wb_op_sizes most = largest_ops(train);
    return train->model->device->reserve_scratch(train->model->device, &most);
}

wb_status wb_train_open(wb_model *model, const wb_train_options *options, wb_train **train_out) {
    wb_train_options own;
    wb_train *train = NULL;
    WB_TRY(read_options(options, &own));
    WB_TRY(wb_train_check_device(model->device, !own.forward_only));
    WB_TRY(WB_NEW(train, 1, "training"));
    wb_status status = prepare_open(model, &own, train);
    if (status == WB_OK) status = wb_arena_open(&train->memory, layout, train);
    if (status == WB_OK) status = reserve_ops(train);
    if (status == WB_OK && !own.forward_only) status = wb_train_open_parts(train);
    if (status == WB_OK && !own.forward_only) status = wb_train_clear_grads(train);
    if (status != WB_OK) {
        wb_train_close(train);
        return status;
    }
    *train_out = train;
    return WB_OK;
}

wb_status wb_train_measure(const wb_config *config, const wb_model_options *model,
                           const wb_train_options *options, int32_t n_ranks, int32_t rank,
                           wb_memory *memory_out) {
    wb_model *blank = NULL;
    wb_train train = {0};
    wb_train_options own;
    WB_TRY(read_options(options, &own));
    WB_TRY(wb_model_blank(config, model, n_ranks, rank, &blank));
    wb_status status = prepare_open(blank, &own, &train);
    if (status == WB_OK) status = wb_arena_measure(NULL, layout, &train, memory_out);
    if (status == WB_OK) memory_out->ops = largest_ops(&train);
    wb_workspace_close(&train.memory);
    wb_model_close(blank);
    return status;
}

void wb_train_close(wb_train *train) {
    if (!train) return;
    wb_workspace_close(&train->memory);
    free(train);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* All that can fail on one rank alone, before the first exchange of rows. */
static wb_status prepare_forward(wb_train *train, const wb_train_batch *batch, const wb_routing *routing) {
    train->forward_done = train->backward_due = train->logits_kept = false;
    return wb_train_take_batch(train, batch, routing);
}

static wb_status layers_forward(wb_train *train, const wb_router_probe *probe) {
    wb_pass pass = train->pass;
    pass.probe = probe;
    WB_TRY(wb_embed_forward(train->model, train->T, train->inputs.tokens.device, wb_train_residual(train, 1),
                            wb_train_residual(train, 0)));
    for (int32_t l = 0; l < train->model->config.n_layers; l++)
        WB_TRY(wb_block_forward(&train->block, l, &pass, NULL, wb_train_residual(train, l),
                                wb_train_residual(train, l + 1)));
    WB_TRY(wb_routing_give(train->model, &pass));
    WB_TRY(wb_train_head_forward(train, wb_train_residual(train, train->model->config.n_layers)));
    wb_device *dev = train->model->device;
    return dev->to_host(dev, train->host_logprobs, train->logprobs.data,
                        (size_t)train->n_head * sizeof(float));
}

wb_status wb_train_forward(wb_train *train, const wb_train_batch *batch, const wb_routing *routing,
                           const wb_router_probe *probe, float *logprobs_out) {
    WB_TRY(wb_comm_agree(train->model->comm, prepare_forward(train, batch, routing)));
    /* No rank has failed by itself, so that this comes to an end on all of them. */
    if (!train->forward_only) WB_TRY(wb_block_agree(&train->block));
    WB_TRY(wb_collective_end(train->model, layers_forward(train, probe)));

    const int32_t *rows = train->inputs.head_rows.host;
    for (int64_t t = 0; t < train->T; t++) logprobs_out[t] = 0;
    for (int64_t i = 0; i < train->n_head; i++) logprobs_out[rows[i]] = train->host_logprobs[i];
    train->forward_done = true;
    train->backward_due = !train->forward_only;
    return WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

static wb_status prepare_backward(wb_train *train, const float *dlogprobs) {
    wb_device *dev = train->model->device;
    const int64_t n = train->n_head;
    if (train->forward_only)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "backward: expected gradients, found a trainer for forwards only");
    if (!train->backward_due)
        return wb_fail(WB_INVALID_ARGUMENT, "backward: expected a forward whose backward is due, found none");
    const int32_t *rows = train->inputs.head_rows.host;
    for (int64_t i = 0; i < n; i++) train->host_logprobs[i] = dlogprobs[rows[i]];
    return dev->to_device(dev, train->dlogprobs.data, train->host_logprobs, (size_t)n * sizeof(float));
}

/* With `reduce`, gradients that are final travel while those of earlier layers are computed. Tied embeddings
 * are parameter 0 and the last to be final. */
static wb_status layers_backward(wb_train *train, bool reduce) {
    const wb_model *model = train->model;
    const wb_rows dx = wb_activations(model, &train->dx);
    WB_TRY(wb_train_head_backward(train, dx));
    if (reduce) WB_TRY(wb_train_reduce_ready(train, model->final_norm));
    wb_pass pass = train->pass;
    pass.recompute = true;
    pass.starts_grads = train->experts.grads_are_old;
    for (int32_t l = model->config.n_layers - 1; l >= 0; l--) {
        WB_TRY(wb_block_recompute(&train->block, l, &pass, wb_train_residual(train, l),
                                  wb_train_residual(train, l + 1)));
        WB_TRY(wb_block_backward(&train->block, l, &pass, wb_train_residual(train, l), train->grads, dx));
        if (reduce) WB_TRY(wb_train_reduce_ready(train, model->layers[l].mixer_norm));
    }
    WB_TRY(wb_embed_backward(model, train->T, train->inputs.tokens.device,
                             wb_activations(model, &train->dhead), dx, train->grads));
    train->experts.grads_are_old = false;
    return reduce ? wb_train_finish_reduction(train) : WB_OK;
}

static wb_status run_backward(wb_train *train, const float *dlogprobs, bool reduce) {
    WB_TRY(wb_comm_agree(train->model->comm, prepare_backward(train, dlogprobs)));
    train->backward_due = false;
    if (reduce) wb_train_start_reduction(train);
    return wb_collective_end(train->model, layers_backward(train, reduce));
}

wb_status wb_train_backward(wb_train *train, const float *dlogprobs) {
    return run_backward(train, dlogprobs, false);
}

wb_status wb_train_backward_last(wb_train *train, const float *dlogprobs) {
    return run_backward(train, dlogprobs, true);
}
