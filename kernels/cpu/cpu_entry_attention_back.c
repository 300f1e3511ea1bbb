/* cpu_entry_attention_back.c - the backward of attention over a window and compressed entries.
 *
 * Queries go a band after the other. Tasks are the band's queries first, each of which leaves the
 * coefficients of its keys, and then some columns of the rows' gradients, to which each query adds in
 * turn: a row's gradient is one chain, of each query the heads' parts by scores, then by weights. Refuses:
 * the forward (cpu_entry_attention.c). */
#include "cpu/cpu_entries.h"

/* Queries of a band. */
enum { BAND = 32 };

/* What tasks share. Rows are those of the tokens' positions, then of the entries, which of a sequence are
 * number T + t / ratio, t being its first token, and the next ones. */
typedef struct backward_call {
    const wb_entry_attention *args;
    wb_rows dout, dq;
    int64_t first, n, most; /* the band's tokens, and keys of a query at most */
    float *rows, *d_rows;   /* [T + T / ratio, head_dim] and their gradients */
    float *queries,
        *coefficients; /* of each query of the band: [2 n_heads, head_dim] q times scale, then dout;
                                    * [2 n_heads, its keys] gradients of scores, then weights */
    float *sink_terms; /* [T, n_heads], or NULL */
} backward_call;

size_t WB_CPU(entry_attention_backward_bytes)(const wb_attention *heads, int64_t keys) {
    return (size_t)(PRODUCT_FLOATS + (keys + heads->n_heads) * heads->head_dim) * sizeof(float);
}

size_t WB_CPU(entry_attention_shared_bytes)(const wb_attention *heads, int64_t T, int64_t entries,
                                            int64_t keys) {
    const int64_t hd = heads->head_dim, rows = 2 * (T + entries) * hd;
    return (size_t)(rows + BAND * 2 * heads->n_heads * (hd + keys)) * sizeof(float);
}

static float *band_queries(const backward_call *c, int64_t t) {
    return c->queries + (t - c->first) * 2 * c->args->raw.n_heads * c->args->raw.head_dim;
}
static float *band_coefficients(const backward_call *c, int64_t t) {
    return c->coefficients + (t - c->first) * 2 * c->args->raw.n_heads * c->most;
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* The row of entry w of token t's sequence, which begins at position 0. */
static int64_t entry_number(const wb_entry_attention *args, int64_t t, int32_t w) {
    return args->raw.T + (t - args->raw.pos[t]) / args->entries.ratio + w;
}

static int64_t row_of_key(const wb_entry_attention *args, int64_t t, key_list keys, int64_t i) {
    if (i < keys.raw) return t - args->raw.pos[t] + keys.first + i;
    return entry_number(args, t, entry_of(keys, i - keys.raw));
}

/* Whether an entry ends at token t, and of that the number and the first element among those of entries. */
static bool find_ended(const wb_entry_attention *args, int64_t t, int64_t *row, int64_t *at) {
    const int32_t ratio = args->entries.ratio, pos = args->raw.pos[t];
    if (ratio == 0 || (pos + 1) % ratio != 0) return false;
    *row = entry_number(args, t, pos / ratio);
    *at =
        entry_row(blocks_of_token(args, t), args->raw.block_size, ratio, pos / ratio) * args->entries.stride;
    return true;
}

static int64_t position_element(const wb_entry_attention *args, int64_t t) {
    return position_row(blocks_of_token(args, t), args->raw.block_size, args->raw.pos[t]) *
           args->raw.head_dim;
}

static void load_row(const wb_entry_attention *args, int64_t t, wb_rows k, wb_rows entries, float *to) {
    const int64_t hd = args->raw.head_dim;
    int64_t row, at;
    if (args->raw.seq[t] < 0) return;
    rows_load(k, position_element(args, t), hd, to + t * hd);
    if (find_ended(args, t, &row, &at)) rows_load(entries, at, hd, to + row * hd);
}

static void store_row(const wb_entry_attention *args, int64_t t, const float *from, wb_rows dk,
                      wb_rows dentries) {
    const int64_t hd = args->raw.head_dim;
    int64_t row, at;
    if (args->raw.seq[t] < 0) return;
    rows_store(hd, from + t * hd, dk, position_element(args, t));
    if (find_ended(args, t, &row, &at)) rows_store(hd, from + row * hd, dentries, at);
}

/* ---- tasks ------------------------------------------------------------------------------------- */

/* dq of token t (=), and what it leaves for the rows. */
static void backward_query(const backward_call *c, int64_t t, float *scratch) {
    const wb_entry_attention *args = c->args;
    const wb_attention *raw = &args->raw;
    const key_list keys = find_list(args, t);
    const int64_t n = key_count(keys), hd = raw->head_dim, heads = raw->n_heads;
    const piece p = {t, 1};
    float *of_keys = scratch + PRODUCT_FLOATS, *dq = of_keys + n * hd;
    float *q = band_queries(c, t), *d = q + heads * hd, *ds = band_coefficients(c, t),
          *weights = ds + heads * n;
    for (int64_t i = 0; i < n; i++)
        memcpy(of_keys + i * hd, c->rows + row_of_key(args, t, keys, i) * hd, (size_t)hd * sizeof(float));
    gather_queries(raw, p, 0, raw->scale, hd, raw->q, q);
    gather_queries(raw, p, 0, 1.0f, hd, c->dout, d);
    const wb_weight k = {of_keys, WB_F32, n, hd, false};
    const wb_matmul products[] = {wb_matmul_forward(heads, wb_f32_rows(q), k, wb_f32_rows(weights)),
                                  wb_matmul_forward(heads, wb_f32_rows(d), k, wb_f32_rows(ds))};
    WB_CPU(product)(&products[0], scratch);
    WB_CPU(product)(&products[1], scratch);
    for (int64_t h = 0; h < heads; h++) {
        const float term = backward_row(raw, h, (span){0, n}, n, weights + h * n, ds + h * n);
        if (c->sink_terms) c->sink_terms[t * heads + h] = term;
    }
    const wb_matmul to_q = wb_matmul_dgrad(heads, wb_f32_rows(ds), k, wb_f32_rows(dq), false);
    WB_CPU(product)(&to_q, scratch);
    scatter_queries(raw, p, 0, &raw->scale, 0, hd, dq, c->dq);
}

/* What token t adds to the columns [first, first + width) of the rows that it sees. */
static void add_query(const backward_call *c, int64_t t, int64_t first, int64_t width, float *scratch) {
    const wb_entry_attention *args = c->args;
    const key_list keys = find_list(args, t);
    const int64_t n = key_count(keys), hd = args->raw.head_dim, heads = args->raw.n_heads;
    const size_t bytes = (size_t)width * sizeof(float);
    float *sums = scratch + PRODUCT_FLOATS;
    for (int64_t i = 0; i < n; i++)
        memcpy(sums + i * width, c->d_rows + row_of_key(args, t, keys, i) * hd + first, bytes);
    wb_matmul to_rows = wb_matmul_wgrad(2 * heads, width, n, wb_f32_rows(band_coefficients(c, t)),
                                        wb_f32_rows(band_queries(c, t) + first), sums);
    to_rows.b_row = hd;
    WB_CPU(product)(&to_rows, scratch);
    for (int64_t i = 0; i < n; i++)
        memcpy(c->d_rows + row_of_key(args, t, keys, i) * hd + first, sums + i * width, bytes);
}

static void backward_band(wb_device *dev, const backward_call *c, int threads) {
    const int32_t *seq = c->args->raw.seq;
    const int64_t hd = c->args->raw.head_dim, end = c->first + c->n,
                  width = ((hd + threads - 1) / threads + WB_LANES - 1) / WB_LANES * WB_LANES;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t t = c->first; t < end; t++)
        if (seq[t] >= 0) backward_query(c, t, wb_cpu_scratch(dev));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t first = 0; first < hd; first += width)
        for (int64_t t = c->first; t < end; t++)
            if (seq[t] >= 0) add_query(c, t, first, min64(width, hd - first), wb_cpu_scratch(dev));
}

