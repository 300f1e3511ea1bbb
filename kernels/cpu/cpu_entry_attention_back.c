/* cpu_entry_attention_back.c - the backward of attention over a window and compressed entries.
 *
 * A task is a sequence, whose queries add to its rows one after the other: a row's gradient is one chain, of
 * each query the heads' parts by scores, then by weights. Refuses: the forward (cpu_entry_attention.c). */
#include "cpu/cpu_entries.h"

/* One sequence; arrays live in a thread's scratch. */
typedef struct sequence_task {
    piece p;
    int64_t entries; /* that end in the piece */
    float *rows,
        *d_rows; /* [p.count + entries, head_dim] keys of positions, then entries; and their gradients */
    /* of a query: [keys, head_dim] its keys and their gradients */
    float *keys, *d_keys;
    float *queries;      /* [2 n_heads, head_dim] q times scale, then dout */
    float *coefficients; /* [2 n_heads, keys] gradients of scores, then weights */
    float *dq, *product; /* [n_heads, head_dim], PRODUCT_FLOATS */
} sequence_task;

size_t WB_CPU(entry_attention_backward_bytes)(const wb_attention *heads, int64_t rows, int64_t keys) {
    const int64_t hd = heads->head_dim, n = heads->n_heads;
    return (size_t)(PRODUCT_FLOATS + 2 * (rows + keys) * hd + n * (3 * hd + 2 * keys)) * sizeof(float);
}

static sequence_task place_task(const wb_entry_attention *args, piece p, int64_t keys, float *scratch) {
    const int64_t hd = args->raw.head_dim, heads = args->raw.n_heads;
    sequence_task s = {.p = p, .entries = entries_seen(args->entries.ratio, (int32_t)p.count - 1)};
    s.product = scratch;
    s.rows = s.product + PRODUCT_FLOATS;
    s.d_rows = s.rows + (p.count + s.entries) * hd;
    s.keys = s.d_rows + (p.count + s.entries) * hd;
    s.d_keys = s.keys + keys * hd;
    s.queries = s.d_keys + keys * hd;
    s.dq = s.queries + 2 * heads * hd;
    s.coefficients = s.dq + heads * hd;
    return s;
}

/* ---- rows of the sequence ---------------------------------------------------------------------- */

/* Where row i of the task lies: the first element among k's or among those of entries. */
static int64_t row_element(const wb_entry_attention *args, const sequence_task *s, int64_t i) {
    const int32_t *blocks = blocks_of_token(args, s->p.t);
    if (i < s->p.count) return position_row(blocks, args->raw.block_size, i) * args->raw.head_dim;
    const int32_t w = (int32_t)(i - s->p.count);
    return entry_row(blocks, args->raw.block_size, args->entries.ratio, w) * args->entries.stride;
}

static void load_rows(const wb_entry_attention *args, const sequence_task *s, wb_rows k, wb_rows entries,
                      float *to) {
    const int64_t hd = args->raw.head_dim;
    for (int64_t i = 0; i < s->p.count + s->entries; i++)
        rows_load(i < s->p.count ? k : entries, row_element(args, s, i), hd, to + i * hd);
}

static void store_rows(const wb_entry_attention *args, const sequence_task *s, wb_rows dk, wb_rows dentries) {
    const int64_t hd = args->raw.head_dim;
    for (int64_t i = 0; i < s->p.count + s->entries; i++)
        rows_store(hd, s->d_rows + i * hd, i < s->p.count ? dk : dentries, row_element(args, s, i));
}

/* The row of the task that key i of a query is. */
static int64_t row_of_key(const sequence_task *s, key_list keys, int64_t i) {
    return i < keys.raw ? keys.first + i : s->p.count + entry_of(keys, i - keys.raw);
}

/* ---- a query ----------------------------------------------------------------------------------- */

