/* test_ops_sampling.c - log-probabilities and sampling against references in double precision, and the
 * frequencies of what is drawn. */
#include "gradient_check.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

static double logprob_of(const double *z, int64_t V, int64_t target) {
    double max = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < V; i++) max = z[i] > max ? z[i] : max;
    for (int64_t i = 0; i < V; i++) sum += exp(z[i] - max);
    return z[target] - max - log(sum);
}

typedef struct logprob_case {
    int64_t T, V;
    const int32_t *targets;
    const float *d;
} logprob_case;

static double logprob_loss(const double *x, const void *context) {
    const logprob_case *c = context;
    double loss = 0.0;
    for (int64_t t = 0; t < c->T; t++)
        if (c->targets[t] >= 0) loss += (double)c->d[t] * logprob_of(x + t * c->V, c->V, c->targets[t]);
    return loss;
}

static void test_logprob(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 5, V = 53;
    int32_t targets[5] = {0, 52, -1, 17, 3};
    float *x = random_floats(T * V, -8, 8), *dx = floats(T * V), d[5], y[5];
    for (int i = 0; i < 5; i++) d[i] = rng_uniform(-1, 1);
    double *x2 = doubles(x, T * V);
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, y));
    for (int64_t t = 0; t < T; t++) {
        double expected = targets[t] < 0 ? 0.0 : logprob_of(x2 + t * V, V, targets[t]);
        assert_close(y[t], expected, 100 * u * (1 + fabs(expected)), "logprob", t);
    }
    logprob_case c = {T, V, targets, d};
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, d, dx));
    check_gradient(logprob_loss, &c, x, T * V, dx, NULL, 2e-6, "logprob_backward");
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, d, x));
    assert_same_bits(x, dx, T * V, "logprob_backward in place");
    free(x), free(dx), free(x2);
    wb_device_close(dev);
}

/* The kept tokens in drawing order, naively: sorted unless everything is kept. 0 where rounding decides
 * how many. */
static int64_t kept_tokens(const float *z, int64_t V, const wb_sample_params *p, int32_t *ids, double *prob) {
    double max = -INFINITY, total = 0.0, sum = 0.0;
    bool all = (p->top_k == 0 || p->top_k >= V) && p->top_p >= 1.0f;
    for (int64_t i = 0; i < V; i++) max = (double)z[i] > max ? (double)z[i] : max;
    for (int32_t i = 0; i < V; i++) ids[i] = i;
    for (int64_t i = 1; i < V && !all; i++) /* insertion sort: stable, so ids ascend within a tie */
        for (int64_t j = i; j > 0 && z[ids[j]] > z[ids[j - 1]]; j--) {
            int32_t id = ids[j];
            ids[j] = ids[j - 1], ids[j - 1] = id;
        }
    int64_t n = p->top_k > 0 && p->top_k < V ? p->top_k : V, kept = 0;
    for (int64_t i = 0; i < n; i++)
        total += prob[i] = exp(((double)z[ids[i]] - max) / (double)p->temperature);
    while (kept < n && (kept == 0 || all || sum < (double)p->top_p * total)) sum += prob[kept++];
    bool close = !all && (fabs(sum / total - (double)p->top_p) < 1e-5 ||
                          fabs((sum - prob[kept - 1]) / total - (double)p->top_p) < 1e-5);
    for (int64_t i = 0; i < kept; i++) prob[i] /= sum;
    return close ? 0 : kept;
}

static void test_sample(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    enum { B = 64, V = 97 };
    wb_sample_params params[B];
    float *z = floats(B * V), logprobs[B];
    int32_t tokens[B], ids[V];
    double prob[V];
    for (int round = 0; round < 20; round++) {
        for (int64_t i = 0; i < B * V; i++) z[i] = (float)rng_range(-12, 12) * 0.5f; /* ties on purpose */
        for (int b = 0; b < B; b++) {
            if (b % 7 == 0) z[b * V + rng_range(0, V - 1)] = -INFINITY;
            params[b] = (wb_sample_params){
                b % 5 == 0 ? 0.0f : rng_uniform(0.3f, 2.0f), b % 3 == 0 ? (int32_t)rng_range(1, V + 5) : 0,
                b % 2 == 0 ? rng_uniform(0.05f, 0.99f) : 1.0f, rng_uniform(0.0f, 1.0f)};
        }
        params[1].uniform = 0x1.fffffep-1f; /* the last float below 1 still finds a token */
        assert_ok(dev->sample(dev, B, V, z, params, tokens, logprobs));
        for (int b = 0; b < B; b++) {
            const float *row = z + b * V;
            if (params[b].temperature == 0.0f) {
                int32_t best = 0;
                for (int32_t i = 0; i < V; i++) best = row[i] > row[best] ? i : best;
                assert_int_equal(tokens[b], best);
                assert_true(logprobs[b] == 0.0f);
                continue;
            }
            int64_t kept = kept_tokens(row, V, params + b, ids, prob), at = 0;
            while (at < kept && ids[at] != tokens[b]) at++;
            if (kept == 0) continue;
            assert_true(at < kept);
            double below = 0.0;
            for (int64_t i = 0; i < at; i++) below += prob[i];
            assert_true(prob[at] > 0.0);
            assert_close(params[b].uniform, below + prob[at] / 2, prob[at] / 2 + 1e-6,
                         "uniform within the token's share", b);
            assert_close(logprobs[b], log(prob[at]), 1e-5, "logprob of the token", b);
        }
    }
    z[5 * V + 3] = NAN;
    tokens[0] = -7;
    assert_int_equal(dev->sample(dev, B, V, z, params, tokens, logprobs), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "row 5"));
    assert_int_equal(tokens[0], -7);
    free(z);
    wb_device_close(dev);
}

static void test_sample_frequencies(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const float z[4] = {0.0f, 1.0f, 2.0f, -1.0f};
    const int64_t draws = 20000;
    int64_t hits[4] = {0};
    for (int64_t i = 0; i < draws; i++) {
        wb_sample_params p = {1.0f, 3, 1.0f, ((float)i + 0.5f) / (float)draws};
        int32_t token;
        float logprob;
        assert_ok(dev->sample(dev, 1, 4, z, &p, &token, &logprob));
        hits[token]++;
    }
    double total = 1.0 + exp(1.0) + exp(2.0);
    for (int i = 0; i < 3; i++)
        assert_close((double)hits[i] / (double)draws, exp((double)z[i]) / total, 1e-3, "frequency", i);
    assert_int_equal(hits[3], 0);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logprob),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_sample_frequencies),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
