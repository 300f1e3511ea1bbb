/* cuda_attention_bf16_back.cu - the backward of attention of bf16 by tensor cores: one kernel for dq, which
 * also finds what the gradients of scores need, and one for dk and dv. Nothing is added by two blocks, so
 * that the bits are the same on every run.
 *
 * With p the weights, dp = <dout, v> and dot = sum of p dp over the keys: dv += p dout, ds = p (dp - dot),
 * dq = scale * sum of ds k, dk += scale * sum of ds q. p and ds are rounded to bf16 where they multiply.
 * Scores are computed again where they are needed: nothing is as long as a context. Heads are of D elements
 * in queries and keys, and of V in values.
 *
 * Refuses: a call on sm_90a with what the forward left (hopper/hopper_attention_back.cu). */
#include "cuda/cuda_attention_bf16.h"
#include "cuda/cuda_attention_bf16_keys.h"
#include "cuda/cuda_attention_sinks.h"
#include "cuda/hopper/hopper_attention_back_call.h"

namespace {

/* ---- dq ---------------------------------------------------------------------------------------- */

/* What a warp has of its 16 rows, besides sums: q, dout and dot so far. */
template <int D, int V> struct back_state {
    uint32_t q[D / 4], dout[V / 4];
    row_state row;
    float dot[2];
};

/* First walk: the softmax goes on by a block, and dot with it. */
template <int D, int V>
__device__ __forceinline__ void add_dots(const lane_rows &rows, int32_t j0, float factor, uint32_t k_tile,
                                         uint32_t v_tile, back_state<D, V> *w) {
    float s[KEYS / 8][4], dp[KEYS / 8][4], scale[2];
    multiply_keys<D>(w->q, k_tile, s);
    soften(rows, j0, factor, s, &w->row, scale);
    multiply_keys<V>(w->dout, v_tile, dp);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++)
            sum = wb_fma(s[i / 2][2 * r + i % 2], dp[i / 2][2 * r + i % 2], sum);
        w->dot[r] = wb_fma(w->dot[r], scale[r], sum);
    }
}

/* Second walk: dq goes on by a block. */
template <int D, int V>
__device__ __forceinline__ void add_dq(const lane_rows &rows, int32_t j0, float factor, uint32_t k_tile,
                                       uint32_t v_tile, const back_state<D, V> &w, const row_sums (&sums)[2],
                                       float (&dq)[D / 8][4]) {
    float s[KEYS / 8][4], dp[KEYS / 8][4];
    uint32_t ds[KEYS / 4];
    multiply_keys<D>(w.q, k_tile, s);
    multiply_keys<V>(w.dout, v_tile, dp);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        const int r = i % 4 / 2;
        float &x = s[i / 4][i % 4];
        const bool seen = sees(rows, r, j0, i / 4, i % 2);
        const float p = wb_mul(exp2_of(wb_sub(wb_mul(x, factor), sums[r].largest)), sums[r].inverse);
        x = seen ? wb_mul(p, wb_sub(dp[i / 4][i % 4], sums[r].dot)) : 0.0f;
    }
    pack_rows(s, ds);
    add_values_of<D>(ds, k_tile, dq);
}

/* Both walks of a block's rows over the keys of a run. All its threads. */
template <int D, int V>
__device__ __forceinline__ void back_run(const wb_attention &args, int64_t kv, int64_t begin, int64_t end,
                                         const key_tiles<D, V> &tiles, wb_rows dout, wb_rows dq,
                                         row_sums *to) {
    const int warp = threadIdx.x / 32;
    const int32_t seq = args.seq[begin];
    const run_keys keys = keys_of_run(args, begin, end - 1);
    const float factor = score_factor(args), scale[2] = {args.scale, args.scale};
    const lane_rows rows = find_rows(args, kv, begin, end, warp * ROWS);
    back_state<D, V> w = {};
    float sum[D / 8][4] = {};
    row_sums sums[2] = {};
    load_rows<D>(args.q, rows, w.q);
    load_rows<V>(dout, rows, w.dout);
    w.row.largest[0] = w.row.largest[1] = MINUS_INFINITY;
    for (int walk = 0; walk < 2; walk++) {
        begin_block<D, V>(args, seq, kv, keys.first_block(), keys, tiles, warp, WARPS);
        for (int block = keys.first_block(); block < keys.blocks(); block++) {
            begin_block<D, V>(args, seq, kv, block + 1, keys, tiles, warp, WARPS);
            wait_for_copies<1>();
            __syncthreads();
            if (walk == 0)
                add_dots<D, V>(rows, block * KEYS, factor, tiles.k(block), tiles.v(block), &w);
            else
                add_dq<D, V>(rows, block * KEYS, factor, tiles.k(block), tiles.v(block), w, sums, sum);
            __syncthreads();
        }
        for (int r = 0; r < 2 && walk == 0; r++) {
            /* all lanes take part */
            const float factor_of_values = end_sum(args, head_of_row(args, kv, warp * ROWS, r), r, &w.row);
            const float dot = wb_mul(quad_sum(w.dot[r]), factor_of_values);
            sums[r].largest = w.row.largest[r];
            sums[r].inverse = rows.limit[r] > 0 ? __frcp_rn(w.row.sum[r]) : 0.0f;
            sums[r].dot = rows.limit[r] > 0 ? dot : 0.0f;
            if (rows.at[r] >= 0 && threadIdx.x % 4 == 0) to[rows.at[r]] = sums[r];
        }
    }
    store_rows<D>(dq, rows, scale, sum);
}

