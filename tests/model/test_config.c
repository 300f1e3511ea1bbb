/* test_config.c - config.json in every spelling; a bad value is refused by key, value and what was
 * expected. */
#include "support/temp_files.h"

#include "config.h"

static temp_path dir;

static int setup(void **state) {
    (void)state;
    dir = temp_dir();
    return 0;
}

static int teardown(void **state) {
    (void)state;
    temp_remove(dir);
    return 0;
}

/* ---- helpers --------------------------------------------------------------------------------- */

static json_t *golden_root(const char *family) {
    temp_path path = temp_in(WB_TEST_DATA, family);
    path = temp_in(path.text, "config.json");
    json_t *root = json_load_file(path.text, 0, NULL);
    assert_non_null(root);
    return root;
}

/* Loads golden config of `family` with `key` replaced by `value` (JSON; NULL removes the key). */
static wb_status load_with(const char *family, const char *key, const char *value, wb_config *config) {
    json_t *root = golden_root(family);
    if (key && value) {
        json_t *parsed = json_loads(value, JSON_DECODE_ANY, NULL);
        if (!parsed) fail_msg("bad test value %s", value);
        json_object_set_new(root, key, parsed);
    } else if (key) {
        json_object_del(root, key);
    }
    temp_path path = temp_in(dir.text, "config.json");
    assert_int_equal(json_dump_file(root, path.text, 0), 0);
    json_decref(root);
    return wb_config_load(dir.text, config);
}

static void expect_refused(const char *family, const char *key, const char *value, wb_status status,
                           const char *part) {
    wb_config config = {.hidden_size = 777}; /* stays as it is */
    wb_status found = load_with(family, key, value, &config);
    if (found != status)
        fail_msg("%s = %s: expected %d, found %d (%s)", key, value ? value : "absent", (int)status,
                 (int)found, found ? wb_error_message() : "ok");
    assert_int_equal(config.hidden_size, 777);
    assert_message_has("config.json");
    assert_message_has(part);
}

static wb_config expect_ok(const char *family, const char *key, const char *value) {
    wb_config config;
    wb_status status = load_with(family, key, value, &config);
    if (status != WB_OK) fail_msg("%s: %s", key ? key : "as it is", wb_error_message());
    return config;
}

/* A file with 8 heads and without the key, so that 4 and "as many as heads" are not the same. */
static void expect_default_kv_heads(const char *family, int32_t expected) {
    temp_path path = temp_in(dir.text, "config.json");
    wb_config config;
    json_t *root = golden_root(family);
    json_object_set_new(root, "num_attention_heads", json_integer(8));
    json_object_del(root, "num_key_value_heads");
    assert_int_equal(json_dump_file(root, path.text, 0), 0);
    json_decref(root);
    if (wb_config_load(dir.text, &config) != WB_OK) fail_msg("%s: %s", family, wb_error_message());
    assert_int_equal(config.n_heads, 8);
    assert_int_equal(config.n_kv_heads, expected);
}

/* ---- good files ------------------------------------------------------------------------------ */

static void test_golden_qwen3_moe(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", NULL, NULL);
    assert_int_equal(c.family, WB_FAMILY_QWEN3_MOE);
    assert_int_equal(c.hidden_size, 32);
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.n_heads, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.expert_width, 16);
    assert_int_equal(c.dense_width, 48);
    assert_int_equal(c.vocab_size, 128);
    assert_int_equal(c.max_positions, 512);
    assert_true(c.norm_eps == 1e-6f);
    assert_true(c.rope_theta == 10000.0);
    assert_false(c.tie_word_embeddings);
    assert_false(c.attention_bias);
    assert_int_equal(c.qk_norm, WB_QK_NORM_PER_HEAD);
    assert_true(c.clip_qkv == 0);
    assert_int_equal(c.router.type, WB_ROUTER_SOFTMAX_NORM);
    assert_int_equal(c.router.n_experts, 16);
    assert_int_equal(c.router.top_k, 4);
    assert_true(c.router.scale == 1);
    for (int32_t l = 0; l < 3; l++) assert_true(wb_config_is_moe(&c, l));
    assert_false(wb_config_is_moe(&c, 3));
    assert_false(wb_config_is_moe(&c, -1));
    assert_false(wb_config_is_moe(&c, 5000));
}

static void test_golden_olmoe(void **state) {
    (void)state;
    wb_config c = expect_ok("olmoe", NULL, NULL);
    assert_int_equal(c.family, WB_FAMILY_OLMOE);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.expert_width, 16);
    assert_int_equal(c.dense_width, 0);
    assert_true(c.norm_eps == 1e-5f);
    assert_int_equal(c.qk_norm, WB_QK_NORM_WHOLE);
    assert_int_equal(c.router.type, WB_ROUTER_SOFTMAX);
}

