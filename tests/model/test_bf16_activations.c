/* test_bf16_activations.c - a model whose activations are bf16 against the same model in f32, both forced to
 * the same routes: log-probabilities and gradients differ by what roundings explain, and do differ; weights
 * of bf16 give the bits of the same numbers in f32, and no product is of f32 and bf16. That the bits do not
 * depend on batch, threads, chunks or ranks is test_model_invariance's. The seed is printed; argument 1 sets
 * one. */
#include "model_ranks.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static uint64_t base_seed;

/* Half a unit in the last of the 8 bits of a bf16. */
static const double u = 0x1p-9;

/* Steps of a layer that round, on the way from the residual stream to it: two norms, projections, norm and
 * rotation of heads, attention, projection, feed-forward part, two sums; and steps with a weight of their
 * own. */
static const double rounded_steps = 10, weighted_steps = 6;

typedef struct pass {
    results r;
    float *gradients;
    int64_t n_gradients;
} pass;

/* Each weight times 1 + u * a random number in [-1, 1). */
static void perturb_weights(const fixture *f, uint64_t seed) {
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) {
        const wb_tensor tensor = wb_model_tensor(f->model, i);
        float *w = tensor.data;
        for (int64_t j = 0; j < tensor.n; j++) w[j] *= 1 + (float)u * random_unit(&seed);
    }
}

/* Matrices of f32 become what they are in a model of bf16. */
static void round_weights(const fixture *f) {
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++) {
        const wb_tensor tensor = wb_model_tensor(f->model, i);
        float *w = tensor.data;
        if (tensor.n_dims == 1 || tensor.dtype != WB_F32) continue;
        for (int64_t j = 0; j < tensor.n; j++) w[j] = wb_bf16_to_f32(wb_f32_to_bf16(w[j]));
    }
}

/* All rows go where `ids` say; NULL: they choose. perturb: a seed, or 0: the weights as they are, the same
 * numbers in either dtype. */
static pass run_pass(const wb_config *config, wb_dtype weights, wb_dtype activations, uint64_t perturb,
                     const corpus *c, const int32_t *seqs, const uint8_t *ids, const float *dlogprobs) {
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    fixture_dtype = weights;
    fixture_activations = activations;
    fixture f = fixture_create(config, base_seed, comm, 2);
    round_weights(&f);
    if (perturb != 0) perturb_weights(&f, perturb);
    uint8_t *forced = take(c->T, 1);
    memset(forced, 1, (size_t)c->T);
    pass p = {.r = results_new(&f, c)};
    train_pass(&f, c, N_SEQS, seqs, (direction){ids, forced}, dlogprobs, &p.r);
    p.gradients = gradients_copy(&f);
    p.n_gradients = gradient_elements(&f);
    free(forced);
    fixture_close(&f);
    wb_comm_close(comm);
    return p;
}

static void pass_free(pass *p) {
    results_free(&p->r);
    free(p->gradients);
}

/* |found - expected| / |expected|, in the Euclidean norm; NaN if any is. */
static double relative(int64_t n, const float *found, const float *expected) {
    double difference = 0, length = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)found[i] - (double)expected[i];
        difference += d * d;
        length += (double)expected[i] * (double)expected[i];
    }
    return sqrt(difference / length);
}

/* How far the model passes errors on is measured: the f32 model with its weights perturbed by up to u. The
 * error of a rounding is of the same size, and independent ones add up as their squares. A factor of 6 is for
 * chance: a sequence with a gradient that hardly any rounding meets and one perturbation does not. */
enum { PERTURBATIONS = 4 };

