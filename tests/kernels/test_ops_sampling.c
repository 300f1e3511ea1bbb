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
    const float *temperature; /* [T]; NULL: 1, and no limit */
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
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, NULL, y));
    for (int64_t t = 0; t < T; t++) {
        double expected = targets[t] < 0 ? 0.0 : logprob_of(x2 + t * V, V, targets[t]);
        assert_close(y[t], expected, 100 * u * (1 + fabs(expected)), "logprob", t);
    }
    logprob_case c = {T, V, targets, d, NULL};
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, NULL, d, dx));
    check_gradient(logprob_loss, &c, x, T * V, dx, NULL, 2e-6, "logprob_backward");
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, NULL, d, x));
    assert_same_bits(x, dx, T * V, "logprob_backward in place");
    free(x), free(dx), free(x2);
    wb_device_close(dev);
}

/* More parts of a sum than lanes, and parts of -inf alone. */
static void test_logprob_of_many_parts(void **state) {
    (void)state;
    enum { T = 4, V = 40003 };
    wb_device *dev = open_cpu(2);
    const int32_t targets[T] = {0, V - 1, 12345, 39000};
    const float d[T] = {1.0f, 1.0f, 1.0f, 1.0f};
    float *x = random_floats(T * V, -8, 8), *dx = floats(T * V), y[T];
    for (int64_t i = 2048; i < 12000; i++) x[V + i] = -INFINITY;
    for (int64_t i = 0; i < 12000; i++) x[2 * V + i] = -INFINITY;
    for (int64_t i = 0; i < V; i++)
        x[3 * V + i] += i / 2048 == 3 ? 60.0f : 0.0f; /* the others nearly vanish */
    double *x2 = doubles(x, T * V);
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, NULL, y));
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, NULL, d, dx));
    for (int64_t t = 0; t < T; t++) {
        const double expected = logprob_of(x2 + t * V, V, targets[t]);
        assert_close(y[t], expected, 200 * u * (1 + fabs(expected)), "logprob", t);
        for (int64_t i = 0; i < V; i++) {
            const double p = exp(x2[t * V + i] - x2[t * V + targets[t]] + expected);
            assert_close(dx[t * V + i], (i == targets[t]) - p, 300 * u * p + u, "gradient", t * V + i);
        }
    }
    x[3 * V + 39999] = NAN;
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, NULL, y));
    assert_true(isnan(y[3]) && !isnan(y[2]));
    free(x), free(dx), free(x2);
    wb_device_close(dev);
}

enum { DIST_T = 6, DIST_V = 53 };

/* Row t keeps, in this order, all; 5 tokens; the target alone; all but one; all; every other one. */
static int64_t keep_for_row(int64_t t, int32_t target, uint32_t *ids) {
    int64_t n = 0;
    for (uint32_t id = 0; id < DIST_V; id++) {
        const bool is_target = (int32_t)id == target;
        const bool kept[DIST_T] = {false, id % 13 == 2 || is_target, is_target, id != 7, false, id % 2 == 0};
        if (kept[t]) ids[n++] = id;
    }
    return n;
}

static double distribution_loss(const double *x, const void *context) {
    const logprob_case *c = context;
    double loss = 0.0, y[DIST_V];
    for (int64_t t = 0; t < c->T; t++) {
        uint32_t ids[DIST_V];
        if (c->targets[t] < 0) continue;
        int64_t n = keep_for_row(t, c->targets[t], ids), at = 0;
        for (int64_t i = 0; n == 0 && i < c->V; i++) ids[i] = (uint32_t)i;
        if (n == 0) n = c->V;
        for (int64_t i = 0; i < n; i++) {
            y[i] = x[t * c->V + ids[i]] / (double)c->temperature[t];
            if ((int32_t)ids[i] == c->targets[t]) at = i;
        }
        loss += (double)c->d[t] * logprob_of(y, n, at);
    }
    return loss;
}

static void test_logprob_of_a_distribution(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    enum { T = DIST_T, V = DIST_V };
    const int32_t targets[T] = {0, 52, 21, 17, -1, 4};
    const float temperature[T] = {0.7f, 1.0f, 0.3f, 1.7f, 0.5f, 0.9f};
    uint32_t ids[T * V];
    int64_t start[T + 1] = {0};
    for (int64_t t = 0; t < T; t++) start[t + 1] = start[t] + keep_for_row(t, targets[t], ids + start[t]);
    float *x = random_floats(T * V, -8, 8), *dx = floats(T * V), d[T], y[T], one[T];
    for (int i = 0; i < T; i++) d[i] = rng_uniform(-1, 1);
    double *x2 = doubles(x, T * V);
    const wb_distribution of = {temperature, ids, start};
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, &of, y));
    for (int i = 0; i < T; i++) {
        float only[T] = {0};
        only[i] = 1;
        const double expected = distribution_loss(x2, &(logprob_case){T, V, targets, only, temperature});
        assert_close(y[i], expected, 200 * u * (1 + fabs(expected)), "logprob", i);
    }
    assert_true(y[2] == 0.0f);
    logprob_case c = {T, V, targets, d, temperature};
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, &of, d, dx));
    check_gradient(distribution_loss, &c, x, T * V, dx, NULL, 4e-6, "logprob_backward of a distribution");
    assert_true(dx[5 * V + 1] == 0.0f && dx[3 * V + 7] == 0.0f);
    for (int i = 0; i < V; i++) assert_true(dx[2 * V + i] == 0.0f && dx[4 * V + i] == 0.0f);

    /* Temperature 1 and every token, one by one, are the bits of no limit. */
    for (int64_t t = 0; t <= T; t++) start[t] = t * V;
    for (int64_t i = 0; i < T * V; i++) ids[i] = (uint32_t)(i % V);
    const wb_distribution all = {NULL, ids, start};
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, &all, y));
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, NULL, one));
    assert_same_bits(y, one, T, "every token kept");
    float *in_place = copied(x, T * V);
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, &all, d, dx));
    assert_ok(dev->logprob_backward(dev, T, V, in_place, targets, NULL, d, in_place));
    assert_same_bits(dx, in_place, T * V, "every token kept, backward");
    free(x), free(dx), free(x2), free(in_place);
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

