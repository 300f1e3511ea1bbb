/* infer_open.c - inference is opened, measured and closed: its options, its pool of what layers keep of
 * sequences, its workspace. Refuses: what a step does with them (infer.c). */
#include "infer_state.h"
#include "needed_ops.h"
#include "op_sizes.h"
#include "wb_options.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- open and close -------------------------------------------------------------------------- */

WB_OPTIONS_END(wb_infer_options, reserved);
static const wb_infer_options default_options = {.size = sizeof default_options,
                                                 .block_size = 16,
                                                 .max_tokens = 4096,
                                                 .max_sequences = 256,
                                                 .max_logits = 256};

void wb_infer_options_init(wb_infer_options *options_out, size_t size) {
    wb_options_init(options_out, size, &default_options, sizeof default_options);
}

static wb_status read_options(const wb_model *model, const wb_infer_options *options,
                              wb_infer_options *own_out) {
    wb_infer_options own = default_options;
    WB_TRY(wb_options_read(&own, sizeof own, options, "inference options"));
    WB_TRY(wb_options_check_reserved(own.reserved, sizeof own.reserved, "inference options"));
    if (own.n_blocks < 1 || own.block_size < 1)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "KV pool: expected at least 1 block of 1 token, found %d blocks of %d tokens",
                       own.n_blocks, own.block_size);
    if (own.max_sequences < 1 || own.max_blocks < 0 || own.max_logits < 0)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "inference options: expected at least 1 sequence of 0 blocks and 0 logits, found %d, %d "
            "and %" PRId64,
            own.max_sequences, own.max_blocks, own.max_logits);
    if (own.n_states < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "inference options: n_states: expected at least 0, found %d",
                       own.n_states);
    if (own.n_states == 0) own.n_states = own.max_sequences;
    if (own.max_blocks == 0) {
        const int32_t of_positions = (model->config.max_positions - 1) / own.block_size + 1;
        own.max_blocks = of_positions < own.n_blocks ? of_positions : own.n_blocks;
    }
    *own_out = own;
    return WB_OK;
}

/* What layer l keeps of a sequence. */
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
    if (shape.sequence_bytes < 0 || shape.sequence_bytes > INT32_MAX)
        return wb_fail(WB_CAPACITY, "expected state of 0..%d bytes a sequence, found %" PRId64, INT32_MAX,
                       shape.sequence_bytes);
    *shape_out = shape;
    return WB_OK;
}

/* The periods of a layer's tables are among those that a pass tells rows of. */
static wb_status add_periods(wb_infer *infer, const wb_state_shape *shape) {
    for (int32_t i = 0; i < shape->n_tables; i++) {
        int32_t at = 0;
        if (shape->period[i] == 0) continue;
        while (at < WB_MAX_PERIODS && infer->periods[at] != 0 && infer->periods[at] != shape->period[i]) at++;
        if (at == WB_MAX_PERIODS)
            return wb_fail(WB_CAPACITY, "expected state with %d different periods at most, found more",
                           WB_MAX_PERIODS);
        infer->periods[at] = shape->period[i];
    }
    return WB_OK;
}