static void check_variant(variant v) {
    wb_config config = variant_config(v);
    if (config.clip_qkv > 0) config.clip_qkv = 100;         /* beyond all: a gradient jumps at the limit */
    if (config.swiglu_limit > 0) config.swiglu_limit = 100; /* likewise */
    if (config.compressed.index_top_k > 0) config.compressed.index_top_k = 64; /* all: a choice jumps */
    /* A delta net's first output is a value times q . k, by its own length: a jump where that is nearly 0. */
    if (config.delta.key_dim > 0) config.norm_eps = 0.01F;
    uint64_t state = base_seed + (uint64_t)v;
    corpus c = corpus_random(&config, N_SEQS, 14, &state);
    int32_t seqs[N_SEQS];
    float *dlogprobs = take(c.T, sizeof(float));
    for (int32_t s = 0; s < N_SEQS; s++) seqs[s] = s;
    for (int32_t t = 0; t < c.T; t++) dlogprobs[t] = random_unit(&state);
    const int64_t n_logits = c.T * (int64_t)config.vocab_size;
    pass f32 = run_pass(&config, WB_F32, WB_F32, 0, &c, seqs, NULL, dlogprobs);
    double logits = 0, gradients = 0; /* largest of the perturbations */
    for (uint64_t i = 1; i <= PERTURBATIONS; i++) {
        pass p = run_pass(&config, WB_F32, WB_F32, base_seed + i, &c, seqs, f32.r.ids, dlogprobs);
        logits = fmax(logits, relative(n_logits, p.r.logits, f32.r.logits));
        gradients = fmax(gradients, relative(f32.n_gradients, p.gradients, f32.gradients));
        pass_free(&p);
    }
    pass bf16 = run_pass(&config, WB_F32, WB_BF16, 0, &c, seqs, f32.r.ids, dlogprobs);
    pass whole = run_pass(&config, WB_BF16, WB_BF16, 0, &c, seqs, f32.r.ids, dlogprobs);
    assert_memory_equal(whole.r.logits, bf16.r.logits, (size_t)n_logits * sizeof(float));
    assert_memory_equal(whole.gradients, bf16.gradients, (size_t)bf16.n_gradients * sizeof(float));
    assert_true(all_finite(n_logits, bf16.r.logits) && all_finite(bf16.n_gradients, bf16.gradients));
    const double factor = 6 * sqrt(rounded_steps / weighted_steps),
                 of_logits = relative(n_logits, bf16.r.logits, f32.r.logits),
                 of_gradients = relative(f32.n_gradients, bf16.gradients, f32.gradients);
    printf("variant %d: logits differ by %.4f of %.4f, gradients by %.4f of %.4f\n", (int)v, of_logits,
           factor * logits, of_gradients, factor * gradients);
    assert_true(of_logits <= factor * logits && of_gradients <= factor * gradients);
    assert_true(of_logits > u / 4 && of_gradients > u / 4); /* something was rounded */
    pass_free(&f32), pass_free(&bf16), pass_free(&whole);
    corpus_free(&c);
    free(dlogprobs);
}

static void test_bf16_is_close_to_f32(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) check_variant((variant)v);
}

/* ---- products -------------------------------------------------------------------------------- */

/* Products that were made, and those of f32 and bf16 among them. */
static int64_t products, mixed_products;
static wb_matmul_fn *real_matmul;
static wb_grouped_matmul_fn *real_grouped;
static wb_grouped_matmul_backward_fn *real_grouped_backward;

static void count_product(wb_dtype a, wb_dtype b) {
    products++;
    mixed_products += a != b;
}

static wb_status counted_matmul(wb_device *dev, int64_t count, const wb_matmul *list) {
    for (int64_t i = 0; i < count; i++) count_product(list[i].a.dtype, list[i].b.dtype);
    return real_matmul(dev, count, list);
}

static wb_status counted_grouped(wb_device *dev, const wb_grouped *grouped, wb_rows x, wb_rows y,
                                 wb_rows act) {
    count_product(x.dtype, grouped->w.dtype);
    return real_grouped(dev, grouped, x, y, act);
}

static wb_status counted_grouped_backward(wb_device *dev, const wb_grouped *grouped, wb_rows x, wb_rows dy,
                                          float *dw, wb_rows dx, wb_rows gate_up) {
    count_product(dy.dtype, grouped->w.dtype);
    count_product(dy.dtype, x.dtype);
    return real_grouped_backward(dev, grouped, x, dy, dw, dx, gate_up);
}

