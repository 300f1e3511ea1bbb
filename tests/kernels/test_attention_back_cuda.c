/* test_attention_back_cuda.c - the backward of attention of bf16 on CUDA from what the forward left: within
 * bounds that follow from how it sums, and the same bits in any company. 77 where there is no CUDA device.
 * Argument 1 sets the seed. */
#include "attention_back_cases.h"

/* ---- in f64, with what the kernels may be off -------------------------------------------------- */

/* A chain of n products is off by less than this times the sum of their sizes: test_products_cuda.c. */
static double chain(int64_t n) {
    return (double)(n / 16 + 2) * 0x1p-17;
}

enum { MAX_KEYS = 700, MAX_D = 128 };
/* What rounds to bf16 is off by this times itself at most. */
static const double HALF = 0x1p-8;

typedef struct reals {
    double *q, *dout, *k, *v;              /* the problem's */
    double *dk, *dv, *dk_off, *dv_off;     /* sums, and how far they may be off */
    double *dsinks, *dsinks_off;           /* [heads] */
    double p[MAX_KEYS], p_off[MAX_KEYS];   /* of one query: weights, */
    double ds[MAX_KEYS], ds_off[MAX_KEYS]; /* and what becomes of them */
    double sink, sink_off;                 /* the weight of the head's sink */
} reals;

static double *widened(const uint16_t *x, int64_t n) {
    double *y = xalloc(n, sizeof *y);
    for (int64_t i = 0; i < n; i++) y[i] = (double)wb_bf16_to_f32(x[i]);
    return y;
}

static reals *open_reals(const problem *p) {
    const int64_t rows = p->starts[p->n], n = rows * narrow(p);
    reals *r = xalloc(1, sizeof *r);
    r->q = widened(p->q, rows * wide(p)), r->dout = widened(p->dout, rows * wide(p));
    r->k = widened(p->k, n), r->v = widened(p->v, n);
    r->dk = widened(p->dk, n), r->dv = widened(p->dv, n);
    r->dk_off = xalloc(n, sizeof(double)), r->dv_off = xalloc(n, sizeof(double));
    r->dsinks = xalloc(p->heads, sizeof(double)), r->dsinks_off = xalloc(p->heads, sizeof(double));
    return r;
}

static void close_reals(reals *r) {
    free(r->q), free(r->dout), free(r->k), free(r->v);
    free(r->dk), free(r->dv), free(r->dk_off), free(r->dv_off), free(r->dsinks), free(r->dsinks_off);
    free(r);
}

static double product(const double *a, const double *b, int32_t n, double *size_out) {
    double sum = 0, size = 0;
    for (int32_t d = 0; d < n; d++) sum += a[d] * b[d], size += fabs(a[d] * b[d]);
    *size_out = size;
    return sum;
}

/* Weights of the n keys from `key` on, stride apart, for a query that sees those from `first` on; returns the
 * logarithm of their sum. */
static double weigh(const problem *p, reals *r, int64_t at, int64_t key, int32_t head, int32_t n,
                    double *off_out) {
    const int32_t first = first_seen(p, n - 1);
    const double sink = p->sinks ? (double)p->sinks[head] : -INFINITY;
    double largest = sink, sum = 0, off = 0, size, far = p->sinks ? fabs(sink) : 0;
    for (int32_t j = 0; j < n; j++) r->p[j] = r->p_off[j] = 0;
    for (int32_t j = first; j < n; j++) {
        r->p[j] = (double)p->scale * product(r->q + at, r->k + key + j * narrow(p), p->D, &size);
        largest = fmax(largest, r->p[j]), far = fmax(far, fabs(r->p[j]));
        off = fmax(off, size * (double)p->scale * (chain(p->D) + 0x1p-22));
    }
    for (int32_t j = first; j < n; j++) sum += r->p[j] = exp(r->p[j] - largest);
    sum += exp(sink - largest);
    /* scores, the sum of exponentials and its logarithm, which is rounded as scores are */
    *off_out = off + 0x1p-15 + (far + fabs(log(sum))) * 0x1p-21;
    for (int32_t j = first; j < n; j++) r->p[j] /= sum, r->p_off[j] = 2.1 * *off_out * r->p[j] + 1e-30;
    r->sink = exp(sink - largest) / sum, r->sink_off = 2.1 * *off_out * r->sink;
    return largest + log(sum);
}

