/* cuda_attention.cu - causal grouped-query attention over a paged pool, forward and backward.
 *
 * A block has one query and head, or in the backward of the keys one key and kv head. A score is one chain
 * over the head's dimensions of q * scale and k, in one thread; exponentials are summed in lane order of the
 * key; an element of the output, and of dk and dv, is one chain, in one thread, over ascending keys or rows.
 * So the bits are the CPU's, and a query's do not depend on the queries beside it. Scores are computed again
 * where they are needed: nothing is as long as a context. Refuses: writing the cache (kv_write). */
#include "attention_check.h"
#include "cuda/cuda_attention_bf16.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/hopper/hopper_attention.h"

namespace {

/* Threads of a block, and keys or rows of a step. */
enum { STEP = 128, MAX_HEAD_DIM = 512 };

/* The place of key j of the sequence of token t in k, v and their gradients. */
__device__ __forceinline__ int64_t key_at(const wb_attention &args, int64_t t, int64_t j, int64_t kv) {
    const int32_t *blocks = args.blocks + static_cast<int64_t>(args.seq[t]) * args.max_blocks;
    const int64_t row =
        static_cast<int64_t>(blocks[j / args.block_size]) * args.block_size + j % args.block_size;
    return (row * args.n_kv_heads + kv) * args.head_dim;
}

__device__ __forceinline__ int64_t query_at(const wb_attention &args, int64_t t, int64_t head) {
    return (t * args.n_heads + head) * args.head_dim;
}

/* to[head_dim] (shared) = elements of `from`, times factor, by the block. */
__device__ __forceinline__ void load_head(const wb_attention &args, const wb_rows &from, int64_t at,
                                          float factor, float *to) {
    for (int d = threadIdx.x; d < args.head_dim; d += STEP)
        to[d] = wb_mul(load_element(from, at + d), factor);
}

/* <x, elements of `pool` from `at` on> */
__device__ __forceinline__ float dot_head(const wb_attention &args, const float *x, const wb_rows &pool,
                                          int64_t at) {
    float sum = 0.0f;
    for (int d = 0; d < args.head_dim; d++) sum = wb_fma(x[d], load_element(pool, at + d), sum);
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

/* One query and head. */
struct query {
    int64_t t, head, kv, keys; /* keys: those that it sees */
};

__device__ __forceinline__ query find_query(const wb_attention &args) {
    const int64_t t = blockIdx.x / args.n_heads, head = blockIdx.x % args.n_heads;
    const bool padding = args.seq[t] < 0;
    return {t, head, head / (args.n_heads / args.n_kv_heads),
            padding ? 0 : static_cast<int64_t>(args.pos[t]) + 1};
}

/* A NaN among the scores is one in the first of them, or in the sum that follows. */
__device__ __forceinline__ float largest_score(const wb_attention &args, const query &a, const float *q) {
    float max = dot_head(args, q, args.k, key_at(args, a.t, 0, a.kv));
    for (int64_t j = threadIdx.x; j < a.keys; j += STEP) {
        const float score = dot_head(args, q, args.k, key_at(args, a.t, j, a.kv));
        max = score > max ? score : max;
    }
    return block_max(max);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* sum[lane] += the exponentials of a step, in lane order of their keys: j0 is a multiple of 16. */
__device__ __forceinline__ void add_lanes(const float *p, int count, float &sum) {
    if (threadIdx.x < WB_LANES)
        for (int j = threadIdx.x; j < count; j += WB_LANES) sum = wb_add(sum, p[j]);
}

/* out[d] += p[j] * pool[j][d] over the keys of a step, ascending: thread d, d + STEP, ... */
__device__ __forceinline__ void add_values(const wb_attention &args, const query &a, const wb_rows &pool,
                                           const float *p, const int64_t *at, int count,
                                           float (&out)[MAX_HEAD_DIM / STEP]) {
#pragma unroll
    for (int i = 0; i < MAX_HEAD_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d >= args.head_dim) break;
#pragma unroll 4
        for (int j = 0; j < count; j++) out[i] = wb_fma(p[j], load_element(pool, at[j] + d), out[i]);
    }
}

__global__ void __launch_bounds__(STEP) attend(wb_attention args, wb_rows out) {
    __shared__ float q[MAX_HEAD_DIM], p[STEP], inverse;
    __shared__ int64_t at[STEP];
    const query a = find_query(args);
    const int64_t to = query_at(args, a.t, a.head);
    float sum = 0.0f, value[MAX_HEAD_DIM / STEP] = {};
    if (a.keys == 0) {
        for (int d = threadIdx.x; d < args.head_dim; d += STEP) store_element(out, to + d, 0.0f);
        return;
    }
    load_head(args, args.q, to, args.scale, q);
    __syncthreads();
    const float max = largest_score(args, a, q);
    for (int64_t j0 = 0; j0 < a.keys; j0 += STEP) {
        const int count = static_cast<int>(min(a.keys - j0, static_cast<int64_t>(STEP)));
        if (static_cast<int>(threadIdx.x) < count) {
            at[threadIdx.x] = key_at(args, a.t, j0 + threadIdx.x, a.kv);
            p[threadIdx.x] = wb_expf(wb_sub(dot_head(args, q, args.k, at[threadIdx.x]), max));
        }
        __syncthreads();
        add_lanes(p, count, sum);
        add_values(args, a, args.v, p, at, count, value);
        __syncthreads();
    }
    if (threadIdx.x < WARP) sum = fold_lanes(sum);
    if (threadIdx.x == 0) inverse = wb_div(1.0f, sum);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MAX_HEAD_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.head_dim) store_element(out, to + d, wb_mul(value[i], inverse));
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
__device__ __forceinline__ void add_products(const float *p, const float *dp, int count, float &sum) {
    if (threadIdx.x < WB_LANES)
        for (int j = threadIdx.x; j < count; j += WB_LANES) sum = wb_fma(p[j], dp[j], sum);
}

/* dq of one query and head, and its sums. Three walks over the keys: the sum of the exponentials, <p, dp>,
 * and the chain of dq. */
__global__ void __launch_bounds__(STEP)
    attend_back_to_queries(wb_attention args, wb_rows dout, wb_rows dq, row_sums *sums) {
    __shared__ float q[MAX_HEAD_DIM], d_out[MAX_HEAD_DIM], p[STEP], dp[STEP], shared[2];
    __shared__ int64_t at[STEP];
    const query a = find_query(args);
    const int64_t to = query_at(args, a.t, a.head);
    float value[MAX_HEAD_DIM / STEP] = {};
    load_head(args, args.q, to, args.scale, q);
    load_head(args, dout, to, 1.0f, d_out);
    __syncthreads();
    row_sums row = {0.0f, 0.0f, 0.0f};
    if (a.keys > 0) row.max = largest_score(args, a, q);
    for (int walk = 0; walk < 3 && a.keys > 0; walk++) {
        float sum = 0.0f;
        for (int64_t j0 = 0; j0 < a.keys; j0 += STEP) {
            const int count = static_cast<int>(min(a.keys - j0, static_cast<int64_t>(STEP))), j = threadIdx.x;
            if (j < count) {
                at[j] = key_at(args, a.t, j0 + j, a.kv);
                p[j] = wb_expf(wb_sub(dot_head(args, q, args.k, at[j]), row.max));
                if (walk > 0) p[j] = wb_mul(p[j], row.inverse);
                if (walk > 0) dp[j] = dot_head(args, d_out, args.v, at[j]);
                if (walk > 1) p[j] = wb_mul(p[j], wb_sub(dp[j], row.dot)); /* ds */
            }
            __syncthreads();
            if (walk == 0) add_lanes(p, count, sum);
            if (walk == 1) add_products(p, dp, count, sum);
            if (walk == 2) add_values(args, a, args.k, p, at, count, value);
            __syncthreads();
        }
        if (threadIdx.x < WARP) sum = fold_lanes(sum);
        if (threadIdx.x == 0) shared[0] = sum;
        __syncthreads();
        if (walk == 0) row.inverse = wb_div(1.0f, shared[0]);
        if (walk == 1) row.dot = shared[0];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = row;
#pragma unroll
    for (int i = 0; i < MAX_HEAD_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.head_dim) store_element(dq, to + d, wb_mul(value[i], args.scale));
    }
}

/* A chain over rows, (query, head of the group) ascending, into dk and dv of one key: of the queries from
 * token t on that are in its sequence. STEP rows a step, a thread each; then a thread a dimension. */
__device__ __forceinline__ void add_rows(const wb_attention &args, int64_t t, int64_t j, int64_t kv,
                                         const wb_rows &dout, const row_sums *sums, const float *k,
                                         const float *v, wb_rows dk, wb_rows dv) {
    __shared__ float p[STEP], ds[STEP];
    const int64_t group = args.n_heads / args.n_kv_heads, key = key_at(args, t, j, kv);
    const int32_t seq = args.seq[t];
    float to_k[MAX_HEAD_DIM / STEP], to_v[MAX_HEAD_DIM / STEP];
#pragma unroll
    for (int i = 0; i < MAX_HEAD_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.head_dim) to_k[i] = load_element(dk, key + d), to_v[i] = load_element(dv, key + d);
    }
    for (int64_t row0 = 0;; row0 += STEP) {
        const int64_t row = row0 + threadIdx.x, u = t + row / group, head = kv * group + row % group;
        const bool there = u < args.T && args.seq[u] == seq;
        p[threadIdx.x] = ds[threadIdx.x] = 0.0f;
        if (there && args.pos[u] >= j) {
            const row_sums s = sums[u * args.n_heads + head];
            const int64_t at = query_at(args, u, head);
            float score = 0.0f, dp = 0.0f;
            for (int d = 0; d < args.head_dim; d++) {
                score = wb_fma(wb_mul(load_element(args.q, at + d), args.scale), k[d], score);
                dp = wb_fma(load_element(dout, at + d), v[d], dp);
            }
            p[threadIdx.x] = wb_mul(wb_expf(wb_sub(score, s.max)), s.inverse);
            ds[threadIdx.x] = wb_mul(p[threadIdx.x], wb_sub(dp, s.dot));
        }
        const int count = __syncthreads_count(there);
#pragma unroll
        for (int i = 0; i < MAX_HEAD_DIM / STEP; i++) {
            const int d = threadIdx.x + i * STEP;
            if (d >= args.head_dim) break;
            for (int r = 0; r < count; r++) {
                const int64_t at =
                    query_at(args, t + (row0 + r) / group, kv * group + (row0 + r) % group) + d;
                to_k[i] = wb_fma(ds[r], wb_mul(load_element(args.q, at), args.scale), to_k[i]);
                to_v[i] = wb_fma(p[r], load_element(dout, at), to_v[i]);
            }
        }
        __syncthreads();
        if (count < STEP) break;
    }
#pragma unroll
    for (int i = 0; i < MAX_HEAD_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.head_dim) store_element(dk, key + d, to_k[i]), store_element(dv, key + d, to_v[i]);
    }
}

