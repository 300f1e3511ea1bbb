/* test_ops_entries.c - attention over a window and compressed entries against the plainest loop in double
 * precision, its backward against central differences, an indexer's choice exactly, and the same bits
 * whatever is beside a token; on the CPU and, where there is one, on a GPU. */
#include "cuda_memory.h"

#include "entry_problem.h"
#include "gradient_check.h"

static const double u = 0x1p-24;

enum { MOST_KEYS = 2048 };

/* The CPU, and where there is one then a GPU. */
static wb_device *dev;

/* ---- attention --------------------------------------------------------------------------------- */

static double plain_out(const entry_problem *p, const double *x, int64_t t, int64_t head, int64_t d) {
    const int64_t hd = p->s.head_dim;
    int64_t at[MOST_KEYS];
    const int64_t n = keys_of_token(p, t, at);
    double scores[MOST_KEYS], max = p->s.sinks ? x[p->sinks + head] : -INFINITY, sum = 0, out = 0;
    for (int64_t j = 0; j < n; j++) {
        scores[j] = 0;
        for (int64_t i = 0; i < hd; i++) scores[j] += x[(t * p->s.n_heads + head) * hd + i] * x[at[j] + i];
        scores[j] *= (double)p->args.raw.scale;
        max = fmax(max, scores[j]);
    }
    for (int64_t j = 0; j < n; j++) {
        sum += exp(scores[j] - max);
        out += exp(scores[j] - max) * x[at[j] + d];
    }
    return out / (sum + (p->s.sinks ? exp(x[p->sinks + head] - max) : 0));
}

typedef struct attention_case {
    const entry_problem *p;
    const float *dout;
} attention_case;

static double attention_loss(const double *x, const void *context) {
    const attention_case *c = context;
    const int64_t hd = c->p->s.head_dim, heads = c->p->s.n_heads;
    double loss = 0;
    for (int64_t i = 0; i < c->p->T * heads * hd; i++)
        if (c->p->seq[i / (heads * hd)] >= 0)
            loss += (double)c->dout[i] * plain_out(c->p, x, i / (heads * hd), i / hd % heads, i % hd);
    return loss;
}

static void check_backward(const entry_problem *p) {
    float *dout = random_floats(p->k, -1, 1), *grad = random_floats(p->n, -1, 1), *base = copied(grad, p->n);
    const attention_case c = {p, dout};
    const int64_t n = p->s.sinks ? p->n : p->sinks;
    assert_ok(dev->entry_attention_backward(dev, &p->args, wb_f32_rows(dout), wb_f32_rows(grad),
                                            wb_f32_rows(grad + p->k), wb_f32_rows(grad + p->entries),
                                            p->s.sinks ? grad + p->sinks : NULL));
    memset(base, 0, (size_t)p->k * sizeof *base); /* dq is written, the others are added to */
    check_gradient(attention_loss, &c, p->x, n, grad, base, 2e-5, "entry_attention_backward");
    free(dout), free(grad), free(base);
}

static void check_attention(entry_shape s, bool backward) {
    entry_problem p;
    open_entry_problem(&p, s);
    float *out = random_floats(p.k, -1, 1);
    double *wide = doubles(p.x, p.n);
    assert_ok(dev->entry_attention_forward(dev, &p.args, wb_f32_rows(out)));
    for (int64_t i = 0; i < p.k; i++) {
        const int64_t t = i / (s.n_heads * s.head_dim);
        const double expected =
            p.seq[t] < 0 ? 0 : plain_out(&p, wide, t, i / s.head_dim % s.n_heads, i % s.head_dim);
        assert_close(out[i], expected, ((double)(2 * s.longest + s.head_dim) + 20) * 4 * u, "entry attention",
                     i);
    }
    if (backward) check_backward(&p);
    close_entry_problem(&p), free(out), free(wide);
}

