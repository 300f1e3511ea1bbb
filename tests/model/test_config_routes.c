/* test_config_routes.c - whose routes those of a config.json are: of eleven families as they are published
 * (sizes as published, other keys left out), the engine's own among them, and what is refused. */
#include "support/temp_files.h"
#include "wb_model.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>

static temp_path dir;

static int make_dir(void **state) {
    (void)state;
    dir = temp_dir();
    return 0;
}

static int remove_dir(void **state) {
    (void)state;
    temp_remove(dir);
    return 0;
}

typedef struct found {
    wb_route_model model;
    uint32_t layers[WB_ROUTE_LISTS_MAX], vocab;
} found;

static wb_status read_text(const char *text, found *f) {
    temp_write(temp_in(dir.text, "config.json").text, text, strlen(text));
    memset(f, 0x5a, sizeof *f);
    return wb_routes_of_folder(dir.text, f->layers, &f->model, &f->vocab);
}

static const struct {
    const char *text, *name, *router;
    uint32_t hidden_layers, moe, first, last, E, K, V;
} published[] = {
    {"{\"model_type\": \"deepseek_v4\", \"num_hidden_layers\": 43, \"hidden_size\": 4096, "
     "\"n_routed_experts\": 256, "
     "\"num_experts_per_tok\": 6, \"num_hash_layers\": 3, \"vocab_size\": 129280}",
     "deepseek_v4", "sqrtsoftplus", 43, 43, 0, 42, 256, 6, 129280},
    {"{\"model_type\": \"qwen3_next\", \"num_hidden_layers\": 48, \"hidden_size\": 2048, \"num_experts\": "
     "512, "
     "\"num_experts_per_tok\": 10, \"norm_topk_prob\": true, \"decoder_sparse_step\": 2, "
     "\"mlp_only_layers\": [47], "
     "\"vocab_size\": 151936}",
     "qwen3_next", "softmax_norm", 48, 23, 1, 45, 512, 10, 151936},
    {"{\"model_type\": \"qwen3_5_moe\", \"vocab_size\": 7, \"text_config\": {\"model_type\": "
     "\"qwen3_5_moe_text\", "
     "\"num_hidden_layers\": 40, \"hidden_size\": 2048, \"num_experts\": 256, \"num_experts_per_tok\": 8, "
     "\"vocab_size\": 248320}}",
     "qwen3_5_moe", "softmax_norm", 40, 40, 0, 39, 256, 8, 248320},
};
enum { N_PUBLISHED = sizeof published / sizeof published[0] };

static void test_files_without_what_an_engine_needs(void **state) {
    static char fingerprints[N_PUBLISHED][33];
    (void)state;
    for (size_t i = 0; i < N_PUBLISHED; i++) {
        found f;
        if (read_text(published[i].text, &f) != WB_OK) fail_msg("%zu: %s", i, wb_error_message());
        assert_string_equal(published[i].name, f.model.name);
        assert_string_equal(published[i].router, f.model.router);
        assert_ptr_equal(f.layers, f.model.moe_layers);
        assert_int_equal(published[i].hidden_layers, f.model.num_hidden_layers);
        assert_int_equal(published[i].moe, f.model.n_moe_layers);
        assert_int_equal(published[i].first, f.layers[0]);
        assert_int_equal(published[i].last, f.layers[f.model.n_moe_layers - 1]);
        assert_int_equal(published[i].E, f.model.num_experts);
        assert_int_equal(published[i].K, f.model.top_k);
        assert_int_equal(published[i].V, f.vocab);
        snprintf(fingerprints[i], sizeof fingerprints[i], "%s", f.model.fingerprint);
        for (size_t k = 0; k < i; k++) assert_string_not_equal(fingerprints[k], fingerprints[i]);
    }
}

