/* test_matmul.c - the matmul op is one fma chain over ascending k for each element, bit for bit: any
 * shape, strides, transposition, accumulation, bf16, lists, thread count and instruction set. */
#include "ops_test.h"

typedef struct product {
    wb_matmul p;
    float *a, *c, *expected;
    void *b;
    int64_t c_count;
} product;

static float element(wb_rows rows, int64_t i) {
    return rows.dtype == WB_F32 ? ((const float *)rows.data)[i]
                                : wb_bf16_to_f32(((const uint16_t *)rows.data)[i]);
}

static float b_value(const wb_matmul *p, int64_t k, int64_t n) {
    return element(p->b, k * p->b_row + n * p->b_col);
}

static void chain(const wb_matmul *p, float *c) {
    for (int64_t m = 0; m < p->M; m++)
        for (int64_t n = 0; n < p->N; n++) {
            float acc = p->accumulate ? c[m * p->ldc + n] : 0.0f;
            for (int64_t k = 0; k < p->K; k++)
                acc = fmaf(element(p->a, m * p->a_row + k * p->a_col), b_value(p, k, n), acc);
            c[m * p->ldc + n] = acc;
        }
}

/* Strides of a rows x columns matrix, plain or transposed, with a gap after each line. */
static int64_t random_strides(int64_t rows, int64_t columns, int64_t *row, int64_t *column) {
    int64_t gap = rng_range(0, 3);
    bool transposed = rng_range(0, 1) == 1;
    *row = transposed ? 1 : columns + gap;
    *column = transposed ? rows + gap : 1;
    return transposed ? columns * (rows + gap) : rows * (columns + gap);
}

static product random_product(int64_t M, int64_t N, int64_t K) {
    product r = {.p = {.M = M, .N = N, .K = K}};
    wb_matmul *p = &r.p;
    int64_t a_count = random_strides(M, K, &p->a_row, &p->a_col);
    int64_t b_count = random_strides(K, N, &p->b_row, &p->b_col);
    r.a = random_floats(a_count, -1.0f, 1.0f);
    p->a = wb_f32_rows(r.a);
    p->b.dtype = rng_range(0, 2) == 0 ? WB_BF16 : WB_F32;
    r.b = xalloc(b_count, sizeof(float));
    for (int64_t i = 0; i < b_count; i++) {
        float x = rng_uniform(-1.0f, 1.0f);
        if (p->b.dtype == WB_F32)
            ((float *)r.b)[i] = x;
        else
            ((uint16_t *)r.b)[i] = wb_f32_to_bf16(x);
    }
    p->b.data = r.b;
    p->ldc = N + rng_range(0, 3);
    p->accumulate = rng_range(0, 1) == 1;
    r.c_count = M * p->ldc;
    r.c = random_floats(r.c_count, -1.0f, 1.0f);
    p->c = wb_f32_rows(r.c);
    r.expected = copied(r.c, r.c_count);
    chain(p, r.expected);
    return r;
}

/* The list on one device: C as expected, what lies between its rows untouched. */
static void check_list(wb_device *dev, int64_t count, const product *products) {
    wb_matmul list[8] = {0};
    float *c[8];
    for (int64_t i = 0; i < count; i++) {
        c[i] = copied(products[i].c, products[i].c_count);
        list[i] = products[i].p;
        list[i].c = wb_f32_rows(c[i]);
    }
    assert_ok(dev->matmul(dev, count, list));
    for (int64_t i = 0; i < count; i++) {
        const wb_matmul *p = &products[i].p;
        if (memcmp(c[i], products[i].expected, (size_t)products[i].c_count * sizeof(float)) != 0)
            fail_msg("%s, %d threads: %" PRId64 " x %" PRId64 " x %" PRId64 ", a %" PRId64 ",%" PRId64
                     " b %" PRId64 ",%" PRId64 " %s accumulate %d: bits differ",
                     dev->name, dev->threads, p->M, p->N, p->K, p->a_row, p->a_col, p->b_row, p->b_col,
                     wb_dtype_name(p->b.dtype), p->accumulate);
        free(c[i]);
    }
}

/* Any number of rows, and columns that are a multiple of a group, with weights that were packed: the same
 * chain; and packing is by the definition. */
