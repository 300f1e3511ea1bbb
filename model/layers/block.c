/* block.c - one layer: mixer, then feed-forward part, each on the residual stream.
 *
 * Owns: the order of steps inside a layer, forward and backward, the same for inference and training.
 * Refuses: what a part computes.
 *
 *   mid = x + mixer(norm(x))
 *   y = mid + feed_forward(norm(mid))
 *
 * or, with hyper-connections, what they read in place of norm's argument and write in place of the sum. */
#include "layers/block.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- workers --------------------------------------------------------------------------------- */

static void *shared_worker(const wb_block *block, const wb_layer_kind *kind) {
    for (int32_t i = 0; i < block->n_kinds; i++)
        if (block->kinds[i] == kind) return block->workers[i];
    return NULL;
}

static const wb_part *part_of(const wb_block *block, int32_t l, int which) {
    const wb_layer *layer = &block->model->layers[l];
    return which == WB_MIXER ? &layer->mixer : &layer->feed_forward;
}

static wb_kept *kept_of(wb_block *block, int32_t l, int which) {
    wb_kept *own = &block->own[which][l];
    return own->worker ? own : &block->shared[which];
}

static void *worker_of(wb_block *block, int32_t l, int which) {
    void *own = block->own[which][l].worker;
    return own ? own : shared_worker(block, part_of(block, l, which)->kind);
}

static wb_status open_worker(wb_block *block, wb_owner *owner, const wb_layer_kind *kind) {
    void *worker = NULL;
    if (shared_worker(block, kind)) return WB_OK;
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
    for (int i = 0; i < WB_N_PARTS; i++)
        WB_TRY(WB_OWN(owner, block->own[i], (size_t)model->config.n_layers, "layers kept"));
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

/* What a part keeps, in `kept` and its `worker`. */
static void layout_kept(wb_block *block, int32_t l, int which, const wb_sizes *sizes, wb_kept *kept,
                        void *worker, wb_arena *arena) {
    const wb_layer_kind *kind = part_of(block, l, which)->kind;
    const int64_t T = sizes->tokens, H = block->model->config.hidden_size;
    const int64_t W = wb_model_stream_width(block->model);
    wb_sizes own = *sizes;
    own.scratch_of = shared_worker(block, kind);
    wb_place_activations(arena, block->model, &kept->input, T, H);
    if (which == WB_MIXER) wb_place_activations(arena, block->model, &kept->mid, T, W);
    wb_hyper_layout(&kept->hyper, block->model, T, arena);
    kind->layout(worker, block->model, &own, arena);
}

/* Device bytes of that; SIZE_MAX after an overflow. The shared worker stands in for the layer's own. */
static size_t bytes_to_keep(wb_block *block, int32_t l, int which, const wb_sizes *sizes) {
    wb_arena measured = {.device = block->model->device};
    wb_kept kept;
    layout_kept(block, l, which, sizes, &kept, shared_worker(block, part_of(block, l, which)->kind),
                &measured);
    return measured.status == WB_OK ? measured.device_bytes : SIZE_MAX;
}

/* A part of a layer that may be kept. */
typedef struct candidate {
    int32_t layer;
    int which;
    size_t bytes;
    double work_per_byte;
} candidate;

/* The most work for each byte first; of the same, later layers first. */
static int by_work_per_byte(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->work_per_byte != y->work_per_byte) return x->work_per_byte > y->work_per_byte ? -1 : 1;
    if (x->layer != y->layer) return x->layer > y->layer ? -1 : 1;
    return x->which - y->which;
}

/* Of each layer both parts, in the order in which they are kept. */
static void list_candidates(wb_block *block, const wb_sizes *sizes, candidate *list) {
    const wb_config *config = &block->model->config;
    size_t n = 0;
    for (int32_t l = 0; l < config->n_layers; l++)
        for (int which = 0; which < WB_N_PARTS; which++) {
            const size_t bytes = bytes_to_keep(block, l, which, sizes);
            const double work = part_of(block, l, which)->kind->work(config, sizes);
            list[n++] = (candidate){l, which, bytes, work / (double)bytes};
        }
    qsort(list, n, sizeof *list, by_work_per_byte);
}

/* The last mixer without a worker of its own, and the last such feed-forward part, are the latest in the
 * shared ones and cost nothing, so that one of each is never kept. */
