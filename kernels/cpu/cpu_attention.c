/* cpu_attention.c - causal grouped-query attention over a paged pool, forward and backward.
 *
 * Owns: scores, softmax and output of blocks of queries against one kv head. Rows are (query, head of the
 * group), ascending. A score is one fma chain over the head's dimensions of q * scale and k; the
 * exponentials are summed in lane order of the key; an output element is one fma chain over ascending
 * keys, which are exactly those that the query sees, times 1 / sum. So a query's bits do not depend on the
 * queries beside it. Refuses: writing the cache (kv_write).
 */
#include "attention_check.h"
#include "cpu/cpu_operands.h"
#include "cpu/cpu_panel.h"

/* Rows of a block: its scores are computed together and share the packed keys and values. */
enum { FORWARD_ROWS = 48, BACKWARD_ROWS = 32, WIDTH = MAX_PANELS * PANEL };

/* Consecutive queries of one sequence. */
typedef struct piece {
    int64_t t, count;
} piece;

typedef struct plan {
    piece *pieces;             /* owner: the device's shared memory */
    int64_t count, keys, work; /* keys: the maximum that a query sees; work: multiply-adds */
} plan;

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t group_of(const wb_attention *args) {
    return args->n_heads / args->n_kv_heads;
}

/* Queries of a block of about `rows` rows. */
static int64_t queries_of(const wb_attention *args, int64_t rows) {
    int64_t group = group_of(args);
    return group < rows ? rows / group : 1;
}

/* Cuts the tokens into pieces of at most `queries` of one sequence. */
static wb_status make_plan(wb_device *dev, const wb_attention *args, int64_t queries, plan *plan_out) {
    _Static_assert(sizeof(piece) == 2 * sizeof(int64_t), "wb_cpu_attention_plan_bytes counts pieces");
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(dev, wb_cpu_attention_plan_bytes(args->T), &shared));
    plan p = {.pieces = shared};
    for (int64_t t = 0; t < args->T; t++) {
        if (args->seq[t] < 0) continue;
        bool same = t > 0 && args->seq[t] == args->seq[t - 1];
        if (same && p.pieces[p.count - 1].count < queries)
            p.pieces[p.count - 1].count++;
        else
            p.pieces[p.count++] = (piece){t, 1};
        int64_t keys = (int64_t)args->pos[t] + 1;
        p.keys = keys > p.keys ? keys : p.keys;
        p.work += keys;
    }
    p.work *= 2 * (int64_t)args->n_heads * args->head_dim;
    *plan_out = p;
    return WB_OK;
}

/* Rows of padding, which no piece has. */
static void zero_padding(const wb_attention *args, wb_rows rows) {
    const int64_t n = (int64_t)args->n_heads * args->head_dim;
    const size_t bytes = (size_t)n * wb_dtype_size(rows.dtype);
    for (int64_t t = 0; t < args->T; t++)
        if (args->seq[t] < 0) memset(wb_rows_from(rows, t * n).data, 0, bytes);
}

/* index[j] = the pool's row of position j of the sequence of token t. */
static void find_keys(const wb_attention *args, int64_t t, int64_t keys, int64_t *index) {
    const int32_t *blocks = args->blocks + (int64_t)args->seq[t] * args->max_blocks;
    int64_t size = args->block_size;
    for (int64_t begin = 0; begin < keys; begin += size) {
        int64_t first = (int64_t)blocks[begin / size] * size, count = min64(size, keys - begin);
        for (int64_t i = 0; i < count; i++) index[begin + i] = first + i;
    }
}

/* K or V of one kv head: row index[j] of the pool. */
static matrix_rows pool_rows(const wb_attention *args, wb_rows pool, int64_t kv, const int64_t *index) {
    wb_rows head = wb_rows_from(pool, kv * args->head_dim);
    return (matrix_rows){head.data, head.dtype, (int64_t)args->n_kv_heads * args->head_dim, index};
}

/* Where row r of a piece is in q, out and their gradients. */
static int64_t row_at(const wb_attention *args, piece p, int64_t kv, int64_t r) {
    int64_t group = group_of(args);
    return ((p.t + r / group) * args->n_heads + kv * group + r % group) * args->head_dim;
}

