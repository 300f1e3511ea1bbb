/* test_model_invariance.c - a token's routes, logits and log-probability are the same bits however it is
 * fed.
 *
 * What inference captures is what the training forward chooses; what the forward is forced to is what it
 * uses; neither neighbours, chunks, block tables, threads, ranks nor the placement of experts change a
 * bit. Also: bad batches are refused with a name, a steady state allocates nothing, and every allocation
 * may fail. All of it for activations of f32 and of bf16. Seeds are printed; argument 1 sets one. */
#include "model_ranks.h"
#include "placement_fixture.h"
#include "support/cpu_split.h"
#include "support/test_seed.h"
#include "wb_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

enum { RANKS = 3 };

/* By variant. */
static const int threads_of[N_VARIANTS] = {2, 3, 5, 2, 3, 2, 3, 4, 2, 3, 3, 2, 2, 3};

static uint64_t base_seed;

/* The model of a variant on one rank, a corpus, and one forward of all of it on one thread; the same model
 * on several threads. */
typedef struct reference {
    wb_comm *comm;
    fixture f, threaded;
    corpus c;
    int32_t order[N_SEQS];
    results r;
    int64_t V;
} reference;

static reference reference_open(variant v, uint64_t seed) {
    const wb_config config = variant_config(v);
    uint64_t state = seed;
    reference ref = {.V = config.vocab_size};
    MUST(wb_comm_open_self(&ref.comm));
    ref.f = fixture_create(&config, seed, ref.comm, 1);
    ref.threaded = fixture_create(&config, seed, ref.comm, threads_of[v]);
    ref.c = corpus_random(&config, N_SEQS, 14, &state);
    ref.r = results_new(&ref.f, &ref.c);
    for (int32_t s = 0; s < N_SEQS; s++) ref.order[s] = s;
    train_pass(&ref.f, &ref.c, N_SEQS, ref.order, (direction){0}, NULL, &ref.r);
    assert_true(all_finite(ref.V * ref.c.T, ref.r.logits));
    return ref;
}

static void reference_close(reference *ref) {
    results_free(&ref->r);
    corpus_free(&ref->c);
    fixture_close(&ref->f);
    fixture_close(&ref->threaded);
    wb_comm_close(ref->comm);
}

static void assert_same(const reference *ref, int32_t n, const int32_t *seqs, const results *found) {
    assert_int_equal(0, rows_differing(&ref->c, n, seqs, ref->f.row_bytes, found->ids, ref->r.ids));
    assert_int_equal(0, rows_differing(&ref->c, n, seqs, sizeof(float), found->logprobs, ref->r.logprobs));
    assert_int_equal(
        0, rows_differing(&ref->c, n, seqs, (size_t)ref->V * sizeof(float), found->logits, ref->r.logits));
}

/* ---- training ------------------------------------------------------------------------------------ */

static void test_training_does_not_depend_on_neighbours_or_threads(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        uint64_t state = base_seed + (uint64_t)v;
        reference ref = reference_open((variant)v, state);
        results found = results_new(&ref.f, &ref.c);
        for (int repeat = 0; repeat < 6; repeat++) {
            int32_t order[N_SEQS];
            memcpy(order, ref.order, sizeof order);
            shuffle(&state, N_SEQS, order);
            const int32_t n = 1 + random_below(&state, N_SEQS);
            train_pass(repeat % 2 == 0 ? &ref.f : &ref.threaded, &ref.c, n, order, (direction){0}, NULL,
                       &found);
            assert_same(&ref, n, order, &found);
            assert_int_equal(0, rows_differing(&ref.c, n, order, ref.f.row_bytes, found.native, ref.r.ids));
        }
        results_free(&found);
        reference_close(&ref);
    }
}