/* dq of token t (=), and the gradients of its keys (+=). */
static void backward_query(const wb_entry_attention *args, sequence_task *s, int64_t t, wb_rows dout,
                           wb_rows dq, float *sink_terms) {
    const wb_attention *raw = &args->raw;
    const key_list keys = find_list(args, t);
    const int64_t n = key_count(keys), hd = raw->head_dim, heads = raw->n_heads;
    const size_t bytes = (size_t)hd * sizeof(float);
    const piece p = {t, 1};
    float *q = s->queries, *d = q + heads * hd, *ds = s->coefficients, *weights = ds + heads * n;
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = row_of_key(s, keys, i);
        memcpy(s->keys + i * hd, s->rows + row * hd, bytes);
        memcpy(s->d_keys + i * hd, s->d_rows + row * hd, bytes);
    }
    gather_queries(raw, p, 0, raw->scale, hd, raw->q, q);
    gather_queries(raw, p, 0, 1.0f, hd, dout, d);
    const wb_weight k = {s->keys, WB_F32, n, hd};
    const wb_matmul products[] = {wb_matmul_forward(heads, wb_f32_rows(q), k, wb_f32_rows(weights)),
                                  wb_matmul_forward(heads, wb_f32_rows(d), k, wb_f32_rows(ds))};
    WB_CPU(product)(&products[0], s->product);
    WB_CPU(product)(&products[1], s->product);
    for (int64_t h = 0; h < heads; h++) {
        const float term = backward_row(raw, h, (span){0, n}, n, weights + h * n, ds + h * n);
        if (sink_terms) sink_terms[t * heads + h] = term;
    }
    const wb_matmul to_q = wb_matmul_dgrad(heads, wb_f32_rows(ds), k, wb_f32_rows(s->dq), false);
    const wb_matmul to_keys =
        wb_matmul_wgrad(2 * heads, hd, n, wb_f32_rows(s->coefficients), wb_f32_rows(s->queries), s->d_keys);
    WB_CPU(product)(&to_q, s->product);
    WB_CPU(product)(&to_keys, s->product);
    scatter_queries(raw, p, 0, &raw->scale, 0, hd, s->dq, dq);
    for (int64_t i = 0; i < n; i++)
        memcpy(s->d_rows + row_of_key(s, keys, i) * hd, s->d_keys + i * hd, bytes);
}

wb_status WB_CPU(entry_attention_backward)(wb_device *dev, const wb_entry_attention *args, wb_rows dout,
                                           wb_rows dq, wb_rows dk, wb_rows dentries, float *dsinks) {
    const wb_attention *raw = &args->raw;
    int64_t work = 0, longest = 0;
    plan sequences = {0};
    WB_TRY(entry_attention_back_check(args, dout, dq, dk, dentries, dsinks));
    WB_TRY(check_lists(args, WB_OP_entry_attention_backward));
    WB_TRY(make_plan(dev, raw, raw->T, dsinks != NULL, &sequences));
    for (int64_t i = 0; i < sequences.count; i++) longest = max64(longest, sequences.pieces[i].count);
    const int64_t most = most_keys(args, &work),
                  rows = longest + entries_seen(args->entries.ratio, (int32_t)longest);
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(entry_attention_backward_bytes)(raw, rows, most)));
    zero_padding(raw, raw->head_dim, dq);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, work / 2))
    for (int64_t i = 0; i < sequences.count; i++) {
        const piece p = sequences.pieces[i];
        sequence_task s = place_task(args, p, most, wb_cpu_scratch(dev));
        load_rows(args, &s, raw->k, args->entries.rows, s.rows);
        load_rows(args, &s, dk, dentries, s.d_rows);
        for (int64_t t = p.t; t < p.t + p.count; t++)
            backward_query(args, &s, t, dout, dq, sequences.sink_terms);
        store_rows(args, &s, dk, dentries);
    }
    if (dsinks) add_to_sinks(raw, sequences.sink_terms, dsinks);
    return WB_OK;
}
