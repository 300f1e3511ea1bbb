/* cuda_attention.cu - causal grouped-query attention over a paged pool, forward and backward.
 *
 * A block has one query and head, or in the backward of the keys one key and kv head. A score is one chain
 * over the head's dimensions of q * scale and k, in one thread; exponentials are summed in lane order of the
 * key; an element of the output, and of dk and dv, is one chain, in one thread, over ascending keys or rows.
 * So the bits are the CPU's, and a query's do not depend on the queries beside it. Scores are computed again
 * where they are needed: nothing is as long as a context. Refuses: writing the cache (kv_write). */
#include "attention_check.h"
#include "cuda/cuda_attention_bf16.h"
#include "cuda/cuda_attention_sinks.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/hopper/hopper_attention.h"

namespace {

/* Threads of a block, and keys or rows of a step. */
enum { STEP = 128, MAX_DIM = 5 * STEP };

/* The head of key j of the sequence of token t, among those of all rows of the pool. */
__device__ __forceinline__ int64_t key_head(const wb_attention &args, int64_t t, int64_t j, int64_t kv) {
    const int32_t *blocks = args.blocks + static_cast<int64_t>(args.seq[t]) * args.max_blocks;
    const int64_t row =
        static_cast<int64_t>(blocks[j / args.block_size]) * args.block_size + j % args.block_size;
    return row * args.n_kv_heads + kv;
}

/* to[n] (shared) = elements of `from`, times factor, by the block. */
__device__ __forceinline__ void load_head(const wb_rows &from, int64_t at, int n, float factor, float *to) {
    for (int d = threadIdx.x; d < n; d += STEP) to[d] = wb_mul(load_element(from, at + d), factor);
}

/* <x[n], elements of `pool` from `at` on> */
__device__ __forceinline__ float dot_head(const float *x, const wb_rows &pool, int64_t at, int n) {
    float sum = 0.0f;
    for (int d = 0; d < n; d++) sum = wb_fma(x[d], load_element(pool, at + d), sum);
    return sum;
}

/* The largest of what all threads have. */
__device__ __forceinline__ float block_max(float max) {
    __shared__ float of_warp[STEP / WARP];
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, max, step);
        max = other > max ? other : max;
    }
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = max;
    __syncthreads();
    for (int warp = 0; warp < STEP / WARP; warp++) max = of_warp[warp] > max ? of_warp[warp] : max;
    __syncthreads();
    return max;
}

/* One query and head, number `row` of those of all tokens. It sees the keys [first, keys). */
struct query {
    int64_t t, row, head, kv, first, keys;
};

__device__ __forceinline__ query find_query(const wb_attention &args) {
    const int64_t t = blockIdx.x / args.n_heads, head = blockIdx.x % args.n_heads;
    const int64_t kv = head / (args.n_heads / args.n_kv_heads);
    if (args.seq[t] < 0) return {t, blockIdx.x, head, kv, 0, 0};
    return {t,
            blockIdx.x,
            head,
            kv,
            attention_first_key(&args, args.pos[t]),
            static_cast<int64_t>(args.pos[t]) + 1};
}

/* The score of key number `key` of all heads of the pool. */
__device__ __forceinline__ float score_of(const wb_attention &args, const float *q, int64_t key) {
    return dot_head(q, args.k, key * args.head_dim, args.head_dim);
}

/* The largest score, or the sink where that is larger. A NaN among the scores is one in the first of them, or
 * in the sum that follows. */
__device__ __forceinline__ float largest_score(const wb_attention &args, const query &a, const float *q) {
    float max = score_of(args, q, key_head(args, a.t, a.first, a.kv));
    for (int64_t j = a.first + threadIdx.x; j < a.keys; j += STEP) {
        const float score = score_of(args, q, key_head(args, a.t, j, a.kv));
        max = score > max ? score : max;
    }
    max = block_max(max);
    return args.sinks && args.sinks[a.head] > max ? args.sinks[a.head] : max;
}

/* exp(sink - max) of a head that has one. */
__device__ __forceinline__ float sink_weight(const wb_attention &args, int64_t head, float max) {
    return wb_expf(wb_sub(args.sinks[head], max));
}

/* A step's keys, those from position j0 on. They begin at a multiple of STEP whatever the query sees, so that
 * a key's lane is that of its position; of the step's, the query sees [begin, end). */
struct key_step {
    int64_t j0;
    int begin, end;
};

__device__ __forceinline__ int64_t first_step(const query &a) {
    return a.first / STEP * STEP;
}

