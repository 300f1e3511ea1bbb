/* test_ops_attention.c - attention against a naive reference in double precision, its backward against
 * central differences. */
#include "gradient_check.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

/* x: q [T, nh * hd], then k [pool, nkv * hd], v [pool, nkv * vd] and, where there are some, sinks [nh]. */
static double attention_element(const wb_attention *a, int64_t pool, const double *x, int64_t t, int64_t head,
                                int64_t d) {
    int64_t hd = a->head_dim, vd = a->value_dim, kv = head / (a->n_heads / a->n_kv_heads);
    const double *q = x + (t * a->n_heads + head) * hd, *k = x + a->T * a->n_heads * hd,
                 *v = k + pool * a->n_kv_heads * hd, *sinks = v + pool * a->n_kv_heads * vd;
    double max = a->sinks ? sinks[head] : -INFINITY, sum = 0.0, out = 0.0;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = 0; j <= a->pos[t]; j++) {
            if (a->window > 0 && j <= a->pos[t] - a->window) continue;
            int64_t block = a->blocks[a->seq[t] * a->max_blocks + j / a->block_size];
            int64_t at = (block * a->block_size + j % a->block_size) * a->n_kv_heads + kv;
            double s = 0.0;
            for (int64_t i = 0; i < hd; i++) s += q[i] * k[at * hd + i];
            s *= (double)a->scale;
            if (pass == 0) max = s > max ? s : max;
            if (pass == 0) continue;
            sum += exp(s - max);
            out += exp(s - max) * v[at * vd + d];
        }
    if (a->sinks) sum += exp(sinks[head] - max);
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
    const int64_t vd = a->value_dim;
    double loss = 0.0;
    for (int64_t i = 0; i < a->T * a->n_heads * vd; i++)
        loss += (double)c->dout[i] *
                attention_element(a, c->pool, x, i / (a->n_heads * vd), i / vd % a->n_heads, i % vd);
    return loss;
}

/* sinks: what is added to random ones in [-1, 1]; NAN: there are none. late: the first sequence begins at a
 * position above 0. */
typedef struct attention_shape {
    int32_t n_heads, n_kv, hd, vd, block_size, window;
    float sinks;
    int64_t longest;
    bool late, backward;
} attention_shape;

enum { SEQS = 3, MAX_BLOCKS = SEQS * 512 };

