/* cuda_attention.h - causal grouped-query attention for operands and heads of any kind: what the kernels of
 * the forward and of the backward share.
 *
 * A block has one query and head, or in the backward of the keys one key and kv head. A score is one chain
 * over the head's dimensions of q * scale and k, in one thread; exponentials are summed in lane order of the
 * key; an element of the output, and of dk and dv, is one chain, in one thread, over ascending keys or rows.
 * So the bits are the CPU's, and a query's do not depend on the queries beside it. Scores are computed again
 * where they are needed: nothing is as long as a context. For .cu files. */
#ifndef WB_CUDA_ATTENTION_H
#define WB_CUDA_ATTENTION_H

#include "attention_check.h"
#include "cuda/cuda_attention_sinks.h"

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

/* Heads that a thread's share of MAX_DIM / STEP elements suffices for. */
inline wb_status check_widths(const char *op, const wb_attention *args) {
    if (args->head_dim <= MAX_DIM && args->value_dim <= MAX_DIM) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: head_dim and value_dim: expected at most %d, found %d and %d",
                   op, MAX_DIM, args->head_dim, args->value_dim);
}

} // namespace

#endif
