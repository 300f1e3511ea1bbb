/* test_train_routing.c - what a trainer does with rows that are no tokens, and with memory: a padding row
 * weighs nothing in forward and backward whatever it holds, an unknown direction is refused, and a batch
 * takes memory by its tokens, not by its longest sequence. Seeds are printed; argument 1 sets one. */
#include "model_ranks.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <malloc.h>

static uint64_t base_seed;

/* ---- padding ------------------------------------------------------------------------------------- */

enum { SEQS = 3, PADDING_ROWS = 5 };

/* Two sequences with `n_padding` rows of padding between them, as a sequence of their own. */
typedef struct padded {
    int32_t T, start[SEQS + 1], first, end; /* [first, end) is padding */
    int32_t *tokens, *targets;
    uint8_t *ids, *direction;
    float *dlogprobs, *logprobs;
    /* What targets were sampled from, of padding rows too: the target and another token. */
    float *temperature;
    uint32_t *kept_ids;
    int64_t *kept_start;
} padded;

/* The same for a seed but for what the padding rows hold, which is of `filler`. */
static padded padded_new(const fixture *f, int32_t n_padding, uint64_t seed, uint64_t filler) {
    const wb_config *config = wb_model_config(f->model);
    const int32_t T = 20 + n_padding;
    padded p = {.T = T, .start = {0, 9, 9 + n_padding, T}, .first = 9, .end = 9 + n_padding};
    p.tokens = take(T, sizeof(int32_t));
    p.targets = take(T, sizeof(int32_t));
    p.direction = take(T, 1);
    p.dlogprobs = take(T, sizeof(float));
    p.logprobs = take(T, sizeof(float));
    p.ids = take(T, f->row_bytes);
    p.temperature = take(T, sizeof(float));
    p.kept_ids = take(2 * (int64_t)T, sizeof(uint32_t));
    p.kept_start = take(T + 1, sizeof(int64_t));
    for (int32_t t = 0; t < T; t++) {
        const bool padding = t >= p.first && t < p.end;
        uint64_t *state = padding ? &filler : &seed;
        p.tokens[t] = random_below(state, config->vocab_size);
        p.targets[t] = random_below(state, config->vocab_size);
        p.dlogprobs[t] = random_unit(state);
        const int32_t target = p.targets[t], V = config->vocab_size;
        const int32_t other = (target + 1 + random_below(state, V - 1)) % V;
        p.kept_ids[2 * t] = (uint32_t)(target < other ? target : other);
        p.kept_ids[2 * t + 1] = (uint32_t)(target < other ? other : target);
        p.kept_start[t + 1] = 2 * (t + 1);
        p.temperature[t] = 0.5F + 0.25F * (float)random_below(state, 4);
        p.direction[t] = padding ? WB_ROW_PADDING : (uint8_t)random_below(state, 2);
        uint8_t *row = routes_random(f, 1, state);
        memcpy(p.ids + (size_t)t * f->row_bytes, row, f->row_bytes);
        free(row);
    }
    return p;
}

static void padded_free(padded *p) {
    void *const arrays[] = {p->tokens,   p->targets,     p->ids,      p->direction, p->dlogprobs,
                            p->logprobs, p->temperature, p->kept_ids, p->kept_start};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
}

/* Forward and backward; gradients of all tensors, freed by the caller. */
static float *run_padded(fixture *f, padded *p) {
    const wb_train_batch batch = {.T = p->T,
                                  .tokens = p->tokens,
                                  .targets = p->targets,
                                  .n_seqs = SEQS,
                                  .seq_start = p->start,
                                  .temperature = p->temperature,
                                  .kept_ids = p->kept_ids,
                                  .kept_start = p->kept_start};
    const wb_routing routing = {.ids = p->ids, .direction = p->direction};
    MUST(wb_train_zero_grads(f->train));
    MUST(wb_train_forward(f->train, &batch, &routing, NULL, p->logprobs));
    MUST(wb_train_backward(f->train, p->dlogprobs));
    return gradients_copy(f);
}

/* Padding of one content, of another, and none: the same bits for every token and every gradient. */
static void test_rule_10_padding_rows_weigh_nothing(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        wb_comm *self;
        MUST(wb_comm_open_self(&self));
        fixture f = fixture_create(&config, base_seed, self, 1);
        padded cases[] = {padded_new(&f, PADDING_ROWS, base_seed + 1, base_seed + 2),
                          padded_new(&f, PADDING_ROWS, base_seed + 1, base_seed + 3),
                          padded_new(&f, 0, base_seed + 1, 0)};
        float *expected = run_padded(&f, &cases[0]);
        for (int i = 1; i < 3; i++) {
            padded *p = &cases[i], *first = &cases[0];
            float *found = run_padded(&f, p);
            assert_memory_equal(found, expected, (size_t)gradient_elements(&f) * sizeof(float));
            assert_memory_equal(p->logprobs, first->logprobs, (size_t)p->first * sizeof(float));
            assert_memory_equal(p->logprobs + p->end, first->logprobs + first->end,
                                (size_t)(p->T - p->end) * sizeof(float));
            for (int32_t t = p->first; t < p->end; t++) assert_true(p->logprobs[t] == 0);
            free(found);
        }
        free(expected);
        for (int i = 0; i < 3; i++) padded_free(&cases[i]);
        fixture_close(&f);
        wb_comm_close(self);
    }
}

