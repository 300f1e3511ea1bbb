/* test_set_placement.c - another placement between two steps: the registry finds every slot anew, weights are
 * written where they then belong, rows go there, gradients lie by slot; a placement that does not fit, or
 * that ranks do not agree on, is refused by name and changes nothing. Argument 1 sets the seed. */
#include "placed_model.h"
#include "support/alloc_fail.h"

enum { ROUNDS = 8, MAX_T = 24, MAX_ROW_BYTES = 64 };

/* ---- another placement --------------------------------------------------------------------------- */

static void bring_weights(const rank *r, wb_model *model, const wb_model *whole) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor here = wb_model_tensor(model, i), from = wb_model_tensor(whole, i);
        const size_t bytes = (size_t)here.n * wb_dtype_size(here.dtype);
        if (here.data) MUST(r->device->to_device(r->device, here.data, from.data, bytes));
        MUST(wb_model_fill_replicas(model, i));
    }
}

/* What a pass gave. */
typedef struct native_pass {
    uint8_t ids[MAX_T * MAX_ROW_BYTES], used[MAX_T * MAX_ROW_BYTES];
    float logprobs[MAX_T];
} native_pass;

static wb_train *open_forwards(wb_model *model) {
    wb_train_options options = wb_train_options_default();
    wb_train *train;
    options.max_tokens = MAX_T;
    options.forward_only = true;
    EXPECT(wb_route_row_bytes(wb_model_routes(model)) <= MAX_ROW_BYTES);
    MUST(wb_train_open(model, &options, &train));
    return train;
}

static void run_native(wb_train *train, const wb_train_batch *batch, native_pass *out) {
    memset(out, POISON, sizeof *out);
    const wb_routing routing = {.ids = out->ids, .used = out->used};
    MUST(wb_train_forward(train, batch, &routing, NULL, out->logprobs));
}

/* Tokens of this rank's own, who choose their experts: rows go to slots that hold these, wherever they are
 * now, and the outcome is that of the whole model. */
static void expect_same_forward(const rank *r, const wb_config *config, wb_train *train, wb_train *whole,
                                size_t row_bytes) {
    uint64_t state = r->state + (uint64_t)r->number;
    const int32_t T = random_below(&state, MAX_T + 1), start[] = {0, random_below(&state, T + 1), T};
    int32_t tokens[MAX_T], targets[MAX_T];
    for (int32_t t = 0; t < T; t++) {
        tokens[t] = random_below(&state, config->vocab_size);
        targets[t] = random_below(&state, config->vocab_size);
    }
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = 2, .seq_start = start};
    native_pass found, expected;
    run_native(train, &batch, &found);
    run_native(whole, &batch, &expected);
    EXPECT(memcmp(found.ids, expected.ids, (size_t)T * row_bytes) == 0);
    EXPECT(memcmp(found.used, expected.ids, (size_t)T * row_bytes) == 0);
    EXPECT(memcmp(expected.used, expected.ids, (size_t)T * row_bytes) == 0);
    EXPECT(memcmp(found.logprobs, expected.logprobs, (size_t)T * sizeof(float)) == 0);
    EXPECT(all_finite(T, expected.logprobs));
}

static void change_and_bring(rank *r) {
    const wb_config config = variant_config((variant)random_below(&r->state, N_VARIANTS));
    const int32_t L = __builtin_popcountll(config.moe_layer_mask[0]), E = wb_config_weighted(&config);
    wb_placement *placement = placement_random(L, E, r->of, &r->state, true);
    wb_model_options options = options_of(r, placement), alone = whole_options(r);
    wb_model *model, *whole;
    options.dispatch = random_below(&r->state, 2) == 0 ? WB_DISPATCH_STATIC : WB_DISPATCH_DYNAMIC;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    MUST(wb_model_create(&config, 7, 0.25F, &alone, &whole));
    wb_placement_close(placement);
    wb_train *train = open_forwards(model), *whole_train = open_forwards(whole);
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(model));
    const wb_placement *own = wb_model_placement(model);
    for (uint64_t epoch = 2; epoch < 5; epoch++) {
        wb_placement *next = placement_next(model, &r->state, true);
        const long allocated = alloc_count_here();
        MUST(wb_model_set_placement(model, next));
        EXPECT(alloc_count_here() == allocated); /* there is no way back: no memory may be wanting */
        EXPECT(wb_model_placement(model) == own);
        EXPECT(wb_placement_hash(own) == wb_placement_hash(next));
        EXPECT(wb_placement_layer(own, (uint32_t)L - 1).epoch == epoch);
        bring_weights(r, model, whole);
        expect_weights(model, whole);
        expect_same_forward(r, &config, train, whole_train, row_bytes);
        /* Again: nothing is later, nothing changes. */
        MUST(wb_model_set_placement(model, next));
        expect_weights(model, whole);
        wb_placement_close(next);
    }
    wb_train_close(whole_train);
    wb_train_close(train);
    wb_model_close(whole);
    wb_model_close(model);
}