/* The fallback reads hash-routed layers and indexers as the engine does, in every spelling. */
static void test_hash_layers_and_indexers_without_what_an_engine_needs(void **state) {
#define V4                                                                                                \
    "{\"model_type\": \"deepseek_v4\", \"num_hidden_layers\": 6, \"hidden_size\": 8, \"vocab_size\": 9, " \
    "\"n_routed_experts\": 8, \"num_experts_per_tok\": 2"
    static const struct {
        const char *rest;
        uint32_t n_hash, hash[3], n_indexers, indexers[3], k, rate;
    } files[] = {
        {"}", 3, {0, 1, 2}, 2, {3, 5}, 512, 4},
        {", \"num_hash_layers\": 0, \"index_topk\": 7, \"compress_ratios\": [4, 0, 0, 128, 4, 0, 0]}",
         0,
         {0},
         2,
         {0, 4},
         7,
         4},
        {", \"index_topk\": 7, \"compress_rates\": {\"compressed_sparse_attention\": 3}}",
         3,
         {0, 1, 2},
         2,
         {3, 5},
         7,
         3},
        {", \"mlp_layer_types\": [\"moe\", \"hash_moe\", \"moe\", \"moe\", \"moe\", \"hash_moe\"], "
         "\"compress_ratios\": [0, 0, 0, 128, 128, 0]}",
         2,
         {1, 5},
         0,
         {0},
         0,
         0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        found f;
        char text[512];
        snprintf(text, sizeof text, V4 "%s", files[i].rest);
        if (read_text(text, &f) != WB_OK) fail_msg("%zu: %s", i, wb_error_message());
        assert_int_equal(files[i].n_hash, f.model.n_hash_layers);
        for (uint32_t l = 0; l < files[i].n_hash; l++)
            assert_int_equal(files[i].hash[l], f.model.hash_layers[l]);
        assert_int_equal(files[i].n_indexers, f.model.n_indexer_layers);
        assert_int_equal(files[i].k, f.model.indexer_k);
        assert_int_equal(files[i].rate, f.model.indexer_rate);
        for (uint32_t l = 0; l < files[i].n_indexers; l++)
            assert_true(f.model.indexer_layers[l] == files[i].indexers[l] &&
                        f.model.indexer_source[l] == files[i].indexers[l]);
    }
}

/* The released files say the same without a key that only the engine needs. */
static void test_released_files_without_a_key(void **state) {
    static const struct {
        const char *folder;
        uint32_t n_hash, n_indexers;
    } files[] = {{"configs/qwen2_57b_a14b", 0, 0},    {"configs/glm_4.5", 0, 0},
                 {"configs/deepseek_v2", 0, 0},       {"configs/deepseek_v3", 0, 0},
                 {"configs/kimi_k2", 0, 0},           {"configs/qwen3_next_80b_a3b", 0, 0},
                 {"configs/deepseek_v4_flash", 3, 21}};
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        found whole, lacking;
        const temp_path path = temp_in(temp_in(WB_TEST_DATA, files[i].folder).text, "config.json");
        json_t *root = json_load_file(path.text, 0, NULL);
        assert_non_null(root);
        for (int j = 0; j < 2; j++) {
            char *text = json_dumps(root, 0);
            if (read_text(text, j == 0 ? &whole : &lacking) != WB_OK)
                fail_msg("%s: %s", files[i].folder, wb_error_message());
            free(text);
            assert_int_equal(j, json_object_del(root, "moe_intermediate_size") != 0);
        }
        json_decref(root);
        assert_int_equal(files[i].n_indexers, lacking.model.n_indexer_layers);
        assert_int_equal(files[i].n_hash, lacking.model.n_hash_layers);
        assert_string_not_equal(whole.model.fingerprint, lacking.model.fingerprint);
        memcpy(lacking.model.fingerprint, whole.model.fingerprint, sizeof whole.model.fingerprint);
        if (wb_route_model_match(&whole.model, &lacking.model) != WB_OK)
            fail_msg("%s: %s", files[i].folder, wb_error_message());
    }
}

static void test_the_engines_families_are_as_the_engine_has_them(void **state) {
    static const char *const folders[] = {"configs/qwen2_57b_a14b",
                                          "configs/glm_4.5",
                                          "configs/deepseek_v2",
                                          "configs/deepseek_v3",
                                          "configs/kimi_k2",
                                          "configs/qwen3_next_80b_a3b",
                                          "configs/qwen3.5_35b_a3b",
                                          "configs/deepseek_v4_flash",
                                          "qwen3_moe",
                                          "olmoe",
                                          "oracles/qwen3_moe_dense_list",
                                          "oracles/qwen3_moe_sparse_step",
                                          "oracles/olmoe_264_experts_fused"};
    (void)state;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        const temp_path folder = temp_in(WB_TEST_DATA, folders[i]);
        wb_config config;
        wb_route_model expected, model;
        uint32_t layers[2][WB_ROUTE_LISTS_MAX], vocab = 0;
        assert_int_equal(WB_OK, wb_config_load(folder.text, &config));
        assert_int_equal(WB_OK, wb_config_routes(&config, layers[0], &expected));
        assert_int_equal(WB_OK, wb_routes_of_folder(folder.text, layers[1], &model, &vocab));
        assert_int_equal(WB_OK, wb_route_model_match(&expected, &model));
        assert_int_equal(config.vocab_size, vocab);
    }
}

#define QWEN3                                                                                              \
    "\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 4, \"hidden_size\": 64, "                       \
    "\"num_attention_heads\": 4, "                                                                         \
    "\"num_experts\": 8, \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 32, \"vocab_size\": 128, " \
    "\"norm_topk_prob\": true"

