/* test_grpo_moments.c - waybill-grpo's optimizer under placements with replicas, each step from one into the
 * next: the weights of every replica are those of one rank, and each rank has the moments, and in bf16 the
 * masters, of the experts that it is home to, wherever these are, and of its part of replicated tensors.
 * Updates below the resolution of bf16 add up. Argument 1 sets the seed. */
#include "model/placed_model.h"
#include "train_state.h"

#include "../../examples/grpo/optimizer.c" /* last: its types have names that are local above */

enum { ROUNDS = 8, STEPS = 8 };

typedef struct side {
    wb_model *model;
    wb_train *train;
    optimizer opt;
} side;

static side side_open(rank *r, const wb_config *config, const wb_model_options *model_options) {
    side s;
    MUST(wb_model_create(config, 7, 0.25F, model_options, &s.model));
    MUST(wb_train_open(s.model, NULL, &s.train));
    MUST(optimizer_open(s.model, s.train, r->device, model_options->comm, &s.opt));
    MUST(optimizer_take_masters(&s.opt));
    return s;
}

static void side_close(side *s) {
    optimizer_close(&s->opt);
    wb_train_close(s->train);
    wb_model_close(s->model);
}

/* Of the lead replicas, as after a reduction; the others have what must not be looked at. */
static void set_gradients(const side *s, uint64_t seed) {
    for (int32_t i = 0; i < wb_model_n_tensors(s->model); i++)
        for (int32_t k = 0; k < wb_model_n_replicas(s->model, i); k++) {
            const wb_tensor t = wb_model_replica(s->model, i, k);
            const bool leads = t.data == wb_model_lead(s->model, i).data;
            float *gradient = wb_train_grad(s->train, &t);
            uint64_t state = seed + 1000 * (uint64_t)i;
            for (int64_t j = 0; gradient && j < t.n; j++) gradient[j] = leads ? random_unit(&state) : NAN;
        }
}

static double step_of(side *s, uint64_t seed, const wb_placement *next) {
    const options o = {.weight_decay = 0.1};
    double norm = NAN;
    set_gradients(s, seed);
    MUST(optimizer_step(&s->opt, &o, 1e-2, next, &norm));
    return norm;
}

/* Of an expert all on its home rank and nothing elsewhere, of another tensor this rank's part. */
static void expect_part(const wb_buffer *found, const wb_buffer *whole, optimizer_part part) {
    const float *expected = whole->data;
    EXPECT((found->data != NULL) == (part.n > 0));
    EXPECT(part.n == 0 || memcmp(found->data, expected + part.first, (size_t)part.n * sizeof(float)) == 0);
}

static void expect_state(const rank *r, const side *placed, const side *whole) {
    const optimizer *found = &placed->opt, *expected = &whole->opt;
    const wb_config *config = wb_model_config(placed->model);
    for (int32_t i = 0; i < wb_model_n_tensors(placed->model); i++) {
        const wb_tensor t = wb_model_tensor(placed->model, i);
        const optimizer_part part = optimizer_part_of(config, &t, r->number, r->of);
        if (t.expert >= 0)
            EXPECT((part.n > 0) == (wb_home_rank(config->router.n_experts, r->of, t.expert) == r->number));
        expect_part(&found->m[i], &expected->m[i], part);
        expect_part(&found->v[i], &expected->v[i], part);
        if (t.dtype == WB_BF16) expect_part(&found->master[i], &expected->master[i], part);
        EXPECT(t.dtype == WB_BF16 || !found->master[i].data);
    }
}

/* On one rank, which has all of it: a weight of bf16 is what its master rounds to. */
static void expect_rounded(const side *whole) {
    for (int32_t i = 0; i < wb_model_n_tensors(whole->model); i++) {
        const wb_tensor t = wb_model_tensor(whole->model, i);
        const float *master = whole->opt.master[i].data;
        for (int64_t j = 0; master && j < t.n; j++)
            EXPECT(((const uint16_t *)t.data)[j] == wb_f32_to_bf16(master[j]));
    }
}

