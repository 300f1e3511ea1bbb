/* test_ops.c - every op of the CPU's table but matmul (test_matmul.c) and the router (test_router.c)
 * against a naive reference in double precision; every backward op against central differences of that
 * reference. Tolerances are multiples of the float's unit roundoff u = 2^-24 times the size of what is
 * summed. */
#include "ops_test.h"

static const double u = 0x1p-24;

/* ---- gradients ------------------------------------------------------------------------------- */

/* A scalar function of x[n] in double precision. */
typedef double (*loss_function)(const double *x, const void *context);

static double *doubles(const float *x, int64_t n) {
    double *y = xalloc(n, sizeof(double));
    for (int64_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

/* gradient[i] - base[i] is d loss / d x[i]. `base` NULL: zeros. */
static void check_gradient(loss_function loss, const void *context, const float *x, int64_t n,
                           const float *gradient, const float *base, double tolerance, const char *what) {
    double *point = doubles(x, n);
    for (int64_t i = 0; i < n; i++) {
        const double h = 1e-5, at = point[i];
        point[i] = at + h;
        double above = loss(point, context);
        point[i] = at - h;
        double below = loss(point, context);
        point[i] = at;
        double expected = (above - below) / (2 * h) + (base ? (double)base[i] : 0.0);
        assert_close(gradient[i], expected, tolerance * (1.0 + fabs(expected)), what, i);
    }
    free(point);
}

/* ---- functions of router_rules.h ------------------------------------------------------------- */

static double ulp_of(double x) {
    return ldexp(1.0, (fabs(x) < 0x1p-126 ? -126 : ilogb(x)) - 23);
}

static void test_functions_are_accurate(void **state) {
    (void)state;
    for (int i = 0; i < 200000; i++) {
        float x = i % 2 == 0 ? rng_uniform(-110.0f, 90.0f) : rng_uniform(-2.0f, 2.0f);
        double e = exp((double)x), s = 1.0 / (1.0 + exp(-(double)x));
        double p = x > 0 ? (double)x + log1p(exp(-(double)x)) : log1p(exp((double)x));
        if (e < 3.4e38) assert_close(wb_expf(x), e, 1.1 * ulp_of(e), "exp", i);
        assert_close(wb_sigmoid(x), s, 3.0 * ulp_of(s), "sigmoid", i);
        assert_close(wb_softplus(x), p, 3.0 * ulp_of(p), "softplus", i);
        double below_normal = p < 1e-37 ? 0x1p-74 : 0.0; /* where softplus itself has few bits left */
        assert_close(wb_sqrtsoftplus(x), sqrt(p), 4.0 * ulp_of(sqrt(p)) + below_normal, "sqrtsoftplus", i);
        assert_close(wb_silu(x), (double)x * s,
                     4.0 * ulp_of((double)x * s) + fabs((double)x) * 3.0 * ulp_of(s), "silu", i);
        float y = wb_expf(x);
        if (y > 0.0f && y < INFINITY)
            assert_close(wb_logf(y), log((double)y), 2.5 * ulp_of(log((double)y)), "log", i);
    }
}

static void test_functions_at_extremes(void **state) {
    (void)state;
    assert_true(wb_expf(-INFINITY) == 0.0f && wb_expf(-1e30f) == 0.0f && wb_expf(0.0f) == 1.0f);
    assert_true(isinf(wb_expf(INFINITY)) && isinf(wb_expf(89.0f)) && isnan(wb_expf(NAN)));
    assert_true(wb_expf(88.5f) < INFINITY && wb_expf(-100.0f) > 0.0f);
    assert_true(wb_logf(0.0f) == -INFINITY && isinf(wb_logf(INFINITY)) && isnan(wb_logf(-1.0f)) &&
                isnan(wb_logf(NAN)));
    assert_true(wb_logf(1.0f) == 0.0f);
    assert_true(wb_sigmoid(-INFINITY) == 0.0f && wb_sigmoid(INFINITY) == 1.0f && wb_sigmoid(0.0f) == 0.5f);
    assert_true(wb_softplus(-INFINITY) == 0.0f && isinf(wb_softplus(INFINITY)));
    assert_true(isnan(wb_sigmoid(NAN)) && isnan(wb_softplus(NAN)) && isnan(wb_sqrtsoftplus(NAN)));
}

static void test_bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (int i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)rng_next();
        if (i % 4 == 0) bits = (bits & 0xffff0000u) | 0x8000u; /* a tie */
        float x = wb_bits_float(bits), found = wb_bf16_to_f32(wb_f32_to_bf16(x));
        if (isnan(x)) {
            assert_true(isnan(found));
            continue;
        }
        uint32_t below = bits & 0xffff0000u, above = below + 0x10000u;
        if ((below & 0x7f800000u) == 0x7f800000u || (above & 0x7f800000u) == 0x7f800000u) continue;
        double low = fabs((double)x - (double)wb_bits_float(below)),
               high = fabs((double)x - (double)wb_bits_float(above));
        uint32_t expected = low < high || (low == high && (below & 0x10000u) == 0) ? below : above;
        assert_int_equal(wb_float_bits(found), expected);
    }
    assert_true(isinf(wb_bf16_to_f32(wb_f32_to_bf16(3.4e38f))));
    assert_true(wb_bf16_to_f32(wb_f32_to_bf16(-INFINITY)) == -INFINITY);
}

