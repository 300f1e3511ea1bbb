/* model_ranks.h - a model spread over ranks against the same model on one rank: one test core for threads
 * and MPI.
 *
 * Every rank also runs the whole model by itself. Routes, log-probabilities and logits of its sequences
 * must be the same bits; gradients, whose sums over tokens are taken in another order, agree to 1e-5 of
 * the tensor's largest entry and repeat bit for bit. The core never leaves early, so that ranks stay in
 * step. */
#ifndef MODEL_RANKS_H
#define MODEL_RANKS_H

#include "model_fixture.h"
#include "train_state.h"

#define N_SEQS 7

typedef struct ranks_test {
    fixture spread, whole; /* over all ranks, on this one */
    corpus corpus;
    uint64_t seed;
    int32_t n_mine, mine[N_SEQS], all[N_SEQS];
    const char *name;
    int failures;
} ranks_test;

static inline void expect(ranks_test *test, bool held, const char *what) {
    if (held) return;
    test->failures++;
    fprintf(stderr, "%s, rank %d of %d, seed %" PRIu64 ": %s\n", test->name, wb_comm_rank(test->spread.comm),
            wb_comm_size(test->spread.comm), test->seed, what);
}

/* Which rank feeds sequence s. In every second round one rank feeds all of them. */
static inline void deal_sequences(ranks_test *test, int round) {
    const int32_t size = wb_comm_size(test->spread.comm);
    uint64_t state = test->seed + (uint64_t)round;
    const int32_t one = random_below(&state, size);
    test->n_mine = 0;
    for (int32_t s = 0; s < N_SEQS; s++) {
        const int32_t owner = round % 2 == 1 ? one : random_below(&state, size);
        if (owner == wb_comm_rank(test->spread.comm)) test->mine[test->n_mine++] = s;
        test->all[s] = s;
    }
}

static inline void expect_same_forward(ranks_test *test, const results *spread, const results *whole) {
    const corpus *c = &test->corpus;
    const size_t V = (size_t)wb_model_config(test->whole.model)->vocab_size;
    const size_t row = test->whole.row_bytes;
    const int32_t n = test->n_mine, *mine = test->mine;
    expect(test, rows_differing(c, n, mine, row, spread->ids, whole->ids) == 0, "ids differ from one rank's");
    expect(test, rows_differing(c, n, mine, row, spread->native, whole->native) == 0,
           "native ids differ from one rank's");
    expect(test, rows_differing(c, n, mine, sizeof(float), spread->logprobs, whole->logprobs) == 0,
           "log-probabilities differ from one rank's");
    expect(test, rows_differing(c, n, mine, V * sizeof(float), spread->logits, whole->logits) == 0,
           "logits differ from one rank's");
    expect(test, all_finite((int64_t)V * c->T, whole->logits), "logits that are not finite");
}

static inline double largest_entry(int64_t n, const float *x) {
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)x[i]));
    return largest;
}

/* Infinite for a NaN. */
static inline double largest_difference(int64_t n, const float *found, const float *expected) {
    double difference = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)found[i] - (double)expected[i]);
        if (!isfinite(d)) return INFINITY;
        difference = fmax(difference, d);
    }
    return difference;
}

/* A scale of hyper-connections is a sum, over all tokens and streams, of the terms of the bias before it in
 * the list, each times a number near 1. The sum may cancel to nearly nothing, and what it is off by does not:
 * it is measured beside the bias. */
static inline void expect_same_gradients(ranks_test *test) {
    double before = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(test->spread.model); i++) {
        const wb_tensor here = wb_model_lead(test->spread.model, i);
        const wb_tensor whole = wb_model_tensor(test->whole.model, i);
        const float *found = wb_train_grad(test->spread.train, &here);
        if (!found) continue;
        const float *expected = wb_train_grad(test->whole.train, &whole);
        double largest = largest_entry(here.n, expected);
        if (strstr(here.name, "hc_") && strstr(here.name, "_scale")) largest = fmax(largest, before);
        before = largest;
        const double off = largest_difference(here.n, found, expected);
        if (!(off <= 1e-5 * largest))
            fprintf(stderr, "%s: off by %.3g, largest %.3g\n", here.name, off, largest);
        expect(test, off <= 1e-5 * largest, "a gradient differs from one rank's");
    }
}

static inline int64_t gradient_elements(const fixture *f) {
    int64_t n = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) {
        const wb_tensor tensor = wb_model_lead(f->model, i);
        if (wb_train_grad(f->train, &tensor)) n += tensor.n;
    }
    return n;
}