/* Padding that later rows of its sequence attend to has gradients in its attention; its experts, whichever
 * they are, and the router have none from it. */
static void test_rule_10_experts_of_padding_do_not_matter(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        wb_comm *self;
        MUST(wb_comm_open_self(&self));
        fixture f = fixture_create(&config, base_seed, self, 1);
        uint64_t state = base_seed + 4;
        padded p = padded_new(&f, PADDING_ROWS, base_seed + 1, base_seed + 2);
        p.start[1] = p.start[2] = p.T; /* one sequence, padding in its middle */
        float *logprobs = take(p.T, sizeof(float)), *expected = run_padded(&f, &p);
        memcpy(logprobs, p.logprobs, (size_t)p.T * sizeof(float));
        uint8_t *ids = routes_random(&f, PADDING_ROWS, &state);
        memcpy(p.ids + (size_t)p.first * f.row_bytes, ids, PADDING_ROWS * f.row_bytes);
        float *found = run_padded(&f, &p);
        assert_memory_equal(found, expected, (size_t)gradient_elements(&f) * sizeof(float));
        assert_memory_equal(p.logprobs, logprobs, (size_t)p.T * sizeof(float));
        void *const arrays[] = {logprobs, expected, ids, found};
        for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
        padded_free(&p);
        fixture_close(&f);
        wb_comm_close(self);
    }
}

static wb_to_host_fn *real_to_host;
static int downloads;

static wb_status counted_to_host(wb_device *dev, void *host, const void *device, size_t bytes) {
    downloads++;
    return real_to_host(dev, host, device, bytes);
}

/* Downloads of a forward that tells where rows went: of padding what its ids say. */
static int run_used(fixture *f, padded *p) {
    wb_device *dev = wb_model_device(f->model);
    const wb_train_batch batch = {
        .T = p->T, .tokens = p->tokens, .targets = p->targets, .n_seqs = SEQS, .seq_start = p->start};
    uint8_t *used = take(p->T, f->row_bytes);
    const wb_routing routing = {.ids = p->ids, .direction = p->direction, .used = used};
    memset(used, 0xEE, (size_t)p->T * f->row_bytes);
    real_to_host = dev->to_host;
    dev->to_host = counted_to_host;
    downloads = 0;
    MUST(wb_train_forward(f->train, &batch, &routing, NULL, p->logprobs));
    dev->to_host = real_to_host;
    assert_memory_equal(used, p->ids, (size_t)p->T * f->row_bytes);
    free(used);
    return downloads;
}

static void test_padding_is_not_downloaded_for_used(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        wb_comm *self;
        MUST(wb_comm_open_self(&self));
        fixture f = fixture_create(&config, base_seed, self, 1);
        padded padding = padded_new(&f, PADDING_ROWS, base_seed + 1, base_seed + 2),
               none = padded_new(&f, 0, base_seed + 1, 0);
        assert_int_equal(run_used(&f, &padding), run_used(&f, &none));
        padded_free(&padding);
        padded_free(&none);
        fixture_close(&f);
        wb_comm_close(self);
    }
}

typedef struct seen {
    const padded *p;
    int32_t K;
    int64_t zero, other; /* weights of padding rows that are 0, and of others that are not */
} seen;

static void look_at_weights(void *ctx, int32_t moe_layer, int64_t T, const float *logits,
                            const float *weights) {
    seen *s = ctx;
    (void)moe_layer, (void)logits;
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < s->K; k++) {
            const bool padding = t >= s->p->first && t < s->p->end;
            s->zero += padding && weights[t * s->K + k] == 0;
            s->other += !padding && weights[t * s->K + k] != 0;
        }
}

static void test_rule_10_gate_weights_of_padding_are_zero(void **unused) {
    (void)unused;
    const wb_config config = variant_config(VARIANT_WIDE);
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    fixture f = fixture_create(&config, base_seed, self, 1);
    padded p = padded_new(&f, PADDING_ROWS, base_seed, base_seed + 1);
    seen s = {.p = &p, .K = config.router.top_k};
    const wb_router_probe probe = {look_at_weights, &s};
    const wb_train_batch batch = {
        .T = p.T, .tokens = p.tokens, .targets = p.targets, .n_seqs = SEQS, .seq_start = p.start};
    const wb_routing routing = {.ids = p.ids, .direction = p.direction};
    MUST(wb_train_forward(f.train, &batch, &routing, &probe, p.logprobs));
    assert_int_equal(s.zero, f.L * s.K * PADDING_ROWS);
    assert_int_equal(s.other, f.L * s.K * (p.T - PADDING_ROWS));

    p.direction[3] = WB_ROW_PADDING + 1;
    assert_int_equal(wb_train_forward(f.train, &batch, &routing, NULL, p.logprobs), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "token 3: expected a direction of 0, 1 or 2, found 3"));
    padded_free(&p);
    fixture_close(&f);
    wb_comm_close(self);
}