static void test_weights_follow_a_changed_placement(void **unused) {
    (void)unused;
    for (int i = 0; i < 2 * ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + (uint64_t)i, change_and_bring, NULL, NULL);
}

/* One layer at a later epoch: the others stay as they are. */
static void change_one_layer(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3_TIED);
    const wb_model_options options = options_of(r, NULL);
    wb_model *model;
    wb_placement *next, *before;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    MUST(wb_placement_clone(wb_model_placement(model), &before));
    MUST(wb_placement_clone(before, &next));
    const uint32_t S = wb_placement_topology(next)->n_slots;
    int32_t *experts = take(S, sizeof(int32_t));
    deal_experts(&r->state, next, true, experts);
    MUST(wb_placement_set_layer(next, 1, experts, NULL, 5));
    MUST(wb_model_set_placement(model, next));
    for (uint32_t l = 0; l < 3; l++) {
        const wb_layer_map now = wb_placement_layer(wb_model_placement(model), l);
        const wb_layer_map wanted = wb_placement_layer(l == 1 ? next : before, l);
        EXPECT(now.epoch == (l == 1 ? 5 : 0));
        EXPECT(memcmp(now.expert_of_slot, wanted.expert_of_slot, S * sizeof *experts) == 0);
    }
    free(experts);
    wb_placement_close(before);
    wb_placement_close(next);
    wb_model_close(model);
}

static void test_a_layer_changes_alone(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed, change_one_layer, NULL, NULL);
}

/* ---- gradients ----------------------------------------------------------------------------------- */

/* Calls `on` for each element of the gradient of each replica here, with a number that is its own. */
static void each_gradient(const wb_model *model, const wb_train *train,
                          void (*on)(float *element, float number)) {
    float number = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++)
        for (int32_t k = 0; k < wb_model_n_replicas(model, i); k++) {
            const wb_tensor t = wb_model_replica(model, i, k);
            float *gradient = wb_train_grad(train, &t);
            EXPECT((gradient != NULL) == (t.data != NULL));
            for (int64_t j = 0; gradient && j < t.n; j++) on(&gradient[j], number++);
        }
}

static void expect_zero(float *element, float number) {
    (void)number;
    EXPECT(*element == 0);
}

static void set_number(float *element, float number) {
    *element = number;
}

static void expect_number(float *element, float number) {
    EXPECT(*element == number);
}

static void take_gradients(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    wb_placement *placement = placement_random(2, wb_config_weighted(&config), r->of, &r->state, true);
    const wb_model_options options = options_of(r, placement);
    wb_model *model;
    wb_train *train;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    MUST(wb_train_open(model, NULL, &train));
    each_gradient(model, train, expect_zero);
    each_gradient(model, train, set_number);
    each_gradient(model, train, expect_number); /* no two share memory */
    wb_train_close(train);
    wb_model_close(model);
    wb_placement_close(placement);
}

static void test_each_replica_has_a_gradient_of_its_own(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + 300 + (uint64_t)i, take_gradients, NULL, NULL);
}

/* ---- what is refused ----------------------------------------------------------------------------- */

static wb_placement *placement_of(int32_t L, int32_t E, int32_t R, int32_t S, const uint8_t *dead) {
    const wb_topology topology = {.n_ranks = (uint32_t)R, .n_nodes = 1, .n_slots = (uint32_t)S, .dead = dead};
    wb_placement *placement;
    MUST(wb_placement_open(&topology, (uint32_t)L, (uint32_t)E, &placement));
    return placement;
}

