/* block.c - one layer: mixer, then feed-forward part, each on the residual stream.
 *
 * Owns: the order of steps inside a layer, forward and backward, the same for inference and training.
 * Refuses: what a part computes.
 *
 *   mid = x + mixer(norm(x))
 *   y = mid + feed_forward(norm(mid)) */
#include "layers/block.h"

#include <inttypes.h>
#include <string.h>

/* ---- workers --------------------------------------------------------------------------------- */

static void *worker_of(const wb_block *block, const wb_layer_kind *kind) {
    for (int32_t i = 0; i < block->n_kinds; i++)
        if (block->kinds[i] == kind) return block->workers[i];
    return NULL;
}

static wb_status open_worker(wb_block *block, wb_owner *owner, const wb_layer_kind *kind) {
    void *worker = NULL;
    if (worker_of(block, kind)) return WB_OK;
    if (block->n_kinds == WB_MAX_KINDS)
        return wb_fail(WB_CAPACITY, "layers: expected at most %d kinds, found more", WB_MAX_KINDS);
    WB_TRY(WB_OWN_ALLOC(owner, worker, 1, kind->worker_size, "layer workspace"));
    block->kinds[block->n_kinds] = kind;
    block->workers[block->n_kinds++] = worker;
    return WB_OK;
}

wb_status wb_block_open(wb_model *model, wb_owner *owner, wb_block *block) {
    memset(block, 0, sizeof *block);
    block->model = model;
    for (int32_t l = 0; l < model->config.n_layers; l++) {
        WB_TRY(open_worker(block, owner, model->layers[l].mixer.kind));
        WB_TRY(open_worker(block, owner, model->layers[l].feed_forward.kind));
    }
    return WB_OK;
}

/* ---- memory ---------------------------------------------------------------------------------- */

wb_status wb_block_sizes(const wb_model *model, int64_t max_tokens, int64_t max_expert_rows, bool backward,
                         wb_sizes *sizes_out) {
    const int64_t K = model->config.router.top_k, here = wb_model_local_slots(model), R = model->n_ranks;
    if (max_tokens < 1 || max_tokens > INT32_MAX / K)
        return wb_fail(WB_INVALID_ARGUMENT, "max_tokens: expected 1..%" PRId64 ", found %" PRId64,
                       INT32_MAX / K, max_tokens);
    if (max_expert_rows < 0 || max_expert_rows > INT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "max_expert_rows: expected 0..%d, found %" PRId64, INT32_MAX,
                       max_expert_rows);
    int64_t rows = R > 1 ? R * max_tokens * (K < here ? K : here) : max_tokens * K;
    if (rows > INT32_MAX) rows = INT32_MAX;
    if (R > 1 && max_expert_rows > 0) rows = max_expert_rows;
    *sizes_out = (wb_sizes){.tokens = max_tokens, .expert_rows = rows, .backward = backward};
    return WB_OK;
}

void wb_block_layout(wb_block *block, const wb_sizes *sizes, wb_arena *arena) {
    wb_model *model = block->model;
    const int64_t T = sizes->tokens, H = model->config.hidden_size;
    wb_place_activations(arena, model, &block->mixer_norm, T, H);
    wb_place_activations(arena, model, &block->mid, T, H);
    wb_place_activations(arena, model, &block->feed_forward_norm, T, H);
    if (sizes->backward) {
        wb_place_activations(arena, model, &block->dmid, T, H);
        wb_place_activations(arena, model, &block->dnorm, T, H);
    }
    for (int32_t i = 0; i < block->n_kinds; i++)
        block->kinds[i]->layout(block->workers[i], model, sizes, arena);
}

/* ---- parts ----------------------------------------------------------------------------------- */

static wb_status part_forward(wb_block *block, const wb_part *part, const wb_pass *pass,
                              const wb_state *state, wb_rows x, wb_rows y) {
    return part->kind->forward(worker_of(block, part->kind), part->weights, pass, state, x, y);
}

static wb_status part_backward(wb_block *block, const wb_part *part, const wb_pass *pass, wb_rows x,
                               wb_rows dy, float *const *grads, wb_rows dx) {
    return part->kind->backward(worker_of(block, part->kind), part->weights, pass, x, dy, grads, dx);
}

static wb_status norm_forward(wb_block *block, int32_t norm, int64_t T, wb_rows x, wb_rows y) {
    const wb_model *model = block->model;
    return model->device->rmsnorm_forward(model->device, T, model->config.hidden_size, x,
                                          wb_model_vector(model, norm), model->config.norm_eps, y);
}

/* dx (=) the gradient of x: of the norm, from dy, and of the residual stream past it. */
static wb_status norm_backward(wb_block *block, int32_t norm, int64_t T, wb_rows x, wb_rows dy,
                               wb_rows dresidual, float *const *grads, wb_rows dx) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size;
    WB_TRY(dev->rmsnorm_backward(dev, T, H, x, wb_model_vector(model, norm), model->config.norm_eps, dy, dx,
                                 grads[norm]));
    return dev->add(dev, T * H, dresidual, dx);
}

/* ---- the layer ------------------------------------------------------------------------------- */

static wb_status layer_forward(wb_block *block, const wb_layer *layer, const wb_pass *pass,
                               const wb_state *state, wb_rows x, wb_rows y) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size;
    const wb_rows mid = wb_activations(model, &block->mid);
    wb_rows h = wb_activations(model, &block->mixer_norm);
    WB_TRY(norm_forward(block, layer->mixer_norm, T, x, h));
    WB_TRY(part_forward(block, &layer->mixer, pass, state, h, mid));
    WB_TRY(dev->add(dev, T * H, x, mid));

    h = wb_activations(model, &block->feed_forward_norm);
    WB_TRY(norm_forward(block, layer->feed_forward_norm, T, mid, h));
    WB_TRY(part_forward(block, &layer->feed_forward, pass, NULL, h, y));
    return dev->add(dev, T * H, mid, y);
}

static wb_status layer_backward(wb_block *block, const wb_layer *layer, const wb_pass *pass, wb_rows x,
                                float *const *grads, wb_rows dx) {
    const wb_model *model = block->model;
    const int64_t T = pass->T;
    const wb_rows mid = wb_activations(model, &block->mid), dmid = wb_activations(model, &block->dmid),
                  dh = wb_activations(model, &block->dnorm);
    wb_rows h = wb_activations(model, &block->feed_forward_norm);
    WB_TRY(part_backward(block, &layer->feed_forward, pass, h, dx, grads, dh));
    WB_TRY(norm_backward(block, layer->feed_forward_norm, T, mid, dh, dx, grads, dmid));

    h = wb_activations(model, &block->mixer_norm);
    WB_TRY(part_backward(block, &layer->mixer, pass, h, dmid, grads, dh));
    return norm_backward(block, layer->mixer_norm, T, x, dh, dmid, grads, dx);
}

wb_status wb_block_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state, wb_rows x,
                           wb_rows y) {
    const wb_status status = layer_forward(block, &block->model->layers[l], pass, state, x, y);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "layer %d", l);
}

wb_status wb_block_backward(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, float *const *grads,
                            wb_rows dx) {
    const wb_status status = layer_backward(block, &block->model->layers[l], pass, x, grads, dx);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "backward of layer %d", l);
}
