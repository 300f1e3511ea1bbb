/* test_attention_cuda.c - attention of bf16 on CUDA by tensor cores: forward and backward within bounds that
 * follow from how they sum, and the same bits of a query in a long prefill, in any chunks, decoded alone and
 * under any layout of pages. 77 where there is no CUDA device. Argument 1 sets the seed; argument 2 may be
 * "few": fewer and shorter problems, for a tool that slows kernels down. */
#include "cuda_memory.h"

#include "attention_problem.h"

static bool few;

/* From a round to the next one: all shapes and all kinds of views come with 3 too. */
static int step(void) {
    return few ? 3 : 1;
}

static int32_t shorter(int32_t length) {
    return few ? length / 8 : length;
}

/* All queries in one call, whose results are within the bound. */
static void check_whole(problem *p) {
    pool l;
    batch b;
    make_pool(p, 1 << rng_range(0, 6), &l);
    open_whole(p, &l, &b);
    uint16_t *out = forward(p, &b);
    p->log_sums = b.log_sums;
    check_out(p, out);
    free(out), close_batch(&b), free_pool(&l);
}

static void test_forward_is_within_the_bound(void **state) {
    (void)state;
    for (int round = 0; round < 20; round += step()) {
        problem p;
        make_problem(&p, shorter(round % 3 ? 90 : 400), round);
        check_whole(&p);
        free_problem(&p);
    }
}

/* ---- the same bits ----------------------------------------------------------------------------- */

/* Keys before those that position pos of a sequence sees, and later ones therefore, become NaN, and their
 * pages are gone. `from`: those before are so already. */
static void forget_keys(const problem *p, const pool *l, int32_t seq, int32_t pos, int32_t *from) {
    const int64_t k_width = p->kv_heads * p->D, v_width = p->kv_heads * p->V;
    for (; *from < first_seen(p, pos); ++*from) {
        const int64_t at = pool_at(l, seq, *from);
        for (int64_t d = 0; d < k_width; d++) l->k[at * k_width + d] = 0x7fc3;
        for (int64_t d = 0; d < v_width; d++) l->v[at * v_width + d] = 0x7fc3;
        if ((*from + 1) % l->size == 0)
            l->blocks[seq * l->max_blocks + *from / l->size] = INT32_MAX / l->size;
    }
}

/* Sequences are decoded and prefilled in random chunks side by side, with padding between. */
static void run_in_chunks(const problem *p, const pool *l, int64_t most, const uint16_t *whole) {
    int32_t done[MAX_SEQS] = {0}, forgotten[MAX_SEQS] = {0};
    for (int64_t left = p->starts[p->n]; left > 0;) {
        batch b;
        open_batch(p, l, (left < p->n * most ? left : p->n * most) + MAX_SEQS, &b);
        for (int s = 0; s < p->n; s++) {
            int64_t n = rng_range(0, 2) ? rng_range(1, most) : 1;
            forget_keys(p, l, s, done[s], &forgotten[s]);
            for (; n > 0 && done[s] < p->lengths[s]; n--, left--) add_token(p, s, done[s]++, &b);
            if (rng_range(0, 3) == 0) add_token(p, -1, 0, &b);
        }
        uint16_t *out = forward(p, &b);
        expect_rows(p, &b, out, whole);
        free(out), close_batch(&b);
    }
}

/* A query has the bits that it has among all of them in chunks of up to 1, `chunk` and 300 tokens. */
static void check_company(problem *p, int64_t chunk) {
    const int64_t most[] = {1, chunk, 300};
    pool l;
    batch b;
    make_pool(p, 1, &l);
    open_whole(p, &l, &b);
    uint16_t *whole = forward(p, &b);
    p->log_sums = b.log_sums;
    for (int way = 0; way < 3; way++) {
        pool pages;
        make_pool(p, 1 << rng_range(0, 7), &pages);
        run_in_chunks(p, &pages, most[way], whole);
        free_pool(&pages);
    }
    free(whole), close_batch(&b), free_pool(&l);
}

