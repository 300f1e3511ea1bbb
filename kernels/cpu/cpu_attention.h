/* cpu_attention.h - which rows and keys a task of attention has: what the forward and the backward share.
 *
 * Rows are (query, head of the group), ascending. Arrays over keys have a column for each key from a position
 * on that is a multiple of WB_LANES, so that lanes are those of the keys' positions, whatever a query sees.
 */
#ifndef WB_CPU_ATTENTION_H
#define WB_CPU_ATTENTION_H

#include "attention_check.h"
#include "cpu/cpu_operands.h"
#include "cpu/cpu_panel.h"

/* Consecutive queries of one sequence. */
typedef struct piece {
    int64_t t, count;
} piece;

typedef struct plan {
    piece *pieces;             /* owner: the device's shared memory, as of the next */
    float *sink_terms;         /* [T, n_heads], of a backward with sinks */
    int64_t count, keys, work; /* keys: the maximum of columns; work: multiply-adds */
} plan;

/* Indices or positions [begin, end). */
typedef struct span {
    int64_t begin, end;
} span;

static inline int64_t group_of(const wb_attention *args) {
    return args->n_heads / args->n_kv_heads;
}

/* Queries of a block of about `rows` rows. */
static inline int64_t queries_of(const wb_attention *args, int64_t rows) {
    int64_t group = group_of(args);
    return group < rows ? rows / group : 1;
}

/* ---- keys of a piece --------------------------------------------------------------------------- */

/* Positions of the keys that query t sees. */
static inline span seen_by(const wb_attention *args, int64_t t) {
    return (span){attention_first_key(args, args->pos[t]), (int64_t)args->pos[t] + 1};
}

/* Of a piece: its keys have the columns [begin, end), and column 0 is position `first`. */
typedef struct key_columns {
    int64_t first, begin, end;
} key_columns;

static inline key_columns find_columns(const wb_attention *args, piece p) {
    const int64_t begin = seen_by(args, p.t).begin, first = begin / WB_LANES * WB_LANES;
    return (key_columns){first, begin - first, seen_by(args, p.t + p.count - 1).end - first};
}

/* Columns that row r of a piece sees. */
static inline span row_columns(const wb_attention *args, piece p, key_columns c, int64_t r) {
    const span seen = seen_by(args, p.t + r / group_of(args));
    return (span){seen.begin - c.first, seen.end - c.first};
}

/* index[j] = the pool's row of column j; columns before the first that is seen repeat it. */
static inline void find_keys(const wb_attention *args, piece p, key_columns c, int64_t *index) {
    const int32_t *blocks = args->blocks + (int64_t)args->seq[p.t] * args->max_blocks;
    const int64_t size = args->block_size;
    for (int64_t j = c.begin, count = 0; j < c.end; j += count) {
        const int64_t first = position_row(blocks, args->block_size, c.first + j);
        count = min64(size - (c.first + j) % size, c.end - j);
        for (int64_t i = 0; i < count; i++) index[j + i] = first + i;
    }
    for (int64_t j = 0; j < c.begin; j++) index[j] = index[c.begin];
}

/* Cuts the tokens into pieces of at most `queries` of one sequence. */
static inline wb_status make_plan(wb_device *dev, const wb_attention *args, int64_t queries,
                                  bool has_sink_terms, plan *plan_out) {
    _Static_assert(sizeof(piece) == 2 * sizeof(int64_t), "wb_cpu_attention_plan_bytes counts pieces");
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(
        dev, wb_cpu_attention_plan_bytes(args->T, has_sink_terms ? args->n_heads : 0), &shared));
    plan p = {.pieces = shared};
    if (has_sink_terms) p.sink_terms = (float *)(void *)(p.pieces + args->T);
    for (int64_t t = 0; t < args->T; t++) {
        if (args->seq[t] < 0) continue;
        bool same = t > 0 && args->seq[t] == args->seq[t - 1];
        if (same && p.pieces[p.count - 1].count < queries)
            p.pieces[p.count - 1].count++;
        else
            p.pieces[p.count++] = (piece){t, 1};
        p.keys = max64(p.keys, find_columns(args, p.pieces[p.count - 1]).end);
        p.work += seen_by(args, t).end - seen_by(args, t).begin;
    }
    p.work *= (int64_t)args->n_heads * (args->head_dim + args->value_dim);
    *plan_out = p;
    return WB_OK;
}

/* ---- rows and keys in memory ------------------------------------------------------------------- */

