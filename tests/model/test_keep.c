/* test_keep.c - a trainer that keeps what forwards leave, up to any budget, gives the bits of one that
 * computes all layers again, and computes fewer of them; with several ranks also where each has another
 * budget. */
#include "model_fixture.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

enum { N_SEQS = 4, LONGEST = 9, MAX_RANKS = 2, MAX_T = N_SEQS * LONGEST, N_BUDGETS = 12 };

static uint64_t base_seed;

/* ---- counting what is computed ------------------------------------------------------------------- */

static wb_attention_forward_fn *real_attention;
static wb_moe_combine_fn *real_combine;
static _Thread_local int attentions, combines;

static wb_status count_attention(wb_device *dev, const wb_attention *args, wb_rows out) {
    attentions++;
    return real_attention(dev, args, out);
}

/* The forward's combine has weights; the one of the backward has none. */
static wb_status count_combine(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                               const int32_t *pair_row, const float *weights, wb_rows y) {
    combines += weights != NULL;
    return real_combine(dev, T, K, H, rows, pair_row, weights, y);
}

/* ---- one rank ------------------------------------------------------------------------------------ */

typedef struct rank_state {
    wb_comm *comm;
    wb_config config;
    uint64_t keep_bytes;      /* of a trainer */
    int attentions, combines; /* of its backwards */
    float *grads[2];          /* of all tensors, by a trainer without and one with keep_bytes */
    pthread_t thread;
} rank_state;

/* Two micro-batches, forward and backward. */
static void train(rank_state *s, fixture *f, uint64_t keep_bytes, float *grads_out) {
    uint64_t state = base_seed + (uint64_t)wb_comm_rank(s->comm);
    wb_train_options options = wb_train_options_default();
    options.max_tokens = MAX_T;
    options.keep_bytes = keep_bytes;
    wb_train *train;
    MUST(wb_train_open(f->model, &options, &train));
    uint8_t *ids = take(MAX_T, f->row_bytes);
    s->attentions = s->combines = 0;
    for (int m = 0; m < 2; m++) {
        corpus c = corpus_random(&s->config, N_SEQS, LONGEST, &state);
        float logprobs[MAX_T], ones[MAX_T];
        for (int t = 0; t < MAX_T; t++) ones[t] = 1;
        const wb_train_batch batch = {
            .T = c.T, .tokens = c.tokens, .targets = c.targets, .n_seqs = c.n_seqs, .seq_start = c.start};
        const wb_routing routing = {.ids = ids};
        MUST(wb_train_forward(train, &batch, &routing, NULL, logprobs));
        attentions = combines = 0;
        MUST(wb_train_backward(train, ones));
        s->attentions += attentions, s->combines += combines;
        corpus_free(&c);
    }
    float *at = grads_out;
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) {
        const wb_tensor tensor = wb_model_tensor(f->model, i);
        const float *grad = wb_train_grad(train, &tensor);
        if (!grad) continue;
        memcpy(at, grad, (size_t)tensor.n * sizeof(float));
        at += tensor.n;
    }
    free(ids);
    wb_train_close(train);
}

static void *run_rank(void *argument) {
    rank_state *s = argument;
    fixture f = fixture_create(&s->config, base_seed, s->comm, 1);
    int64_t n = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(f.model); i++) n += wb_model_tensor(f.model, i).n;
    f.device->attention_forward = count_attention;
    f.device->moe_combine = count_combine;
    for (int i = 0; i < 2; i++) s->grads[i] = take(n, sizeof(float));
    train(s, &f, 0, s->grads[0]);
    const int all = s->attentions;
    train(s, &f, s->keep_bytes, s->grads[1]);
    if (memcmp(s->grads[0], s->grads[1], (size_t)n * sizeof(float)) != 0 || s->attentions > all) {
        fprintf(stderr,
                "seed %" PRIu64 ", rank %d, %" PRIu64 " bytes kept: other gradients, or more computed\n",
                base_seed, wb_comm_rank(s->comm), s->keep_bytes);
        exit(1);
    }
    for (int i = 0; i < 2; i++) free(s->grads[i]);
    fixture_close(&f);
    return NULL;
}

static void on_ranks(int n_ranks, rank_state *ranks) {
    wb_comm *comms[MAX_RANKS];
    MUST(wb_comm_open_threads(n_ranks, comms));
    for (int r = 0; r < n_ranks; r++) {
        ranks[r].comm = comms[r];
        assert_int_equal(0, pthread_create(&ranks[r].thread, NULL, run_rank, &ranks[r]));
    }
    for (int r = 0; r < n_ranks; r++) pthread_join(ranks[r].thread, NULL);
    for (int r = 0; r < n_ranks; r++) wb_comm_close(comms[r]);
}

/* ---- tests --------------------------------------------------------------------------------------- */

static wb_config deep_config(variant v) {
    wb_config config = variant_config(v);
    set_depth(&config, 5);
    config.moe_layer_mask[0] = v == VARIANT_QWEN3 ? 21 : 31;
    return config;
}

static void test_any_budget_gives_the_same_bits(void **unused) {
    (void)unused;
    uint64_t state = base_seed;
    for (int v = 0; v < N_VARIANTS; v++)
        for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++)
            for (int i = 0; i < N_BUDGETS; i++) {
                rank_state ranks[MAX_RANKS] = {{0}};
                for (int r = 0; r < n_ranks; r++) {
                    ranks[r].config = deep_config((variant)v);
                    ranks[r].keep_bytes = (uint64_t)1 << (8 + random_below(&state, 14));
                }
                on_ranks(n_ranks, ranks);
            }
}