/* Keys that row r of a piece sees. */
static int64_t row_keys(const wb_attention *args, piece p, int64_t r) {
    return (int64_t)args->pos[p.t + r / group_of(args)] + 1;
}

/* to[rows, head_dim] = from * factor */
static void gather_queries(const wb_attention *args, piece p, int64_t kv, int64_t rows, float factor,
                           wb_rows from, float *restrict to) {
    int64_t hd = args->head_dim;
    for (int64_t r = 0; r < rows; r++, to += hd) {
        rows_load(from, row_at(args, p, kv, r), hd, to);
        for (int64_t d = 0; d < hd; d++) to[d] *= factor;
    }
}

/* The way back: `to` = from[rows, head_dim], whose row r is multiplied by factors[r * each] first. */
static void scatter_queries(const wb_attention *args, piece p, int64_t kv, int64_t rows, const float *factors,
                            int64_t each, float *restrict from, wb_rows to) {
    int64_t hd = args->head_dim;
    for (int64_t r = 0; r < rows; r++, from += hd) {
        const float factor = factors[r * each];
        for (int64_t d = 0; d < hd; d++) from[d] *= factor;
        rows_store(hd, from, to, row_at(args, p, kv, r));
    }
}

/* ---- forward --------------------------------------------------------------------------------- */

/* One block of queries; arrays live in a thread's scratch. */
typedef struct forward_block {
    piece p;
    int64_t kv, rows, keys, ld; /* ld: keys, rounded up to WIDTH */
    int64_t *index;             /* [keys] */
    float *q, *out;             /* [rows, head_dim] */
    float *scores;              /* [rows, ld] */
    float *panels;              /* [MAX_PANELS][PANEL_FLOATS] */
} forward_block;

static int64_t score_stride(int64_t keys) {
    return (keys + WIDTH - 1) / WIDTH * WIDTH;
}

size_t WB_CPU(attention_forward_bytes)(const wb_attention *args, int64_t keys) {
    int64_t rows = queries_of(args, FORWARD_ROWS) * group_of(args);
    int64_t count = MAX_PANELS * PANEL_FLOATS + rows * (2 * (int64_t)args->head_dim + score_stride(keys));
    return (size_t)count * sizeof(float) + (size_t)keys * sizeof(int64_t);
}

static forward_block place_forward(const wb_attention *args, piece p, int64_t kv, float *scratch) {
    forward_block b = {.p = p, .kv = kv, .rows = p.count * group_of(args)};
    b.keys = row_keys(args, p, b.rows - 1);
    b.ld = score_stride(b.keys);
    b.panels = scratch;
    b.scores = b.panels + MAX_PANELS * PANEL_FLOATS;
    b.index = (int64_t *)(void *)(b.scores + b.rows * b.ld);
    b.q = (float *)(b.index + b.keys);
    b.out = b.q + b.rows * args->head_dim;
    return b;
}

/* The scores of a few rows of one query, in whole blocks of the pool; the keys after the last are read and
 * not used. False where rows or blocks do not suit. */
static bool compute_thin_scores(const wb_attention *args, forward_block b) {
    int64_t hd = args->head_dim, size = args->block_size, stride = args->n_kv_heads * hd;
    if (b.p.count != 1 || b.rows > TILE_ROWS || size % 16 != 0) return false;
    matrix_rows k = pool_rows(args, args->k, b.kv, b.index);
    const char *data = k.data;
    int64_t row_bytes = stride * (int64_t)wb_dtype_size(k.dtype);
    for (int64_t j = 0; j < b.keys; j += size) {
        int64_t columns = (min64(size, b.keys - j) + 15) / 16 * 16;
        wb_weight keys = {(void *)(data + b.index[j] * row_bytes), k.dtype, columns, hd};
        wb_matmul m = wb_matmul_forward(b.rows, wb_f32_rows(b.q), keys, wb_f32_rows(b.scores + j));
        m.b_col = stride, m.ldc = b.ld;
        const char *after = j + size < b.keys ? data + b.index[j + size] * row_bytes : NULL;
        if (WB_CPU(thin_transposed)(&m, 0, b.rows, 0, columns, after) == 0) return false;
    }
    return true;
}

