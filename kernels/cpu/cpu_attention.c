/* cpu_attention.c - the forward of causal grouped-query attention over a paged pool.
 *
 * Owns: scores, softmax and output of blocks of queries against one kv head. A score is one fma chain over
 * the head's dimensions of q * scale and k; the exponentials are summed in lane order of the key's position;
 * an output element is one fma chain over ascending keys, which are exactly those that the query sees, times
 * 1 / sum. So a query's bits do not depend on the queries beside it. Refuses: writing the cache (kv_write),
 * gradients (cpu_attention_back.c).
 */
#include "cpu/cpu_attention.h"

/* Rows of a block: its scores are computed together and share the packed keys and values. */
enum { BLOCK_ROWS = 48, WIDTH = MAX_PANELS * PANEL };

/* One block of queries; arrays live in a thread's scratch. */
typedef struct forward_block {
    piece p;
    key_columns keys;
    int64_t kv, rows, ld; /* ld: of scores, keys.end rounded up to WIDTH */
    int64_t *index;       /* [keys.end] */
    float *q, *out;       /* [rows, head_dim], [rows, value_dim] */
    float *scores;        /* [rows, ld] */
    float *panels;        /* [MAX_PANELS][PANEL_FLOATS] */
} forward_block;

static int64_t score_stride(int64_t keys) {
    return (keys + WIDTH - 1) / WIDTH * WIDTH;
}

size_t WB_CPU(attention_forward_bytes)(const wb_attention *args, int64_t keys) {
    int64_t rows = queries_of(args, BLOCK_ROWS) * group_of(args);
    int64_t row = (int64_t)args->head_dim + args->value_dim + score_stride(keys);
    int64_t count = MAX_PANELS * PANEL_FLOATS + rows * row;
    return (size_t)count * sizeof(float) + (size_t)keys * sizeof(int64_t);
}

static forward_block place_forward(const wb_attention *args, piece p, int64_t kv, float *scratch) {
    forward_block b = {.p = p, .kv = kv, .rows = p.count * group_of(args), .keys = find_columns(args, p)};
    b.ld = score_stride(b.keys.end);
    b.panels = scratch;
    b.scores = b.panels + MAX_PANELS * PANEL_FLOATS;
    b.index = (int64_t *)(void *)(b.scores + b.rows * b.ld);
    b.q = (float *)(b.index + b.keys.end);
    b.out = b.q + b.rows * args->head_dim;
    return b;
}

/* K or V of the block's kv head: row index[j] of the pool. `stride`: of all kv heads. */
static matrix_rows pool_rows(const wb_attention *args, forward_block b, wb_rows pool, int64_t stride) {
    wb_rows head = wb_rows_from(pool, b.kv * (stride / args->n_kv_heads));
    return (matrix_rows){head.data, head.dtype, stride, b.index};
}

/* The scores of a few rows of one query, in whole blocks of the pool; the keys before the first and after the
 * last are read and not used. False where rows or blocks do not suit. */
static bool compute_thin_scores(const wb_attention *args, forward_block b) {
    int64_t hd = args->head_dim, size = args->block_size;
    if (b.p.count != 1 || b.rows > TILE_ROWS || size % WB_LANES != 0) return false;
    matrix_rows k = pool_rows(args, b, args->k, key_stride(args));
    const char *data = k.data;
    int64_t row_bytes = k.stride * (int64_t)wb_dtype_size(k.dtype);
    for (int64_t j = 0, next = 0; j < b.keys.end; j = next) {
        next = j + size - (b.keys.first + j) % size; /* the next block of the pool */
        int64_t seen = max64(j, b.keys.begin), row = b.index[seen] - (seen - j);
        int64_t count = (min64(next, b.keys.end) - j + WB_LANES - 1) / WB_LANES * WB_LANES;
        wb_weight keys = {(void *)(data + row * row_bytes), k.dtype, count, hd, false};
        wb_matmul m = wb_matmul_forward(b.rows, wb_f32_rows(b.q), keys, wb_f32_rows(b.scores + j));
        m.b_col = k.stride, m.ldc = b.ld;
        const char *after = next < b.keys.end ? data + b.index[next] * row_bytes : NULL;
        if (WB_CPU(thin_transposed)(&m, 0, b.rows, 0, count, after) == 0) return false;
    }
    return true;
}

/* scores[r, j] for the keys that row r sees; other columns are left undefined. */
static void compute_scores(const wb_attention *args, forward_block b) {
    matrix_rows k = pool_rows(args, b, args->k, key_stride(args));
    int64_t hd = args->head_dim, width = (int64_t)panels_of(b.rows) * PANEL, first = 0;
    for (int64_t j = 0; j < b.keys.end; j += width) {
        while (row_columns(args, b.p, b.keys, min64(first + TILE_ROWS, b.rows) - 1).end <= j)
            first += TILE_ROWS; /* sees none of them */
        for (int64_t d = 0; d < hd; d += K_BLOCK) {
            int64_t count = min64(K_BLOCK, hd - d);
            for (int64_t done = 0; done < width; done += PANEL)
                WB_CPU(pack_transposed)(k, j + done, b.keys.end, d, count, PANEL, b.panels + done * K_BLOCK);
            tile_rows q = {b.q + first * hd + d, false, hd};
            WB_CPU(tiles)
            (b.rows - first, width, count, q, b.panels, d > 0, b.scores + first * b.ld + j, b.ld);
        }
    }
}

