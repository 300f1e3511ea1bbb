/* block_memory.c - what a model's layers have in memory: workers, which of their parts keep what the forward
 * leaves, and where all of it lies. Refuses: the steps of a layer (block.c). */
#include "layers/block.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- workers --------------------------------------------------------------------------------- */

void *wb_block_shared_worker(const wb_block *block, const wb_layer_kind *kind) {
    for (int32_t i = 0; i < block->n_kinds; i++)
        if (block->kinds[i] == kind) return block->workers[i];
    return NULL;
}

static wb_status open_worker(wb_block *block, wb_owner *owner, const wb_layer_kind *kind) {
    void *worker = NULL;
    if (wb_block_shared_worker(block, kind)) return WB_OK;
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

/* ---- sizes and what is kept ------------------------------------------------------------------- */

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
    const wb_layer_kind *kind = wb_block_part(block, l, which)->kind;
    const int64_t T = sizes->tokens, H = block->model->config.hidden_size;
    const int64_t W = wb_model_stream_width(block->model);
    wb_sizes own = *sizes;
    own.scratch_of = wb_block_shared_worker(block, kind);
    wb_place_activations(arena, block->model, &kept->input, T, H);
    if (which == WB_MIXER) wb_place_activations(arena, block->model, &kept->mid, T, W);
    wb_hyper_layout(&kept->hyper, block->model, T, arena);
    kind->layout(worker, block->model, &own, arena);
}

/* Device bytes of that; SIZE_MAX after an overflow. The shared worker stands in for the layer's own. */
static size_t bytes_to_keep(wb_block *block, int32_t l, int which, const wb_sizes *sizes) {
    wb_arena measured = {.device = block->model->device};
    wb_kept kept;
    layout_kept(block, l, which, sizes, &kept,
                wb_block_shared_worker(block, wb_block_part(block, l, which)->kind), &measured);
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
            const double work = wb_block_part(block, l, which)->kind->work(config, sizes);
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
                            wb_block_part(block, c->layer, c->which)->kind->worker_size, "layer kept"));
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

bool wb_block_is_there(const wb_block *block, int32_t l) {
    const wb_kept *own = block->own[WB_FEED_FORWARD];
    if (own[l].worker) return true;
    while (++l < block->model->config.n_layers)
        if (!own[l].worker) return false;
    return true;
}

wb_status wb_block_agree(wb_block *block) {
    const wb_model *model = block->model;
    if (block->agreed) return WB_OK;
    for (int32_t l = 0; l < model->config.n_layers; l++) block->n_there[l] = wb_block_is_there(block, l);
    WB_TRY(wb_comm_all_reduce_f64(model->comm, block->n_there, (size_t)model->config.n_layers));
    block->agreed = true;
    return WB_OK;
}

/* ---- layout ---------------------------------------------------------------------------------- */

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