static product packed_product(wb_device *dev, int64_t M, int64_t N, int64_t K) {
    product r = random_product(M, N, K);
    wb_matmul *p = &r.p;
    const int64_t size = (int64_t)wb_dtype_size(p->b.dtype);
    p->a_row = K + 3 * rng_range(0, 1), p->a_col = 1;
    p->b_row = 1, p->b_col = K;
    free(r.a), free(r.expected);
    p->a = wb_f32_rows(r.a = random_floats(M * p->a_row, -1.0f, 1.0f));
    r.expected = copied(r.c, r.c_count);
    chain(p, r.expected);
    char *rows = (char *)copied((float *)r.b, (N * K * size + 3) / 4);
    assert_ok(dev->pack_weights(dev, 1, matrix(r.b, p->b.dtype, N, K)));
    p->b_packed = true;
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++)
            assert_memory_equal((char *)r.b + ((n / 16 * K + k) * 16 + n % 16) * size,
                                rows + (n * K + k) * size, (size_t)size);
    free(rows);
    return r;
}

static void test_packed_weights(void **state) {
    (void)state;
    const char *isas[] = {"generic", "v3", "v4"};
    const int64_t widths[] = {0, 1, 7, 96, 257, 600}, most_rows[] = {40, 300};
    for (int isa = 0; isa < 3; isa++) {
        wb_device *dev[2] = {NULL, NULL};
        if (wb_cpu_open_isa(isas[isa], 1, &dev[0]) != WB_OK) continue;
        assert_ok(wb_cpu_open_isa(isas[isa], 3, &dev[1]));
        for (int64_t m = 1; m <= most_rows[0] + 2; m++) {
            const int64_t rows = m <= most_rows[0] ? m : rng_range(most_rows[0], most_rows[1]);
            product p = packed_product(dev[m % 2], rows, 16 * rng_range(1, 9), widths[rng_range(0, 5)]);
            for (int i = 0; i < 2; i++) check_list(dev[i], 1, &p);
            free(p.a), free(p.b), free(p.c), free(p.expected);
        }
        for (int i = 0; i < 2; i++) wb_device_close(dev[i]);
    }
}

/* Several matrices at once, and none. */
static void test_packing_is_of_each_matrix(void **state) {
    (void)state;
    enum { COUNT = 3, ROWS = 48, COLS = 35 };
    wb_device *dev = open_cpu(3);
    float *all = random_floats(COUNT * ROWS * COLS, -1, 1), *one = copied(all, COUNT * ROWS * COLS);
    assert_ok(dev->pack_weights(dev, COUNT, matrix(all, WB_F32, ROWS, COLS)));
    for (int i = 0; i < COUNT; i++)
        assert_ok(dev->pack_weights(dev, 1, matrix(one + i * ROWS * COLS, WB_F32, ROWS, COLS)));
    assert_memory_equal(all, one, COUNT * ROWS * COLS * sizeof *all);
    assert_ok(dev->pack_weights(dev, 0, matrix(NULL, WB_F32, ROWS, COLS)));
    free(all), free(one);
    wb_device_close(dev);
}

static void run_lists(const char *isa, int rounds, int64_t max_m, int64_t max_n, int64_t max_k) {
    const int threads[] = {1, 2, 3, 5};
    wb_device *dev[4];
    for (int i = 0; i < 4; i++)
        if (wb_cpu_open_isa(isa, threads[i], &dev[i]) != WB_OK) skip();
    for (int round = 0; round < rounds; round++) {
        product products[5];
        int64_t count = rng_range(1, 5);
        for (int64_t i = 0; i < count; i++)
            products[i] = random_product(rng_range(0, max_m), rng_range(0, max_n), rng_range(0, max_k));
        for (int i = 0; i < 4; i++) check_list(dev[i], count, products);
        for (int64_t i = 0; i < count; i++)
            free(products[i].a), free(products[i].b), free(products[i].c), free(products[i].expected);
    }
    for (int i = 0; i < 4; i++) wb_device_close(dev[i]);
}

static void test_small_shapes(void **state) {
    (void)state;
    const char *isas[] = {"generic", "v3", "v4"};
    for (int i = 0; i < 3; i++) {
        wb_device *dev = NULL;
        if (wb_cpu_open_isa(isas[i], 1, &dev) != WB_OK) continue;
        wb_device_close(dev);
        run_lists(isas[i], i == 0 ? 60 : 250, 20, 50, 40);
    }
}

