/* test_ops_attention.c - attention against a naive reference in double precision, its backward against
 * central differences. */
#include "gradient_check.h"

/* A float's unit roundoff: tolerances are multiples of it, times the size of what is summed. */
static const double u = 0x1p-24;

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
    attention_case c = {{T, n_heads, n_kv, hd, 1.0f / sqrtf((float)hd) * 3.0f, wb_f32_rows(x),
                         wb_f32_rows(x + q_count), wb_f32_rows(x + q_count + kv_count), seq, pos, blocks,
                         max_blocks, block_size, NULL, wb_f32_rows(NULL)},
                        pool,
                        dout};
    double *x2 = doubles(x, n);
    assert_ok(dev->attention_forward(dev, &c.args, wb_f32_rows(out)));
    for (int64_t i = 0; i < q_count; i++) {
        double expected = attention_element(&c.args, pool, x2, i / (n_heads * hd), i / hd % n_heads, i % hd);
        assert_close(out[i], expected, ((double)(longest + hd) + 20) * 4 * u, "attention", i);
    }
    wb_attention half_args = c.args;
    half_args.k = (wb_rows){half, WB_BF16}, half_args.v = (wb_rows){half + kv_count, WB_BF16};
    float *half_out = floats(q_count);
    assert_ok(dev->attention_forward(dev, &half_args, wb_f32_rows(half_out)));
    assert_same_bits(half_out, out, q_count, "attention over bf16");
    if (backward) {
        float *grad = random_floats(n, -1, 1), *base = copied(grad, n);
        memset(base, 0, (size_t)q_count * sizeof(float)); /* dq is written, dk and dv added to */
        assert_ok(dev->attention_backward(dev, &c.args, wb_f32_rows(dout), wb_f32_rows(grad),
                                          wb_f32_rows(grad + q_count),
                                          wb_f32_rows(grad + q_count + kv_count)));
        check_gradient(attention_loss, &c, x, n, grad, base, 1e-5, "attention_backward");
        free(grad), free(base);
        assert_int_equal(dev->attention_backward(dev, &half_args, wb_f32_rows(dout), wb_f32_rows(half_out),
                                                 wb_f32_rows(half_out), wb_f32_rows(half_out)),
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
static void check_padding(wb_device *dev, wb_dtype dtype) {
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
                              .scale = 0.7f,
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
    assert_ok(dev->attention_backward(dev, &few, few_dout, expected[1], expected[2], expected[3]));
    assert_ok(dev->attention_backward(dev, &padded, dout, found[1], found[2], found[3]));
    expect_padded(row, dtype, expected, found);
    void *const arrays[] = {q.data, dout.data, few_q.data, few_dout.data, k.data, v.data};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
    for (int i = 0; i < 4; i++) free(expected[i].data), free(found[i].data);
}

static void test_rows_of_padding_are_zeros(void **state) {
    (void)state;
    wb_device *dev = open_cpu(2);
    check_padding(dev, WB_F32);
    check_padding(dev, WB_BF16);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_rows_of_padding_are_zeros),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
