/* test_train_replicas.c - an update of experts under placements with replicas, from one placement into the
 * next: gradients of replicas are summed in replica order, each expert is updated once, on its home rank, and
 * all slots of the next placement have the new weights, the bits of one rank, however slots are cut into
 * parts; weights in f32 and in bf16. What cannot be taken over is refused and changes nothing. Argument 1
 * sets the seed. */
#include "expert_home.h"
#include "placed_model.h"
#include "train_state.h"

enum { ROUNDS = 12, EPOCHS = 4 };

/* Element j of the gradient of replica k of tensor i. */
static float gradient_of(uint64_t epoch, int32_t i, int32_t k, int64_t j) {
    uint64_t state = base_seed + 1000003 * epoch + 1009 * (uint64_t)i + 17 * (uint64_t)k + 7919 * (uint64_t)j;
    return random_unit(&state);
}

static void set_gradients(const wb_model *model, const wb_train *train, uint64_t epoch) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++)
        for (int32_t k = 0; k < wb_model_n_replicas(model, i); k++) {
            const wb_tensor t = wb_model_replica(model, i, k);
            float *gradient = wb_train_grad(train, &t);
            for (int64_t j = 0; gradient && j < t.n; j++) gradient[j] = gradient_of(epoch, i, k, j);
        }
}

/* Of n replicas, in their order. */
static float sum_of(uint64_t epoch, int32_t i, int32_t n, int64_t j) {
    float sum = gradient_of(epoch, i, 0, j);
    for (int32_t k = 1; k < n; k++) sum += gradient_of(epoch, i, k, j);
    return sum;
}

static float updated(float weight, float gradient, int32_t i) {
    return weight - 0.25F * gradient + (float)i;
}

static int32_t home_of(const wb_model *model, int32_t expert) {
    return wb_home_rank(wb_config_weighted(&model->config), wb_comm_size(model->comm), expert);
}

typedef struct updates {
    const wb_model *model;
    uint8_t **seen; /* [n_tensors][n] */
} updates;

static wb_status update(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                        wb_rows weight) {
    const updates *u = ctx;
    EXPECT(home_of(u->model, u->model->tensors[i].expert) == wb_comm_rank(u->model->comm));
    EXPECT(first >= 0 && first + n <= u->model->tensors[i].n);
    for (int64_t j = 0; j < n; j++) {
        EXPECT(!u->seen[i][first + j]);
        u->seen[i][first + j] = 1;
        weight_set(weight, j, updated(weight_get(weight, j), gradient[j], i));
    }
    return WB_OK;
}

static void expect_all_seen(const updates *u) {
    for (int32_t i = 0; i < wb_model_n_tensors(u->model); i++) {
        const wb_tensor t = wb_model_tensor(u->model, i);
        const bool here = t.expert >= 0 && home_of(u->model, t.expert) == wb_comm_rank(u->model->comm);
        for (int64_t j = 0; j < t.n; j++) EXPECT(u->seen[i][j] == here);
        memset(u->seen[i], 0, (size_t)t.n);
    }
}

/* The same on one rank, by the plainest loop: `n_replicas` are those of the model that is spread. */
static void update_whole(const wb_model *whole, const int32_t *n_replicas, uint64_t epoch) {
    for (int32_t i = 0; i < wb_model_n_tensors(whole); i++) {
        const wb_tensor t = wb_model_tensor(whole, i);
        const wb_rows weight = {t.data, t.dtype};
        if (t.expert < 0) continue;
        for (int64_t j = 0; j < t.n; j++)
            weight_set(weight, j, updated(weight_get(weight, j), sum_of(epoch, i, n_replicas[i], j), i));
    }
}

/* Before and after: the lead has the sum. */
static void expect_sums(const wb_model *model, const wb_train *train, uint64_t epoch) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor t = wb_model_lead(model, i);
        const float *gradient = wb_train_grad(train, &t);
        const int32_t n = wb_model_n_replicas(model, i);
        if (!gradient || t.expert < 0) continue;
        for (int64_t j = 0; j < t.n; j++) EXPECT(gradient[j] == sum_of(epoch, i, n, j));
    }
}