static void test_blocks_and_threads(void **state) {
    (void)state;
    const char *isas[] = {"v3", "v4"};
    for (int i = 0; i < 2; i++) {
        wb_device *dev = NULL;
        if (wb_cpu_open_isa(isas[i], 1, &dev) != WB_OK) continue;
        wb_device_close(dev);
        run_lists(isas[i], 4, 300, 150, 300); /* more than one block of rows and of k */
        run_lists(isas[i], 4, 3, 1200, 600);  /* the wide tiles of few rows */
        run_lists(isas[i], 12, 13, 70, 300);  /* rows that need no packing, and one more */
        run_lists(isas[i], 6, 66, 70, 1500);  /* rows that are packed in place of B, and two more */
    }
}

static void test_forward_dgrad_wgrad_are_what_they_say(void **state) {
    (void)state;
    const int64_t T = 7, in = 5, out = 3;
    wb_device *dev = open_cpu(1);
    float *x = random_floats(T * in, -1, 1), *w = random_floats(out * in, -1, 1),
          *dy = random_floats(T * out, -1, 1);
    float *y = floats(T * out), *dx = floats(T * in), *dw = random_floats(out * in, -1, 1);
    float *dw_expected = copied(dw, out * in);
    wb_matmul list[3] = {
        wb_matmul_forward(T, wb_f32_rows(x), matrix(w, WB_F32, out, in), wb_f32_rows(y)),
        wb_matmul_dgrad(T, wb_f32_rows(dy), matrix(w, WB_F32, out, in), wb_f32_rows(dx), false),
        wb_matmul_wgrad(T, in, out, wb_f32_rows(dy), wb_f32_rows(x), dw)};
    assert_ok(dev->matmul(dev, 3, list));
    for (int64_t t = 0; t < T; t++) {
        for (int64_t o = 0; o < out; o++) {
            float acc = 0.0f;
            for (int64_t i = 0; i < in; i++) acc = fmaf(x[t * in + i], w[o * in + i], acc);
            assert_true(acc == y[t * out + o]);
        }
        for (int64_t i = 0; i < in; i++) {
            float acc = 0.0f;
            for (int64_t o = 0; o < out; o++) acc = fmaf(dy[t * out + o], w[o * in + i], acc);
            assert_true(acc == dx[t * in + i]);
        }
    }
    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++) {
            float acc = dw_expected[o * in + i];
            for (int64_t t = 0; t < T; t++) acc = fmaf(dy[t * out + o], x[t * in + i], acc);
            assert_true(acc == dw[o * in + i]);
        }
    free(x), free(w), free(dy), free(y), free(dx), free(dw), free(dw_expected);
    wb_device_close(dev);
}

static void test_refusals(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    float a[4] = {0}, c[4] = {7.0f, 7.0f, 7.0f, 7.0f};
    wb_matmul m = wb_matmul_forward(2, wb_f32_rows(a), matrix(a, WB_F16, 2, 2), wb_f32_rows(c));
    assert_int_equal(dev->matmul(dev, 1, &m), WB_INVALID_ARGUMENT);
    m = wb_matmul_forward(2, wb_f32_rows(a), matrix(a, WB_F32, 2, 2), wb_f32_rows(c));
    m.a_col = 2;
    assert_int_equal(dev->matmul(dev, 1, &m), WB_INVALID_ARGUMENT);
    float w[64] = {0};
    wb_weight packed = matrix(w, WB_F32, 16, 2);
    packed.packed = true;
    m = wb_matmul_dgrad(0, wb_f32_rows(a), packed, wb_f32_rows(c), false);
    assert_int_equal(dev->matmul(dev, 1, &m), WB_INVALID_ARGUMENT);
    assert_int_equal(dev->pack_weights(dev, 1, packed), WB_INVALID_ARGUMENT);
    assert_int_equal(dev->pack_weights(dev, 1, matrix(w, WB_F32, 15, 2)), WB_INVALID_ARGUMENT);
    assert_int_equal(dev->embed_forward(dev, 1, (const int32_t[]){0}, packed, wb_f32_rows(c)),
                     WB_INVALID_ARGUMENT);
    packed.rows = 8;
    m = wb_matmul_forward(1, wb_f32_rows(a), packed, wb_f32_rows(c));
    assert_int_equal(dev->matmul(dev, 1, &m), WB_INVALID_ARGUMENT);
    for (int i = 0; i < 4; i++) assert_true(c[i] == 7.0f);
    assert_int_equal(dev->matmul(dev, 0, NULL), WB_OK);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_shapes),
        cmocka_unit_test(test_blocks_and_threads),
        cmocka_unit_test(test_packed_weights),
        cmocka_unit_test(test_packing_is_of_each_matrix),
        cmocka_unit_test(test_forward_dgrad_wgrad_are_what_they_say),
        cmocka_unit_test(test_refusals),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