static void test_attention(void **state) {
    (void)state;
    const entry_shape small[] = {/* heads, dim, block, window, ratio, longest, listed, sinks */
                                 {3, 5, 1, 4, 4, 19, 0, true},  {2, 7, 1, 3, 2, 15, 3, true},
                                 {4, 4, 16, 8, 0, 17, 0, true}, {1, 6, 4, 5, 8, 20, 0, false},
                                 {2, 3, 6, 2, 4, 21, 2, false}, {2, 4, 3, 0, 5, 12, 0, true}};
    const entry_shape large[] = {
        {8, 40, 16, 24, 4, 150, 0, true}, {5, 33, 16, 16, 32, 200, 0, true}, {4, 64, 8, 30, 4, 170, 9, true}};
    for (size_t i = 0; i < sizeof small / sizeof small[0]; i++) check_attention(small[i], true);
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) check_attention(large[i], false);
}

/* A token alone has the bits that it has among all others. */
static void test_queries_alone(void **state) {
    (void)state;
    const entry_shape shapes[] = {{6, 32, 16, 24, 4, 120, 0, true}, {6, 32, 16, 24, 4, 120, 7, true}};
    for (size_t i = 0; i < 2; i++) {
        entry_problem p;
        open_entry_problem(&p, shapes[i]);
        const int64_t width = p.s.n_heads * p.s.head_dim;
        float *out = floats(p.k), *one = floats(width);
        assert_ok(dev->entry_attention_forward(dev, &p.args, wb_f32_rows(out)));
        for (int64_t t = 0; t < p.T; t++) {
            wb_entry_attention alone = p.args;
            alone.raw.T = 1, alone.raw.q = wb_rows_from(alone.raw.q, t * width);
            alone.raw.seq += t, alone.raw.pos += t;
            if (alone.listed) alone.listed += t * p.s.most_listed;
            assert_ok(dev->entry_attention_forward(dev, &alone, wb_f32_rows(one)));
            assert_same_bits(one, out + t * width, width, "entry_attention_forward of one token");
        }
        close_entry_problem(&p), free(out), free(one);
    }
}

/* A list of all entries that a token sees is no list. */
static void test_full_lists(void **state) {
    (void)state;
    entry_problem p;
    open_entry_problem(&p, (entry_shape){3, 8, 4, 9, 4, 60, 0, true});
    const int32_t most = 16;
    int32_t *lists = xalloc(p.T * most, 4);
    for (int64_t i = 0; i < p.T * most; i++)
        lists[i] = i % most < entries_seen(4, p.pos[i / most]) ? (int32_t)(i % most) : -1;
    float *out = floats(p.k), *listed = floats(p.k);
    assert_ok(dev->entry_attention_forward(dev, &p.args, wb_f32_rows(out)));
    p.args.listed = lists, p.args.max_listed = most;
    assert_ok(dev->entry_attention_forward(dev, &p.args, wb_f32_rows(listed)));
    assert_same_bits(listed, out, p.k, "entry_attention_forward of full lists");
    close_entry_problem(&p), free(lists), free(out), free(listed);
}

/* Of a problem with lists of 3 places. A GPU tells it later (test_device_fault_cuda). */
static void refuse_lists(const entry_problem *p, float *out) {
    const wb_rows to = wb_f32_rows(out);
    int32_t *list = p->listed + 11 * 3; /* position 11 sees the entries 0, 1 and 2 */
    list[0] = 0, list[1] = 3, list[2] = -1;
    assert_int_equal(dev->entry_attention_forward(dev, &p->args, to), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(),
                        "entry_attention_forward: listed: row 11, place 1: expected ascending "
                        "entries below 3, found 3");
    list[0] = 1, list[1] = 1;
    assert_int_equal(dev->entry_attention_backward(dev, &p->args, to, to, to, to, out), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(),
                        "entry_attention_backward: listed: row 11, place 1: expected ascending "
                        "entries below 3, found 1");
}

