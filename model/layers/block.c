/* block.c - one layer: mixer, then feed-forward part, each on the residual stream.
 *
 * Owns: the order of steps inside a layer, forward and backward, the same for inference and training.
 * Refuses: what a part computes.
 *
 *   mid = x + mixer(norm(x))
 *   y = mid + feed_forward(norm(mid)) */
#include "layers/block.h"

#include <string.h>

/* ---- workers --------------------------------------------------------------------------------- */

static void *worker_of(const wb_block *block, const wb_layer_kind *kind) {
    for (int32_t i = 0; i < block->n_kinds; i++)
        if (block->kinds[i] == kind) return block->workers[i];
    return NULL;
}

static wb_status open_worker(wb_block *block, const wb_layer_kind *kind) {
    void *worker = NULL;
    if (worker_of(block, kind)) return WB_OK;
    if (block->n_kinds == WB_MAX_KINDS)
        return wb_fail(WB_CAPACITY, "layers: expected at most %d kinds, found more", WB_MAX_KINDS);
    WB_TRY(WB_OWN_ALLOC(&block->memory->host, worker, 1, kind->worker_size, "layer workspace"));
    block->kinds[block->n_kinds] = kind;
    block->workers[block->n_kinds++] = worker;
    return kind->open(block->model, block->memory, worker);
}

wb_status wb_block_open(wb_model *model, wb_workspace *memory, wb_block *block) {
    memset(block, 0, sizeof *block);
    block->model = model;
    block->memory = memory;
    for (int32_t l = 0; l < model->config.n_layers; l++) {
        WB_TRY(open_worker(block, model->layers[l].mixer.kind));
        WB_TRY(open_worker(block, model->layers[l].feed_forward.kind));
    }
    return WB_OK;
}

static wb_status reserve_part(wb_block *block, const wb_part *part, int64_t T, bool backward) {
    if (!part->kind->reserve) return WB_OK;
    return part->kind->reserve(worker_of(block, part->kind), part->weights, T, backward);
}

wb_status wb_block_reserve(wb_block *block, int64_t T, bool backward) {
    const wb_model *model = block->model;
    const int64_t H = model->config.hidden_size;
    WB_TRY(wb_reserve_activations(model, block->memory, &block->mixer_norm, T, H));
    WB_TRY(wb_reserve_activations(model, block->memory, &block->mid, T, H));
    WB_TRY(wb_reserve_activations(model, block->memory, &block->feed_forward_norm, T, H));
    if (backward) {
        WB_TRY(wb_reserve_activations(model, block->memory, &block->dmid, T, H));
        WB_TRY(wb_reserve_activations(model, block->memory, &block->dnorm, T, H));
    }
    for (int32_t l = 0; l < model->config.n_layers; l++) {
        WB_TRY(reserve_part(block, &model->layers[l].mixer, T, backward));
        WB_TRY(reserve_part(block, &model->layers[l].feed_forward, T, backward));
    }
    return WB_OK;
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
