/* cuda_attention_bf16_back.cu - the backward of attention of bf16 by tensor cores: one kernel for dq, which
 * also finds what the gradients of scores need, and one for dk and dv. Nothing is added by two blocks, so
 * that the bits are the same on every run.
 *
 * With p the weights, dp = <dout, v> and dot = sum of p dp over the keys: dv += p dout, ds = p (dp - dot),
 * dq = scale * sum of ds k, dk += scale * sum of ds q. p and ds are rounded to bf16 where they multiply.
 * Scores are computed again where they are needed: nothing is as long as a context.
 *
 * Refuses: a call on sm_90a with what the forward left (hopper/hopper_attention_back.cu). */
#include "cuda/cuda_attention_bf16.h"
#include "cuda/cuda_attention_keys.h"
#include "cuda/cuda_attention_sinks.h"
#include "cuda/cuda_scratch.h"
#include "cuda/hopper/hopper_attention_back_call.h"

namespace {

/* Of a query: the largest score times scale log2(e), 1 / the sum of the weights, and dot. */
struct row_sums {
    float largest, inverse, dot;
};
static_assert(sizeof(row_sums) == WB_ATTENTION_SUMS * sizeof(float), "cuda_scratch.h");

/* ---- dq ---------------------------------------------------------------------------------------- */

/* What a warp has of its 16 rows, besides sums: q, dout and dot so far. */
template <int D> struct back_state {
    uint32_t q[D / 4], dout[D / 4];
    row_state row;
    float dot[2];
};

/* First walk: the softmax goes on by a block, and dot with it. */
template <int D>
__device__ __forceinline__ void add_dots(const lane_rows &rows, int32_t j0, float factor, uint32_t k_tile,
                                         uint32_t v_tile, back_state<D> *w) {
    float s[KEYS / 8][4], dp[KEYS / 8][4], scale[2];
    multiply_keys<D>(w->q, k_tile, s);
    soften(rows, j0, factor, s, &w->row, scale);
    multiply_keys<D>(w->dout, v_tile, dp);
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
template <int D>
__device__ __forceinline__ void add_dq(const lane_rows &rows, int32_t j0, float factor, uint32_t k_tile,
                                       uint32_t v_tile, const back_state<D> &w, const row_sums (&sums)[2],
                                       float (&dq)[D / 8][4]) {
    float s[KEYS / 8][4], dp[KEYS / 8][4];
    uint32_t ds[KEYS / 4];
    multiply_keys<D>(w.q, k_tile, s);
    multiply_keys<D>(w.dout, v_tile, dp);
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
template <int D>
__device__ __forceinline__ void back_run(const wb_attention &args, int64_t kv, int64_t begin, int64_t end,
                                         const key_tiles<D> &tiles, wb_rows dout, wb_rows dq, row_sums *to) {
    const int warp = threadIdx.x / 32;
    const int32_t seq = args.seq[begin];
    const run_keys keys = keys_of_run(args, begin, end - 1);
    const float factor = score_factor(args), scale[2] = {args.scale, args.scale};
    const lane_rows rows = find_rows<D>(args, kv, begin, end, warp * ROWS);
    back_state<D> w = {};
    float sum[D / 8][4] = {};
    row_sums sums[2] = {};
    load_rows<D>(args.q, rows, w.q);
    load_rows<D>(dout, rows, w.dout);
    w.row.largest[0] = w.row.largest[1] = MINUS_INFINITY;
    for (int walk = 0; walk < 2; walk++) {
        begin_block<D>(args, seq, kv, keys.first_block(), keys, tiles, warp, WARPS);
        for (int block = keys.first_block(); block < keys.blocks(); block++) {
            begin_block<D>(args, seq, kv, block + 1, keys, tiles, warp, WARPS);
            wait_for_copies<1>();
            __syncthreads();
            if (walk == 0)
                add_dots<D>(rows, block * KEYS, factor, tiles.k(block), tiles.v(block), &w);
            else
                add_dq<D>(rows, block * KEYS, factor, tiles.k(block), tiles.v(block), w, sums, sum);
            __syncthreads();
        }
        for (int r = 0; r < 2 && walk == 0; r++) {
            /* all lanes take part */
            const float factor_of_values = end_sum(args, head_of_row(args, kv, warp * ROWS, r), r, &w.row);
            const float dot = wb_mul(quad_sum(w.dot[r]), factor_of_values);
            sums[r].largest = w.row.largest[r];
            sums[r].inverse = rows.limit[r] > 0 ? __frcp_rn(w.row.sum[r]) : 0.0f;
            sums[r].dot = rows.limit[r] > 0 ? dot : 0.0f;
            if (rows.at[r] >= 0 && threadIdx.x % 4 == 0) to[rows.at[r] / D] = sums[r];
        }
    }
    store_rows<D>(dq, rows, scale, sum);
}

template <int D>
__global__ void __launch_bounds__(WARPS * 32, 1)
    attend_back_to_queries(wb_attention args, wb_rows dout, wb_rows dq, row_sums *sums) {
    extern __shared__ __align__(128) uint8_t bytes[];
    const key_tiles<D> tiles = {shared_place(bytes)};
    const int64_t tokens = TILE_ROWS / group_size(args), n_tiles = gridDim.x / args.n_kv_heads;
    const int64_t kv = blockIdx.x % args.n_kv_heads, number = n_tiles - 1 - blockIdx.x / args.n_kv_heads;
    const int64_t last = min((number + 1) * tokens, args.T);
    for (int64_t begin = number * tokens; begin < last;) {
        const int64_t end = end_of_run(args, begin, last);
        back_run<D>(args, kv, begin, end, tiles, dout, dq, sums);
        begin = end;
        wait_for_copies<0>();
        __syncthreads();
    }
}

/* ---- dk and dv --------------------------------------------------------------------------------- */

/* A block has 64 keys, 16 a warp, and goes over the queries that see them, 64 rows at a time. */
enum { KEY_WARPS = KEYS / ROWS };

/* Shared memory: K and V of the block's keys; q and dout of the rows, twice in turn. */
template <int D> struct row_tiles {
    uint32_t k;
    static const int TILE = KEYS * D * 2, BYTES = 6 * TILE;
    __device__ __forceinline__ uint32_t v() const {
        return k + TILE;
    }
    __device__ __forceinline__ uint32_t q(int step) const {
        return k + (2 + step % 2 * 2) * TILE;
    }
    __device__ __forceinline__ uint32_t dout(int step) const {
        return q(step) + TILE;
    }
};

/* The keys of a block, in the pool and by position: those of tokens [first, first + n), each at its own
 * position, or, before a run's first token, of positions [first, first + n). */
struct block_keys {
    int32_t seq;
    bool of_tokens;
    int64_t first;
    int n;

    __device__ __forceinline__ int32_t position(const wb_attention &args, int i) const {
        return of_tokens ? args.pos[first + i] : static_cast<int32_t>(first) + i;
    }
};

/* s[16][KEYS] (=) rows `first` .. first + 15 of tile `a` times the rows of tile `b`. */
template <int D>
__device__ __forceinline__ void multiply_tiles(uint32_t a, int first, uint32_t b, float (&s)[KEYS / 8][4]) {
    const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, part = lane / 8 % 2;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t of_a[4];
        load_four(tile_part<D>(a, first + lane % 16, 2 * k + lane / 16), of_a);
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t of_b[4];
            load_four(tile_part<D>(b, 16 * j + row, 2 * k + part), of_b);
            add_products_16(s[2 * j], of_a, of_b[0], of_b[1]);
            add_products_16(s[2 * j + 1], of_a, of_b[2], of_b[3]);
        }
    }
}

/* Begins to copy q and dout of the rows [64 step, 64 step + 64) of the tokens [begin, end). */
template <int D>
__device__ __forceinline__ void begin_rows_of(const wb_attention &args, wb_rows dout, int64_t kv,
                                              int64_t begin, int64_t end, int step,
                                              const row_tiles<D> &tiles) {
    const int group = group_size(args), part = threadIdx.x % (D / 8);
    for (int row = threadIdx.x / (D / 8); row < KEYS; row += KEY_WARPS * 32 / (D / 8)) {
        const int64_t number = static_cast<int64_t>(step) * KEYS + row, t = begin + number / group;
        const bool there = t < end;
        const int64_t at = there ? (t * args.n_heads + kv * group + number % group) * D + 8 * part : 0;
        begin_copy(tile_part<D>(tiles.q(step), row, part), static_cast<const uint16_t *>(args.q.data) + at,
                   there);
        begin_copy(tile_part<D>(tiles.dout(step), row, part), static_cast<const uint16_t *>(dout.data) + at,
                   there);
    }
    end_group_of_copies();
}

/* p and ds of the warp's keys and 64 rows, from scores and dp; zeros where a row does not see a key. */
__device__ __forceinline__ void find_weights(const wb_attention &args, int64_t kv, int64_t begin, int64_t end,
                                             int step, const int32_t (&position)[2], float factor,
                                             const row_sums *sums, float (&s)[KEYS / 8][4],
                                             float (&dp)[KEYS / 8][4]) {
    const int group = group_size(args);
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        const int64_t number = static_cast<int64_t>(step) * KEYS + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
        const int64_t t = begin + number / group;
        const bool there = t < end;
        const row_sums of = there ? sums[t * args.n_heads + kv * group + number % group] : row_sums();
        const int32_t pos = there ? args.pos[t] : -1;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float &x = s[i / 2][2 * r + i % 2], &y = dp[i / 2][2 * r + i % 2];
            const bool seen =
                position[r] >= 0 && position[r] <= pos && position[r] >= attention_first_key(&args, pos);
            const float p = wb_mul(exp2_of(wb_sub(wb_mul(x, factor), of.largest)), of.inverse);
            x = seen ? p : 0.0f;
            y = seen ? wb_mul(p, wb_sub(y, of.dot)) : 0.0f;
        }
    }
}

