/* test_listed_entries.c - who says which entries a token looks at (wb_routing.listed): recorded lists are
 * what the indexer chose; forced ones are followed by forward, backward and recompute, whatever the indexer
 * would choose; inference and training have the same. Everything is compared bit for bit. The seed is
 * printed; argument 1 sets one. */
#include "model_ranks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static uint64_t base_seed = 4100;

enum { SEQS = 2, T = 39, S = 2, K = 2, RATE = 3, BLOCK = 4, BLOCKS = 10 };
static const int32_t starts[SEQS + 1] = {0, 22, T};

/* Two layers with an indexer, a window layer before them and a heavy one between. */
static wb_config two_indexers(void) {
    wb_config c = entries_variant();
    set_depth(&c, 4);
    c.compressed.sparse_layer_mask[0] = 10;
    c.moe_layer_mask[0] = 15;
    return c;
}

typedef struct lists {
    int32_t at[S][T][K];
} lists;

typedef struct pass {
    float logprobs[T];
    float *gradients;
    lists listed, native;
    uint8_t *ids;
} pass;

typedef struct bench {
    wb_comm *comm;
    fixture f;
    int32_t tokens[T], targets[T];
    float dlogprobs[T];
} bench;

static bench bench_open(uint64_t seed) {
    const wb_config config = two_indexers();
    uint64_t state = seed;
    bench b = {0};
    MUST(wb_comm_open_self(&b.comm));
    b.f = fixture_create(&config, seed, b.comm, 2);
    for (int32_t t = 0; t < T; t++) {
        b.tokens[t] = random_below(&state, config.vocab_size);
        b.targets[t] = random_below(&state, config.vocab_size);
        b.dlogprobs[t] = random_unit(&state);
    }
    assert_int_equal(wb_indexer_columns(wb_model_routes(b.f.model)), S);
    assert_int_equal(wb_model_routes(b.f.model)->indexer_k, K);
    return b;
}

static void bench_close(bench *b) {
    fixture_close(&b->f);
    wb_comm_close(b->comm);
}

/* The indexers get other weights, and nothing else does. */
static void change_indexers(bench *b, uint64_t seed) {
    for (int32_t i = 0; i < wb_model_n_tensors(b->f.model); i++) {
        const wb_tensor tensor = wb_model_tensor(b->f.model, i);
        if (!tensor.no_gradient || tensor.n_dims != 2) continue;
        for (int64_t j = 0; j < tensor.n; j++) ((float *)tensor.data)[j] = random_unit(&seed);
    }
}

static wb_train_batch batch_of(const bench *b) {
    return (wb_train_batch){
        .T = T, .tokens = b->tokens, .targets = b->targets, .n_seqs = SEQS, .seq_start = starts};
}

static void run(bench *b, const wb_routing *given, pass *p) {
    const wb_train_batch batch = batch_of(b);
    wb_routing routing = *given;
    p->ids = take(T, b->f.row_bytes);
    routing.ids = p->ids;
    MUST(wb_train_zero_grads(b->f.train));
    MUST(wb_train_forward(b->f.train, &batch, &routing, NULL, p->logprobs));
    MUST(wb_train_backward(b->f.train, b->dlogprobs));
    p->gradients = gradients_copy(&b->f);
}

static void pass_free(pass *p) {
    free(p->gradients);
    free(p->ids);
}

static bool same(const bench *b, const pass *x, const pass *y) {
    const size_t n = (size_t)gradient_elements(&b->f);
    return all_finite(T, x->logprobs) && all_finite((int64_t)n, x->gradients) &&
           memcmp(x->logprobs, y->logprobs, sizeof x->logprobs) == 0 &&
           memcmp(x->gradients, y->gradients, n * sizeof(float)) == 0;
}

static int32_t position_of(int32_t t) {
    return t < starts[1] ? t : t - starts[1];
}