/* ---- embedding, cast, cache writes, gathers: exact ------------------------------------------- */

static void test_embed(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 41, H = 70, V = 9;
    float *table = random_floats(V * H, -1, 1), *y = floats(T * H), *dy = random_floats(T * H, -1, 1);
    uint16_t *half = xalloc(V * H, sizeof *half);
    int32_t *tokens = xalloc(T, sizeof *tokens);
    for (int64_t t = 0; t < T; t++) tokens[t] = (int32_t)rng_range(0, V - 1);
    assert_ok(dev->cast(dev, V * H, table, WB_F32, half, WB_BF16));
    assert_ok(dev->embed_forward(dev, T, H, tokens, table, WB_F32, y));
    for (int64_t t = 0; t < T; t++) assert_same_bits(y + t * H, table + tokens[t] * H, H, "embed f32");
    assert_ok(dev->embed_forward(dev, T, H, tokens, half, WB_BF16, y));
    for (int64_t i = 0; i < T * H; i++) assert_true(y[i] == wb_bf16_to_f32(half[tokens[i / H] * H + i % H]));
    float *dtable = random_floats(V * H, -1, 1), *expected = copied(dtable, V * H);
    for (int64_t i = 0; i < T * H; i++) expected[tokens[i / H] * H + i % H] += dy[i];
    assert_ok(dev->embed_backward(dev, T, H, tokens, dy, dtable));
    assert_same_bits(dtable, expected, V * H, "dtable");
    assert_int_equal(dev->embed_forward(dev, T, H, tokens, table, WB_F16, y), WB_INVALID_ARGUMENT);
    free(table), free(y), free(dy), free(half), free(tokens), free(dtable), free(expected);
    wb_device_close(dev);
}