template <int D, int V>
__global__ void __launch_bounds__(WARPS * 32, 1)
    attend_back_to_queries(wb_attention args, wb_rows dout, wb_rows dq, row_sums *sums) {
    extern __shared__ __align__(128) uint8_t bytes[];
    const key_tiles<D, V> tiles = {shared_place(bytes)};
    const int64_t tokens = TILE_ROWS / group_size(args), n_tiles = gridDim.x / args.n_kv_heads;
    const int64_t kv = blockIdx.x % args.n_kv_heads, number = n_tiles - 1 - blockIdx.x / args.n_kv_heads;
    const int64_t last = min((number + 1) * tokens, args.T);
    for (int64_t begin = number * tokens; begin < last;) {
        const int64_t end = end_of_run(args, begin, last);
        back_run<D, V>(args, kv, begin, end, tiles, dout, dq, sums);
        begin = end;
        wait_for_copies<0>();
        __syncthreads();
    }
}

__global__ void __launch_bounds__(SINK_THREADS)
    attend_back_to_sinks(wb_attention args, const row_sums *sums, float *dsinks) {
    const int64_t head = blockIdx.x;
    const float sink = wb_mul(args.sinks[head], WB_LOG2_E);
    add_to_sink(args, dsinks, head, [&](int64_t t) {
        const row_sums row = sums[t * args.n_heads + head];
        return wb_mul(wb_mul(exp2_of(wb_sub(sink, row.largest)), row.inverse), row.dot);
    });
}

/* ---- launches ---------------------------------------------------------------------------------- */

template <int D, int V>
wb_status launch(wb_device *dev, const wb_attention &args, wb_rows dout, wb_rows dq, wb_rows dk, wb_rows dv,
                 float *dsinks) {
    const char *op = "attention_backward";
    const int64_t tokens = TILE_ROWS / (args.n_heads / args.n_kv_heads);
    const int query_bytes = key_tiles<D, V>::BYTES, key_bytes = row_tiles<D, V>::BYTES;
    row_sums *sums = NULL;
    unsigned query_blocks = 0, key_blocks = 0;
    WB_TRY(
        count_blocks(op, "tokens", (args.T + tokens - 1) / tokens * args.n_kv_heads, BLOCK, &query_blocks));
    WB_TRY(count_blocks(op, "tokens", (args.T + KEYS - 1) / KEYS * args.n_kv_heads, BLOCK, &key_blocks));
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(reserve_scratch(dev, wb_cuda_attention_backward_bytes(args.T, args.n_heads), &sums));
    WB_TRY(wb_cuda_check(cudaFuncSetAttribute(attend_back_to_queries<D, V>,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize, query_bytes),
                         op));
    WB_TRY(wb_cuda_check(cudaFuncSetAttribute(attend_back_to_keys<D, V>,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize, key_bytes),
                         op));
    attend_back_to_queries<D, V>
        <<<query_blocks, WARPS * 32, static_cast<size_t>(query_bytes), stream_of(dev)>>>(args, dout, dq,
                                                                                         sums);
    attend_back_to_keys<D, V><<<key_blocks, KEY_WARPS * 32, static_cast<size_t>(key_bytes), stream_of(dev)>>>(
        args, dout, sums, dk, dv);
    if (dsinks)
        attend_back_to_sinks<<<static_cast<unsigned>(args.n_heads), SINK_THREADS, 0, stream_of(dev)>>>(
            args, sums, dsinks);
    return wb_cuda_check(cudaGetLastError(), op);
}

} // namespace

extern "C" {

wb_status wb_cuda_attention_bf16_backward(wb_device *dev, const wb_attention *args, wb_rows dout, wb_rows dq,
                                          wb_rows dk, wb_rows dv, float *dsinks) {
    if (wb_hopper_attention_back_takes(dev, args))
        return wb_hopper_attention_back(dev, "attention_backward", *args, dout, dq, dk, dv, dsinks);
    if (args->head_dim == 64) return launch<64, 64>(dev, *args, dout, dq, dk, dv, dsinks);
    return args->head_dim == 128 ? launch<128, 128>(dev, *args, dout, dq, dk, dv, dsinks)
                                 : launch<192, 128>(dev, *args, dout, dq, dk, dv, dsinks);
}
}
