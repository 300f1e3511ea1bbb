/* test_checkpoint_forms.c - checkpoints as they are released: quantized, all experts of a layer in one
 * tensor, names of another version, layers behind the last one. What they are widened to is in the
 * oracles' logits; here are the numbers themselves, what a save makes of them, and what is refused. */
#include "checkpoint_fixture.h"
#include "elements.h"

#include <math.h>

static temp_path oracle(const char *name) {
    return temp_in(temp_in(WB_TEST_DATA, "oracles").text, name);
}

/* ---- numbers ------------------------------------------------------------------------------------- */

static void test_fp8_numbers(void **state) {
    (void)state;
    for (int code = 0; code < 256; code++) {
        const int exponent = code >> 3 & 15, fraction = code & 7;
        const float size =
            exponent == 0 ? ldexpf((float)fraction, -9) : ldexpf((float)(8 + fraction), exponent - 10);
        const float found = wb_f32_from_f8_e4m3((uint8_t)code), expected = code & 0x80 ? -size : size;
        if ((code & 0x7f) == 0x7f)
            assert_true(isnan(found));
        else
            assert_true(found == expected && signbit(found) == signbit(expected));
    }
    assert_true(wb_f32_from_f8_e4m3(0x7e) == 448);
}

/* ---- a save of what was read ------------------------------------------------------------------------ */

static void expect_same_weights(const char *a, const char *b) {
    wb_device *devices[2];
    wb_comm *comms[2];
    wb_model *models[2] = {open_one(a, WB_F32, &devices[0], &comms[0]),
                           open_one(b, WB_F32, &devices[1], &comms[1])};
    assert_int_equal(wb_model_n_tensors(models[0]), wb_model_n_tensors(models[1]));
    for (int32_t i = 0; i < wb_model_n_tensors(models[0]); i++) {
        const wb_tensor x = wb_model_tensor(models[0], i), y = wb_model_tensor(models[1], i);
        assert_string_equal(x.name, y.name);
        if (memcmp(x.data, y.data, (size_t)x.n * sizeof(float)) != 0) fail_msg("%s: %s differs", b, x.name);
    }
    for (int i = 0; i < 2; i++) close_one(models[i], devices[i], comms[i]);
}

/* From one rank and from several, and what they saved once more: the same weights, whichever form they
 * had. */
static void check_saves(const char *name) {
    char one[64], three[64];
    snprintf(one, sizeof one, "%s_1", name);
    snprintf(three, sizeof three, "%s_3", name);
    const temp_path from = oracle(name), first = temp_in(dir.text, one), second = temp_in(dir.text, three);
    open_expect_save(from.text, WB_F32, 1, NULL, first.text);
    expect_same_weights(from.text, first.text);
    open_expect_save(first.text, WB_F32, 3, NULL, second.text);
    expect_same_weights(from.text, second.text);
}

static void test_saves_have_the_weights_that_were_read(void **state) {
    (void)state;
    static const char *const names[] = {"deepseek_v4_released", "glm4_moe_fp8",   "glm4_moe_groups",
                                        "glm4_moe_mtp",         "gpt_oss_plain",  "gpt_oss_mxfp4",
                                        "mixtral_fused",        "qwen2_moe_plain"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) check_saves(names[i]);
}

/* The files hold what transformers looks for: no registry name of an expert, all experts in one, from any
 * number of ranks, although no rank has them all. */
static void test_gpt_oss_is_saved_as_it_is_released(void **state) {
    (void)state;
    const temp_path from = oracle("gpt_oss_plain"), to = temp_in(dir.text, "gpt_oss_files");
    wb_safetensors *before, *after;
    open_expect_save(from.text, WB_F32, 4, NULL, to.text);
    assert_int_equal(wb_safetensors_open(from.text, NULL, &before), WB_OK);
    assert_int_equal(wb_safetensors_open(to.text, NULL, &after), WB_OK);
    assert_int_equal(wb_safetensors_count(before), wb_safetensors_count(after));
    for (size_t i = 0; i < wb_safetensors_count(before); i++) {
        wb_tensor_view x, y;
        assert_int_equal(wb_safetensors_get(before, i, &x), WB_OK);
        assert_int_equal(wb_safetensors_find(after, x.name, &y), WB_OK);
        assert_true(x.bytes == y.bytes && memcmp(x.data, y.data, x.bytes) == 0);
    }
    wb_safetensors_close(before);
    wb_safetensors_close(after);
}

/* ---- what is said ---------------------------------------------------------------------------------- */

