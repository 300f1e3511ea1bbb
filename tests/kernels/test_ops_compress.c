/* test_ops_compress.c - a compressor's entries against the plainest loop in double precision, its backward
 * against central differences, and the same bits however positions are cut into calls. */
#include "gradient_check.h"

static const double u = 0x1p-24;

enum { SEQS = 3 };

/* Whole sequences of these lengths, one behind the other. */
typedef struct problem {
    int64_t D;
    int32_t ratio;
    bool overlaps;
    int32_t lengths[SEQS];
    const float *d; /* [T, D] */
} problem;

static int64_t channels_of(const problem *p) {
    return p->D * (p->overlaps ? 2 : 1);
}

static int64_t tokens_of(const problem *p) {
    int64_t T = 0;
    for (int i = 0; i < SEQS; i++) T += p->lengths[i];
    return T;
}

/* x: values [T,C], gates [T,C], bias [R,C]. The channel of the entry that ends at token t, `begin` being its
 * sequence's first. */
static double plain_entry(const problem *p, const double *x, int64_t begin, int64_t t, int64_t channel) {
    const int64_t C = channels_of(p), T = tokens_of(p), R = p->ratio;
    double sum = 0, entry = 0;
    for (int64_t s = t - (p->overlaps ? 2 : 1) * R + 1; s <= t; s++) {
        const int64_t c = channel + (p->overlaps && s > t - R ? p->D : 0);
        if (s < begin) continue;
        const double weight = exp(x[T * C + s * C + c] + x[2 * T * C + (s - begin) % R * C + c]);
        sum += weight;
        entry += weight * x[s * C + c];
    }
    return entry / sum;
}

static double loss(const double *x, const void *context) {
    const problem *p = context;
    double sum = 0;
    for (int64_t i = 0, begin = 0; i < SEQS; begin += p->lengths[i++])
        for (int64_t t = begin + p->ratio - 1; t < begin + p->lengths[i]; t += p->ratio)
            for (int64_t c = 0; c < p->D; c++)
                sum += (double)p->d[t * p->D + c] * plain_entry(p, x, begin, t, c);
    return sum;
}

/* ---- calls ------------------------------------------------------------------------------------- */

typedef struct call {
    wb_compress args;
    wb_sequence_run runs[SEQS];
    int32_t *pos;
} call;

static void make_call(const problem *p, float *x, call *c) {
    const int64_t T = tokens_of(p), C = channels_of(p);
    c->pos = xalloc(T, sizeof *c->pos);
    int32_t t = 0;
    for (int i = 0; i < SEQS; i++) {
        c->runs[i] = (wb_sequence_run){t, p->lengths[i], -1};
        for (int32_t j = 0; j < p->lengths[i]; j++) c->pos[t++] = j;
    }
    c->args = (wb_compress){.of = {.T = T, .n_runs = SEQS, .runs = c->runs},
                            .width = p->D,
                            .ratio = p->ratio,
                            .overlaps = p->overlaps,
                            .values = wb_f32_rows(x),
                            .gates = wb_f32_rows(x + T * C),
                            .bias = x + 2 * T * C,
                            .pos = c->pos};
}

static void check(wb_device *dev, problem p) {
    const int64_t T = tokens_of(&p), C = channels_of(&p), n = 2 * T * C + p.ratio * C;
    float *x = random_floats(n, -3, 3), *entries = random_floats(T * p.D, -1, 1),
          *d = random_floats(T * p.D, -1, 1);
    float *grad = random_floats(n, -1, 1), *base = copied(grad, n);
    double *wide = doubles(x, n);
    call c = {0};
    make_call(&p, x, &c);
    p.d = d;
    assert_ok(dev->compress_forward(dev, &c.args, wb_f32_rows(entries)));
    for (int64_t i = 0, begin = 0; i < SEQS; begin += p.lengths[i++])
        for (int64_t t = begin; t < begin + p.lengths[i]; t++)
            for (int64_t k = 0; k < p.D; k++) {
                const bool ends = (t - begin + 1) % p.ratio == 0;
                const double expected = ends ? plain_entry(&p, wide, begin, t, k) : 0;
                assert_close(entries[t * p.D + k], expected, (ends ? 8 * u * (2 * p.ratio + 8) : 0),
                             "entries", t);
            }
    assert_ok(dev->compress_backward(dev, &c.args, wb_f32_rows(d), wb_f32_rows(grad),
                                     wb_f32_rows(grad + T * C), grad + 2 * T * C));
    memset(base, 0,
           (size_t)(2 * T * C) * sizeof *base); /* gradients of the bias are added to, the others not */
    check_gradient(loss, &p, x, n, grad, base, 1e-5, "compress_backward");
    free(x), free(entries), free(d), free(grad), free(base), free(wide), free(c.pos);
}

static void test_compress(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    const problem list[] = {{5, 4, true, {13, 3, 8}, NULL},  {70, 4, true, {9, 0, 4}, NULL},
                            {6, 8, false, {17, 8, 7}, NULL}, {130, 3, false, {4, 2, 6}, NULL},
                            {4, 1, true, {3, 1, 2}, NULL},   {4, 1, false, {3, 1, 2}, NULL}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) check(dev, list[i]);
    wb_device_close(dev);
}

/* Sequences that go on by random numbers of tokens, in random numbers of calls, with states that lie
 * anywhere. */