/* ds of the same keys, and what the query adds to the gradient of its head's sink. dot is made of out, as it
 * was rounded. */
static void find_ds(const problem *p, reals *r, int64_t at, int64_t key, int32_t head, int32_t n) {
    double dot = 0, dot_off = 0, size;
    for (int32_t d = 0; d < p->D; d++) {
        double out = 0, off = 0, sum_of_sizes = 0;
        for (int32_t j = 0; j < n; j++) {
            const double v = r->v[key + j * narrow(p) + d];
            out += r->p[j] * v, sum_of_sizes += r->p[j] * fabs(v);
            off += (r->p_off[j] + r->p[j] * HALF) * fabs(v);
        }
        off += sum_of_sizes * chain(n + 1024) + fabs(out) * HALF;
        dot += r->dout[at + d] * out;
        dot_off += fabs(r->dout[at + d]) * (off + fabs(out) * 0x1p-16);
    }
    for (int32_t j = 0; j < n; j++) {
        const double dp = product(r->dout + at, r->v + key + j * narrow(p), p->D, &size);
        const double ds = r->p[j] * (dp - dot);
        r->ds_off[j] =
            r->p_off[j] * fabs(dp - dot) + (r->p[j] + r->p_off[j]) * (size * chain(p->D) + dot_off);
        r->ds_off[j] += (fabs(ds) + r->ds_off[j]) * (HALF + 0x1p-20);
        r->ds[j] = ds;
    }
    r->dsinks[head] -= r->sink * dot;
    r->dsinks_off[head] += r->sink_off * (fabs(dot) + dot_off) + r->sink * dot_off;
    /* each term is rounded, and so is each of at most 4,096 sums */
    r->dsinks_off[head] += r->sink * fabs(dot) * 4096 * 0x1p-24 + 1e-9;
}

/* Checks dq and log_sums of one query and head, and adds its part of dk and dv. `rows`: of the longest sum
 * that dk and dv are. */
static void add_query(const problem *p, reals *r, int s, int32_t pos, int32_t head, int64_t rows,
                      const gradients *g) {
    const int64_t row = p->starts[s] + pos, at = row * wide(p) + (int64_t)head * p->D;
    const int64_t kv = (int64_t)(head / (p->heads / p->kv_heads)) * p->D, key = p->starts[s] * narrow(p) + kv;
    const double scale = (double)p->scale;
    double dq[MAX_D] = {0}, off[MAX_D] = {0}, log_off;
    const double log_sum = weigh(p, r, at, key, head, pos + 1, &log_off);
    if (g->log_sums)
        assert_close(g->log_sums[row * p->heads + head], log_sum, log_off, "log_sums", row * p->heads + head);
    find_ds(p, r, at, key, head, pos + 1);
    for (int32_t j = first_seen(p, pos); j <= pos; j++)
        for (int32_t d = 0; d < p->D; d++) {
            const int64_t to = key + j * narrow(p) + d;
            const double q = r->q[at + d], dout = r->dout[at + d], k = r->k[to];
            dq[d] += scale * r->ds[j] * k;
            off[d] += scale * fabs(k) * (r->ds_off[j] + (fabs(r->ds[j]) + r->ds_off[j]) * chain(pos + 64));
            r->dk[to] += scale * r->ds[j] * q, r->dv[to] += r->p[j] * dout;
            r->dk_off[to] += scale * fabs(q) * (r->ds_off[j] + (fabs(r->ds[j]) + r->ds_off[j]) * chain(rows));
            r->dv_off[to] += fabs(dout) * (r->p_off[j] + (r->p[j] + r->p_off[j]) * (HALF + chain(rows)));
        }
    for (int32_t d = 0; d < p->D; d++)
        assert_close(wb_bf16_to_f32(g->dq[at + d]), dq[d], off[d] + (fabs(dq[d]) + off[d]) * HALF + 1e-30,
                     "dq", at + d);
}

