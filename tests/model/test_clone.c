/* test_clone.c - a model made from another one's weights, and a trainer for forwards only: the same bits as
 * what they stand for, no file, no memory for a backward. Argument 1 sets the seed. */
#include "model_fixture.h"
#include "support/test_seed.h"
#include "wb_comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static uint64_t base_seed;

/* ---- memory of the device ------------------------------------------------------------------------ */

static wb_status (*real_alloc)(wb_device *, size_t, void **);
static size_t bytes_taken;

static wb_status counting_alloc(wb_device *dev, size_t bytes, void **out) {
    bytes_taken += bytes;
    return real_alloc(dev, bytes, out);
}

static void count_bytes(wb_device *dev) {
    real_alloc = dev->mem_alloc;
    dev->mem_alloc = counting_alloc;
    bytes_taken = 0;
}

/* ---- clone --------------------------------------------------------------------------------------- */

static wb_model *clone_of(const fixture *f, wb_dtype dtype) {
    wb_model_options options = wb_model_options_default();
    options.device = f->device;
    options.comm = f->comm;
    options.dtype = dtype;
    wb_model *clone;
    MUST(wb_model_clone(f->model, &options, &clone));
    return clone;
}

static void test_a_clone_has_the_weights_and_storages_of_its_own(void **state) {
    (void)state;
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    const wb_config config = variant_config((variant)0);
    fixture f = fixture_create(&config, base_seed, comm, 1);
    wb_model *same = clone_of(&f, WB_F32), *rounded = clone_of(&f, WB_BF16);
    assert_string_equal(wb_model_routes(same)->fingerprint, wb_model_routes(f.model)->fingerprint);
    for (int32_t i = 0; i < wb_model_n_tensors(f.model); i++) {
        const wb_tensor from = wb_model_tensor(f.model, i), to = wb_model_tensor(same, i);
        assert_string_equal(from.name, to.name);
        assert_ptr_not_equal(from.data, to.data);
        assert_memory_equal(from.data, to.data, (size_t)from.n * sizeof(float)); /* CPU */
        const wb_tensor half = wb_model_tensor(rounded, i);
        assert_int_equal(half.dtype, from.n_dims > 1 ? WB_BF16 : WB_F32);
    }
    wb_model_close(rounded);
    wb_model_close(same);
    fixture_close(&f);
    wb_comm_close(comm);
}

/* ---- forward only -------------------------------------------------------------------------------- */

/* Of one forward of all sequences. */
static void forward(wb_train *train, const fixture *f, const corpus *c, float *logprobs) {
    void *ids;
    const wb_train_batch batch = {
        .T = c->T, .tokens = c->tokens, .targets = c->targets, .n_seqs = c->n_seqs, .seq_start = c->start};
    MUST(f->device->mem_alloc(f->device, (size_t)c->T * f->row_bytes, &ids));
    const wb_routing routing = {.ids = ids};
    MUST(wb_train_forward(train, &batch, &routing, NULL, logprobs));
    f->device->mem_free(f->device, ids);
}