static void test_gradients_do_not_depend_on_threads(void **unused) {
    (void)unused;
    const int threads[] = {1, 2, 3, 5};
    for (int v = 0; v < N_VARIANTS; v++) {
        uint64_t state = base_seed + 50 + (uint64_t)v;
        reference ref = reference_open((variant)v, state);
        const wb_config config = variant_config((variant)v);
        results found = results_new(&ref.f, &ref.c);
        float *dlogprobs = take(ref.c.T, sizeof(float)), *expected = NULL;
        for (int32_t t = 0; t < ref.c.T; t++) dlogprobs[t] = random_unit(&state);
        for (int i = 0; i < 4; i++) {
            fixture f = fixture_create(&config, base_seed + 50 + (uint64_t)v, ref.comm, threads[i]);
            train_pass(&f, &ref.c, N_SEQS, ref.order, (direction){0}, dlogprobs, &found);
            assert_same(&ref, N_SEQS, ref.order, &found);
            float *gradients = gradients_copy(&f);
            if (i == 0)
                expected = gradients;
            else {
                assert_memory_equal(expected, gradients, (size_t)gradient_elements(&f) * sizeof(float));
                free(gradients);
            }
            fixture_close(&f);
        }
        free(expected);
        free(dlogprobs);
        results_free(&found);
        reference_close(&ref);
    }
}

/* Forcing the forward's own choice changes nothing, row by row. */
static void test_replay_of_own_choice_is_bit_exact(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        uint64_t state = base_seed + 10 + (uint64_t)v;
        reference ref = reference_open((variant)v, state);
        results found = results_new(&ref.f, &ref.c);
        uint8_t *forced = take(ref.c.T, 1);
        for (int repeat = 0; repeat < 3; repeat++) {
            for (int32_t t = 0; t < ref.c.T; t++) forced[t] = repeat == 0 || random_below(&state, 2) == 0;
            uint8_t *ids = routes_random(&ref.f, ref.c.T,
                                         &state); /* rows that choose: whatever was there is overwritten */
            for (int32_t t = 0; t < ref.c.T; t++)
                if (forced[t] != 0)
                    memcpy(ids + (size_t)t * ref.f.row_bytes, ref.r.ids + (size_t)t * ref.f.row_bytes,
                           ref.f.row_bytes);
            train_pass(&ref.f, &ref.c, N_SEQS, ref.order, (direction){ids, forced}, NULL, &found);
            assert_same(&ref, N_SEQS, ref.order, &found);
            free(ids);
        }
        free(forced);
        results_free(&found);
        reference_close(&ref);
    }
}

static void test_forced_rows_keep_their_ids(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        uint64_t state = base_seed + 20 + (uint64_t)v;
        reference ref = reference_open((variant)v, state);
        results found = results_new(&ref.f, &ref.c), again = results_new(&ref.f, &ref.c);
        uint8_t *forced = take(ref.c.T, 1), *ids = routes_random(&ref.f, ref.c.T, &state);
        for (int32_t t = 0; t < ref.c.T; t++) forced[t] = random_below(&state, 2) == 0;
        train_pass(&ref.f, &ref.c, N_SEQS, ref.order, (direction){ids, forced}, NULL, &found);
        const size_t row = ref.f.row_bytes;
        for (int32_t t = 0; t < ref.c.T; t++)
            assert_memory_equal(found.ids + (size_t)t * row,
                                (forced[t] != 0 ? ids : found.native) + (size_t)t * row, row);
        if (v != VARIANT_FEW) /* K = E: any order of all experts */
            assert_true(memcmp(found.logits, ref.r.logits, (size_t)(ref.V * ref.c.T) * sizeof(float)) != 0);

        /* What was used, forced on all rows, is the same forward. */
        memset(forced, 1, (size_t)ref.c.T);
        train_pass(&ref.f, &ref.c, N_SEQS, ref.order, (direction){found.ids, forced}, NULL, &again);
        assert_memory_equal(again.logits, found.logits, (size_t)(ref.V * ref.c.T) * sizeof(float));
        assert_memory_equal(again.native, found.native, (size_t)ref.c.T * row);
        free(forced);
        free(ids);
        results_free(&found);
        results_free(&again);
        reference_close(&ref);
    }
}

/* ---- inference ----------------------------------------------------------------------------------- */

static wb_infer_options pool_of(int32_t n_blocks, int32_t block_size) {
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = n_blocks;
    options.block_size = block_size;
    return options;
}

/* A random schedule: each step feeds some of the sequences a piece each, in random order. */
typedef struct schedule {
    const reference *ref;
    wb_device *device;
    wb_infer *infer;
    uint64_t *state;
    int32_t block_size, max_blocks;
    int32_t *blocks;        /* [N_SEQS, max_blocks] a random permutation of the pool */
    int32_t fed[N_SEQS];    /* tokens of each sequence in the pool */
    int32_t states[N_SEQS]; /* of fixed size, where layers keep some */
} schedule;