static void expect_note(const char *path, const char *part) {
    wb_device *device;
    wb_comm *comm;
    wb_model *model = open_one(path, WB_BF16, &device, &comm);
    const char *note = wb_model_note(model);
    if (part && (!note || !strstr(note, part))) fail_msg("%s: note: %s", path, note ? note : "none");
    if (!part && note) fail_msg("%s: note: %s", path, note);
    close_one(model, device, comm);
}

static void expect_in_config(const char *path, const char *key, const char *expected) {
    json_t *root = json_load_file(temp_in(path, "config.json").text, 0, NULL);
    json_t *value = json_object_get(root, key);
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    const bool same = expected ? text && strcmp(text, expected) == 0 : !text;
    if (!same) fail_msg("%s: %s: found %s", path, key, text ? text : "none");
    free(text);
    json_decref(root);
}

static void test_what_a_save_does_not_have_is_said(void **state) {
    (void)state;
    const temp_path fp8 = oracle("glm4_moe_fp8"), mx = oracle("gpt_oss_mxfp4");
    const temp_path fp8_saved = temp_in(dir.text, "fp8_saved");
    expect_note(fp8.text, "quantized weights were widened, and are saved as bf16");
    expect_note(mx.text, "mlp.experts.gate_up_proj_blocks: quantized weights were widened");
    open_expect_save(fp8.text, WB_F32, 1, NULL, fp8_saved.text);
    expect_note(fp8_saved.text, NULL);
    expect_in_config(fp8_saved.text, "quantization_config", NULL);
}

/* ---- what is refused --------------------------------------------------------------------------------- */

static const char scale_name[] = "model.layers.0.self_attn.q_proj.weight_scale_inv";

static void test_bad_scales(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle("glm4_moe_fp8").text, "no_scale");
    edit_remove(e, scale_name);
    expect_open_fails(edit_end(e, NULL).text, WB_NOT_FOUND,
                      "missing tensor model.layers.0.self_attn.q_proj.weight_sca");

    e = edit_begin_from(oracle("glm4_moe_fp8").text, "few_scales");
    wb_tensor_view *scale = edit_find(e, scale_name);
    scale->shape[0]--;
    scale->bytes = (size_t)(scale->shape[0] * scale->shape[1]) * sizeof(float);
    expect_open_fails(edit_end(e, NULL).text, WB_MISMATCH, "weight_scale_inv: expected shape [");

    e = edit_begin_from(oracle("glm4_moe_fp8").text, "no_block");
    json_t *root = json_load_file(temp_in(e->out.text, "config.json").text, 0, NULL);
    json_object_del(root, "quantization_config");
    assert_int_equal(json_dump_file(root, temp_in(e->out.text, "config.json").text, 0), 0);
    json_decref(root);
    expect_open_fails(edit_end(e, NULL).text, WB_UNSUPPORTED,
                      "without quantization_config.weight_block_size");
}

static void test_bad_blocks(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle("gpt_oss_mxfp4").text, "no_scales");
    edit_remove(e, "model.layers.1.mlp.experts.down_proj_scales");
    expect_open_fails(edit_end(e, NULL).text, WB_NOT_FOUND,
                      "missing tensor model.layers.1.mlp.experts.down_proj_scales");

    e = edit_begin_from(oracle("gpt_oss_mxfp4").text, "few_blocks");
    wb_tensor_view *blocks = edit_find(e, "model.layers.1.mlp.experts.down_proj_blocks");
    blocks->shape[3] = 8;
    blocks->bytes /= 2;
    expect_open_fails(edit_end(e, NULL).text, WB_MISMATCH,
                      "down_proj_blocks: expected shape [4, 32, 1, 16], found");

    e = edit_begin_from(oracle("gpt_oss_mxfp4").text, "bad_dtype");
    edit_find(e, "model.layers.1.mlp.experts.down_proj_scales")->dtype = WB_F8_E4M3;
    expect_open_fails(edit_end(e, NULL).text, WB_UNSUPPORTED,
                      "down_proj_scales [4, 32, 1]: expected dtype u8");
}

/* A layer behind the ones for multi-token prediction is as surplus as ever. */
static void test_a_layer_too_far_is_surplus(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle("glm4_moe_mtp").text, "too_far");
    wb_tensor_view extra = *edit_find(e, "model.layers.2.enorm.weight");
    extra.name = "model.layers.3.enorm.weight";
    e->views[e->n++] = extra;
    expect_open_fails(edit_end(e, NULL).text, WB_MISMATCH, "surplus tensor model.layers.3.enorm.weight");
}