static void test_forwards_only_are_the_same_bits_and_take_no_memory_for_a_backward(void **state) {
    (void)state;
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        fixture f = fixture_create(&config, base_seed + (uint64_t)v, comm, 1);
        corpus c = corpus_random(&config, 3, 12, &(uint64_t){base_seed});
        float *whole = take(c.T, sizeof(float)), *only = take(c.T, sizeof(float));
        const size_t V = (size_t)config.vocab_size, logits_bytes = (size_t)c.T * V * sizeof(float);
        float *logits = take(c.T, V * sizeof(float)), *only_logits = take(c.T, V * sizeof(float));
        wb_train_options options = wb_train_options_default();
        options.forward_only = true;
        wb_train *train, *full;

        count_bytes(f.device);
        MUST(wb_train_open(f.model, NULL, &full));
        forward(full, &f, &c, whole);
        const size_t full_bytes = bytes_taken;
        bytes_taken = 0;
        MUST(wb_train_open(f.model, &options, &train));
        forward(train, &f, &c, only);
        size_t weights = 0;
        for (int32_t i = 0; i < wb_model_n_tensors(f.model); i++)
            weights += (size_t)wb_model_tensor(f.model, i).n * sizeof(float);
        /* Without the gradients, which are as large as the weights, and without a residual stream a layer. */
        assert_true(bytes_taken + weights < full_bytes);
        assert_memory_equal(whole, only, (size_t)c.T * sizeof(float));
        MUST(wb_train_logits(full, logits));
        MUST(wb_train_logits(train, only_logits));
        assert_memory_equal(logits, only_logits, logits_bytes);

        assert_int_equal(wb_train_backward(train, only), WB_INVALID_ARGUMENT);
        assert_non_null(strstr(wb_error_message(), "for forwards only"));
        assert_int_equal(wb_train_zero_grads(train), WB_INVALID_ARGUMENT);
        assert_int_equal(wb_train_reduce_grads(train), WB_INVALID_ARGUMENT);
        const wb_tensor tensor = wb_model_tensor(f.model, 0);
        assert_null(wb_train_grad(train, &tensor));
        wb_train_close(train);
        wb_train_close(full);
        void *const arrays[] = {whole, only, logits, only_logits};
        for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
        corpus_free(&c);
        fixture_close(&f);
    }
    wb_comm_close(comm);
}

/* What a trainer and one forward of it take of the device, without the ids that are the caller's. */
static size_t bytes_of_forward(const fixture *f, const corpus *c, bool forward_only) {
    wb_train_options options = wb_train_options_default();
    options.forward_only = forward_only;
    float *logprobs = take(c->T, sizeof(float));
    wb_train *train;
    count_bytes(f->device);
    MUST(wb_train_open(f->model, &options, &train));
    forward(train, f, c, logprobs);
    f->device->mem_alloc = real_alloc;
    wb_train_close(train);
    free(logprobs);
    return bytes_taken - (size_t)c->T * f->row_bytes;
}

static void test_forwards_only_take_no_more_memory_for_more_layers_and_none_of_a_backward(void **state) {
    (void)state;
    wb_comm *comm;
    MUST(wb_comm_open_self(&comm));
    for (int v = 0; v < N_VARIANTS; v++) {
        const wb_config config = variant_config((variant)v);
        wb_config deep_config = config;
        set_depth(&deep_config, 2 * config.n_layers);
        deep_config.moe_layer_mask[0] |= config.moe_layer_mask[0] << config.n_layers;
        /* Where only the first layers may be dense, all that come behind them are MoE. */
        if (config.mla.kv_rank > 0) deep_config.moe_layer_mask[0] |= UINT64_C(7) << config.n_layers;
        fixture f = fixture_create(&config, base_seed, comm, 1);
        fixture deep = fixture_create(&deep_config, base_seed, comm, 1);
        corpus c = corpus_random(&config, 3, 12, &(uint64_t){base_seed});
        const size_t only = bytes_of_forward(&f, &c, true), full = bytes_of_forward(&f, &c, false);
        assert_int_equal(only, bytes_of_forward(&deep, &c, true));

        size_t spared = 0;
        for (int32_t i = 0; i < wb_model_n_tensors(f.model); i++)
            spared += (size_t)wb_model_tensor(f.model, i).n * sizeof(float);
        /* Two of n_layers + 1 residual streams stay; a block's backward needs two more of the same size. */
        spared += (size_t)(config.n_layers + 1) * (size_t)c.T * (size_t)config.hidden_size * sizeof(float);
        assert_true(only + spared <= full);
        corpus_free(&c);
        fixture_close(&deep);
        fixture_close(&f);
    }
    wb_comm_close(comm);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_clone_has_the_weights_and_storages_of_its_own),
        cmocka_unit_test(test_forwards_only_are_the_same_bits_and_take_no_memory_for_a_backward),
        cmocka_unit_test(test_forwards_only_take_no_more_memory_for_more_layers_and_none_of_a_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