static void test_a_query_is_the_same_in_any_company(void **state) {
    (void)state;
    for (int round = 0; round < 20; round += step()) {
        problem p;
        make_problem(&p, shorter(round % 8 < 4 ? 200 : 900), round);
        check_company(&p, 40);
        free_problem(&p);
    }
}

/* More tokens than the kernel of single ones is started for, which a few of them are not. */
static void test_many_tokens_are_as_few(void **state) {
    (void)state;
    if (few) skip();
    problem p = {.n = 2,
                 .heads = 4,
                 .kv_heads = 2,
                 .D = 64,
                 .V = 64,
                 .lengths = {2500, 300},
                 .starts = {0, 2500, 2800}};
    pool l;
    batch b, one;
    p.scale = 0.125f;
    p.q = random_bf16(2800 * 4 * 64, 3), p.dout = random_bf16(1, 1);
    p.k = random_bf16(2800 * 2 * 64, 1), p.v = random_bf16(2800 * 2 * 64, 1);
    make_pool(&p, 16, &l);
    open_whole(&p, &l, &b);
    uint16_t *whole = forward(&p, &b);
    p.log_sums = b.log_sums;
    for (int32_t pos = 2499; pos > 0; pos -= 311) {
        open_batch(&p, &l, 2, &one);
        add_token(&p, 0, pos, &one), add_token(&p, 1, pos % 300, &one);
        uint16_t *out = forward(&p, &one);
        expect_rows(&p, &one, out, whole);
        free(out), close_batch(&one);
    }
    free(whole), close_batch(&b), free_pool(&l), free_problem(&p);
}

/* A token alone has the bits that it has with a window where its keys are masked instead: before the window
 * their last element is -infinity, by which the query's 1 is multiplied. */
static void test_a_window_only_masks(void **state) {
    (void)state;
    for (int round = 0; round < 12; round += step()) {
        const int32_t D = round % 2 ? 64 : 128, length = shorter(round < 6 ? 500 : 5000);
        problem p = {
            .n = 1, .heads = 4, .kv_heads = 2, .D = D, .V = D, .lengths = {length}, .starts = {0, length}};
        const int64_t width = p.kv_heads * D, row = p.heads * D;
        const int32_t pos = (int32_t)rng_range(length / 2, length - 1);
        pool l;
        batch b;
        uint16_t *out[2];
        float log_sums[2][4];
        p.scale = 0.1f;
        p.q = random_bf16(length * row, 3), p.dout = random_bf16(1, 1);
        p.k = random_bf16(length * width, 1), p.v = random_bf16(length * width, 1);
        const int32_t window = round % 6 == 3 ? INT32_MAX : (int32_t)rng_range(1, round % 3 ? 300 : pos);
        for (int64_t i = 0; i < length * p.kv_heads; i++)
            p.k[(i + 1) * D - 1] = i / p.kv_heads <= pos - window ? 0xff80 : 0;
        for (int64_t i = 0; i < length * p.heads; i++) p.q[(i + 1) * D - 1] = 0x3f80;
        for (int i = 0; i < 2; i++) {
            int32_t from = 0;
            p.window = i == 0 ? 0 : window;
            make_pool(&p, round % 4 == 3 ? 1 : 16, &l);
            forget_keys(&p, &l, 0, pos, &from);
            open_batch(&p, &l, 1, &b);
            add_token(&p, 0, pos, &b);
            out[i] = forward(&p, &b);
            memcpy(log_sums[i], b.log_sums, sizeof log_sums[i]);
            close_batch(&b), free_pool(&l);
        }
        assert_same_bits(out[0], out[1], row, "out");
        assert_same_bits(log_sums[0], log_sums[1], 4, "log sums");
        free(out[0]), free(out[1]), free_problem(&p);
    }
}

/* ---- latents ----------------------------------------------------------------------------------- */

/* Heads of a token that are a part of a tile of 64 rows, a tile, two, and neither. */
static const int32_t latent_heads[] = {16, 32, 64, 128, 24, 96};

