/* cuda_entry_attention_back.cu - the backward of attention over a window and compressed entries: a block a
 * query and head for dq, then a block a row, a position's or an entry's, for its gradient as key and as
 * value, which is one chain over the queries that see it. */
#include "cuda/cuda_attention_sinks.h"
#include "cuda/cuda_entries.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

enum { MAX_HEADS = 256 };

/* What the gradients of the scores of one query and head need: p = exp(score - max) * inverse, and
 * ds = p (dp - dot) with dot = <p, dp>. */
struct query_sums {
    float max, inverse, dot;
};
static_assert(sizeof(query_sums) == WB_ATTENTION_SUMS * sizeof(float), "cuda_scratch.h");

/* In lane order, as the CPU's row_dot. */
__device__ __forceinline__ void add_dots(const float *p, const float *dp, const key_step &step, float &sum) {
    if (threadIdx.x < WB_LANES)
        for (int j = threadIdx.x; j < step.end; j += WB_LANES) sum = wb_fma(p[j], dp[j], sum);
}

/* dq of one query and head, and its sums. Three walks over the keys: the sum of the exponentials, <p, dp>,
 * and the chain of dq. */
__global__ void __launch_bounds__(STEP)
    entries_back_to_queries(wb_entry_attention args, wb_rows dout, wb_rows dq, query_sums *sums) {
    __shared__ float q[MAX_DIM], d_out[MAX_DIM], p[STEP], dp[STEP], shared;
    __shared__ int64_t place[STEP];
    const int hd = args.raw.head_dim, j = threadIdx.x;
    const int64_t t = blockIdx.x / args.raw.n_heads, head = blockIdx.x % args.raw.n_heads;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * hd;
    float value[MAX_DIM / STEP] = {};
    if (args.raw.seq[t] < 0) {
        for (int d = threadIdx.x; d < hd; d += STEP) store_element(dq, at + d, 0.0f);
        return;
    }
    const entry_list keys = find_list(args, t);
    load_head(args.raw.q, at, hd, args.raw.scale, q);
    load_head(dout, at, hd, 1.0f, d_out);
    __syncthreads();
    query_sums row = {largest_of_list(args, keys, head, q), 0.0f, 0.0f};
    for (int walk = 0; walk < 3; walk++) {
        float sum = 0.0f;
        for (int64_t j0 = 0; j0 < key_count(keys); j0 += STEP) {
            const key_step step = list_step(keys, j0);
            p[j] = dp[j] = 0.0f;
            if (sees(step)) {
                place[j] = place_of_key(args, keys, j0 + j);
                p[j] = wb_expf(wb_sub(dot_key(args, keys, j0 + j, q), row.max));
                if (walk > 0) p[j] = wb_mul(p[j], row.inverse);
                if (walk > 0) dp[j] = dot_key(args, keys, j0 + j, d_out);
                if (walk > 1) p[j] = wb_mul(p[j], wb_sub(dp[j], row.dot)); /* ds */
            }
            __syncthreads();
            if (walk == 0) add_lanes(p, step, sum);
            if (walk == 1) add_dots(p, dp, step, sum);
            if (walk == 2) add_keys(args, keys, p, place, step, value);
            __syncthreads();
        }
        if (threadIdx.x < WARP) sum = fold_lanes(sum);
        if (threadIdx.x == 0) shared = sum;
        __syncthreads();
        if (walk == 0) {
            const float whole =
                args.raw.sinks ? wb_add(shared, sink_weight(args.raw, head, row.max)) : shared;
            row.inverse = wb_div(1.0f, whole);
        }
        if (walk == 1) row.dot = shared;
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = row;
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < hd) store_element(dq, at + d, wb_mul(value[i], args.raw.scale));
    }
}

/* Whether token u, of the sequence of the row, sees entry w. */
__device__ __forceinline__ bool sees_entry(const wb_entry_attention &args, int64_t u, int32_t w) {
    if (!args.listed) return true; /* all that have ended */
    const int32_t *list = args.listed + u * args.max_listed;
    int32_t low = 0, high = listed_entries(list, args.max_listed);
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (list[middle] < w)
            low = middle + 1;
        else
            high = middle;
    }
    return low < args.max_listed && list[low] == w;
}

/* Query u's part in a row's gradient, the row being x[head_dim] (shared): to[i] is element threadIdx.x + i
 * STEP. First what comes by the scores, of all heads, then what comes by the weights. */
