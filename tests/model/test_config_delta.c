/* test_config_delta.c - config.json of the families with a gated delta net: public models, the language part
 * of a model of text and images, and what is refused, by key. */
#include "support/temp_files.h"

#include "config.h"

static temp_path dir;
static const char next[] = "qwen3_next_80b_a3b", nested[] = "qwen3.5_35b_a3b";

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

/* The public model with `key` of the object at `where` (NULL: the top) replaced by `value` (JSON; NULL
 * removes it). */
static wb_status load_with(const char *model, const char *where, const char *key, const char *value,
                           wb_config *config) {
    const temp_path from = temp_in(temp_in(temp_in(WB_TEST_DATA, "configs").text, model).text, "config.json");
    json_t *root = json_load_file(from.text, 0, NULL);
    assert_non_null(root);
    json_t *object = where ? json_object_get(root, where) : root;
    if (key && value)
        json_object_set_new(object, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else if (key)
        json_object_del(object, key);
    assert_int_equal(json_dump_file(root, temp_in(dir.text, "config.json").text, 0), 0);
    json_decref(root);
    return wb_config_load(dir.text, config);
}

static wb_config expect_ok(const char *model, const char *where, const char *key, const char *value) {
    wb_config config;
    if (load_with(model, where, key, value, &config) != WB_OK)
        fail_msg("%s: %s: %s", model, key ? key : "as it is", wb_error_message());
    return config;
}

static void test_released_qwen3_next(void **state) {
    (void)state;
    const wb_config c = expect_ok(next, NULL, NULL, NULL);
    const wb_delta_sizes *d = &c.delta;
    assert_int_equal(c.family, WB_FAMILY_QWEN3_NEXT);
    assert_true(c.head_dim == 256 && c.rotary_dim == 64 && c.n_kv_heads == 2 && c.rope_theta == 1e7);
    assert_true(c.router.n_experts == 512 && c.router.top_k == 10 && c.shared_width == 512);
    assert_true(c.router.type == WB_ROUTER_SOFTMAX_NORM && wb_config_n_moe(&c) == 48);
    assert_true(d->n_key_heads == 16 && d->n_value_heads == 32 && d->key_dim == 128 && d->value_dim == 128);
    assert_true(d->conv_width == 4 && wb_delta_channels(d) == 8192);
    for (int32_t l = 0; l < 48; l++) assert_int_equal(wb_config_has_delta(&c, l), (l + 1) % 4 != 0);
    assert_false(wb_config_has_delta(&c, 48));
    assert_int_equal(wb_config_row_bytes(&c), 48 * 10 * 2);
}

/* What stands at the top and what in text_config, and that all of it is in a file of a model of text. */
static void test_released_qwen3_5_moe(void **state) {
    (void)state;
    const wb_config c = expect_ok(nested, NULL, NULL, NULL);
    assert_int_equal(c.family, WB_FAMILY_QWEN3_5_MOE);
    assert_true(c.n_layers == 40 && c.router.n_experts == 256 && c.router.top_k == 8 &&
                c.vocab_size == 248320);
    assert_true(c.router.type == WB_ROUTER_SOFTMAX_NORM && c.n_mtp_layers == 1 && c.rotary_dim == 64);
    assert_true(wb_config_has_delta(&c, 38) && !wb_config_has_delta(&c, 39));
    assert_true(expect_ok(nested, "text_config", "tie_word_embeddings", NULL).tie_word_embeddings == false);
    wb_config again, read;
    char *text = NULL;
    assert_int_equal(wb_config_read(dir.text, &read, &text), WB_OK);
    assert_null(strstr(text, "vision_config"));
    assert_non_null(strstr(text, "\"qwen3_5_moe_text\""));
    temp_write(temp_in(dir.text, "config.json").text, text, strlen(text));
    assert_int_equal(wb_config_load(dir.text, &again), WB_OK);
    assert_memory_equal(&again, &read, sizeof again);
    free(text);
}

/* A new file, which transformers reads as the family's model of text. */
static void test_a_new_file_says_the_same(void **state) {
    (void)state;
    static const char *const models[] = {next, nested};
    for (size_t i = 0; i < 2; i++) {
        const wb_config c = expect_ok(models[i], NULL, NULL, NULL);
        wb_config again;
        char *text = NULL;
        assert_int_equal(wb_config_text(&c, wb_family_rules_of(c.family), NULL, WB_BF16, &text), WB_OK);
        temp_write(temp_in(dir.text, "config.json").text, text, strlen(text));
        free(text);
        if (wb_config_load(dir.text, &again) != WB_OK) fail_msg("%s", wb_error_message());
        assert_memory_equal(&again, &c, sizeof again);
    }
}

static void test_which_layers(void **state) {
    (void)state;
    wb_config c = expect_ok(next, NULL, "full_attention_interval", "6");
    assert_true(wb_config_has_delta(&c, 3) && !wb_config_has_delta(&c, 5) && !wb_config_has_delta(&c, 47));
    c = expect_ok(next, NULL, "full_attention_interval", NULL);
    assert_true(wb_config_has_delta(&c, 2) && !wb_config_has_delta(&c, 3));
    c = expect_ok(next, NULL, "full_attention_interval", "1");
    assert_false(wb_config_has_delta(&c, 0));
}

/* As transformers saves a model that was made with a factor in rope_parameters: the top has the usual one. */
static void test_rotary_factor_of_rope_parameters(void **state) {
    (void)state;
    static const char half[] =
        "{\"rope_type\": \"default\", \"rope_theta\": 1e7, \"partial_rotary_factor\": 0.5}";
    assert_int_equal(expect_ok(next, NULL, "rope_parameters", half).rotary_dim, 128);
    assert_int_equal(expect_ok(next, NULL, "partial_rotary_factor", "0.5").rotary_dim, 128);
    assert_int_equal(expect_ok(nested, "text_config", "partial_rotary_factor", "0.25").rotary_dim, 64);
}

static void test_what_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *model, *where, *key, *value;
        wb_status status;
        const char *part;
    } bad[] = {
        {next, NULL, "linear_num_key_heads", "5", WB_INVALID_ARGUMENT,
         "linear_num_value_heads: expected a multiple of linear_num_key_heads 5, found 32"},
        {next, NULL, "linear_num_value_heads", "8", WB_INVALID_ARGUMENT,
         "linear_num_value_heads: expected 16"},
        {next, NULL, "linear_key_head_dim", "0", WB_INVALID_ARGUMENT, "linear_key_head_dim"},
        {next, NULL, "linear_value_head_dim", "2000", WB_INVALID_ARGUMENT, "linear_value_head_dim"},
        {next, NULL, "linear_conv_kernel_dim", "9", WB_INVALID_ARGUMENT, "linear_conv_kernel_dim"},
        {next, NULL, "full_attention_interval", "0", WB_INVALID_ARGUMENT, "full_attention_interval"},
        {next, NULL, "layer_types", "[\"linear_attention\"]", WB_CORRUPT, "layer_types"},
        {next, NULL, "attention_bias", "true", WB_UNSUPPORTED, "attention_bias: supported is false"},
        {next, NULL, "layer_scale", "true", WB_UNSUPPORTED, "layer_scale: supported is false"},
        {next, NULL, "use_sliding_window", "true", WB_UNSUPPORTED, "use_sliding_window"},
        {next, NULL, "shared_expert_intermediate_size", "0", WB_INVALID_ARGUMENT,
         "shared_expert_intermediate_size"},
        {next, NULL, "rope_parameters", "{\"rope_type\": \"default\", \"mrope_section\": [1]}",
         WB_UNSUPPORTED, "mrope_section"},
        {nested, "text_config", "attn_output_gate", "false", WB_UNSUPPORTED,
         "attn_output_gate: supported is true"},
        {nested, "text_config", "output_gate_type", "\"tanh\"", WB_UNSUPPORTED, "output_gate_type"},
        {nested, "text_config", "mtp_use_dedicated_embeddings", "true", WB_UNSUPPORTED,
         "mtp_use_dedicated_embeddings: supported is false"},
        {nested, "text_config", "partial_rotary_factor", "0.5", WB_INVALID_ARGUMENT,
         "partial_rotary_factor: expected one number, found 0.5 at the top and 0.25 in rope_parameters"},
        {next, NULL, "rope_parameters", "{\"partial_rotary_factor\": \"x\"}", WB_CORRUPT,
         "rope_parameters: partial_rotary_factor"},
        {nested, "text_config", "model_type", "\"qwen3_next\"", WB_UNSUPPORTED, "text_config: model_type"},
        {nested, "text_config", "model_type", "3", WB_CORRUPT, "text_config: model_type"},
        {nested, "text_config", "tie_word_embeddings", "true", WB_INVALID_ARGUMENT, "tie_word_embeddings"},
        {nested, NULL, "text_config", "[]", WB_CORRUPT, "text_config: expected an object"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        wb_config config = {.hidden_size = 777}; /* stays as it is */
        const wb_status found = load_with(bad[i].model, bad[i].where, bad[i].key, bad[i].value, &config);
        if (found != bad[i].status)
            fail_msg("%s: expected %d, found %d: %s", bad[i].key, (int)bad[i].status, (int)found,
                     found ? wb_error_message() : "ok");
        assert_int_equal(config.hidden_size, 777);
        assert_message_has(bad[i].part);
    }
    wb_config c = expect_ok(next, NULL, NULL, NULL);
    c.delta.layer_mask[15] = 1;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("linear attention: expected layers < 48, found layer 960");
    c.family = WB_FAMILY_QWEN3_MOE;
    c.rotary_dim = 0;
    assert_int_equal(wb_config_check(&c), WB_INVALID_ARGUMENT);
    assert_message_has("delta: expected none for qwen3_moe");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released_qwen3_next),
        cmocka_unit_test(test_released_qwen3_5_moe),
        cmocka_unit_test(test_a_new_file_says_the_same),
        cmocka_unit_test(test_which_layers),
        cmocka_unit_test(test_rotary_factor_of_rope_parameters),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