/* As many entries as there are, K at most, in rising order, then -1. */
static void check_lists(const lists *l) {
    for (int32_t s = 0; s < S; s++)
        for (int32_t t = 0; t < T; t++) {
            const int32_t seen = (position_of(t) + 1) / RATE, n = seen < K ? seen : K;
            for (int32_t k = 0; k < K; k++) {
                const int32_t found = l->at[s][t][k];
                if (k >= n)
                    assert_int_equal(found, -1);
                else
                    assert_true(found >= 0 && found < seen && (k == 0 || found > l->at[s][t][k - 1]));
            }
        }
}

static int64_t lists_differing(const lists *x, const lists *y, int32_t s) {
    int64_t n = 0;
    for (int32_t t = 0; t < T; t++) n += memcmp(x->at[s][t], y->at[s][t], sizeof x->at[s][t]) != 0;
    return n;
}

static void test_recorded_lists_are_the_choice(void **unused) {
    (void)unused;
    bench b = bench_open(base_seed);
    pass free_pass = {0}, recorded = {0};
    memset(&recorded.listed, 0x55, sizeof recorded.listed);
    run(&b, &(wb_routing){0}, &free_pass);
    run(&b,
        &(wb_routing){.listed = &recorded.listed.at[0][0][0], .listed_native = &recorded.native.at[0][0][0]},
        &recorded);
    assert_true(same(&b, &free_pass, &recorded));
    check_lists(&recorded.listed);
    for (int32_t s = 0; s < S; s++)
        assert_int_equal(lists_differing(&recorded.listed, &recorded.native, s), 0);
    assert_true(memcmp(recorded.listed.at[0], recorded.listed.at[1], sizeof recorded.listed.at[0]) != 0);
    pass_free(&free_pass);
    pass_free(&recorded);
    bench_close(&b);
}

/* What one model's indexers chose is forced on a model that differs in its indexers alone: it then gives the
 * first one's bits, with all that a forward left kept or computed again. */
static void forced_lists(uint64_t keep_bytes) {
    uint8_t forced[S][T];
    wb_train_options options = wb_train_options_default();
    options.keep_bytes = keep_bytes;
    fixture_train_options = &options;
    bench a = bench_open(base_seed), b = bench_open(base_seed);
    fixture_train_options = NULL;
    pass of_a = {0}, of_b = {0}, b_as_a = {0};
    change_indexers(&b, base_seed + 1);
    run(&a, &(wb_routing){.listed = &of_a.listed.at[0][0][0]}, &of_a);
    run(&b, &(wb_routing){.listed = &of_b.listed.at[0][0][0]}, &of_b);
    assert_false(same(&a, &of_a, &of_b));
    b_as_a.listed = of_a.listed;
    memset(forced, WB_ROW_FORCED, sizeof forced);
    run(&b,
        &(wb_routing){.listed = &b_as_a.listed.at[0][0][0],
                      .listed_direction = &forced[0][0],
                      .listed_native = &b_as_a.native.at[0][0][0]},
        &b_as_a);
    assert_true(same(&a, &of_a, &b_as_a));
    assert_memory_equal(&of_a.listed, &b_as_a.listed, sizeof of_a.listed);
    check_lists(&b_as_a.native);
    /* What comes into the first of the two layers is the same in both passes of b, into the second not. */
    assert_int_equal(lists_differing(&of_b.listed, &b_as_a.native, 0), 0);
    assert_true(lists_differing(&of_a.listed, &b_as_a.native, 0) > 0);
    pass_free(&of_a);
    pass_free(&of_b);
    pass_free(&b_as_a);
    bench_close(&a);
    bench_close(&b);
}

static void test_forced_lists_are_followed(void **unused) {
    (void)unused;
    forced_lists(0);
    forced_lists(UINT64_C(1) << 30);
}