/* Sequences of random lengths over a shuffled pool. */
static void check_attention(wb_device *dev, attention_shape s) {
    int32_t lengths[SEQS], max_blocks = (int32_t)(s.longest / s.block_size + 1), blocks[MAX_BLOCKS];
    int64_t n_blocks = SEQS * max_blocks, pool = n_blocks * s.block_size, T = 0;
    assert_true(n_blocks <= MAX_BLOCKS);
    for (int64_t i = 0; i < n_blocks; i++) {
        int64_t j = rng_range(0, i);
        blocks[i] = blocks[j], blocks[j] = (int32_t)i;
    }
    for (int i = 0; i < SEQS; i++) T += lengths[i] = (int32_t)rng_range(1, s.longest);
    int32_t *seq = xalloc(T, sizeof *seq), *pos = xalloc(T, sizeof *pos),
            skip_first = s.late ? lengths[0] / 2 : 0;
    int64_t t = 0;
    for (int32_t i = 0; i < SEQS; i++)
        for (int32_t p = i == 0 ? skip_first : 0; p < lengths[i]; p++, t++) seq[t] = i, pos[t] = p;
    T = t;
    const int64_t q_count = T * s.n_heads * s.hd, k_count = pool * s.n_kv * s.hd,
                  v_count = pool * s.n_kv * s.vd, out_count = T * s.n_heads * s.vd;
    const int64_t n_pool = k_count + v_count, n = q_count + n_pool + (isnan(s.sinks) ? 0 : s.n_heads);
    float *x = random_floats(n, -1, 1), *out = floats(out_count), *dout = random_floats(out_count, -1, 1);
    float *sinks = isnan(s.sinks) ? NULL : x + q_count + n_pool;
    for (int32_t h = 0; sinks && h < s.n_heads; h++) sinks[h] += s.sinks;
    uint16_t *half = xalloc(n_pool, sizeof *half);
    for (int64_t i = 0; i < n_pool; i++) {
        half[i] = wb_f32_to_bf16(x[q_count + i]);
        x[q_count + i] = wb_bf16_to_f32(half[i]); /* the same values in both types */
    }
    const attention_case c = {{.T = T,
                               .n_heads = s.n_heads,
                               .n_kv_heads = s.n_kv,
                               .head_dim = s.hd,
                               .value_dim = s.vd,
                               .scale = 1.0f / sqrtf((float)s.hd) * 3.0f,
                               .window = s.window,
                               .sinks = sinks,
                               .q = wb_f32_rows(x),
                               .k = wb_f32_rows(x + q_count),
                               .v = wb_f32_rows(x + q_count + k_count),
                               .seq = seq,
                               .pos = pos,
                               .blocks = blocks,
                               .max_blocks = max_blocks,
                               .block_size = s.block_size},
                              pool,
                              dout};
    double *x2 = doubles(x, n);
    assert_ok(dev->attention_forward(dev, &c.args, wb_f32_rows(out)));
    for (int64_t i = 0; i < out_count; i++) {
        double expected =
            attention_element(&c.args, pool, x2, i / (s.n_heads * s.vd), i / s.vd % s.n_heads, i % s.vd);
        assert_close(out[i], expected, ((double)(s.longest + s.hd) + 20) * 4 * u, "attention", i);
    }
    wb_attention half_args = c.args;
    half_args.k = (wb_rows){half, WB_BF16}, half_args.v = (wb_rows){half + k_count, WB_BF16};
    float *half_out = floats(out_count);
    assert_ok(dev->attention_forward(dev, &half_args, wb_f32_rows(half_out)));
    assert_same_bits(half_out, out, out_count, "attention over bf16");
    if (s.backward) {
        float *grad = random_floats(n, -1, 1), *base = copied(grad, n);
        memset(base, 0, (size_t)q_count * sizeof(float)); /* dq is written, the others added to */
        assert_ok(dev->attention_backward(dev, &c.args, wb_f32_rows(dout), wb_f32_rows(grad),
                                          wb_f32_rows(grad + q_count), wb_f32_rows(grad + q_count + k_count),
                                          sinks ? grad + q_count + n_pool : NULL));
        check_gradient(attention_loss, &c, x, n, grad, base, 1e-5, "attention_backward");
        free(grad), free(base);
        assert_int_equal(dev->attention_backward(dev, &half_args, wb_f32_rows(dout), wb_f32_rows(half_out),
                                                 wb_f32_rows(half_out), wb_f32_rows(half_out), sinks),
                         WB_INVALID_ARGUMENT);
    }
    free(seq), free(pos), free(x), free(out), free(dout), free(half), free(x2), free(half_out);
}

static void test_attention(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    const attention_shape shapes[] = {
        {2, 1, 5, 5, 1, 0, NAN, 7, false, true},
        {4, 2, 4, 4, 3, 0, NAN, 6, true, true},
        {3, 3, 2, 2, 2, 0, NAN, 9, false, true},
        {6, 2, 20, 20, 4, 0, NAN, 40, true, false},
        {1, 1, 300, 300, 16, 0, NAN, 30, false, false}, /* a head wider than a panel is long */
        {2, 1, 16, 16, 16, 0, NAN, 600, true, false},   /* more keys than a panel is long */
        {56, 1, 8, 8, 5, 0, NAN, 12, false, false},     /* a group larger than a block */
        {4, 2, 4, 7, 3, 0, NAN, 6, true, true},         /* values wider than keys, and narrower */
        {3, 1, 18, 11, 16, 0, NAN, 70, true, false},
        {4, 2, 3, 3, 2, 0, 0, 9, true, true}, /* sinks among the scores, far above and below them, and none */
        {2, 2, 5, 3, 1, 0, 30, 8, false, true},
        {2, 1, 4, 4, 4, 0, -200, 8, true, true},
        {2, 1, 4, 4, 4, 0, -INFINITY, 8, true, true},
        {4, 2, 4, 4, 1, 1, NAN, 9, true, true}, /* a window of one key, of fewer and of more than there are */
        {4, 1, 4, 2, 3, 3, 0, 40, true, true},
        {2, 1, 4, 4, 16, 17, 0.5f, 40, true, true},
        {4, 2, 4, 4, 3, 100, 0, 12, true, true},
        {6, 2, 20, 12, 4, 37, 0, 150, true, false},
        {1, 1, 16, 16, 16, 300, 1, 700, true, false},
        {56, 1, 8, 8, 5, 9, 0, 40, false, false},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) check_attention(dev, shapes[i]);
    wb_device_close(dev);
}

/* ---- padding ----------------------------------------------------------------------------------------- */

