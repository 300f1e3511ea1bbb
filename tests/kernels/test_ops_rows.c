/* test_ops_rows.c - ops on rows and elements against a naive reference in double precision; every backward
 * against central differences of it. */
#include "gradient_check.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

/* ---- embedding, cast, cache writes, gathers: exact ------------------------------------------- */

static void test_embed(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 41, H = 70, V = 9;
    float *table = random_floats(V * H, -1, 1), *y = floats(T * H), *dy = random_floats(T * H, -1, 1);
    uint16_t *half = xalloc(V * H, sizeof *half);
    int32_t *tokens = xalloc(T, sizeof *tokens);
    for (int64_t t = 0; t < T; t++) tokens[t] = (int32_t)rng_range(0, V - 1);
    assert_ok(dev->cast(dev, V * H, (wb_rows){table, WB_F32}, (wb_rows){half, WB_BF16}));
    assert_ok(dev->embed_forward(dev, T, tokens, matrix(table, WB_F32, V, H), wb_f32_rows(y)));
    for (int64_t t = 0; t < T; t++) assert_same_bits(y + t * H, table + tokens[t] * H, H, "embed f32");
    assert_ok(dev->embed_forward(dev, T, tokens, matrix(half, WB_BF16, V, H), wb_f32_rows(y)));
    for (int64_t i = 0; i < T * H; i++) assert_true(y[i] == wb_bf16_to_f32(half[tokens[i / H] * H + i % H]));
    float *dtable = random_floats(V * H, -1, 1), *expected = copied(dtable, V * H);
    for (int64_t i = 0; i < T * H; i++) expected[tokens[i / H] * H + i % H] += dy[i];
    assert_ok(dev->embed_backward(dev, T, H, tokens, wb_f32_rows(dy), dtable));
    assert_same_bits(dtable, expected, V * H, "dtable");
    assert_int_equal(dev->embed_forward(dev, T, tokens, matrix(table, WB_F16, V, H), wb_f32_rows(y)),
                     WB_INVALID_ARGUMENT);
    free(table), free(y), free(dy), free(half), free(tokens), free(dtable), free(expected);
    wb_device_close(dev);
}