/* scores[r, j] for the keys that row r sees; later columns are left undefined. */
static void compute_scores(const wb_attention *args, forward_block b) {
    matrix_rows k = pool_rows(args, args->k, b.kv, b.index);
    int64_t hd = args->head_dim, width = (int64_t)panels_of(b.rows) * PANEL, first = 0;
    for (int64_t j = 0; j < b.keys; j += width) {
        while (row_keys(args, b.p, min64(first + TILE_ROWS, b.rows) - 1) <= j)
            first += TILE_ROWS; /* sees none of them */
        for (int64_t d = 0; d < hd; d += K_BLOCK) {
            int64_t count = min64(K_BLOCK, hd - d);
            for (int64_t done = 0; done < width; done += PANEL)
                WB_CPU(pack_transposed)(k, j + done, b.keys, d, count, b.panels + done * K_BLOCK);
            tile_rows q = {b.q + first * hd + d, false, hd};
            WB_CPU(tiles)
            (b.rows - first, width, count, q, b.panels, d > 0, b.scores + first * b.ld + j, b.ld);
        }
    }
}

/* out rows [first, first + rows), columns [d, d + columns) += keys [k0, k0 + count) of the packed values.
 * The keys that all rows see together, then each row's own. */
static void add_values(const wb_attention *args, forward_block b, int64_t first, int64_t rows, int64_t d,
                       int64_t columns, int64_t k0, int64_t count) {
    int64_t hd = args->head_dim, common = min64(row_keys(args, b.p, first) - k0, count);
    common = common > 0 ? common : 0;
    int64_t width = (int64_t)panels_of(rows) * PANEL;
    for (int64_t done = 0; done < columns && common > 0; done += width) {
        tile_rows p = {b.scores + first * b.ld + k0, false, b.ld};
        WB_CPU(tiles)
        (rows, min64(width, columns - done), common, p, b.panels + done * K_BLOCK, k0 > 0,
         b.out + first * hd + d + done, hd);
    }
    for (int64_t r = first; r < first + rows; r++) {
        int64_t more = min64(row_keys(args, b.p, r) - k0, count) - common;
        if (more <= 0) continue;
        tile_rows p = {b.scores + r * b.ld + k0 + common, false, b.ld};
        WB_CPU(tiles)(1, columns, more, p, b.panels + common * PANEL, true, b.out + r * hd + d, hd);
    }
}

static void compute_output(const wb_attention *args, forward_block b) {
    matrix_rows v = pool_rows(args, args->v, b.kv, b.index);
    int64_t hd = args->head_dim, thin = 0;
    if (b.p.count == 1)
        thin = WB_CPU(thin_straight)(b.rows, v, b.keys, 0, hd, b.scores, b.ld, false, b.out, hd);
    for (int64_t k0 = 0; k0 < b.keys; k0 += K_BLOCK)
        for (int64_t d = thin; d < hd; d += WIDTH) {
            int64_t count = min64(K_BLOCK, b.keys - k0), columns = min64(WIDTH, hd - d);
            for (int64_t done = 0; done < columns; done += PANEL)
                WB_CPU(pack_straight)(v, k0, count, d + done, hd, b.panels + done * K_BLOCK);
            for (int64_t r = 0; r < b.rows; r += TILE_ROWS)
                add_values(args, b, r, min64(TILE_ROWS, b.rows - r), d, columns, k0, count);
        }
}

static void forward_task(const wb_attention *args, forward_block b, wb_rows out) {
    find_keys(args, b.p.t, b.keys, b.index);
    gather_queries(args, b.p, b.kv, b.rows, args->scale, args->q, b.q);
    if (!compute_thin_scores(args, b)) compute_scores(args, b);
    for (int64_t r = 0; r < b.rows; r++) {
        float *p = b.scores + r * b.ld;
        int64_t keys = row_keys(args, b.p, r);
        b.q[r] = 1.0f / row_exp(p, keys, row_max(p, keys), p); /* the queries are not needed any more */
    }
    compute_output(args, b);
    scatter_queries(args, b.p, b.kv, b.rows, b.q, 1, b.out, out);
}

