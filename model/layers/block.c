/* block.c - one layer: mixer, then feed-forward part, each on the residual stream.
 *
 * Owns: the order of steps inside a layer, forward and backward, the same for inference and training.
 * Refuses: what a part computes.
 *
 *   mid = x + mixer(norm(x))
 *   y = mid + feed_forward(norm(mid)) */
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
    wb_sizes own = *sizes;
    own.scratch_of = shared_worker(block, kind);
    wb_place_activations(arena, block->model, &kept->input, T, H);
    if (which == WB_MIXER) wb_place_activations(arena, block->model, &kept->mid, T, H);
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

void wb_block_layout(wb_block *block, const wb_sizes *sizes, wb_arena *arena) {
    wb_model *model = block->model;
    wb_kept *mixer = &block->shared[WB_MIXER], *feed_forward = &block->shared[WB_FEED_FORWARD];
    const int64_t T = sizes->tokens, H = model->config.hidden_size;
    block->runs_ahead = !sizes->backward;
    block->ready = -1;
    wb_arena_part(arena, "activations");
    wb_place_activations(arena, model, &mixer->input, T, H);
    wb_place_activations(arena, model, &mixer->mid, T, H);
    wb_place_activations(arena, model, &feed_forward->input, T, H);
    if (sizes->backward) {
        wb_place_activations(arena, model, &block->dmid, T, H);
        wb_place_activations(arena, model, &block->dnorm, T, H);
    }
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

/* A part as the one before it sees it. */
typedef struct next_part {
    int32_t norm;
    wb_rows input;
} next_part;

/* Its input is about to be written: what its latest forward had kept is gone. */
static next_part next_of(wb_block *block, int32_t l, int which) {
    const wb_layer *layer = &block->model->layers[l];
    kept_of(block, l, which)->layer = -1;
    return (next_part){which == WB_MIXER ? layer->mixer_norm : layer->feed_forward_norm,
                       wb_activations(block->model, &kept_of(block, l, which)->input)};
}

/* The input of a part from x[T,H], where no part before it left it. */
static wb_status norm_forward(wb_block *block, int32_t l, int which, int64_t T, wb_rows x) {
    const wb_model *model = block->model;
    const next_part part = next_of(block, l, which);
    return model->device->rmsnorm_forward(model->device, T, model->config.hidden_size, x,
                                          wb_model_norm(model, part.norm), part.input);
}

/* y (=) x + part(input), where `input` is there: norm(x). Then next (=) norm(y), the input of the part behind
 * it; next NULL: there is none. */
static wb_status part_forward(wb_block *block, int32_t l, int which, const wb_pass *pass,
                              const wb_state *state, wb_rows x, wb_rows y, const next_part *next) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const wb_part *part = part_of(block, l, which);
    wb_kept *kept = kept_of(block, l, which);
    const int64_t T = pass->T, H = model->config.hidden_size;
    const wb_rows input = wb_activations(model, &kept->input);
    kept->layer = -1;
    WB_TRY(part->kind->forward(worker_of(block, l, which), part->weights, pass, state, input, y));
    kept->layer = l;
    if (!next) return dev->add(dev, T * H, x, y);
    return dev->add_rmsnorm(dev, T, H, x, y, wb_model_norm(model, next->norm), next->input);
}

/* dx (=) the gradient of x, from that of y = x + part(norm(x)). */
static wb_status part_backward(wb_block *block, int32_t l, int which, const wb_pass *pass, wb_rows x,
                               wb_rows dy, float *const *grads, wb_rows dx) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const wb_layer *layer = &model->layers[l];
    const wb_part *part = part_of(block, l, which);
    wb_kept *kept = kept_of(block, l, which);
    const wb_rows input = wb_activations(model, &kept->input), dh = wb_activations(model, &block->dnorm);
    const int32_t norm = which == WB_MIXER ? layer->mixer_norm : layer->feed_forward_norm;
    const int64_t T = pass->T, H = model->config.hidden_size;
    kept->layer = -1;
    WB_TRY(part->kind->backward(worker_of(block, l, which), part->weights, pass, input, dy, grads, dh));
    WB_TRY(dev->rmsnorm_backward(dev, T, H, x, wb_model_norm(model, norm), dh, dx, grads[norm]));
    return dev->add(dev, T * H, dy, dx);
}

/* ---- the layer ------------------------------------------------------------------------------- */

/* The residual stream between the parts. */
static wb_rows mid_of(wb_block *block, int32_t l) {
    return wb_activations(block->model, &kept_of(block, l, WB_MIXER)->mid);
}

static wb_status mixer_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state,
                               wb_rows x, wb_rows mid) {
    const next_part next = next_of(block, l, WB_FEED_FORWARD);
    return part_forward(block, l, WB_MIXER, pass, state, x, mid, &next);
}

static wb_status layer_forward(wb_block *block, int32_t l, const wb_pass *pass, const wb_state *state,
                               wb_rows x, wb_rows y) {
    const wb_rows mid = mid_of(block, l);
    const bool leads_on = block->runs_ahead && l + 1 < block->model->config.n_layers;
    if (l == 0 || block->ready != l) WB_TRY(norm_forward(block, l, WB_MIXER, pass->T, x));
    block->ready = -1;
    WB_TRY(mixer_forward(block, l, pass, state, x, mid));
    wb_pass feeding = *pass;
    feeding.leaves_nothing = block->runs_ahead || !is_there(block, l);
    if (!leads_on) return part_forward(block, l, WB_FEED_FORWARD, &feeding, NULL, mid, y, NULL);
    const next_part next = next_of(block, l + 1, WB_MIXER);
    WB_TRY(part_forward(block, l, WB_FEED_FORWARD, &feeding, NULL, mid, y, &next));
    block->ready = l + 1;
    return WB_OK;
}

static wb_status layer_recompute(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x, wb_rows y) {
    const wb_rows mid = mid_of(block, l);
    const bool mixes = kept_of(block, l, WB_MIXER)->layer != l;
    /* Ranks with more memory keep more; a part that exchanges rows is computed again by all or none. */
    const bool feeds = block->n_there[l] != block->model->n_ranks;
    if (mixes) WB_TRY(norm_forward(block, l, WB_MIXER, pass->T, x));
    if (!feeds) return mixes ? part_forward(block, l, WB_MIXER, pass, NULL, x, mid, NULL) : WB_OK;
    WB_TRY(mixes ? mixer_forward(block, l, pass, NULL, x, mid)
                 : norm_forward(block, l, WB_FEED_FORWARD, pass->T, mid));
    return part_forward(block, l, WB_FEED_FORWARD, pass, NULL, mid, y, NULL);
}

static wb_status layer_backward(wb_block *block, int32_t l, const wb_pass *pass, wb_rows x,
                                float *const *grads, wb_rows dx) {
    const wb_rows dmid = wb_activations(block->model, &block->dmid);
    WB_TRY(part_backward(block, l, WB_FEED_FORWARD, pass, mid_of(block, l), dx, grads, dmid));
    return part_backward(block, l, WB_MIXER, pass, x, dmid, grads, dx);
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