/* All sums of gradients that are on this rank, tensor by tensor. */
static inline float *gradients_copy(const fixture *f) {
    float *copy = take(gradient_elements(f), sizeof(float)), *at = copy;
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) {
        const wb_tensor tensor = wb_model_lead(f->model, i);
        const float *grad = wb_train_grad(f->train, &tensor);
        if (!grad) continue;
        MUST(f->device->to_host(f->device, at, grad, (size_t)tensor.n * sizeof(float)));
        at += tensor.n;
    }
    return copy;
}

/* Spread and whole, forward and backward; `d` by token of the corpus. Gradients are left in place. */
static inline void both_passes(ranks_test *test, direction d, const float *dlogprobs, results *spread,
                               results *whole) {
    MUST(wb_train_zero_grads(test->spread.train));
    MUST(wb_train_zero_grads(test->whole.train));
    train_pass(&test->spread, &test->corpus, test->n_mine, test->mine, d, dlogprobs, spread);
    if (!test->spread.reduce_meanwhile) MUST(wb_train_reduce_grads(test->spread.train));
    train_pass(&test->whole, &test->corpus, N_SEQS, test->all, d, dlogprobs, whole);
}

static inline void round_of(ranks_test *test, int round) {
    const int32_t T = test->corpus.T;
    uint64_t state = test->seed + 100 + (uint64_t)round;
    results spread = results_new(&test->spread, &test->corpus),
            whole = results_new(&test->whole, &test->corpus);
    uint8_t *ids = routes_random(&test->whole, T, &state), *forced = take(T, 1);
    float *dlogprobs = take(T, sizeof(float));
    for (int32_t t = 0; t < T; t++) {
        forced[t] = (uint8_t)random_below(&state, 2);
        dlogprobs[t] = random_unit(&state);
    }
    deal_sequences(test, round);

    both_passes(test, (direction){0}, dlogprobs, &spread, &whole);
    expect_same_forward(test, &spread, &whole);
    expect_same_gradients(test);
    expect(test,
           rows_differing(&test->corpus, test->n_mine, test->mine, test->whole.row_bytes, spread.ids,
                          spread.native) == 0,
           "native ids differ from the ids chosen");

    const direction mixed = {ids, forced};
    both_passes(test, mixed, dlogprobs, &spread, &whole);
    expect_same_forward(test, &spread, &whole);
    expect_same_gradients(test);

    /* Again, and now in many small buckets that travel during the backward, and small parts of slots. */
    float *first = gradients_copy(&test->spread);
    const int64_t bucket_elements = test->spread.train->reduction.bucket_elements;
    const int64_t part_elements = test->spread.train->experts.part_elements;
    test->spread.reduce_meanwhile = true;
    test->spread.train->reduction.bucket_elements = 37;
    test->spread.train->experts.part_elements = 23;
    both_passes(test, mixed, dlogprobs, &spread, &whole);
    test->spread.reduce_meanwhile = false;
    test->spread.train->reduction.bucket_elements = bucket_elements;
    test->spread.train->experts.part_elements = part_elements;
    float *second = gradients_copy(&test->spread);
    expect(test, memcmp(first, second, (size_t)gradient_elements(&test->spread) * sizeof(float)) == 0,
           "a repeated backward gives other bits");
    void *const arrays[] = {first, second, ids, forced, dlogprobs};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
    results_free(&spread);
    results_free(&whole);
}

static inline int ranks_test_run(ranks_test *test) {
    uint64_t state = test->seed;
    test->corpus = corpus_random(wb_model_config(test->whole.model), N_SEQS, 12, &state);
    for (int round = 0; round < 2; round++) round_of(test, round);
    corpus_free(&test->corpus);
    fixture_close(&test->spread);
    fixture_close(&test->whole);
    return test->failures;
}

/* Random models of every variant. Collective; returns this rank's number of failures. */
static inline int model_ranks_run_random(wb_comm *comm, uint64_t seed) {
    static const char *const names[N_VARIANTS] = {
        "qwen3",   "qwen3 tied", "olmoe clip",      "few experts", "wide ids",    "qwen2",   "glm4",
        "gpt_oss", "latent",     "latent low rank", "delta",       "delta apart", "entries", "weightless"};
    int failures = 0;
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        ranks_test test = {.name = names[v], .seed = seed};
        test.spread = fixture_create(&config, seed, comm, 1);
        test.whole = fixture_create(&config, seed, self, 1);
        failures += ranks_test_run(&test);
    }
    wb_comm_close(self);
    return failures;
}

#endif