wb_status WB_CPU(attention_forward)(wb_device *dev, const wb_attention *args, wb_rows out) {
    plan p = {0};
    WB_TRY(attention_check("attention_forward", args));
    WB_TRY(operand_check_like("attention_forward", "out", out.dtype, "q", args->q.dtype));
    WB_TRY(make_plan(dev, args, queries_of(args, FORWARD_ROWS), &p));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(attention_forward_bytes)(args, p.keys)));
    int64_t tasks = p.count * args->n_kv_heads;
    zero_padding(args, out);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, p.work / 4))
    for (int64_t i = 0; i < tasks; i++) {
        int64_t task = tasks - 1 - i; /* the last pieces of a prompt see the most keys: first */
        piece at = p.pieces[task / args->n_kv_heads];
        forward_task(args, place_forward(args, at, task % args->n_kv_heads, wb_cpu_scratch(dev)), out);
    }
    return WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* One run of queries against one kv head; arrays live in a thread's scratch. */
typedef struct backward_run {
    piece p;
    int64_t kv, keys;
    int64_t *index;         /* [keys] */
    float *k, *v, *dk, *dv; /* [keys, head_dim], gathered */
    float *q, *dout, *dq;   /* [BACKWARD_ROWS or a group, head_dim]; q times scale */
    float *p_rows, *ds;     /* [the same, keys] probabilities and gradient of the scores */
    float *product;         /* PRODUCT_FLOATS */
} backward_run;

static int64_t backward_rows(const wb_attention *args) {
    return queries_of(args, BACKWARD_ROWS) * group_of(args);
}

size_t WB_CPU(attention_backward_bytes)(const wb_attention *args, int64_t keys) {
    int64_t rows = backward_rows(args), hd = args->head_dim;
    int64_t count = PRODUCT_FLOATS + 4 * keys * hd + 3 * rows * hd + 2 * rows * keys;
    return (size_t)count * sizeof(float) + (size_t)keys * sizeof(int64_t);
}

static backward_run place_backward(const wb_attention *args, piece p, int64_t kv, float *scratch) {
    backward_run b = {.p = p, .kv = kv, .keys = row_keys(args, p, p.count * group_of(args) - 1)};
    int64_t hd = args->head_dim, rows = backward_rows(args);
    b.product = scratch;
    b.index = (int64_t *)(void *)(b.product + PRODUCT_FLOATS);
    b.k = (float *)(b.index + b.keys);
    b.v = b.k + b.keys * hd;
    b.dk = b.v + b.keys * hd;
    b.dv = b.dk + b.keys * hd;
    b.q = b.dv + b.keys * hd;
    b.dout = b.q + rows * hd;
    b.dq = b.dout + rows * hd;
    b.p_rows = b.dq + rows * hd;
    b.ds = b.p_rows + rows * b.keys;
    return b;
}

/* Where key j of a run is in k, v and their gradients. */
static int64_t key_at(const wb_attention *args, backward_run b, int64_t j) {
    return (b.index[j] * args->n_kv_heads + b.kv) * args->head_dim;
}

static void gather_keys(const wb_attention *args, backward_run b, wb_rows pool, float *to) {
    int64_t hd = args->head_dim;
    for (int64_t j = 0; j < b.keys; j++) rows_load(pool, key_at(args, b, j), hd, to + j * hd);
}

static void scatter_keys(const wb_attention *args, backward_run b, const float *from, wb_rows pool) {
    int64_t hd = args->head_dim;
    for (int64_t j = 0; j < b.keys; j++) rows_store(hd, from + j * hd, pool, key_at(args, b, j));
}

/* Probabilities of one row from its scores, then ds = p (dp - sum p dp) from dp; zeros for the keys it
 * does not see. */
static void backward_row(int64_t seen, int64_t keys, float *restrict p, float *restrict dp) {
    float inverse = 1.0f / row_exp(p, seen, row_max(p, seen), p);
    for (int64_t j = 0; j < seen; j++) p[j] *= inverse;
    float dot = row_dot(p, dp, seen);
    for (int64_t j = 0; j < seen; j++) dp[j] = p[j] * (dp[j] - dot);
    memset(p + seen, 0, (size_t)(keys - seen) * sizeof(float));
    memset(dp + seen, 0, (size_t)(keys - seen) * sizeof(float));
}