static schedule schedule_open(const reference *ref, const fixture *f, uint64_t *state) {
    schedule s = {.ref = ref, .device = f->device, .state = state, .block_size = 1 + random_below(state, 5)};
    s.max_blocks = 14 / s.block_size + 1;
    const int32_t n_blocks = N_SEQS * s.max_blocks;
    s.blocks = take(n_blocks, sizeof(int32_t));
    for (int32_t b = 0; b < n_blocks; b++) s.blocks[b] = b;
    shuffle(state, n_blocks, s.blocks);
    for (int32_t q = 0; q < N_SEQS; q++) s.states[q] = q;
    shuffle(state, N_SEQS, s.states);
    const wb_infer_options options = pool_of(n_blocks, s.block_size);
    MUST(wb_infer_open(f->model, &options, &s.infer));
    return s;
}

/* Log-probabilities of targets under inference's logits must be training's. */
static void assert_logprobs(const reference *ref, int64_t n, const float *logits,
                            const int32_t *corpus_rows) {
    int32_t targets[N_SEQS * 14];
    float logprobs[N_SEQS * 14];
    for (int64_t i = 0; i < n; i++) targets[i] = ref->c.targets[corpus_rows[i]];
    MUST(ref->f.device->logprob_forward(ref->f.device, n, ref->V, logits, targets, NULL, logprobs));
    for (int64_t i = 0; i < n; i++)
        assert_memory_equal(&logprobs[i], &ref->r.logprobs[corpus_rows[i]], sizeof(float));
}

/* One step; returns the number of tokens fed. */
static int32_t schedule_step(schedule *s) {
    const reference *ref = s->ref;
    wb_device *dev = s->device;
    int32_t tokens[N_SEQS * 14], pos[N_SEQS * 14], seq[N_SEQS * 14], at[N_SEQS * 14], wanted[N_SEQS * 14];
    int32_t wanted_at[N_SEQS * 14], order[N_SEQS], T = 0, n_wanted = 0;
    memcpy(order, ref->order, sizeof order);
    shuffle(s->state, N_SEQS, order);
    for (int32_t i = 0; i < N_SEQS; i++) {
        const int32_t q = order[i], left = ref->c.start[q + 1] - ref->c.start[q] - s->fed[q];
        if (left == 0 || random_below(s->state, 3) == 0) continue;
        const int32_t length = random_below(s->state, 2) == 0 ? 1 : 1 + random_below(s->state, left);
        for (int32_t j = 0; j < length; j++, T++) {
            pos[T] = s->fed[q]++;
            seq[T] = q;
            at[T] = ref->c.start[q] + pos[T];
            tokens[T] = ref->c.tokens[at[T]];
            if (random_below(s->state, 2) == 0) continue;
            wanted[n_wanted] = T;
            wanted_at[n_wanted++] = at[T];
        }
    }
    void *ids;
    MUST(dev->mem_alloc(dev, (size_t)T * ref->f.row_bytes, &ids));
    const wb_infer_batch batch = {T,         tokens,    pos,      seq,   N_SEQS, s->max_blocks,
                                  s->blocks, s->states, n_wanted, wanted};
    const wb_routing routing = {.ids = ids};
    const float *logits;
    MUST(wb_infer_forward(s->infer, &batch, &routing, &logits));
    for (int32_t t = 0; t < T; t++)
        assert_memory_equal((uint8_t *)ids + (size_t)t * ref->f.row_bytes,
                            ref->r.ids + (size_t)at[t] * ref->f.row_bytes, ref->f.row_bytes);
    for (int32_t i = 0; i < n_wanted; i++)
        assert_memory_equal(logits + i * ref->V, ref->r.logits + wanted_at[i] * ref->V,
                            (size_t)ref->V * sizeof(float));
    assert_logprobs(ref, n_wanted, logits, wanted_at);
    dev->mem_free(dev, ids);
    return T;
}