static void test_cast_kv_write_gather_scatter(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 23, width = 37, pool = 40;
    float *x = random_floats(T * width, -3, 3), *cache = floats(pool * width), *back = floats(T * width);
    uint16_t *half_cache = xalloc(pool * width, sizeof *half_cache), *half = xalloc(T * width, sizeof *half);
    int64_t rows[23];
    int32_t index[23];
    for (int64_t t = 0; t < T; t++)
        rows[t] = index[t] = (int32_t)(t * 17 % pool); /* 17 and 40 have no common factor */
    assert_ok(dev->kv_write(dev, T, width, wb_f32_rows(x), rows, (wb_rows){cache, WB_F32}));
    assert_ok(dev->kv_write(dev, T, width, wb_f32_rows(x), rows, (wb_rows){half_cache, WB_BF16}));
    assert_ok(dev->gather_rows(dev, T, width, index, wb_f32_rows(cache), wb_f32_rows(back)));
    assert_same_bits(back, x, T * width, "kv_write and gather");
    float *scattered = random_floats(pool * width, -3, 3), *expected = copied(scattered, pool * width);
    for (int64_t t = 0; t < T; t++)
        memcpy(expected + index[t] * width, x + t * width, (size_t)width * sizeof(float));
    assert_ok(dev->scatter_rows(dev, T, width, index, wb_f32_rows(x), wb_f32_rows(scattered)));
    assert_same_bits(scattered, expected, pool * width, "scatter");
    free(scattered), free(expected);
    assert_ok(dev->cast(dev, T * width, (wb_rows){x, WB_F32}, (wb_rows){half, WB_BF16}));
    assert_ok(dev->cast(dev, T * width, (wb_rows){half, WB_BF16}, (wb_rows){back, WB_F32}));
    for (int64_t i = 0; i < T * width; i++) {
        assert_int_equal(half[i], wb_f32_to_bf16(x[i]));
        assert_true(back[i] == wb_bf16_to_f32(half[i]));
        assert_int_equal(half_cache[rows[i / width] * width + i % width], half[i]);
    }
    assert_int_equal(dev->cast(dev, 1, (wb_rows){x, WB_F32}, (wb_rows){half, WB_I32}), WB_INVALID_ARGUMENT);
    assert_int_equal(dev->kv_write(dev, T, width, wb_f32_rows(x), rows, (wb_rows){cache, WB_U8}),
                     WB_INVALID_ARGUMENT);
    free(x), free(cache), free(back), free(half_cache), free(half);
    wb_device_close(dev);
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

typedef struct norm_case {
    int64_t n, width;
    double eps, offset; /* offset: what is added to w */
    const float *x, *w, *dy;
} norm_case;

static double norm_element(const norm_case *c, const double *x, const double *w, int64_t i) {
    int64_t row = i / c->width * c->width;
    double sum = 0.0;
    for (int64_t j = 0; j < c->width; j++) sum += x[row + j] * x[row + j];
    return x[i] / sqrt(sum / (double)c->width + c->eps) * (w[i % c->width] + c->offset);
}

/* x is followed by w. */
static double norm_loss(const double *x, const void *context) {
    const norm_case *c = context;
    double loss = 0.0;
    for (int64_t i = 0; i < c->n * c->width; i++)
        loss += (double)c->dy[i] * norm_element(c, x, x + c->n * c->width, i);
    return loss;
}

static void test_rmsnorm(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t widths[] = {1, 5, 16, 37, 64};
    for (int round = 0; round < 10; round++) {
        const bool zero_centered = round >= 5;
        int64_t n = rng_range(1, 5), width = widths[round % 5], count = n * width;
        float *xw = random_floats(count + width, -2, 2), *w = xw + count, *y = floats(count);
        float *dy = random_floats(count, -1, 1), *grad = floats(count + width), *dw = grad + count;
        for (int64_t i = 0; i < count; i++)
            xw[i] += xw[i] < 0.0f ? -0.5f : 0.5f; /* a row of about 0 has no slope */
        const wb_norm norm = norm_of(w, zero_centered);
        norm_case c = {n, width, 1e-6, zero_centered, xw, w, dy};
        double *x2 = doubles(xw, count + width);
        assert_ok(dev->rmsnorm_forward(dev, n, width, wb_f32_rows(xw), norm, wb_f32_rows(y)));
        for (int64_t i = 0; i < count; i++)
            assert_close(y[i], norm_element(&c, x2, x2 + count, i),
                         ((double)width + 8) * u * fabs((double)y[i]) + 1e-30, "rmsnorm", i);
        float *base = floats(count + width);
        for (int64_t i = 0; i < width; i++) base[count + i] = dw[i] = rng_uniform(-1, 1);
        assert_ok(dev->rmsnorm_backward(dev, n, width, wb_f32_rows(xw), norm, wb_f32_rows(dy),
                                        wb_f32_rows(grad), dw));
        check_gradient(norm_loss, &c, xw, count + width, grad, base, 4e-6, "rmsnorm_backward");
        float *in_place = copied(dy, count); /* dx may be dy, dw may be NULL */
        assert_ok(dev->rmsnorm_backward(dev, n, width, wb_f32_rows(xw), norm, wb_f32_rows(in_place),
                                        wb_f32_rows(in_place), NULL));
        assert_same_bits(in_place, grad, count, "rmsnorm_backward in place");
        assert_ok(dev->rmsnorm_forward(dev, n, width, wb_f32_rows(xw), norm, wb_f32_rows(xw)));
        assert_same_bits(xw, y, count, "rmsnorm in place");
        free(xw), free(y), free(dy), free(grad), free(x2), free(base), free(in_place);
    }
    wb_device_close(dev);
}

/* A norm without w is one whose w is all 1. */
static void test_rmsnorm_without_weight(void **state) {
    (void)state;
    enum { N = 3, WIDTH = 37, COUNT = N * WIDTH };
    wb_device *dev = open_cpu(2);
    float *x = random_floats(COUNT, -2, 2), *dy = random_floats(COUNT, -1, 1), *ones = floats(WIDTH);
    float *expected = floats(COUNT), *found = floats(COUNT);
    for (int i = 0; i < WIDTH; i++) ones[i] = 1;
    const wb_norm plain = {NULL, 1e-6f, false}, with = norm_of(ones, false);
    const wb_rows from = wb_f32_rows(x), d = wb_f32_rows(dy);
    assert_ok(dev->rmsnorm_forward(dev, N, WIDTH, from, with, wb_f32_rows(expected)));
    assert_ok(dev->rmsnorm_forward(dev, N, WIDTH, from, plain, wb_f32_rows(found)));
    assert_same_bits(found, expected, COUNT, "rmsnorm_forward");
    assert_ok(dev->rmsnorm_backward(dev, N, WIDTH, from, with, d, wb_f32_rows(expected), NULL));
    assert_ok(dev->rmsnorm_backward(dev, N, WIDTH, from, plain, d, wb_f32_rows(found), NULL));
    assert_same_bits(found, expected, COUNT, "rmsnorm_backward");
    free(x), free(dy), free(ones), free(expected), free(found);
    wb_device_close(dev);
}

/* ---- rotary embedding ------------------------------------------------------------------------ */

static void check_rope(int32_t first, bool interleaved) {
    wb_device *dev = open_cpu(2);
    const int64_t T = 6, heads = 3, hd = 10, rot = 6, half = 3, positions = 20;
    float *c = floats(positions * half), *s = floats(positions * half);
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)p * pow(100.0, -2.0 * (double)i / (double)rot);
            c[p * half + i] = (float)cos(angle), s[p * half + i] = (float)sin(angle);
        }
    int32_t pos[6] = {0, 5, 19, 7, 7, 1};
    float *x = random_floats(T * heads * hd, -1, 1), *y = copied(x, T * heads * hd);
    wb_rope args = {.T = T,
                    .n_heads = (int32_t)heads,
                    .head_dim = (int32_t)hd,
                    .first = first,
                    .rot_dim = (int32_t)rot,
                    .interleaved = interleaved,
                    .pos = pos,
                    .cos_table = c,
                    .sin_table = s,
                    .x = wb_f32_rows(y)};
    assert_ok(dev->rope(dev, &args));
    for (int64_t i = 0; i < T * heads * hd; i++) {
        const int64_t d = i % hd - first, pair = interleaved ? d / 2 : d % half,
                      apart = interleaved ? 1 : half;
        const bool rotates = d >= 0 && d < rot, low = interleaved ? d % 2 == 0 : d < half;
        double expected = (double)x[i];
        if (rotates) {
            const int64_t at = pos[i / (heads * hd)] * half + pair;
            const double cosine = (double)c[at], sine = (double)s[at];
            expected = low ? (double)x[i] * cosine - (double)x[i + apart] * sine
                           : (double)x[i] * cosine + (double)x[i - apart] * sine;
        }
        assert_close(y[i], expected, 4 * u, "rope", i);
    }
    /* The backward is the transpose: <rope(x), d> = <x, rope'(d)>; a rotation's transpose is its inverse. */
    float *d = random_floats(T * heads * hd, -1, 1), *dx = copied(d, T * heads * hd);
    args.inverse = true, args.x = wb_f32_rows(dx);
    assert_ok(dev->rope(dev, &args));
    double left = 0.0, right = 0.0;
    for (int64_t i = 0; i < T * heads * hd; i++)
        left += (double)y[i] * (double)d[i], right += (double)x[i] * (double)dx[i];
    assert_close(left, right, 1e-5, "rope transpose", 0);
    args.x = wb_f32_rows(y);
    assert_ok(dev->rope(dev, &args));
    for (int64_t i = 0; i < T * heads * hd; i++) assert_close(y[i], x[i], 1e-6, "rope inverse", i);
    args.rot_dim = 12;
    assert_int_equal(dev->rope(dev, &args), WB_INVALID_ARGUMENT);
    args.rot_dim = 2, args.first = (int32_t)hd;
    assert_int_equal(dev->rope(dev, &args), WB_INVALID_ARGUMENT);
    args.first = -1;
    assert_int_equal(dev->rope(dev, &args), WB_INVALID_ARGUMENT);
    free(c), free(s), free(x), free(y), free(d), free(dx);
    wb_device_close(dev);
}