/* On one rank the norm is added up in another order. */
static void both_step(rank *r, side *placed, side *whole, uint64_t seed, bool moves) {
    wb_placement *next = moves ? placement_next(placed->model, &r->state, true) : NULL;
    const double found = step_of(placed, seed, next), expected = step_of(whole, seed, NULL);
    EXPECT(fabs(found - expected) <= 1e-12 * expected);
    expect_weights(placed->model, whole->model);
    expect_state(r, placed, whole);
    expect_rounded(whole);
    wb_placement_close(next);
}

static void train_and_move(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    wb_placement *placement = placement_random(2, config.router.n_experts, r->of, &r->state, true);
    const wb_model_options placed_options = options_of(r, placement), alone = whole_options(r);
    side placed = side_open(r, &config, &placed_options), whole = side_open(r, &config, &alone);
    wb_placement_close(placement);
    expect_state(r, &placed, &whole); /* masters that were taken are the weights */
    expect_rounded(&whole);
    placed.train->experts.part_elements = 57; /* so that a tensor comes in several */
    for (uint64_t step = 0; step < STEPS; step++)
        both_step(r, &placed, &whole, base_seed + step, step % 3 != 1);
    side_close(&whole);
    side_close(&placed);
}

static void test_a_step_is_the_same_wherever_experts_are(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        fixture_dtype = fixture_activations = i / MAX_RANKS % 2 == 0 ? WB_F32 : WB_BF16;
        on_ranks(1 + i % MAX_RANKS, base_seed + (uint64_t)i, train_and_move, NULL, NULL);
    }
    fixture_dtype = fixture_activations = WB_F32;
}

/* ---- updates that bf16 does not see -------------------------------------------------------------------- */

enum { SMALL_STEPS = 100 };

/* Weights of 1 and a gradient of 1 everywhere: each update takes the learning rate, a hundredth of the
 * distance to the bf16 below. */
static void step_by_step(rank *r) {
    const wb_config config = variant_config(VARIANT_FEW);
    const wb_model_options model_options = options_of(r, NULL);
    const options o = {0};
    const double lr = 0x1p-8 / SMALL_STEPS;
    double norm;
    side s = side_open(r, &config, &model_options);
    for (int32_t i = 0; i < wb_model_n_tensors(s.model); i++) {
        const wb_tensor t = wb_model_lead(s.model, i);
        for (int64_t j = 0; t.data && j < t.n; j++) {
            weight_set((wb_rows){t.data, t.dtype}, j, 1);
            wb_train_grad(s.train, &t)[j] = 1;
        }
    }
    MUST(optimizer_take_masters(&s.opt));
    for (int step = 0; step < SMALL_STEPS; step++) {
        MUST(optimizer_step(&s.opt, &o, lr, NULL, &norm));
        /* The weight goes on when its master has gone half the way. */
        const bool early = 2 * step + 4 < SMALL_STEPS, late = 2 * step > SMALL_STEPS;
        for (int32_t i = 0; i < wb_model_n_tensors(s.model); i++) {
            const wb_tensor t = wb_model_lead(s.model, i);
            for (int64_t j = 0; t.data && t.n_dims == 2 && j < t.n; j++) {
                const float w = weight_get((wb_rows){t.data, t.dtype}, j);
                EXPECT(early ? w == 1 : !late || w < 1);
            }
        }
    }
    side_close(&s);
}

static void test_updates_below_the_resolution_of_bf16_add_up(void **unused) {
    (void)unused;
    fixture_dtype = fixture_activations = WB_BF16;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed, step_by_step, NULL, NULL);
    fixture_dtype = fixture_activations = WB_F32;
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_step_is_the_same_wherever_experts_are),
                                       cmocka_unit_test(test_updates_below_the_resolution_of_bf16_add_up)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