/* By open, and by a change of a model that has S slots; closes the placement. */
static void expect_refused(const rank *r, const wb_config *config, int32_t S, wb_placement *bad,
                           const char *at_open, const char *later) {
    const int32_t L = __builtin_popcountll(config->moe_layer_mask[0]);
    wb_placement *good = placement_of(L, wb_config_weighted(config), r->of, S, NULL);
    wb_model_options options = options_of(r, bad);
    wb_model *model = NULL;
    if (at_open) {
        EXPECT(wb_model_create(config, 7, 0.25F, &options, &model) == WB_MISMATCH && !model);
        EXPECT_MESSAGE(at_open);
    }
    options.placement = good;
    MUST(wb_model_create(config, 7, 0.25F, &options, &model));
    EXPECT(wb_model_set_placement(model, bad) == WB_MISMATCH);
    EXPECT_MESSAGE(later);
    EXPECT(wb_placement_hash(wb_model_placement(model)) == wb_placement_hash(good));
    wb_model_close(model);
    wb_placement_close(good);
    wb_placement_close(bad);
}

static void open_other_shapes(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3_TIED); /* L 3, E 13 */
    const uint8_t dead[] = {0, 1};
    const char *layers = "placement: MoE layers: expected 3, as in the model, found 2";
    const char *experts = "placement: experts: expected 13, as in the model, found 12";
    const char *ranks = "placement: ranks: expected 2, as in the model, found 3";
    const char *live = "placement: rank 1: expected live, as in the model, found it dead";
    expect_refused(r, &config, 26, placement_of(2, 13, 2, 26, NULL), layers, layers);
    expect_refused(r, &config, 26, placement_of(3, 12, 2, 26, NULL), experts, experts);
    expect_refused(r, &config, 26, placement_of(3, 13, 3, 26, NULL), ranks, ranks);
    expect_refused(r, &config, 26, placement_of(3, 13, 2, 26, dead), NULL, live);
    expect_refused(r, &config, 26, placement_of(3, 13, 2, 27, NULL), NULL, "27 slots");
    wb_model *model;
    wb_model_options options = options_of(r, NULL);
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    EXPECT(wb_model_set_placement(model, NULL) == WB_INVALID_ARGUMENT);
    wb_model_close(model);
}

static void test_other_shapes_are_refused_by_name(void **unused) {
    (void)unused;
    on_ranks(2, base_seed, open_other_shapes, NULL, NULL);
}

/* The last rank has another map than the others: at open, and later. */
static void disagree(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3_TIED);
    wb_placement *same = placement_of(3, 13, r->of, 20, NULL), *mine;
    MUST(wb_placement_clone(same, &mine));
    int32_t experts[20];
    for (int s = 0; s < 20; s++) experts[s] = (s + r->number) % 13;
    MUST(wb_placement_set_layer(mine, 2, experts, NULL, 1));
    wb_model_options options = options_of(r, mine);
    wb_model *model = NULL;
    EXPECT(wb_model_create(&config, 7, 0.25F, &options, &model) == WB_PEER && !model);
    EXPECT_MESSAGE("placement maps");
    options.placement = same;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    EXPECT(wb_model_set_placement(model, mine) == WB_PEER);
    EXPECT_MESSAGE("rank 1");
    EXPECT(wb_placement_hash(wb_model_placement(model)) == wb_placement_hash(same));
    EXPECT(wb_placement_layer(wb_model_placement(model), 2).epoch == 0);
    wb_model_close(model);
    wb_placement_close(mine);
    wb_placement_close(same);
}

static void test_ranks_that_disagree_are_named(void **unused) {
    (void)unused;
    for (int R = 2; R <= MAX_RANKS; R++) on_ranks(R, base_seed, disagree, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_follow_a_changed_placement),
        cmocka_unit_test(test_a_layer_changes_alone),
        cmocka_unit_test(test_each_replica_has_a_gradient_of_its_own),
        cmocka_unit_test(test_other_shapes_are_refused_by_name),
        cmocka_unit_test(test_ranks_that_disagree_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