enum { REAL = 9, PADDED = 14, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 5, WIDTH = HEADS * HEAD_DIM };
enum { KV_WIDTH = KV_HEADS * HEAD_DIM };

/* Two sequences of 4 and 5 tokens with rows of padding before, between and behind them. */
static const int32_t padded_seq[PADDED] = {-1, 0, 0, 0, 0, -1, -1, 1, 1, 1, 1, 1, -1, -1};

/* Rows of `dtype`, their values in [-1, 1]. */
static wb_rows random_rows(wb_dtype dtype, int64_t n) {
    float *values = random_floats(n, -1, 1);
    if (dtype == WB_F32) return wb_f32_rows(values);
    uint16_t *halves = xalloc(n, sizeof *halves);
    for (int64_t i = 0; i < n; i++) halves[i] = wb_f32_to_bf16(values[i]);
    free(values);
    return (wb_rows){halves, WB_BF16};
}

/* The rows [row, row + 1) of `width` elements. */
static void *row_of(wb_rows rows, int64_t row, int64_t width) {
    return wb_rows_from(rows, row * width).data;
}

/* All bits set: a NaN in either dtype. */
static wb_rows poisoned_rows(wb_dtype dtype, int64_t n) {
    void *data = xalloc(n, wb_dtype_size(dtype));
    memset(data, 0xFF, (size_t)n * wb_dtype_size(dtype));
    return (wb_rows){data, dtype};
}

/* expected[4]: out, dq, dk and dv without padding; found[4] with it. */
static void expect_padded(const int32_t *row, wb_dtype dtype, const wb_rows *expected, const wb_rows *found) {
    const size_t row_bytes = WIDTH * wb_dtype_size(dtype);
    static const uint8_t zeros[WIDTH * sizeof(float)];
    for (int i = 0; i < 2; i++) {
        for (int r = 0; r < REAL; r++)
            assert_memory_equal(row_of(found[i], row[r], WIDTH), row_of(expected[i], r, WIDTH), row_bytes);
        for (int t = 0; t < PADDED; t++)
            if (padded_seq[t] < 0) assert_memory_equal(row_of(found[i], t, WIDTH), zeros, row_bytes);
    }
    for (int i = 2; i < 4; i++)
        assert_memory_equal(found[i].data, expected[i].data, REAL * KV_WIDTH * wb_dtype_size(dtype));
}

/* out and dq of padding are zeros, whatever lay there; those of tokens, dk and dv are what they are without
 * padding. */
static void check_padding(wb_device *dev, wb_dtype dtype, int32_t window) {
    const float sinks[HEADS] = {0.3f, -1, 2, 0};
    float dsinks[2][HEADS] = {{1, 2, 3, 4}, {1, 2, 3, 4}}; /* added to */
    const size_t row_bytes = WIDTH * wb_dtype_size(dtype);
    const int32_t blocks[2 * REAL] = {4, 0, 7, 2, 0, 0, 0, 0, 0, 8, 1, 5, 3, 6};
    int32_t seq[REAL], pos[REAL], padded_pos[PADDED] = {0}, row[REAL], n = 0;
    for (int32_t t = 0; t < PADDED; t++) {
        if (padded_seq[t] < 0) continue;
        padded_pos[t] = n > 0 && seq[n - 1] == padded_seq[t] ? pos[n - 1] + 1 : 0;
        seq[n] = padded_seq[t], pos[n] = padded_pos[t], row[n++] = t;
    }
    assert_int_equal(REAL, n);
    wb_rows q = poisoned_rows(dtype, PADDED * WIDTH), dout = poisoned_rows(dtype, PADDED * WIDTH);
    wb_rows few_q = random_rows(dtype, REAL * WIDTH), few_dout = random_rows(dtype, REAL * WIDTH);
    for (int i = 0; i < REAL; i++) {
        memcpy(row_of(q, row[i], WIDTH), row_of(few_q, i, WIDTH), row_bytes);
        memcpy(row_of(dout, row[i], WIDTH), row_of(few_dout, i, WIDTH), row_bytes);
    }
    const wb_rows k = random_rows(dtype, REAL * KV_WIDTH), v = random_rows(dtype, REAL * KV_WIDTH);
    const wb_attention few = {.T = REAL,
                              .n_heads = HEADS,
                              .n_kv_heads = KV_HEADS,
                              .head_dim = HEAD_DIM,
                              .value_dim = HEAD_DIM,
                              .scale = 0.7f,
                              .window = window,
                              .sinks = sinks,
                              .q = few_q,
                              .k = k,
                              .v = v,
                              .seq = seq,
                              .pos = pos,
                              .blocks = blocks,
                              .max_blocks = REAL,
                              .block_size = 1};
    wb_attention padded = few;
    padded.T = PADDED, padded.q = q, padded.seq = padded_seq, padded.pos = padded_pos;
    wb_rows expected[4], found[4]; /* out, dq, dk, dv */
    for (int i = 0; i < 4; i++) {
        expected[i] = poisoned_rows(dtype, PADDED * WIDTH), found[i] = poisoned_rows(dtype, PADDED * WIDTH);
        if (i < 2) continue;
        memset(expected[i].data, 0, REAL * KV_WIDTH * wb_dtype_size(dtype)); /* added to */
        memset(found[i].data, 0, REAL * KV_WIDTH * wb_dtype_size(dtype));
    }
    assert_ok(dev->attention_forward(dev, &few, expected[0]));
    assert_ok(dev->attention_forward(dev, &padded, found[0]));
    assert_ok(dev->attention_backward(dev, &few, few_dout, expected[1], expected[2], expected[3], dsinks[0]));
    assert_ok(dev->attention_backward(dev, &padded, dout, found[1], found[2], found[3], dsinks[1]));
    assert_same_bits(dsinks[0], dsinks[1], HEADS, "gradients of sinks");
    expect_padded(row, dtype, expected, found);
    void *const arrays[] = {q.data, dout.data, few_q.data, few_dout.data, k.data, v.data};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
    for (int i = 0; i < 4; i++) free(expected[i].data), free(found[i].data);
}