/* A tile of the output, rows [first, first + rows) and columns [d, d + columns) of it, and the keys
 * [k0, end), whose values are packed. */
typedef struct value_tile {
    int64_t first, rows, d, columns, k0, end;
} value_tile;

/* Row r goes on by those of the keys `keys` that it sees. */
static void add_row_values(const wb_attention *args, forward_block b, value_tile v, int64_t r, span keys) {
    span seen = row_columns(args, b.p, b.keys, r);
    int64_t begin = max64(keys.begin, seen.begin), count = min64(keys.end, seen.end) - begin;
    if (count <= 0) return;
    tile_rows p = {b.scores + r * b.ld + begin, false, b.ld};
    WB_CPU(tiles)
    (1, v.columns, count, p, b.panels + (begin - v.k0) * PANEL, true, b.out + r * args->value_dim + v.d,
     args->value_dim);
}

/* Each row's own keys before those that all rows see together, these, and each row's own after them. */
static void add_values(const wb_attention *args, forward_block b, value_tile v) {
    int64_t vd = args->value_dim, width = (int64_t)panels_of(v.rows) * PANEL;
    span all = {max64(row_columns(args, b.p, b.keys, v.first + v.rows - 1).begin, v.k0),
                min64(row_columns(args, b.p, b.keys, v.first).end, v.end)};
    if (all.begin >= all.end) all = (span){v.k0, v.k0};
    for (int64_t r = v.first; r < v.first + v.rows && all.begin > v.k0; r++)
        add_row_values(args, b, v, r, (span){v.k0, all.begin});
    for (int64_t done = 0; done < v.columns && all.begin < all.end; done += width) {
        tile_rows p = {b.scores + v.first * b.ld + all.begin, false, b.ld};
        WB_CPU(tiles)
        (v.rows, min64(width, v.columns - done), all.end - all.begin, p,
         b.panels + done * K_BLOCK + (all.begin - v.k0) * PANEL, true, b.out + v.first * vd + v.d + done, vd);
    }
    for (int64_t r = v.first; r < v.first + v.rows; r++)
        add_row_values(args, b, v, r, (span){all.end, v.end});
}

static void compute_output(const wb_attention *args, forward_block b) {
    matrix_rows v = pool_rows(args, b, args->v, value_stride(args));
    int64_t vd = args->value_dim, thin = 0;
    memset(b.out, 0, (size_t)(b.rows * vd) * sizeof *b.out);
    if (b.p.count == 1) {
        matrix_rows seen = {v.data, v.dtype, v.stride, b.index + b.keys.begin};
        thin = WB_CPU(thin_straight)(b.rows, seen, b.keys.end - b.keys.begin, 0, vd, b.scores + b.keys.begin,
                                     b.ld, false, b.out, vd);
    }
    for (int64_t k0 = 0; k0 < b.keys.end; k0 += K_BLOCK)
        for (int64_t d = thin; d < vd; d += WIDTH) {
            int64_t count = min64(K_BLOCK, b.keys.end - k0), columns = min64(WIDTH, vd - d);
            for (int64_t done = 0; done < columns; done += PANEL)
                WB_CPU(pack_straight)(v, k0, count, d + done, vd, PANEL, b.panels + done * K_BLOCK);
            for (int64_t r = 0; r < b.rows; r += TILE_ROWS)
                add_values(args, b,
                           (value_tile){r, min64(TILE_ROWS, b.rows - r), d, columns, k0, k0 + count});
        }
}

static void forward_task(const wb_attention *args, forward_block b, wb_rows out) {
    find_keys(args, b.p, b.keys, b.index);
    gather_queries(args, b.p, b.kv, args->scale, args->head_dim, args->q, b.q);
    if (!compute_thin_scores(args, b)) compute_scores(args, b);
    for (int64_t r = 0; r < b.rows; r++) {
        span seen = row_columns(args, b.p, b.keys, r);
        /* the queries are not needed any more */
        b.q[r] = soften(args, row_head(args, b.kv, r), seen, b.scores + r * b.ld).inverse;
    }
    compute_output(args, b);
    scatter_queries(args, b.p, b.kv, b.q, 1, args->value_dim, b.out, out);
}

wb_status WB_CPU(attention_forward)(wb_device *dev, const wb_attention *args, wb_rows out) {
    plan p = {0};
    WB_TRY(attention_check("attention_forward", args));
    WB_TRY(operand_check_like("attention_forward", "out", out.dtype, "q", args->q.dtype));
    WB_TRY(make_plan(dev, args, queries_of(args, BLOCK_ROWS), false, &p));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(attention_forward_bytes)(args, p.keys)));
    int64_t tasks = p.count * args->n_kv_heads;
    zero_padding(args, args->value_dim, out);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, p.work / 4))
    for (int64_t i = 0; i < tasks; i++) {
        int64_t task = tasks - 1 - i; /* the last pieces of a prompt see the most keys: first */
        piece at = p.pieces[task / args->n_kv_heads];
        forward_task(args, place_forward(args, at, task % args->n_kv_heads, wb_cpu_scratch(dev)), out);
    }
    return WB_OK;
}
