/* cpu_attention_back.c - the backward of causal grouped-query attention.
 *
 * Owns: dq, dk and dv of a run of queries against one kv head, and the gradients of sinks. Probabilities are
 * found again as the forward found them. Gradients of keys and values are one fma chain over ascending rows,
 * that of a sink a chain over ascending tokens. Refuses: the forward (cpu_attention.c).
 */
#include "cpu/cpu_attention.h"

/* Rows of a block. */
enum { BLOCK_ROWS = 32 };

/* One run of queries against one kv head; arrays live in a thread's scratch. */
typedef struct backward_run {
    piece p;
    key_columns keys;
    int64_t kv;
    int64_t *index;         /* [keys.end] */
    float *k, *v, *dk, *dv; /* [keys.end, head_dim or value_dim], gathered; zeros where nobody sees the key */
    float *q, *dout, *dq;   /* [BLOCK_ROWS or a group, the same]; q times scale */
    float *p_rows, *ds;     /* [the same rows, keys.end] probabilities and gradient of the scores */
    float *product;         /* PRODUCT_FLOATS */
} backward_run;

static int64_t backward_rows(const wb_attention *args) {
    return queries_of(args, BLOCK_ROWS) * group_of(args);
}

size_t WB_CPU(attention_backward_bytes)(const wb_attention *args, int64_t keys) {
    int64_t rows = backward_rows(args), hd = args->head_dim, vd = args->value_dim;
    int64_t count = PRODUCT_FLOATS + 2 * keys * (hd + vd) + rows * (2 * hd + vd) + 2 * rows * keys;
    return (size_t)count * sizeof(float) + (size_t)keys * sizeof(int64_t);
}

static backward_run place_backward(const wb_attention *args, piece p, int64_t kv, float *scratch) {
    backward_run b = {.p = p, .kv = kv, .keys = find_columns(args, p)};
    int64_t hd = args->head_dim, vd = args->value_dim, rows = backward_rows(args), keys = b.keys.end;
    b.product = scratch;
    b.index = (int64_t *)(void *)(b.product + PRODUCT_FLOATS);
    b.k = (float *)(b.index + keys);
    b.v = b.k + keys * hd;
    b.dk = b.v + keys * vd;
    b.dv = b.dk + keys * hd;
    b.q = b.dv + keys * vd;
    b.dout = b.q + rows * hd;
    b.dq = b.dout + rows * vd;
    b.p_rows = b.dq + rows * hd;
    b.ds = b.p_rows + rows * keys;
    return b;
}

/* Rows of the pool of a run's keys, `width` of a head, and back. */
static void gather_keys(const wb_attention *args, backward_run b, wb_rows pool, int64_t width, float *to) {
    memset(to, 0, (size_t)(b.keys.begin * width) * sizeof *to);
    for (int64_t j = b.keys.begin; j < b.keys.end; j++)
        rows_load(pool, (b.index[j] * args->n_kv_heads + b.kv) * width, width, to + j * width);
}

static void scatter_keys(const wb_attention *args, backward_run b, const float *from, int64_t width,
                         wb_rows pool) {
    for (int64_t j = b.keys.begin; j < b.keys.end; j++)
        rows_store(width, from + j * width, pool, (b.index[j] * args->n_kv_heads + b.kv) * width);
}

/* One block of queries: dq (=), dk and dv of the run (+=). `sink_terms`: of all tokens, or NULL. */
static void backward_queries(const wb_attention *args, backward_run b, piece block, wb_rows dout, wb_rows dq,
                             float *sink_terms) {
    const int64_t hd = args->head_dim, vd = args->value_dim, rows = block.count * group_of(args);
    const key_columns c = find_columns(args, block);
    const int64_t keys = c.end, skipped = c.first - b.keys.first; /* of the run's, by no row of the block */
    gather_queries(args, block, b.kv, args->scale, hd, args->q, b.q);
    gather_queries(args, block, b.kv, 1.0f, vd, dout, b.dout);
    wb_rows q = wb_f32_rows(b.q), dout_rows = wb_f32_rows(b.dout);
    wb_rows probabilities = wb_f32_rows(b.p_rows), ds = wb_f32_rows(b.ds);
    wb_weight k = {b.k + skipped * hd, WB_F32, keys, hd, false},
              v = {b.v + skipped * vd, WB_F32, keys, vd, false};
    wb_matmul scores = wb_matmul_forward(rows, q, k, probabilities);
    wb_matmul dp = wb_matmul_forward(rows, dout_rows, v, ds);
    WB_CPU(product)(&scores, b.product);
    WB_CPU(product)(&dp, b.product);
    for (int64_t r = 0; r < rows; r++) {
        const float term = backward_row(args, row_head(args, b.kv, r), row_columns(args, block, c, r), keys,
                                        b.p_rows + r * keys, b.ds + r * keys);
        if (sink_terms) sink_terms[row_at(args, block, b.kv, r)] = term;
    }
    wb_matmul to_q = wb_matmul_dgrad(rows, ds, k, wb_f32_rows(b.dq), false);
    wb_matmul to_k = wb_matmul_wgrad(rows, hd, keys, ds, q, b.dk + skipped * hd);
    wb_matmul to_v = wb_matmul_wgrad(rows, vd, keys, probabilities, dout_rows, b.dv + skipped * vd);
    WB_CPU(product)(&to_q, b.product);
    WB_CPU(product)(&to_k, b.product);
    WB_CPU(product)(&to_v, b.product);
    scatter_queries(args, block, b.kv, &args->scale, 0, hd, b.dq, dq);
}

static void backward_task(const wb_attention *args, backward_run b, wb_rows dout, wb_rows dq, wb_rows dk,
                          wb_rows dv, float *sink_terms) {
    const int64_t queries = queries_of(args, BLOCK_ROWS), hd = args->head_dim, vd = args->value_dim;
    find_keys(args, b.p, b.keys, b.index);
    gather_keys(args, b, args->k, hd, b.k);
    gather_keys(args, b, args->v, vd, b.v);
    gather_keys(args, b, dk, hd, b.dk);
    gather_keys(args, b, dv, vd, b.dv);
    for (int64_t done = 0; done < b.p.count; done += queries) {
        const piece block = {b.p.t + done, min64(queries, b.p.count - done)};
        backward_queries(args, b, block, dout, dq, sink_terms);
    }
    scatter_keys(args, b, b.dk, hd, dk);
    scatter_keys(args, b, b.dv, vd, dv);
}

wb_status WB_CPU(attention_backward)(wb_device *dev, const wb_attention *args, wb_rows dout, wb_rows dq,
                                     wb_rows dk, wb_rows dv, float *dsinks) {
    plan p = {0};
    WB_TRY(attention_back_check(args, dout, dq, dk, dv, dsinks));
    WB_TRY(make_plan(dev, args, args->T, dsinks != NULL, &p));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(attention_backward_bytes)(args, p.keys)));
    zero_padding(args, args->head_dim, dq);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, p.work / 2))
    for (int64_t task = 0; task < p.count * args->n_kv_heads; task++) {
        piece at = p.pieces[task / args->n_kv_heads];
        backward_task(args, place_backward(args, at, task % args->n_kv_heads, wb_cpu_scratch(dev)), dout, dq,
                      dk, dv, p.sink_terms);
    }
    if (dsinks) add_to_sinks(args, p.sink_terms, dsinks);
    return WB_OK;
}