static void test_rows_of_padding_are_zeros(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    for (int32_t window = 0; window < 4; window += 3) {
        check_padding(dev, WB_F32, window);
        check_padding(dev, WB_BF16, window);
    }
    wb_device_close(dev);
}

/* ---- windows and values ------------------------------------------------------------------------------ */

enum { WIDE = 8, MOST = 400, PAGE = 16, PAGES = MOST / PAGE };

/* A query at position pos of a sequence whose pages lie backwards. */
static wb_attention one_query(const float *q, const float *k, const float *v, const int32_t *pos,
                              const int32_t *blocks) {
    static const int32_t seq[1] = {0};
    return (wb_attention){.T = 1,
                          .n_heads = 1,
                          .n_kv_heads = 1,
                          .head_dim = WIDE,
                          .value_dim = WIDE,
                          .scale = 0.9f,
                          .q = wb_f32_rows(q),
                          .k = wb_f32_rows(k),
                          .v = wb_f32_rows(v),
                          .seq = seq,
                          .pos = pos,
                          .blocks = blocks,
                          .max_blocks = PAGES,
                          .block_size = PAGE};
}

/* A query through a window has the bits of one that sees all keys, of which those before the window have a
 * score of -infinity, in q and out as in gradients. What lies before the window is not looked at: pages of
 * which the window has nothing are not in the table, and other rows are NaN. */
static void check_window(wb_device *dev, int32_t at, int32_t window) {
    float *k = random_floats(MOST * WIDE, -1, 1), *v = random_floats(MOST * WIDE, -1, 1),
          *q = random_floats(WIDE, -2, 2), *dout = random_floats(WIDE, -1, 1);
    float *out[2], *dq[2], *dk[2], *dv[2], sink = 0.25f, dsink[2] = {1, 1};
    int32_t blocks[PAGES];
    for (int32_t i = 0; i < PAGES; i++) blocks[i] = PAGES - 1 - i;
    q[WIDE - 1] = 1;
    for (int i = 0; i < 2; i++) {
        const int32_t first = at - window + 1;
        for (int32_t j = 0; j < MOST; j++) {
            float *key = k + (blocks[j / PAGE] * PAGE + j % PAGE) * WIDE;
            key[WIDE - 1] = j < first ? -INFINITY : 0;
            for (int d = 0; d < WIDE && i == 1 && j < first; d++) key[d] = v[key - k + d] = NAN;
        }
        for (int32_t b = 0; b < first / PAGE && i == 1; b++) blocks[b] = INT32_MAX / PAGE;
        out[i] = floats(WIDE), dq[i] = floats(WIDE), dk[i] = floats(MOST * WIDE), dv[i] = floats(MOST * WIDE);
        wb_attention a = one_query(q, k, v, &at, blocks);
        a.window = i == 1 ? window : 0, a.sinks = &sink;
        memset(dk[i], 0, MOST * WIDE * sizeof(float)), memset(dv[i], 0, MOST * WIDE * sizeof(float));
        assert_ok(dev->attention_forward(dev, &a, wb_f32_rows(out[i])));
        /* 0 times -infinity is no gradient of a key, nor of q */
        for (int64_t j = 0; j < MOST * WIDE; j++)
            if (isinf(k[j])) k[j] = -1e30f;
        assert_ok(dev->attention_backward(dev, &a, wb_f32_rows(dout), wb_f32_rows(dq[i]), wb_f32_rows(dk[i]),
                                          wb_f32_rows(dv[i]), &dsink[i]));
    }
    assert_same_bits(out[0], out[1], WIDE, "out");
    assert_same_bits(dq[0], dq[1], WIDE - 1, "dq");
    assert_same_bits(dsink, dsink + 1, 1, "dsink");
    for (int64_t i = 0; i < MOST * WIDE; i++) {
        assert_true(dk[0][i] == dk[1][i]);
        assert_true(dv[0][i] == dv[1][i]);
    }
    for (int i = 0; i < 2; i++) free(out[i]), free(dq[i]), free(dk[i]), free(dv[i]);
    free(k), free(v), free(q), free(dout);
}