/* Rows of entries have the angles of the first position of theirs. */
static void test_rope_of_entries(void **state) {
    (void)state;
    enum { T = 9, RATIO = 4, WIDTH = 6 };
    wb_device *dev = open_cpu(1);
    int32_t pos[T], first[T];
    for (int32_t t = 0; t < T; t++) pos[t] = t, first[t] = t / RATIO * RATIO;
    float *x = random_floats(T * WIDTH, -1, 1), *y = copied(x, T * WIDTH), *c = random_floats(T * 2, -1, 1),
          *s = random_floats(T * 2, -1, 1);
    wb_rope args = {.T = T,
                    .n_heads = 1,
                    .head_dim = WIDTH,
                    .first = 2,
                    .rot_dim = 4,
                    .interleaved = true,
                    .pos = first,
                    .cos_table = c,
                    .sin_table = s,
                    .x = wb_f32_rows(y)};
    assert_ok(dev->rope(dev, &args));
    args.pos = pos, args.ratio = RATIO, args.x = wb_f32_rows(x);
    assert_ok(dev->rope(dev, &args));
    assert_same_bits(x, y, T * WIDTH, "rope of entries");
    args.ratio = -1;
    assert_int_equal(dev->rope(dev, &args), WB_INVALID_ARGUMENT);
    free(x), free(y), free(c), free(s);
    wb_device_close(dev);
}

