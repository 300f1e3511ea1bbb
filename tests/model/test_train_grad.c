/* test_train_grad.c - the gradients of a random tiny model against differences of its own forward.
 *
 * For each tensor (those of a layer's experts together) the derivative along a random direction of signs:
 * (L(w + e d) - L(w - e d)) / 2e, from two step sizes so that the e^2 term cancels. Routes are forced to
 * the ids that the backward used, so that the function is smooth; only the clamp of clip_qkv has kinks.
 * Each L is a sum of f32 log-probabilities; its rounding noise over e is what the tolerance allows,
 * besides 0.5 % of the gradient's length. */
#include "model_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { N_SEQS = 4, DIRECTIONS = 3 };
static const double step = 4e-3, tolerance = 5e-3;

typedef struct problem {
    fixture f;
    wb_comm *comm;
    corpus c;
    int32_t seqs[N_SEQS];
    results r;
    uint8_t *ids, *forced;
    float *dlogprobs;
} problem;

/* L = sum of dlogprobs * logprobs with every row forced to r.ids. */
static double loss_of(problem *p) {
    results at = results_new(&p->f, &p->c);
    train_pass(&p->f, &p->c, N_SEQS, p->seqs, (direction){p->r.ids, p->forced}, NULL, &at);
    double loss = 0;
    for (int32_t t = 0; t < p->c.T; t++) loss += (double)p->dlogprobs[t] * (double)at.logprobs[t];
    results_free(&at);
    return loss;
}

/* Weights and gradients of the part [first, last) of the registry that goes along one direction. */
typedef struct group {
    int32_t first, last;
} group;

/* Puts w + e * sign into the group's weights; signs come from `seed`. Sums g * (the step really taken)
 * into *along. */
static void shift(problem *p, group g, uint64_t seed, double e, double *along, double *length) {
    *along = *length = 0;
    for (int32_t i = g.first; i < g.last; i++) {
        const wb_tensor tensor = wb_model_tensor(p->f.model, i);
        float *w = tensor.data;
        const float *grad = wb_train_grad(p->f.train, &tensor);
        for (int64_t j = 0; j < tensor.n; j++) {
            const float before = w[j];
            w[j] = (float)((double)before + (random_bits(&seed) & 1 ? e : -e));
            *along += (double)grad[j] * ((double)w[j] - (double)before);
            *length += (double)grad[j] * (double)grad[j];
        }
    }
    *length = sqrt(*length);
}

static void save(problem *p, group g, float *saved, bool restore) {
    for (int32_t i = g.first; i < g.last; i++) {
        const wb_tensor tensor = wb_model_tensor(p->f.model, i);
        memcpy(restore ? tensor.data : saved, restore ? saved : tensor.data,
               (size_t)tensor.n * sizeof(float));
        saved += tensor.n;
    }
}

/* L(w + e d) - L(w - e d), and the same predicted by the gradients. */
static double difference(problem *p, group g, float *saved, uint64_t seed, double e, double *predicted,
                         double *length) {
    double up, down;
    shift(p, g, seed, e, &up, length);
    const double above = loss_of(p);
    save(p, g, saved, true);
    shift(p, g, seed, -e, &down, length);
    const double below = loss_of(p);
    save(p, g, saved, true);
    *predicted = up - down;
    return above - below;
}

/* Along one direction, at step e: whether forward and gradients agree. */
static bool agrees(problem *p, group g, float *saved, uint64_t seed, double e, bool last_attempt) {
    double predicted, coarse_predicted, length;
    const double fine = difference(p, g, saved, seed, e, &predicted, &length);
    const double coarse = difference(p, g, saved, seed, 2 * e, &coarse_predicted, &length);
    /* f(e) = f' e + c e^3: (8 f(e) - f(2e)) / 6 is f' e, the prediction likewise. */
    const double found = (8 * fine - coarse) / 6, expected = (8 * predicted - coarse_predicted) / 6;
    const double noise = 1.6e-6 * sqrt((double)p->c.T);
    const double allowed = tolerance * 2 * e * length + noise;
    if (fabs(found - expected) <= allowed) return true;
    if (last_attempt)
        fail_msg("%s: step %.2g: the forward moves by %.6g, the gradient says %.6g, allowed %.2g",
                 wb_model_tensor(p->f.model, g.first).name, e, found, expected, allowed);
    return false;
}

/* A kink within the step makes both disagree, and is left behind by a shorter one: `attempts` steps, each
 * a quarter of the one before. */
static void check_group(problem *p, group g, uint64_t *state, int attempts) {
    int64_t n = 0;
    for (int32_t i = g.first; i < g.last; i++) n += wb_model_tensor(p->f.model, i).n;
    float *saved = take(n, sizeof(float));
    save(p, g, saved, false);
    for (int k = 0; k < DIRECTIONS; k++) {
        const uint64_t seed = random_bits(state);
        /* A direction of signs is sqrt(n) long; the step as a whole stays the same. */
        double e = step / sqrt((double)n);
        for (int left = attempts; !agrees(p, g, saved, seed, e, left == 1); left--) e /= 4;
    }
    free(saved);
}