static void test_inference_captures_what_training_chooses(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        uint64_t state = base_seed + 30 + (uint64_t)v;
        reference ref = reference_open((variant)v, state);
        for (int repeat = 0; repeat < 4; repeat++) {
            schedule s = schedule_open(&ref, repeat % 2 == 0 ? &ref.f : &ref.threaded, &state);
            for (int32_t fed = 0; fed < ref.c.T;) fed += schedule_step(&s);
            wb_infer_close(s.infer);
            free(s.blocks);
        }
        reference_close(&ref);
    }
}

/* ---- ranks and placement ------------------------------------------------------------------------- */

static void *run_random_models(void *comm) {
    return (void *)(intptr_t)model_ranks_run_random(comm, base_seed);
}

static void run_ranks(void *(*rank)(void *comm)) {
    wb_comm *comms[RANKS];
    pthread_t threads[RANKS];
    MUST(wb_comm_open_threads(RANKS, comms));
    for (int r = 0; r < RANKS; r++) assert_int_equal(0, pthread_create(&threads[r], NULL, rank, comms[r]));
    for (int r = 0; r < RANKS; r++) {
        void *failures;
        pthread_join(threads[r], &failures);
        assert_null(failures);
        wb_comm_close(comms[r]);
    }
}

static void test_thread_ranks_equal_one_rank(void **unused) {
    (void)unused;
    run_ranks(run_random_models);
}

/* Gives every rank as many experts as before, but others, and other ones in each layer; takes their weights
 * from `whole`. */
static void place_at_random(ranks_test *test) {
    wb_model *model = test->spread.model;
    wb_device *dev = test->spread.device;
    uint64_t state = test->seed + 5; /* the same on every rank */
    wb_placement *next = placement_next(model, &state, false);
    MUST(wb_model_set_placement(model, next));
    wb_placement_close(next);
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor here = wb_model_tensor(model, i), whole = wb_model_tensor(test->whole.model, i);
        if (here.expert >= 0 && here.data)
            MUST(dev->to_device(dev, here.data, whole.data, (size_t)here.n * wb_dtype_size(here.dtype)));
    }
}

static void *run_placements(void *comm) {
    int failures = 0;
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        uint64_t state = base_seed + 40;
        ranks_test test = {.name = "placement", .seed = base_seed + 40};
        test.spread = fixture_create(&config, test.seed, comm, 1);
        test.whole = fixture_create(&config, test.seed, self, 1);
        test.corpus = corpus_random(&config, N_SEQS, 12, &state);
        float *dlogprobs = take(test.corpus.T, sizeof(float));
        for (int32_t t = 0; t < test.corpus.T; t++) dlogprobs[t] = random_unit(&state);
        results spread = results_new(&test.spread, &test.corpus),
                whole = results_new(&test.whole, &test.corpus);
        deal_sequences(&test, 0);
        place_at_random(&test);
        both_passes(&test, (direction){0}, dlogprobs, &spread, &whole);
        expect_same_forward(&test, &spread, &whole);
        expect_same_gradients(&test);
        failures += test.failures;
        free(dlogprobs);
        results_free(&spread);
        results_free(&whole);
        corpus_free(&test.corpus);
        fixture_close(&test.spread);
        fixture_close(&test.whole);
    }
    wb_comm_close(self);
    return (void *)(intptr_t)failures;
}

static void test_a_refused_placement_changes_nothing(void **unused) {
    (void)unused;
    reference ref = reference_open(VARIANT_FEW, base_seed);
    const int32_t turned[] = {1, 2, 0};
    wb_placement *other;
    MUST(wb_placement_clone(wb_model_placement(ref.f.model), &other));
    /* Layer 0 could change, layer 1 is another map at the present epoch. */
    MUST(wb_placement_set_layer(other, 0, turned, NULL, 1));
    MUST(wb_placement_set_layer(other, 1, turned, NULL, 0));
    assert_int_equal(wb_model_set_placement(ref.f.model, other), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "MoE layer 1 is at epoch 0"));
    wb_placement_close(other);
    results again = results_new(&ref.f, &ref.c);
    train_pass(&ref.f, &ref.c, N_SEQS, ref.order, (direction){0}, NULL, &again);
    assert_same(&ref, N_SEQS, ref.order, &again);
    results_free(&again);
    reference_close(&ref);
}