__device__ __forceinline__ key_step step_from(const query &a, int64_t j0) {
    return {j0, static_cast<int>(max(a.first - j0, static_cast<int64_t>(0))),
            static_cast<int>(min(a.keys - j0, static_cast<int64_t>(STEP)))};
}

__device__ __forceinline__ bool sees(const key_step &step) {
    const int j = threadIdx.x;
    return step.begin <= j && j < step.end;
}

/* ---- forward --------------------------------------------------------------------------------- */

/* sum[lane] += the exponentials of a step, in lane order of their keys; those that are not seen are 0. */
__device__ __forceinline__ void add_lanes(const float *p, const key_step &step, float &sum) {
    if (threadIdx.x < WB_LANES)
        for (int j = threadIdx.x; j < step.end; j += WB_LANES) sum = wb_add(sum, p[j]);
}

/* out[d] += p[j] * head key[j] of the pool, [width], over the keys of a step, ascending: thread d,
 * d + STEP, ... */
__device__ __forceinline__ void add_values(const wb_rows &pool, int64_t from_head, int width, const float *p,
                                           const int64_t *key, const key_step &step,
                                           float (&out)[MAX_DIM / STEP]) {
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d >= width) break;
#pragma unroll 4
        for (int j = step.begin; j < step.end; j++)
            out[i] = wb_fma(p[j], load_element(pool, key[j] * from_head + d), out[i]);
    }
}

__global__ void __launch_bounds__(STEP) attend(wb_attention args, wb_rows out) {
    __shared__ float q[MAX_DIM], p[STEP], inverse;
    __shared__ int64_t key[STEP];
    const query a = find_query(args);
    const int64_t to = a.row * args.value_dim;
    const int j = threadIdx.x;
    float sum = 0.0f, value[MAX_DIM / STEP] = {};
    if (a.keys == 0) {
        for (int d = threadIdx.x; d < args.value_dim; d += STEP) store_element(out, to + d, 0.0f);
        return;
    }
    load_head(args.q, a.row * args.head_dim, args.head_dim, args.scale, q);
    __syncthreads();
    const float max = largest_score(args, a, q);
    for (int64_t j0 = first_step(a); j0 < a.keys; j0 += STEP) {
        const key_step step = step_from(a, j0);
        p[j] = 0.0f;
        if (sees(step)) {
            key[j] = key_head(args, a.t, j0 + j, a.kv);
            p[j] = wb_expf(wb_sub(score_of(args, q, key[j]), max));
        }
        __syncthreads();
        add_lanes(p, step, sum);
        add_values(args.v, attention_value_step(&args), args.value_dim, p, key, step, value);
        __syncthreads();
    }
    if (threadIdx.x < WARP) sum = fold_lanes(sum);
    if (threadIdx.x == 0 && args.sinks) sum = wb_add(sum, sink_weight(args, a.head, max));
    if (threadIdx.x == 0) inverse = wb_div(1.0f, sum);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.value_dim) store_element(out, to + d, wb_mul(value[i], inverse));
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

/* What the gradients of the scores of one query and head need: p = exp(score - max) * inverse, and
 * ds = p (dp - dot) with dot = <p, dp>. */
struct row_sums {
    float max, inverse, dot;
};
static_assert(sizeof(row_sums) == WB_ATTENTION_SUMS * sizeof(float), "cuda_scratch.h");

/* In lane order, as the CPU's row_dot. */
__device__ __forceinline__ void add_products(const float *p, const float *dp, const key_step &step,
                                             float &sum) {
    if (threadIdx.x < WB_LANES)
        for (int j = threadIdx.x; j < step.end; j += WB_LANES) sum = wb_fma(p[j], dp[j], sum);
}

/* dq of one query and head, and its sums. Three walks over the keys: the sum of the exponentials, <p, dp>,
 * and the chain of dq. */