static void test_rope(void **state) {
    (void)state;
    check_rope(0, false);
    check_rope(4, false);
    check_rope(0, true);
    check_rope(3, true);
}

/* ---- blocks of columns ----------------------------------------------------------------------- */

static void test_copy_columns(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t n = 7, width = 3, from_stride = 5, to_stride = 8;
    float *from = random_floats(n * from_stride, -1, 1), *to = random_floats(n * to_stride, -1, 1);
    float *before = copied(to, n * to_stride);
    assert_ok(
        dev->copy_columns(dev, n, width, wb_f32_rows(from + 2), from_stride, wb_f32_rows(to + 4), to_stride));
    for (int64_t i = 0; i < n * to_stride; i++) {
        const int64_t column = i % to_stride - 4;
        const bool copies = column >= 0 && column < width;
        const float expected = copies ? from[i / to_stride * from_stride + 2 + column] : before[i];
        assert_same_bits(&to[i], &expected, 1, "copy_columns");
    }
    const wb_rows half = {to, WB_BF16};
    assert_int_equal(dev->copy_columns(dev, n, width, wb_f32_rows(from), from_stride, half, to_stride),
                     WB_INVALID_ARGUMENT);
    free(from), free(to), free(before);
    wb_device_close(dev);
}

/* Blocks that lie in another order, and beside each other, in the row that they go to. */
static void test_copy_heads(void **state) {
    (void)state;
    enum { T = 5, HEADS = 3, WIDTH = 4, FROM_ROW = 20, FROM_HEAD = 6, TO_ROW = 17, TO_HEAD = 5, FIRST = 1 };
    wb_device *dev = open_cpu(2);
    float *from = random_floats(T * FROM_ROW, -1, 1), *to = random_floats(T * TO_ROW, -1, 1);
    float *expected = copied(to, T * TO_ROW);
    const wb_copy_heads args = {.T = T,
                                .n_heads = HEADS,
                                .width = WIDTH,
                                .from = wb_f32_rows(from + 2),
                                .from_row = FROM_ROW,
                                .from_head = FROM_HEAD,
                                .to = wb_f32_rows(to + FIRST),
                                .to_row = TO_ROW,
                                .to_head = TO_HEAD};
    assert_ok(dev->copy_heads(dev, &args));
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < HEADS; h++)
            for (int64_t i = 0; i < WIDTH; i++)
                expected[FIRST + t * TO_ROW + h * TO_HEAD + i] = from[2 + t * FROM_ROW + h * FROM_HEAD + i];
    assert_same_bits(to, expected, T * TO_ROW, "copy_heads");
    wb_copy_heads other = args;
    other.to.dtype = WB_BF16;
    assert_int_equal(dev->copy_heads(dev, &other), WB_INVALID_ARGUMENT);
    free(from), free(to), free(expected);
    wb_device_close(dev);
}

/* ---- SwiGLU, add, clamp ---------------------------------------------------------------------- */

typedef struct row_case {
    int64_t n, width;
    const float *d;
} row_case;

static double swiglu_element(const double *gate_up, int64_t F, int64_t i) {
    double gate = gate_up[i / F * 2 * F + i % F], up = gate_up[i / F * 2 * F + F + i % F];
    return gate / (1.0 + exp(-gate)) * up;
}