static void test_placement_changes_nothing(void **unused) {
    (void)unused;
    run_ranks(run_placements);
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    assert_null(run_placements(self));
    wb_comm_close(self);
}

/* ---- refusals ------------------------------------------------------------------------------------ */

#define assert_refused(status, call, text)                                                             \
    do {                                                                                               \
        assert_int_equal(status, call);                                                                \
        if (!strstr(wb_error_message(), text)) fail_msg("no \"%s\" in: %s", text, wb_error_message()); \
    } while (0)

static void test_bad_training_batches_are_refused(void **unused) {
    (void)unused;
    reference ref = reference_open(VARIANT_QWEN3, base_seed);
    wb_train *train = ref.f.train;
    int32_t tokens[41] = {0}, targets[41], start[] = {0, 3};
    float logprobs[41];
    uint8_t ids[41 * 2 * 3] = {0}, forced[41] = {0};
    wb_routing routing = {.ids = ids};
    for (int t = 0; t < 41; t++) targets[t] = -1;
    const wb_train_batch batch = {
        .T = 3, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = start};

    MUST(wb_train_forward(train, &batch, &routing, NULL, logprobs));
    MUST(wb_train_backward(train, logprobs));
    assert_refused(WB_INVALID_ARGUMENT, wb_train_backward(train, logprobs), "backward");
    tokens[2] = 53;
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(train, &batch, &routing, NULL, logprobs), "token 2");
    assert_refused(WB_INVALID_ARGUMENT, wb_train_logits(train, logprobs), "logits");
    tokens[2] = -1;
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(train, &batch, &routing, NULL, logprobs),
                   "found -1");
    tokens[2] = 52;
    targets[1] = 53;
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(train, &batch, &routing, NULL, logprobs),
                   "target 1");
    targets[1] = 52;
    start[1] = 2;
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(train, &batch, &routing, NULL, logprobs),
                   "seq_start");
    start[1] = 3;
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(train, &batch, NULL, NULL, logprobs), "routing");
    forced[1] = 1;
    ids[1 * 6 + 1 * 3 + 2] = 13;
    routing.direction = forced;
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(train, &batch, &routing, NULL, logprobs),
                   "token 1, MoE layer 1, choice 2");
    forced[1] = 0; /* a row that chooses: what lies there does not matter */
    MUST(wb_train_forward(train, &batch, &routing, NULL, logprobs));

    const int32_t long_start[] = {0, 41};
    const wb_train_batch too_long = {
        .T = 41, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = long_start};
    assert_refused(WB_CAPACITY, wb_train_forward(train, &too_long, &routing, NULL, logprobs), "position 40");
    reference_close(&ref);
}

static void test_rule_31_a_distribution_that_cannot_be_is_refused(void **unused) {
    (void)unused;
    reference ref = reference_open(VARIANT_QWEN3, base_seed);
    int32_t tokens[3] = {1, 2, 3}, targets[3] = {2, 3, -1};
    const int32_t seq_start[] = {0, 3};
    float logprobs[3], temperature[3] = {0.7f, 1.0f, 0.0f}; /* without a target: never looked at */
    uint32_t kept[4] = {0, 2, 3, 9};
    int64_t start[4] = {0, 2, 4, 4};
    uint8_t ids[3 * 2 * 3] = {0};
    const wb_routing routing = {.ids = ids};
    const wb_train_batch batch = {.T = 3,
                                  .tokens = tokens,
                                  .targets = targets,
                                  .n_seqs = 1,
                                  .seq_start = seq_start,
                                  .temperature = temperature,
                                  .kept_ids = kept,
                                  .kept_start = start};
#define REFUSED(text) \
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(ref.f.train, &batch, &routing, NULL, logprobs), text)
    MUST(wb_train_forward(ref.f.train, &batch, &routing, NULL, logprobs));
    temperature[1] = 0;
    REFUSED("temperature of row 1: expected at least 1e-06 (a greedy sample has no gradient), found 0");
    temperature[1] = NAN;
    REFUSED("temperature of row 1");
    temperature[1] = 1;
    kept[2] = 4;
    REFUSED("kept tokens of row 1: expected the target 3 among the 2");
    kept[2] = 3;
    kept[1] = 0;
    REFUSED("kept tokens of row 0: expected ascending ids below 53, found 0");
    kept[1] = 53;
    REFUSED("kept tokens of row 0: expected ascending ids below 53, found 53");
    kept[1] = 2;
    start[2] = 3;
    REFUSED("kept tokens of row 2: expected none without a target, found 1");
    start[2] = 1;
    REFUSED("kept_start[2]: expected at least 2, found 1");
    start[2] = 4;
    start[0] = 1;
    REFUSED("kept_start[0]: expected 0, found 1");
    start[0] = 0;
    wb_train_batch half = batch;
    half.kept_ids = NULL;
    assert_refused(WB_INVALID_ARGUMENT, wb_train_forward(ref.f.train, &half, &routing, NULL, logprobs),
                   "expected kept_ids and kept_start, found one of them");