/* One block of queries: dq (=), dk and dv of the run (+=). */
static void backward_queries(const wb_attention *args, backward_run b, piece block, wb_rows dout,
                             wb_rows dq) {
    int64_t hd = args->head_dim, rows = block.count * group_of(args), keys = row_keys(args, block, rows - 1);
    gather_queries(args, block, b.kv, rows, args->scale, args->q, b.q);
    gather_queries(args, block, b.kv, rows, 1.0f, dout, b.dout);
    wb_rows q = wb_f32_rows(b.q), dout_rows = wb_f32_rows(b.dout);
    wb_rows probabilities = wb_f32_rows(b.p_rows), ds = wb_f32_rows(b.ds);
    wb_weight k = {b.k, WB_F32, keys, hd}, v = {b.v, WB_F32, keys, hd};
    wb_matmul scores = wb_matmul_forward(rows, q, k, probabilities);
    wb_matmul dp = wb_matmul_forward(rows, dout_rows, v, ds);
    WB_CPU(product)(&scores, b.product);
    WB_CPU(product)(&dp, b.product);
    for (int64_t r = 0; r < rows; r++)
        backward_row(row_keys(args, block, r), keys, b.p_rows + r * keys, b.ds + r * keys);
    wb_matmul to_q = wb_matmul_dgrad(rows, ds, k, wb_f32_rows(b.dq), false);
    wb_matmul to_k = wb_matmul_wgrad(rows, hd, keys, ds, q, b.dk);
    wb_matmul to_v = wb_matmul_wgrad(rows, hd, keys, probabilities, dout_rows, b.dv);
    WB_CPU(product)(&to_q, b.product);
    WB_CPU(product)(&to_k, b.product);
    WB_CPU(product)(&to_v, b.product);
    scatter_queries(args, block, b.kv, rows, &args->scale, 0, b.dq, dq);
}

static void backward_task(const wb_attention *args, backward_run b, wb_rows dout, wb_rows dq, wb_rows dk,
                          wb_rows dv) {
    int64_t queries = queries_of(args, BACKWARD_ROWS);
    find_keys(args, b.p.t, b.keys, b.index);
    gather_keys(args, b, args->k, b.k);
    gather_keys(args, b, args->v, b.v);
    gather_keys(args, b, dk, b.dk);
    gather_keys(args, b, dv, b.dv);
    for (int64_t done = 0; done < b.p.count; done += queries)
        backward_queries(args, b, (piece){b.p.t + done, min64(queries, b.p.count - done)}, dout, dq);
    scatter_keys(args, b, b.dk, dk);
    scatter_keys(args, b, b.dv, dv);
}

/* All operands of one dtype. */
static wb_status check_backward(const wb_attention *args, wb_rows dout, wb_rows dq, wb_rows dk, wb_rows dv) {
    const wb_dtype dtype = args->q.dtype;
    WB_TRY(attention_check("attention_backward", args));
    WB_TRY(operand_check_like("attention_backward", "k", args->k.dtype, "q", dtype));
    WB_TRY(operand_check_like("attention_backward", "dout", dout.dtype, "q", dtype));
    WB_TRY(operand_check_like("attention_backward", "dq", dq.dtype, "q", dtype));
    WB_TRY(operand_check_like("attention_backward", "dk", dk.dtype, "q", dtype));
    return operand_check_like("attention_backward", "dv", dv.dtype, "q", dtype);
}

wb_status WB_CPU(attention_backward)(wb_device *dev, const wb_attention *args, wb_rows dout, wb_rows dq,
                                     wb_rows dk, wb_rows dv) {
    plan p = {0};
    WB_TRY(check_backward(args, dout, dq, dk, dv));
    WB_TRY(make_plan(dev, args, args->T, &p));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(attention_backward_bytes)(args, p.keys)));
    zero_padding(args, dq);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, p.work / 2))
    for (int64_t task = 0; task < p.count * args->n_kv_heads; task++) {
        piece at = p.pieces[task / args->n_kv_heads];
        backward_task(args, place_backward(args, at, task % args->n_kv_heads, wb_cpu_scratch(dev)), dout, dq,
                      dk, dv);
    }
    return WB_OK;
}
