/* block.c - one layer: mixer, then feed-forward part, each on the residual stream.
 *
 * Owns: the order of steps inside a layer, forward and backward, the same for inference and training.
 * Refuses: what a part computes, and memory (block_memory.c).
 *
 *   mid = x + mixer(norm(x))
 *   y = mid + feed_forward(norm(mid))
 *
 * or, with hyper-connections, what they read in place of norm's argument and write in place of the sum. */
#include "layers/block.h"

static wb_kept *kept_of(wb_block *block, int32_t l, int which) {
    wb_kept *own = &block->own[which][l];
    return own->worker ? own : &block->shared[which];
}

static void *worker_of(wb_block *block, int32_t l, int which) {
    void *own = block->own[which][l].worker;
    return own ? own : wb_block_shared_worker(block, wb_block_part(block, l, which)->kind);
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* A part of a layer. */
typedef struct part_place {
    int32_t l;
    int which;
} part_place;

static int32_t norm_of(const wb_block *block, part_place part) {
    const wb_layer *layer = &block->model->layers[part.l];
    return part.which == WB_MIXER ? layer->mixer_norm : layer->feed_forward_norm;
}

static const wb_hyper_weights *hyper_of(const wb_block *block, part_place part) {
    const wb_layer *layer = &block->model->layers[part.l];
    return part.which == WB_MIXER ? &layer->mixer_hyper : &layer->feed_forward_hyper;
}

/* Its input is about to be written: what its latest forward had kept is gone. */
static wb_rows input_to_write(wb_block *block, part_place part) {
    wb_kept *kept = kept_of(block, part.l, part.which);
    kept->layer = -1;
    return wb_activations(block->model, &kept->input);
}

/* The input of a part from the stream x[T,W], where no part before it left it. */
static wb_status enter(wb_block *block, part_place part, int64_t T, wb_rows x) {
    const wb_model *model = block->model;
    const wb_rows input = input_to_write(block, part);
    const wb_hyper_kept *kept = &kept_of(block, part.l, part.which)->hyper;
    if (wb_model_is_hyper(model)) {
        WB_TRY(wb_hyper_read(model, hyper_of(block, part), kept, T, x));
        x = wb_activations(model, &kept->mixed);
    }
    return model->device->rmsnorm_forward(model->device, T, model->config.hidden_size, x,
                                          wb_model_norm(model, norm_of(block, part)), input);
}

/* y, which is what the part gave, (+=) x. Then the input of the next part; next NULL: there is none. */
static wb_status add_to(wb_block *block, int64_t T, wb_rows x, wb_rows y, const part_place *next) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size;
    if (!next) return dev->add(dev, T * H, x, y);
    return dev->add_rmsnorm(dev, T, H, x, y, wb_model_norm(model, norm_of(block, *next)),
                            input_to_write(block, *next));
}

/* y (=) x and the part of its input, which is there, in it. Then the input of the next part; next NULL: there
 * is none. */
static wb_status part_forward(wb_block *block, part_place at, const wb_pass *pass, const wb_state *state,
                              wb_rows x, wb_rows y, const part_place *next) {
    const wb_model *model = block->model;
    const wb_part *part = wb_block_part(block, at.l, at.which);
    wb_kept *kept = kept_of(block, at.l, at.which);
    const bool hyper = wb_model_is_hyper(model);
    const wb_rows input = wb_activations(model, &kept->input),
                  out = hyper ? wb_activations(model, &kept->hyper.out) : y;
    kept->layer = -1;
    WB_TRY(part->kind->forward(worker_of(block, at.l, at.which), part->weights, pass, state, input, out));
    kept->layer = at.l;
    if (!hyper) return add_to(block, pass->T, x, y, next);
    WB_TRY(wb_hyper_write(model, &kept->hyper, pass->T, x, y));
    return next ? enter(block, *next, pass->T, y) : WB_OK;
}

/* dinput[T,H] (=) from dout[T,H], and back through the norm of `read`, what it was made of: in place. */
static wb_status inner_backward(wb_block *block, part_place at, const wb_pass *pass, wb_rows read,
                                wb_rows dout, float *const *grads, wb_rows dinput, wb_rows dread) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const wb_part *part = wb_block_part(block, at.l, at.which);
    wb_kept *kept = kept_of(block, at.l, at.which);
    const int32_t norm = norm_of(block, at);
    kept->layer = -1;
    WB_TRY(part->kind->backward(worker_of(block, at.l, at.which), part->weights, pass,
                                wb_activations(model, &kept->input), dout, grads, dinput));
    return dev->rmsnorm_backward(dev, pass->T, model->config.hidden_size, read, wb_model_norm(model, norm),
                                 dinput, dread, grads[norm]);
}