#undef REFUSED
    reference_close(&ref);
}

/* A caller compiled against a version in which the options ended after n_blocks gets the default beyond. */
static void test_inference_options_of_another_version(void **unused) {
    (void)unused;
    reference ref = reference_open(VARIANT_FEW, base_seed);
    wb_infer *infer = NULL;
    wb_infer_options options = pool_of(3, -1);
    options.size = offsetof(wb_infer_options, block_size);
    MUST(wb_infer_open(ref.f.model, &options, &infer));
    wb_infer_close(infer);
    options = pool_of(0, 4);
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_open(ref.f.model, &options, &infer), "at least 1 block");
    options = pool_of(3, 4);
    options.size = 0;
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_open(ref.f.model, &options, &infer), "inference options");
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_open(ref.f.model, NULL, &infer), "at least 1 block");
    reference_close(&ref);
}

static void test_bad_inference_batches_are_refused(void **unused) {
    (void)unused;
    reference ref = reference_open(VARIANT_QWEN3, base_seed);
    wb_infer_options options = pool_of(11, 4);
    options.max_blocks = 11;
    wb_infer *infer;
    MUST(wb_infer_open(ref.f.model, &options, &infer));
    int32_t tokens[] = {1, 2}, pos[] = {0, 1}, seq[] = {0, 0}, blocks[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
            rows[] = {1};
    uint8_t ids[2 * 2 * 3];
    const wb_routing routing = {.ids = ids};
    const wb_infer_batch batch = {2, tokens, pos, seq, 1, 11, blocks, NULL, 1, rows};
    const float *logits = NULL;
    tokens[1] = 53;
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_forward(infer, &batch, &routing, &logits), "token 1");
    tokens[1] = 2;
    pos[1] = 40;
    assert_refused(WB_CAPACITY, wb_infer_forward(infer, &batch, &routing, &logits), "position 40");
    pos[1] = 0;
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_forward(infer, &batch, &routing, &logits), "ascending");
    pos[1] = 4;
    blocks[1] = 11;
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_forward(infer, &batch, &routing, &logits), "found 11");
    blocks[1] = 1;
    seq[1] = 1;
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_forward(infer, &batch, &routing, &logits), "sequence");
    seq[1] = 0;
    rows[0] = 2;
    assert_refused(WB_INVALID_ARGUMENT, wb_infer_forward(infer, &batch, &routing, &logits), "logit row 0");
    assert_null(logits);
    wb_infer_close(infer);
    reference_close(&ref);
}

/* ---- allocation ---------------------------------------------------------------------------------- */

static wb_status (*real_alloc)(wb_device *, size_t, void **);
static int64_t allocations, allocations_allowed;

static wb_status counting_alloc(wb_device *dev, size_t bytes, void **out) {
    if (allocations++ >= allocations_allowed) return wb_fail(WB_OUT_OF_MEMORY, "refused by the test");
    return real_alloc(dev, bytes, out);
}

static void count_allocations(wb_device *dev) {
    real_alloc = dev->mem_alloc;
    dev->mem_alloc = counting_alloc;
    allocations = 0;
    allocations_allowed = INT64_MAX;
}