static void check_gradients(const problem *p, const gradients *g) {
    reals *r = open_reals(p);
    for (int s = 0; s < p->n; s++) {
        const int64_t rows = (int64_t)p->lengths[s] * (p->heads / p->kv_heads) + 128;
        for (int32_t pos = p->firsts[s]; pos < p->lengths[s]; pos++)
            for (int32_t head = 0; head < p->heads; head++) add_query(p, r, s, pos, head, rows, g);
    }
    for (int64_t i = 0; i < p->starts[p->n] * narrow(p); i++) {
        assert_close(wb_bf16_to_f32(g->dk[i]), r->dk[i],
                     r->dk_off[i] + (fabs(r->dk[i]) + r->dk_off[i]) * HALF + 1e-30, "dk", i);
        assert_close(wb_bf16_to_f32(g->dv[i]), r->dv[i],
                     r->dv_off[i] + (fabs(r->dv[i]) + r->dv_off[i]) * HALF + 1e-30, "dv", i);
    }
    for (int32_t head = 0; head < p->heads && p->sinks; head++)
        assert_close(g->dsinks[head], r->dsinks[head], r->dsinks_off[head], "dsinks", head);
    close_reals(r);
}

/* ---- the tests --------------------------------------------------------------------------------- */

static void check_problem(problem *p, layout l) {
    gradients g = make_gradients(p);
    call(p, &l, &g);
    if (l.forgets) free(g.log_sums), g.log_sums = NULL;
    check_gradients(p, &g);
    free_gradients(&g), free(l.order), free_problem(p);
}

/* Short and long ones, ends of tiles of 64 and 128, prefixes, pages, keys in order and not, padding. */
static void test_gradients_are_within_the_bound(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        problem p;
        make_problem(&p, round % 3 ? 40 : (int32_t)rng_range(2, 5), round % 3 ? 12 : 160, round % 10 > 4,
                     round);
        layout l = all_sequences(&p, round % 3 > 0);
        l.page = 1 << rng_range(0, 7), l.padding = round % 3 > 0, l.in_order = round % 4 < 2;
        check_problem(&p, l);
    }
    for (int round = 0; round < 8; round++) {
        problem p;
        make_problem(&p, 1, (int32_t)(round % 4 == 2 ? 640 : rng_range(250, 400)), false, round + 1);
        layout l = all_sequences(&p, false);
        l.in_order = round > 0;
        check_problem(&p, l);
    }
}

/* Nothing left by the forward, or dq where 16 bytes do not begin. */
static void test_other_kernels_are_within_it_too(void **state) {
    (void)state;
    for (int round = 0; round < 16; round++) {
        problem p;
        make_problem(&p, 3, round % 5 ? 70 : 200, round / 2 % 2, round);
        layout l = all_sequences(&p, false);
        l.forgets = round < 8, l.dq_from = round < 8 ? 0 : 1, l.padding = true;
        check_problem(&p, l);
    }
}

static void expect_same(const problem *p, int s, const gradients *a, const gradients *b) {
    const int64_t row = p->starts[s], fed = row + p->firsts[s], n = p->lengths[s], q = n - p->firsts[s];
    assert_same_bits(a->dq + fed * wide(p), b->dq + fed * wide(p), q * wide(p), "dq");
    assert_same_bits(a->dk + row * narrow(p), b->dk + row * narrow(p), n * narrow(p), "dk");
    assert_same_bits(a->dv + row * narrow(p), b->dv + row * narrow(p), n * narrow(p), "dv");
}