static void test_latents_are_within_the_bound(void **state) {
    (void)state;
    for (int round = 0; round < 12; round += step()) {
        const int32_t heads = latent_heads[round % 6];
        problem p;
        make_latents(&p, heads, few ? 1 : 2, few ? 37 : heads > 32 ? 75 : 333, round + round / 6);
        check_whole(&p);
        free_problem(&p);
    }
}

/* Also where a call has too many tokens for tiles of their own, and where it has few. */
static void test_latents_are_the_same_in_any_company(void **state) {
    (void)state;
    for (int round = 0; round < 12; round += step()) {
        const int32_t heads = latent_heads[round % 6];
        problem p;
        make_latents(&p, heads, few ? 2 : 3, few ? 39 : heads > 32 ? 150 : 500, round + round / 6);
        check_company(&p, 30);
        free_problem(&p);
    }
}

/* ---- backward ---------------------------------------------------------------------------------- */

enum { MAX_HEADS = 16 };

/* Sums in f64 of dk, dv and dsinks, and what they may be off. */
typedef struct gradients {
    double *dk, *dv, *dk_off, *dv_off, dsinks[MAX_HEADS], dsinks_off[MAX_HEADS];
} gradients;

/* The part of one query and head, and dq's check. */
static void add_query(const problem *p, int s, int32_t pos, int32_t head, const uint16_t *dq, gradients *g) {
    const int32_t D = p->D, V = p->V, kv = head / (p->heads / p->kv_heads);
    const int64_t row = (int64_t)(p->starts[s] + pos) * p->heads + head;
    const double scale = (double)p->scale;
    query w = open_query(p, s, pos, head);
    double sum[MAX_D] = {0}, off[MAX_D] = {0};
    g->dsinks[head] -= w.sink * w.dot;
    /* each term is rounded, and so is each of at most 1,024 sums */
    g->dsinks_off[head] +=
        w.sink_off * (fabs(w.dot) + w.dot_off) + w.sink * (w.dot_off + fabs(w.dot) * 1024 * 0x1p-24) + 1e-9;
    for (int32_t j = 0; j < w.keys; j++) {
        const int64_t key = (int64_t)(p->starts[s] + j) * p->kv_heads + kv;
        const double ds = w.p[j] * (w.dp[j] - w.dot);
        const double ds_off = w.p_off[j] * (fabs(w.dp[j]) + fabs(w.dot)) +
                              w.p[j] * (w.dp_off[j] + w.dot_off) + fabs(ds) * (0x1p-8 + chain(w.keys + 600));
        const double p_off = w.p_off[j] + w.p[j] * (0x1p-8 + chain(w.keys + 600));
        for (int32_t d = 0; d < D; d++) {
            const double k = value(p->k, key * D + d), q = value(p->q, row * D + d);
            sum[d] += scale * ds * k, off[d] += scale * ds_off * fabs(k);
            g->dk[key * D + d] += scale * ds * q, g->dk_off[key * D + d] += scale * ds_off * fabs(q);
        }
        for (int32_t d = 0; d < V; d++) {
            const double dout = value(p->dout, row * V + d);
            g->dv[key * V + d] += w.p[j] * dout, g->dv_off[key * V + d] += p_off * fabs(dout);
        }
    }
    for (int32_t d = 0; d < D; d++)
        assert_close(value(dq, row * D + d), sum[d], off[d] + fabs(sum[d]) * 0x1p-8 + 1e-9, "dq",
                     row * D + d);
}

/* What a call made of a gradient of keys or values is what lay there and the sum. */
static void check_keys(const problem *p, const pool *l, int64_t width, const uint16_t *before,
                       const uint16_t *after, const double *sum, const double *off, const char *what) {
    for (int s = 0; s < p->n; s++)
        for (int32_t i = 0; i < p->lengths[s]; i++)
            for (int64_t d = 0; d < width; d++) {
                const int64_t at = pool_at(l, s, i) * width + d, of = (p->starts[s] + i) * width + d;
                const double expected = value(before, at) + sum[of];
                assert_close(value(after, at), expected, off[of] + fabs(expected) * 0x1p-8 + 1e-9, what, at);
            }
}

