/* test_checkpoint_released.c - DeepSeek-V4 as it is released: FP8 with exponents for scales, two numbers of 4
 * bits a byte. Every number against a file that make_released.py took apart by itself; what a save makes of
 * such a model; what is refused. That its forward is transformers' is hf_oracle_deepseek_v4_released. */
#include "checkpoint_fixture.h"
#include "elements.h"
#include "tensor_source.h"

#include <math.h>

static temp_path oracle(void) {
    return temp_in(temp_in(WB_TEST_DATA, "oracles").text, "deepseek_v4_released");
}

/* ---- numbers ------------------------------------------------------------------------------------- */

static void test_every_exponent(void **state) {
    (void)state;
    for (int code = 0; code < 255; code++)
        assert_true((double)wb_f32_from_f8_e8m0((uint8_t)code) == ldexp(1, code - 127));
    assert_true(isnan(wb_f32_from_f8_e8m0(255)));
}

/* The bits of both, but for NaN, of which there are many. */
static void expect_values(const char *name, int64_t n, const float *expected, const float *found) {
    for (int64_t i = 0; i < n; i++) {
        const bool same = isnan(expected[i]) ? isnan(found[i]) : memcmp(&expected[i], &found[i], 4) == 0;
        if (!same)
            fail_msg("%s: element %d: expected %a, found %a", name, (int)i, (double)expected[i],
                     (double)found[i]);
    }
}

/* All tensors of a model in f32; returns how many. */
static int compare_with(const wb_model *model, const wb_safetensors *expected) {
    int n = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++, n++) {
        const wb_tensor t = wb_model_tensor(model, i);
        const size_t at = wb_tensor_lookup(model, expected, &t);
        wb_tensor_view view;
        if (at == SIZE_MAX) fail_msg("no %s", t.name);
        assert_int_equal(wb_safetensors_get(expected, at, &view), WB_OK);
        assert_int_equal(view.bytes, (size_t)t.n * sizeof(float));
        float *values = malloc(view.bytes);
        memcpy(values, view.data, view.bytes); /* of any alignment */
        expect_values(t.name, t.n, values, t.data);
        free(values);
    }
    return n;
}

static void test_every_number_of_a_release(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_safetensors *expected;
    wb_model *model = open_one(golden("deepseek_v4_bytes").text, WB_F32, &device, &comm);
    assert_int_equal(wb_safetensors_open(golden("deepseek_v4_bytes").text, "expected", &expected), WB_OK);
    assert_int_equal(compare_with(model, expected), (int)wb_safetensors_count(expected));
    wb_safetensors_close(expected);
    close_one(model, device, comm);
}

/* Files whose writer had no dtype of exponents or of signed bytes have u8 in their place. */
static void test_bytes_without_a_dtype(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_safetensors *expected;
    edit *e = edit_begin("deepseek_v4_bytes", "as_u8");
    for (size_t i = 0; i < e->n; i++)
        if (e->views[i].dtype == WB_F8_E8M0 || e->views[i].dtype == WB_I8) e->views[i].dtype = WB_U8;
    wb_model *model = open_one(edit_end(e, NULL).text, WB_F32, &device, &comm);
    assert_int_equal(wb_safetensors_open(golden("deepseek_v4_bytes").text, "expected", &expected), WB_OK);
    compare_with(model, expected);
    wb_safetensors_close(expected);
    close_one(model, device, comm);
}

/* ---- a save -------------------------------------------------------------------------------------- */

static void expect_absent(const char *path, const char *key) {
    json_t *root = json_load_file(temp_in(path, "config.json").text, 0, NULL);
    if (json_object_get(root, key)) fail_msg("%s: %s", path, key);
    json_decref(root);
}

/* bf16 but for what the files had in f32, under transformers' names, and the numbers that were read, which
 * all have few bits. No key says that anything is quantized. */