/* Plain tensors of an oracle as bf16, beside those that are quantized. */
static temp_path with_plain_in_bf16(const char *name, uint16_t *storage) {
    edit *e = edit_begin_from(oracle(name).text, name);
    for (size_t i = 0; i < e->n; i++) {
        wb_tensor_view *view = &e->views[i];
        if (view->dtype != WB_F32 || strstr(view->name, "_scale_inv")) continue;
        wb_convert((int64_t)(view->bytes / 4), view->data, WB_F32, storage, WB_BF16);
        view->dtype = WB_BF16, view->data = storage, view->bytes /= 2;
        storage += view->bytes / 2;
    }
    return edit_end(e, NULL);
}

/* A model that is trained in f32 goes on in bf16 as a whole where its files were of bf16 and FP8 or MXFP4. */
static void test_quantized_beside_bf16_is_saved_as_bf16(void **state) {
    (void)state;
    static uint16_t storage[1 << 17];
    static const char *const names[] = {"glm4_moe_fp8", "gpt_oss_mxfp4"};
    for (size_t k = 0; k < 2; k++) {
        const temp_path from = with_plain_in_bf16(names[k], storage), saved = temp_in(from.text, "saved");
        wb_device *device;
        wb_comm *comm;
        wb_safetensors *files = NULL;
        wb_model *model = open_one(from.text, WB_F32, &device, &comm);
        for (int32_t i = 0; i < wb_model_n_tensors(model); i++)
            assert_int_equal(wb_model_tensor(model, i).file_dtype, WB_BF16);
        assert_int_equal(wb_model_save_as_opened(model, saved.text), WB_OK);
        assert_int_equal(wb_safetensors_open(saved.text, NULL, &files), WB_OK);
        for (size_t i = 0; i < wb_safetensors_count(files); i++) {
            wb_tensor_view view;
            assert_int_equal(wb_safetensors_get(files, i, &view), WB_OK);
            if (view.dtype != WB_BF16) fail_msg("%s: %s", view.name, wb_dtype_name(view.dtype));
        }
        expect_in_config(saved.text, "dtype", "\"bfloat16\"");
        wb_safetensors_close(files);
        close_one(model, device, comm);
    }
}

/* The language model of a model of text and images, experts of a layer in one tensor: what images pass
 * through is named, and what is saved is the same weights as a model of text has them. */
static void test_the_language_model_of_text_and_images(void **state) {
    (void)state;
    const temp_path nested = oracle("qwen3_5_moe_nested_fused"), saved = temp_in(dir.text, "text");
    wb_device *device;
    wb_comm *comm;
    wb_model *model = open_one(nested.text, WB_F32, &device, &comm);
    const char *note = wb_model_note(model);
    assert_non_null(note);
    if (!strstr(note, "1 tensors model.visual.* were passed over, and are not saved"))
        fail_msg("found %s", note);
    assert_int_equal(wb_model_save(model, saved.text), WB_OK);
    close_one(model, device, comm);
    expect_in_config(saved.text, "model_type", "\"qwen3_5_moe_text\"");
    expect_in_config(saved.text, "architectures", "[\"Qwen3_5MoeForCausalLM\"]");
    expect_in_config(saved.text, "text_config", NULL);
    /* That the model of text was made of, of the same seed. */
    open_expect_save(saved.text, WB_F32, 2, oracle("qwen3_5_moe_plain").text, NULL);
}

/* Only families that have a vision tower pass it over. */
static void test_images_elsewhere_are_surplus(void **state) {
    (void)state;
    edit *e = edit_begin_from(oracle("qwen3_next_plain").text, "tower");
    wb_tensor_view extra = *edit_find(e, "model.norm.weight");
    extra.name = "model.visual.norm.weight";
    e->views[e->n++] = extra;
    expect_open_fails(edit_end(e, NULL).text, WB_MISMATCH, "surplus tensor model.visual.norm.weight");
    e = edit_begin_from(oracle("qwen3_next_plain").text, "flat_taps");
    wb_tensor_view *taps = edit_find(e, "model.layers.0.linear_attn.conv1d.weight");
    taps->n_dims = 2, taps->shape[1] = taps->shape[2];
    expect_open_fails(edit_end(e, NULL).text, WB_MISMATCH,
                      "linear_attn.conv1d.weight: expected shape [22, 1, 4], found [22, 4]");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8_numbers),
        cmocka_unit_test(test_saves_have_the_weights_that_were_read),
        cmocka_unit_test(test_gpt_oss_is_saved_as_it_is_released),
        cmocka_unit_test(test_what_a_save_does_not_have_is_said),
        cmocka_unit_test(test_bad_scales),
        cmocka_unit_test(test_bad_blocks),
        cmocka_unit_test(test_a_layer_too_far_is_surplus),
        cmocka_unit_test(test_quantized_beside_bf16_is_saved_as_bf16),
        cmocka_unit_test(test_the_language_model_of_text_and_images),
        cmocka_unit_test(test_images_elsewhere_are_surplus),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
