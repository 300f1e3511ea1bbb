/* open_sizes.c - with which sizes a run opens its models, its engine and its trainers: what training.c opens
 * and memory_plan.c measures. Refuses: opening. */
#include "open_sizes.h"

#include <inttypes.h>

static wb_model_options sizes_model(wb_device *device, wb_comm *comm, wb_dtype dtype, wb_dtype activations,
                                    const wb_placement *placement) {
    wb_model_options model = wb_model_options_default();
    model.device = device;
    model.comm = comm;
    model.dtype = dtype;
    model.activations = activations;
    model.placement = placement;
    return model;
}

wb_model_options sizes_policy(const options *o, wb_device *device, wb_comm *comm,
                              const wb_placement *placement) {
    return sizes_model(device, comm, o->dtype, o->dtype, placement);
}

/* Activations are bf16 where training's and the weights are: then all has the bits of training. */
wb_model_options sizes_rollout(const options *o, wb_device *device, wb_comm *comm,
                               const wb_placement *placement) {
    wb_dtype dtype = o->dtype;
    if (o->rollout_dtype != ROLLOUT_SAME) dtype = o->rollout_dtype == ROLLOUT_F32 ? WB_F32 : WB_BF16;
    const bool rounds = o->dtype == WB_BF16 && dtype == WB_BF16;
    wb_model_options model = sizes_model(device, comm, dtype, rounds ? WB_BF16 : WB_F32, placement);
    model.inference_only = true;
    return model;
}

wb_model_options sizes_rounded(wb_device *device, wb_comm *comm, const wb_placement *placement) {
    return sizes_model(device, comm, WB_F32, WB_F32, placement);
}

wb_engine_options sizes_engine(const options *o) {
    wb_engine_options engine = wb_engine_options_default();
    engine.n_blocks = (int32_t)o->kv_blocks;
    engine.block_size = (int32_t)o->block_size;
    engine.max_batch_tokens = (int32_t)o->max_batch_tokens;
    engine.max_running = (int32_t)o->max_running;
    engine.max_drafts = (int32_t)o->max_drafts;
    engine.indexer = o->replay_indexer;
    /* A group's samples share their prompt. */
    engine.prefix_cache = true;
    return engine;
}

int64_t sizes_max_kept(const options *o, const wb_config *config) {
    const wb_sample_params params = {(float)o->temperature, (int32_t)o->top_k, (float)o->top_p, 0};
    return wb_sample_max_kept(&params, config->vocab_size);
}

wb_train_options sizes_train(const options *o, const wb_config *config, bool forward_only) {
    wb_train_options train = wb_train_options_default();
    train.forward_only = forward_only;
    train.max_tokens = o->micro_batch_tokens;
    train.keep_bytes = (uint64_t)(o->keep_memory * GIB);
    train.max_kept_ids = train.max_tokens * sizes_max_kept(o, config);
    return train;
}

size_t sizes_lists(const options *o, const wb_config *config) {
    const size_t per_list = 2 * (size_t)config->compressed.index_top_k * sizeof(int32_t) + 1;
    if (!o->replay_indexer) return 0;
    return (size_t)o->micro_batch_tokens * (size_t)wb_config_n_indexers(config) * per_list;
}

size_t sizes_listed(const wb_config *config, size_t length) {
    const size_t k = (size_t)config->compressed.index_top_k;
    const size_t n_whole = (size_t)config->compressed.sparse_rate * (k + 1) - 1;
    return length > n_whole ? (length - n_whole) * k * sizeof(uint32_t) : 0;
}

size_t sizes_sample_lists(const options *o, const wb_config *config, size_t length) {
    const size_t S = (size_t)wb_config_n_indexers(config);
    if (!o->replay_indexer || S == 0) return 0;
    return S * (length * (sizeof(uint32_t) + sizeof(uint64_t)) + sizes_listed(config, length));
}

static int64_t min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The last token is never fed. */
int64_t sizes_longest_sample(const options *o, int32_t max_positions) {
    return min(min(o->kv_blocks * o->block_size, o->micro_batch_tokens) + 1, max_positions);
}

wb_status sizes_max_prompt(const options *o, int32_t max_positions, int64_t *n_out) {
    const int64_t n = sizes_longest_sample(o, max_positions) - o->max_tokens;
    if (n < 1)
        return wb_fail(WB_CAPACITY,
                       "--max-tokens %" PRId64 ": expected less than the model's %" PRId32
                       " positions, the %" PRId64
                       " tokens that --kv-blocks of --block-size hold and the %" PRId64
                       " of --micro-batch-tokens and the last, which is not fed",
                       o->max_tokens, max_positions, o->kv_blocks * o->block_size, o->micro_batch_tokens);
    *n_out = n;
    return WB_OK;
}