/* How weights are stored is no matter of routes, and another function of attention is none either. */
static void test_quantized_and_scaled(void **state) {
    found plain, quantized, scaled;
    (void)state;
    assert_int_equal(WB_OK, read_text("{" QWEN3 "}", &plain));
    assert_int_equal(
        WB_OK, read_text("{" QWEN3 ", \"quantization_config\": {\"quant_method\": \"fp8\"}}", &quantized));
    assert_string_equal(plain.model.fingerprint, quantized.model.fingerprint);
    assert_int_equal(
        WB_OK,
        read_text("{" QWEN3 ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}}", &scaled));
    assert_string_not_equal(plain.model.fingerprint, scaled.model.fingerprint);
    assert_string_equal(plain.model.router, scaled.model.router);
    assert_int_equal(4, scaled.model.n_moe_layers);
}

static void test_what_cannot_be(void **state) {
#define V3                                                                                                 \
    "\"model_type\": \"deepseek_v3\", \"hidden_size\": 8, \"vocab_size\": 9, \"num_attention_heads\": 2, " \
    "\"moe_intermediate_size\": 4, \"intermediate_size\": 4, \"q_lora_rank\": null"
    static const struct {
        const char *text;
        wb_status status;
        const char *part;
    } bad[] = {
        {"{\"model_type\": \"llama\"}", WB_UNSUPPORTED, "qwen3_5_moe and deepseek_v4, found \"llama\""},
        {"{}", WB_CORRUPT, "model_type: expected a string, found none"},
        {"{\"model_type\": 3}", WB_CORRUPT, "model_type: expected a string"},
        {"[", WB_CORRUPT, "config.json"},
        {"{" V3 "}", WB_CORRUPT, "num_hidden_layers: expected an integer, found none"},
        {"{" V3 ", \"num_hidden_layers\": 1025}", WB_INVALID_ARGUMENT, "num_hidden_layers"},
        {"{" V3 ", \"num_hidden_layers\": 9}", WB_CORRUPT, "num_experts: expected an integer, found none"},
        {"{" V3 ", \"num_hidden_layers\": 9, \"n_routed_experts\": 65537, \"num_experts_per_tok\": 1}",
         WB_INVALID_ARGUMENT, "num_experts"},
        {"{" V3 ", \"num_hidden_layers\": 9, \"n_routed_experts\": 4, \"num_experts_per_tok\": 5}",
         WB_INVALID_ARGUMENT, "num_experts_per_tok"},
        {"{" V3 ", \"num_hidden_layers\": 9, \"n_routed_experts\": 4, \"num_experts_per_tok\": 2, "
         "\"first_k_dense_replace\": 9}",
         WB_INVALID_ARGUMENT, "moe layers: expected at least one, found none"},
        {"{" V3 ", \"num_hidden_layers\": 9, \"n_routed_experts\": 4, \"num_experts_per_tok\": 2, "
         "\"moe_layer_freq\": 0}",
         WB_INVALID_ARGUMENT, "moe_layer_freq"},
        {"{" V3 ", \"num_hidden_layers\": 2, \"n_routed_experts\": 4, \"num_experts_per_tok\": 2, "
         "\"mlp_layer_types\": [\"dense\"]}",
         WB_CORRUPT, "mlp_layer_types"},
        {"{\"model_type\": \"qwen2_moe\", \"hidden_size\": 8, \"vocab_size\": 9, \"num_hidden_layers\": 2, "
         "\"num_experts\": 4, \"num_experts_per_tok\": 2, \"mlp_only_layers\": [2]}",
         WB_INVALID_ARGUMENT, "mlp_only_layers"},
        {"{" QWEN3 ", \"head_dim\": 0}", WB_INVALID_ARGUMENT, "head_dim"},
        {V4 ", \"index_topk\": 0}", WB_INVALID_ARGUMENT, "index_topk: expected 1..65536, found 0"},
        {V4 ", \"compress_ratios\": [4, 0]}", WB_CORRUPT, "compress_ratios"},
        {V4 ", \"compress_ratios\": [4, 0, 8, 0, 0, 0]}", WB_UNSUPPORTED, "compress_ratios"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        found f, before;
        memset(&before, 0x5a, sizeof before);
        const wb_status status = read_text(bad[i].text, &f);
        if (status != bad[i].status || !strstr(wb_error_message(), bad[i].part))
            fail_msg("%s: %s: %s", bad[i].text, wb_status_string(status), wb_error_message());
        assert_memory_equal(&before, &f, sizeof f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_without_what_an_engine_needs),
        cmocka_unit_test(test_hash_layers_and_indexers_without_what_an_engine_needs),
        cmocka_unit_test(test_released_files_without_a_key),
        cmocka_unit_test(test_the_engines_families_are_as_the_engine_has_them),
        cmocka_unit_test(test_quantized_and_scaled),
        cmocka_unit_test(test_what_cannot_be)};
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