/* Rows of `to` += sum times factor, in f32, rounded once. */
template <int D>
__device__ __forceinline__ void add_to_keys(const wb_rows &to, const int64_t (&at)[2], float factor,
                                            const float (&sum)[D / 8][4]) {
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (at[r] < 0) continue;
            uint32_t *pair = reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(to.data) + at[r] + 8 * j +
                                                          threadIdx.x % 4 * 2);
            const float low = __uint_as_float(*pair << 16), high = __uint_as_float(*pair & 0xffff0000u);
            *pair = pack_pair(wb_fma(sum[j][2 * r], factor, low), wb_fma(sum[j][2 * r + 1], factor, high));
        }
}

/* Where the tokens [begin, end) of a run end that see a key of the block. */
__device__ __forceinline__ int64_t end_of_seeing(const wb_attention &args, const block_keys &keys,
                                                 int64_t begin, int64_t end) {
    if (args.window == 0) return end;
    const int32_t last = keys.position(args, keys.n - 1);
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (attention_first_key(&args, args.pos[middle]) <= last)
            begin = middle + 1;
        else
            end = middle;
    }
    return end;
}

/* dk and dv of a block's keys from the tokens [begin, end). All threads of the block. */
template <int D>
__device__ __forceinline__ void back_keys(const wb_attention &args, int64_t kv, const block_keys &keys,
                                          int64_t begin, int64_t end, wb_rows dout, const row_sums *sums,
                                          const row_tiles<D> &tiles, wb_rows dk, wb_rows dv) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = static_cast<int>(((end - begin) * group_size(args) + KEYS - 1) / KEYS);
    int32_t place[2], position[2];
    int64_t at[2];
    float to_k[D / 8][4] = {}, to_v[D / 8][4] = {};
    for (int i = 0; i < 2; i++) {
        const int key = lane + 32 * i;
        place[i] = key < keys.n ? pool_row(args, keys.seq, keys.position(args, key), INT32_MAX) : -1;
    }
    begin_key_copies<D>(args, args.k, kv, place, warp, KEY_WARPS, tiles.k);
    begin_key_copies<D>(args, args.v, kv, place, warp, KEY_WARPS, tiles.v());
    for (int r = 0; r < 2; r++) {
        const int key = warp * ROWS + lane / 4 + 8 * r;
        const bool there = key < keys.n;
        position[r] = there ? keys.position(args, key) : -1;
        at[r] =
            there
                ? (static_cast<int64_t>(pool_row(args, keys.seq, position[r], INT32_MAX)) * args.n_kv_heads +
                   kv) *
                      D
                : -1;
    }
    begin_rows_of<D>(args, dout, kv, begin, end, 0, tiles);
    for (int step = 0; step < steps; step++) {
        float s[KEYS / 8][4], dp[KEYS / 8][4];
        uint32_t packed[KEYS / 4];
        begin_rows_of<D>(args, dout, kv, begin, end, step + 1, tiles);
        wait_for_copies<1>();
        __syncthreads();
        multiply_tiles<D>(tiles.k, warp * ROWS, tiles.q(step), s);
        multiply_tiles<D>(tiles.v(), warp * ROWS, tiles.dout(step), dp);
        find_weights(args, kv, begin, end, step, position, score_factor(args), sums, s, dp);
        pack_rows(s, packed);
        add_values_of<D>(packed, tiles.dout(step), to_v);
        pack_rows(dp, packed);
        add_values_of<D>(packed, tiles.q(step), to_k);
        __syncthreads();
    }
    add_to_keys<D>(dk, at, args.scale, to_k);
    add_to_keys<D>(dv, at, 1.0f, to_v);
    wait_for_copies<0>();
    __syncthreads();
}

