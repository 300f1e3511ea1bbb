/* attention_back_cases.h - sequences, and calls of the forward and the backward of attention on CUDA in bf16
 * with some of them in some order, in pages or not, with padding or without. Rows of the pool that are no
 * key's, and padding, are NaN, and gradients that are nobody's must stay what they were. */
#ifndef WB_ATTENTION_BACK_CASES_H
#define WB_ATTENTION_BACK_CASES_H

#include "cuda_memory.h"

#include "ops_test.h"

#include <math.h>

/* ---- sequences --------------------------------------------------------------------------------- */

/* n sequences: position i of sequence s is row starts[s] + i of all arrays; those from firsts[s] on are fed,
 * those before have keys and values alone. */
typedef struct problem {
    int32_t n, heads, kv_heads, D, *lengths, *firsts, *starts;
    float scale;
    int32_t window; /* as of wb_attention */
    float *sinks;   /* [heads] or NULL */
    /* [rows, heads * D], and of those that are like k [rows, kv_heads * D] */
    uint16_t *q, *dout, *k, *v, *dk, *dv;
} problem;

static uint16_t *random_bf16(int64_t n, float size) {
    uint16_t *x = xalloc(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = wb_f32_to_bf16(rng_uniform(-size, size));
    return x;
}

static uint16_t *filled(int64_t n, uint16_t with) {
    uint16_t *x = xalloc(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = with;
    return x;
}

enum { NaN = 0x7fc3, POISON = 0x4321 };

static int64_t wide(const problem *p) {
    return (int64_t)p->heads * p->D;
}
static int64_t narrow(const problem *p) {
    return (int64_t)p->kv_heads * p->D;
}

/* The first key that position pos sees. */
static int32_t first_seen(const problem *p, int32_t pos) {
    return p->window > 0 && pos >= p->window ? pos - p->window + 1 : 0;
}

/* `prefixes`: some sequences begin with keys of earlier calls. Every second round has a window, and two of
 * four have sinks. */
static void make_problem(problem *p, int32_t n, int32_t most, bool prefixes, int round) {
    static const int32_t shapes[][3] = {{8, 2, 128}, {4, 4, 64}, {6, 2, 64}, {16, 1, 128}, {2, 1, 128}};
    const int32_t *shape = shapes[round % 5];
    *p = (problem){.n = n, .heads = shape[0], .kv_heads = shape[1], .D = shape[2]};
    p->lengths = xalloc(n, sizeof *p->lengths), p->firsts = xalloc(n, sizeof *p->firsts);
    p->starts = xalloc(n + 1, sizeof *p->starts);
    for (int s = 0; s < n; s++) {
        p->lengths[s] = n == 1 ? most : (int32_t)rng_range(1, most);
        if (prefixes && rng_range(0, 1)) p->firsts[s] = (int32_t)rng_range(0, p->lengths[s] - 1);
        p->starts[s + 1] = p->starts[s] + p->lengths[s];
    }
    const int64_t rows = p->starts[n];
    p->scale = 1 / sqrtf((float)p->D);
    p->q = random_bf16(rows * wide(p), 3), p->dout = random_bf16(rows * wide(p), 1);
    p->k = random_bf16(rows * narrow(p), 1), p->v = random_bf16(rows * narrow(p), 1);
    p->dk = random_bf16(rows * narrow(p), 1), p->dv = random_bf16(rows * narrow(p), 1);
    const int32_t windows[] = {1, 64, (int32_t)rng_range(1, most), (int32_t)rng_range(1, most)};
    p->window = round % 2 ? windows[rng_range(0, 3)] : 0;
    p->sinks = round % 4 >= 2 ? random_floats(p->heads, -4, 6) : NULL;
}

static void free_problem(problem *p) {
    free(p->lengths), free(p->firsts), free(p->starts);
    free(p->q), free(p->dout), free(p->k), free(p->v), free(p->dk), free(p->dv), free(p->sinks);
}

/* ---- calls ------------------------------------------------------------------------------------- */

/* What a call made, by the rows of the problem; NaN where it made nothing. */
typedef struct gradients {
    uint16_t *dq, *dk, *dv;
    float *log_sums; /* [rows, heads] */
    float *dsinks;   /* [heads], added to zeros */
} gradients;

static gradients make_gradients(const problem *p) {
    const int64_t rows = p->starts[p->n];
    gradients g = {filled(rows * wide(p), NaN), filled(rows * narrow(p), NaN), filled(rows * narrow(p), NaN),
                   floats(rows * p->heads), xalloc(p->heads, sizeof(float))};
    return g;
}

static void free_gradients(gradients *g) {
    free(g->dq), free(g->dk), free(g->dv), free(g->log_sums), free(g->dsinks);
}

/* How a call is made: which sequences, padding between them, rows of a page, whether pages lie in order,
 * whether the forward leaves nothing, and by how many elements dq is off from where memory begins. */
typedef struct layout {
    int32_t n, *order;
    bool padding;
    int32_t page;
    bool in_order;
    bool forgets;
    int64_t dq_from;
} layout;

/* T tokens, by the problem's rows, -1: padding; the pool's row of each of the problem's, -1: none. */
typedef struct batch {
    int64_t T, pool_rows, *token, *pool_row;
    int32_t *seq, *pos;
    wb_attention args;
} batch;

static void add_token(batch *b, int32_t seq, int32_t pos, int64_t token) {
    b->seq[b->T] = seq, b->pos[b->T] = pos, b->token[b->T++] = token;
}

/* Pages lie in order or in random order; one of the pool's is unused. */
static void place_keys(const problem *p, const layout *l, batch *b) {
    int32_t max_blocks = 0, pages = 1, next = 0;
    for (int i = 0; i < l->n; i++) {
        const int32_t blocks = (p->lengths[l->order[i]] + l->page - 1) / l->page;
        max_blocks = blocks > max_blocks ? blocks : max_blocks, pages += blocks;
    }
    int32_t *order = xalloc(pages, sizeof *order), *blocks = xalloc(p->n * max_blocks, sizeof *blocks);
    for (int32_t i = 0; i < pages; i++) {
        const int32_t j = l->in_order ? i : (int32_t)rng_range(0, i);
        order[i] = order[j], order[j] = i;
    }
    b->pool_rows = (int64_t)pages * l->page;
    b->pool_row = xalloc(p->starts[p->n], sizeof *b->pool_row);
    for (int64_t i = 0; i < p->starts[p->n]; i++) b->pool_row[i] = -1;
    for (int i = 0; i < l->n; i++)
        for (int32_t s = l->order[i], pos = 0; pos < p->lengths[s]; pos++) {
            if (pos % l->page == 0) blocks[s * max_blocks + pos / l->page] = order[next++];
            b->pool_row[p->starts[s] + pos] =
                (int64_t)blocks[s * max_blocks + pos / l->page] * l->page + pos % l->page;
        }
    /* pages of which no query sees a key are gone */
    for (int s = 0; s < p->n; s++)
        for (int32_t i = 0; i < first_seen(p, p->firsts[s]) / l->page && max_blocks > 0; i++)
            blocks[s * max_blocks + i] = INT32_MAX / l->page;
    free(order);
    b->args.blocks = blocks, b->args.max_blocks = max_blocks, b->args.block_size = l->page;
}

static void open_batch(const problem *p, const layout *l, batch *b) {
    const int64_t most = p->starts[p->n] + 8 * (l->n + 1);
    *b = (batch){.token = xalloc(most, sizeof *b->token)};
    b->seq = xalloc(most, sizeof *b->seq), b->pos = xalloc(most, sizeof *b->pos);
    for (int i = 0; i < l->n; i++) {
        for (int64_t j = l->padding ? rng_range(0, 8) : 0; j > 0; j--) add_token(b, -1, 0, -1);
        for (int32_t s = l->order[i], pos = p->firsts[s]; pos < p->lengths[s]; pos++)
            add_token(b, s, pos, p->starts[s] + pos);
    }
    b->args = (wb_attention){.T = b->T,
                             .n_heads = p->heads,
                             .n_kv_heads = p->kv_heads,
                             .head_dim = p->D,
                             .value_dim = p->D,
                             .scale = p->scale,
                             .window = p->window,
                             .sinks = p->sinks};
    b->args.seq = b->seq, b->args.pos = b->pos;
    place_keys(p, l, b);
}

static void close_batch(batch *b) {
    free(b->token), free(b->pool_row), free(b->seq), free(b->pos), free((void *)b->args.blocks);
}

/* Rows of the problem's as a call has them: of tokens, or of keys; `with` where there is none. */
static uint16_t *rows_of_tokens(const batch *b, const uint16_t *x, int64_t width, uint16_t with) {
    uint16_t *y = filled(b->T * width, with);
    for (int64_t t = 0; t < b->T; t++)
        if (b->token[t] >= 0) memcpy(y + t * width, x + b->token[t] * width, (size_t)width * 2);
    return y;
}
static uint16_t *rows_of_keys(const problem *p, const batch *b, const uint16_t *x, uint16_t with) {
    const int64_t width = narrow(p);
    uint16_t *y = filled(b->pool_rows * width, with);
    for (int64_t i = 0; i < p->starts[p->n]; i++)
        if (b->pool_row[i] >= 0) memcpy(y + b->pool_row[i] * width, x + i * width, (size_t)width * 2);
    return y;
}

/* The way back. Rows of the pool that no key lies in are as they were; their number is checked. */
static void collect_keys(const problem *p, const batch *b, const uint16_t *x, uint16_t *to) {
    const int64_t width = narrow(p);
    int64_t untouched = 0, unused = b->pool_rows;
    for (int64_t i = 0; i < p->starts[p->n]; i++) {
        if (b->pool_row[i] < 0) continue;
        memcpy(to + i * width, x + b->pool_row[i] * width, (size_t)width * 2);
        unused--;
    }
    for (int64_t row = 0; row < b->pool_rows; row++) {
        int64_t same = 0;
        while (same < width && x[row * width + same] == POISON) same++;
        untouched += same == width;
    }
    assert_int_equal(untouched, unused);
}

static void collect_tokens(const problem *p, const batch *b, const uint16_t *dq, const float *log_sums,
                           gradients *g) {
    const int64_t width = wide(p);
    for (int64_t t = 0; t < b->T; t++) {
        const int64_t to = b->token[t];
        for (int64_t i = 0; i < width && to < 0; i++) assert_int_equal(dq[t * width + i], 0);
        if (to < 0) continue;
        memcpy(g->dq + to * width, dq + t * width, (size_t)width * 2);
        memcpy(g->log_sums + to * p->heads, log_sums + t * p->heads, (size_t)p->heads * sizeof *log_sums);
    }
}

/* Forward and backward. Padding has NaN in q and dout, and so have unused rows of the pool, and those before
 * the window, in k and v. */
static void call(const problem *p, const layout *l, gradients *g) {
    batch b;
    open_batch(p, l, &b);
    uint16_t *q = rows_of_tokens(&b, p->q, wide(p), NaN), *dout = rows_of_tokens(&b, p->dout, wide(p), NaN);
    uint16_t *k = rows_of_keys(p, &b, p->k, NaN), *v = rows_of_keys(p, &b, p->v, NaN);
    for (int s = 0; s < p->n; s++)
        for (int64_t i = p->starts[s]; i < p->starts[s] + first_seen(p, p->firsts[s]); i++)
            for (int64_t d = 0; d < narrow(p) && b.pool_row[i] >= 0; d++)
                k[b.pool_row[i] * narrow(p) + d] = v[b.pool_row[i] * narrow(p) + d] = NaN;
    uint16_t *dk = rows_of_keys(p, &b, p->dk, POISON), *dv = rows_of_keys(p, &b, p->dv, POISON);
    uint16_t *out = filled(b.T * wide(p), NaN), *dq = filled(b.T * wide(p) + l->dq_from, NaN);
    float *log_sums = floats(b.T * p->heads);
    memset(g->dsinks, 0, (size_t)p->heads * sizeof *g->dsinks);
    b.args.q = (wb_rows){q, WB_BF16}, b.args.k = (wb_rows){k, WB_BF16}, b.args.v = (wb_rows){v, WB_BF16};
    b.args.log_sums = l->forgets ? NULL : log_sums, b.args.out = (wb_rows){out, WB_BF16};
    assert_ok(cuda->attention_forward(cuda, &b.args, (wb_rows){out, WB_BF16}));
    assert_ok(cuda->attention_backward(cuda, &b.args, (wb_rows){dout, WB_BF16},
                                       (wb_rows){dq + l->dq_from, WB_BF16}, (wb_rows){dk, WB_BF16},
                                       (wb_rows){dv, WB_BF16}, p->sinks ? g->dsinks : NULL));
    collect_tokens(p, &b, dq + l->dq_from, log_sums, g);
    collect_keys(p, &b, dk, g->dk), collect_keys(p, &b, dv, g->dv);
    free(q), free(dout), free(k), free(v), free(dk), free(dv), free(out), free(dq), free(log_sums);
    close_batch(&b);
}

/* All sequences, in this order or, by `random`, in another. */
static layout all_sequences(const problem *p, bool random) {
    layout l = {.n = p->n, .order = xalloc(p->n, sizeof *l.order), .page = 1};
    for (int32_t i = 0; i < p->n; i++) {
        const int32_t j = random ? (int32_t)rng_range(0, i) : i;
        l.order[i] = l.order[j], l.order[j] = i;
    }
    return l;
}

#endif