/* The released files' spelling, and what their classes assume where a key is absent. */
static void test_released_spelling_and_defaults(void **state) {
    (void)state;
    static const char text[] =
        "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"attention_bias\":false,\"head_dim\":128,\"hidden_"
        "act\":\"silu\","
        "\"hidden_size\":2048,\"intermediate_size\":6144,\"max_position_embeddings\":40960,\"max_window_"
        "layers\":48,"
        "\"mlp_only_layers\":[],\"model_type\":\"qwen3_moe\",\"moe_intermediate_size\":768,\"norm_topk_"
        "prob\":true,"
        "\"num_attention_heads\":32,\"num_experts\":128,\"num_experts_per_tok\":8,\"num_hidden_layers\":48,"
        "\"num_key_value_heads\":4,\"rms_norm_eps\":1e-06,\"rope_scaling\":null,\"rope_theta\":1000000.0,"
        "\"sliding_window\":null,\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\","
        "\"use_sliding_window\":false,\"vocab_size\":151936}";
    temp_path path = temp_in(dir.text, "config.json");
    wb_config c;
    temp_write(path.text, text, sizeof text - 1);
    assert_int_equal(wb_config_load(dir.text, &c), WB_OK);
    assert_int_equal(c.router.n_experts, 128);
    assert_true(c.rope_theta == 1e6);
    assert_int_equal(c.head_dim, 128);

    assert_true(expect_ok("qwen3_moe", "rope_parameters", NULL).rope_theta == 10000.0);
    assert_true(expect_ok("qwen3_moe", "rope_parameters", "{\"rope_theta\":5e6}").rope_theta == 5e6);
    assert_true(expect_ok("qwen3_moe", "rope_scaling", "{\"type\":\"default\"}").rope_theta == 10000.0);
    assert_true(expect_ok("qwen3_moe", "rms_norm_eps", NULL).norm_eps == 1e-6f);
    assert_true(expect_ok("olmoe", "rms_norm_eps", NULL).norm_eps == 1e-5f);
    assert_int_equal(expect_ok("qwen3_moe", "head_dim", NULL).head_dim, 8);
    assert_int_equal(expect_ok("qwen3_moe", "head_dim", "null").head_dim, 8);
    assert_int_equal(expect_ok("qwen3_moe", "norm_topk_prob", NULL).router.type, WB_ROUTER_SOFTMAX);
    assert_int_equal(expect_ok("olmoe", "norm_topk_prob", "true").router.type, WB_ROUTER_SOFTMAX_NORM);
    expect_default_kv_heads("qwen3_moe", 4);
    expect_default_kv_heads("olmoe", 8);
    assert_int_equal(expect_ok("qwen3_moe", "max_position_embeddings", NULL).max_positions, 32768);
    assert_int_equal(expect_ok("olmoe", "max_position_embeddings", NULL).max_positions, 4096);
    assert_true(expect_ok("olmoe", "clip_qkv", "0.5").clip_qkv == 0.5f);
    assert_true(expect_ok("olmoe", "clip_qkv", "8").clip_qkv == 8.0f);
    assert_true(expect_ok("qwen3_moe", "tie_word_embeddings", "true").tie_word_embeddings);
    assert_true(expect_ok("olmoe", "attention_bias", "true").attention_bias);
    assert_int_equal(expect_ok("qwen3_moe", "num_experts", "16").router.n_experts, 16);
    expect_ok("qwen3_moe", "sliding_window", "4096"); /* not used unless use_sliding_window */
    expect_ok("qwen3_moe", "unknown_key", "[1,2]");
    expect_ok("qwen3_moe", "properties", "[1,2]"); /* no word of it is rope */
    expect_ok("qwen3_moe", "rope_local_base_freq", "null");
    expect_ok("qwen3_moe", "rope_interleave", "false");
    expect_ok("qwen3_moe", "layer_types", "[\"full_attention\",\"full_attention\",\"full_attention\"]");
}

/* What is meant where a key is absent is the family's, as in its class in transformers 5.24; a number may
 * come under either of two keys. */
static void test_rule_34_defaults_are_the_familys(void **state) {
    (void)state;
    static const struct {
        const char *family;
        double theta;
        float eps;
        int32_t positions;
    } rows[] = {{"qwen3_moe", 10000.0, 1e-6f, 32768}, {"olmoe", 10000.0, 1e-5f, 4096}};
    for (size_t i = 0; i < 2; i++) {
        const char *family = rows[i].family;
        assert_int_equal(expect_ok(family, "norm_topk_prob", NULL).router.type, WB_ROUTER_SOFTMAX);
        assert_int_equal(expect_ok(family, "norm_topk_prob", "null").router.type, WB_ROUTER_SOFTMAX);
        assert_false(expect_ok(family, "tie_word_embeddings", NULL).tie_word_embeddings);
        assert_false(expect_ok(family, "attention_bias", NULL).attention_bias);
        assert_true(expect_ok(family, "rope_parameters", NULL).rope_theta == rows[i].theta);
        assert_true(expect_ok(family, "rms_norm_eps", NULL).norm_eps == rows[i].eps);
        assert_int_equal(expect_ok(family, "max_position_embeddings", NULL).max_positions, rows[i].positions);
    }
    assert_int_equal(expect_ok("qwen3_moe", "num_experts_per_token", "4").router.top_k, 4);
    assert_true(expect_ok("qwen3_moe", "rope_theta", "1e4").rope_theta == 10000.0);
}

/* As a released file of a longer context has it, and as transformers 5 writes the same. */
static void test_scaled_rope(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", "rope_parameters",
                            "{\"rope_type\":\"yarn\",\"rope_theta\":1e6,\"factor\":4.0,"
                            "\"original_max_position_embeddings\":128,\"truncate\":false}");
    assert_int_equal(c.rope_scaling.type, WB_ROPE_YARN);
    assert_true(c.rope_scaling.factor == 4 && c.rope_scaling.beta_fast == 32 &&
                c.rope_scaling.beta_slow == 1);
    assert_int_equal(c.rope_scaling.original_positions, 128);
    assert_false(c.rope_scaling.truncate);
    assert_true(c.rope_scaling.attention_factor == 0 && c.rope_scaling.mscale == 0);
    c = expect_ok("qwen3_moe", "rope_parameters",
                  "{\"rope_type\":\"yarn\",\"original_max_position_embeddings\":128}");
    assert_true(c.rope_scaling.factor == 4 && c.rope_scaling.truncate); /* 512 positions */
    c = expect_ok("qwen3_moe", "rope_parameters", "{\"type\":\"linear\",\"factor\":2}");
    assert_int_equal(c.rope_scaling.type, WB_ROPE_LINEAR);
    assert_true(c.rope_scaling.factor == 2);
    c.rope_scaling.factor = 0;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("rope scaling: factor");
    c = expect_ok("qwen3_moe", NULL, NULL);
    c.rotary_dim = 8;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("rotary_dim: expected 0 for qwen3_moe, found 8");
}

/* Configurations of public models, as they were released, with their fields and without their weights. */
static wb_config released(const char *model) {
    wb_config c;
    const temp_path folder = temp_in(temp_in(WB_TEST_DATA, "configs").text, model);
    if (wb_config_load(folder.text, &c) != WB_OK) fail_msg("%s: %s", model, wb_error_message());
    return c;
}

