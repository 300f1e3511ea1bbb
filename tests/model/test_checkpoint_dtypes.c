/* test_checkpoint_dtypes.c - values of files on their way to the dtype of the model. */
#include "checkpoint_fixture.h"
#include "elements.h"

#include <math.h>

/* The f32 nearest to x among those whose low 16 bits are zero, ties to even; by search, not by bit tricks. */
static float round_to_bf16(float x) {
    uint32_t bits, low, high;
    float a, b;
    memcpy(&bits, &x, 4);
    if (isnan(x) || isinf(x)) return x;
    low = bits & 0xffff0000u;
    high = low + 0x10000u;
    memcpy(&a, &low, 4);
    memcpy(&b, &high, 4);
    double to_a = fabs((double)x - (double)a), to_b = fabs((double)b - (double)x);
    if (isinf(b)) to_b = ldexp(1, 128) - fabs((double)x);
    if (to_a != to_b) return to_a < to_b ? a : b;
    return low >> 16 & 1u ? b : a;
}

static void test_wide_weights_are_rounded_to_nearest_even(void **state) {
    (void)state;
    wb_device *device;
    wb_comm *comm;
    wb_model *wide = open_one(golden("qwen3_moe").text, WB_F32, &device, &comm);
    wb_model_options options = {.size = sizeof(wb_model_options),
                                .device = device,
                                .comm = comm,
                                .dtype = WB_BF16,
                                .activations = WB_F32};
    wb_model *narrow = NULL, *copy = NULL;
    assert_int_equal(wb_model_open(golden("qwen3_moe").text, &options, &narrow), WB_OK);
    assert_int_equal(wb_model_create(wb_model_config(wide), 1, 0.5f, &options, &copy), WB_OK);
    assert_int_equal(wb_model_copy_weights(copy, wide), WB_OK);
    assert_string_equal(wb_model_routes(wide)->fingerprint, wb_model_routes(narrow)->fingerprint);
    for (int32_t i = 0; i < wb_model_n_tensors(wide); i++) {
        wb_tensor w = wb_model_tensor(wide, i), n = wb_model_tensor(narrow, i), c = wb_model_tensor(copy, i);
        assert_string_equal(w.name, n.name);
        assert_int_equal(n.dtype, w.n_dims == 1 ? WB_F32 : WB_BF16);
        assert_memory_equal(n.data, c.data, (size_t)n.n * wb_dtype_size(n.dtype));
        for (int64_t k = 0; k < w.n; k++) {
            float from = ((const float *)w.data)[k], to,
                  expected = w.n_dims == 1 ? from : round_to_bf16(from);
            uint32_t bits = n.n_dims == 1 ? 0 : (uint32_t)((const uint16_t *)n.data)[k] << 16;
            memcpy(&to, n.n_dims == 1 ? (const void *)((const float *)n.data + k) : &bits, 4);
            assert_true(to == expected);
        }
    }
    wb_model_close(copy);
    wb_model_close(narrow);
    close_one(wide, device, comm);
}

static void test_conversion_of_every_half(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t half = (uint16_t)h, back;
        float from_f16, from_bf16;
        wb_convert(1, &half, WB_F16, &from_f16, WB_F32);
        wb_convert(1, &half, WB_BF16, &from_bf16, WB_F32);
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        double expected = exponent == 0    ? ldexp(fraction, -24)
                          : exponent == 31 ? (fraction ? NAN : INFINITY)
                                           : ldexp(1024 + fraction, exponent - 25);
        if (h & 0x8000) expected = -expected;
        if (isnan(expected)) {
            assert_true(isnan(from_f16));
        } else {
            assert_true((double)from_f16 == expected);
            assert_int_equal(signbit(from_f16) != 0, h >> 15);
        }
        wb_convert(1, &from_bf16, WB_F32, &back, WB_BF16);
        if (isnan(from_bf16))
            assert_int_equal(back & 0x7fc0, 0x7fc0); /* quiet */
        else
            assert_int_equal(back, half);
    }
}

static void test_conversion_of_every_f8(void **state) {
    (void)state;
    for (uint32_t b = 0; b < 256; b++) {
        const int exponent = (int)(b >> 3 & 15), fraction = (int)(b & 7);
        double expected = exponent == 0 ? ldexp(fraction, -9) : ldexp(8 + fraction, exponent - 10);
        if (exponent == 15 && fraction == 7) expected = NAN;
        if (b & 0x80) expected = -expected;
        const float found = wb_f32_from_f8_e4m3((uint8_t)b);
        if (isnan(expected)) {
            assert_true(isnan(found));
        } else {
            assert_true((double)found == expected);
            assert_int_equal(signbit(found) != 0, b >> 7);
        }
    }
}

static void test_rounding_at_the_edges(void **state) {
    (void)state;
    static const uint32_t cases[][2] = {
        {0x3f808000, 0x3f80}, /* tie to even, down */
        {0x3f818000, 0x3f82}, /* tie to even, up */
        {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80}, {0x7f7fffff, 0x7f80},
        {0xff7fffff, 0xff80}, {0x7f800000, 0x7f80}, {0x7f800001, 0x7fc0},
        {0x00008000, 0x0000}, {0x00008001, 0x0001}, {0x80000000, 0x8000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint16_t found;
        wb_convert(1, &cases[i][0], WB_F32, &found, WB_BF16);
        assert_int_equal(found, cases[i][1]);
    }
}

/* bf16 and f16 files are widened exactly, NaN and infinity included. */
static void test_narrow_files_are_widened(void **state) {
    (void)state;
    static const wb_dtype dtypes[] = {WB_BF16, WB_F16};
    for (size_t d = 0; d < 2; d++) {
        edit *e = edit_begin("qwen3_moe", d ? "f16" : "bf16");
        static uint16_t storage[4096], expected_storage[4096];
        for (size_t k = 0; k < 4096; k++) storage[k] = expected_storage[k] = (uint16_t)(k * 16 + k / 256);
        wb_tensor_view *view = edit_find(e, "model.embed_tokens.weight");
        view->dtype = dtypes[d];
        view->data = storage;
        view->bytes = sizeof storage;
        temp_path out = edit_end(e, NULL);
        wb_device *device;
        wb_comm *comm;
        wb_model *m = open_one(out.text, WB_F32, &device, &comm);
        float *host = malloc(4096 * sizeof *host), *expected = malloc(4096 * sizeof *expected);
        assert_int_equal(
            device->to_host(device, host, wb_model_weight(m, m->embed).data, 4096 * sizeof *host), WB_OK);
        wb_convert(4096, expected_storage, dtypes[d], expected, WB_F32);
        assert_memory_equal(host, expected, 4096 * sizeof *host);
        free(host);
        free(expected);
        close_one(m, device, comm);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wide_weights_are_rounded_to_nearest_even),
        cmocka_unit_test(test_conversion_of_every_half),
        cmocka_unit_test(test_conversion_of_every_f8),
        cmocka_unit_test(test_rounding_at_the_edges),
        cmocka_unit_test(test_narrow_files_are_widened),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