/* A block for each token and kv head: the key at the token's position. The first token of a run has the keys
 * before it too, which earlier calls wrote. */
__global__ void __launch_bounds__(STEP)
    attend_back_to_keys(wb_attention args, wb_rows dout, const row_sums *sums, wb_rows dk, wb_rows dv) {
    __shared__ float k[MAX_HEAD_DIM], v[MAX_HEAD_DIM];
    const int64_t t = blockIdx.x / args.n_kv_heads, kv = blockIdx.x % args.n_kv_heads;
    if (args.seq[t] < 0) return;
    const bool first = t == 0 || args.seq[t - 1] != args.seq[t];
    for (int64_t j = first ? 0 : args.pos[t]; j <= args.pos[t]; j++) {
        load_head(args, args.k, key_at(args, t, j, kv), 1.0f, k);
        load_head(args, args.v, key_at(args, t, j, kv), 1.0f, v);
        __syncthreads();
        add_rows(args, t, j, kv, dout, sums, k, v, dk, dv);
        __syncthreads();
    }
}

wb_status check(const char *op, const wb_attention *args) {
    WB_TRY(attention_check(op, args));
    if (args->head_dim <= MAX_HEAD_DIM) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: head_dim: expected at most %d, found %d", op, MAX_HEAD_DIM,
                   args->head_dim);
}

} // namespace