static void test_cast_kv_write_gather(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 23, width = 37, pool = 40;
    float *x = random_floats(T * width, -3, 3), *cache = floats(pool * width), *back = floats(T * width);
    uint16_t *half_cache = xalloc(pool * width, sizeof *half_cache), *half = xalloc(T * width, sizeof *half);
    int64_t rows[23];
    int32_t index[23];
    for (int64_t t = 0; t < T; t++)
        rows[t] = index[t] = (int32_t)(t * 17 % pool); /* 17 and 40 have no common factor */
    assert_ok(dev->kv_write(dev, T, width, x, rows, cache, WB_F32));
    assert_ok(dev->kv_write(dev, T, width, x, rows, half_cache, WB_BF16));
    assert_ok(dev->gather_rows(dev, T, width, index, cache, back));
    assert_same_bits(back, x, T * width, "kv_write and gather");
    assert_ok(dev->cast(dev, T * width, x, WB_F32, half, WB_BF16));
    assert_ok(dev->cast(dev, T * width, half, WB_BF16, back, WB_F32));
    for (int64_t i = 0; i < T * width; i++) {
        assert_int_equal(half[i], wb_f32_to_bf16(x[i]));
        assert_true(back[i] == wb_bf16_to_f32(half[i]));
        assert_int_equal(half_cache[rows[i / width] * width + i % width], half[i]);
    }
    assert_int_equal(dev->cast(dev, 1, x, WB_F32, half, WB_I32), WB_INVALID_ARGUMENT);
    assert_int_equal(dev->kv_write(dev, T, width, x, rows, cache, WB_U8), WB_INVALID_ARGUMENT);
    free(x), free(cache), free(back), free(half_cache), free(half);
    wb_device_close(dev);
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

typedef struct norm_case {
    int64_t n, width;
    double eps;
    const float *x, *w, *dy;
} norm_case;

static double norm_element(const norm_case *c, const double *x, const double *w, int64_t i) {
    int64_t row = i / c->width * c->width;
    double sum = 0.0;
    for (int64_t j = 0; j < c->width; j++) sum += x[row + j] * x[row + j];
    return x[i] / sqrt(sum / (double)c->width + c->eps) * w[i % c->width];
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
    for (int round = 0; round < 5; round++) {
        int64_t n = rng_range(1, 5), width = widths[round], count = n * width;
        float *xw = random_floats(count + width, -2, 2), *w = xw + count, *y = floats(count);
        float *dy = random_floats(count, -1, 1), *grad = floats(count + width), *dw = grad + count;
        for (int64_t i = 0; i < count; i++)
            xw[i] += xw[i] < 0.0f ? -0.5f : 0.5f; /* a row of about 0 has no slope */
        norm_case c = {n, width, 1e-6, xw, w, dy};
        double *x2 = doubles(xw, count + width);
        assert_ok(dev->rmsnorm_forward(dev, n, width, xw, w, 1e-6f, y));
        for (int64_t i = 0; i < count; i++)
            assert_close(y[i], norm_element(&c, x2, x2 + count, i),
                         ((double)width + 8) * u * fabs((double)y[i]) + 1e-30, "rmsnorm", i);
        float *base = floats(count + width);
        for (int64_t i = 0; i < width; i++) base[count + i] = dw[i] = rng_uniform(-1, 1);
        assert_ok(dev->rmsnorm_backward(dev, n, width, xw, w, 1e-6f, dy, grad, dw));
        check_gradient(norm_loss, &c, xw, count + width, grad, base, 4e-6, "rmsnorm_backward");
        float *in_place = copied(dy, count); /* dx may be dy, dw may be NULL */
        assert_ok(dev->rmsnorm_backward(dev, n, width, xw, w, 1e-6f, in_place, in_place, NULL));
        assert_same_bits(in_place, grad, count, "rmsnorm_backward in place");
        assert_ok(dev->rmsnorm_forward(dev, n, width, xw, w, 1e-6f, xw));
        assert_same_bits(xw, y, count, "rmsnorm in place");
        free(xw), free(y), free(dy), free(grad), free(x2), free(base), free(in_place);
    }
    wb_device_close(dev);
}

/* ---- rotary embedding ------------------------------------------------------------------------ */

static void test_rope(void **state) {
    (void)state;
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
    assert_ok(dev->rope(dev, T, (int32_t)heads, (int32_t)hd, (int32_t)rot, pos, c, s, false, y));
    for (int64_t i = 0; i < T * heads * hd; i++) {
        int64_t d = i % hd, at = pos[i / (heads * hd)] * half + d % half;
        double cosine = (double)c[at], sine = (double)s[at], expected = (double)x[i];
        if (d < half)
            expected = (double)x[i] * cosine - (double)x[i + half] * sine;
        else if (d < rot)
            expected = (double)x[i] * cosine + (double)x[i - half] * sine;
        assert_close(y[i], expected, 4 * u, "rope", i);
    }
    /* The backward is the transpose: <rope(x), d> = <x, rope'(d)>; a rotation's transpose is its inverse. */
    float *d = random_floats(T * heads * hd, -1, 1), *dx = copied(d, T * heads * hd);
    assert_ok(dev->rope(dev, T, (int32_t)heads, (int32_t)hd, (int32_t)rot, pos, c, s, true, dx));
    double left = 0.0, right = 0.0;
    for (int64_t i = 0; i < T * heads * hd; i++)
        left += (double)y[i] * (double)d[i], right += (double)x[i] * (double)dx[i];
    assert_close(left, right, 1e-5, "rope transpose", 0);
    assert_ok(dev->rope(dev, T, (int32_t)heads, (int32_t)hd, (int32_t)rot, pos, c, s, true, y));
    for (int64_t i = 0; i < T * heads * hd; i++) assert_close(y[i], x[i], 1e-6, "rope inverse", i);
    assert_int_equal(dev->rope(dev, T, 3, 10, 12, pos, c, s, true, y), WB_INVALID_ARGUMENT);
    free(c), free(s), free(x), free(y), free(d), free(dx);
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
    assert_ok(dev->swiglu_forward(dev, n, F, x, y));
    for (int64_t i = 0; i < n * F; i++)
        assert_close(y[i], swiglu_element(x2, F, i), 10 * u * fabs((double)y[i]) + 1e-30, "swiglu", i);
    assert_ok(dev->swiglu_backward(dev, n, F, x, d, dx));
    check_gradient(swiglu_loss, &c, x, n * 2 * F, dx, NULL, 2e-6, "swiglu_backward");
    assert_ok(dev->swiglu_backward(dev, n, F, x, d, x));
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
    assert_ok(dev->add(dev, n, x, sum));
    assert_ok(dev->clamp(dev, n, 1.5f, clamped));
    assert_ok(dev->clamp_backward(dev, n, 1.5f, x, dx));
    for (int64_t i = 0; i < n; i++) {
        assert_true(sum[i] == x[i] + y[i]);
        assert_true(clamped[i] == fminf(fmaxf(x[i], -1.5f), 1.5f));
        assert_true(dx[i] == (fabsf(x[i]) > 1.5f ? 0.0f : y[i]));
    }
    float nan = NAN;
    assert_ok(dev->clamp(dev, 1, 1.0f, &nan));
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
    assert_ok(dev->bias_forward(dev, n, width, b, sum));
    assert_ok(dev->bias_backward(dev, n, width, y, db));
    for (int64_t row = 0; row < n; row++)
        for (int64_t i = 0; i < width; i++) {
            assert_true(sum[row * width + i] == y[row * width + i] + b[i]);
            expected[i] += y[row * width + i]; /* ascending rows: the same bits */
        }
    assert_memory_equal(db, expected, (size_t)width * sizeof(float));
    free(b), free(y), free(sum), free(db), free(expected);
    wb_device_close(dev);
}

/* ---- combine --------------------------------------------------------------------------------- */

typedef struct combine_case {
    int64_t T, K, H;
    const int32_t *choice_row;
    const float *dy;
} combine_case;

/* x: rows [T * K, H], then weights [T, K]. */
static double combine_element(const combine_case *c, const double *x, int64_t t, int64_t i) {
    double y = 0.0;
    for (int64_t k = 0; k < c->K; k++)
        y += x[c->T * c->K * c->H + t * c->K + k] * x[c->choice_row[t * c->K + k] * c->H + i];
    return y;
}

static double combine_loss(const double *x, const void *context) {
    const combine_case *c = context;
    double loss = 0.0;
    for (int64_t i = 0; i < c->T * c->H; i++)
        loss += (double)c->dy[i] * combine_element(c, x, i / c->H, i % c->H);
    return loss;
}

static void test_moe_sort_and_combine(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 9, K = 3, H = 19, E = 7, n = T * K * H + T * K;
    uint8_t ids[27];
    int32_t choice_row[27], row_token[27], seen = 0;
    int64_t counts[7];
    for (int i = 0; i < 27; i++) ids[i] = (uint8_t)rng_range(0, E - 2); /* the last expert stays empty */
    assert_ok(dev->moe_sort(dev, T, (int32_t)K, (int32_t)E, (wb_ids){ids, WB_U8, K}, choice_row, row_token,
                            counts));
    for (int e = 0; e < E; e++) { /* stable: pairs of an expert in (t, k) order */
        int64_t count = 0;
        for (int i = 0; i < 27; i++)
            if (ids[i] == e) {
                assert_int_equal(choice_row[i], seen);
                assert_int_equal(row_token[seen++], i / K);
                count++;
            }
        assert_int_equal(counts[e], count);
    }
    float *x = random_floats(n, -1, 1), *w = x + T * K * H, *y = floats(T * H),
          *dy = random_floats(T * H, -1, 1);
    float *grad = floats(n), *accumulated = random_floats(T * H, -1, 1), *base = copied(accumulated, T * H);
    double *x2 = doubles(x, n);
    combine_case c = {T, K, H, choice_row, dy};
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, x, choice_row, w, false, y));
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, x, choice_row, w, true, accumulated));
    for (int64_t i = 0; i < T * H; i++) {
        double expected = combine_element(&c, x2, i / H, i % H);
        assert_close(y[i], expected, 8 * u * (double)K, "moe_combine", i);
        assert_close(accumulated[i], (double)base[i] + expected, 8 * u * (double)K, "moe_combine accumulate",
                     i);
    }
    assert_ok(dev->moe_combine_backward(dev, T, (int32_t)K, H, x, choice_row, w, dy, grad, grad + T * K * H));
    check_gradient(combine_loss, &c, x, n, grad, NULL, 2e-6, "moe_combine_backward");
    assert_ok(dev->moe_combine(dev, T, (int32_t)K, H, x, choice_row, NULL, false, y)); /* weights 1 */
    for (int64_t i = 0; i < T * K; i++) x2[T * K * H + i] = 1.0;
    for (int64_t i = 0; i < T * H; i++)
        assert_close(y[i], combine_element(&c, x2, i / H, i % H), 8 * u * (double)K, "moe_combine of ones",
                     i);
    ids[4] = (uint8_t)E;
    memset(counts, 0x55, sizeof counts);
    assert_int_equal(
        dev->moe_sort(dev, T, (int32_t)K, (int32_t)E, (wb_ids){ids, WB_U8, K}, choice_row, row_token, counts),
        WB_INVALID_ARGUMENT);
    assert_int_equal(counts[0], 0x5555555555555555);
    free(x), free(y), free(dy), free(grad), free(accumulated), free(base), free(x2);
    wb_device_close(dev);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* x: q [T, nh * hd], then k and v [pool, nkv * hd]. */