__global__ void __launch_bounds__(STEP)
    attend_back_to_queries(wb_attention args, wb_rows dout, wb_rows dq, row_sums *sums) {
    __shared__ float q[MAX_DIM], d_out[MAX_DIM], p[STEP], dp[STEP], shared;
    __shared__ int64_t key[STEP];
    const query a = find_query(args);
    const int64_t to = a.row * args.head_dim;
    const int j = threadIdx.x;
    float value[MAX_DIM / STEP] = {};
    load_head(args.q, to, args.head_dim, args.scale, q);
    load_head(dout, a.row * args.value_dim, args.value_dim, 1.0f, d_out);
    __syncthreads();
    row_sums row = {0.0f, 0.0f, 0.0f};
    if (a.keys > 0) row.max = largest_score(args, a, q);
    for (int walk = 0; walk < 3 && a.keys > 0; walk++) {
        float sum = 0.0f;
        for (int64_t j0 = first_step(a); j0 < a.keys; j0 += STEP) {
            const key_step step = step_from(a, j0);
            p[j] = dp[j] = 0.0f;
            if (sees(step)) {
                key[j] = key_head(args, a.t, j0 + j, a.kv);
                p[j] = wb_expf(wb_sub(score_of(args, q, key[j]), row.max));
                if (walk > 0) p[j] = wb_mul(p[j], row.inverse);
                if (walk > 0) dp[j] = dot_head(d_out, args.v, key[j] * args.value_dim, args.value_dim);
                if (walk > 1) p[j] = wb_mul(p[j], wb_sub(dp[j], row.dot)); /* ds */
            }
            __syncthreads();
            if (walk == 0) add_lanes(p, step, sum);
            if (walk == 1) add_products(p, dp, step, sum);
            if (walk == 2) add_values(args.k, args.head_dim, args.head_dim, p, key, step, value);
            __syncthreads();
        }
        if (threadIdx.x < WARP) sum = fold_lanes(sum);
        if (threadIdx.x == 0) shared = sum;
        __syncthreads();
        if (walk == 0) {
            const float whole = args.sinks ? wb_add(shared, sink_weight(args, a.head, row.max)) : shared;
            row.inverse = wb_div(1.0f, whole);
        }
        if (walk == 1) row.dot = shared;
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = row;
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.head_dim) store_element(dq, to + d, wb_mul(value[i], args.scale));
    }
}

/* A chain over rows, (query, head of the group) ascending, into dk and dv of one key: of the queries from
 * token t on that are in its sequence, up to the last that sees it. STEP rows a step, a thread each; then a
 * thread a dimension. */
__device__ __forceinline__ void add_rows(const wb_attention &args, int64_t t, int64_t j, int64_t kv,
                                         const wb_rows &dout, const row_sums *sums, const float *k,
                                         const float *v, wb_rows dk, wb_rows dv) {
    __shared__ float p[STEP], ds[STEP];
    const int64_t group = args.n_heads / args.n_kv_heads, head = key_head(args, t, j, kv);
    const int64_t to_dk = head * args.head_dim, to_dv = head * args.value_dim;
    const int32_t seq = args.seq[t];
    float to_k[MAX_DIM / STEP], to_v[MAX_DIM / STEP];
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.head_dim) to_k[i] = load_element(dk, to_dk + d);
        if (d < args.value_dim) to_v[i] = load_element(dv, to_dv + d);
    }
    for (int64_t row0 = 0;; row0 += STEP) {
        const int64_t row = row0 + threadIdx.x, u = t + row / group;
        const bool there = u < args.T && args.seq[u] == seq && attention_first_key(&args, args.pos[u]) <= j;
        p[threadIdx.x] = ds[threadIdx.x] = 0.0f;
        if (there && args.pos[u] >= j) {
            const int64_t at = u * args.n_heads + kv * group + row % group;
            const row_sums s = sums[at];
            float score = 0.0f;
            for (int d = 0; d < args.head_dim; d++)
                score = wb_fma(wb_mul(load_element(args.q, at * args.head_dim + d), args.scale), k[d], score);
            const float dp = dot_head(v, dout, at * args.value_dim, args.value_dim);
            p[threadIdx.x] = wb_mul(wb_expf(wb_sub(score, s.max)), s.inverse);
            ds[threadIdx.x] = wb_mul(p[threadIdx.x], wb_sub(dp, s.dot));
        }
        const int count = __syncthreads_count(there);
#pragma unroll
        for (int i = 0; i < MAX_DIM / STEP; i++) {
            const int d = threadIdx.x + i * STEP;
            for (int r = 0; r < count; r++) {
                const int64_t at = (t + (row0 + r) / group) * args.n_heads + kv * group + (row0 + r) % group;
                const int64_t in_q = at * args.head_dim + d, in_dout = at * args.value_dim + d;
                if (d < args.head_dim)
                    to_k[i] = wb_fma(ds[r], wb_mul(load_element(args.q, in_q), args.scale), to_k[i]);
                if (d < args.value_dim) to_v[i] = wb_fma(p[r], load_element(dout, in_dout), to_v[i]);
            }
        }
        __syncthreads();
        if (count < STEP) break;
    }
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.head_dim) store_element(dk, to_dk + d, to_k[i]);
        if (d < args.value_dim) store_element(dv, to_dv + d, to_v[i]);
    }
}

