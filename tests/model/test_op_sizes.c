/* test_op_sizes.c - what inference and training announce to the device when they are opened: the largest
 * calls that their options and the model's configuration allow, on 1 to 4 ranks under random placements. A
 * size that is too small is no failure of a pass, which then allocates, and only where it needs more than
 * other ops had made: each is compared here. Argument 1 sets the seed. */
#include "placed_model.h"

enum { ROUNDS = 2 * N_VARIANTS, BLOCK_SIZE = 3 };

/* What this thread's device was told, and how often. */
static _Thread_local wb_op_sizes told;
static _Thread_local int n_told;
static wb_reserve_scratch_fn *real_reserve;

static wb_status recording_reserve(wb_device *dev, const wb_op_sizes *most) {
    told = *most;
    n_told++;
    return real_reserve(dev, most);
}

/* ---- what is to be told -------------------------------------------------------------------------- */

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Beside dense parts and shared experts: queries with their gates, and u with z of a gated delta net. */
static int64_t widest_of(const wb_config *c) {
    const wb_delta_sizes *d = &c->delta;
    const int64_t widest = larger(c->dense_width, c->shared_width);
    if (d->n_key_heads == 0) return widest;
    return larger(larger(widest, 2 * c->n_heads * c->head_dim),
                  2 * (d->n_key_heads * d->key_dim + d->n_value_heads * d->value_dim));
}

/* Whatever is opened; rows of experts without a limit in the options. */
static wb_op_sizes sizes_of(const wb_model *model, wb_dtype activations, int64_t tokens) {
    const wb_config *c = wb_model_config(model);
    const wb_placement *p = wb_model_placement(model);
    const uint32_t own = (uint32_t)wb_comm_rank(model->comm);
    const int64_t K = c->router.top_k, R = wb_comm_size(model->comm);
    const int64_t here = wb_placement_first_slot(p, own + 1) - wb_placement_first_slot(p, own);
    const bool latent = c->mla.kv_rank > 0;
    const wb_delta_sizes *d = &c->delta;
    return (wb_op_sizes){.tokens = tokens,
                         .expert_rows = R == 1 ? tokens * K : R * tokens * (here < K ? here : K),
                         .hidden = c->hidden_size,
                         .dense_width = widest_of(c),
                         .delta = {d->n_key_heads, d->n_value_heads, d->key_dim, d->value_dim},
                         .expert_width = c->expert_width,
                         .n_heads = c->n_heads,
                         .n_kv_heads = latent ? 1 : c->n_kv_heads,
                         .head_dim = latent ? c->mla.kv_rank + c->mla.rope_dim : c->head_dim,
                         .value_dim = latent ? c->mla.kv_rank : c->head_dim,
                         .router = c->router,
                         .n_sources = (int32_t)R,
                         .n_slots = (int32_t)wb_placement_topology(p)->n_slots,
                         .n_groups = (int32_t)here,
                         .vocab_size = c->vocab_size,
                         .index_heads = c->compressed.index_heads,
                         .index_dim = c->compressed.index_dim,
                         .compress_channels =
                             2 * larger(c->compressed.q_rank > 0 ? c->head_dim : 0, c->compressed.index_dim),
                         .n_streams = c->hyper.n_streams,
                         .dtype = activations};
}

/* What a query sees of so many positions. */
static void expect_keys(const wb_config *c, int64_t keys, wb_op_sizes *expected) {
    const wb_compressed_sizes *s = &c->compressed;
    expected->keys = keys;
    if (s->q_rank == 0) return;
    const int64_t heavy = keys / s->heavy_rate, sparse = keys / s->sparse_rate, window = c->window;
    expected->keys = 0;
    expected->ranked_entries = sparse;
    expected->call_entries = larger(expected->tokens / s->heavy_rate, expected->tokens / s->sparse_rate);
    expected->entry_keys =
        -larger(-window, -keys) + larger(heavy, sparse < s->index_top_k ? sparse : s->index_top_k);
}

/* Of the embedding, of a router, of gate and up of all slots here, or of what queries with gates and a gated
 * delta net are projected by: nothing else in these models is as large. */
static int64_t largest_gradient(const wb_config *c, int64_t slots) {
    const int64_t H = c->hidden_size, embedding = c->vocab_size * H, router = c->router.n_experts * H,
                  gate_up = slots * 2 * c->expert_width * H;
    const int64_t mixer = c->delta.n_key_heads > 0 ? widest_of(c) * H : 0;
    return larger(larger(embedding, router), larger(gate_up, mixer));
}

static void expect_router(const wb_router *found, const wb_router *expected) {
    EXPECT(found->type == expected->type);
    EXPECT(found->n_experts == expected->n_experts);
    EXPECT(found->top_k == expected->top_k);
    EXPECT(found->n_group == expected->n_group);
    EXPECT(found->topk_group == expected->topk_group);
    EXPECT(found->normalize == expected->normalize);
    EXPECT(found->scale == expected->scale);
}