/* The tensors of a layer's experts are adjacent in the registry. */
static group group_from(const problem *p, int32_t i) {
    group g = {i, i + 1};
    const wb_tensor first = wb_model_tensor(p->f.model, i);
    while (first.expert >= 0 && g.last < wb_model_n_tensors(p->f.model)) {
        const wb_tensor next = wb_model_tensor(p->f.model, g.last);
        if (next.expert < 0 || next.layer != first.layer) break;
        g.last++;
    }
    return g;
}

static void open_problem(problem *p, variant v, uint64_t seed) {
    const wb_config config = variant_config(v);
    uint64_t state = seed;
    MUST(wb_comm_open_self(&p->comm));
    p->f = fixture_create(&config, seed, p->comm, 2);
    p->c = corpus_random(&config, N_SEQS, 9, &state);
    p->r = results_new(&p->f, &p->c);
    p->ids = routes_random(&p->f, p->c.T, &state);
    p->forced = take(p->c.T, 1);
    p->dlogprobs = take(p->c.T, sizeof(float));
    for (int32_t s = 0; s < N_SEQS; s++) p->seqs[s] = s;
    for (int32_t t = 0; t < p->c.T; t++) {
        p->forced[t] = t % 3 != 0; /* the others choose; the backward must follow both */
        p->dlogprobs[t] = random_unit(&state);
    }
    train_pass(&p->f, &p->c, N_SEQS, p->seqs, (direction){p->ids, p->forced}, p->dlogprobs, &p->r);
    memset(p->forced, 1, (size_t)p->c.T);
}

static void close_problem(problem *p) {
    results_free(&p->r);
    free(p->ids);
    free(p->forced);
    free(p->dlogprobs);
    corpus_free(&p->c);
    fixture_close(&p->f);
    wb_comm_close(p->comm);
}

/* Three temperatures; every other row with a target keeps a third of the vocabulary and the target. */
static void test_rule_31_gradients_of_a_distribution(void **state) {
    (void)state;
    problem p;
    open_problem(&p, VARIANT_QWEN3, 31);
    const int32_t T = p.c.T, V = wb_model_config(p.f.model)->vocab_size;
    float *temperature = take(T, sizeof(float));
    uint32_t *ids = take((int64_t)T * V, sizeof(uint32_t));
    int64_t *start = take(T + 1, sizeof(int64_t)), n = 0;
    for (int32_t t = 0; t < T; t++) {
        temperature[t] = 0.6f + 0.3f * (float)(t % 3);
        for (int32_t id = 0; id < V && t % 2 == 0 && p.c.targets[t] >= 0; id++)
            if (id % 3 == 0 || id == p.c.targets[t]) ids[n++] = (uint32_t)id;
        start[t + 1] = n;
    }
    assert_true(n > 0);
    p.c.temperature = temperature;
    p.c.kept_ids = ids;
    p.c.kept_start = start;
    MUST(wb_train_zero_grads(p.f.train));
    train_pass(&p.f, &p.c, N_SEQS, p.seqs, (direction){p.r.ids, p.forced}, p.dlogprobs, &p.r);
    uint64_t dice = 32;
    for (int32_t i = 0; i < wb_model_n_tensors(p.f.model);) {
        const group g = group_from(&p, i);
        check_group(&p, g, &dice, 1);
        i = g.last;
    }
    free(temperature);
    free(ids);
    free(start);
    close_problem(&p);
}

static void check_variant(variant v, int attempts) {
    const uint64_t seed = 20 + (uint64_t)v;
    problem p;
    open_problem(&p, v, seed);
    uint64_t state = seed + 1;
    for (int32_t i = 0; i < wb_model_n_tensors(p.f.model);) {
        const group g = group_from(&p, i);
        check_group(&p, g, &state, attempts);
        i = g.last;
    }
    close_problem(&p);
}

static void test_gradients_with_bias_and_dense_layer(void **state) {
    (void)state;
    check_variant(VARIANT_QWEN3, 1);
}

static void test_gradients_with_tied_embeddings(void **state) {
    (void)state;
    check_variant(VARIANT_QWEN3_TIED, 1);
}

static void test_gradients_with_clamp(void **state) {
    (void)state;
    check_variant(VARIANT_OLMOE_CLIP, 3);
}

static void test_gradients_with_a_gated_shared_expert_and_windows(void **state) {
    (void)state;
    check_variant(VARIANT_QWEN2, 3);
}

static void test_gradients_with_groups_and_shared_experts(void **state) {
    (void)state;
    check_variant(VARIANT_GLM4, 3);
}

static void test_gradients_with_sinks_and_clamped_experts(void **state) {
    (void)state;
    check_variant(VARIANT_GPT_OSS, 6);
}