static void test_released_qwen2_moe(void **state) {
    (void)state;
    wb_config c = released("qwen1.5_moe_a2.7b");
    assert_int_equal(c.family, WB_FAMILY_QWEN2_MOE);
    assert_true(c.head_dim == 128 && c.n_kv_heads == 16 && c.expert_width == 1408 && c.shared_width == 5632);
    assert_true(c.attention_bias && c.qk_norm == WB_QK_NORM_NONE);
    assert_int_equal(c.router.type, WB_ROUTER_SOFTMAX);
    assert_int_equal(c.router.n_experts, 60);
    assert_int_equal(wb_config_n_moe(&c), 24);
    c = released("qwen2_57b_a14b");
    assert_true(c.n_kv_heads == 4 && c.shared_width == 20480 && c.router.top_k == 8 && c.n_layers == 28);
}

static void test_released_glm4_moe(void **state) {
    (void)state;
    wb_config c = released("glm_4.5");
    assert_int_equal(c.family, WB_FAMILY_GLM4_MOE);
    assert_int_equal(c.router.type, WB_ROUTER_SIGMOID);
    assert_true(c.router.normalize && c.router.scale == 2.5f && c.router.n_group == 1);
    assert_true(c.router.n_experts == 160 && c.router.top_k == 8 && c.shared_width == 1536);
    assert_true(c.rotary_dim == 64 && c.head_dim == 128 && c.qk_norm == WB_QK_NORM_PER_HEAD);
    assert_true(wb_config_n_moe(&c) == 89 && !wb_config_is_moe(&c, 2) && wb_config_is_moe(&c, 3));
    assert_int_equal(c.n_mtp_layers, 1);
    c = released("glm_4.5_air");
    assert_true(wb_config_n_moe(&c) == 45 && c.qk_norm == WB_QK_NORM_NONE && c.router.scale == 1);
    c.moe_layer_mask[0] &= ~(UINT64_C(1) << 7);
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("moe layers: expected the multiples of 1 from layer 1 on for glm4_moe, found layer 7");
}

static void test_released_deepseek(void **state) {
    (void)state;
    wb_config c = released("deepseek_v3");
    assert_int_equal(c.family, WB_FAMILY_DEEPSEEK_V3);
    assert_true(c.mla.kv_rank == 512 && c.mla.q_rank == 1536 && c.mla.nope_dim == 128);
    assert_true(c.mla.rope_dim == 64 && c.mla.value_dim == 128 && c.mla.interleaved && c.head_dim == 192);
    assert_true(c.router.type == WB_ROUTER_SIGMOID && c.router.normalize && c.router.scale == 2.5f);
    assert_true(c.router.n_group == 8 && c.router.topk_group == 4 && c.router.top_k == 8);
    assert_true(c.rope_scaling.type == WB_ROPE_YARN && c.rope_scaling.mscale_all_dim == 1);
    assert_true(wb_config_n_moe(&c) == 58 && !wb_config_is_moe(&c, 2) && c.shared_width == 2048);
    assert_int_equal(c.n_mtp_layers, 1);
    c = released("moonlight_16b_a3b");
    assert_true(c.mla.q_rank == 0 && c.router.n_group == 1 && c.norm_eps == 1e-5f);
    assert_true(c.shared_width == 2816 && c.n_mtp_layers == 0 && wb_config_n_moe(&c) == 26);
    c = released("kimi_k2");
    assert_int_equal(c.family, WB_FAMILY_DEEPSEEK_V3);
    assert_true(c.router.n_experts == 384 && c.n_heads == 64 && c.dense_width == 18432);
    assert_int_equal(wb_config_row_bytes(&c), 60 * 8 * 2);
    c = released("deepseek_v2");
    assert_int_equal(c.family, WB_FAMILY_DEEPSEEK_V2);
    assert_true(c.router.type == WB_ROUTER_SOFTMAX && !c.router.normalize && c.router.scale == 16);
    assert_true(c.router.n_group == 8 && c.router.topk_group == 3 && c.shared_width == 3072);
    c = released("deepseek_v2_lite");
    assert_true(c.mla.q_rank == 0 && c.router.n_group == 1 && c.router.n_experts == 64);
}

static void test_released_deepseek_v4(void **state) {
    (void)state;
    wb_config c = released("deepseek_v4_flash");
    const wb_compressed_sizes *s = &c.compressed;
    assert_int_equal(c.family, WB_FAMILY_DEEPSEEK_V4);
    assert_true(c.head_dim == 512 && c.n_kv_heads == 1 && c.rotary_dim == 64 && c.window == 128);
    assert_true(s->q_rank == 1024 && s->o_groups == 8 && s->o_rank == 1024 && s->index_top_k == 512);
    assert_true(s->sparse_rate == 4 && s->heavy_rate == 128 && s->rope_theta == 160000 &&
                c.rope_theta == 10000);
    assert_true(c.rope_scaling.type == WB_ROPE_YARN && c.rope_scaling.attention_factor == 1);
    assert_true(s->sparse_layer_mask[0] == UINT64_C(0x55555555554) &&
                c.window_layer_mask[0] == 0x7ffffffffff);
    assert_true(s->heavy_layer_mask[0] == UINT64_C(0x2aaaaaaaaa8) && c.hash_layer_mask[0] == 7);
    assert_true(c.hyper.n_streams == 4 && c.hyper.iterations == 20 && c.hyper.eps == 1e-6f);
    assert_true(c.router.type == WB_ROUTER_SQRTSOFTPLUS && c.router.normalize && c.router.scale == 1.5f);
    assert_true(c.swiglu_limit == 10 && c.shared_width == 2048 && wb_config_n_moe(&c) == 43);
    assert_int_equal(c.n_mtp_layers, 0);
    uint32_t layers[3 * 43];
    wb_route_model routes;
    assert_int_equal(wb_config_routes(&c, layers, &routes), WB_OK);
    assert_true(routes.n_indexer_layers == 21 && routes.indexer_k == 512 && routes.indexer_rate == 4);
    for (uint32_t i = 0; i < 21; i++)
        assert_true(routes.indexer_layers[i] == 2 + 2 * i && routes.indexer_source[i] == 2 + 2 * i);
    c = released("deepseek_v4_pro");
    assert_true(c.router.n_experts == 384 && c.router.scale == 2.5f && c.compressed.o_groups == 16);
    assert_true(c.compressed.heavy_layer_mask[0] == UINT64_C(0xaaaaaaaaaaaaaab));
    assert_int_equal(wb_config_row_bytes(&c), 61 * 6 * 2);
}