/* Places what tasks share. */
static wb_status open_call(wb_device *dev, backward_call *c, bool has_sinks) {
    const wb_attention *raw = &c->args->raw;
    const int32_t ratio = c->args->entries.ratio;
    const int64_t entries = ratio > 0 ? raw->T / ratio : 0, rows = raw->T + entries, hd = raw->head_dim;
    void *shared = NULL, *terms = NULL;
    WB_TRY(wb_cpu_operands_reserve(dev, WB_CPU(entry_attention_shared_bytes)(raw, raw->T, entries, c->most),
                                   &shared));
    if (has_sinks) WB_TRY(wb_cpu_shared_reserve(dev, wb_cpu_sink_bytes(raw->T, raw->n_heads), &terms));
    c->rows = shared;
    c->d_rows = c->rows + rows * hd;
    c->queries = c->d_rows + rows * hd;
    c->coefficients = c->queries + BAND * 2 * raw->n_heads * hd;
    c->sink_terms = terms;
    return WB_OK;
}

wb_status WB_CPU(entry_attention_backward)(wb_device *dev, const wb_entry_attention *args, wb_rows dout,
                                           wb_rows dq, wb_rows dk, wb_rows dentries, float *dsinks) {
    const wb_attention *raw = &args->raw;
    int64_t work = 0;
    WB_TRY(entry_attention_back_check(args, dout, dq, dk, dentries, dsinks));
    WB_TRY(check_lists(args, WB_OP_entry_attention_backward));
    backward_call c = {.args = args, .dout = dout, .dq = dq, .most = most_keys(args, &work)};
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(entry_attention_backward_bytes)(raw, c.most)));
    WB_TRY(open_call(dev, &c, dsinks != NULL));
    const int threads = wb_cpu_threads(dev, work / 2);
    zero_padding(raw, raw->head_dim, dq);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < raw->T; t++) {
        load_row(args, t, raw->k, args->entries.rows, c.rows);
        load_row(args, t, dk, dentries, c.d_rows);
    }
    for (; c.first < raw->T; c.first += BAND) {
        c.n = min64(BAND, raw->T - c.first);
        backward_band(dev, &c, threads);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < raw->T; t++) store_row(args, t, c.d_rows, dk, dentries);
    if (dsinks) add_to_sinks(raw, c.sink_terms, dsinks);
    return WB_OK;
}