static void test_refusals(void **state) {
    (void)state;
    entry_problem p;
    open_entry_problem(&p, (entry_shape){1, 2, 1, 4, 4, 20, 3, true});
    float *out = floats(p.k);
    const wb_rows to = wb_f32_rows(out);
    if (dev != cuda) refuse_lists(&p, out);
    wb_entry_attention args = p.args;
    args.raw.v.data = out;
    assert_int_equal(dev->entry_attention_forward(dev, &args, to), WB_INVALID_ARGUMENT);
    args = p.args, args.entries.stride = 1;
    assert_int_equal(dev->entry_attention_forward(dev, &args, to), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(),
                        "entry_attention_forward: entries: a row of 2 elements in a stride of 1");
    args = p.args, args.listed = NULL;
    assert_int_equal(dev->entry_attention_backward(dev, &args, to, to, to, to, NULL), WB_INVALID_ARGUMENT);
    args = p.args, args.raw.log_sums = out;
    assert_int_equal(dev->entry_attention_forward(dev, &args, to), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), "entry_attention_forward: log_sums: expected NULL, found an "
                                            "array, which nothing would write");
    args = p.args, args.listed = NULL, args.raw.T = 0;
    assert_ok(dev->entry_attention_forward(dev, &args, to));
    assert_ok(dev->entry_attention_backward(dev, &args, to, to, to, to, out));
    close_entry_problem(&p), free(out);
}

/* ---- an indexer -------------------------------------------------------------------------------- */

/* Of a problem, whose entries are keys. Values of a few bits, so that sums are exact and many scores tie. */
static wb_indexer indexer_of(const entry_problem *p, int32_t top_k, int32_t *listed, float *weights) {
    for (int64_t i = 0; i < p->n; i++) p->x[i] = (float)rng_range(-1, 1);
    for (int64_t i = 0; i < p->T * p->s.n_heads; i++) weights[i] = (float)rng_range(-1, 2);
    return (wb_indexer){.T = p->T,
                        .n_heads = p->s.n_heads,
                        .head_dim = p->s.head_dim,
                        .top_k = top_k,
                        .q = p->args.raw.q,
                        .weights = weights,
                        .keys = p->args.entries,
                        .seq = p->seq,
                        .pos = p->pos,
                        .blocks = p->blocks,
                        .max_blocks = p->max_blocks,
                        .block_size = p->s.block_size,
                        .max_entries = p->s.longest / p->s.ratio,
                        .listed = listed};
}

/* list[top_k] of token t by looking for the best again and again. */
static void plain_choice(const entry_problem *p, const wb_indexer *args, int64_t t, int32_t *list) {
    int64_t at[MOST_KEYS];
    const int64_t heads = args->n_heads, dim = args->head_dim,
                  n = p->seq[t] < 0 ? 0 : entries_seen(p->s.ratio, p->pos[t]);
    const int64_t raw = p->seq[t] < 0 ? 0 : keys_of_token(p, t, at) - n;
    double scores[MOST_KEYS];
    bool taken[MOST_KEYS] = {false};
    for (int64_t w = 0; w < n; w++) {
        scores[w] = 0;
        for (int64_t h = 0; h < heads; h++) {
            double product = 0;
            for (int64_t d = 0; d < dim; d++)
                product += (double)p->x[(t * heads + h) * dim + d] * (double)p->x[at[raw + w] + d];
            scores[w] += (double)args->weights[t * heads + h] * fmax(product, 0);
        }
    }
    for (int64_t i = 0; i < args->top_k && i < n; i++) {
        int64_t best = -1;
        for (int64_t w = 0; w < n; w++)
            if (!taken[w] && (best < 0 || scores[w] > scores[best])) best = w;
        taken[best] = true;
    }
    int64_t count = 0;
    for (int64_t w = 0; w < n; w++)
        if (taken[w]) list[count++] = (int32_t)w;
    for (; count < args->top_k; count++) list[count] = -1;
}