/* Rows of padding, which no piece has, are zeros; `width` of a head. */
static inline void zero_padding(const wb_attention *args, int64_t width, wb_rows rows) {
    const int64_t n = args->n_heads * width;
    const size_t bytes = (size_t)n * wb_dtype_size(rows.dtype);
    for (int64_t t = 0; t < args->T; t++)
        if (args->seq[t] < 0) memset(wb_rows_from(rows, t * n).data, 0, bytes);
}

/* Elements from a row of the pool to the next one: of k, and of v. */
static inline int64_t key_stride(const wb_attention *args) {
    return (int64_t)args->n_kv_heads * args->head_dim;
}

static inline int64_t value_stride(const wb_attention *args) {
    return (int64_t)args->n_kv_heads * attention_value_step(args);
}

/* The head of row r of a piece, and where it is among those of all tokens. */
static inline int64_t row_head(const wb_attention *args, int64_t kv, int64_t r) {
    return kv * group_of(args) + r % group_of(args);
}

static inline int64_t row_at(const wb_attention *args, piece p, int64_t kv, int64_t r) {
    return (p.t + r / group_of(args)) * args->n_heads + row_head(args, kv, r);
}

/* to[rows, width] = from * factor */
static inline void gather_queries(const wb_attention *args, piece p, int64_t kv, float factor, int64_t width,
                                  wb_rows from, float *restrict to) {
    for (int64_t r = 0; r < p.count * group_of(args); r++, to += width) {
        rows_load(from, row_at(args, p, kv, r) * width, width, to);
        for (int64_t d = 0; d < width; d++) to[d] *= factor;
    }
}

/* The way back: `to` = from[rows, width], whose row r is multiplied by factors[r * each] first. */
static inline void scatter_queries(const wb_attention *args, piece p, int64_t kv, const float *factors,
                                   int64_t each, int64_t width, float *restrict from, wb_rows to) {
    for (int64_t r = 0; r < p.count * group_of(args); r++, from += width) {
        const float factor = factors[r * each];
        for (int64_t d = 0; d < width; d++) from[d] *= factor;
        rows_store(width, from, to, row_at(args, p, kv, r) * width);
    }
}

/* ---- softmax ----------------------------------------------------------------------------------- */

/* What the sum of a row's exponentials makes of them: exp(score - largest) times `inverse` is a weight. */
typedef struct row_factors {
    float inverse, sink; /* sink: the weight of the head's sink; 0 without one */
} row_factors;

/* p[columns up to seen.end] become exponentials, 0 where the row does not see them. */
static inline row_factors soften(const wb_attention *args, int64_t head, span seen, float *p) {
    for (int64_t j = 0; j < seen.begin; j++) p[j] = -INFINITY;
    float max = row_max(p, seen.end);
    if (!args->sinks) return (row_factors){1.0f / row_exp(p, seen.end, max, p), 0.0f};
    const float sink = args->sinks[head];
    max = sink > max ? sink : max;
    const float weight = wb_expf(sink - max), inverse = 1.0f / (row_exp(p, seen.end, max, p) + weight);
    return (row_factors){inverse, weight * inverse};
}

/* Probabilities of one row from its scores, then ds = p (dp - sum p dp) from dp; zeros for the keys it
 * does not see. `keys`: all columns. Returns what the row takes from the gradient of its head's sink. */
static inline float backward_row(const wb_attention *args, int64_t head, span seen, int64_t keys,
                                 float *restrict p, float *restrict dp) {
    const row_factors by = soften(args, head, seen, p);
    for (int64_t j = 0; j < seen.begin; j++) p[j] = dp[j] = 0.0f;
    for (int64_t j = seen.begin; j < seen.end; j++) p[j] *= by.inverse;
    float dot = row_dot(p, dp, seen.end);
    for (int64_t j = seen.begin; j < seen.end; j++) dp[j] = p[j] * (dp[j] - dot);
    memset(p + seen.end, 0, (size_t)(keys - seen.end) * sizeof(float));
    memset(dp + seen.end, 0, (size_t)(keys - seen.end) * sizeof(float));
    return by.sink * dot;
}

/* A sink's logit is no key's: its gradient is its weight times 0 - sum p dp, in each query. */
static inline void add_to_sinks(const wb_attention *args, const float *terms, float *dsinks) {
    for (int64_t t = 0; t < args->T; t++)
        for (int64_t head = 0; head < args->n_heads && args->seq[t] >= 0; head++)
            dsinks[head] -= terms[t * args->n_heads + head];
}

#endif