static void count_products(wb_device *dev) {
    real_matmul = dev->matmul, real_grouped = dev->grouped_matmul;
    real_grouped_backward = dev->grouped_matmul_backward;
    dev->matmul = counted_matmul, dev->grouped_matmul = counted_grouped;
    dev->grouped_matmul_backward = counted_grouped_backward;
    products = mixed_products = 0;
}

/* Tensor cores make none of f32 and bf16. */
static void test_training_in_bf16_has_no_mixed_product(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        uint64_t state = base_seed + 50 + (uint64_t)v;
        corpus c = corpus_random(&config, N_SEQS, 14, &state);
        int32_t seqs[N_SEQS];
        float *dlogprobs = take(c.T, sizeof(float));
        for (int32_t s = 0; s < N_SEQS; s++) seqs[s] = s;
        wb_comm *comm;
        MUST(wb_comm_open_self(&comm));
        fixture_dtype = fixture_activations = WB_BF16;
        fixture f = fixture_create(&config, base_seed, comm, 1);
        results r = results_new(&f, &c);
        count_products(f.device);
        train_pass(&f, &c, N_SEQS, seqs, (direction){0}, dlogprobs, &r);
        assert_true(products > 0);
        /* Hyper-connections are weights of f32 over streams of bf16, and theirs are products of few rows. */
        if (config.hyper.n_streams == 0) assert_int_equal(mixed_products, 0);
        results_free(&r);
        fixture_close(&f);
        wb_comm_close(comm);
        free(dlogprobs);
        corpus_free(&c);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

static size_t allocated;
static wb_mem_alloc_fn *real_alloc;

static wb_status counted_alloc(wb_device *dev, size_t bytes, void **device_out) {
    allocated += bytes;
    return real_alloc(dev, bytes, device_out);
}

/* Bytes of an inference with a pool of n_blocks. */
static size_t infer_bytes(wb_dtype dtype, wb_dtype activations, int32_t n_blocks) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    wb_model_options options = wb_model_options_default();
    wb_infer_options pool = wb_infer_options_default();
    wb_model *model = NULL;
    wb_infer *infer = NULL;
    pool.n_blocks = n_blocks;
    MUST(wb_comm_open_self(&options.comm));
    MUST(wb_device_open_cpu(1, &options.device));
    options.dtype = dtype;
    options.activations = activations;
    MUST(wb_model_create(&config, 1, 0.25F, &options, &model));
    real_alloc = options.device->mem_alloc;
    options.device->mem_alloc = counted_alloc;
    allocated = 0;
    MUST(wb_infer_open(model, &pool, &infer));
    wb_infer_close(infer);
    wb_model_close(model);
    wb_device_close(options.device);
    wb_comm_close(options.comm);
    return allocated;
}

/* Of keys and values alone: what 64 more blocks take, a number whose tables end where the arena is
 * aligned. */
static size_t pool_bytes(wb_dtype dtype, wb_dtype activations) {
    return infer_bytes(dtype, activations, 128) - infer_bytes(dtype, activations, 64);
}

static void test_keys_and_values_are_bf16_where_weights_or_activations_are(void **unused) {
    (void)unused;
    const wb_config config = variant_config(VARIANT_QWEN3);
    const size_t elements = (size_t)(config.n_layers * 2 * 64 * 16 * config.n_kv_heads * config.head_dim);
    assert_int_equal(pool_bytes(WB_F32, WB_F32), 4 * elements);
    assert_int_equal(pool_bytes(WB_BF16, WB_F32), 2 * elements);
    assert_int_equal(pool_bytes(WB_F32, WB_BF16), 2 * elements);
    assert_int_equal(pool_bytes(WB_BF16, WB_BF16), 2 * elements);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_is_close_to_f32),
        cmocka_unit_test(test_training_in_bf16_has_no_mixed_product),
        cmocka_unit_test(test_keys_and_values_are_bf16_where_weights_or_activations_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