/* Open, forward, backward, and a step of inference, with caller's memory. */
static wb_status whole_cycle(const reference *ref, void *ids, float *logprobs, wb_train *train,
                             wb_infer *infer) {
    const wb_train_batch batch = {.T = ref->c.T,
                                  .tokens = ref->c.tokens,
                                  .targets = ref->c.targets,
                                  .n_seqs = N_SEQS,
                                  .seq_start = ref->c.start};
    const wb_routing routing = {.ids = ids};
    int32_t pos[] = {0}, seq[] = {0}, blocks[] = {0}, rows[] = {0};
    const wb_infer_batch step = {1, ref->c.tokens, pos, seq, 1, 1, blocks, fixture_states, 1, rows};
    const float *logits;
    WB_TRY(wb_train_forward(train, &batch, &routing, NULL, logprobs));
    WB_TRY(wb_train_backward(train, logprobs));
    return wb_infer_forward(infer, &step, &routing, &logits);
}

static wb_status opened_cycle(const reference *ref, void *ids, float *logprobs, int repeats) {
    const wb_infer_options options = pool_of(4, 4);
    wb_train *train = NULL;
    wb_infer *infer = NULL;
    wb_status status = wb_train_open(ref->f.model, NULL, &train);
    if (status == WB_OK) status = wb_infer_open(ref->f.model, &options, &infer);
    for (int i = 0; i < repeats && status == WB_OK; i++) {
        const int64_t before = allocations;
        status = whole_cycle(ref, ids, logprobs, train, infer);
        assert_int_equal(before, allocations);
    }
    wb_infer_close(infer);
    wb_train_close(train);
    return status;
}

static void test_a_workspace_is_one_allocation_and_any_may_fail(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        reference ref = reference_open((variant)v, base_seed);
        wb_device *dev = ref.f.device;
        void *ids = take(ref.c.T, ref.f.row_bytes);
        float *logprobs = take(ref.c.T, sizeof(float));
        count_allocations(dev);
        MUST(opened_cycle(&ref, ids, logprobs, 3));
        const int64_t needed = allocations;
        /* One arena a workspace. */
        assert_int_equal(needed, 2);
        for (int64_t n = 0; n < needed; n++) {
            allocations = 0;
            allocations_allowed = n;
            assert_int_equal(WB_OUT_OF_MEMORY, opened_cycle(&ref, ids, logprobs, 1));
        }
        dev->mem_alloc = real_alloc;
        free(ids);
        free(logprobs);
        reference_close(&ref);
    }
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    cpu_split.always = true; /* small models, whose ops would take one thread */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_training_does_not_depend_on_neighbours_or_threads),
        cmocka_unit_test(test_gradients_do_not_depend_on_threads),
        cmocka_unit_test(test_replay_of_own_choice_is_bit_exact),
        cmocka_unit_test(test_forced_rows_keep_their_ids),
        cmocka_unit_test(test_inference_captures_what_training_chooses),
        cmocka_unit_test(test_thread_ranks_equal_one_rank),
        cmocka_unit_test(test_placement_changes_nothing),
        cmocka_unit_test(test_a_refused_placement_changes_nothing),
        cmocka_unit_test(test_bad_training_batches_are_refused),
        cmocka_unit_test(test_rule_31_a_distribution_that_cannot_be_is_refused),
        cmocka_unit_test(test_inference_options_of_another_version),
        cmocka_unit_test(test_bad_inference_batches_are_refused),
        cmocka_unit_test(test_a_workspace_is_one_allocation_and_any_may_fail),
    };
    int failed = cmocka_run_group_tests_name("f32 activations", tests, NULL, NULL);
    fixture_activations = WB_BF16;
    failed += cmocka_run_group_tests_name("bf16 activations", tests, NULL, NULL);
    /* As people train: what depends on the dtype of weights. */
    const struct CMUnitTest of_weights[] = {
        cmocka_unit_test(test_replay_of_own_choice_is_bit_exact),
        cmocka_unit_test(test_inference_captures_what_training_chooses),
        cmocka_unit_test(test_thread_ranks_equal_one_rank),
        cmocka_unit_test(test_placement_changes_nothing),
    };
    fixture_dtype = WB_BF16;
    failed += cmocka_run_group_tests_name("bf16 weights and activations", of_weights, NULL, NULL);
    if (cpu_split.split == 0) fprintf(stderr, "no op was split over threads\n");
    return cpu_split.split == 0 ? 1 : failed;
}