static void check_cuts(wb_device *dev, problem p) {
    const int64_t T = tokens_of(&p), C = channels_of(&p), D = p.D;
    const int64_t stride = wb_compress_state_bytes(D, p.overlaps) + 64;
    float *x = random_floats(2 * T * C + p.ratio * C, -3, 3), *expected = floats(T * D),
          *found = floats(T * D);
    float *values = floats(T * C), *gates = floats(T * C), *entries = floats(T * D);
    int32_t *pos = xalloc(T, sizeof *pos), fed[SEQS] = {0}, *from = xalloc(T, sizeof *from);
    char *states = xalloc(SEQS, (size_t)stride);
    call whole = {0};
    make_call(&p, x, &whole);
    assert_ok(dev->compress_forward(dev, &whole.args, wb_f32_rows(expected)));
    for (bool goes_on = true; goes_on;) {
        wb_sequence_run runs[SEQS];
        int32_t t = 0, n_runs = 0;
        goes_on = false;
        for (int i = 0; i < SEQS; i++) {
            const int32_t left = p.lengths[i] - fed[i], n = (int32_t)rng_range(0, left < 5 ? left : 5);
            runs[n_runs++] = (wb_sequence_run){t, n, n > 0 ? SEQS - 1 - i : -1};
            for (int32_t j = 0; j < n; j++, t++) {
                const int32_t at = whole.runs[i].start + fed[i]++;
                from[t] = at, pos[t] = whole.pos[at];
                memcpy(values + t * C, x + at * C, (size_t)C * sizeof *x);
                memcpy(gates + t * C, x + T * C + at * C, (size_t)C * sizeof *x);
            }
            goes_on = goes_on || fed[i] < p.lengths[i];
        }
        wb_compress args = whole.args;
        args.of.T = t, args.values = wb_f32_rows(values), args.gates = wb_f32_rows(gates), args.pos = pos;
        args.of.runs = runs, args.of.n_runs = n_runs, args.of.states = states, args.of.state_stride = stride;
        assert_ok(dev->compress_forward(dev, &args, wb_f32_rows(entries)));
        for (int32_t j = 0; j < t; j++) memcpy(found + from[j] * D, entries + j * D, (size_t)D * sizeof *x);
    }
    assert_same_bits(found, expected, T * D, "entries of tokens in several calls");
    free(x), free(expected), free(found), free(values), free(gates), free(entries), free(pos), free(from);
    free(states), free(whole.pos);
}

static void test_cuts(void **state) {
    (void)state;
    wb_device *dev = open_cpu(3);
    for (int trial = 0; trial < 20; trial++) {
        check_cuts(dev, (problem){9, 4, true, {23, 6, 40}, NULL});
        check_cuts(dev, (problem){66, 8, false, {23, 6, 40}, NULL});
    }
    wb_device_close(dev);
}

/* Gates far apart, and infinite ones: the others' weights are 0, and no NaN comes of it. */
static void test_extreme_gates(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const problem p = {1, 4, false, {4, 0, 0}, NULL};
    float x[] = {1, 2, 3, 4, -INFINITY, 3e38f, -3e38f, 0, 0, 0, 0, 0}, entries[4], d[] = {0, 0, 0, 1},
          grad[12] = {0};
    call c = {0};
    make_call(&p, x, &c);
    assert_ok(dev->compress_forward(dev, &c.args, wb_f32_rows(entries)));
    assert_true(entries[3] == 2 && entries[0] == 0 && entries[2] == 0);
    assert_ok(dev->compress_backward(dev, &c.args, wb_f32_rows(d), wb_f32_rows(grad), wb_f32_rows(grad + 4),
                                     grad + 8));
    assert_true(grad[0] == 0 && grad[1] == 1 && grad[2] == 0 && grad[3] == 0);
    for (int i = 4; i < 12; i++) assert_true(grad[i] == 0);
    free(c.pos);
    wb_device_close(dev);
}

/* A NaN stays in its channel and in the entries that its position is of. */
static void test_nan_stays_in_its_entries(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    const problem p = {3, 4, true, {16, 16, 0}, NULL};
    const int64_t T = tokens_of(&p), C = channels_of(&p);
    float *x = random_floats(2 * T * C + p.ratio * C, -1, 1), *entries = floats(T * p.D);
    call c = {0};
    make_call(&p, x, &c);
    x[T * C + 5 * C + 1] =
        NAN; /* position 5 of the first sequence, as one ahead of the entry that ends at 11 */
    assert_ok(dev->compress_forward(dev, &c.args, wb_f32_rows(entries)));
    for (int64_t i = 0; i < T * p.D; i++) assert_true(isnan(entries[i]) == (i == 11 * p.D + 1));
    free(x), free(entries), free(c.pos);
    wb_device_close(dev);
}

static void test_refusals(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    float x[4] = {0};
    char states[64] = {0};
    const wb_rows rows = wb_f32_rows(x);
    wb_compress args = {.width = 1, .ratio = 4, .values = rows, .gates = rows, .bias = x};
    assert_ok(dev->compress_forward(dev, &args, rows));
    assert_ok(dev->compress_backward(dev, &args, rows, rows, rows, x));
    args.of.states = states;
    assert_int_equal(dev->compress_backward(dev, &args, rows, rows, rows, x), WB_INVALID_ARGUMENT);
    args.ratio = 0;
    assert_int_equal(dev->compress_forward(dev, &args, rows), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), "compress_forward: ratio 0 and width 1: expected 1 or more");
    args.gates.dtype = WB_BF16;
    assert_int_equal(dev->compress_forward(dev, &args, rows), WB_INVALID_ARGUMENT);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compress),      cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_extreme_gates), cmocka_unit_test(test_nan_stays_in_its_entries),
        cmocka_unit_test(test_refusals),
    };
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