static float **copy_gradients(const problem *p) {
    const int32_t n = wb_model_n_tensors(p->f.model);
    float **copies = take(n, sizeof(float *));
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor tensor = wb_model_tensor(p->f.model, i);
        copies[i] = take(tensor.n, sizeof(float));
        memcpy(copies[i], wb_train_grad(p->f.train, &tensor), (size_t)tensor.n * sizeof(float));
    }
    return copies;
}

/* The backward uses the forward's logits where they are still there: the same bits as when they are
 * computed again. */
static void test_gradients_with_kept_logits(void **state) {
    (void)state;
    problem p;
    open_problem(&p, VARIANT_QWEN3_TIED, 8);
    memset(p.forced, 1, (size_t)p.c.T);
    float **with = NULL;
    for (int pass = 0; pass < 2; pass++) {
        results r = p.r;
        if (pass == 1) r.logits = NULL;
        MUST(wb_train_zero_grads(p.f.train));
        train_pass(&p.f, &p.c, N_SEQS, p.seqs, (direction){p.r.ids, p.forced}, p.dlogprobs, &r);
        if (pass == 0) with = copy_gradients(&p);
    }
    for (int32_t i = 0; i < wb_model_n_tensors(p.f.model); i++) {
        const wb_tensor tensor = wb_model_tensor(p.f.model, i);
        assert_memory_equal(with[i], wb_train_grad(p.f.train, &tensor), (size_t)tensor.n * sizeof(float));
        free(with[i]);
    }
    free(with);
    close_problem(&p);
}

static void test_gradients_accumulate_over_micro_batches(void **state) {
    (void)state;
    problem p;
    open_problem(&p, VARIANT_QWEN3, 7);
    const int32_t n = wb_model_n_tensors(p.f.model);
    float **once = copy_gradients(&p);
    MUST(wb_train_zero_grads(p.f.train));
    for (int32_t s = 0; s < N_SEQS; s++)
        train_pass(&p.f, &p.c, 1, &p.seqs[s], (direction){p.r.ids, p.forced}, p.dlogprobs, &p.r);
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor tensor = wb_model_tensor(p.f.model, i);
        const float *grad = wb_train_grad(p.f.train, &tensor);
        double largest = 0, worst = 0;
        for (int64_t j = 0; j < tensor.n; j++) {
            largest = fmax(largest, fabs((double)once[i][j]));
            worst = fmax(worst, fabs((double)grad[j] - (double)once[i][j]));
            assert_true(isfinite(grad[j]));
        }
        assert_true(worst <= 1e-5 * largest);
        free(once[i]);
    }
    free(once);
    close_problem(&p);
}

/* An update with no backward behind wb_train_zero_grads: nothing of the last one's gradients is left. */
static void expect_zeros(const float *x, int64_t n) {
    for (int64_t j = 0; j < n; j++) assert_true(x[j] == 0);
}

static wb_status update_by_zeros(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                                 wb_rows weight) {
    (void)i, (void)first, (void)weight;
    expect_zeros(gradient, n);
    *(int64_t *)ctx += n;
    return WB_OK;
}

static void test_no_backward_is_a_gradient_of_zero(void **state) {
    (void)state;
    problem p;
    int64_t n_updated = 0;
    open_problem(&p, VARIANT_QWEN3, 9);
    float **once = copy_gradients(&p);
    MUST(wb_train_zero_grads(p.f.train));
    MUST(wb_train_update_experts(p.f.train, NULL, update_by_zeros, &n_updated));
    assert_true(n_updated > 0);
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 0) MUST(wb_train_zero_grads(p.f.train));
        train_pass(&p.f, &p.c, N_SEQS, p.seqs, (direction){p.r.ids, p.forced}, p.dlogprobs, &p.r);
        if (pass == 0) MUST(wb_train_zero_grads(p.f.train));
        MUST(wb_train_reduce_grads(p.f.train));
        for (int32_t i = 0; i < wb_model_n_tensors(p.f.model); i++) {
            const wb_tensor tensor = wb_model_tensor(p.f.model, i);
            const float *grad = wb_train_grad(p.f.train, &tensor);
            if (pass == 0) expect_zeros(grad, tensor.n);
            for (int64_t j = 0; j < tensor.n && pass == 1; j++) assert_true(grad[j] == once[i][j]);
        }
    }
    for (int32_t i = 0; i < wb_model_n_tensors(p.f.model); i++) free(once[i]);
    free(once);
    close_problem(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_with_bias_and_dense_layer),
        cmocka_unit_test(test_gradients_with_tied_embeddings),
        cmocka_unit_test(test_gradients_with_clamp),
        cmocka_unit_test(test_gradients_with_a_gated_shared_expert_and_windows),
        cmocka_unit_test(test_gradients_with_groups_and_shared_experts),
        cmocka_unit_test(test_gradients_with_sinks_and_clamped_experts),
        cmocka_unit_test(test_rule_31_gradients_of_a_distribution),
        cmocka_unit_test(test_gradients_with_kept_logits),
        cmocka_unit_test(test_no_backward_is_a_gradient_of_zero),
        cmocka_unit_test(test_gradients_accumulate_over_micro_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