static wb_status keep_first(wb_block *block, wb_owner *owner, const candidate *list, size_t bytes,
                            size_t *left_out) {
    const int32_t n_layers = block->model->config.n_layers;
    int32_t n_left[WB_N_PARTS] = {n_layers, n_layers};
    for (const candidate *c = list; c < list + WB_N_PARTS * n_layers; c++) {
        if (c->bytes > bytes || n_left[c->which] == 1) continue;
        bytes -= c->bytes;
        n_left[c->which]--;
        WB_TRY(WB_OWN_ALLOC(owner, block->own[c->which][c->layer].worker, 1,
                            part_of(block, c->layer, c->which)->kind->worker_size, "layer kept"));
    }
    *left_out = bytes;
    return WB_OK;
}

wb_status wb_block_keep(wb_block *block, wb_owner *owner, const wb_sizes *sizes, size_t bytes,
                        size_t *left_out) {
    candidate *list;
    WB_TRY(WB_OWN(owner, block->n_there, (size_t)block->model->config.n_layers, "layers kept"));
    WB_TRY(WB_NEW(list, WB_N_PARTS * (size_t)block->model->config.n_layers, "layers to keep"));
    list_candidates(block, sizes, list);
    const wb_status status = keep_first(block, owner, list, bytes, left_out);
    free(list);
    return status;
}

/* Whether what the forward of a layer's feed-forward part left is still there when all layers are through: in
 * a worker of its own, or in the shared one if no later layer had that. */
static bool is_there(const wb_block *block, int32_t l) {
    const wb_kept *own = block->own[WB_FEED_FORWARD];
    if (own[l].worker) return true;
    while (++l < block->model->config.n_layers)
        if (!own[l].worker) return false;
    return true;
}

wb_status wb_block_agree(wb_block *block) {
    const wb_model *model = block->model;
    if (block->agreed) return WB_OK;
    for (int32_t l = 0; l < model->config.n_layers; l++) block->n_there[l] = is_there(block, l);
    WB_TRY(wb_comm_all_reduce_f64(model->comm, block->n_there, (size_t)model->config.n_layers));
    block->agreed = true;
    return WB_OK;
}

static void layout_gradients(wb_block *block, int64_t T, wb_arena *arena) {
    const wb_model *model = block->model;
    const wb_hyper_sizes *hyper = &model->config.hyper;
    const int64_t H = model->config.hidden_size;
    wb_place_activations(arena, model, &block->dmid, T, wb_model_stream_width(model));
    wb_place_activations(arena, model, &block->dnorm, T, H);
    if (!wb_model_is_hyper(model)) return;
    wb_place_activations(arena, model, &block->dout, T, H);
    wb_place(arena, &block->dweights, T, wb_hyper_width(hyper->n_streams, hyper->iterations), sizeof(float));
}

void wb_block_layout(wb_block *block, const wb_sizes *sizes, wb_arena *arena) {
    wb_model *model = block->model;
    wb_kept *mixer = &block->shared[WB_MIXER], *feed_forward = &block->shared[WB_FEED_FORWARD];
    const int64_t T = sizes->tokens, H = model->config.hidden_size, W = wb_model_stream_width(model);
    block->runs_ahead = !sizes->backward;
    block->ready = -1;
    wb_arena_part(arena, "activations");
    wb_place_activations(arena, model, &mixer->input, T, H);
    wb_place_activations(arena, model, &mixer->mid, T, W);
    wb_place_activations(arena, model, &feed_forward->input, T, H);
    wb_hyper_layout(&mixer->hyper, model, T, arena);
    wb_hyper_layout(&feed_forward->hyper, model, T, arena);
    if (sizes->backward) layout_gradients(block, T, arena);
    for (int32_t i = 0; i < block->n_kinds; i++) {
        wb_arena_part(arena, "layer workspace");
        block->kinds[i]->layout(block->workers[i], model, sizes, arena);
    }
    wb_arena_part(arena, "activations kept");
    for (int32_t l = 0; l < model->config.n_layers; l++)
        for (int which = 0; which < WB_N_PARTS; which++) {
            wb_kept *own = &block->own[which][l];
            if (own->worker) layout_kept(block, l, which, sizes, own, own->worker, arena);
        }
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
    const wb_part *part = part_of(block, at.l, at.which);
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
    const wb_part *part = part_of(block, at.l, at.which);
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
    feeding.leaves_nothing = block->runs_ahead || !is_there(block, l);
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
