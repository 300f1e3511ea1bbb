/* test_grpo_moments.c - waybill-grpo's optimizer under placements with replicas, each step from one into the
 * next: the weights of every replica are those of one rank, and each rank has the moments of the experts that
 * it is home to, wherever these are. Argument 1 sets the seed. */
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

/* Of an expert all on its home rank and nothing elsewhere. */
static void expect_moments(const rank *r, const side *placed, const side *whole) {
    const int32_t E = wb_model_config(placed->model)->router.n_experts;
    for (int32_t i = 0; i < wb_model_n_tensors(placed->model); i++) {
        const wb_tensor t = wb_model_tensor(placed->model, i);
        const size_t bytes = (size_t)t.n * sizeof(float);
        const float *m = placed->opt.m[i].data, *v = placed->opt.v[i].data;
        if (t.expert < 0) continue;
        EXPECT((m != NULL) == (wb_home_rank(E, r->of, t.expert) == r->number));
        EXPECT(!m || memcmp(m, whole->opt.m[i].data, bytes) == 0);
        EXPECT(!v || memcmp(v, whole->opt.v[i].data, bytes) == 0);
    }
}

/* On one rank the norm is added up in another order. */
static void both_step(rank *r, side *placed, side *whole, uint64_t seed, bool moves) {
    wb_placement *next = moves ? placement_next(placed->model, &r->state, true) : NULL;
    const double found = step_of(placed, seed, next), expected = step_of(whole, seed, NULL);
    EXPECT(fabs(found - expected) <= 1e-12 * expected);
    expect_weights(placed->model, whole->model);
    expect_moments(r, placed, whole);
    wb_placement_close(next);
}

static void train_and_move(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    wb_placement *placement = placement_random(2, config.router.n_experts, r->of, &r->state, true);
    const wb_model_options placed_options = options_of(r, placement), alone = whole_options(r);
    side placed = side_open(r, &config, &placed_options), whole = side_open(r, &config, &alone);
    wb_placement_close(placement);
    placed.train->experts.part_elements = 57; /* so that a tensor comes in several */
    for (uint64_t step = 0; step < STEPS; step++)
        both_step(r, &placed, &whole, base_seed + step, step % 3 != 1);
    side_close(&whole);
    side_close(&placed);
}

static void test_a_step_is_the_same_wherever_experts_are(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + (uint64_t)i, train_and_move, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_step_is_the_same_wherever_experts_are)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