static void check_indexer(entry_shape s, int32_t top_k) {
    entry_problem p;
    open_entry_problem(&p, s);
    float *weights = floats(p.T * s.n_heads);
    int32_t *listed = xalloc(p.T * top_k, 4), *native = xalloc(p.T * top_k, 4), *expected = xalloc(top_k, 4);
    uint8_t *direction = xalloc(p.T, 1);
    wb_indexer args = indexer_of(&p, top_k, listed, weights);
    assert_ok(dev->indexer_topk(dev, &args));
    for (int64_t t = 0; t < p.T; t++) {
        plain_choice(&p, &args, t, expected);
        assert_same_bits(listed + t * top_k, expected, top_k, "indexer_topk");
    }
    /* Rows that are forced keep what they have, and what they would choose is told all the same. */
    for (int64_t t = 0; t < p.T; t++) direction[t] = t % 2 == 0 ? WB_ROW_NATIVE : WB_ROW_FORCED;
    int32_t *before = xalloc(p.T * top_k, 4);
    memcpy(before, listed, (size_t)(p.T * top_k) * 4);
    for (int64_t i = 0; i < p.T * top_k; i++) listed[i] = -7;
    args.direction = direction, args.native = native;
    assert_ok(dev->indexer_topk(dev, &args));
    assert_same_bits(native, before, p.T * top_k, "indexer_topk native");
    for (int64_t i = 0; i < p.T * top_k; i++)
        assert_int_equal(listed[i], direction[i / top_k] == WB_ROW_NATIVE ? before[i] : -7);
    close_entry_problem(&p), free(weights), free(listed), free(native), free(expected), free(direction),
        free(before);
}

static void test_indexer(void **state) {
    (void)state;
    for (int trial = 0; trial < 5; trial++) {
        check_indexer((entry_shape){2, 4, 8, 4, 4, 90, 0, false}, 5);
        check_indexer((entry_shape){3, 16, 1, 4, 2, 60, 0, false}, 40);
        check_indexer((entry_shape){1, 3, 6, 4, 1, 700, 0, false}, 1);
    }
    /* More entries than threads of a block. */
    check_indexer((entry_shape){1, 3, 6, 4, 1, 1500, 0, false}, 40);
}

/* NaN comes last, infinite scores first, and those that are equal in rising order. */
static void test_indexer_order(void **state) {
    (void)state;
    static const float scores[] = {NAN, 2, -5, 2, INFINITY, 3, NAN, 0};
    float *keys = copied(scores, 8), *q = floats(1), *weight = floats(1);
    int32_t *seq = xalloc(1, sizeof *seq), *pos = xalloc(1, sizeof *pos), *blocks = xalloc(8, sizeof *blocks),
            *list = xalloc(8, sizeof *list);
    q[0] = weight[0] = 1, pos[0] = 7;
    for (int32_t i = 0; i < 8; i++) blocks[i] = i;
    wb_indexer args = {.T = 1,
                       .n_heads = 1,
                       .head_dim = 1,
                       .q = wb_f32_rows(q),
                       .weights = weight,
                       .keys = {1, wb_f32_rows(keys), 1},
                       .seq = seq,
                       .pos = pos,
                       .blocks = blocks,
                       .max_blocks = 8,
                       .block_size = 1,
                       .max_entries = 8,
                       .listed = list};
    static const int32_t ranked[] = {4, 5, 1, 3, 2, 7, 0, 6}; /* -5 counts as 0 */
    for (args.top_k = 1; args.top_k <= 8; args.top_k++) {
        int32_t expected[8], count = 0;
        for (int32_t w = 0; w < 8; w++)
            for (int32_t i = 0; i < args.top_k; i++)
                if (ranked[i] == w) expected[count++] = w;
        assert_ok(dev->indexer_topk(dev, &args));
        assert_same_bits(list, expected, args.top_k, "indexer_topk");
    }
    args.top_k = 0;
    assert_int_equal(dev->indexer_topk(dev, &args), WB_INVALID_ARGUMENT);
    args.top_k = 1, args.max_entries = 7;
    if (dev != cuda) { /* which would have to wait to say so */
        assert_int_equal(dev->indexer_topk(dev, &args), WB_INVALID_ARGUMENT);
        assert_string_equal(wb_error_message(),
                            "indexer_topk: row 0: expected at most max_entries 7 that it sees, found 8");
    }
    args.T = 0;
    assert_ok(dev->indexer_topk(dev, &args));
    free(keys), free(q), free(weight), free(seq), free(pos), free(blocks), free(list);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),  cmocka_unit_test(test_queries_alone),
        cmocka_unit_test(test_full_lists), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_indexer),    cmocka_unit_test(test_indexer_order),
    };
    rng_open(argc, argv);
    open_cuda();
    dev = open_cpu(3);
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(dev);
    if (!cuda) return failures;
    dev = cuda;
    failures += cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