/* Twice; in another order, other pages and with padding; and each alone, beside what was NaN before. */
static void test_a_sequence_is_the_same_in_any_company(void **state) {
    (void)state;
    for (int round = 0; round < 8; round++) {
        problem p;
        make_problem(&p, round % 3 ? 60 : 6, round % 3 ? 20 : 500, round % 3 == 2, round);
        layout l = all_sequences(&p, false), other = all_sequences(&p, true);
        gradients g = make_gradients(&p), again = make_gradients(&p), alone = make_gradients(&p);
        l.in_order = true, other.padding = true, other.page = 1 << rng_range(0, 6);
        call(&p, &l, &g), call(&p, &l, &again);
        for (int s = 0; s < p.n; s++) expect_same(&p, s, &g, &again);
        assert_same_bits(g.dsinks, again.dsinks, p.heads, "dsinks");
        call(&p, &other, &again);
        for (int s = 0; s < p.n; s++) expect_same(&p, s, &g, &again);
        for (int32_t s = 0; s < p.n; s += 1 + p.n / 8) {
            layout one = {.n = 1, .order = &s, .page = 16};
            call(&p, &one, &alone);
            expect_same(&p, s, &g, &alone);
        }
        free_gradients(&g), free_gradients(&again), free_gradients(&alone);
        free(l.order), free(other.order), free_problem(&p);
    }
}

/* A window of every key there can be is none, in the kernels of sm_90a and in the others. */
static void test_the_longest_window_is_none(void **state) {
    (void)state;
    for (int round = 0; round < 9; round++) {
        problem p;
        make_problem(&p, 4, 300, round % 2, round);
        layout l = all_sequences(&p, false);
        gradients g = make_gradients(&p), none = make_gradients(&p);
        l.in_order = true, l.forgets = round % 3 == 1, l.dq_from = round % 3 == 2;
        p.window = 0;
        call(&p, &l, &none);
        p.window = INT32_MAX;
        call(&p, &l, &g);
        for (int s = 0; s < p.n; s++) expect_same(&p, s, &g, &none);
        assert_same_bits(g.dsinks, none.dsinks, p.heads, "dsinks");
        free_gradients(&g), free_gradients(&none), free(l.order), free_problem(&p);
    }
}

/* All of one sequence is NaN. */
static void test_a_nan_stays_in_its_sequence(void **state) {
    (void)state;
    for (int round = 0; round < 5; round++) {
        problem p;
        make_problem(&p, 5, 200, false, round);
        layout l = all_sequences(&p, false);
        gradients g = make_gradients(&p), beside = make_gradients(&p);
        call(&p, &l, &g);
        const int32_t bad = (int32_t)rng_range(0, p.n - 1), row = p.starts[bad], n = p.lengths[bad];
        for (int64_t i = row * wide(&p); i < (row + n) * wide(&p); i++) p.q[i] = p.dout[i] = NaN;
        for (int64_t i = row * narrow(&p); i < (row + n) * narrow(&p); i++) p.k[i] = p.v[i] = NaN;
        call(&p, &l, &beside);
        for (int s = 0; s < p.n; s++)
            if (s != bad) expect_same(&p, s, &g, &beside);
        free_gradients(&g), free_gradients(&beside), free(l.order), free_problem(&p);
    }
}

/* Nothing, and nothing but padding. */
static void test_no_tokens(void **state) {
    (void)state;
    problem p;
    make_problem(&p, 2, 9, false, 0);
    layout l = {.n = 0, .page = 1};
    for (int round = 0; round < 10; round++) {
        gradients g = make_gradients(&p);
        l.padding = round > 0;
        call(&p, &l, &g);
        free_gradients(&g);
    }
    free_problem(&p);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_are_within_the_bound),
        cmocka_unit_test(test_other_kernels_are_within_it_too),
        cmocka_unit_test(test_a_sequence_is_the_same_in_any_company),
        cmocka_unit_test(test_the_longest_window_is_none),
        cmocka_unit_test(test_a_nan_stays_in_its_sequence),
        cmocka_unit_test(test_no_tokens),
    };
    rng_open(argc, argv);
    open_cuda();
    if (!cuda) return 77;
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