static void step(rank *r, wb_model *model, wb_train *train, wb_model *whole, updates *u, uint64_t epoch) {
    int32_t *n_replicas = take(wb_model_n_tensors(model), sizeof(int32_t));
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) n_replicas[i] = wb_model_n_replicas(model, i);
    wb_placement *next = epoch % 3 == 1 ? NULL : placement_next(model, &r->state, true);
    set_gradients(model, train, epoch);
    MUST(wb_train_reduce_grads(train));
    expect_sums(model, train, epoch);
    MUST(wb_train_update_experts(train, next, update, u));
    if (next) EXPECT(wb_placement_hash(wb_model_placement(model)) == wb_placement_hash(next));
    update_whole(whole, n_replicas, epoch);
    expect_all_seen(u);
    expect_weights(model, whole);
    wb_placement_close(next);
    free(n_replicas);
}

/* Experts go on without an update. */
static void place(rank *r, wb_model *model, wb_train *train, const wb_model *whole) {
    wb_placement *next = placement_next(model, &r->state, true);
    MUST(wb_train_place_experts(train, next));
    EXPECT(wb_placement_hash(wb_model_placement(model)) == wb_placement_hash(next));
    expect_weights(model, whole);
    MUST(wb_train_place_experts(train, NULL));
    expect_weights(model, whole);
    wb_placement_close(next);
}

/* What is attached to slots would stay behind, so no expert leaves its slot; without a move all is well. */
static void expect_attached_refused(rank *r, wb_model *model, wb_train *train, const wb_model *whole,
                                    updates *u) {
    wb_placement *next = placement_next(model, &r->state, true);
    const uint64_t hash = wb_placement_hash(wb_model_placement(model));
    char marks[4096];
    MUST(wb_model_attach_slots(model, 0, marks, 1));
    EXPECT(wb_train_place_experts(train, next) == WB_INVALID_ARGUMENT);
    EXPECT_MESSAGE("attached to slots");
    EXPECT(wb_train_update_experts(train, next, update, u) == WB_INVALID_ARGUMENT);
    EXPECT(wb_placement_hash(wb_model_placement(model)) == hash);
    MUST(wb_train_place_experts(train, NULL));
    wb_model_detach_slots(model, marks);
    expect_weights(model, whole);
    wb_placement_close(next);
}

/* A map of the same epoch, and a function that is not there. */
static void expect_refused(rank *r, wb_model *model, wb_train *train, const wb_model *whole, updates *u) {
    wb_placement *next = placement_next(model, &r->state, true), *same;
    MUST(wb_placement_clone(next, &same));
    placement_deal(same, &r->state, true, wb_placement_layer(wb_model_placement(model), 0).epoch);
    const bool differs = wb_placement_hash(same) != wb_placement_hash(wb_model_placement(model));
    if (differs) EXPECT(wb_train_update_experts(train, same, update, u) == WB_INVALID_ARGUMENT);
    if (differs) EXPECT_MESSAGE("expected another map to be of a later one");
    EXPECT(wb_train_update_experts(train, next, r->number == 0 ? NULL : update, u) ==
           (r->number == 0 ? WB_INVALID_ARGUMENT : WB_PEER));
    expect_weights(model, whole);
    wb_placement_close(same);
    wb_placement_close(next);
}