/* A block for each 64 tokens and kv head: the keys at their positions. A run's first token has the keys
 * before it too, which earlier calls wrote. */
template <int D>
__global__ void __launch_bounds__(KEY_WARPS * 32)
    attend_back_to_keys(wb_attention args, wb_rows dout, const row_sums *sums, wb_rows dk, wb_rows dv) {
    extern __shared__ __align__(128) uint8_t bytes[];
    const row_tiles<D> tiles = {shared_place(bytes)};
    const int64_t kv = blockIdx.x % args.n_kv_heads, number = blockIdx.x / args.n_kv_heads;
    const int64_t last = min((number + 1) * KEYS, args.T);
    for (int64_t begin = number * KEYS; begin < last;) {
        const int64_t end = end_of_run(args, begin, last);
        const int32_t seq = args.seq[begin];
        const bool first = begin == 0 || args.seq[begin - 1] != seq;
        if (seq >= 0) {
            const int64_t run_end = end_of_run(args, begin, args.T);
            const block_keys own = {seq, true, begin, static_cast<int>(end - begin)};
            back_keys<D>(args, kv, own, begin, end_of_seeing(args, own, begin, run_end), dout, sums, tiles,
                         dk, dv);
            int64_t j = attention_first_key(&args, args.pos[begin]);
            for (; first && j < args.pos[begin]; j += KEYS) {
                const int n = static_cast<int>(min(args.pos[begin] - j, static_cast<int64_t>(KEYS)));
                const block_keys before = {seq, false, j, n};
                back_keys<D>(args, kv, before, begin, end_of_seeing(args, before, begin, run_end), dout, sums,
                             tiles, dk, dv);
            }
        }
        begin = end;
    }
}