static uint16_t *same(const uint16_t *x, int64_t n) {
    uint16_t *y = xalloc(n, sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

/* Queries of positions from first[s] on: those before are a prefix that earlier calls wrote. */
static void check_backward(const problem *p, const pool *l, const int32_t *first) {
    const int64_t k_width = p->kv_heads * p->D, v_width = p->kv_heads * p->V, n = p->starts[p->n],
                  rows = (int64_t)l->pages * l->size, q_width = p->heads * p->D, out_width = p->heads * p->V;
    batch b;
    gradients g = {xalloc(n * k_width, 8),
                   xalloc(n * v_width, 8),
                   xalloc(n * k_width, 8),
                   xalloc(n * v_width, 8),
                   {0},
                   {0}};
    float *dsinks = xalloc(p->heads, sizeof *dsinks);
    uint16_t *dk = random_bf16(rows * k_width, 1), *dv = random_bf16(rows * v_width, 1);
    uint16_t *before_k = same(dk, rows * k_width), *before_v = same(dv, rows * v_width);
    open_batch(p, l, n, &b);
    for (int s = 0; s < p->n; s++)
        for (int32_t i = first[s]; i < p->lengths[s]; i++) add_token(p, s, i, &b);
    uint16_t *dout = poisoned(b.T * out_width), *dq = poisoned(b.T * q_width), *all = poisoned(n * q_width);
    for (int64_t t = 0; t < b.T; t++)
        memcpy(dout + t * out_width, p->dout + b.token[t] * out_width, (size_t)out_width * 2);
    assert_ok(cuda->attention_backward(cuda, &b.args, (wb_rows){dout, WB_BF16}, (wb_rows){dq, WB_BF16},
                                       (wb_rows){dk, WB_BF16}, (wb_rows){dv, WB_BF16},
                                       p->sinks ? dsinks : NULL));
    for (int64_t t = 0; t < b.T; t++)
        memcpy(all + b.token[t] * q_width, dq + t * q_width, (size_t)q_width * 2);
    for (int s = 0; s < p->n; s++)
        for (int32_t i = first[s]; i < p->lengths[s]; i++)
            for (int32_t head = 0; head < p->heads; head++) add_query(p, s, i, head, all, &g);
    check_keys(p, l, k_width, before_k, dk, g.dk, g.dk_off, "dk");
    check_keys(p, l, v_width, before_v, dv, g.dv, g.dv_off, "dv");
    for (int32_t head = 0; head < p->heads && p->sinks; head++)
        assert_close(dsinks[head], g.dsinks[head], g.dsinks_off[head], "dsinks", head);
    free(g.dk), free(g.dv), free(g.dk_off), free(g.dv_off), free(dk), free(dv), free(before_k);
    free(before_v), free(dout), free(dq), free(all), free(dsinks), close_batch(&b);
}

static void test_backward_is_within_the_bound(void **state) {
    (void)state;
    for (int round = 0; round < 20; round += step()) {
        problem p;
        pool l;
        int32_t first[MAX_SEQS] = {0};
        make_problem(&p, shorter(round % 4 == 1 ? 150 : 70), round);
        make_pool(&p, round % 2 ? 1 : 16, &l);
        for (int s = 0; s < p.n && round % 9 > 5; s++) first[s] = (int32_t)rng_range(0, p.lengths[s] - 1);
        check_backward(&p, &l, first);
        free_pool(&l), free_problem(&p);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward_is_within_the_bound),
        cmocka_unit_test(test_a_query_is_the_same_in_any_company),
        cmocka_unit_test(test_many_tokens_are_as_few),
        cmocka_unit_test(test_a_window_only_masks),
        cmocka_unit_test(test_latents_are_within_the_bound),
        cmocka_unit_test(test_latents_are_the_same_in_any_company),
        cmocka_unit_test(test_backward_is_within_the_bound),
    };
    rng_open(argc, argv);
    few = argc > 2 && strcmp(argv[2], "few") == 0;
    open_cuda();
    if (!cuda) return 77;
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