static void test_a_window_only_masks(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    for (int i = 0; i < 60; i++) {
        const int32_t at = (int32_t)rng_range(0, MOST - 1);
        check_window(dev, at, i % 10 == 9 ? INT32_MAX : (int32_t)rng_range(1, i % 2 ? 40 : MOST));
    }
    wb_device_close(dev);
}

/* Values that are the beginning of keys have the bits of the same values apart, and no backward. */
static void test_values_in_keys(void **state) {
    (void)state;
    enum { NARROW = 5 };
    wb_device *dev = open_cpu(2);
    const int32_t at = 37, blocks[PAGES] = {3, 1, 0};
    float *k = random_floats(4 * PAGE * WIDE, -1, 1), *q = random_floats(WIDE, -2, 2);
    float v[4 * PAGE * NARROW], out[2][WIDE];
    for (int i = 0; i < 4 * PAGE * NARROW; i++) v[i] = k[i / NARROW * WIDE + i % NARROW];
    for (int i = 0; i < 2; i++) {
        wb_attention a = one_query(q, k, i == 0 ? v : k, &at, blocks);
        a.value_dim = NARROW;
        assert_ok(dev->attention_forward(dev, &a, wb_f32_rows(out[i])));
        if (i == 0) continue;
        const wb_rows d = wb_f32_rows(q);
        assert_int_equal(dev->attention_backward(dev, &a, d, d, d, d, NULL), WB_INVALID_ARGUMENT);
        assert_non_null(strstr(wb_error_message(), "found them in the keys (value_dim 5 of 8)"));
        a.value_dim = WIDE + 1;
        assert_int_equal(dev->attention_forward(dev, &a, d), WB_INVALID_ARGUMENT);
        assert_non_null(strstr(wb_error_message(), "at most their 8 elements, found 9"));
    }
    assert_same_bits(out[0], out[1], NARROW, "values in keys");
    free(k), free(q);
    wb_device_close(dev);
}

static void test_refusals(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const int32_t at = 0, blocks[PAGES] = {0};
    float x[PAGE * WIDE] = {0};
    const wb_rows rows = wb_f32_rows(x);
    wb_attention a = one_query(x, x, x, &at, blocks);
    a.value_dim = 0;
    assert_int_equal(dev->attention_forward(dev, &a, rows), WB_INVALID_ARGUMENT);
    assert_non_null(
        strstr(wb_error_message(), "head_dim 8, value_dim 0 and block_size 16: expected 1 or more"));
    a.value_dim = WIDE, a.window = -3;
    assert_int_equal(dev->attention_forward(dev, &a, rows), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "window: expected 0 or more, found -3"));
    a.window = 0, a.sinks = x;
    assert_int_equal(dev->attention_backward(dev, &a, rows, rows, rows, rows, NULL), WB_INVALID_ARGUMENT);
    assert_non_null(
        strstr(wb_error_message(), "dsinks: expected an array, since there are sinks, found NULL"));
    a.sinks = NULL;
    assert_int_equal(dev->attention_backward(dev, &a, rows, rows, rows, rows, x), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "dsinks: expected NULL, since there are no sinks"));
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_rows_of_padding_are_zeros),
        cmocka_unit_test(test_a_window_only_masks),
        cmocka_unit_test(test_values_in_keys),
        cmocka_unit_test(test_refusals),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