static double attention_element(const wb_attention *a, int64_t pool, const double *x, int64_t t, int64_t head,
                                int64_t d) {
    int64_t hd = a->head_dim, kv = head / (a->n_heads / a->n_kv_heads), width = a->n_kv_heads * hd;
    const double *q = x + (t * a->n_heads + head) * hd, *k = x + a->T * a->n_heads * hd,
                 *v = k + pool * width;
    double max = -INFINITY, sum = 0.0, out = 0.0;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = 0; j <= a->pos[t]; j++) {
            int64_t block = a->blocks[a->seq[t] * a->max_blocks + j / a->block_size];
            int64_t at = (block * a->block_size + j % a->block_size) * width + kv * hd;
            double s = 0.0;
            for (int64_t i = 0; i < hd; i++) s += q[i] * k[at + i];
            s *= (double)a->scale;
            if (pass == 0) max = s > max ? s : max;
            if (pass == 0) continue;
            sum += exp(s - max);
            out += exp(s - max) * v[at + d];
        }
    return out / sum;
}

typedef struct attention_case {
    wb_attention args;
    int64_t pool;
    const float *dout;
} attention_case;

static double attention_loss(const double *x, const void *context) {
    const attention_case *c = context;
    const wb_attention *a = &c->args;
    double loss = 0.0;
    for (int64_t i = 0; i < a->T * a->n_heads * a->head_dim; i++)
        loss += (double)c->dout[i] * attention_element(a, c->pool, x, i / (a->n_heads * a->head_dim),
                                                       i / a->head_dim % a->n_heads, i % a->head_dim);
    return loss;
}