static void test_bad_sizes_of_compressed_attention(void **state) {
    (void)state;
    static const struct {
        const char *key, *value, *part;
        wb_status status;
    } bad[] = {
        {"q_lora_rank", "0", "q_lora_rank: expected 1..", WB_INVALID_ARGUMENT},
        {"o_groups", "3", "num_attention_heads: expected a multiple of o_groups 3", WB_INVALID_ARGUMENT},
        {"index_topk", "0", "index_topk: expected 1..", WB_INVALID_ARGUMENT},
        {"hc_mult", "9", "hc_mult: expected 1..8, found 9", WB_INVALID_ARGUMENT},
        {"sliding_window", "0", "sliding_window: expected 1..", WB_INVALID_ARGUMENT},
        {"n_group", "2", "n_group: expected 1..1, found 2", WB_INVALID_ARGUMENT},
        {"hc_sinkhorn_iters", "0", "hc_sinkhorn_iters: expected 1..", WB_INVALID_ARGUMENT},
        {"scoring_func", "\"sigmoid\"", "scoring_func: supported is \"sqrtsoftplus\"", WB_UNSUPPORTED},
        {"norm_topk_prob", "false", "norm_topk_prob: supported is true", WB_UNSUPPORTED},
        {"n_shared_experts", "2", "n_shared_experts: supported is 1", WB_UNSUPPORTED},
        {"compress_ratios", "[4]", "compress_ratios: expected a list with a member for each layer",
         WB_CORRUPT},
        {"layer_types", "[\"full_attention\"]", "layer_types: expected a list", WB_CORRUPT},
        {"mlp_layer_types", "[3]", "mlp_layer_types: expected a list", WB_CORRUPT},
        {"num_key_value_heads", "2", "num_key_value_heads: expected 1..1, found 2", WB_INVALID_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_refused("configs/deepseek_v4_flash", bad[i].key, bad[i].value, bad[i].status, bad[i].part);
}

static void test_bad_sizes_of_latent_attention(void **state) {
    (void)state;
    static const struct {
        const char *key, *value, *part;
        wb_status status;
    } bad[] = {
        {"kv_lora_rank", "0", "kv_lora_rank: expected 1..", WB_INVALID_ARGUMENT},
        {"q_lora_rank", "-1", "q_lora_rank: expected 0..", WB_INVALID_ARGUMENT},
        {"qk_rope_head_dim", "7", "qk_rope_head_dim: expected an even number, found 7", WB_INVALID_ARGUMENT},
        {"v_head_dim", "0", "v_head_dim: expected 1..", WB_INVALID_ARGUMENT},
        {"scoring_func", "\"softmax\"", "scoring_func: supported is sigmoid", WB_UNSUPPORTED},
        {"topk_method", "\"greedy\"", "topk_method: supported is noaux_tc", WB_UNSUPPORTED},
        {"attention_bias", "true", "attention_bias: supported is false", WB_UNSUPPORTED},
        {"num_nextn_predict_layers", "-1", "num_nextn_predict_layers: expected 0..", WB_INVALID_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_refused("deepseek_v3", bad[i].key, bad[i].value, bad[i].status, bad[i].part);
    expect_refused("deepseek_v2", "topk_method", "\"noaux_tc\"", WB_UNSUPPORTED, "topk_method: supported is");
    expect_refused("deepseek_v2", "norm_topk_prob", "true", WB_UNSUPPORTED, "norm_topk_prob: supported is");
    wb_config c = expect_ok("qwen3_moe", NULL, NULL);
    c.mla.kv_rank = 8;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("mla: expected none for qwen3_moe");
}

/* What only one family has is refused in others, and a K of a hash-routed layer that its table has not. */
static void test_what_only_deepseek_v4_has(void **state) {
    (void)state;
    const wb_config usual = expect_ok("qwen3_moe", NULL, NULL);
    wb_config c = usual;
    c.compressed.q_rank = 8;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("compressed: expected none for qwen3_moe, found q of rank 8");
    c = usual;
    c.hyper.n_streams = 4;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("hyper: expected none for qwen3_moe, found 4 streams");
    c = usual;
    c.hash_layer_mask[0] = 2;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("compressed or hash layers: expected none for qwen3_moe, found layer 1");
    c = released("deepseek_v4_flash");
    for (int32_t l = 0; l < wb_config_n_moe(&c); l++) c.layer_top_k[l] = 6;
    c.layer_top_k[3] = 5;
    assert_int_equal(wb_config_check(&c), WB_OK);
    c.layer_top_k[2] = 5;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("layer_top_k of a hash-routed layer: expected 6..6, found 5");
}

static void test_released_mixtral(void **state) {
    (void)state;
    wb_config c = released("mixtral_8x7b");
    assert_int_equal(c.family, WB_FAMILY_MIXTRAL);
    assert_int_equal(c.router.type, WB_ROUTER_SOFTMAX_NORM);
    assert_true(c.router.n_experts == 8 && c.router.top_k == 2 && c.expert_width == 14336 &&
                c.head_dim == 128);
    assert_true(c.window == 0 && wb_config_window(&c, 0) == 0);
    c = released("mixtral_8x22b");
    assert_true(wb_config_n_moe(&c) == 56 && c.n_heads == 48);
    c.window = 4096;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("layers with a window: expected 56..56, found 0");
    for (int32_t l = 0; l < 56; l++) c.window_layer_mask[0] |= UINT64_C(1) << l;
    assert_int_equal(wb_config_check(&c), WB_OK);
    assert_int_equal(wb_config_window(&c, 55), 4096);
}

static void test_released_gpt_oss(void **state) {
    (void)state;
    wb_config c = released("gpt_oss_20b");
    assert_int_equal(c.family, WB_FAMILY_GPT_OSS);
    assert_int_equal(c.router.type, WB_ROUTER_TOPK_SOFTMAX);
    assert_true(c.router.n_experts == 32 && c.router.top_k == 4 && c.head_dim == 64 && c.attention_bias);
    assert_int_equal(c.rope_scaling.type, WB_ROPE_YARN);
    assert_true(c.rope_scaling.factor == 32 && !c.rope_scaling.truncate && c.rope_theta == 150000);
    assert_true(c.swiglu_limit == 7 && c.window == 128);
    for (int32_t l = 0; l < 24; l++) assert_int_equal(wb_config_window(&c, l), l % 2 == 0 ? 128 : 0);
    c = released("gpt_oss_120b");
    assert_true(c.router.n_experts == 128 && wb_config_n_moe(&c) == 36);
    c.swiglu_limit = 0;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("swiglu_limit: expected a number above 0 for gpt_oss, found 0");
}

static void test_dense_layers(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", "mlp_only_layers", "[1]");
    assert_int_equal(c.moe_layer_mask[0], 5);
    c = expect_ok("qwen3_moe", "decoder_sparse_step", "2");
    assert_int_equal(c.moe_layer_mask[0], 2);
    c = expect_ok("qwen3_moe", "num_hidden_layers", "1024");
    for (size_t i = 0; i < 16; i++) assert_true(c.moe_layer_mask[i] == UINT64_MAX);
}

static void test_routes_of_a_configuration(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", "mlp_only_layers", "[1]");
    uint32_t layers[9] = {7, 7, 7};
    wb_route_model routes = {.top_k = 777};
    assert_int_equal(wb_config_routes(&c, layers, &routes), WB_OK);
    assert_int_equal(routes.n_moe_layers, 2);
    assert_int_equal(routes.num_hidden_layers, 3);
    assert_true(layers[0] == 0 && layers[1] == 2 && layers[2] == 7);
    c.moe_layer_mask[0] = 0;
    routes.top_k = 777;
    assert_int_equal(wb_config_routes(&c, layers, &routes), WB_INVALID_ARGUMENT);
    assert_int_equal(routes.top_k, 777);
}

/* ---- bad values ------------------------------------------------------------------------------ */

static void test_bad_values_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *key, *value;
        wb_status status;
        const char *part;
    } bad[] = {
        {"model_type", NULL, WB_CORRUPT, "model_type: expected a string, found none"},
        {"model_type", "3", WB_CORRUPT, "model_type: expected a string, found 3"},
        {"model_type", "\"llama\"", WB_UNSUPPORTED, "supported is qwen3_moe, olmoe, "},
        {"hidden_size", NULL, WB_CORRUPT, "hidden_size: expected an integer, found none"},
        {"hidden_size", "\"32\"", WB_CORRUPT, "hidden_size: expected an integer, found \"32\""},
        {"hidden_size", "32.0", WB_CORRUPT, "hidden_size: expected an integer, found 32.0"},
        {"hidden_size", "0", WB_INVALID_ARGUMENT, "hidden_size: expected 1..2147483647, found 0"},
        {"hidden_size", "-1", WB_INVALID_ARGUMENT, "hidden_size: expected 0..2147483647, found -1"},
        {"hidden_size", "2147483648", WB_INVALID_ARGUMENT, "hidden_size"},
        {"hidden_size", "9223372036854775807", WB_INVALID_ARGUMENT, "hidden_size"},
        {"num_hidden_layers", "0", WB_INVALID_ARGUMENT, "num_hidden_layers: expected 1..1024, found 0"},
        {"num_hidden_layers", "1025", WB_INVALID_ARGUMENT, "num_hidden_layers: expected 1..1024, found 1025"},
        {"num_hidden_layers", "true", WB_CORRUPT, "num_hidden_layers"},
        {"num_attention_heads", "0", WB_INVALID_ARGUMENT, "num_attention_heads"},
        {"num_attention_heads", "3", WB_INVALID_ARGUMENT, "multiple of num_key_value_heads 2, found 3"},
        {"num_key_value_heads", "0", WB_INVALID_ARGUMENT, "num_key_value_heads"},
        {"num_key_value_heads", "8", WB_INVALID_ARGUMENT, "num_key_value_heads: expected 1..4, found 8"},
        {"head_dim", "15", WB_INVALID_ARGUMENT, "head_dim: expected an even number, found 15"},
        {"head_dim", "0", WB_INVALID_ARGUMENT, "head_dim"},
        {"head_dim", "1000000000", WB_INVALID_ARGUMENT, "head_dim"},
        {"moe_intermediate_size", NULL, WB_CORRUPT, "moe_intermediate_size: expected an integer, found none"},
        {"moe_intermediate_size", "0", WB_INVALID_ARGUMENT, "moe_intermediate_size"},
        {"vocab_size", "0", WB_INVALID_ARGUMENT, "vocab_size"},
        {"vocab_size", "[]", WB_CORRUPT, "vocab_size: expected an integer, found []"},
        {"max_position_embeddings", "0", WB_INVALID_ARGUMENT, "max_position_embeddings"},
        {"num_local_experts", NULL, WB_CORRUPT, "num_experts: expected an integer, found none"},
        {"num_local_experts", "0", WB_INVALID_ARGUMENT, "num_experts: expected 1..65536, found 0"},
        {"num_local_experts", "65537", WB_INVALID_ARGUMENT, "num_experts: expected 1..65536, found 65537"},
        {"num_local_experts", "3", WB_INVALID_ARGUMENT, "num_experts_per_tok: expected 1..3, found 4"},
        {"num_experts", "17", WB_INVALID_ARGUMENT, "num_experts: expected num_local_experts 16, found 17"},
        {"num_experts_per_tok", NULL, WB_CORRUPT, "num_experts_per_tok"},
        {"num_experts_per_tok", "0", WB_INVALID_ARGUMENT, "num_experts_per_tok: expected 1..16, found 0"},
        {"num_experts_per_tok", "17", WB_INVALID_ARGUMENT, "num_experts_per_tok: expected 1..16, found 17"},
        {"norm_topk_prob", "1", WB_CORRUPT, "norm_topk_prob: expected true or false, found 1"},
        {"tie_word_embeddings", "\"no\"", WB_CORRUPT, "tie_word_embeddings"},
        {"attention_bias", "0", WB_CORRUPT, "attention_bias"},
        {"rms_norm_eps", "0", WB_INVALID_ARGUMENT, "rms_norm_eps: expected a number above 0, found 0"},
        {"rms_norm_eps", "-1e-6", WB_INVALID_ARGUMENT, "rms_norm_eps"},
        {"rms_norm_eps", "1e-60", WB_INVALID_ARGUMENT, "rms_norm_eps"},
        {"rms_norm_eps", "1e60", WB_INVALID_ARGUMENT, "rms_norm_eps"},
        {"rms_norm_eps", "\"1e-6\"", WB_CORRUPT, "rms_norm_eps: expected a number"},
        {"rope_parameters", "{\"rope_theta\":0}", WB_INVALID_ARGUMENT, "rope_theta"},
        {"rope_parameters", "{\"rope_theta\":\"x\"}", WB_CORRUPT, "rope_parameters: rope_theta"},
        {"rope_parameters", "3", WB_CORRUPT, "rope_parameters: expected an object"},
        {"rope_parameters", "{\"rope_type\":\"llama3\",\"factor\":4}", WB_UNSUPPORTED,
         "rope_parameters: rope_type: supported is \"default\", \"linear\" or \"yarn\", found \"llama3\""},
        {"rope_parameters", "{\"rope_type\":\"yarn\",\"factor\":-4}", WB_INVALID_ARGUMENT, "factor"},
        {"rope_parameters", "{\"rope_type\":\"yarn\",\"short_factor\":[1]}", WB_UNSUPPORTED,
         "found short_factor"},
        {"rope_parameters", "{\"rope_type\":\"linear\",\"factor\":4,\"beta_fast\":1}", WB_UNSUPPORTED,
         "found beta_fast"},
        {"rope_parameters", "{\"rope_type\":\"linear\"}", WB_INVALID_ARGUMENT, "factor"},
        {"rope_scaling", "{\"rope_type\":\"yarn\",\"factor\":4}", WB_INVALID_ARGUMENT,
         "rope_parameters: expected the rope of rope_scaling, found another"},
        {"rope_parameters", "{\"full_attention\":{\"rope_theta\":5e6,\"rope_type\":\"default\"}}",
         WB_UNSUPPORTED,
         "rope_parameters: supported are rope_type, rope_theta and partial_rotary_factor, and the keys of "
         "linear "
         "and yarn with these types, found full_attention"},
        {"rope_parameters", "{\"rope_theta\":5e6,\"mrope_section\":[16,24,24]}", WB_UNSUPPORTED,
         "found mrope_section"},
        /* One of the three places that may hold it, or all the same: loaders differ in which they take. */
        {"rope_theta", "5e6", WB_INVALID_ARGUMENT,
         "rope_theta: expected one number, found 5000000 at the top and 10000 in rope_parameters"},
        {"rope_scaling", "{\"rope_type\":\"default\",\"rope_theta\":5e6}", WB_INVALID_ARGUMENT,
         "rope_theta: expected one number, found 5000000 in rope_scaling and 10000 in rope_parameters"},
        {"rope_local_base_freq", "10000", WB_UNSUPPORTED,
         "rope_local_base_freq: supported is none, found 10000"},
        {"swa_rope_theta", "10000", WB_UNSUPPORTED, "swa_rope_theta: supported is none, found"},
        {"no_rope_layers", "[1,0,1]", WB_UNSUPPORTED, "no_rope_layers: supported is none, found"},
        {"num_experts_per_token", "3", WB_INVALID_ARGUMENT,
         "num_experts_per_tok: expected num_experts_per_token 3, found"},
        {"rope_parameters", "{\"partial_rotary_factor\":0.5}", WB_UNSUPPORTED, "partial_rotary_factor"},
        {"use_sliding_window", "true", WB_UNSUPPORTED, "use_sliding_window: supported is false, found true"},
        {"layer_types", "[\"full_attention\",\"full_attention\",\"sliding_attention\"]", WB_UNSUPPORTED,
         "sliding_attention"},
        {"layer_types", "[\"full_attention\",\"full_attention\"]", WB_CORRUPT,
         "layer_types: expected a list with a member for each layer, found [\"full_"},
        {"hidden_act", "\"gelu\"", WB_UNSUPPORTED, "hidden_act: supported is \"silu\", found \"gelu\""},
        {"quantization_config", "{\"quant_method\":\"fp8\"}", WB_UNSUPPORTED, "quantization_config"},
        {"quantization_config", "{\"quant_method\":\"compressed-tensors\"}", WB_UNSUPPORTED,
         "quantization_config: supported is quant_method mxfp4, or fp8"},
        {"quantization_config", "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,0]}",
         WB_INVALID_ARGUMENT, "weight_block_size: expected 1"},
        {"mlp_only_layers", "[0,1,2]", WB_INVALID_ARGUMENT, "moe layers: expected at least one"},
        {"mlp_only_layers", "[3]", WB_INVALID_ARGUMENT, "mlp_only_layers: expected 0..2, found 3"},
        {"mlp_only_layers", "[\"0\"]", WB_CORRUPT, "mlp_only_layers"},
        {"mlp_only_layers", "1", WB_CORRUPT, "mlp_only_layers: expected a list"},
        {"decoder_sparse_step", "0", WB_INVALID_ARGUMENT, "decoder_sparse_step: expected 1"},
        {"decoder_sparse_step", "4", WB_INVALID_ARGUMENT, "moe layers: expected at least one"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_refused("qwen3_moe", bad[i].key, bad[i].value, bad[i].status, bad[i].part);
    expect_refused("olmoe", "clip_qkv", "0", WB_INVALID_ARGUMENT, "clip_qkv: expected a number above 0");
    expect_refused("olmoe", "clip_qkv", "\"1\"", WB_CORRUPT, "clip_qkv");
    expect_refused("olmoe", "intermediate_size", NULL, WB_CORRUPT, "intermediate_size");
    expect_refused("olmoe", "hidden_size", "30", WB_INVALID_ARGUMENT, "multiple of num_attention_heads 4");
}

/* A value too long for a message is cut, and nothing is behind it. */
static void test_a_long_value_is_cut(void **state) {
    (void)state;
    char value[202], expected[128];
    memset(value, 'a', sizeof value - 1);
    value[0] = value[sizeof value - 2] = '"', value[sizeof value - 1] = '\0';
    snprintf(expected, sizeof expected, ", found %.76s...", value);
    expect_refused("qwen3_moe", "hidden_act", value, WB_UNSUPPORTED, expected);
    const char *message = wb_error_message();
    assert_string_equal(message + strlen(message) - strlen(expected), expected);
    value[40] = '"', value[41] = '\0';
    snprintf(expected, sizeof expected, ", found %s", value);
    expect_refused("qwen3_moe", "hidden_act", value, WB_UNSUPPORTED, expected);
    message = wb_error_message();
    assert_string_equal(message + strlen(message) - strlen(expected), expected);
}

/* More than 64 choices a token are refused although there are experts enough. */
static void test_top_k_above_64_is_refused(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", "num_local_experts", "128");
    c.router.top_k = 64;
    assert_int_equal(wb_config_check(&c), WB_OK);
    c.router.top_k = 65;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("num_experts_per_tok: expected 1..64, found 65");
}

static void test_sizes_that_overflow_together_are_refused(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", NULL, NULL);
    c.hidden_size = 1 << 28;
    c.expert_width = 1 << 28;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("sizes: expected fewer than 2^60 elements");
}

static void test_config_check_of_a_struct(void **state) {
    (void)state;
    wb_config good = expect_ok("olmoe", NULL, NULL), c = good;
    assert_int_equal(wb_config_check(&good), WB_OK);
    c.family = (wb_family)9;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    c = good;
    c.qk_norm = WB_QK_NORM_PER_HEAD;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    c = good;
    c.router.type = WB_ROUTER_SIGMOID;
    assert_int_equal(wb_config_check(&c), WB_UNSUPPORTED);
    c = good;
    c.router.scale = 2;
    assert_int_equal(wb_config_check(&c), WB_UNSUPPORTED);
    c = good;
    c.router.n_group = 2;
    assert_int_equal(wb_config_check(&c), WB_UNSUPPORTED);
    c = good;
    c.moe_layer_mask[0] = 3; /* a dense layer in olmoe */
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    c = good;
    c.moe_layer_mask[1] = 1; /* layer 64 of 3 */
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    c = good;
    c.norm_eps = (float)strtod("nan", NULL);
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    c = good;
    c.head_dim = 16; /* 4 heads, hidden 32 */
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("head_dim: expected hidden_size 32 / num_attention_heads 4 for olmoe, found 16");
    c = expect_ok("qwen3_moe", NULL, NULL);
    c.clip_qkv = 1;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
}

static void test_files_that_are_no_config(void **state) {
    (void)state;
    wb_config c;
    temp_path sub = temp_in(dir.text, "sub"), path = temp_in(sub.text, "config.json");
    const temp_path missing = temp_in(dir.text, "no_such_folder");
    assert_int_equal(wb_config_load(missing.text, &c), WB_NOT_FOUND);
    assert_message_has("/no_such_folder/config.json");
    assert_int_equal(mkdir(sub.text, 0777), 0);
    assert_int_equal(mkdir(path.text, 0777), 0);
    assert_int_equal(wb_config_load(sub.text, &c), WB_IO);
    assert_int_equal(rmdir(path.text), 0);
    static const char *const bad[] = {
        "", "{", "[1]", "{\"a\":1,\"a\":2}", "{\"model_type\":\"qwen3_moe\"} x", "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        temp_write(path.text, bad[i], strlen(bad[i]));
        assert_int_equal(wb_config_load(sub.text, &c), WB_CORRUPT);
        assert_message_has("sub/config.json");
    }
}

/* ---- writing --------------------------------------------------------------------------------- */

static void expect_same(const wb_config *a, const wb_config *b) {
    assert_int_equal(a->family, b->family);
    assert_int_equal(a->hidden_size, b->hidden_size);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_heads, b->n_heads);
    assert_int_equal(a->n_kv_heads, b->n_kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->expert_width, b->expert_width);
    assert_int_equal(a->dense_width, b->dense_width);
    assert_int_equal(a->vocab_size, b->vocab_size);
    assert_int_equal(a->max_positions, b->max_positions);
    assert_true(a->norm_eps == b->norm_eps);
    assert_true(a->rope_theta == b->rope_theta);
    assert_memory_equal(&a->compressed, &b->compressed, sizeof a->compressed);
    assert_memory_equal(&a->hyper, &b->hyper, sizeof a->hyper);
    assert_memory_equal(a->hash_layer_mask, b->hash_layer_mask, sizeof a->hash_layer_mask);
    assert_int_equal(a->tie_word_embeddings, b->tie_word_embeddings);
    assert_int_equal(a->attention_bias, b->attention_bias);
    assert_int_equal(a->qk_norm, b->qk_norm);
    assert_true(a->clip_qkv == b->clip_qkv);
    assert_int_equal(a->router.type, b->router.type);
    assert_int_equal(a->router.n_experts, b->router.n_experts);
    assert_int_equal(a->router.top_k, b->router.top_k);
    assert_memory_equal(a->moe_layer_mask, b->moe_layer_mask, sizeof a->moe_layer_mask);
}

static void expect_generated_reads_back(const wb_config *c) {
    char *text = NULL;
    wb_config found;
    temp_path path = temp_in(dir.text, "config.json");
    assert_int_equal(wb_config_text(c, wb_family_rules_of(c->family), NULL, WB_BF16, &text), WB_OK);
    temp_write(path.text, text, strlen(text));
    assert_non_null(strstr(text, "\"torch_dtype\": \"bfloat16\""));
    free(text);
    if (wb_config_load(dir.text, &found) != WB_OK) fail_msg("%s", wb_error_message());
    expect_same(c, &found);
}

static void test_generated_config_reads_back(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", "mlp_only_layers", "[0,2]");
    expect_generated_reads_back(&c);
    c.norm_eps = 1.2345678e-5f;
    c.rope_theta = 1234567.891;
    c.tie_word_embeddings = c.attention_bias = true;
    expect_generated_reads_back(&c);
    c = expect_ok("olmoe", "clip_qkv", "0.1");
    expect_generated_reads_back(&c);
    c.clip_qkv = 0;
    c.router.type = WB_ROUTER_SOFTMAX_NORM;
    expect_generated_reads_back(&c);
}

/* transformers reads head_dim of these as the width of what is turned, and goes by the other widths where it
 * is not there. */
static void test_generated_config_of_latent_attention_has_no_head_dim(void **state) {
    (void)state;
    static const char *const latent[] = {"deepseek_v2", "deepseek_v3"};
    for (size_t i = 0; i < 2; i++) {
        const wb_config c = expect_ok(latent[i], NULL, NULL);
        char *text = NULL;
        assert_int_equal(wb_config_text(&c, wb_family_rules_of(c.family), NULL, WB_BF16, &text), WB_OK);
        assert_null(strstr(text, "\"head_dim\""));
        free(text);
        expect_generated_reads_back(&c);
    }
}

/* As transformers 5 writes it: a rope for each, kinds of layers by name, rates in an object. */
static void test_deepseek_v4_in_both_spellings(void **state) {
    (void)state;
    wb_config c = expect_ok("oracles/deepseek_v4_yarn", NULL, NULL);
    assert_true(c.rope_scaling.type == WB_ROPE_YARN && c.rope_scaling.factor == 4 && c.rotary_dim == 4);
    assert_true(c.compressed.sparse_layer_mask[0] == 2 && c.compressed.heavy_layer_mask[0] == 0);
    assert_true(c.hash_layer_mask[0] == 2 && c.compressed.heavy_rate == 6);
    expect_generated_reads_back(&c);
    c = released("deepseek_v4_flash");
    expect_generated_reads_back(&c);
    c.hash_layer_mask[0] = UINT64_C(1) << 43;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("compressed or hash layers: expected < 43, found layer 43");
    c.hash_layer_mask[0] = 0;
    c.compressed.heavy_layer_mask[0] |= c.compressed.sparse_layer_mask[0];
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("layer 2: expected one kind of entries, found both");
}

static void test_source_text_is_kept_but_for_the_dtype(void **state) {
    (void)state;
    wb_config c = expect_ok("qwen3_moe", NULL, NULL);
    temp_path path = temp_in(WB_TEST_DATA, "qwen3_moe/config.json");
    char *source = temp_read(path.text, NULL), *text = NULL;
    assert_int_equal(wb_config_text(&c, wb_family_rules_of(c.family), source, WB_F32, &text), WB_OK);
    assert_string_equal(text, source);
    free(text);
    assert_int_equal(wb_config_text(&c, wb_family_rules_of(c.family), source, WB_BF16, &text), WB_OK);
    json_t *before = json_loads(source, 0, NULL), *after = json_loads(text, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(after, "dtype")), "bfloat16");
    json_object_set_new(after, "dtype", json_string("float32"));
    assert_true(json_equal(before, after));
    json_decref(before);
    json_decref(after);
    free(text);
    free(source);
    assert_int_equal(
        wb_config_text(&c, wb_family_rules_of(c.family), "{\"torch_dtype\":\"float16\"}", WB_BF16, &text),
        WB_OK);
    assert_string_equal(text, "{\n  \"torch_dtype\": \"bfloat16\"\n}\n");
    free(text);
    assert_int_equal(wb_config_text(&c, wb_family_rules_of(c.family), "{}", WB_F32, &text), WB_OK);
    assert_string_equal(text, "{\n  \"torch_dtype\": \"float32\"\n}\n");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_qwen3_moe),
        cmocka_unit_test(test_golden_olmoe),
        cmocka_unit_test(test_released_spelling_and_defaults),
        cmocka_unit_test(test_rule_34_defaults_are_the_familys),
        cmocka_unit_test(test_dense_layers),
        cmocka_unit_test(test_scaled_rope),
        cmocka_unit_test(test_released_qwen2_moe),
        cmocka_unit_test(test_released_glm4_moe),
        cmocka_unit_test(test_released_deepseek),
        cmocka_unit_test(test_released_deepseek_v4),
        cmocka_unit_test(test_deepseek_v4_in_both_spellings),
        cmocka_unit_test(test_bad_sizes_of_compressed_attention),
        cmocka_unit_test(test_bad_sizes_of_latent_attention),
        cmocka_unit_test(test_what_only_deepseek_v4_has),
        cmocka_unit_test(test_released_mixtral),
        cmocka_unit_test(test_released_gpt_oss),
        cmocka_unit_test(test_routes_of_a_configuration),
        cmocka_unit_test(test_bad_values_are_refused),
        cmocka_unit_test(test_a_long_value_is_cut),
        cmocka_unit_test(test_top_k_above_64_is_refused),
        cmocka_unit_test(test_sizes_that_overflow_together_are_refused),
        cmocka_unit_test(test_config_check_of_a_struct),
        cmocka_unit_test(test_files_that_are_no_config),
        cmocka_unit_test(test_generated_config_reads_back),
        cmocka_unit_test(test_generated_config_of_latent_attention_has_no_head_dim),
        cmocka_unit_test(test_source_text_is_kept_but_for_the_dtype),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