static bool among(const uint32_t *ids, int32_t n, uint32_t id) {
    int32_t i = 0;
    while (i < n && ids[i] != id) i++;
    return i < n;
}

/* Samples with room for what is kept, and sees that the sample's log-probability is the bits that the op of
 * training gives for it. */
static void sample_with_kept(wb_device *dev, int64_t B, int64_t V, const float *z,
                             const wb_sample_params *params, int32_t *tokens, float *logprobs, uint32_t *ids,
                             int64_t *start, int32_t *counts) {
    float *temperature = floats(B), *again = floats(B);
    int64_t *packed_start = xalloc(B + 1, sizeof *packed_start);
    uint32_t *packed = xalloc(B * V, sizeof *packed);
    start[0] = packed_start[0] = 0;
    for (int64_t b = 0; b < B; b++) start[b + 1] = start[b] + wb_sample_max_kept(params + b, V);
    const wb_sample_kept kept = {start, ids, counts};
    assert_ok(dev->sample(dev, B, V, z, params, &kept, tokens, logprobs));
    for (int64_t b = 0; b < B; b++) {
        const uint32_t *row = ids + start[b];
        temperature[b] = params[b].temperature > 0 ? params[b].temperature : 1;
        memcpy(packed + packed_start[b], row, (size_t)counts[b] * sizeof *row);
        packed_start[b + 1] = packed_start[b] + counts[b];
        for (int32_t i = 1; i < counts[b]; i++) assert_true(row[i] > row[i - 1]);
        if (counts[b] > 0) assert_true(among(row, counts[b], (uint32_t)tokens[b]));
    }
    const wb_distribution of = {temperature, packed, packed_start};
    assert_ok(dev->logprob_forward(dev, B, V, z, tokens, &of, again));
    assert_same_bits(logprobs, again, B, "log-probability of a sample, and of training");
    free(temperature), free(again), free(packed_start), free(packed);
}

static void test_sample(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    enum { B = 64, V = 97 };
    wb_sample_params params[B];
    float *z = floats(B * V), logprobs[B];
    int32_t tokens[B], ids[V], counts[B];
    uint32_t *kept_ids = xalloc(B * V, sizeof *kept_ids);
    int64_t start[B + 1];
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
        sample_with_kept(dev, B, V, z, params, tokens, logprobs, kept_ids, start, counts);
        for (int b = 0; b < B; b++) {
            const float *row = z + b * V;
            if (params[b].temperature == 0.0f) {
                int32_t best = 0;
                for (int32_t i = 0; i < V; i++) best = row[i] > row[best] ? i : best;
                assert_int_equal(tokens[b], best);
                assert_true(logprobs[b] == 0.0f);
                assert_true(counts[b] == 1 && kept_ids[start[b]] == (uint32_t)best);
                continue;
            }
            int64_t kept = kept_tokens(row, V, params + b, ids, prob), at = 0;
            const bool limited = wb_sample_max_kept(params + b, V) > 0;
            if (kept > 0) assert_int_equal(counts[b], limited ? kept : 0);
            for (int64_t i = 0; kept > 0 && limited && i < kept; i++)
                assert_true(among(kept_ids + start[b], counts[b], (uint32_t)ids[i]));
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
    assert_int_equal(dev->sample(dev, B, V, z, params, NULL, tokens, logprobs), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "row 5"));
    assert_int_equal(tokens[0], -7);
    free(z), free(kept_ids);
    wb_device_close(dev);
}

/* More tokens than a block of the draw: its sums are in another order than the log-softmax's. */
static void test_sample_has_the_bits_of_training(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    enum { B = 48, V = 20000 };
    float *z = random_floats(B * V, -3, 3), logprobs[B];
    uint32_t *ids = xalloc(B * V, sizeof *ids);
    int32_t tokens[B], counts[B];
    int64_t start[B + 1];
    wb_sample_params params[B];
    for (int b = 0; b < B; b++)
        params[b] = (wb_sample_params){b % 3 == 0 ? 1.0f : rng_uniform(0.3f, 2.0f), b % 2 == 0 ? 0 : 300,
                                       b % 4 < 2 ? 1.0f : 0.9f, rng_uniform(0.0f, 1.0f)};
    sample_with_kept(dev, B, V, z, params, tokens, logprobs, ids, start, counts);
    free(z), free(ids);
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
        assert_ok(dev->sample(dev, 1, 4, z, &p, NULL, &token, &logprob));
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
        cmocka_unit_test(test_logprob_of_many_parts),
        cmocka_unit_test(test_logprob_of_a_distribution),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_sample_has_the_bits_of_training),
        cmocka_unit_test(test_sample_frequencies),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