static wb_status open_pools(wb_infer *infer) {
    const int32_t n_layers = infer->model->config.n_layers;
    const int64_t alignment = WB_ARENA_ALIGNMENT;
    int64_t *bytes = &infer->sequences.bytes;
    WB_TRY(WB_OWN(&infer->memory.host, infer->pools, (size_t)n_layers, "KV pools"));
    for (int32_t l = 0; l < n_layers; l++) {
        wb_layer_pool *pool = &infer->pools[l];
        wb_status status = state_shape_of(infer->model, l, &pool->shape);
        if (status == WB_OK) status = add_periods(infer, &pool->shape);
        if (status != WB_OK) return wb_fail_context(status, "state of layer %d", l);
        pool->sequence_offset = *bytes;
        *bytes += (pool->shape.sequence_bytes + alignment - 1) / alignment * alignment;
    }
    return WB_OK;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void layout_pools(wb_infer *infer, wb_arena *arena) {
    const wb_infer_options *o = &infer->options;
    for (int32_t l = 0; l < infer->model->config.n_layers; l++) {
        wb_layer_pool *pool = &infer->pools[l];
        for (int32_t i = 0; i < pool->shape.n_tables; i++)
            wb_place(arena, &pool->tables[i],
                     o->n_blocks * wb_period_block_rows(o->block_size, pool->shape.period[i]),
                     pool->shape.width[i], wb_dtype_size(wb_state_dtype(infer->model)));
    }
}

static void layout_sequences(wb_infer *infer, wb_arena *arena) {
    wb_sequence_pool *pool = &infer->sequences;
    WB_PLACE_HOST(arena, pool->seq_marks, infer->options.max_sequences);
    if (pool->bytes == 0) return;
    wb_arena_part(arena, "sequence states");
    wb_place(arena, &pool->states, infer->options.n_states, pool->bytes, 1);
    WB_PLACE_HOST(arena, pool->marks, infer->options.n_states);
}

static void layout(void *user, wb_arena *arena) {
    wb_infer *infer = user;
    const wb_model *model = infer->model;
    const int64_t T = infer->sizes.tokens, n = infer->options.max_logits, H = model->config.hidden_size;
    const int64_t W = wb_model_stream_width(model);
    wb_arena_part(arena, "upload ring");
    wb_infer_layout_batch(infer, arena);
    wb_arena_part(arena, "activations");
    wb_place_activations(arena, model, &infer->x, T, W);
    wb_place_activations(arena, model, &infer->y, T, W);
    wb_place_activations(arena, model, &infer->last, n, H);
    wb_head_rows_layout(&infer->head_rows, model, n, false, arena);
    wb_place_activations(arena, model, &infer->normed, n, H);
    if (model->decoder) {
        wb_place_activations(arena, model, &infer->hidden, T, H);
        wb_place(arena, &infer->ids, T, (int64_t)wb_route_row_bytes(&model->route_model), 1);
    }
    wb_arena_part(arena, "logits");
    wb_place(arena, &infer->logits, n, model->config.vocab_size, sizeof(float));
    wb_block_layout(&infer->block, &infer->sizes, arena);
    wb_arena_part(arena, "KV pool");
    layout_pools(infer, arena);
    layout_sequences(infer, arena);
    if (infer->mtp) layout(infer->mtp, arena);
}

static wb_status prepare_open(wb_model *model, const wb_infer_options *o, wb_infer *infer);

/* Their workspace lies in that of the decoder. */
static wb_status prepare_mtp(wb_infer *infer) {
    WB_TRY(WB_NEW(infer->mtp, 1, "inference of MTP layers"));
    infer->mtp->decoder = infer;
    const wb_status status = prepare_open(infer->model->mtp, &infer->options, infer->mtp);
    return status == WB_OK ? status : wb_fail_context(status, "MTP layers");
}

/* All but the memory, with options that were read. */
static wb_status prepare_open(wb_model *model, const wb_infer_options *o, wb_infer *infer) {
    infer->model = model;
    infer->options = *o;
    infer->memory.device = model->device;
    WB_TRY(wb_block_sizes(infer->model, o->max_tokens, o->max_expert_rows, false, &infer->sizes));
    WB_TRY(wb_block_open(infer->model, &infer->memory.host, &infer->block));
    WB_TRY(wb_infer_open_way(infer));
    WB_TRY(open_pools(infer));
    return o->drafts && model->mtp ? prepare_mtp(infer) : WB_OK;
}

/* Ops count a sequence's keys and entries by its blocks, which are whole: the last one may have places beyond
 * the model's positions. */
static wb_op_sizes largest_ops(const wb_infer *infer) {
    const int64_t keys = (int64_t)infer->options.max_blocks * infer->options.block_size;
    return wb_largest_ops(infer->model, &infer->sizes, keys, 0);
}

static wb_status reserve_ops(wb_infer *infer) {
    const wb_op_sizes most = largest_ops(infer);
    return infer->model->device->reserve_scratch(infer->model->device, &most);
}

wb_status wb_infer_open(wb_model *model, const wb_infer_options *options, wb_infer **infer_out) {
    WB_TRY(wb_infer_check_device(model->device));
    wb_infer_options own;
    wb_infer *infer = NULL;
    WB_TRY(read_options(model, options, &own));
    WB_TRY(WB_NEW(infer, 1, "inference"));
    wb_status status = prepare_open(model, &own, infer);
    if (status == WB_OK) status = wb_arena_open(&infer->memory, layout, infer);
    if (status == WB_OK) status = reserve_ops(infer);
    if (status == WB_OK && infer->mtp) status = wb_infer_mtp_zero(infer->mtp);
    if (status != WB_OK) {
        wb_infer_close(infer);
        return status;
    }
    *infer_out = infer;
    return WB_OK;
}

wb_status wb_infer_measure_over(wb_model *model, const wb_infer_options *options, wb_memory *memory_out) {
    wb_infer infer = {0};
    wb_infer_options own;
    WB_TRY(read_options(model, options, &own));
    wb_status status = prepare_open(model, &own, &infer);
    if (status == WB_OK) status = wb_arena_measure(NULL, layout, &infer, memory_out);
    if (status == WB_OK) memory_out->ops = largest_ops(&infer);
    wb_infer_mtp_close(infer.mtp);
    wb_workspace_close(&infer.memory);
    return status;
}

wb_status wb_infer_measure(const wb_config *config, const wb_model_options *model,
                           const wb_infer_options *options, int32_t n_ranks, int32_t rank,
                           wb_memory *memory_out) {
    wb_model *blank = NULL;
    WB_TRY(wb_model_blank(config, model, n_ranks, rank, &blank));
    const wb_status status = wb_infer_measure_over(blank, options, memory_out);
    wb_model_close(blank);
    return status;
}

void wb_infer_close(wb_infer *infer) {
    if (!infer) return;
    wb_infer_mtp_close(infer->mtp);
    wb_infer_graphs_close(&infer->graphs, infer->model->device);
    wb_workspace_close(&infer->memory);
    free(infer);
}

int64_t wb_infer_sequence_bytes(const wb_infer *infer) {
    return infer->sequences.bytes;
}
