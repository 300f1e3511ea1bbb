/* cuda_entries.h - attention over entries: the keys of a query, the rows of its window and then the entries
 * that it sees, and their products with a block's heads. What the forward and the backward share. For .cu
 * files.
 *
 * All heads of a query see the same rows, so that scores are a product of two matrices (cuda_tile_product.h),
 * and so are the sums over keys; in between, scores lie in scratch, for as many queries at a time as there is
 * room for. Each element is one chain in one thread: the bits are the CPU's. */
#ifndef WB_CUDA_ENTRIES_H
#define WB_CUDA_ENTRIES_H

#include "cuda/cuda_attention_sinks.h"
#include "cuda/cuda_fault.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_tile_product.h"
#include "entry_check.h"
#include "entry_rules.h"

#include <algorithm>

namespace {

/* A list that names what its token does not see, or twice, or something behind a -1, is a fault. The kernels
 * behind this one run all the same, and so read no place of it as a row that is not there (place_of_key). */
__global__ void __launch_bounds__(BLOCK) check_lists(wb_entry_attention args, wb_op op, wb_fault *fault) {
    const int64_t place = thread_number(), t = place / args.max_listed;
    if (t >= args.raw.T || args.raw.seq[t] < 0) return;
    const int32_t found = args.listed[place], choice = static_cast<int32_t>(place % args.max_listed);
    const int32_t limit = entries_seen(args.entries.ratio, args.raw.pos[t]);
    if (!follows_in_list(args.listed + t * args.max_listed, choice, limit))
        set_fault(fault, {WB_FAULT_ENTRY, op, t, choice, limit, found});
}

inline wb_status launch_checks(wb_device *dev, const char *name, wb_op op, const wb_entry_attention *args) {
    if (!args->listed || args->entries.ratio == 0) return WB_OK;
    LAUNCH(dev, name, args->raw.T * args->max_listed, 1, check_lists, *args, op, fault_of(dev));
}

/* One query: its rows are the positions [first, first + raw), and `entries` more keys are those of the list,
 * or the first ones. */
struct entry_list {
    const int32_t *blocks, *list;
    int64_t first, raw;
    int32_t entries, seen;
};

/* Of a token that is no padding. */
__device__ __forceinline__ entry_list find_list(const wb_entry_attention &args, int64_t t) {
    const int32_t pos = args.raw.pos[t], first = attention_first_key(&args.raw, pos);
    entry_list keys = {args.raw.blocks + static_cast<int64_t>(args.raw.seq[t]) * args.raw.max_blocks,
                       NULL,
                       first,
                       static_cast<int64_t>(pos) - first + 1,
                       0,
                       entries_seen(args.entries.ratio, pos)};
    keys.entries = keys.seen;
    if (!args.listed || args.entries.ratio == 0) return keys;
    keys.list = args.listed + t * args.max_listed;
    keys.entries = min(listed_entries(keys.list, args.max_listed), keys.seen);
    return keys;
}

__device__ __forceinline__ int64_t key_count(const entry_list &keys) {
    return keys.raw + keys.entries;
}

/* Rows among which key j lies, and its first element there. What a wrong list names is read as the
 * last entry that the query sees, a -1 before an entry as the first one. */
__device__ __forceinline__ const void *pool_of(const wb_entry_attention &args, const entry_list &keys,
                                               int64_t j) {
    return j < keys.raw ? args.raw.k.data : args.entries.rows.data;
}
__device__ __forceinline__ int64_t place_of_key(const wb_entry_attention &args, const entry_list &keys,
                                                int64_t j) {
    if (j < keys.raw)
        return position_row(keys.blocks, args.raw.block_size, keys.first + j) * args.raw.head_dim;
    const int32_t i = static_cast<int32_t>(j - keys.raw),
                  w = keys.list ? max(0, min(keys.list[i], keys.seen - 1)) : i;
    return entry_row(keys.blocks, args.raw.block_size, args.entries.ratio, w) * args.entries.stride;
}

/* Element i of what a kernel only reads, T being float or uint16_t, a bf16. load_element looks at the
 * dtype each time, so that one load waits for the other. */
template <class T> __device__ __forceinline__ float read_element(const void *data, int64_t i);
template <> __device__ __forceinline__ float read_element<float>(const void *data, int64_t i) {
    return __ldg(static_cast<const float *>(data) + i);
}
template <> __device__ __forceinline__ float read_element<uint16_t>(const void *data, int64_t i) {
    return wb_bf16_to_f32(__ldg(static_cast<const uint16_t *>(data) + i));
}

/* ---- what a block computes of a query ---------------------------------------------------------- */

/* The queries [first, first + n) of a call, whose coefficients are in scratch at one time:
 * [n][parts][n_heads] [most_keys], a part being weights or, in a backward, gradients of scores. */
struct query_band {
    int64_t first, n, most_keys;
    int parts;
    float *coefficients;
};

/* A block has TILE_ROWS heads of a query, or those that are left. */
struct query_heads {
    int64_t t, head;
    int heads;
    float *weights; /* [heads][most_keys], of the block */
};

__host__ __device__ inline int32_t head_groups(int32_t n_heads) {
    return (n_heads + TILE_ROWS - 1) / TILE_ROWS;
}

__device__ __forceinline__ float *coefficients_of(const query_band &band, const wb_attention &raw, int64_t t,
                                                  int part, int64_t head) {
    return band.coefficients + (((t - band.first) * band.parts + part) * raw.n_heads + head) * band.most_keys;
}

__device__ __forceinline__ query_heads heads_of_block(const query_band &band, const wb_attention &raw) {
    const int32_t groups = head_groups(raw.n_heads);
    query_heads q = {band.first + blockIdx.x / groups, blockIdx.x % groups * TILE_ROWS, 0, NULL};
    q.heads = static_cast<int>(min(static_cast<int64_t>(TILE_ROWS), raw.n_heads - q.head));
    q.weights = coefficients_of(band, raw, q.t, 0, q.head);
    return q;
}

/* Element 0 of the block's heads among those of all tokens. */
__device__ __forceinline__ int64_t first_element(const wb_attention &raw, const query_heads &q) {
    return (q.t * raw.n_heads + q.head) * raw.head_dim;
}

/* Half warps of a block. */
enum { HALVES_OF_TILE = TILE_THREADS / WB_LANES };

/* A block's shared memory. */
struct entry_tiles {
    tile_operand<TILE_ROWS> rows;
    tile_operand<TILE_COLUMNS> columns;
    int64_t place[TILE_COLUMNS];
};

/* place[n] (=) places of keys from j0 on, as far as there are. */
__device__ __forceinline__ void find_places(const wb_entry_attention &args, const entry_list &keys,
                                            int64_t j0, int n, int64_t *place) {
    const int64_t j = j0 + threadIdx.x;
    if (static_cast<int>(threadIdx.x) < n && j < key_count(keys))
        place[threadIdx.x] = place_of_key(args, keys, j);
}

/* to[heads][most_keys] (=) the products of the block's heads of `from`, times `factor`, and the query's
 * keys. */
template <class Q, class K>
__device__ __forceinline__ void multiply_keys(const wb_entry_attention &args, const entry_list &keys,
                                              const query_heads &q, const wb_rows &from, float factor,
                                              int64_t most_keys, float *to, entry_tiles &s) {
    const int hd = args.raw.head_dim;
    const int64_t at = first_element(args.raw, q);
    for (int64_t j0 = 0; j0 < key_count(keys); j0 += TILE_COLUMNS) {
        const int n = static_cast<int>(min(static_cast<int64_t>(TILE_COLUMNS), key_count(keys) - j0));
        tile_sums sum = {};
        tile_share<TILE_ROWS> rows;
        tile_share<TILE_COLUMNS> columns;
        const auto load = [&](int d0) {
            const int count = min(static_cast<int>(TILE_K), hd - d0);
            rows = load_tile<true, TILE_ROWS>(q.heads, count, [&](int m, int k) {
                return wb_mul(read_element<Q>(from.data, at + static_cast<int64_t>(m) * hd + d0 + k), factor);
            });
            columns = load_tile<true, TILE_COLUMNS>(n, count, [&](int j, int k) {
                return read_element<K>(pool_of(args, keys, j0 + j), s.place[j] + d0 + k);
            });
        };
        __syncthreads();
        find_places(args, keys, j0, TILE_COLUMNS, s.place);
        __syncthreads();
        load(0);
        for (int d0 = 0; d0 < hd; d0 += TILE_K) {
            __syncthreads();
            store_tile<true>(rows, s.rows);
            store_tile<true>(columns, s.columns);
            __syncthreads();
            if (d0 + TILE_K < hd) load(d0 + TILE_K);
            multiply_tile(s.rows, s.columns, min(static_cast<int>(TILE_K), hd - d0), sum);
        }
        visit_tile(sum, q.heads, n, [&](int m, int j, float x) { to[m * most_keys + j0 + j] = x; });
    }
}

/* to(head, dimension) is told the sum over keys, ascending, of coefficients[heads][most_keys] times keys.
 * Places of the next TILE_K keys are looked for while the present ones' values come. */
template <class K, class TO>
__device__ __forceinline__ void add_keys(const wb_entry_attention &args, const entry_list &keys,
                                         const query_heads &q, int64_t most_keys, const float *coefficients,
                                         entry_tiles &s, const TO &to) {
    const int hd = args.raw.head_dim;
    for (int d0 = 0; d0 < hd; d0 += TILE_COLUMNS) {
        const int n = min(static_cast<int>(TILE_COLUMNS), hd - d0);
        tile_sums sum = {};
        tile_share<TILE_ROWS> rows;
        tile_share<TILE_COLUMNS> columns;
        const auto places = [&](int64_t j0) { return s.place + j0 % TILE_COLUMNS; };
        const auto load = [&](int64_t j0) {
            const int64_t *place = places(j0);
            const int count = static_cast<int>(min(static_cast<int64_t>(TILE_K), key_count(keys) - j0));
            rows = load_tile<true, TILE_ROWS>(
                q.heads, count, [&](int m, int k) { return coefficients[m * most_keys + j0 + k]; });
            columns = load_tile<false, TILE_COLUMNS>(n, count, [&](int d, int k) {
                return read_element<K>(pool_of(args, keys, j0 + k), place[k] + d0 + d);
            });
        };
        __syncthreads();
        find_places(args, keys, 0, TILE_K, s.place);
        __syncthreads();
        load(0);
        for (int64_t j0 = 0; j0 < key_count(keys); j0 += TILE_K) {
            const int count = static_cast<int>(min(static_cast<int64_t>(TILE_K), key_count(keys) - j0));
            __syncthreads();
            store_tile<true>(rows, s.rows);
            store_tile<false>(columns, s.columns);
            find_places(args, keys, j0 + TILE_K, TILE_K, places(j0 + TILE_K));
            __syncthreads();
            if (j0 + TILE_K < key_count(keys)) load(j0 + TILE_K);
            multiply_tile(s.rows, s.columns, count, sum);
        }
        visit_tile(sum, q.heads, n, [&](int m, int d, float x) { to(m, d0 + d, x); });
    }
}
static_assert(static_cast<int>(TILE_COLUMNS) == 2 * TILE_K,
              "places of the next keys lie beside the present ones'");

/* A half warp has a head's weights w[n], scores that become exponentials: lane l the keys l, l + 16, ..., so
 * that sums are in lane order. Half warps without a head have n 0, and take part in exchanges. Returns what
 * makes weights of them. */
struct row_factors {
    float max, inverse;
};

__device__ __forceinline__ row_factors soften_row(const wb_attention &raw, int64_t head, int64_t n,
                                                  float *w) {
    const int lane = threadIdx.x % WB_LANES;
    row_factors row = {n > 0 ? w[0] : 0.0f, 0.0f};
    float sum = 0.0f;
    for (int64_t j = lane; j < n; j += WB_LANES) row.max = w[j] > row.max ? w[j] : row.max;
    for (int step = WB_LANES / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, row.max, step);
        row.max = other > row.max ? other : row.max;
    }
    if (raw.sinks && raw.sinks[head] > row.max) row.max = raw.sinks[head];
    __syncwarp();
    for (int64_t j = lane; j < n; j += WB_LANES) {
        w[j] = wb_expf(wb_sub(w[j], row.max));
        sum = wb_add(sum, w[j]);
    }
    sum = fold_lanes(sum);
    row.inverse = wb_div(1.0f, raw.sinks ? wb_add(sum, sink_weight(raw, head, row.max)) : sum);
    return row;
}