static void test_a_save_as_it_was_opened(void **state) {
    (void)state;
    const temp_path saved = temp_in(dir.text, "as_opened");
    wb_device *device;
    wb_comm *comm;
    wb_safetensors *files;
    wb_model *model = open_one(oracle().text, WB_F32, &device, &comm);
    const char *note = wb_model_note(model);
    if (!note || !strstr(note, "quantized weights were widened, and are saved as f32"))
        fail_msg("note: %s", note ? note : "none");
    assert_int_equal(wb_model_save_as_opened(model, saved.text), WB_OK);
    assert_int_equal(wb_safetensors_open(saved.text, NULL, &files), WB_OK);
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor t = wb_model_tensor(model, i);
        const bool is_wide = strstr(t.name, "hc_") || strstr(t.name, ".ape") || strstr(t.name, "attn_sink") ||
                             strstr(t.name, "gate.bias");
        wb_tensor_view view;
        assert_int_equal(wb_safetensors_find(files, t.name, &view), WB_OK);
        if (view.dtype != (is_wide ? WB_F32 : WB_BF16)) fail_msg("%s: %s", t.name, wb_dtype_name(view.dtype));
        float *values = malloc((size_t)t.n * sizeof *values);
        wb_convert(t.n, view.data, view.dtype, values, WB_F32);
        expect_values(t.name, t.n, t.data, values);
        free(values);
    }
    expect_absent(saved.text, "quantization_config");
    expect_absent(saved.text, "expert_dtype");
    wb_safetensors_close(files);
    close_one(model, device, comm);
}

/* ---- what is refused ----------------------------------------------------------------------------- */

#define EXPERT "layers.1.ffn.experts.2.w1."
#define MATRIX "layers.1.attn.wq_a."

static void expect_missing(const char *scale, const char *message) {
    edit *e = edit_begin_from(oracle().text, message);
    edit_remove(e, scale);
    expect_open_fails(edit_end(e, NULL).text, WB_NOT_FOUND, message);
}

/* With another shape or dtype of `name`, whose bytes are zeros. */
static void expect_refused(const char *name, wb_dtype dtype, int64_t rows, int64_t columns, wb_status status,
                           const char *message) {
    static unsigned char zeros[1 << 13];
    edit *e = edit_begin_from(oracle().text, message);
    wb_tensor_view *view = edit_find(e, name);
    view->dtype = dtype, view->n_dims = 2, view->shape[0] = rows, view->shape[1] = columns;
    view->bytes = (size_t)(rows * columns) * wb_dtype_size(dtype), view->data = zeros;
    assert_true(view->bytes <= sizeof zeros);
    expect_open_fails(edit_end(e, NULL).text, status, message);
}

static void test_bad_files(void **state) {
    (void)state;
    expect_missing(MATRIX "scale", "missing tensor " MATRIX "weight_scale_inv or " MATRIX "scale");
    expect_missing(EXPERT "scale", "missing tensor " EXPERT "weight_scale_inv or " EXPERT "scale");
    expect_refused(MATRIX "scale", WB_F8_E8M0, 2, 7, WB_MISMATCH, "wq_a.scale: expected shape [2, 8], found");
    expect_refused(MATRIX "scale", WB_I8, 2, 8, WB_UNSUPPORTED,
                   "expected dtype f32, bf16, f16, f8_e8m0 or u8, found i8");
    expect_refused(EXPERT "weight", WB_I8, 32, 12, WB_MISMATCH, "w1.weight: expected shape [32, 16], found");
    expect_refused(EXPERT "weight", WB_I8, 32, 32, WB_UNSUPPORTED,
                   "w1.weight [32, 32]: expected dtype f32, bf16, f16 or f8_e4m3, found i8");
    expect_refused(EXPERT "scale", WB_F8_E8M0, 1, 32, WB_MISMATCH, "w1.scale: expected shape [32, 1], found");
    expect_refused(EXPERT "scale", WB_F32, 32, 1, WB_UNSUPPORTED, "expected dtype f8_e8m0 or u8, found f32");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_exponent),
        cmocka_unit_test(test_every_number_of_a_release),
        cmocka_unit_test(test_bytes_without_a_dtype),
        cmocka_unit_test(test_a_save_as_it_was_opened),
        cmocka_unit_test(test_bad_files),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