/* Of a mixture native rows choose, and their lists are then forced on a second pass, which gives the same. */
static void test_native_rows_leave_their_choice(void **unused) {
    (void)unused;
    uint8_t directions[S][T];
    uint64_t state = base_seed + 2;
    bench a = bench_open(base_seed), b = bench_open(base_seed);
    pass of_a = {0}, mixed = {0}, again = {0};
    change_indexers(&b, base_seed + 1);
    run(&a, &(wb_routing){.listed = &of_a.listed.at[0][0][0]}, &of_a);
    mixed.listed = of_a.listed;
    for (int32_t i = 0; i < S * T; i++)
        directions[i / T][i % T] = random_below(&state, 2) ? WB_ROW_FORCED : WB_ROW_NATIVE;
    run(&b,
        &(wb_routing){.listed = &mixed.listed.at[0][0][0],
                      .listed_direction = &directions[0][0],
                      .listed_native = &mixed.native.at[0][0][0]},
        &mixed);
    check_lists(&mixed.listed);
    int64_t changed = 0;
    for (int32_t s = 0; s < S; s++)
        for (int32_t t = 0; t < T; t++) {
            const bool is_forced = directions[s][t] == WB_ROW_FORCED;
            assert_memory_equal(mixed.listed.at[s][t], (is_forced ? &of_a.listed : &mixed.native)->at[s][t],
                                sizeof mixed.listed.at[s][t]);
            changed += memcmp(mixed.listed.at[s][t], of_a.listed.at[s][t], sizeof of_a.listed.at[s][t]) != 0;
        }
    assert_true(changed > 0);
    again.listed = mixed.listed;
    memset(directions, WB_ROW_FORCED, sizeof directions);
    run(&b, &(wb_routing){.listed = &again.listed.at[0][0][0], .listed_direction = &directions[0][0]},
        &again);
    assert_true(same(&b, &mixed, &again));
    pass_free(&of_a);
    pass_free(&mixed);
    pass_free(&again);
    bench_close(&a);
    bench_close(&b);
}

/* ---- refusals ------------------------------------------------------------------------------------ */

static void expect_refused(bench *b, const wb_routing *given, const char *part) {
    const wb_train_batch batch = batch_of(b);
    wb_routing routing = *given;
    float logprobs[T];
    uint8_t *ids = take(T, b->f.row_bytes);
    routing.ids = ids;
    assert_int_equal(wb_train_forward(b->f.train, &batch, &routing, NULL, logprobs), WB_INVALID_ARGUMENT);
    if (!strstr(wb_error_message(), part)) fail_msg("expected '%s' in: %s", part, wb_error_message());
    free(ids);
}

static void test_lists_that_cannot_be_are_refused(void **unused) {
    (void)unused;
    bench b = bench_open(base_seed);
    const wb_config plain = variant_config(VARIANT_QWEN3);
    uint8_t forced[S][T];
    pass p = {0};
    memset(forced, WB_ROW_FORCED, sizeof forced);
    expect_refused(&b, &(wb_routing){.listed_direction = &forced[0][0]}, "expected lists");
    expect_refused(&b, &(wb_routing){.listed_native = &p.native.at[0][0][0]}, "expected lists");
    run(&b, &(wb_routing){.listed = &p.listed.at[0][0][0]}, &p);
    const wb_routing routing = {.listed = &p.listed.at[0][0][0], .listed_direction = &forced[0][0]};
    const lists good = p.listed;
    p.listed.at[1][8][1] = 3; /* position 8 sees entries 0, 1 and 2 */
    expect_refused(&b, &routing, "layer 3");
    p.listed = good;
    p.listed.at[0][30][0] = p.listed.at[0][30][1];
    expect_refused(&b, &routing, "layer 1");
    pass_free(&p);
    bench_close(&b);

    MUST(wb_comm_open_self(&b.comm));
    b.f = fixture_create(&plain, base_seed, b.comm, 1);
    expect_refused(&b, &(wb_routing){.listed = &p.listed.at[0][0][0]}, "without indexers");
    bench_close(&b);
}

/* ---- inference ----------------------------------------------------------------------------------- */

/* Both sequences in chunks, from `chunk` tokens on, with or without directions; logits of all tokens and the
 * lists as they lie in the batch of training. */