__global__ void __launch_bounds__(SINK_THREADS)
    attend_back_to_sinks(wb_attention args, const row_sums *sums, float *dsinks) {
    const int64_t head = blockIdx.x;
    const float sink = wb_mul(args.sinks[head], 1.44269504f);
    add_to_sink(args, dsinks, head, [&](int64_t t) {
        const row_sums row = sums[t * args.n_heads + head];
        return wb_mul(wb_mul(exp2_of(wb_sub(sink, row.largest)), row.inverse), row.dot);
    });
}

/* ---- launches ---------------------------------------------------------------------------------- */

template <int D>
wb_status launch(wb_device *dev, const wb_attention &args, wb_rows dout, wb_rows dq, wb_rows dk, wb_rows dv,
                 float *dsinks) {
    const char *op = "attention_backward";
    const int64_t tokens = TILE_ROWS / (args.n_heads / args.n_kv_heads);
    const int query_bytes = key_tiles<D>::BYTES, key_bytes = row_tiles<D>::BYTES;
    row_sums *sums = NULL;
    unsigned query_blocks = 0, key_blocks = 0;
    WB_TRY(
        count_blocks(op, "tokens", (args.T + tokens - 1) / tokens * args.n_kv_heads, BLOCK, &query_blocks));
    WB_TRY(count_blocks(op, "tokens", (args.T + KEYS - 1) / KEYS * args.n_kv_heads, BLOCK, &key_blocks));
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(reserve_scratch(dev, wb_cuda_attention_backward_bytes(args.T, args.n_heads), &sums));
    WB_TRY(wb_cuda_check(cudaFuncSetAttribute(attend_back_to_queries<D>,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize, query_bytes),
                         op));
    WB_TRY(wb_cuda_check(
        cudaFuncSetAttribute(attend_back_to_keys<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, key_bytes),
        op));
    attend_back_to_queries<D><<<query_blocks, WARPS * 32, static_cast<size_t>(query_bytes), stream_of(dev)>>>(
        args, dout, dq, sums);
    attend_back_to_keys<D><<<key_blocks, KEY_WARPS * 32, static_cast<size_t>(key_bytes), stream_of(dev)>>>(
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
    return args->head_dim == 64 ? launch<64>(dev, *args, dout, dq, dk, dv, dsinks)
                                : launch<128>(dev, *args, dout, dq, dk, dv, dsinks);
}
}