/* Sequences of random lengths over a shuffled pool; the first starts at a position above 0 when `late`. */
static void check_attention(wb_device *dev, int32_t n_heads, int32_t n_kv, int32_t hd, int32_t block_size,
                            int64_t longest, bool late, bool backward) {
    enum { SEQS = 3 };
    int32_t lengths[SEQS], max_blocks = (int32_t)(longest / block_size + 1), blocks[SEQS * 512];
    int64_t n_blocks = SEQS * max_blocks, pool = n_blocks * block_size, T = 0;
    assert_true(SEQS * max_blocks <= SEQS * 512);
    for (int64_t i = 0; i < n_blocks; i++) {
        int64_t j = rng_range(0, i);
        blocks[i] = blocks[j], blocks[j] = (int32_t)i;
    }
    for (int i = 0; i < SEQS; i++) T += lengths[i] = (int32_t)rng_range(1, longest);
    int32_t *seq = xalloc(T, sizeof *seq), *pos = xalloc(T, sizeof *pos),
            skip_first = late ? lengths[0] / 2 : 0;
    int64_t t = 0;
    for (int32_t i = 0; i < SEQS; i++)
        for (int32_t p = i == 0 ? skip_first : 0; p < lengths[i]; p++, t++) seq[t] = i, pos[t] = p;
    T = t;
    int64_t q_count = T * n_heads * hd, kv_count = pool * n_kv * hd, n = q_count + 2 * kv_count;
    float *x = random_floats(n, -1, 1), *out = floats(q_count), *dout = random_floats(q_count, -1, 1);
    uint16_t *half = xalloc(2 * kv_count, sizeof *half);
    for (int64_t i = 0; i < kv_count * 2; i++) {
        half[i] = wb_f32_to_bf16(x[q_count + i]);
        x[q_count + i] = wb_bf16_to_f32(half[i]); /* the same values in both types */
    }
    attention_case c = {{T, n_heads, n_kv, hd, 1.0f / sqrtf((float)hd) * 3.0f, x, x + q_count,
                         x + q_count + kv_count, WB_F32, seq, pos, blocks, max_blocks, block_size},
                        pool,
                        dout};
    double *x2 = doubles(x, n);
    assert_ok(dev->attention_forward(dev, &c.args, out));
    for (int64_t i = 0; i < q_count; i++) {
        double expected = attention_element(&c.args, pool, x2, i / (n_heads * hd), i / hd % n_heads, i % hd);
        assert_close(out[i], expected, ((double)(longest + hd) + 20) * 4 * u, "attention", i);
    }
    wb_attention half_args = c.args;
    half_args.k = half, half_args.v = half + kv_count, half_args.kv_dtype = WB_BF16;
    float *half_out = floats(q_count);
    assert_ok(dev->attention_forward(dev, &half_args, half_out));
    assert_same_bits(half_out, out, q_count, "attention over bf16");
    if (backward) {
        float *grad = random_floats(n, -1, 1), *base = copied(grad, n);
        memset(base, 0, (size_t)q_count * sizeof(float)); /* dq is written, dk and dv added to */
        assert_ok(
            dev->attention_backward(dev, &c.args, dout, grad, grad + q_count, grad + q_count + kv_count));
        check_gradient(attention_loss, &c, x, n, grad, base, 1e-5, "attention_backward");
        free(grad), free(base);
        assert_int_equal(dev->attention_backward(dev, &half_args, dout, half_out, half_out, half_out),
                         WB_INVALID_ARGUMENT);
    }
    free(seq), free(pos), free(x), free(out), free(dout), free(half), free(x2), free(half_out);
}