/* Two micro-batches of five layers: with all kept none is computed again, without any four are; a little less
 * than all recomputes no attention. */
static void test_what_is_kept_is_not_computed_again(void **unused) {
    (void)unused;
    rank_state none = {.config = deep_config(VARIANT_QWEN3_TIED)}, all = none;
    on_ranks(1, &none);
    assert_int_equal(none.attentions, 8);
    assert_int_equal(none.combines, 8);
    all.keep_bytes = UINT64_MAX;
    on_ranks(1, &all);
    assert_int_equal(all.attentions, 0);
    assert_int_equal(all.combines, 0);
    int mixers_only = 0, before = 9;
    for (uint64_t bytes = 1 << 10; bytes < 1 << 20; bytes += 1 << 13) {
        rank_state some = {.config = none.config, .keep_bytes = bytes};
        on_ranks(1, &some);
        assert_true(some.combines <= before && some.attentions <= some.combines);
        before = some.combines;
        mixers_only += some.attentions < some.combines;
    }
    assert_true(mixers_only > 0);
    assert_int_equal(before, 0);
}

/* ---- the head ------------------------------------------------------------------------------------ */

static wb_logprob_backward_fn *real_logprob_backward;
static int head_chunks;

enum { HEAD_SEQS = 120 };

static wb_status count_chunk(wb_device *dev, int64_t T, int64_t V, const float *logits,
                             const int32_t *targets, const wb_distribution *of, const float *dlogprobs,
                             float *dlogits) {
    head_chunks++;
    return real_logprob_backward(dev, T, V, logits, targets, of, dlogprobs, dlogits);
}

/* The chunks in which the head of `rows` rows goes back; its gradients are copied to grad_out. */
static int chunks_of_head(fixture *f, int32_t rows, uint64_t keep_bytes, float *grad_out) {
    uint64_t state = base_seed;
    wb_train_options options = wb_train_options_default();
    wb_train *train;
    const int32_t V = wb_model_config(f->model)->vocab_size;
    int32_t start[HEAD_SEQS + 1];
    for (int32_t i = 0; i <= HEAD_SEQS; i++) start[i] = rows / HEAD_SEQS * i;
    int32_t *tokens = take(2 * rows, sizeof *tokens), *const targets = tokens + rows;
    float *logprobs = take(2 * rows, sizeof *logprobs), *const ones = logprobs + rows;
    uint8_t *ids = take(rows, f->row_bytes);
    for (int32_t i = 0; i < 2 * rows; i++) tokens[i] = random_below(&state, V);
    for (int32_t t = 0; t < rows; t++) ones[t] = random_unit(&state);
    options.max_tokens = rows;
    options.max_kept_ids = 1;
    options.keep_bytes = keep_bytes;
    MUST(wb_train_open(f->model, &options, &train));
    const wb_train_batch batch = {
        .T = rows, .tokens = tokens, .targets = targets, .n_seqs = HEAD_SEQS, .seq_start = start};
    MUST(wb_train_forward(train, &batch, &(wb_routing){.ids = ids}, NULL, logprobs));
    head_chunks = 0;
    MUST(wb_train_backward(train, ones));
    const wb_tensor tensor = wb_model_tensor(f->model, wb_model_n_tensors(f->model) - 1);
    memcpy(grad_out, wb_train_grad(train, &tensor), (size_t)tensor.n * sizeof(float));
    wb_train_close(train);
    free(tokens), free(logprobs), free(ids);
    return head_chunks;
}

/* More rows than a chunk has, 2048: the bits are those of one chunk, which a budget that has room left makes
 * of them. */
static void test_logits_are_kept_where_they_fit(void **unused) {
    (void)unused;
    const int32_t rows = 4200;
    wb_config config = variant_config(VARIANT_QWEN3);
    config.n_layers = 1;
    config.moe_layer_mask[0] = 1;
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    fixture f = fixture_create(&config, base_seed, self, 1);
    f.device->logprob_backward = count_chunk;
    const int64_t n = wb_model_tensor(f.model, wb_model_n_tensors(f.model) - 1).n;
    float *chunked = take(n, sizeof *chunked), *whole = take(n, sizeof *whole);
    const uint64_t room = (uint64_t)(rows - 2048) * (uint64_t)config.vocab_size * sizeof(float);
    assert_int_equal(chunks_of_head(&f, rows, 0, chunked), 3);
    assert_int_equal(chunks_of_head(&f, rows, room - 1, whole), 3);
    assert_int_equal(chunks_of_head(&f, rows, room, whole), 1);
    assert_memory_equal(chunked, whole, (size_t)n * sizeof(float));
    free(chunked), free(whole);
    fixture_close(&f);
    wb_comm_close(self);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    alarm(120);
    wb_device *device;
    MUST(wb_device_open_cpu(1, &device));
    real_attention = device->attention_forward;
    real_combine = device->moe_combine;
    real_logprob_backward = device->logprob_backward;
    wb_device_close(device);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_budget_gives_the_same_bits),
        cmocka_unit_test(test_what_is_kept_is_not_computed_again),
        cmocka_unit_test(test_logits_are_kept_where_they_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
