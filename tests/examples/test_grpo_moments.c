/* test_grpo_moments.c - waybill-grpo's optimizer under placements with replicas: the weights of every replica
 * and the norm are those of one rank, also after experts changed places, when their moments were brought;
 * without them a step is refused by the tensor's name. Argument 1 sets the seed. */
#include "model/placed_model.h"

#include "../../examples/grpo/optimizer.c" /* last: its types have names that are local above */

enum { ROUNDS = 8, EPOCHS = 5 };

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

/* Of all replicas here, as after a reduction. */
static void set_gradients(const side *s, uint64_t seed) {
    for (int32_t i = 0; i < wb_model_n_tensors(s->model); i++)
        for (int32_t k = 0; k < wb_model_n_replicas(s->model, i); k++) {
            const wb_tensor t = wb_model_replica(s->model, i, k);
            float *gradient = wb_train_grad(s->train, &t);
            uint64_t state = seed + 1000 * (uint64_t)i;
            for (int64_t j = 0; gradient && j < t.n; j++) gradient[j] = random_unit(&state);
        }
}

static double step_of(side *s, uint64_t seed) {
    const options o = {.weight_decay = 0.1};
    double norm = NAN;
    set_gradients(s, seed);
    MUST(optimizer_step(&s->opt, &o, 1e-2, &norm));
    return norm;
}

static void both_step(side *placed, side *whole, uint64_t seed) {
    const double found = step_of(placed, seed), expected = step_of(whole, seed);
    /* Both are sums of the same squares in f64, in another order. */
    EXPECT(fabs(found - expected) <= 1e-12 * expected);
    expect_weights(placed->model, whole->model);
}

/* Other maps, with the weights in place. Returns how many tensors came to this rank. */
static int32_t change_places(rank *r, side *placed, const side *whole, bool *came) {
    const int32_t n = wb_model_n_tensors(placed->model);
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) came[i] = !wb_model_tensor(placed->model, i).data;
    wb_placement *next = placement_next(placed->model, &r->state, true);
    MUST(wb_model_set_placement(placed->model, next));
    wb_placement_close(next);
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor t = wb_model_tensor(placed->model, i), from = wb_model_tensor(whole->model, i);
        came[i] = came[i] && t.data;
        count += came[i];
        if (t.data) MUST(r->device->to_device(r->device, t.data, from.data, (size_t)t.n * sizeof(float)));
        MUST(wb_model_fill_replicas(placed->model, i));
    }
    return count;
}

/* A step now is refused on all ranks, where something came to one of them. */
static void expect_step_refused(rank *r, side *placed, int32_t came) {
    const options o = {.weight_decay = 0};
    int32_t all[MAX_RANKS], sum = 0;
    double norm = -1;
    MUST(wb_comm_all_gather(r->comm, &came, sizeof came, all));
    for (int i = 0; i < r->of; i++) sum += all[i];
    if (sum == 0) return;
    EXPECT(optimizer_step(&placed->opt, &o, 1e-2, &norm) == (came > 0 ? WB_MISMATCH : WB_PEER));
    EXPECT_MESSAGE(came > 0 ? "without its moments" : "failed: mismatch");
    EXPECT(norm == -1);
}

static void bring_moments(side *placed, const side *whole, const bool *came) {
    MUST(optimizer_take_moments(&placed->opt));
    for (int32_t i = 0; i < wb_model_n_tensors(placed->model); i++) {
        const size_t bytes = (size_t)wb_model_tensor(placed->model, i).n * sizeof(float);
        if (!came[i]) continue;
        for (size_t b = 0; b < bytes; b++)
            EXPECT(((uint8_t *)placed->opt.m[i].data)[b] == 0 && ((uint8_t *)placed->opt.v[i].data)[b] == 0);
        memcpy(placed->opt.m[i].data, whole->opt.m[i].data, bytes); /* CPU */
        memcpy(placed->opt.v[i].data, whole->opt.v[i].data, bytes);
    }
}

static void train_and_move(rank *r) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    wb_placement *placement = placement_random(2, config.router.n_experts, r->of, &r->state, true);
    const wb_model_options placed_options = options_of(r, placement), alone = whole_options(r);
    side placed = side_open(r, &config, &placed_options), whole = side_open(r, &config, &alone);
    bool *came = take(wb_model_n_tensors(placed.model), sizeof(bool));
    wb_placement_close(placement);
    for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
        both_step(&placed, &whole, base_seed + 2 * epoch);
        both_step(&placed, &whole, base_seed + 2 * epoch + 1);
        const int32_t n = change_places(r, &placed, &whole, came);
        EXPECT(r->of > 1 || n == 0);
        expect_step_refused(r, &placed, n);
        bring_moments(&placed, &whole, came);
    }
    free(came);
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