static wb_status hyper_backward(wb_block *block, part_place at, const wb_pass *pass, wb_rows x, wb_rows dy,
                                float *const *grads, wb_rows dx) {
    const wb_model *model = block->model;
    const wb_hyper_kept *kept = &kept_of(block, at.l, at.which)->hyper;
    const wb_rows dout = wb_activations(model, &block->dout), dread = wb_activations(model, &block->dnorm);
    float *dweights = block->dweights.data;
    WB_TRY(wb_hyper_write_backward(model, kept, pass->T, x, dy, dout, dx, dweights));
    WB_TRY(inner_backward(block, at, pass, wb_activations(model, &kept->mixed), dout, grads, dread, dread));
    return wb_hyper_read_backward(model, hyper_of(block, at), kept->products.data,
                                  model->config.hyper.iterations, pass->T, x, dread, dweights, grads, dx);
}

/* dx (=) the gradient of x, from that of y, which part_forward made of it. */
static wb_status part_backward(wb_block *block, part_place at, const wb_pass *pass, wb_rows x, wb_rows dy,
                               float *const *grads, wb_rows dx) {
    const wb_model *model = block->model;
    if (wb_model_is_hyper(model)) return hyper_backward(block, at, pass, x, dy, grads, dx);
    const wb_rows dinput = wb_activations(model, &block->dnorm);
    WB_TRY(inner_backward(block, at, pass, x, dy, grads, dinput, dx));
    return model->device->add(model->device, pass->T * model->config.hidden_size, dy, dx);
}

/* ---- the layer ------------------------------------------------------------------------------- */

/* The residual stream between the parts. */
static wb_rows mid_of(wb_block *block, int32_t l) {
    return wb_activations(block->model, &kept_of(block, l, WB_MIXER)->mid);
}

static part_place mixer_of(int32_t l) {
    return (part_place){l, WB_MIXER};
}

static part_place feed_forward_of(int32_t l) {
    return (part_place){l, WB_FEED_FORWARD};
}

static wb_status mixer_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state,
                               wb_rows x, wb_rows mid) {
    const part_place next = feed_forward_of(l);
    return part_forward(block, mixer_of(l), pass, state, x, mid, &next);
}

static wb_status layer_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state,
                               wb_rows x, wb_rows y) {
    const wb_rows mid = mid_of(block, l);
    const bool leads_on = block->runs_ahead && l + 1 < block->model->config.n_layers;
    const part_place next = mixer_of(l + 1);
    if (l == 0 || block->ready != l) WB_TRY(enter(block, mixer_of(l), pass->T, x));
    block->ready = -1;
    WB_TRY(mixer_forward(block, l, pass, state, x, mid));
    wb_pass feeding = *pass;
    feeding.leaves_nothing = block->runs_ahead || !wb_block_is_there(block, l);
    WB_TRY(part_forward(block, feed_forward_of(l), &feeding, NULL, mid, y, leads_on ? &next : NULL));
    block->ready = leads_on ? l + 1 : -1;
    return WB_OK;
}

static wb_status layer_recompute(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, wb_rows y) {
    const wb_rows mid = mid_of(block, l);
    const bool mixes = kept_of(block, l, WB_MIXER)->layer != l;
    /* Ranks with more memory keep more; a part that exchanges rows is computed again by all or none. */
    const bool feeds = block->n_there[l] != block->model->n_ranks;
    if (mixes) WB_TRY(enter(block, mixer_of(l), pass->T, x));
    if (!feeds) return mixes ? part_forward(block, mixer_of(l), pass, NULL, x, mid, NULL) : WB_OK;
    WB_TRY(mixes ? mixer_forward(block, l, pass, NULL, x, mid)
                 : enter(block, feed_forward_of(l), pass->T, mid));
    return part_forward(block, feed_forward_of(l), pass, NULL, mid, y, NULL);
}

static wb_status layer_backward(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x,
                                float *const *grads, wb_rows dx) {
    const wb_rows dmid = wb_activations(block->model, &block->dmid);
    WB_TRY(part_backward(block, feed_forward_of(l), pass, mid_of(block, l), dx, grads, dmid));
    return part_backward(block, mixer_of(l), pass, x, dmid, grads, dx);
}

static wb_status in_layer(wb_status status, const char *what, int32_t l) {
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%slayer %d", what, l);
}

wb_status wb_block_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state, wb_rows x,
                           wb_rows y) {
    return in_layer(layer_forward(block, l, pass, state, x, y), "", l);
}

wb_status wb_block_recompute(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, wb_rows y) {
    return in_layer(layer_recompute(block, l, pass, x, y), "recompute of ", l);
}

wb_status wb_block_backward(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, float *const *grads,
                            wb_rows dx) {
    return in_layer(layer_backward(block, l, pass, x, grads, dx), "backward of ", l);
}
