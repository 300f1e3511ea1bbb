/* test_grpo_loss.c - waybill-grpo's loss against differences of itself and against values worked out by
 * hand: token and sequence ratio, both clips on both signs of the advantage, KL to a reference, truncated
 * importance sampling.
 *
 * Cases of the difference test keep every ratio away from the clips' kinks, where there is no derivative. */
#include "../../examples/grpo/loss.c"
#include "support/test_seed.h"
#include "wb_random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

enum { N = 7, ROUNDS = 2000 };
static const double low = 0.2, high = 0.3;
static uint64_t seed;
static float
    rollout[N]; /* log-probabilities that the sequence was sampled with, where a case has a tis_cap */

static double uniform(double from, double to) {
    return from + (to - from) * (double)(wb_random(&seed) >> 11) * 0x1p-53;
}

static loss_options options_of(ratio_kind ratio, double kl_coef) {
    return (loss_options){ratio, low, high, kl_coef, 1.0 / 13, 1.0 / 3, 0};
}

static void assert_close(double found, double expected, double tolerance) {
    if (!(fabs(found - expected) <= tolerance)) /* NaN fails */
        fail_msg("expected %.9g, found %.9g, tolerance %.3g", expected, found, tolerance);
}

static loss_sums run(const loss_options *o, size_t n, const float *logprobs, const float *old,
                     const float *reference, double advantage, float *gradient) {
    loss_sums sums = {0, 0, 0, 0};
    const loss_logprobs all = {logprobs, old, reference, o->tis_cap > 0 ? rollout : NULL};
    loss_sequence(o, n, &all, advantage, gradient, &sums);
    return sums;
}

static bool near_a_kink(double log_ratio) {
    return fabs(log_ratio - log(1 - low)) < 0.01 || fabs(log_ratio - log(1 + high)) < 0.01;
}

/* Log-probabilities of a policy, of the rollout's trainer and of a reference; false where a ratio is at a
 * kink. */
static bool draw(ratio_kind ratio, float *logprobs, float *old, float *reference) {
    double mean = 0, shift = uniform(-0.5, 0.5);
    bool kink = false;
    for (int t = 0; t < N; t++) {
        logprobs[t] = (float)uniform(-3, -0.1);
        old[t] = logprobs[t] + (float)(shift + uniform(-0.3, 0.3));
        reference[t] = logprobs[t] + (float)uniform(-0.8, 0.8);
        double log_ratio = (double)logprobs[t] - (double)old[t];
        mean += log_ratio / N;
        kink = kink || near_a_kink(log_ratio);
    }
    return ratio == RATIO_SEQUENCE ? !near_a_kink(mean) : !kink;
}

/* (L(x + e) - L(x - e)) / 2e by the log-probability of token t; e is what f32 really moved. */
static double difference(const loss_options *o, float *logprobs, const float *old, const float *reference,
                         double advantage, int t) {
    float unused[N], at = logprobs[t];
    float above = at + 1e-3f, below = at - 1e-3f;
    logprobs[t] = above;
    double loss = run(o, N, logprobs, old, reference, advantage, unused).loss;
    logprobs[t] = below;
    loss -= run(o, N, logprobs, old, reference, advantage, unused).loss;
    logprobs[t] = at;
    return loss / ((double)above - (double)below);
}

static void check_differences(ratio_kind ratio, double kl_coef, double tis_cap) {
    loss_options o = options_of(ratio, kl_coef);
    o.tis_cap = tis_cap;
    int clipped = 0, free_ones = 0;
    for (int i = 0; i < ROUNDS; i++) {
        float logprobs[N], old[N], reference[N], gradient[N];
        double advantage = uniform(-2, 2);
        if (!draw(ratio, logprobs, old, reference)) continue;
        for (int t = 0; t < N; t++) rollout[t] = old[t] + (float)uniform(-1, 1);
        const float *to = kl_coef > 0 ? reference : NULL;
        loss_sums sums = run(&o, N, logprobs, old, to, advantage, gradient);
        clipped += sums.clipped > 0;
        free_ones += sums.clipped < N;
        for (int t = 0; t < N; t++)
            assert_close((double)gradient[t], difference(&o, logprobs, old, to, advantage, t), 2e-5);
    }
    assert_true(clipped > ROUNDS / 100 && free_ones > ROUNDS / 100);
}

static void gradient_by_token(void **state) {
    (void)state;
    check_differences(RATIO_TOKEN, 0, 0);
}

static void gradient_by_sequence(void **state) {
    (void)state;
    check_differences(RATIO_SEQUENCE, 0, 0);
}

static void gradient_with_kl(void **state) {
    (void)state;
    check_differences(RATIO_TOKEN, 0.7, 0);
    check_differences(RATIO_SEQUENCE, 0.7, 0);
}

static void gradient_with_importance(void **state) {
    (void)state;
    check_differences(RATIO_TOKEN, 0, 1.5);
    check_differences(RATIO_TOKEN, 0.7, 1.5);
}