static void test_attention(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    check_attention(dev, 2, 1, 5, 1, 7, false, true);
    check_attention(dev, 4, 2, 4, 3, 6, true, true);
    check_attention(dev, 3, 3, 2, 2, 9, false, true);
    check_attention(dev, 6, 2, 20, 4, 40, true, false);
    check_attention(dev, 1, 1, 300, 16, 30, false, false); /* a head wider than a panel is long */
    check_attention(dev, 2, 1, 16, 16, 600, true, false);  /* more keys than a panel is long */
    check_attention(dev, 56, 1, 8, 5, 12, false, false);   /* a group larger than a block */
    wb_device_close(dev);
}

/* ---- log-probabilities and sampling ---------------------------------------------------------- */

static double logprob_of(const double *z, int64_t V, int64_t target) {
    double max = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < V; i++) max = z[i] > max ? z[i] : max;
    for (int64_t i = 0; i < V; i++) sum += exp(z[i] - max);
    return z[target] - max - log(sum);
}

typedef struct logprob_case {
    int64_t T, V;
    const int32_t *targets;
    const float *d;
} logprob_case;

static double logprob_loss(const double *x, const void *context) {
    const logprob_case *c = context;
    double loss = 0.0;
    for (int64_t t = 0; t < c->T; t++)
        if (c->targets[t] >= 0) loss += (double)c->d[t] * logprob_of(x + t * c->V, c->V, c->targets[t]);
    return loss;
}

static void test_logprob(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const int64_t T = 5, V = 53;
    int32_t targets[5] = {0, 52, -1, 17, 3};
    float *x = random_floats(T * V, -8, 8), *dx = floats(T * V), d[5], y[5];
    for (int i = 0; i < 5; i++) d[i] = rng_uniform(-1, 1);
    double *x2 = doubles(x, T * V);
    assert_ok(dev->logprob_forward(dev, T, V, x, targets, y));
    for (int64_t t = 0; t < T; t++) {
        double expected = targets[t] < 0 ? 0.0 : logprob_of(x2 + t * V, V, targets[t]);
        assert_close(y[t], expected, 100 * u * (1 + fabs(expected)), "logprob", t);
    }
    logprob_case c = {T, V, targets, d};
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, d, dx));
    check_gradient(logprob_loss, &c, x, T * V, dx, NULL, 2e-6, "logprob_backward");
    assert_ok(dev->logprob_backward(dev, T, V, x, targets, d, x));
    assert_same_bits(x, dx, T * V, "logprob_backward in place");
    free(x), free(dx), free(x2);
    wb_device_close(dev);
}

/* The kept tokens in drawing order, naively: sorted unless everything is kept. 0 where rounding decides
 * how many. */
static int64_t kept_tokens(const float *z, int64_t V, const wb_sample_params *p, int32_t *ids, double *prob) {
    double max = -INFINITY, total = 0.0, sum = 0.0;
    bool all = (p->top_k == 0 || p->top_k >= V) && p->top_p >= 1.0f;
    for (int64_t i = 0; i < V; i++) max = (double)z[i] > max ? (double)z[i] : max;
    for (int32_t i = 0; i < V; i++) ids[i] = i;
    for (int64_t i = 1; i < V && !all; i++) /* insertion sort: stable, so ids ascend within a tie */
        for (int64_t j = i; j > 0 && z[ids[j]] > z[ids[j - 1]]; j--) {
            int32_t id = ids[j];
            ids[j] = ids[j - 1], ids[j - 1] = id;
        }
    int64_t n = p->top_k > 0 && p->top_k < V ? p->top_k : V, kept = 0;
    for (int64_t i = 0; i < n; i++)
        total += prob[i] = exp(((double)z[ids[i]] - max) / (double)p->temperature);
    while (kept < n && (kept == 0 || all || sum < (double)p->top_p * total)) sum += prob[kept++];
    bool close = !all && (fabs(sum / total - (double)p->top_p) < 1e-5 ||
                          fabs((sum - prob[kept - 1]) / total - (double)p->top_p) < 1e-5);
    for (int64_t i = 0; i < kept; i++) prob[i] /= sum;
    return close ? 0 : kept;
}

