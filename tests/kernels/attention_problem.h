/* attention_problem.h - sequences with their keys in pages, calls of attention on them on CUDA in bf16, and
 * the same in f64 with what the kernels may be off. Included by tests of attention, after cuda_memory.h. */
#ifndef WB_ATTENTION_PROBLEM_H
#define WB_ATTENTION_PROBLEM_H

#include "ops_test.h"

#include <math.h>

enum { MAX_SEQS = 6 };

/* ---- sequences in a pool ----------------------------------------------------------------------- */

/* n sequences with all their tokens: token i of sequence s is row starts[s] + i of q, k and v. */
typedef struct problem {
    int32_t n, heads, kv_heads, D, V, lengths[MAX_SEQS], starts[MAX_SEQS + 1];
    uint16_t *q, *k, *v, *dout; /* [tokens, heads * D], of v and dout * V */
    float scale;
    int32_t window; /* as of wb_attention */
    /* a forward's values lie in the keys, of which v has copies */
    bool latents;
    float *sinks; /* [heads] or NULL */
    /* of a forward of all tokens, [tokens, heads]; NULL: not looked at */
    const float *log_sums;
} problem;

static uint16_t *random_bf16(int64_t n, float size) {
    uint16_t *x = xalloc(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = wb_f32_to_bf16(rng_uniform(-size, size));
    return x;
}

static uint16_t *poisoned(int64_t n) {
    uint16_t *x = xalloc(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = 0x7fc3;
    return x;
}

/* kind % 4: nothing; a window; sinks; both. Windows of one key, around a block of 128, and of any length. */
static void make_view(problem *p, int kind, int32_t most) {
    const int32_t windows[] = {1, 127, 128, (int32_t)rng_range(1, most)};
    p->window = kind % 2 ? windows[rng_range(0, 3)] : 0;
    p->sinks = kind % 4 >= 2 ? random_floats(p->heads, -4, 8) : NULL;
}

/* Of twenty rounds each has another shape or another kind of view. */
static inline void make_problem(problem *p, int32_t most, int round) {
    static const int32_t shapes[][4] = {
        {8, 2, 128, 128}, {4, 4, 64, 64}, {6, 2, 64, 64}, {16, 1, 128, 128}, {3, 3, 192, 128}};
    const int32_t *shape = shapes[round % 5];
    *p = (problem){.n = (int32_t)rng_range(1, MAX_SEQS),
                   .heads = shape[0],
                   .kv_heads = shape[1],
                   .D = shape[2],
                   .V = shape[3]};
    for (int s = 0; s < p->n; s++) {
        p->lengths[s] = rng_range(0, 3) ? (int32_t)rng_range(1, most) : 1;
        p->starts[s + 1] = p->starts[s] + p->lengths[s];
    }
    const int64_t tokens = p->starts[p->n];
    p->scale = 1 / sqrtf((float)p->D);
    p->q = random_bf16(tokens * p->heads * p->D, 3), p->dout = random_bf16(tokens * p->heads * p->V, 1);
    p->k = random_bf16(tokens * p->kv_heads * p->D, 1), p->v = random_bf16(tokens * p->kv_heads * p->V, 1);
    make_view(p, round, most);
}

/* Latents of MLA's absorbed form, one row for all heads. */
static inline void make_latents(problem *p, int32_t heads, int32_t n, int32_t most, int kind) {
    *p = (problem){.n = n, .heads = heads, .kv_heads = 1, .D = 576, .V = 512, .latents = true};
    for (int s = 0; s < n; s++) {
        p->lengths[s] = s == 0 ? most : (int32_t)rng_range(1, most);
        p->starts[s + 1] = p->starts[s] + p->lengths[s];
    }
    const int64_t tokens = p->starts[n];
    p->scale = 1 / sqrtf((float)p->D);
    p->q = random_bf16(tokens * heads * p->D, 3), p->dout = xalloc(tokens * heads * p->V, sizeof *p->dout);
    p->k = random_bf16(tokens * p->D, 1), p->v = xalloc(tokens * p->V, sizeof *p->v);
    for (int64_t t = 0; t < tokens; t++)
        memcpy(p->v + t * p->V, p->k + t * p->D, (size_t)p->V * sizeof *p->v);
    make_view(p, kind, most);
}

static void free_problem(problem *p) {
    free(p->q), free(p->k), free(p->v), free(p->dout), free(p->sinks);
}

/* A pool whose pages of `size` rows lie in random order, or one after the other; what no key lies in is NaN,
 * the first page among it. */
typedef struct pool {
    int32_t size, max_blocks, pages, *blocks;
    uint16_t *k, *v;
} pool;

static int64_t pool_at(const pool *l, int32_t seq, int32_t pos) {
    return (int64_t)l->blocks[seq * l->max_blocks + pos / l->size] * l->size + pos % l->size;
}

static void make_pool_in(const problem *p, int32_t size, bool in_order, pool *l) {
    const int64_t k_width = p->kv_heads * p->D, v_width = p->kv_heads * p->V;
    *l = (pool){.size = size, .pages = 1};
    for (int s = 0; s < p->n; s++) {
        const int32_t pages = (p->lengths[s] + size - 1) / size;
        l->max_blocks = pages > l->max_blocks ? pages : l->max_blocks;
        l->pages += pages;
    }
    l->blocks = xalloc(p->n * l->max_blocks, sizeof *l->blocks);
    int32_t *order = xalloc(l->pages, sizeof *order), next = 1;
    for (int32_t i = 1; i < l->pages; i++) {
        const int32_t j = in_order ? i : (int32_t)rng_range(1, i);
        order[i] = order[j], order[j] = i;
    }
    for (int s = 0; s < p->n; s++)
        for (int32_t b = 0; b < (p->lengths[s] + size - 1) / size; b++)
            l->blocks[s * l->max_blocks + b] = order[next++];
    l->k = poisoned(l->pages * size * k_width), l->v = poisoned(l->pages * size * v_width);
    for (int s = 0; s < p->n; s++)
        for (int32_t i = 0; i < p->lengths[s]; i++) {
            const int64_t to = pool_at(l, s, i), from = p->starts[s] + i;
            memcpy(l->k + to * k_width, p->k + from * k_width, (size_t)k_width * sizeof *l->k);
            memcpy(l->v + to * v_width, p->v + from * v_width, (size_t)v_width * sizeof *l->v);
        }
    free(order);
}

static inline void make_pool(const problem *p, int32_t size, pool *l) {
    make_pool_in(p, size, false, l);
}

static void free_pool(pool *l) {
    free(l->blocks), free(l->k), free(l->v);
}

/* ---- calls ------------------------------------------------------------------------------------- */

/* T tokens of a call, by their numbers among the problem's; below 0: padding. */
typedef struct batch {
    int64_t T;
    int32_t *seq, *pos;
    int64_t *token;
    uint16_t *q;
    /* of the last forward */
    float *log_sums;
    wb_attention args;
} batch;

static void open_batch(const problem *p, const pool *l, int64_t T, batch *b) {
    *b = (batch){.T = 0, .seq = xalloc(T, sizeof *b->seq), .pos = xalloc(T, sizeof *b->pos)};
    b->token = xalloc(T, sizeof *b->token), b->q = poisoned(T * p->heads * p->D);
    b->log_sums = xalloc(T * p->heads, sizeof *b->log_sums);
    b->args = (wb_attention){.n_heads = p->heads,
                             .n_kv_heads = p->kv_heads,
                             .head_dim = p->D,
                             .value_dim = p->V,
                             .scale = p->scale,
                             .window = p->window,
                             .sinks = p->sinks};
    b->args.q = (wb_rows){b->q, WB_BF16}, b->args.k = (wb_rows){l->k, WB_BF16},
    b->args.v = (wb_rows){p->latents ? l->k : l->v, WB_BF16};
    b->args.seq = b->seq, b->args.pos = b->pos, b->args.blocks = l->blocks;
    b->args.max_blocks = l->max_blocks, b->args.block_size = l->size;
}

static void add_token(const problem *p, int32_t seq, int32_t pos, batch *b) {
    const int64_t width = p->heads * p->D;
    b->seq[b->T] = seq, b->pos[b->T] = pos, b->token[b->T] = seq < 0 ? -1 : p->starts[seq] + pos;
    if (seq >= 0) memcpy(b->q + b->T * width, p->q + b->token[b->T] * width, (size_t)width * sizeof *b->q);
    b->args.T = ++b->T;
}

static void close_batch(batch *b) {
    free(b->seq), free(b->pos), free(b->token), free(b->q), free(b->log_sums);
}

/* All tokens of all sequences in one call. */
static void open_whole(const problem *p, const pool *l, batch *b) {
    open_batch(p, l, p->starts[p->n], b);
    for (int s = 0; s < p->n; s++)
        for (int32_t i = 0; i < p->lengths[s]; i++) add_token(p, s, i, b);
}

/* That no two tokens are of one sequence may be told or not. */
static bool is_told_one_a_sequence(const batch *b) {
    for (int64_t t = 1; t < b->T; t++)
        if (b->seq[t] >= 0 && b->seq[t] == b->seq[t - 1]) return false;
    return rng_range(0, 1) == 0;
}

static uint16_t *forward(const problem *p, const batch *b) {
    uint16_t *out = poisoned(b->T * p->heads * p->V);
    wb_attention args = b->args;
    args.log_sums = b->log_sums;
    args.one_a_sequence = is_told_one_a_sequence(b);
    for (int64_t i = 0; i < b->T * p->heads; i++) b->log_sums[i] = NAN;
    assert_ok(cuda->attention_forward(cuda, &args, (wb_rows){out, WB_BF16}));
    return out;
}

/* ---- in f64, with what the kernels may be off -------------------------------------------------- */

/* A chain of n products is off by less than this times the sum of their sizes: test_products_cuda.c. */
static double chain(int64_t n) {
    return (double)(n / 16 + 2) * 0x1p-17;
}

static double value(const uint16_t *x, int64_t i) {
    return (double)wb_bf16_to_f32(x[i]);
}

enum { MAX_KEYS = 1 << 15, MAX_D = 576 };

/* Of one query and head: weights of the keys, what they may be off, and of dout the same; until the next.
 * Keys that are not seen have the weight 0; sink: that of the head's sink, 0 without one. */
typedef struct query {
    int32_t keys;
    double *p, *p_off, *dp, *dp_off, dot, dot_off, log_sum, log_sum_off, sink, sink_off;
} query;

/* The first key that position pos sees. */
static int32_t first_seen(const problem *p, int32_t pos) {
    return p->window > 0 && pos >= p->window ? pos - p->window + 1 : 0;
}

static query open_query(const problem *p, int seq, int32_t pos, int32_t head) {
    const int32_t D = p->D, V = p->V, n = pos + 1, kv = head / (p->heads / p->kv_heads),
                  first = first_seen(p, pos);
    const double sink = p->sinks ? (double)p->sinks[head] : -INFINITY;
    const int64_t row = (int64_t)(p->starts[seq] + pos) * p->heads + head;
    query w = {.keys = n};
    static double all[4 * MAX_KEYS];
    double largest = sink, sum = 0, off = p->sinks ? fabs(sink) * 0x1p-22 : 0;
    memset(all, 0, sizeof all);
    w.p = all, w.p_off = all + n, w.dp = all + 2 * n, w.dp_off = all + 3 * n;
    for (int32_t j = first; j < n; j++) {
        const int64_t key = (int64_t)(p->starts[seq] + j) * p->kv_heads + kv;
        double score = 0, size = 0, d_size = 0;
        for (int32_t d = 0; d < D; d++) {
            const double x = value(p->q, row * D + d) * value(p->k, key * D + d);
            score += x, size += fabs(x);
        }
        for (int32_t d = 0; d < V; d++) {
            const double x = value(p->dout, row * V + d) * value(p->v, key * V + d);
            w.dp[j] += x, d_size += fabs(x);
        }
        w.p[j] = score * (double)p->scale;
        largest = w.p[j] > largest ? w.p[j] : largest;
        /* the score's chain, and scaling it, in units of the exponent */
        off = fmax(off, size * (double)p->scale * (chain(D) + 0x1p-22));
        w.dp_off[j] = d_size * chain(V);
    }
    for (int32_t j = first; j < n; j++) sum += w.p[j] = exp(w.p[j] - largest);
    sum += exp(sink - largest);
    w.sink = exp(sink - largest) / sum, w.sink_off = w.sink * (2.1 * off + 0x1p-15);
    w.log_sum = largest + log(sum);
    /* a score's, the sum's, and the logarithm's own */
    w.log_sum_off = off + 0x1p-15 + fabs(w.log_sum) * 0x1p-21;
    for (int32_t j = first; j < n; j++) {
        w.p[j] /= sum;
        /* the exponential, its sum and the inverse */
        w.p_off[j] = w.p[j] * (2.1 * off + 0x1p-15) + 1e-30;
        w.dot += w.p[j] * w.dp[j];
        w.dot_off += w.p_off[j] * fabs(w.dp[j]) + w.p[j] * w.dp_off[j];
    }
    return w;
}

static void check_query(const problem *p, const uint16_t *out, int s, int32_t pos, int32_t head) {
    const query w = open_query(p, s, pos, head);
    const int32_t kv = head / (p->heads / p->kv_heads);
    const int64_t row = (int64_t)(p->starts[s] + pos) * p->heads + head;
    if (p->log_sums) assert_close(p->log_sums[row], w.log_sum, w.log_sum_off, "log sum", row);
    for (int32_t d = 0; d < p->V; d++) {
        double sum = 0, off = 0, size = 0;
        for (int32_t j = 0; j < w.keys; j++) {
            const double v = value(p->v, ((int64_t)(p->starts[s] + j) * p->kv_heads + kv) * p->V + d);
            sum += w.p[j] * v, size += w.p[j] * fabs(v);
            off += (w.p_off[j] + w.p[j] * 0x1p-8) * fabs(v);
        }
        const int64_t at = row * p->V + d;
        assert_close(value(out, at), sum, off + size * chain(w.keys) + fabs(sum) * 0x1p-8, "out", at);
    }
}

static inline void check_out(const problem *p, const uint16_t *out) {
    for (int s = 0; s < p->n; s++)
        for (int32_t pos = 0; pos < p->lengths[s]; pos += 1 + pos / 5)
            for (int32_t head = 0; head < p->heads; head++) check_query(p, out, s, pos, head);
}

/* ---- the same bits ----------------------------------------------------------------------------- */

/* Each query's row is that of `whole`, of all tokens; that of padding is zeros. */
static void expect_rows(const problem *p, const batch *b, const uint16_t *out, const uint16_t *whole) {
    const int64_t width = p->heads * p->V;
    for (int64_t t = 0; t < b->T; t++) {
        if (b->token[t] >= 0 && memcmp(out + t * width, whole + b->token[t] * width, (size_t)width * 2) != 0)
            fail_msg("token %" PRId64 " of %" PRId64 ", position %d, pages of %d: bits differ", t, b->T,
                     b->pos[t], b->args.block_size);
        for (int64_t i = 0; i < width && b->token[t] < 0; i++) assert_int_equal(out[t * width + i], 0);
        const float *found = b->log_sums + t * p->heads;
        if (p->log_sums && b->token[t] >= 0)
            assert_same_bits(found, p->log_sums + b->token[t] * p->heads, p->heads, "log sums");
        for (int32_t i = 0; i < p->heads && p->log_sums && b->token[t] < 0; i++) assert_true(found[i] == 0);
    }
}

#endif