/* A token counts by its own weight, which is cut above and not below; the KL has none. */
static void importance_is_truncated(void **state) {
    (void)state;
    const struct {
        double log_weight, weight;
    } cases[] = {{0, 1}, {-3, exp(-3)}, {0.5, exp(0.5)}, {1, 2}, {50, 2}, {200, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        loss_options o = options_of(RATIO_TOKEN, 0.5);
        o.tis_cap = 2;
        float logprob = -1, reference = -1.5f, gradient, plain;
        rollout[0] = (float)(-1 - cases[i].log_weight);
        loss_sums sums = run(&o, 1, &logprob, &logprob, NULL, 3, &gradient);
        assert_close(sums.loss, -o.token_scale * 3 * cases[i].weight, 1e-6);
        assert_close((double)gradient, -o.token_scale * 3 * cases[i].weight, 1e-6);
        sums = run(&o, 1, &logprob, &logprob, &reference, 0, &gradient);
        o.tis_cap = 0;
        assert_close(sums.loss, run(&o, 1, &logprob, &logprob, &reference, 0, &plain).loss, 0);
        assert_true(gradient == plain);
    }
}

/* The clip stops the gradient only where the objective would still improve beyond it. */
static void clips_on_both_sides(void **state) {
    (void)state;
    const struct {
        double ratio, advantage, bounded;
        bool clipped;
    } cases[] = {{1.0, 1, 1.0, false},  {1.29, 1, 1.29, false},  {1.5, 1, 1.3, true},  {0.5, 1, 0.5, false},
                 {1.0, -1, 1.0, false}, {0.81, -1, 0.81, false}, {0.5, -1, 0.8, true}, {1.5, -1, 1.5, false}};
    const ratio_kind kinds[] = {RATIO_TOKEN, RATIO_SEQUENCE};
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            loss_options o = options_of(kinds[k], 0);
            double scale = kinds[k] == RATIO_TOKEN ? o.token_scale : o.sequence_scale;
            float old = -2, logprob = (float)(-2 + log(cases[i].ratio)), gradient = 9;
            loss_sums sums = run(&o, 1, &logprob, &old, NULL, cases[i].advantage, &gradient);
            assert_close(sums.loss, -scale * cases[i].bounded * cases[i].advantage, 1e-6);
            assert_close((double)gradient,
                         cases[i].clipped ? 0 : -scale * cases[i].ratio * cases[i].advantage, 1e-6);
            assert_true(sums.clipped == cases[i].clipped && sums.tokens == 1);
        }
}

/* On policy the loss is -A and each token pulls with the same weight: 1 / tokens, or 1 / sequences / its
 * length. */
static void weights_of_tokens(void **state) {
    (void)state;
    float logprobs[N] = {-1, -2, -3, -1, -2, -3, -1}, gradient[N];
    loss_options token = options_of(RATIO_TOKEN, 0), sequence = options_of(RATIO_SEQUENCE, 0);
    assert_close(run(&token, N, logprobs, logprobs, NULL, 2, gradient).loss, -2.0 * N / 13, 1e-12);
    for (int t = 0; t < N; t++) assert_close((double)gradient[t], -2.0 / 13, 1e-7);
    assert_close(run(&sequence, N, logprobs, logprobs, NULL, 2, gradient).loss, -2.0 / 3, 1e-12);
    for (int t = 0; t < N; t++) assert_close((double)gradient[t], -2.0 / 3 / N, 1e-7);
}

static void kl_to_the_reference(void **state) {
    (void)state;
    loss_options o = options_of(RATIO_TOKEN, 0.5);
    float logprob = -1, reference = -1.5f, gradient;
    loss_sums sums = run(&o, 1, &logprob, &logprob, &reference, 0, &gradient);
    double k3 = exp(-0.5) + 0.5 - 1;
    assert_close(sums.kl_reference, k3, 1e-9);
    assert_close(sums.loss, o.token_scale * 0.5 * k3, 1e-9);
    sums = run(&o, 1, &logprob, &logprob, &logprob, 0, &gradient);
    assert_true(sums.kl_reference == 0 && gradient == 0);
}

static void no_tokens(void **state) {
    (void)state;
    loss_options token = options_of(RATIO_TOKEN, 1), sequence = options_of(RATIO_SEQUENCE, 1);
    float unused = 0;
    loss_sums a = run(&token, 0, &unused, &unused, &unused, 1, &unused);
    loss_sums b = run(&sequence, 0, &unused, &unused, &unused, 1, &unused);
    assert_true(a.loss == 0 && a.tokens == 0 && b.loss == 0 && b.tokens == 0);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    print_message("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_by_token),
        cmocka_unit_test(gradient_by_sequence),
        cmocka_unit_test(gradient_with_kl),
        cmocka_unit_test(gradient_with_importance),
        cmocka_unit_test(importance_is_truncated),
        cmocka_unit_test(clips_on_both_sides),
        cmocka_unit_test(weights_of_tokens),
        cmocka_unit_test(kl_to_the_reference),
        cmocka_unit_test(no_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
