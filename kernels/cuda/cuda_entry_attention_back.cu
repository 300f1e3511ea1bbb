/* cuda_entry_attention_back.cu - the backward of attention over a window and compressed entries, queries a
 * band after the other: a block a query and some of its heads for dq, then a block some rows, positions'
 * or entries', and some of their dimensions for what the band's queries add to their gradients.
 *
 * A row's gradient as key and as value is one chain over the queries that see it, so that a band goes on
 * where the one before it ended: in between, sums lie in scratch as f32. */
#include "cuda/cuda_entries.h"
#include "cuda/cuda_ops.h"

namespace {

/* Parts of a query's coefficients. */
enum { WEIGHTS, GRADIENTS, PARTS };

/* ---- queries ----------------------------------------------------------------------------------- */

/* A half warp has a head: weights (=) those of its keys, gradients (=) p (dp - <p, dp>), those of its scores.
 * Returns what the query takes from the gradient of the head's sink. */
__device__ __forceinline__ float soften_back(const wb_attention &raw, int64_t head, int64_t n, float *weights,
                                             float *gradients) {
    const int lane = threadIdx.x % WB_LANES;
    const row_factors row = soften_row(raw, head, n, weights);
    float dot = 0.0f;
    for (int64_t j = lane; j < n; j += WB_LANES) {
        weights[j] = wb_mul(weights[j], row.inverse);
        dot = wb_fma(weights[j], gradients[j], dot);
    }
    dot = fold_lanes(dot);
    for (int64_t j = lane; j < n; j += WB_LANES) gradients[j] = wb_mul(weights[j], wb_sub(gradients[j], dot));
    return raw.sinks ? wb_mul(wb_mul(sink_weight(raw, head, row.max), row.inverse), dot) : 0.0f;
}

/* dq, the coefficients, and sink_terms[T, n_heads]. */
template <class T>
__global__ void __launch_bounds__(TILE_THREADS)
    entries_back_to_queries(wb_entry_attention args, query_band band, wb_rows dout, wb_rows dq,
                            float *sink_terms) {
    __shared__ entry_tiles tiles;
    const query_heads q = heads_of_block(band, args.raw);
    const int hd = args.raw.head_dim, half = threadIdx.x / WB_LANES;
    const int64_t at = first_element(args.raw, q);
    if (args.raw.seq[q.t] < 0) {
        for (int i = threadIdx.x; i < q.heads * hd; i += TILE_THREADS) store_element(dq, at + i, 0.0f);
        return;
    }
    const entry_list keys = find_list(args, q.t);
    float *const gradients = coefficients_of(band, args.raw, q.t, GRADIENTS, q.head);
    multiply_keys<T, T>(args, keys, q, args.raw.q, args.raw.scale, band.most_keys, q.weights, tiles);
    multiply_keys<T, T>(args, keys, q, dout, 1.0f, band.most_keys, gradients, tiles);
    __syncthreads();
    for (int m0 = 0; m0 < q.heads; m0 += HALVES_OF_TILE) {
        const int m = min(m0 + half, q.heads - 1);
        const bool live = m0 + half < q.heads;
        const float term = soften_back(args.raw, q.head + m, live ? key_count(keys) : 0,
                                       q.weights + m * band.most_keys, gradients + m * band.most_keys);
        if (live) sink_terms[q.t * args.raw.n_heads + q.head + m] = term;
    }
    __syncthreads();
    add_keys<T>(args, keys, q, band.most_keys, gradients, tiles, [&](int m, int d, float x) {
        store_element(dq, at + static_cast<int64_t>(m) * hd + d, wb_mul(x, args.raw.scale));
    });
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* Rows of one kind: those of entries of `ratio` positions, or 1 and no entries: those of the positions. A row
 * belongs to the token at which it ends, and its sums so far are number t / ratio of partial[][head_dim]:
 * rows of one kind end `ratio` tokens apart at least. */
struct row_kind {
    int32_t ratio;
    bool entries;
    wb_rows gradient;
    int64_t stride;
    float *partial;
};

/* Queries whose rows' places a block looks for at a time, a warp each. */
enum { LOOKED_FOR = TILE_THREADS / WARP };
static_assert(static_cast<int>(TILE_ROWS) == static_cast<int>(WARP), "a lane a row");

/* What a block knows of its rows. */
struct tile_rows {
    int64_t token[TILE_ROWS]; /* -1: there is none */
    alignas(16) int32_t place[LOOKED_FOR][TILE_ROWS];
    bool any[LOOKED_FOR];
};

/* Tokens of the rows that end in the `ratio` times TILE_ROWS tokens from t0 on. */
__device__ __forceinline__ void find_rows(const wb_attention &raw, const row_kind &kind, int64_t t0,
                                          tile_rows &rows) {
    if (threadIdx.x < TILE_ROWS) rows.token[threadIdx.x] = -1;
    __syncthreads();
    const int64_t end = min(raw.T, t0 + static_cast<int64_t>(TILE_ROWS) * kind.ratio);
    for (int64_t t = t0 + threadIdx.x; t < end; t += TILE_THREADS)
        if (raw.seq[t] >= 0 && (raw.pos[t] + 1) % kind.ratio == 0) rows.token[(t - t0) / kind.ratio] = t;
    __syncthreads();
}

/* The place of entry w in the list of a query, which is of its sequence; -1: it does not see it. */
__device__ __forceinline__ int32_t find_entry(const entry_list &keys, int32_t w) {
    if (!keys.list) return w < keys.entries ? w : -1;
    int32_t low = 0, high = keys.entries;
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (keys.list[middle] < w)
            low = middle + 1;
        else
            high = middle;
    }
    return low < keys.entries && keys.list[low] == w ? low : -1;
}

/* The place of the row of token t among the keys of query u; -1: it is not among them. */
__device__ __forceinline__ int32_t place_of_row(const wb_entry_attention &args, const row_kind &kind,
                                                int64_t t, int64_t u) {
    if (t < 0 || t > u || args.raw.seq[t] != args.raw.seq[u]) return -1;
    const entry_list keys = find_list(args, u);
    const int32_t pos = args.raw.pos[t];
    if (!kind.entries) return pos >= keys.first ? static_cast<int32_t>(pos - keys.first) : -1;
    const int32_t i = find_entry(keys, pos / kind.ratio);
    return i < 0 ? -1 : static_cast<int32_t>(keys.raw) + i;
}

/* Whether no query from u on sees a row whose last is token `last`'s. */
__device__ __forceinline__ bool is_past(const wb_attention &raw, const row_kind &kind, int64_t last,
                                        int64_t u) {
    if (u <= last) return false;
    if (raw.seq[u] != raw.seq[last]) return true;
    return !kind.entries && attention_first_key(&raw, raw.pos[u]) > raw.pos[last];
}

/* sum += what query u adds to the block's rows, by scores over all heads and then by weights: a row that it
 * does not see keeps its sum. d0: the first of n dimensions. */
template <class T>
__device__ __forceinline__ void add_query(const wb_entry_attention &args, const query_band &band,
                                          const wb_rows &dout, int64_t u, const int32_t *place, int d0, int n,
                                          entry_tiles &s, tile_sums &sum) {
    const int heads = args.raw.n_heads, hd = args.raw.head_dim;
    const int4 mine = *reinterpret_cast<const int4 *>(place + tile_row());
    const bool sees[TILE_EACH] = {mine.x >= 0, mine.y >= 0, mine.z >= 0, mine.w >= 0};
    const bool any = __any_sync(ALL_LANES, sees[0] || sees[1] || sees[2] || sees[3]);
    tile_sums with = sum;
    tile_share<TILE_ROWS> rows;
    tile_share<TILE_COLUMNS> columns;
    /* Step i is of some heads and one part, all gradients coming before the weights. */
    const int groups = (heads + TILE_K - 1) / TILE_K;
    const auto load = [&](int i) {
        const int part = i < groups ? GRADIENTS : WEIGHTS, h0 = i % groups * TILE_K;
        const int count = min(static_cast<int>(TILE_K), heads - h0);
        const float *const of_head = coefficients_of(band, args.raw, u, part, h0);
        const int64_t at = (u * heads + h0) * hd + d0;
        const void *const from = part == WEIGHTS ? dout.data : args.raw.q.data;
        const float factor = part == WEIGHTS ? 1.0f : args.raw.scale;
        rows = load_tile<false, TILE_ROWS>(TILE_ROWS, count, [&](int m, int k) {
            return place[m] >= 0 ? of_head[k * band.most_keys + place[m]] : 0.0f;
        });
        columns = load_tile<false, TILE_COLUMNS>(n, count, [&](int d, int k) {
            const int64_t x = at + static_cast<int64_t>(k) * hd + d;
            return wb_mul(read_element<T>(from, x), factor);
        });
    };
    load(0);
    for (int i = 0; i < 2 * groups; i++) {
        __syncthreads();
        store_tile<false>(rows, s.rows);
        store_tile<false>(columns, s.columns);
        __syncthreads();
        if (i + 1 < 2 * groups) load(i + 1);
        if (any)
            multiply_tile(s.rows, s.columns, min(static_cast<int>(TILE_K), heads - i % groups * TILE_K),
                          with);
    }
#pragma unroll
    for (int i = 0; i < TILE_EACH; i++)
#pragma unroll
        for (int j = 0; j < TILE_EACH; j++) sum.at[i][j] = sees[i] ? with.at[i][j] : sum.at[i][j];
}

/* The band's last query may be the call's, after which sums go where gradients are. */
template <class T>
__global__ void __launch_bounds__(TILE_THREADS)
    entries_back_to_rows(wb_entry_attention args, query_band band, wb_rows dout, row_kind kind) {
    __shared__ entry_tiles tiles;
    __shared__ tile_rows rows;
    const int64_t tile = static_cast<int64_t>(blockIdx.x) * TILE_ROWS, t0 = tile * kind.ratio;
    const int d0 = blockIdx.y * TILE_COLUMNS, hd = args.raw.head_dim;
    const int n = min(static_cast<int>(TILE_COLUMNS), hd - d0), warp = threadIdx.x / WARP;
    const int64_t end = band.first + band.n;
    find_rows(args.raw, kind, t0, rows);
    int64_t last = -1;
    for (int m = 0; m < TILE_ROWS; m++) last = max(last, rows.token[m]);
    if (last < 0) return;
    const auto gradient_at = [&](int m, int d) {
        const int64_t t = rows.token[m];
        const int32_t *blocks = args.raw.blocks + static_cast<int64_t>(args.raw.seq[t]) * args.raw.max_blocks;
        const int32_t pos = args.raw.pos[t], size = args.raw.block_size;
        const int64_t row = kind.entries ? entry_row(blocks, size, kind.ratio, pos / kind.ratio)
                                         : position_row(blocks, size, pos);
        return row * kind.stride + d0 + d;
    };
    const auto partial_at = [&](int m, int d) { return kind.partial + (tile + m) * hd + d0 + d; };
    tile_sums sum = {};
#pragma unroll
    for (int i = 0; i < TILE_EACH; i++)
#pragma unroll
        for (int j = 0; j < TILE_EACH; j++) {
            const int m = tile_row() + i, d = tile_column() + j;
            if (rows.token[m] < 0 || d >= n) continue;
            sum.at[i][j] =
                band.first == 0 ? load_element(kind.gradient, gradient_at(m, d)) : *partial_at(m, d);
        }
    for (int64_t u0 = max(t0, band.first); u0 < end && !is_past(args.raw, kind, last, u0); u0 += LOOKED_FOR) {
        const int64_t u = u0 + warp;
        const int lane = threadIdx.x % WARP;
        __syncthreads();
        const int32_t place = u < end ? place_of_row(args, kind, rows.token[lane], u) : -1;
        const bool any = __any_sync(ALL_LANES, place >= 0);
        rows.place[warp][lane] = place;
        if (lane == 0) rows.any[warp] = any;
        __syncthreads();
        for (int i = 0; i < LOOKED_FOR; i++)
            if (rows.any[i]) add_query<T>(args, band, dout, u0 + i, rows.place[i], d0, n, tiles, sum);
    }
    visit_tile(sum, TILE_ROWS, n, [&](int m, int d, float x) {
        if (rows.token[m] < 0) return;
        if (end == args.raw.T)
            store_element(kind.gradient, gradient_at(m, d), x);
        else
            *partial_at(m, d) = x;
    });
}

__global__ void __launch_bounds__(SINK_THREADS)
    entries_back_to_sinks(wb_attention raw, const float *terms, float *dsinks) {
    const int64_t head = blockIdx.x;
    add_to_sink(raw, dsinks, head, [&](int64_t t) { return terms[t * raw.n_heads + head]; });
}

/* ---- launches ---------------------------------------------------------------------------------- */

/* Whole tiles of the rows of a kind. */
int64_t tiles_of(int64_t T, int32_t ratio) {
    const int64_t tokens = static_cast<int64_t>(TILE_ROWS) * ratio;
    return (T + tokens - 1) / tokens;
}

/* Bytes of the terms of sinks and of sums of rows. */
size_t fixed_bytes(int64_t T, int32_t n_heads, int32_t head_dim, int64_t tiles) {
    return static_cast<size_t>(T * n_heads + tiles * TILE_ROWS * head_dim) * sizeof(float);
}

template <class T>
void launch_band(wb_device *dev, const wb_entry_attention *args, const query_band &band, wb_rows dout,
                 wb_rows dq, float *sink_terms, const row_kind *kinds, int n_kinds) {
    const wb_attention *raw = &args->raw;
    const unsigned blocks = static_cast<unsigned>(band.n * head_groups(raw->n_heads));
    const unsigned columns = static_cast<unsigned>((raw->head_dim + TILE_COLUMNS - 1) / TILE_COLUMNS);
    entries_back_to_queries<T>
        <<<blocks, TILE_THREADS, 0, stream_of(dev)>>>(*args, band, dout, dq, sink_terms);
    for (int i = 0; i < n_kinds; i++) {
        const dim3 grid(static_cast<unsigned>(tiles_of(raw->T, kinds[i].ratio)), columns);
        entries_back_to_rows<T><<<grid, TILE_THREADS, 0, stream_of(dev)>>>(*args, band, dout, kinds[i]);
    }
}

} // namespace