/* By the one call since the last time. */
static void expect_told(const wb_op_sizes *expected) {
    EXPECT(n_told == 1);
    n_told = 0;
    EXPECT(told.tokens == expected->tokens);
    EXPECT(told.expert_rows == expected->expert_rows);
    EXPECT(told.hidden == expected->hidden);
    EXPECT(told.dense_width == expected->dense_width);
    EXPECT(told.expert_width == expected->expert_width);
    EXPECT(told.n_heads == expected->n_heads);
    EXPECT(told.n_kv_heads == expected->n_kv_heads);
    EXPECT(told.head_dim == expected->head_dim);
    EXPECT(told.value_dim == expected->value_dim);
    EXPECT(told.keys == expected->keys);
    EXPECT(told.entry_keys == expected->entry_keys);
    EXPECT(told.ranked_entries == expected->ranked_entries);
    EXPECT(told.call_entries == expected->call_entries);
    EXPECT(told.index_heads == expected->index_heads);
    EXPECT(told.index_dim == expected->index_dim);
    EXPECT(told.compress_channels == expected->compress_channels);
    EXPECT(told.n_streams == expected->n_streams);
    EXPECT(memcmp(&told.delta, &expected->delta, sizeof told.delta) == 0);
    expect_router(&told.router, &expected->router);
    EXPECT(told.n_sources == expected->n_sources);
    EXPECT(told.n_slots == expected->n_slots);
    EXPECT(told.n_groups == expected->n_groups);
    EXPECT(told.vocab_size == expected->vocab_size);
    EXPECT(told.sampled == expected->sampled);
    EXPECT(told.summed == expected->summed);
    EXPECT(told.dtype == expected->dtype);
    EXPECT(told.backward == expected->backward);
}

/* ---- inference and training ---------------------------------------------------------------------- */

/* A query sees what the blocks of its sequence hold: max_blocks, or those of the model's positions, the last
 * of which may have places beyond them, and no more than the pool has. */
static void open_infer(wb_model *model, wb_op_sizes expected, int64_t max_expert_rows, int32_t n_blocks,
                       int32_t max_blocks) {
    wb_infer_options options = wb_infer_options_default();
    wb_infer *infer;
    const int32_t positions = wb_model_config(model)->max_positions,
                  usual = positions / BLOCK_SIZE + (positions % BLOCK_SIZE > 0);
    const int64_t blocks = max_blocks > 0 ? max_blocks : usual < n_blocks ? usual : n_blocks;
    options.n_blocks = n_blocks;
    options.block_size = BLOCK_SIZE;
    options.max_blocks = max_blocks;
    options.max_tokens = expected.tokens;
    options.max_expert_rows = max_expert_rows;
    expect_keys(wb_model_config(model), blocks * BLOCK_SIZE, &expected);
    MUST(wb_infer_open(model, &options, &infer));
    expect_told(&expected);
    wb_infer_close(infer);
}

static void open_train(wb_model *model, wb_op_sizes expected, int64_t max_expert_rows, bool forward_only) {
    wb_train_options options = wb_train_options_default();
    wb_train *train;
    options.max_tokens = expected.tokens;
    options.max_expert_rows = max_expert_rows;
    options.forward_only = forward_only;
    expect_keys(wb_model_config(model), expected.tokens, &expected);
    expected.backward = !forward_only;
    if (!forward_only) expected.summed = largest_gradient(wb_model_config(model), expected.n_groups);
    MUST(wb_train_open(model, &options, &train));
    expect_told(&expected);
    wb_train_close(train);
}

static void open_all(rank *r) {
    wb_config config = variant_config((variant)random_below(&r->state, N_VARIANTS));
    /* Either kind of layers may be the one that makes more entries. */
    if (config.compressed.q_rank > 0 && random_below(&r->state, 2) == 0) config.compressed.heavy_rate = 2;
    const int32_t L = __builtin_popcountll(config.moe_layer_mask[0]), P = config.max_positions;
    wb_placement *placement = placement_random(L, wb_config_weighted(&config), r->of, &r->state, true);
    wb_model_options options = options_of(r, placement);
    wb_model *model;
    options.activations = random_below(&r->state, 2) == 0 ? WB_F32 : WB_BF16;
    n_told = 0;
    r->device->reserve_scratch = recording_reserve;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    wb_placement_close(placement);
    EXPECT(n_told == 0);
    wb_op_sizes expected = sizes_of(model, options.activations, 17 + random_below(&r->state, 9));
    open_infer(model, expected, 0, 12, 7);
    open_infer(model, expected, 0, 12, P);
    open_infer(model, expected, 0, 12, 0);
    open_infer(model, expected, 0, 99, 0);
    open_train(model, expected, 0, false);
    open_train(model, expected, 0, true);
    /* One rank has no more rows than choices, and needs no limit. */
    if (r->of > 1) expected.expert_rows = 29;
    open_infer(model, expected, 29, 12, 7);
    open_train(model, expected, 29, false);
    wb_model_close(model);
}

static void test_the_largest_calls_are_announced(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++)
        for (int R = 1; R <= MAX_RANKS; R++)
            on_ranks(R, base_seed + (uint64_t)(10 * i + R), open_all, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    wb_device *device;
    MUST(wb_device_open_cpu(1, &device));
    real_reserve = device->reserve_scratch;
    wb_device_close(device);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_largest_calls_are_announced)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
