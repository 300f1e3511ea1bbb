/* test_dead_rank.c - training steps with a rank that has no expert and feeds its own sequences, each rank of
 * 2, 3 and 4 in its turn: routes, log-probabilities, logits, gradients and updated weights are the bits of
 * the same ranks with the default placement, one slot an expert. Argument 1 sets the seed. */
#include "model_ranks.h"
#include "placed_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { STEPS = 2, SEQUENCES = 2 * MAX_RANKS };

/* Every rank makes the same one. */
static int dead_rank;

/* Each expert once, on a live rank; the dead rank has slots like the others. */
static wb_placement *without_dead(const rank *r, int32_t L, int32_t E, uint64_t *state) {
    uint8_t dead[MAX_RANKS] = {0};
    wb_placement *placement;
    dead[dead_rank] = 1;
    const wb_topology topology = {.n_ranks = (uint32_t)r->of,
                                  .n_nodes = 1,
                                  .n_slots = (uint32_t)(r->of * (E + random_below(state, 4))),
                                  .dead = dead};
    MUST(wb_placement_open(&topology, (uint32_t)L, (uint32_t)E, &placement));
    placement_deal(placement, state, false, 1);
    return placement;
}

static wb_status descend(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                         wb_rows weight) {
    (void)ctx, (void)i, (void)first;
    for (int64_t j = 0; j < n; j++) weight_set(weight, j, weight_get(weight, j) - 0.05F * gradient[j]);
    return WB_OK;
}

/* Replicated weights too, which each rank updates for itself. */
static void update(fixture *f, const wb_placement *next) {
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) {
        const wb_tensor t = wb_model_tensor(f->model, i);
        if (t.expert < 0)
            MUST(descend(NULL, i, 0, t.n, wb_train_grad(f->train, &t), (wb_rows){t.data, t.dtype}));
    }
    MUST(wb_train_update_experts(f->train, next, descend, NULL));
}

/* Under either placement the lead has the gradient: only the bits of what lives here under both are compared,
 * and those of all others by the weights that they lead to. */
static void expect_same_gradients_here(const fixture *a, const fixture *b) {
    for (int32_t i = 0; i < wb_model_n_tensors(a->model); i++) {
        const wb_tensor x = wb_model_lead(a->model, i), y = wb_model_lead(b->model, i);
        const float *found = wb_train_grad(a->train, &x), *expected = wb_train_grad(b->train, &y);
        if (found && expected) EXPECT(memcmp(found, expected, (size_t)x.n * sizeof(float)) == 0);
        for (int64_t j = 0; found && j < x.n; j++) EXPECT(isfinite(found[j]));
    }
}

/* `dead` with its experts where those of `plain` are. */
static void expect_same_weights(const rank *r, const fixture *dead, const fixture *plain,
                                const wb_config *config) {
    wb_model *back;
    const wb_model_options options = options_of(r, NULL);
    MUST(wb_model_create(config, 1, 0.25F, &options, &back));
    MUST(wb_model_copy_weights(back, dead->model));
    for (int32_t i = 0; i < wb_model_n_tensors(back); i++) {
        const wb_tensor found = wb_model_tensor(back, i), expected = wb_model_tensor(plain->model, i);
        EXPECT((found.data != NULL) == (expected.data != NULL));
        if (found.data) EXPECT(memcmp(found.data, expected.data, (size_t)found.n * sizeof(float)) == 0);
    }
    wb_model_close(back);
}

static void expect_same_results(const fixture *f, const corpus *c, int32_t n, const int32_t *mine,
                                const results *x, const results *y) {
    const size_t V = (size_t)wb_model_config(f->model)->vocab_size;
    EXPECT(n > 0);
    EXPECT(rows_differing(c, n, mine, f->row_bytes, x->ids, y->ids) == 0);
    EXPECT(rows_differing(c, n, mine, f->row_bytes, x->native, y->native) == 0);
    EXPECT(rows_differing(c, n, mine, sizeof(float), x->logprobs, y->logprobs) == 0);
    EXPECT(rows_differing(c, n, mine, V * sizeof(float), x->logits, y->logits) == 0);
    EXPECT(all_finite((int64_t)V * c->T, x->logits));
}

/* One step of both; the experts of `dead` then go elsewhere, with replicas after the last step. */
static void step(rank *r, fixture *dead, fixture *plain, bool last) {
    const wb_config *config = wb_model_config(plain->model);
    corpus c = corpus_random(config, SEQUENCES, 9, &r->state);
    results x = results_new(dead, &c), y = results_new(plain, &c);
    float *dlogprobs = take(c.T, sizeof(float));
    int32_t mine[SEQUENCES], n = 0;
    for (int32_t s = 0; s < SEQUENCES; s++)
        if (s % r->of == r->number) mine[n++] = s;
    for (int32_t t = 0; t < c.T; t++) dlogprobs[t] = random_unit(&r->state);
    wb_placement *next = placement_next(dead->model, &r->state, last);
    fixture *const both[] = {dead, plain};
    for (int i = 0; i < 2; i++) {
        MUST(wb_train_zero_grads(both[i]->train));
        train_pass(both[i], &c, n, mine, (direction){0}, dlogprobs, i == 0 ? &x : &y);
        MUST(wb_train_reduce_grads(both[i]->train));
    }
    expect_same_results(dead, &c, n, mine, &x, &y);
    expect_same_gradients_here(dead, plain);
    update(dead, next);
    update(plain, NULL);
    expect_same_weights(r, dead, plain, config);
    train_pass(dead, &c, n, mine, (direction){0}, NULL, &x);
    train_pass(plain, &c, n, mine, (direction){0}, NULL, &y);
    expect_same_results(dead, &c, n, mine, &x, &y);
    wb_placement_close(next);
    free(dlogprobs);
    results_free(&x);
    results_free(&y);
    corpus_free(&c);
}

static void train_with_dead(rank *r) {
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        const uint64_t seed = r->state;
        const wb_dispatch_policy dispatch = v % 2 == 0 ? WB_DISPATCH_STATIC : WB_DISPATCH_DYNAMIC;
        wb_placement *placement = without_dead(r, __builtin_popcountll(config.moe_layer_mask[0]),
                                               wb_config_weighted(&config), &r->state);
        fixture dead = fixture_create_placed(&config, seed, r->comm, 1, placement, dispatch);
        fixture plain = fixture_create(&config, seed, r->comm, 1);
        for (int i = 0; i < STEPS; i++) step(r, &dead, &plain, i == STEPS - 1);
        fixture_close(&plain);
        fixture_close(&dead);
        wb_placement_close(placement);
    }
}

static void test_rule_26_a_training_step_with_a_dead_rank(void **unused) {
    (void)unused;
    for (int R = 2; R <= MAX_RANKS; R++)
        for (dead_rank = 0; dead_rank < R; dead_rank++)
            on_ranks(R, base_seed + (uint64_t)(10 * R + dead_rank), train_with_dead, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rule_26_a_training_step_with_a_dead_rank)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