static void test_sample(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    enum { B = 64, V = 97 };
    wb_sample_params params[B];
    float *z = floats(B * V), logprobs[B];
    int32_t tokens[B], ids[V];
    double prob[V];
    for (int round = 0; round < 20; round++) {
        for (int64_t i = 0; i < B * V; i++) z[i] = (float)rng_range(-12, 12) * 0.5f; /* ties on purpose */
        for (int b = 0; b < B; b++) {
            if (b % 7 == 0) z[b * V + rng_range(0, V - 1)] = -INFINITY;
            params[b] = (wb_sample_params){
                b % 5 == 0 ? 0.0f : rng_uniform(0.3f, 2.0f), b % 3 == 0 ? (int32_t)rng_range(1, V + 5) : 0,
                b % 2 == 0 ? rng_uniform(0.05f, 0.99f) : 1.0f, rng_uniform(0.0f, 1.0f)};
        }
        params[1].uniform = 0x1.fffffep-1f; /* the last float below 1 still finds a token */
        assert_ok(dev->sample(dev, B, V, z, params, tokens, logprobs));
        for (int b = 0; b < B; b++) {
            const float *row = z + b * V;
            if (params[b].temperature == 0.0f) {
                int32_t best = 0;
                for (int32_t i = 0; i < V; i++) best = row[i] > row[best] ? i : best;
                assert_int_equal(tokens[b], best);
                assert_true(logprobs[b] == 0.0f);
                continue;
            }
            int64_t kept = kept_tokens(row, V, params + b, ids, prob), at = 0;
            while (at < kept && ids[at] != tokens[b]) at++;
            if (kept == 0) continue;
            assert_true(at < kept);
            double below = 0.0;
            for (int64_t i = 0; i < at; i++) below += prob[i];
            assert_true(prob[at] > 0.0);
            assert_close(params[b].uniform, below + prob[at] / 2, prob[at] / 2 + 1e-6,
                         "uniform within the token's share", b);
            assert_close(logprobs[b], log(prob[at]), 1e-5, "logprob of the token", b);
        }
    }
    z[5 * V + 3] = NAN;
    tokens[0] = -7;
    assert_int_equal(dev->sample(dev, B, V, z, params, tokens, logprobs), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "row 5"));
    assert_int_equal(tokens[0], -7);
    free(z);
    wb_device_close(dev);
}

static void test_sample_frequencies(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const float z[4] = {0.0f, 1.0f, 2.0f, -1.0f};
    const int64_t draws = 20000;
    int64_t hits[4] = {0};
    for (int64_t i = 0; i < draws; i++) {
        wb_sample_params p = {1.0f, 3, 1.0f, ((float)i + 0.5f) / (float)draws};
        int32_t token;
        float logprob;
        assert_ok(dev->sample(dev, 1, 4, z, &p, &token, &logprob));
        hits[token]++;
    }
    double total = 1.0 + exp(1.0) + exp(2.0);
    for (int i = 0; i < 3; i++)
        assert_close((double)hits[i] / (double)draws, exp((double)z[i]) / total, 1e-3, "frequency", i);
    assert_int_equal(hits[3], 0);
    wb_device_close(dev);
}

/* ---- optimizer ------------------------------------------------------------------------------- */

static void test_sum_squares_and_adamw(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const int64_t n = 50003;
    float *g = random_floats(n, -2, 2), *w = random_floats(n, -1, 1), *m = floats(n), *v = floats(n);
    double *w2 = doubles(w, n), *m2 = xalloc(n, sizeof(double)), *v2 = xalloc(n, sizeof(double)), sum = 0.0,
           found = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)g[i] * (double)g[i];
    assert_ok(dev->sum_squares(dev, n, g, &found));
    assert_close(found, sum, 1e-12 * sum, "sum_squares", 0);
    for (uint64_t step = 1; step <= 5; step++) {
        wb_adamw h = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, step};
        double b1 = (double)h.beta1, b2 = (double)h.beta2, lr = (double)h.lr;
        assert_ok(dev->adamw(dev, n, &h, g, m, v, w));
        for (int64_t i = 0; i < n; i++) {
            double grad = (double)g[i] * (double)h.grad_scale;
            w2[i] -= lr * (double)h.weight_decay * w2[i];
            m2[i] = b1 * m2[i] + (1 - b1) * grad;
            v2[i] = b2 * v2[i] + (1 - b2) * grad * grad;
            double m_hat = m2[i] / (1 - pow(b1, (double)step)), v_hat = v2[i] / (1 - pow(b2, (double)step));
            w2[i] -= lr * m_hat / (sqrt(v_hat) + (double)h.eps);
            assert_close(w[i], w2[i], 10 * (double)step * u, "adamw", i);
        }
    }
    wb_adamw zero = {.step = 0};
    assert_int_equal(dev->adamw(dev, n, &zero, g, m, v, w), WB_INVALID_ARGUMENT);
    free(g), free(w), free(m), free(v), free(w2), free(m2), free(v2);
    wb_device_close(dev);
}

/* ---- devices --------------------------------------------------------------------------------- */

