/* cuda_attention_bf16_keys.h - dk and dv of attention of bf16 by tensor cores, a block of threads for each 64
 * keys: the second kernel of cuda_attention_bf16_back.cu, and what the first one leaves for it. For .cu
 * files. */
#ifndef WB_CUDA_ATTENTION_BF16_KEYS_H
#define WB_CUDA_ATTENTION_BF16_KEYS_H

#include "cuda/cuda_attention_keys.h"
#include "cuda/cuda_scratch.h"

namespace {

/* Of a query: the largest score times scale log2(e), 1 / the sum of the weights, and dot. */
struct row_sums {
    float largest, inverse, dot;
};
static_assert(sizeof(row_sums) == WB_ATTENTION_SUMS * sizeof(float), "cuda_scratch.h");

/* A block has 64 keys, 16 a warp, and goes over the queries that see them, 64 rows at a time. */
enum { KEY_WARPS = KEYS / ROWS };

/* Shared memory: K and V of the block's keys; q and dout of the rows, twice in turn. */
template <int D, int V> struct row_tiles {
    uint32_t k;
    static const int K_BYTES = KEYS * D * 2, PAIR = KEYS * (D + V) * 2, BYTES = 3 * PAIR;
    __device__ __forceinline__ uint32_t v() const {
        return k + K_BYTES;
    }
    __device__ __forceinline__ uint32_t q(int step) const {
        return k + (1 + step % 2) * PAIR;
    }
    __device__ __forceinline__ uint32_t dout(int step) const {
        return q(step) + K_BYTES;
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

/* Begins to copy the rows [64 step, 64 step + 64) of the tokens [begin, end), of D elements of `from`. */
template <int D>
__device__ __forceinline__ void begin_row_copies(const wb_attention &args, const wb_rows &from, int64_t kv,
                                                 int64_t begin, int64_t end, int step, uint32_t tile) {
    enum { PARTS = D / 8 };
    const int group = group_size(args);
    for (int i = threadIdx.x; i < KEYS * PARTS; i += KEY_WARPS * 32) {
        const int row = i / PARTS, part = i % PARTS;
        const int64_t number = static_cast<int64_t>(step) * KEYS + row, t = begin + number / group;
        const bool there = t < end;
        const int64_t at = there ? (t * args.n_heads + kv * group + number % group) * D + 8 * part : 0;
        begin_copy(tile_part<D>(tile, row, part), static_cast<const uint16_t *>(from.data) + at, there);
    }
}

/* Of q and of dout. */
template <int D, int V>
__device__ __forceinline__ void begin_rows_of(const wb_attention &args, wb_rows dout, int64_t kv,
                                              int64_t begin, int64_t end, int step,
                                              const row_tiles<D, V> &tiles) {
    begin_row_copies<D>(args, args.q, kv, begin, end, step, tiles.q(step));
    begin_row_copies<V>(args, dout, kv, begin, end, step, tiles.dout(step));
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

/* Heads `at` of D elements of `to` += sum times factor, in f32, rounded once. */
template <int D>
__device__ __forceinline__ void add_to_keys(const wb_rows &to, const int64_t (&at)[2], float factor,
                                            const float (&sum)[D / 8][4]) {
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (at[r] < 0) continue;
            uint32_t *pair = reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(to.data) + at[r] * D +
                                                          8 * j + threadIdx.x % 4 * 2);
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
template <int D, int V>
__device__ __forceinline__ void back_keys(const wb_attention &args, int64_t kv, const block_keys &keys,
                                          int64_t begin, int64_t end, wb_rows dout, const row_sums *sums,
                                          const row_tiles<D, V> &tiles, wb_rows dk, wb_rows dv) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = static_cast<int>(((end - begin) * group_size(args) + KEYS - 1) / KEYS);
    int32_t place[2], position[2];
    int64_t at[2];
    float to_k[D / 8][4] = {}, to_v[V / 8][4] = {};
    for (int i = 0; i < 2; i++) {
        const int key = lane + 32 * i;
        place[i] = key < keys.n ? pool_row(args, keys.seq, keys.position(args, key), INT32_MAX) : -1;
    }
    begin_key_copies<D>(args, args.k, kv, place, warp, KEY_WARPS, tiles.k);
    begin_key_copies<V>(args, args.v, kv, place, warp, KEY_WARPS, tiles.v());
    for (int r = 0; r < 2; r++) {
        const int key = warp * ROWS + lane / 4 + 8 * r;
        const bool there = key < keys.n;
        position[r] = there ? keys.position(args, key) : -1;
        const int64_t row = there ? pool_row(args, keys.seq, position[r], INT32_MAX) : 0;
        at[r] = there ? row * args.n_kv_heads + kv : -1;
    }
    begin_rows_of<D, V>(args, dout, kv, begin, end, 0, tiles);
    for (int step = 0; step < steps; step++) {
        float s[KEYS / 8][4], dp[KEYS / 8][4];
        uint32_t packed[KEYS / 4];
        begin_rows_of<D, V>(args, dout, kv, begin, end, step + 1, tiles);
        wait_for_copies<1>();
        __syncthreads();
        multiply_tiles<D>(tiles.k, warp * ROWS, tiles.q(step), s);
        multiply_tiles<V>(tiles.v(), warp * ROWS, tiles.dout(step), dp);
        find_weights(args, kv, begin, end, step, position, score_factor(args), sums, s, dp);
        pack_rows(s, packed);
        add_values_of<V>(packed, tiles.dout(step), to_v);
        pack_rows(dp, packed);
        add_values_of<D>(packed, tiles.q(step), to_k);
        __syncthreads();
    }
    add_to_keys<D>(dk, at, args.scale, to_k);
    add_to_keys<V>(dv, at, 1.0f, to_v);
    wait_for_copies<0>();
    __syncthreads();
}

/* A block for each 64 tokens and kv head: the keys at their positions. A run's first token has the keys
 * before it too, which earlier calls wrote. */
template <int D, int V>
__global__ void __launch_bounds__(KEY_WARPS * 32)
    attend_back_to_keys(wb_attention args, wb_rows dout, const row_sums *sums, wb_rows dk, wb_rows dv) {
    extern __shared__ __align__(128) uint8_t bytes[];
    const row_tiles<D, V> tiles = {shared_place(bytes)};
    const int64_t kv = blockIdx.x % args.n_kv_heads, number = blockIdx.x / args.n_kv_heads;
    const int64_t last = min((number + 1) * KEYS, args.T);
    for (int64_t begin = number * KEYS; begin < last;) {
        const int64_t end = end_of_run(args, begin, last);
        const int32_t seq = args.seq[begin];
        const bool first = begin == 0 || args.seq[begin - 1] != seq;
        if (seq >= 0) {
            const int64_t run_end = end_of_run(args, begin, args.T);
            const block_keys own = {seq, true, begin, static_cast<int>(end - begin)};
            back_keys<D, V>(args, kv, own, begin, end_of_seeing(args, own, begin, run_end), dout, sums, tiles,
                            dk, dv);
            int64_t j = attention_first_key(&args, args.pos[begin]);
            for (; first && j < args.pos[begin]; j += KEYS) {
                const int n = static_cast<int>(min(args.pos[begin] - j, static_cast<int64_t>(KEYS)));
                const block_keys before = {seq, false, j, n};
                back_keys<D, V>(args, kv, before, begin, end_of_seeing(args, before, begin, run_end), dout,
                                sums, tiles, dk, dv);
            }
        }
        begin = end;
    }
}

} // namespace

#endif