extern "C" {

wb_status wb_cuda_attention_forward(wb_device *dev, const wb_attention *args, wb_rows out) {
    unsigned blocks = 0;
    WB_TRY(check("attention_forward", args));
    WB_TRY(operand_check_like("attention_forward", "out", out.dtype, "q", args->q.dtype));
    WB_TRY(prepare_launch(dev, "attention_forward", args->T * args->n_heads, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    if (wb_hopper_attention_takes(dev, args, out)) return wb_hopper_attention_forward(dev, args, out);
    if (wb_cuda_attention_bf16_takes(args, out)) return wb_cuda_attention_bf16_forward(dev, args, out);
    attend<<<blocks, STEP, 0, stream_of(dev)>>>(*args, out);
    return wb_cuda_check(cudaGetLastError(), "attention_forward");
}

wb_status wb_cuda_attention_backward(wb_device *dev, const wb_attention *args, wb_rows dout, wb_rows dq,
                                     wb_rows dk, wb_rows dv) {
    const char *op = "attention_backward";
    const wb_dtype dtype = args->q.dtype;
    row_sums *sums = NULL;
    unsigned query_blocks = 0, key_blocks = 0;
    WB_TRY(check(op, args));
    WB_TRY(operand_check_like(op, "k", args->k.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dout", dout.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dq", dq.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dk", dk.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dv", dv.dtype, "q", dtype));
    WB_TRY(prepare_launch(dev, op, args->T * args->n_heads, BLOCK, &query_blocks));
    WB_TRY(prepare_launch(dev, op, args->T * args->n_kv_heads, BLOCK, &key_blocks));
    if (query_blocks == 0) return WB_OK;
    const wb_rows rows[] = {dout, dq, dk, dv};
    bool takes = true;
    for (const wb_rows &one : rows) takes = takes && wb_cuda_attention_bf16_takes(args, one);
    if (takes) return wb_cuda_attention_bf16_backward(dev, args, dout, dq, dk, dv);
    WB_TRY(reserve_scratch(dev, wb_cuda_attention_backward_bytes(args->T, args->n_heads), &sums));
    attend_back_to_queries<<<query_blocks, STEP, 0, stream_of(dev)>>>(*args, dout, dq, sums);
    attend_back_to_keys<<<key_blocks, STEP, 0, stream_of(dev)>>>(*args, dout, sums, dk, dv);
    return wb_cuda_check(cudaGetLastError(), op);
}
}