__device__ __forceinline__ void add_query(const wb_entry_attention &args, int64_t u, const float *x,
                                          const wb_rows &dout, const query_sums *sums,
                                          float (&to)[MAX_DIM / STEP]) {
    __shared__ float p[MAX_HEADS], ds[MAX_HEADS];
    const int hd = args.raw.head_dim, heads = args.raw.n_heads;
    const int64_t first = u * heads * hd;
    for (int h = threadIdx.x; h < heads; h += STEP) {
        const int64_t at = first + static_cast<int64_t>(h) * hd;
        const query_sums s = sums[u * heads + h];
        float score = 0.0f;
        for (int d = 0; d < hd; d++)
            score = wb_fma(wb_mul(load_element(args.raw.q, at + d), args.raw.scale), x[d], score);
        p[h] = wb_mul(wb_expf(wb_sub(score, s.max)), s.inverse);
        ds[h] = wb_mul(p[h], wb_sub(dot_head(x, dout, at, hd), s.dot));
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d >= hd) break;
        for (int h = 0; h < heads; h++)
            to[i] =
                wb_fma(ds[h], wb_mul(load_element(args.raw.q, first + h * hd + d), args.raw.scale), to[i]);
        for (int h = 0; h < heads; h++) to[i] = wb_fma(p[h], load_element(dout, first + h * hd + d), to[i]);
    }
    __syncthreads();
}

/* A block a token: the gradient of its position's row (entry -1), or of the entry that ends at it. Sequences
 * begin at position 0, so that a row's queries are tokens of the call from this one on. */
template <bool ENTRY>
__global__ void __launch_bounds__(STEP)
    entries_back_to_rows(wb_entry_attention args, wb_rows dout, const query_sums *sums, wb_rows d_rows) {
    __shared__ float x[MAX_DIM];
    const int64_t t = blockIdx.x;
    const int hd = args.raw.head_dim;
    const int32_t seq = args.raw.seq[t], pos = args.raw.pos[t], block_size = args.raw.block_size;
    if (seq < 0 || (ENTRY && (pos + 1) % args.entries.ratio != 0)) return;
    const int32_t w = ENTRY ? pos / args.entries.ratio : 0;
    const int32_t *blocks = args.raw.blocks + static_cast<int64_t>(seq) * args.raw.max_blocks;
    const int64_t at = ENTRY ? entry_row(blocks, block_size, args.entries.ratio, w) * args.entries.stride
                             : position_row(blocks, block_size, pos) * hd;
    float to[MAX_DIM / STEP] = {};
    load_head(ENTRY ? args.entries.rows : args.raw.k, at, hd, 1.0f, x);
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < hd) to[i] = load_element(d_rows, at + d);
    }
    __syncthreads();
    for (int64_t u = t; u < args.raw.T && args.raw.seq[u] == seq; u++) {
        if (!ENTRY && attention_first_key(&args.raw, args.raw.pos[u]) > pos) break;
        if (!ENTRY || sees_entry(args, u, w)) add_query(args, u, x, dout, sums, to);
    }
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < hd) store_element(d_rows, at + d, to[i]);
    }
}

__global__ void __launch_bounds__(SINK_THREADS)
    entries_back_to_sinks(wb_attention raw, const query_sums *sums, float *dsinks) {
    const int64_t head = blockIdx.x;
    add_to_sink(raw, dsinks, head, [&](int64_t t) {
        const query_sums row = sums[t * raw.n_heads + head];
        return wb_mul(wb_mul(sink_weight(raw, head, row.max), row.inverse), row.dot);
    });
}

wb_status check_heads(const char *op, const wb_attention *raw) {
    WB_TRY(check_widths(op, raw));
    if (raw->n_heads <= MAX_HEADS) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: n_heads: expected at most %d, found %d", op, MAX_HEADS,
                   raw->n_heads);
}

} // namespace

extern "C" {

wb_status wb_cuda_entry_attention_backward(wb_device *dev, const wb_entry_attention *args, wb_rows dout,
                                           wb_rows dq, wb_rows dk, wb_rows dentries, float *dsinks) {
    const char *op = "entry_attention_backward";
    const wb_attention *raw = &args->raw;
    query_sums *sums = NULL;
    unsigned query_blocks = 0, row_blocks = 0;
    WB_TRY(entry_attention_back_check(args, dout, dq, dk, dentries, dsinks));
    WB_TRY(check_heads(op, raw));
    WB_TRY(prepare_launch(dev, op, raw->T * raw->n_heads, BLOCK, &query_blocks));
    WB_TRY(prepare_launch(dev, op, raw->T, BLOCK, &row_blocks));
    if (query_blocks == 0) return WB_OK;
    WB_TRY(launch_checks(dev, op, WB_OP_entry_attention_backward, args));
    WB_TRY(reserve_scratch(dev, wb_cuda_attention_backward_bytes(raw->T, raw->n_heads), &sums));
    cudaStream_t stream = stream_of(dev);
    entries_back_to_queries<<<query_blocks, STEP, 0, stream>>>(*args, dout, dq, sums);
    entries_back_to_rows<false><<<row_blocks, STEP, 0, stream>>>(*args, dout, sums, dk);
    if (args->entries.ratio > 0)
        entries_back_to_rows<true><<<row_blocks, STEP, 0, stream>>>(*args, dout, sums, dentries);
    if (dsinks)
        entries_back_to_sinks<<<static_cast<unsigned>(raw->n_heads), SINK_THREADS, 0, stream>>>(*raw, sums,
                                                                                                dsinks);
    return wb_cuda_check(cudaGetLastError(), op);
}
}
