/* test_stored_tensor.c - matrices of 8 bits whose blocks have scales: read from any element on, and refused
 * where the scales are not theirs. */
#include "checkpoint_fixture.h"
#include "elements.h"
#include "stored_tensor.h"
#include "wb_exact_math.h"
#include "wb_random.h"

#include <math.h>

enum { ROWS = 131, COLUMNS = 263, BLOCK = 128, BLOCK_ROWS = 2, BLOCK_COLUMNS = 3 };

static uint8_t elements[ROWS * COLUMNS];
static float scales[BLOCK_ROWS * BLOCK_COLUMNS];

/* Every byte but NaN, and scales that are no powers of two. */
static void fill(void) {
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof elements; i++) {
        seed = wb_mix64(seed + i);
        elements[i] = (uint8_t)(seed % 255);
        if ((elements[i] & 0x7f) == 0x7f) elements[i] = 0x11;
    }
    for (size_t i = 0; i < BLOCK_ROWS * BLOCK_COLUMNS; i++) scales[i] = 0.0123f * (float)(i + 1);
}

static wb_tensor_view matrix_view(void) {
    return (wb_tensor_view){.name = "w.weight",
                            .dtype = WB_F8_E4M3,
                            .n_dims = 2,
                            .shape = {ROWS, COLUMNS},
                            .data = elements,
                            .bytes = sizeof elements};
}

static wb_tensor_view scales_view(void) {
    return (wb_tensor_view){.name = "w.weight_scale_inv",
                            .dtype = WB_F32,
                            .n_dims = 2,
                            .shape = {BLOCK_ROWS, BLOCK_COLUMNS},
                            .data = scales,
                            .bytes = sizeof scales};
}

/* The files of views[n]. */
static wb_safetensors *write_and_open(const char *name, size_t n, const wb_tensor_view *views) {
    wb_safetensors *files = NULL;
    const temp_path path = temp_in(dir.text, name);
    assert_int_equal(wb_safetensors_write(path.text, n, views, NULL), WB_OK);
    assert_int_equal(wb_safetensors_open(path.text, NULL, &files), WB_OK);
    return files;
}

/* Of element i by itself. */
static float element(int64_t i) {
    float value;
    wb_convert(1, &elements[i], WB_F8_E4M3, &value, WB_F32);
    return value * scales[i / COLUMNS / BLOCK * BLOCK_COLUMNS + i % COLUMNS / BLOCK];
}

static void test_any_run_of_elements(void **state) {
    (void)state;
    const wb_tensor_view views[] = {matrix_view(), scales_view()};
    static float wide[ROWS * COLUMNS];
    static uint16_t narrow[ROWS * COLUMNS];
    wb_stored_tensor stored;
    wb_safetensors *files = write_and_open("scaled.safetensors", 2, views);
    assert_int_equal(wb_stored_find(files, wb_safetensors_lookup(files, "w.weight"), &stored), WB_OK);
    assert_int_equal(stored.scales_index, wb_safetensors_lookup(files, "w.weight_scale_inv"));
    static const int64_t firsts[] = {0, 1, 127, 128, 262, 263, 128 * 263 - 1, 130 * 263 + 100};
    for (size_t f = 0; f < sizeof firsts / sizeof firsts[0]; f++) {
        const int64_t first = firsts[f], n = ROWS * COLUMNS - first;
        wb_stored_read(&stored, first, n, wide, WB_F32);
        wb_stored_read(&stored, first, n, narrow, WB_BF16);
        for (int64_t i = 0; i < n; i++) {
            assert_true(wide[i] == element(first + i));
            assert_int_equal(narrow[i], wb_f32_to_bf16(element(first + i)));
        }
    }
    wb_safetensors_close(files);
}

static void expect_refused(const char *name, size_t n, const wb_tensor_view *views, wb_status status,
                           const char *message) {
    wb_stored_tensor stored;
    wb_safetensors *files = write_and_open(name, n, views);
    assert_int_equal(wb_stored_find(files, wb_safetensors_lookup(files, "w.weight"), &stored), status);
    assert_message_has(message);
    wb_safetensors_close(files);
}

static void test_scales_that_are_not_theirs(void **state) {
    (void)state;
    wb_tensor_view views[] = {matrix_view(), scales_view()};
    expect_refused("none.safetensors", 1, views, WB_NOT_FOUND, "expected its scales, w.weight_scale_inv");
    views[1].shape[0] = BLOCK_COLUMNS, views[1].shape[1] = BLOCK_ROWS;
    expect_refused("turned.safetensors", 2, views, WB_MISMATCH,
                   "expected [2, 3], a scale for each 128 x 128");
    views[1] = scales_view();
    views[1].dtype = WB_I32;
    expect_refused("whole.safetensors", 2, views, WB_UNSUPPORTED,
                   "w.weight_scale_inv: expected f32, found i32");
    views[0].n_dims = 1, views[0].shape[0] = ROWS * COLUMNS;
    expect_refused("vector.safetensors", 2, views, WB_UNSUPPORTED, "expected a matrix of f8_e4m3, found 1");
}

/* A model of which one matrix is stored so has its values, says so, and saves them in its own dtype. */
static void test_a_model_reads_and_saves_them(void **state) {
    (void)state;
    edit *e = edit_begin("qwen3_moe", "one_scaled");
    wb_tensor_view *view = edit_find(e, "model.layers.0.self_attn.q_proj.weight");
    const int64_t n = view->shape[0] * view->shape[1];
    assert_true(view->shape[0] <= BLOCK && view->shape[1] <= BLOCK);
    view->dtype = WB_F8_E4M3, view->data = elements, view->bytes = (size_t)n;
    wb_tensor_view scale = scales_view();
    scale.name = "model.layers.0.self_attn.q_proj.weight_scale_inv";
    scale.shape[0] = scale.shape[1] = 1, scale.bytes = sizeof(float);
    e->views[e->n++] = scale;
    temp_path out = edit_end(e, NULL), saved = temp_in(dir.text, "one_saved");
    wb_device *device;
    wb_comm *comm;
    wb_model *m = open_one(out.text, WB_F32, &device, &comm);
    assert_non_null(strstr(wb_model_note(m), "1 tensors are stored in 8 bits with scales: read as f32"));
    assert_int_equal(wb_model_save(m, saved.text), WB_OK);
    close_one(m, device, comm);
    wb_safetensors *files = NULL;
    wb_tensor_view found;
    assert_int_equal(wb_safetensors_open(saved.text, NULL, &files), WB_OK);
    assert_int_equal(wb_safetensors_find(files, "model.layers.0.self_attn.q_proj.weight", &found), WB_OK);
    assert_int_equal(found.dtype, WB_F32);
    for (int64_t i = 0; i < n; i++) {
        float expected, value;
        wb_convert(1, &elements[i], WB_F8_E4M3, &expected, WB_F32);
        memcpy(&value, (const char *)found.data + i * 4, sizeof value);
        assert_true(value == expected * scales[0]);
    }
    wb_safetensors_close(files);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_run_of_elements),
        cmocka_unit_test(test_scales_that_are_not_theirs),
        cmocka_unit_test(test_a_model_reads_and_saves_them),
    };
    fill();
    return cmocka_run_group_tests(tests, setup, teardown);
}