static void infer_in_chunks(bench *b, int32_t chunk, bool forced, lists *l, float *logits) {
    const int64_t V = wb_model_config(b->f.model)->vocab_size;
    wb_infer_options options = wb_infer_options_default();
    wb_infer *infer = NULL;
    int32_t blocks[SEQS * BLOCKS];
    options.n_blocks = SEQS * BLOCKS;
    options.block_size = BLOCK;
    options.max_tokens = options.max_logits = T;
    MUST(wb_infer_open(b->f.model, &options, &infer));
    for (int32_t i = 0; i < SEQS * BLOCKS; i++) blocks[i] = SEQS * BLOCKS - 1 - i;
    for (int32_t begin = 0; begin < starts[1]; begin += chunk) {
        int32_t tokens[T], pos[T], seq[T], rows[T], of[T], part[S][T][K], n = 0;
        uint8_t ids[T * 64], directions[S * T];
        for (int32_t s = 0; s < SEQS; s++)
            for (int32_t i = begin; i < begin + chunk && starts[s] + i < starts[s + 1]; i++, n++) {
                of[n] = starts[s] + i;
                tokens[n] = b->tokens[of[n]];
                pos[n] = i;
                seq[n] = s;
                rows[n] = n;
            }
        for (int32_t s = 0; s < S; s++)
            for (int32_t t = 0; t < n; t++)
                memcpy((int32_t *)part + (s * n + t) * K, l->at[s][of[t]], sizeof l->at[s][of[t]]);
        memset(directions, WB_ROW_FORCED, sizeof directions);
        const wb_infer_batch batch = {.T = n,
                                      .tokens = tokens,
                                      .pos = pos,
                                      .seq = seq,
                                      .n_seqs = SEQS,
                                      .max_blocks = BLOCKS,
                                      .blocks = blocks,
                                      .states = fixture_states,
                                      .n_logits = n,
                                      .logit_rows = rows};
        const wb_routing routing = {
            .ids = ids, .listed = &part[0][0][0], .listed_direction = forced ? directions : NULL};
        const float *found;
        MUST(wb_infer_forward(infer, &batch, &routing, &found));
        for (int32_t t = 0; t < n; t++) {
            memcpy(logits + of[t] * V, found + t * V, (size_t)V * sizeof(float));
            for (int32_t s = 0; s < S; s++)
                memcpy(l->at[s][of[t]], (int32_t *)part + (s * n + t) * K, sizeof l->at[s][of[t]]);
        }
    }
    wb_infer_close(infer);
}

static void test_inference_and_training_look_at_the_same(void **unused) {
    (void)unused;
    static const int32_t chunks[] = {1, 5, T};
    uint8_t forced[S][T];
    bench a = bench_open(base_seed), b = bench_open(base_seed);
    const int64_t n = T * (int64_t)wb_model_config(a.f.model)->vocab_size;
    float *expected = take(n, sizeof(float)), *found = take(n, sizeof(float));
    pass of_a = {0}, b_as_a = {0};
    change_indexers(&b, base_seed + 1);
    memset(forced, WB_ROW_FORCED, sizeof forced);
    run(&a, &(wb_routing){.listed = &of_a.listed.at[0][0][0]}, &of_a);
    MUST(wb_train_logits(a.f.train, expected));
    assert_true(all_finite(n, expected));
    b_as_a.listed = of_a.listed;
    run(&b, &(wb_routing){.listed = &b_as_a.listed.at[0][0][0], .listed_direction = &forced[0][0]}, &b_as_a);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        lists l;
        memset(&l, 0x55, sizeof l);
        infer_in_chunks(&a, chunks[i], false, &l, found);
        assert_memory_equal(&l, &of_a.listed, sizeof l);
        assert_memory_equal(found, expected, (size_t)n * sizeof(float));
        infer_in_chunks(&b, chunks[i], true, &l, found);
        assert_memory_equal(&l, &of_a.listed, sizeof l);
        assert_memory_equal(found, expected, (size_t)n * sizeof(float));
    }
    free(expected);
    free(found);
    pass_free(&of_a);
    pass_free(&b_as_a);
    bench_close(&a);
    bench_close(&b);
}

int main(int argc, char **argv) {
    if (argc > 1) base_seed = strtoull(argv[1], NULL, 10);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recorded_lists_are_the_choice),
        cmocka_unit_test(test_forced_lists_are_followed),
        cmocka_unit_test(test_native_rows_leave_their_choice),
        cmocka_unit_test(test_lists_that_cannot_be_are_refused),
        cmocka_unit_test(test_inference_and_training_look_at_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