/* ---- scratch ----------------------------------------------------------------------------------- */

/* Bytes of coefficients, unless FEWEST_QUERIES need more, and queries whose coefficients are there at a
 * time. */
enum { BAND_BYTES = 128 << 20, FEWEST_QUERIES = 16 };

/* Bytes that a query's coefficients take. */
inline int64_t query_bytes(int32_t n_heads, int64_t most_keys, int parts) {
    return static_cast<int64_t>(sizeof(float)) * parts * n_heads * most_keys;
}

inline int64_t band_queries(int64_t T, int64_t bytes_each) {
    const int64_t fit = BAND_BYTES / (bytes_each > 0 ? bytes_each : 1);
    return std::min(T, std::max(fit, static_cast<int64_t>(FEWEST_QUERIES)));
}

/* A bound of the positions of a call: where sequences are whole, positions are tokens of the call. */
inline int64_t positions_of(const wb_attention *raw) {
    return std::max(raw->T, static_cast<int64_t>(raw->max_blocks) * raw->block_size);
}

/* Keys that a query of a position below this sees at most. */
inline int64_t most_keys_of(const wb_entry_attention *args, int64_t positions) {
    const int64_t window = args->raw.window, raw = window > 0 && window < positions ? window : positions;
    const int64_t ended = args->entries.ratio > 0 ? positions / args->entries.ratio : 0;
    return raw + (args->listed && args->max_listed < ended ? args->max_listed : ended);
}

/* Scratch for a call: `fixed` bytes, then the coefficients of band_out->n queries. A call of more tokens than
 * a sequence has places counts with more keys than were announced at open (positions_of): then fewer queries
 * at a time go into what there is, so that a step allocates nothing. No bit depends on it. */
inline wb_status open_band(wb_device *dev, const wb_attention *raw, int64_t most_keys, int parts,
                           size_t fixed, char **fixed_out, query_band *band_out) {
    const int64_t each = query_bytes(raw->n_heads, most_keys, parts);
    const int64_t fewest = (std::min(raw->T, static_cast<int64_t>(FEWEST_QUERIES)) + 1) / 2;
    const int64_t room = static_cast<int64_t>(reinterpret_cast<wb_cuda_device *>(dev)->scratch_bytes) -
                         static_cast<int64_t>(fixed);
    int64_t n = band_queries(raw->T, each);
    if (room >= fewest * each) n = std::min(n, room / each);
    WB_TRY(reserve_scratch(dev, fixed + static_cast<size_t>(n * each), fixed_out));
    *band_out = {0, n, most_keys, parts, reinterpret_cast<float *>(*fixed_out + fixed)};
    return WB_OK;
}

} // namespace

#endif