static void train_and_move(rank *r) {
    const wb_config config = variant_config((variant)random_below(&r->state, N_VARIANTS));
    const int32_t L = __builtin_popcountll(config.moe_layer_mask[0]), E = wb_config_weighted(&config);
    wb_placement *placement = placement_random(L, E, r->of, &r->state, true);
    const wb_model_options options = options_of(r, placement), alone = whole_options(r);
    wb_model *model, *whole;
    wb_train *train;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    MUST(wb_model_create(&config, 7, 0.25F, &alone, &whole));
    MUST(wb_train_open(model, NULL, &train));
    wb_placement_close(placement);
    updates u = {.model = model, .seen = take(wb_model_n_tensors(model), sizeof(uint8_t *))};
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) u.seen[i] = take(model->tensors[i].n, 1);
    expect_empty_slots_untouched(model);
    for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
        const int32_t cut = 5 + random_below(&r->state, 200);
        if (epoch > 0 && cut < train->experts.part_elements) train->experts.part_elements = cut;
        step(r, model, train, whole, &u, epoch);
        if (epoch % 2 == 1) place(r, model, train, whole);
    }
    expect_refused(r, model, train, whole, &u);
    expect_attached_refused(r, model, train, whole, &u);
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) free(u.seen[i]);
    free(u.seen);
    wb_train_close(train);
    wb_model_close(whole);
    wb_model_close(model);
}

static void test_an_update_is_the_same_wherever_experts_are_and_go(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        fixture_dtype = i / MAX_RANKS % 2 == 0 ? WB_F32 : WB_BF16;
        on_ranks(1 + i % MAX_RANKS, base_seed + (uint64_t)i, train_and_move, NULL, NULL);
    }
    fixture_dtype = WB_F32;
}

/* ---- failures ------------------------------------------------------------------------------------ */

/* ctx: the rank. On rank 0 the device is gone. */
static wb_status failing(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                         wb_rows weight) {
    (void)i, (void)first, (void)n, (void)gradient, (void)weight;
    const rank *r = ctx;
    return r->number == 0 ? wb_fail(WB_DEVICE, "the device is gone") : WB_OK;
}

static void fail_on_one_rank(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    const wb_model_options options = options_of(r, NULL);
    wb_model *model;
    wb_train *train;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    MUST(wb_train_open(model, NULL, &train));
    EXPECT(wb_train_update_experts(train, NULL, failing, r) == (r->number == 0 ? WB_DEVICE : WB_PEER));
    EXPECT_MESSAGE("the device is gone");
    wb_train_close(train);
    wb_model_close(model);
}

static void test_an_update_that_fails_on_one_rank_ends_all(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed, fail_on_one_rank, NULL, NULL);
}

/* A trainer without gradients has nothing to update by. */
static void test_forwards_alone_update_nothing(void **unused) {
    (void)unused;
    const wb_config config = variant_config(VARIANT_FEW);
    wb_train_options forwards = wb_train_options_default();
    wb_train *train;
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    fixture f = fixture_create(&config, 3, comm, 1);
    forwards.forward_only = true;
    MUST(wb_train_open(f.model, &forwards, &train));
    assert_int_equal(wb_train_update_experts(train, NULL, failing, NULL), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_train_place_experts(train, NULL), WB_INVALID_ARGUMENT);
    wb_train_close(train);
    fixture_close(&f);
    wb_comm_close(comm);
}

/* Blocks of E r / R to E (r + 1) / R, for all E and R. */
static void test_the_home_of_an_expert_is_its_block(void **unused) {
    (void)unused;
    for (int64_t E = 1; E <= 40; E++)
        for (int64_t R = 1; R <= 50; R++)
            for (int64_t e = 0; e < E; e++) {
                const int64_t r = wb_home_rank((int32_t)E, (int32_t)R, (int32_t)e);
                assert_true(r >= 0 && r < R && E * r / R <= e && e < E * (r + 1) / R);
                assert_true(E * (r + 1) / R - E * r / R <= wb_expert_max_homes((int32_t)E, (int32_t)R));
            }
    assert_int_equal(wb_home_rank(65536, 65536, 65535), 65535);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_update_is_the_same_wherever_experts_are_and_go),
        cmocka_unit_test(test_an_update_that_fails_on_one_rank_ends_all),
        cmocka_unit_test(test_forwards_alone_update_nothing),
        cmocka_unit_test(test_the_home_of_an_expert_is_its_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
