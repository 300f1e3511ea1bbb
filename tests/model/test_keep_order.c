/* test_keep_order.c - which parts of a model's layers are kept for the backward: the ones with the most work
 * for each byte first, all that fit, of random models that are never made, on one rank of many. Argument 1
 * sets the seed. */
#include "layers/block.h"
#include "model_fixture.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { MAX_LAYERS = 12, MODELS = 150 };

static uint64_t base_seed;

/* A model without memory, and what each of its parts would cost and save. */
typedef struct rig {
    wb_model *model;
    wb_sizes sizes;
    wb_block block;
    wb_owner memory;
    size_t bytes[WB_N_PARTS][MAX_LAYERS];
    double gain[WB_N_PARTS][MAX_LAYERS]; /* work for each byte */
} rig;

static const wb_layer_kind *kind_of(const rig *g, int32_t l, int which) {
    const wb_layer *layer = &g->model->layers[l];
    return which == WB_MIXER ? layer->mixer.kind : layer->feed_forward.kind;
}

/* What the forward leaves: all that the kind places but scratch, the normalised input, of a mixer the
 * stream behind it, and what hyper-connections keep. */
static void measure_part(rig *g, int32_t l, int which) {
    const wb_layer_kind *kind = kind_of(g, l, which);
    const int64_t T = g->sizes.tokens, H = g->model->config.hidden_size, W = wb_model_stream_width(g->model);
    wb_hyper_kept hyper;
    wb_arena arena = {.device = g->model->device};
    wb_buffer input, mid;
    wb_sizes own = g->sizes;
    void *worker = take(1, kind->worker_size), *other = take(1, kind->worker_size);
    own.scratch_of = other;
    wb_place_activations(&arena, g->model, &input, T, H);
    if (which == WB_MIXER) wb_place_activations(&arena, g->model, &mid, T, W);
    wb_hyper_layout(&hyper, g->model, T, &arena);
    kind->layout(worker, g->model, &own, &arena);
    MUST(arena.status);
    g->bytes[which][l] = arena.device_bytes;
    g->gain[which][l] = kind->work(&g->model->config, &g->sizes) / (double)arena.device_bytes;
    free(worker);
    free(other);
}

static wb_config random_config(uint64_t *state) {
    wb_config config = variant_config((variant)random_below(state, N_VARIANTS));
    set_depth(&config, 1 + random_below(state, MAX_LAYERS));
    config.expert_width = 8 << random_below(state, 6);
    config.dense_width = 8 << random_below(state, 6);
    config.max_positions = 1 << 14;
    config.moe_layer_mask[0] = random_bits(state) & (((uint64_t)1 << config.n_layers) - 1);
    /* Only these two have dense layers anywhere. */
    if (config.family != WB_FAMILY_QWEN3_MOE && config.family != WB_FAMILY_QWEN2_MOE)
        config.moe_layer_mask[0] = ((uint64_t)1 << config.n_layers) - 1;
    config.moe_layer_mask[0] |= (uint64_t)1 << random_below(state, config.n_layers);
    return config;
}

static void rig_open(rig *g, uint64_t *state) {
    const wb_config config = random_config(state);
    wb_model_options options = wb_model_options_default();
    const int32_t R = 1 + random_below(state, 9);
    *g = (rig){0};
    options.activations = random_below(state, 2) == 0 ? WB_F32 : WB_BF16;
    MUST(wb_model_blank(&config, &options, R, random_below(state, R), &g->model));
    MUST(wb_block_sizes(g->model, 1 << random_below(state, 14), 0, true, &g->sizes));
    MUST(wb_block_open(g->model, &g->memory, &g->block));
    for (int32_t l = 0; l < config.n_layers; l++)
        for (int which = 0; which < WB_N_PARTS; which++) measure_part(g, l, which);
}

static void rig_close(rig *g) {
    wb_owner_close(&g->memory);
    wb_model_close(g->model);
}

static bool is_kept(const rig *g, int32_t l, int which) {
    return g->block.own[which][l].worker != NULL;
}

/* Bytes of all parts that are kept, and of those whose gain is below `gain`. */
static size_t bytes_kept(const rig *g, double gain) {
    size_t bytes = 0;
    for (int which = 0; which < WB_N_PARTS; which++)
        for (int32_t l = 0; l < g->model->config.n_layers; l++)
            if (is_kept(g, l, which) && g->gain[which][l] < gain) bytes += g->bytes[which][l];
    return bytes;
}

static int32_t n_kept(const rig *g, int which) {
    int32_t n = 0;
    for (int32_t l = 0; l < g->model->config.n_layers; l++) n += is_kept(g, l, which);
    return n;
}

/* A part that is not kept, other than the one that is there anyway, did not fit into what those with more
 * gain had left. Of one kind a later layer is kept before an earlier one. */
static void expect_best(const rig *g, size_t budget) {
    const int32_t n_layers = g->model->config.n_layers;
    assert_true(bytes_kept(g, INFINITY) <= budget);
    for (int which = 0; which < WB_N_PARTS; which++) {
        assert_true(n_kept(g, which) < n_layers);
        if (n_kept(g, which) == n_layers - 1) continue;
        for (int32_t l = 0; l < n_layers; l++) {
            if (is_kept(g, l, which)) continue;
            const size_t before = bytes_kept(g, INFINITY) - bytes_kept(g, g->gain[which][l]);
            assert_true(g->bytes[which][l] > budget - before);
            for (int32_t earlier = 0; earlier < l; earlier++)
                assert_false(is_kept(g, earlier, which) &&
                             kind_of(g, earlier, which) == kind_of(g, l, which));
        }
    }
}

/* Budgets of nothing, of any size and without a limit. */
static void test_the_most_work_for_a_byte_is_kept_first(void **unused) {
    (void)unused;
    uint64_t state = base_seed;
    for (int i = 0; i < MODELS; i++) {
        rig g;
        rig_open(&g, &state);
        size_t all = 0;
        for (int which = 0; which < WB_N_PARTS; which++)
            for (int32_t l = 0; l < g.model->config.n_layers; l++) all += g.bytes[which][l];
        const size_t budget = i % 8 == 0   ? UINT64_MAX
                              : i % 8 == 1 ? 0
                                           : (size_t)(random_bits(&state) % (all + 1));
        size_t left = 0;
        MUST(wb_block_keep(&g.block, &g.memory, &g.sizes, budget, &left));
        assert_true(left == budget - bytes_kept(&g, INFINITY));
        expect_best(&g, budget);
        for (int which = 0; which < WB_N_PARTS && budget >= all; which++)
            assert_int_equal(n_kept(&g, which), g.model->config.n_layers - 1);
        rig_close(&g);
    }
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_most_work_for_a_byte_is_kept_first)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
