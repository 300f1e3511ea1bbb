/* cuda_attention_back.cu - the backward of attention: which kernels a call has, and those of f32 and of heads
 * for which there are no tensor cores (cuda_attention.h). */
#include "cuda/cuda_attention.h"
#include "cuda/cuda_attention_bf16.h"
#include "cuda/cuda_attention_sinks.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

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

} // namespace

extern "C" {

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
