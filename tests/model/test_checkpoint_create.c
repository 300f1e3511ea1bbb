/* test_checkpoint_create.c - models without a checkpoint: created from a seed, copied, their fingerprints. */
#include "checkpoint_fixture.h"

#include <math.h>

static void test_a_seed_gives_the_same_model_at_any_rank_count(void **state) {
    (void)state;
    wb_config config;
    temp_path one = temp_in(dir.text, "seed_one"), many = temp_in(dir.text, "seed_many");
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    config.router.n_experts = 3; /* fewer than ranks */
    config.router.top_k = 2;
    create_save(&config, 7, WB_F32, 1, one.text);
    for (int ranks = 2; ranks <= 5; ranks++) {
        create_save(&config, 7, WB_F32, ranks, many.text);
        expect_same_tensors(one.text, many.text);
        open_expect_save(many.text, WB_F32, 6 - ranks, one.text, NULL);
    }
}

/* All that a configuration can switch on: dense layers, biases, tied embeddings. */
static void test_created_models_read_back(void **state) {
    (void)state;
    wb_config config;
    temp_path out = temp_in(dir.text, "created");
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    config.moe_layer_mask[0] = 5;
    config.attention_bias = true;
    config.tie_word_embeddings = true;
    create_save(&config, 1, WB_F32, 2, out.text);
    open_expect_save(out.text, WB_F32, 1, out.text, NULL);
    wb_safetensors *st = NULL;
    wb_tensor_view view;
    assert_int_equal(wb_safetensors_open(out.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_find(st, "lm_head.weight", &view), WB_NOT_FOUND);
    assert_int_equal(wb_safetensors_find(st, "model.layers.1.mlp.gate.weight", &view), WB_NOT_FOUND);
    assert_int_equal(wb_safetensors_find(st, "model.layers.1.mlp.up_proj.weight", &view), WB_OK);
    assert_int_equal(view.shape[0], 48);
    assert_int_equal(wb_safetensors_find(st, "model.layers.2.self_attn.q_proj.bias", &view), WB_OK);
    for (size_t b = 0; b < view.bytes; b++) assert_int_equal(((const unsigned char *)view.data)[b], 0);
    assert_int_equal(wb_safetensors_find(st, "model.norm.weight", &view), WB_OK);
    float first;
    memcpy(&first, view.data, 4);
    assert_true(first == 1.0f);
    wb_safetensors_close(st);
    assert_int_equal(wb_config_load(golden("olmoe").text, &config), WB_OK);
    config.clip_qkv = 2;
    create_save(&config, 2, WB_BF16, 1, out.text);
    open_expect_save(out.text, WB_BF16, 3, out.text, NULL);
}

static void test_created_weights_are_normal_and_differ_by_seed_and_name(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *golden_model = open_one(golden("olmoe").text, WB_F32, &device, &comm), *a = NULL, *b = NULL;
    wb_config config = *wb_model_config(golden_model);
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F32,
                                .activations = WB_F32};
    assert_int_equal(wb_model_create(&config, 1, 0.5f, &options, &a), WB_OK);
    assert_int_equal(wb_model_create(&config, 2, 0.5f, &options, &b), WB_OK);
    double sum = 0, squares = 0, beyond = 0, n = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(a); i++) {
        wb_tensor t = wb_model_tensor(a, i), u = wb_model_tensor(b, i);
        if (t.n_dims == 1) continue;
        assert_memory_not_equal(t.data, u.data, (size_t)t.n * 4);
        if (i > 0 && wb_model_tensor(a, i - 1).n == t.n)
            assert_memory_not_equal(t.data, wb_model_tensor(a, i - 1).data, (size_t)t.n * 4);
        for (int64_t k = 0; k < t.n; k++) {
            double x = (double)((const float *)t.data)[k] / 0.5;
            sum += x;
            squares += x * x;
            beyond += fabs(x) > 2;
            n++;
        }
    }
    assert_true(fabs(sum / n) <= 5 / sqrt(n));
    assert_true(fabs(squares / n - 1) <= 0.02);
    assert_true(fabs(beyond / n - 0.0455) <= 0.004); /* of a normal distribution */
    assert_int_equal(wb_model_create(&config, 2, NAN, &options, &golden_model), WB_INVALID_ARGUMENT);
    wb_model_close(a);
    wb_model_close(b);
    close_one(golden_model, device, comm);
}

static void test_copy_weights_needs_the_same_model(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *qwen = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm), *olmoe = NULL, *fresh = NULL;
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F32,
                                .activations = WB_F32};
    assert_int_equal(wb_model_open(golden("olmoe").text, &options, &olmoe), WB_OK);
    assert_int_equal(wb_model_copy_weights(olmoe, qwen), WB_MISMATCH);
    assert_int_equal(wb_model_create(wb_model_config(qwen), 3, 0.1f, &options, &fresh), WB_OK);
    assert_int_equal(wb_model_copy_weights(fresh, qwen), WB_OK);
    int32_t differing = 0, owned = 0;
    assert_int_equal(compare(fresh, golden("qwen3_moe").text, &differing, &owned), WB_OK);
    assert_int_equal(differing, 0);
    wb_model_close(fresh);
    wb_model_close(olmoe);
    close_one(qwen, device, comm);
}

