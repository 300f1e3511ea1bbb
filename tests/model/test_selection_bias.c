/* test_selection_bias.c - the selection bias of routers: it chooses and has no gradient, it follows the
 * load of the routes that were followed, and it levels the load. */
#include "support/temp_files.h"

#include "model_fixture.h"

static fixture f;
static corpus text;
static int32_t n_experts;

static int setup(void **state) {
    (void)state;
    wb_comm *comm;
    const wb_config config = variant_config(VARIANT_GLM4);
    MUST(wb_comm_open_self(&comm));
    f = fixture_create(&config, 11, comm, 2);
    uint64_t seed = 11;
    text = corpus_random(&config, 12, 20, &seed);
    n_experts = config.router.n_experts;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    wb_comm *comm = f.comm;
    corpus_free(&text);
    fixture_close(&f);
    wb_comm_close(comm);
    return 0;
}

static wb_tensor bias_of(int32_t layer) {
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.mlp.gate.e_score_correction_bias", layer);
    for (int32_t i = 0; i < wb_model_n_tensors(f.model); i++)
        if (strcmp(wb_model_tensor(f.model, i).name, name) == 0) return wb_model_tensor(f.model, i);
    fail_msg("no tensor %s", name);
    return (wb_tensor){0};
}

/* [L][E] choices in a route tensor of T tokens. */
static int64_t *count(const void *ids, int64_t T) {
    int64_t *loads = take(f.L * n_experts, sizeof *loads);
    for (int64_t i = 0; i < T * f.L * f.K; i++)
        loads[i / f.K % f.L * n_experts + (int64_t)wb_route_id(ids, f.ids_dtype, (size_t)i)]++;
    return loads;
}

/* What the corpus chooses by itself, or what it would choose beside `forced`, and the gradients' sum of
 * squares of the biases. */
static void *run(const void *forced) {
    const size_t bytes = (size_t)text.T * f.row_bytes;
    uint8_t *ids = take((int64_t)bytes, 1), *native = take((int64_t)bytes, 1), *forced_rows = take(text.T, 1);
    float *logprobs = take(text.T, sizeof *logprobs);
    if (forced) memcpy(ids, forced, bytes);
    memset(forced_rows, WB_ROW_FORCED, (size_t)text.T);
    const wb_routing routing = {.ids = ids, .direction = forced ? forced_rows : NULL, .native = native};
    const wb_train_batch batch = {.T = text.T,
                                  .tokens = text.tokens,
                                  .targets = text.targets,
                                  .n_seqs = text.n_seqs,
                                  .seq_start = text.start};
    MUST(wb_train_forward(f.train, &batch, &routing, NULL, logprobs));
    for (int64_t t = 0; t < text.T; t++) logprobs[t] = 1;
    MUST(wb_train_backward(f.train, logprobs));
    free(ids), free(forced_rows), free(logprobs);
    return native;
}

static void test_a_bias_has_no_gradient(void **state) {
    (void)state;
    free(run(NULL));
    for (int32_t l = 0; l < 3; l++) {
        const wb_tensor bias = bias_of(l);
        const float *gradient = wb_train_grad(f.train, &bias);
        for (int64_t e = 0; e < bias.n; e++) assert_true(gradient[e] == 0);
    }
    MUST(wb_train_zero_grads(f.train));
}

/* Under replay the routes that count are the forced ones: those of one expert alone, here, whatever the
 * routers would choose now; a caller that asks otherwise gives the native counts. */
static void test_rule_39_the_bias_follows_the_forced_map(void **state) {
    (void)state;
    const int64_t n_ids = text.T * f.L * f.K;
    uint8_t *forced = take(n_ids, 1);
    for (int64_t i = 0; i < n_ids; i++) forced[i] = (uint8_t)(4 + i % f.K); /* experts 4, 5 and 6 */
    void *native = run(forced);
    int64_t *forced_load = count(forced, text.T), *native_load = count(native, text.T);
    float before[64], after[64];
    const wb_tensor bias = bias_of(1);
    assert_true(memcmp(forced_load, native_load, (size_t)(f.L * n_experts) * sizeof *forced_load) != 0);
    memcpy(before, bias.data, (size_t)bias.n * sizeof(float));
    assert_int_equal(wb_model_update_selection_bias(f.model, 0.25F, forced_load), WB_OK);
    memcpy(after, bias.data, (size_t)bias.n * sizeof(float));
    for (int32_t e = 0; e < n_experts; e++)
        assert_true(after[e] == before[e] + (e >= 4 && e < 4 + f.K ? -0.25F : 0.25F));
    assert_int_equal(wb_model_update_selection_bias(f.model, 0.25F, native_load), WB_OK);
    for (int32_t e = 0; e < n_experts; e++) {
        const int64_t load = native_load[n_experts + e] * n_experts, mean = text.T * f.K;
        const float step = load < mean ? 0.25F : load > mean ? -0.25F : 0;
        assert_true(((const float *)bias.data)[e] == after[e] + step);
    }
    free(forced), free(native), free(forced_load), free(native_load);
}

static double largest_over_mean(const int64_t *loads) {
    double largest = 0;
    for (int64_t i = 0; i < f.L * n_experts; i++) largest = fmax(largest, (double)loads[i]);
    return largest * n_experts / (double)(text.T * f.K);
}

/* By its own choices the load becomes more even, step by step. */
static void test_the_rule_levels_the_load(void **state) {
    (void)state;
    double first = 0, last = 0;
    for (int step = 0; step < 120; step++) {
        void *native = run(NULL);
        int64_t *loads = count(native, text.T);
        last = largest_over_mean(loads);
        if (step == 0) first = last;
        MUST(wb_model_update_selection_bias(f.model, 0.01F, loads));
        free(native), free(loads);
    }
    printf("largest load over the mean: %.2f at first, %.2f at last\n", first, last);
    assert_true(last < 0.75 * first);
}

static void test_what_is_refused(void **state) {
    (void)state;
    int64_t *loads = take(f.L * n_experts, sizeof *loads);
    const wb_tensor bias = bias_of(0);
    float before[64];
    memcpy(before, bias.data, (size_t)bias.n * sizeof(float));
    assert_int_equal(wb_model_update_selection_bias(f.model, 0.5F, loads),
                     WB_OK); /* no counts: nothing moves */
    assert_int_equal(wb_model_update_selection_bias(f.model, NAN, loads), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_model_update_selection_bias(f.model, 0.5F, NULL), WB_INVALID_ARGUMENT);
    assert_message_has("loads: expected counts, found NULL");
    loads[n_experts + 2] = -1;
    assert_int_equal(wb_model_update_selection_bias(f.model, 0.5F, loads), WB_INVALID_ARGUMENT);
    assert_message_has("load of expert 2 in MoE layer 1: expected at least 0, found -1");
    assert_memory_equal(before, bias.data, (size_t)bias.n * sizeof(float));
    free(loads);
    const wb_config config = variant_config(VARIANT_QWEN2);
    fixture other = fixture_create(&config, 3, f.comm, 1);
    assert_int_equal(wb_model_update_selection_bias(other.model, 0.5F, NULL), WB_INVALID_ARGUMENT);
    assert_message_has("expected a family that has one, found qwen2_moe");
    fixture_close(&other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_bias_has_no_gradient),
        cmocka_unit_test(test_rule_39_the_bias_follows_the_forced_map),
        cmocka_unit_test(test_the_rule_levels_the_load),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