/* ---- ids ----------------------------------------------------------------------------------------- */

/* The first of several ids that are no experts is named, whoever looks at them: threads share the rows of
 * many tokens. */
static void expect_bad_id(fixture *f, int32_t n_padding) {
    uint64_t state = base_seed + (uint64_t)n_padding;
    const wb_config *config = wb_model_config(f->model);
    padded p = padded_new(f, n_padding, state, state + 1);
    const wb_train_batch batch = {
        .T = p.T, .tokens = p.tokens, .targets = p.targets, .n_seqs = SEQS, .seq_start = p.start};
    const wb_routing routing = {.ids = p.ids, .direction = p.direction};
    const int32_t K = config->router.top_k, n = (int32_t)f->L * K;
    char expected[160];
    for (int i = 0; i < 8; i++) {
        const int32_t first = p.first + random_below(&state, n_padding), at = random_below(&state, n);
        for (int32_t t = first; t < p.end; t += 7) wb_route_id_set(p.ids, WB_U8, (size_t)(t * n + at), 255);
        snprintf(expected, sizeof expected,
                 "token %d, MoE layer %d, choice %d: expected a forced id below %d", first, at / K, at % K,
                 config->router.n_experts);
        assert_int_equal(wb_train_forward(f->train, &batch, &routing, NULL, p.logprobs), WB_INVALID_ARGUMENT);
        assert_non_null(strstr(wb_error_message(), expected));
        for (int32_t t = first; t < p.end; t += 7) wb_route_id_set(p.ids, WB_U8, (size_t)(t * n + at), 0);
    }
    padded_free(&p);
}

static void test_the_first_id_that_is_no_expert_is_named(void **unused) {
    (void)unused;
    wb_config config = variant_config(VARIANT_QWEN3_TIED);
    config.max_positions = 3000;
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    fixture f = fixture_create(&config, base_seed, self, 1);
    expect_bad_id(&f, PADDING_ROWS);
    expect_bad_id(&f, 2500);
    fixture_close(&f);
    wb_comm_close(self);
}

/* ---- memory -------------------------------------------------------------------------------------- */

enum { LONG = 8000, SHORT = 2, N_SHORT = 2000 };

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static size_t bytes_in_use(void) {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}
#else
static size_t bytes_in_use(void) {
    return 0;
}
#endif

/* One long sequence among many short ones: a table of sequences x longest alone has 64 MB. */
static void test_memory_grows_with_tokens_not_with_the_longest_sequence(void **unused) {
    (void)unused;
    wb_config config = variant_config(VARIANT_QWEN3_TIED);
    config.max_positions = LONG;
    config.n_layers = 1;
    config.moe_layer_mask[0] = 1;
    config.hidden_size = 4;
    config.n_heads = config.n_kv_heads = 1;
    config.head_dim = 2;
    config.expert_width = 2;
    config.router.top_k = 1;
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    fixture f = fixture_create(&config, base_seed, self, 1);
    const int32_t T = LONG + N_SHORT * SHORT, n_seqs = 1 + N_SHORT;
    int32_t *tokens = take(T, sizeof(int32_t)), *targets = take(T, sizeof(int32_t)),
            *start = take(n_seqs + 1, sizeof(int32_t));
    uint8_t *ids = take(T, f.row_bytes);
    float *logprobs = take(T, sizeof(float));
    for (int32_t t = 0; t < T; t++) targets[t] = t % 16 == 0 ? 1 : -1;
    for (int32_t s = 0; s < n_seqs; s++) start[s + 1] = s == 0 ? LONG : start[s] + SHORT;
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = n_seqs, .seq_start = start};
    wb_train_options options = wb_train_options_default();
    wb_train *train;
    options.max_tokens = T;
    options.max_kept_ids = 1;
    const size_t before = bytes_in_use();
    MUST(wb_train_open(f.model, &options, &train));
    MUST(wb_train_forward(train, &batch, &(wb_routing){.ids = ids}, NULL, logprobs));
    MUST(wb_train_backward(train, logprobs));
    const size_t taken = bytes_in_use() - before;
    print_message("%d tokens: %zu bytes, %zu a token\n", T, taken, taken / (size_t)T);
    assert_true(taken < (size_t)T * 1000);
    wb_train_close(train);
    void *const arrays[] = {tokens, targets, start, ids, logprobs};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
    fixture_close(&f);
    wb_comm_close(self);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_10_padding_rows_weigh_nothing),
        cmocka_unit_test(test_rule_10_experts_of_padding_do_not_matter),
        cmocka_unit_test(test_padding_is_not_downloaded_for_used),
        cmocka_unit_test(test_rule_10_gate_weights_of_padding_are_zero),
        cmocka_unit_test(test_the_first_id_that_is_no_expert_is_named),
        cmocka_unit_test(test_memory_grows_with_tokens_not_with_the_longest_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