extern "C" {

size_t wb_cuda_entry_backward_bytes(int64_t T, int32_t n_heads, int32_t head_dim, int64_t keys,
                                    int64_t entries) {
    const int64_t each = query_bytes(n_heads, keys, PARTS);
    /* each kind's last tile may be short */
    return fixed_bytes(T, n_heads, head_dim, (T + entries) / TILE_ROWS + 2) +
           static_cast<size_t>(band_queries(T, each) * each);
}

wb_status wb_cuda_entry_attention_backward(wb_device *dev, const wb_entry_attention *args, wb_rows dout,
                                           wb_rows dq, wb_rows dk, wb_rows dentries, float *dsinks) {
    const char *op = "entry_attention_backward";
    const wb_attention *raw = &args->raw;
    const int64_t T = raw->T, hd = raw->head_dim;
    const int32_t ratio = args->entries.ratio;
    const int n_kinds = ratio > 0 ? 2 : 1;
    unsigned blocks = 0;
    char *scratch = NULL;
    query_band band;
    WB_TRY(entry_attention_back_check(args, dout, dq, dk, dentries, dsinks));
    WB_TRY(prepare_launch(dev, op, T * head_groups(raw->n_heads), BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    const int64_t position_tiles = tiles_of(T, 1), entry_tiles = ratio > 0 ? tiles_of(T, ratio) : 0;
    WB_TRY(launch_checks(dev, op, WB_OP_entry_attention_backward, args));
    WB_TRY(open_band(dev, raw, most_keys_of(args, T), PARTS,
                     fixed_bytes(T, raw->n_heads, raw->head_dim, position_tiles + entry_tiles), &scratch,
                     &band));
    float *const terms = reinterpret_cast<float *>(scratch), *const partial = terms + T * raw->n_heads;
    const row_kind kinds[] = {
        {1, false, dk, hd, partial},
        {ratio, true, dentries, args->entries.stride, partial + position_tiles * TILE_ROWS * hd}};
    const auto launch = raw->q.dtype == WB_F32 ? launch_band<float> : launch_band<uint16_t>;
    for (const int64_t most = band.n; band.first < T; band.first += most) {
        band.n = std::min(most, T - band.first);
        launch(dev, args, band, dout, dq, terms, kinds, n_kinds);
    }
    if (dsinks)
        entries_back_to_sinks<<<static_cast<unsigned>(raw->n_heads), SINK_THREADS, 0, stream_of(dev)>>>(
            *raw, terms, dsinks);
    return wb_cuda_check(cudaGetLastError(), op);
}
}