/* A block for each token and kv head: the key at the token's position. The first token of a run has those
 * before it too that it sees, which earlier calls wrote. */
__global__ void __launch_bounds__(STEP)
    attend_back_to_keys(wb_attention args, wb_rows dout, const row_sums *sums, wb_rows dk, wb_rows dv) {
    __shared__ float k[MAX_DIM], v[MAX_DIM];
    const int64_t t = blockIdx.x / args.n_kv_heads, kv = blockIdx.x % args.n_kv_heads;
    if (args.seq[t] < 0) return;
    const bool first = t == 0 || args.seq[t - 1] != args.seq[t];
    for (int64_t j = first ? attention_first_key(&args, args.pos[t]) : args.pos[t]; j <= args.pos[t]; j++) {
        const int64_t head = key_head(args, t, j, kv);
        load_head(args.k, head * args.head_dim, args.head_dim, 1.0f, k);
        load_head(args.v, head * args.value_dim, args.value_dim, 1.0f, v);
        __syncthreads();
        add_rows(args, t, j, kv, dout, sums, k, v, dk, dv);
        __syncthreads();
    }
}

__global__ void __launch_bounds__(SINK_THREADS)
    attend_back_to_sinks(wb_attention args, const row_sums *sums, float *dsinks) {
    const int64_t head = blockIdx.x;
    add_to_sink(args, dsinks, head, [&](int64_t t) {
        const row_sums row = sums[t * args.n_heads + head];
        return wb_mul(wb_mul(sink_weight(args, head, row.max), row.inverse), row.dot);
    });
}

/* Heads that a thread's share of MAX_DIM / STEP elements suffices for. */
wb_status check_widths(const char *op, const wb_attention *args) {
    if (args->head_dim <= MAX_DIM && args->value_dim <= MAX_DIM) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: head_dim and value_dim: expected at most %d, found %d and %d",
                   op, MAX_DIM, args->head_dim, args->value_dim);
}

} // namespace

extern "C" {

wb_status wb_cuda_attention_forward(wb_device *dev, const wb_attention *args, wb_rows out) {
    const char *op = "attention_forward";
    unsigned blocks = 0;
    WB_TRY(attention_check(op, args));
    WB_TRY(check_widths(op, args));
    WB_TRY(operand_check_like(op, "out", out.dtype, "q", args->q.dtype));
    WB_TRY(prepare_launch(dev, op, args->T * args->n_heads, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    if (wb_hopper_attention_takes(dev, args, out)) return wb_hopper_attention_forward(dev, args, out);
    if (wb_cuda_attention_bf16_takes(args, out)) return wb_cuda_attention_bf16_forward(dev, args, out);
    attend<<<blocks, STEP, 0, stream_of(dev)>>>(*args, out);
    return wb_cuda_check(cudaGetLastError(), op);
}

wb_status wb_cuda_attention_backward(wb_device *dev, const wb_attention *args, wb_rows dout, wb_rows dq,
                                     wb_rows dk, wb_rows dv, float *dsinks) {
    const char *op = "attention_backward";
    row_sums *sums = NULL;
    unsigned query_blocks = 0, key_blocks = 0;
    WB_TRY(attention_back_check(args, dout, dq, dk, dv, dsinks));
    WB_TRY(check_widths(op, args));
    WB_TRY(prepare_launch(dev, op, args->T * args->n_heads, BLOCK, &query_blocks));
    WB_TRY(prepare_launch(dev, op, args->T * args->n_kv_heads, BLOCK, &key_blocks));
    if (query_blocks == 0) return WB_OK;
    const wb_rows rows[] = {dout, dq, dk, dv};
    bool takes = true;
    for (const wb_rows &one : rows) takes = takes && wb_cuda_attention_bf16_takes(args, one);
    if (takes) return wb_cuda_attention_bf16_backward(dev, args, dout, dq, dk, dv, dsinks);
    WB_TRY(reserve_scratch(dev, wb_cuda_attention_backward_bytes(args->T, args->n_heads), &sums));
    attend_back_to_queries<<<query_blocks, STEP, 0, stream_of(dev)>>>(*args, dout, dq, sums);
    attend_back_to_keys<<<key_blocks, STEP, 0, stream_of(dev)>>>(*args, dout, sums, dk, dv);
    if (dsinks)
        attend_back_to_sinks<<<static_cast<unsigned>(args->n_heads), SINK_THREADS, 0, stream_of(dev)>>>(
            *args, sums, dsinks);
    return wb_cuda_check(cudaGetLastError(), op);
}
}