static void test_device(void **state) {
    (void)state;
    wb_device *dev = open_cpu(0);
    assert_int_equal(dev->backend, WB_BACKEND_CPU);
    assert_true(dev->threads >= 1);
    void *memory = NULL;
    char host[100], back[100];
    memset(host, 0x5a, sizeof host);
    assert_ok(dev->mem_alloc(dev, 0, &memory));
    assert_non_null(memory);
    dev->mem_free(dev, memory);
    assert_ok(dev->mem_alloc(dev, 100, &memory));
    assert_int_equal((uintptr_t)memory % 64, 0);
    assert_ok(dev->to_device(dev, memory, host, 100));
    assert_ok(dev->zero(dev, (char *)memory + 10, 5));
    assert_ok(dev->copy(dev, memory, (char *)memory + 10, 2));
    assert_ok(dev->to_host(dev, back, memory, 100));
    memset(host + 10, 0, 5), memset(host, 0, 2);
    assert_memory_equal(host, back, 100);
    dev->mem_free(dev, memory);
    dev->mem_free(dev, NULL);
    memory = host;
    assert_int_equal(dev->mem_alloc(dev, SIZE_MAX, &memory), WB_OUT_OF_MEMORY);
    assert_ptr_equal(memory, host);
    wb_device_close(dev);
    wb_device_close(NULL);
    dev = NULL;
    assert_int_equal(wb_device_open_cpu(-1, &dev), WB_INVALID_ARGUMENT);
    assert_null(dev);
}

/* T = 0 is valid everywhere and touches nothing. */
static void test_nothing_to_do(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    float x[4] = {1, 2, 3, 4};
    int32_t index[4] = {0};
    uint8_t ids[4] = {0};
    int64_t counts[2] = {5, 5};
    double sum = 9.0;
    wb_router router = {WB_ROUTER_SOFTMAX_NORM, 2, 1, 0, 0, true, 1.0f};
    wb_ids view = {ids, WB_U8, 1};
    wb_topk topk = {.router = router, .logits = x, .ids = view};
    wb_attention attention = {0, 1, 1, 4, 1.0f, x, x, x, WB_F32, index, index, index, 1, 1};
    wb_adamw hyper = {.step = 1};
    assert_ok(dev->embed_forward(dev, 0, 4, index, x, WB_F32, x));
    assert_ok(dev->embed_backward(dev, 0, 4, index, x, x));
    assert_ok(dev->rmsnorm_forward(dev, 0, 4, x, x, 1e-6f, x));
    assert_ok(dev->rmsnorm_backward(dev, 0, 4, x, x, 1e-6f, x, x, x));
    assert_ok(dev->rope(dev, 0, 1, 4, 4, index, x, x, false, x));
    assert_ok(dev->kv_write(dev, 0, 4, x, counts, x, WB_F32));
    assert_ok(dev->attention_forward(dev, &attention, x));
    assert_ok(dev->attention_backward(dev, &attention, x, x, x, x));
    assert_ok(dev->topk(dev, &topk));
    assert_ok(dev->gate_forward(dev, &router, 0, x, view, x));
    assert_ok(dev->gate_backward(dev, &router, 0, x, view, x, x));
    assert_ok(dev->moe_sort(dev, 0, 1, 2, view, index, index, counts));
    assert_ok(dev->gather_rows(dev, 0, 4, index, x, x));
    assert_ok(dev->moe_combine(dev, 0, 1, 4, x, index, x, false, x));
    assert_ok(dev->moe_combine_backward(dev, 0, 1, 4, x, index, x, x, x, x));
    assert_ok(dev->swiglu_forward(dev, 0, 2, x, x));
    assert_ok(dev->swiglu_backward(dev, 0, 2, x, x, x));
    assert_ok(dev->add(dev, 0, x, x));
    assert_ok(dev->clamp(dev, 0, 0.5f, x));
    assert_ok(dev->clamp_backward(dev, 0, 0.5f, x, x));
    assert_ok(dev->logprob_forward(dev, 0, 4, x, index, x));
    assert_ok(dev->logprob_backward(dev, 0, 4, x, index, x, x));
    assert_ok(dev->sample(dev, 0, 4, x, NULL, index, x));
    assert_ok(dev->sum_squares(dev, 0, x, &sum));
    assert_ok(dev->adamw(dev, 0, &hyper, x, x, x, x));
    assert_ok(dev->cast(dev, 0, x, WB_F32, x, WB_BF16));
    for (int i = 0; i < 4; i++) assert_true(x[i] == (float)(i + 1));
    assert_true(counts[0] == 0 && counts[1] == 0 && sum == 0.0);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_functions_are_accurate),
        cmocka_unit_test(test_functions_at_extremes),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_cast_kv_write_gather),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_add_clamp),
        cmocka_unit_test(test_bias),
        cmocka_unit_test(test_moe_sort_and_combine),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_logprob),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_sample_frequencies),
        cmocka_unit_test(test_sum_squares_and_adamw),
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_nothing_to_do),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