static void fingerprint_of(const wb_config *config, char out[33]) {
    wb_device *device;
    wb_comm *comm;
    wb_model *model = NULL;
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    assert_int_equal(wb_comm_open_self(&comm), WB_OK);
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_F32,
                                .activations = WB_F32};
    if (wb_model_create(config, 1, 0.1f, &options, &model) != WB_OK) fail_msg("%s", wb_error_message());
    memcpy(out, wb_model_routes(model)->fingerprint, 33);
    close_one(model, device, comm);
}

/* Dumps of other machines carry these: they must never change. */
static void test_fingerprint_is_a_function_of_the_architecture(void **state) {
    (void)state;
    wb_config config, changed[16];
    char seen[17][33];
    assert_int_equal(wb_config_load(golden("olmoe").text, &config), WB_OK);
    fingerprint_of(&config, seen[0]);
    assert_string_equal(seen[0], "643c184014a65c244dfa610011c5ba4b");
    assert_int_equal(wb_config_load(golden("qwen3_moe").text, &config), WB_OK);
    fingerprint_of(&config, seen[0]);
    assert_string_equal(seen[0], "016f76ce122bebcf4a28480bbf32819f");
    for (size_t i = 0; i < 16; i++) changed[i] = config;
    changed[0].hidden_size = 34;
    changed[1].n_layers = 2;
    changed[1].moe_layer_mask[0] = 3;
    changed[2].n_heads = 6;
    changed[3].n_kv_heads = 1;
    changed[4].head_dim = 8;
    changed[5].expert_width = 8;
    changed[6].moe_layer_mask[0] = 3;
    changed[7].vocab_size = 64;
    changed[8].norm_eps = 1e-5f;
    changed[9].rope_theta = 1e6;
    changed[10].tie_word_embeddings = true;
    changed[11].attention_bias = true;
    changed[12].router.type = WB_ROUTER_SOFTMAX;
    changed[13].router.n_experts = 8;
    changed[14].router.top_k = 2;
    changed[15].moe_layer_mask[0] = 3;
    changed[15].dense_width = 24;
    for (size_t i = 0; i < 16; i++) {
        fingerprint_of(&changed[i], seen[i + 1]);
        for (size_t k = 0; k <= i; k++) assert_string_not_equal(seen[i + 1], seen[k]);
    }
    config.max_positions = 64;
    config.dense_width = 999; /* no layer is dense */
    fingerprint_of(&config, seen[1]);
    assert_string_equal(seen[1], seen[0]);
}

/* What no family of today has: the fields are set behind the check of a configuration. */
static void test_fingerprint_names_groups_and_normalization(void **state) {
    (void)state;
    static const wb_router fields[] = {
        {.type = WB_ROUTER_SOFTMAX_NORM},
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 4, .topk_group = 2},
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 4, .topk_group = 3},
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 8, .topk_group = 2},
        {.type = WB_ROUTER_SIGMOID},
        {.type = WB_ROUTER_SIGMOID, .normalize = true},
        /* as the first: no limit, and a type that does not look at it */
        {.type = WB_ROUTER_SOFTMAX_NORM, .n_group = 1, .topk_group = 1, .normalize = true},
    };
    enum { N = sizeof fields / sizeof fields[0] };
    wb_device *device;
    wb_comm *comm;
    char seen[N][33];
    wb_model *model = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    const wb_router router = model->config.router;
    for (int i = 0; i < N; i++) {
        model->config.router = fields[i];
        model->config.router.n_experts = router.n_experts;
        model->config.router.top_k = router.top_k;
        model->config.router.scale = router.scale;
        assert_int_equal(wb_model_describe_routes(model), WB_OK);
        memcpy(seen[i], model->route_model.fingerprint, sizeof seen[i]);
        for (int k = 0; k < i && i < N - 1; k++) assert_string_not_equal(seen[i], seen[k]);
    }
    assert_string_equal(seen[0], "016f76ce122bebcf4a28480bbf32819f");
    assert_string_equal(seen[N - 1], seen[0]);
    close_one(model, device, comm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_seed_gives_the_same_model_at_any_rank_count),
        cmocka_unit_test(test_created_models_read_back),
        cmocka_unit_test(test_created_weights_are_normal_and_differ_by_seed_and_name),
        cmocka_unit_test(test_copy_weights_needs_the_same_model),
        cmocka_unit_test(test_fingerprint_is_a_function_of_the_architecture),
        cmocka_unit_test(test_fingerprint_names_groups_and_normalization),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