static double swiglu_loss(const double *x, const void *context) {
    const row_case *c = context;
    double loss = 0.0;
    for (int64_t i = 0; i < c->n * c->width; i++) loss += (double)c->d[i] * swiglu_element(x, c->width, i);
    return loss;
}

static void test_swiglu(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t n = 4, F = 21;
    float *x = random_floats(n * 2 * F, -6, 6), *y = floats(n * F), *d = random_floats(n * F, -1, 1);
    float *dx = floats(n * 2 * F);
    double *x2 = doubles(x, n * 2 * F);
    row_case c = {n, F, d};
    assert_ok(dev->swiglu_forward(dev, n, F, wb_f32_rows(x), wb_f32_rows(y)));
    for (int64_t i = 0; i < n * F; i++)
        assert_close(y[i], swiglu_element(x2, F, i), 10 * u * fabs((double)y[i]) + 1e-30, "swiglu", i);
    assert_ok(dev->swiglu_backward(dev, n, F, wb_f32_rows(x), wb_f32_rows(d), wb_f32_rows(dx)));
    check_gradient(swiglu_loss, &c, x, n * 2 * F, dx, NULL, 2e-6, "swiglu_backward");
    assert_ok(dev->swiglu_backward(dev, n, F, wb_f32_rows(x), wb_f32_rows(d), wb_f32_rows(x)));
    assert_same_bits(x, dx, n * 2 * F, "swiglu_backward in place");
    free(x), free(y), free(d), free(dx), free(x2);
    wb_device_close(dev);
}

static void test_add_clamp(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const int64_t n = 70001;
    float *x = random_floats(n, -2, 2), *y = random_floats(n, -2, 2), *sum = copied(y, n),
          *clamped = copied(x, n);
    float *dx = copied(y, n);
    x[3] = clamped[3] = 1.5f; /* exactly the limit: not cut */
    assert_ok(dev->add(dev, n, wb_f32_rows(x), wb_f32_rows(sum)));
    assert_ok(dev->clamp(dev, n, 1.5f, wb_f32_rows(clamped)));
    assert_ok(dev->clamp_backward(dev, n, 1.5f, wb_f32_rows(x), wb_f32_rows(dx)));
    for (int64_t i = 0; i < n; i++) {
        assert_true(sum[i] == x[i] + y[i]);
        assert_true(clamped[i] == fminf(fmaxf(x[i], -1.5f), 1.5f));
        assert_true(dx[i] == (fabsf(x[i]) > 1.5f ? 0.0f : y[i]));
    }
    float nan = NAN;
    assert_ok(dev->clamp(dev, 1, 1.0f, wb_f32_rows(&nan)));
    assert_true(isnan(nan));
    free(x), free(y), free(sum), free(clamped), free(dx);
    wb_device_close(dev);
}

static void test_bias(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const int64_t n = 301, width = 131;
    float *b = random_floats(width, -1, 1), *y = random_floats(n * width, -2, 2), *sum = copied(y, n * width);
    float *db = copied(b, width), *expected = copied(b, width);
    assert_ok(dev->bias_forward(dev, n, width, b, wb_f32_rows(sum)));
    assert_ok(dev->bias_backward(dev, n, width, wb_f32_rows(y), db));
    for (int64_t row = 0; row < n; row++)
        for (int64_t i = 0; i < width; i++) {
            assert_true(sum[row * width + i] == y[row * width + i] + b[i]);
            expected[i] += y[row * width + i]; /* ascending rows: the same bits */
        }
    assert_memory_equal(db, expected, (size_t)width * sizeof(float));
    free(b), free(y), free(sum), free(db), free(expected);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),        cmocka_unit_test(test_cast_kv_write_gather_scatter),
        cmocka_unit_test(test_rmsnorm),      cmocka_unit_test(test_rmsnorm_without_weight),
        cmocka_unit_test(test_rope),         cmocka_unit_test(test_rope_of_entries),
        cmocka_unit_test(test_copy_columns), cmocka_unit_test(test_copy_heads),
        cmocka_unit_test(test_swiglu),       cmocka_unit_test(test_add_clamp),
        cmocka_unit_test(test_bias),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
