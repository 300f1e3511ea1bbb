/* cuda_attention_warp.h - attention of bf16 by tensor cores: what one warp does with 16 queries and a block
 * of keys. All kernels of attention are made of these functions, so that a query's bits are the same in a
 * long prefill, in any chunk of it and when it is decoded alone.
 *
 * The contract of a query: keys in blocks of KEYS from position 0 on. Scores are chains of steps of 16
 * dimensions. A block's largest score renews the largest so far, and what was summed is scaled by
 * 2^(old - new); weights are 2^(score - largest), rounded to bf16 where they multiply values; values are
 * chains of steps of 16 keys. A key that the query does not see has the weight 0, which changes nothing, so
 * that it does not matter how far before its first key and beyond its last a kernel goes. A sink joins after
 * the last block, as a block of one key whose value is 0.
 *
 * Queries are rows: (token, head of the group that shares a kv head), 16 of them. Lane l has the rows l / 4
 * and 8 more, and of 8 columns 2 (l % 4) and 1 more. For .cu files. */
#ifndef WB_CUDA_ATTENTION_WARP_H
#define WB_CUDA_ATTENTION_WARP_H

#include "attention_keys.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_tensor.h"

namespace {

/* Keys of a block, rows of a warp. */
enum { KEYS = 64, ROWS = 16 };

/* The largest so far of nothing. */
#define MINUS_INFINITY __int_as_float(static_cast<int>(0xff800000u))

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- tiles in shared memory -------------------------------------------------------------------- */

/* A tile is rows of D elements of bf16, their 16-byte parts swizzled: eight rows of one part lie in different
 * banks. */
template <int D> __device__ __forceinline__ uint32_t tile_part(uint32_t tile, int row, int part) {
    return tile + static_cast<uint32_t>(row * D * 2 + ((part ^ row % 8) * 16));
}

__device__ __forceinline__ uint32_t shared_place(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/* Four 8 x 8 matrices, lane l giving row l % 8 of matrix l / 8; `turned`: transposed. */
__device__ __forceinline__ void load_four(uint32_t address, uint32_t (&v)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_four_turned(uint32_t address, uint32_t (&v)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes from global memory, on their way until wait_for_copies; not `there`: zeros. */
__device__ __forceinline__ void begin_copy(uint32_t to, const uint16_t *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void end_group_of_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* All groups but the last LEFT have come. */
template <int LEFT> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* The pool's row of key j of a sequence, or -1 from `end` on. */
__device__ __forceinline__ int32_t pool_row(const wb_attention &args, int32_t seq, int32_t j, int32_t end) {
    const int32_t *blocks = args.blocks + static_cast<int64_t>(seq) * args.max_blocks;
    return j < end ? blocks[j / args.block_size] * args.block_size + j % args.block_size : -1;
}

/* A warp's share, as number `warp` of `warps`, of a tile of KEYS keys: of `pool`, kv head `kv`. rows: the
 * pool's rows of keys lane and lane + 32. */
template <int D>
__device__ __forceinline__ void begin_key_copies(const wb_attention &args, const wb_rows &pool, int64_t kv,
                                                 const int32_t (&rows)[2], int warp, int warps,
                                                 uint32_t tile) {
    enum { PARTS = D / 8 };
    const uint16_t *head = static_cast<const uint16_t *>(pool.data) + kv * D;
    const int64_t stride = static_cast<int64_t>(args.n_kv_heads) * D;
    /* all lanes of a warp have as many parts as each other */
    for (int i = warp * 32 + threadIdx.x % 32; i < KEYS * PARTS; i += warps * 32) {
        const int key = i / PARTS, part = i % PARTS;
        const uint16_t *data = head + 8 * part;
        const int32_t low = __shfl_sync(ALL_LANES, rows[0], key % 32);
        const int32_t high = __shfl_sync(ALL_LANES, rows[1], key % 32), row = key < 32 ? low : high;
        begin_copy(tile_part<D>(tile, key, part), data + (row >= 0 ? row * stride : 0), row >= 0);
    }
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* A lane's two rows of the 16: their numbers among those of all tokens, and what they see. */
struct lane_rows {
    int64_t at[2];              /* -1: no row */
    int32_t first[2], limit[2]; /* positions [first, limit) are seen */
};

/* x[16][D] as the A of products, rows of `from`, of D elements; zeros where there is no row. */
template <int D>
__device__ __forceinline__ void load_rows(const wb_rows &from, const lane_rows &rows, uint32_t (&a)[D / 4]) {
    const uint16_t *data = static_cast<const uint16_t *>(from.data);
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        const int64_t at = rows.at[i % 2];
        const int k = i / 4 * 16 + i % 4 / 2 * 8 + column;
        a[i] = at >= 0 ? *reinterpret_cast<const uint32_t *>(data + at * D + k) : 0;
    }
}

/* s[16][KEYS] (=) a times the rows of a tile: scores of Q and K, or products of dO and V. */
template <int D>
__device__ __forceinline__ void multiply_keys(const uint32_t (&a)[D / 4], uint32_t tile,
                                              float (&s)[KEYS / 8][4]) {
    const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, part = lane / 8 % 2;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];
            load_four(tile_part<D>(tile, 16 * j + row, 2 * k + part), b);
            add_products_16(s[2 * j], a + 4 * k, b[0], b[1]);
            add_products_16(s[2 * j + 1], a + 4 * k, b[2], b[3]);
        }
}

/* sum[16][D] += p[16][KEYS] times the rows of a tile. p: pairs as the A of products. */
template <int D>
__device__ __forceinline__ void add_values_of(const uint32_t (&p)[KEYS / 4], uint32_t tile,
                                              float (&sum)[D / 8][4]) {
    const int lane = threadIdx.x % 32, row = lane % 16, part = lane / 16;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t b[4];
            load_four_turned(tile_part<D>(tile, 16 * k + row, 2 * j + part), b);
            add_products_16(sum[2 * j], p + 4 * k, b[0], b[1]);
            add_products_16(sum[2 * j + 1], p + 4 * k, b[2], b[3]);
        }
}

/* x[16][KEYS] as the A of products. */
__device__ __forceinline__ void pack_rows(const float (&x)[KEYS / 8][4], uint32_t (&a)[KEYS / 4]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) a[i] = pack_pair(x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]);
}

/* ---- softmax ----------------------------------------------------------------------------------- */

/* Of a lane's two rows: the largest score so far times scale log2(e), and the lane's part of the sum. */
struct row_state {
    float largest[2], sum[2];
};

/* Whether the row sees key 8 j + column of a block that begins at j0. */
__device__ __forceinline__ bool sees(const lane_rows &rows, int r, int32_t j0, int j, int i) {
    const int key = j0 + 8 * j + static_cast<int>(threadIdx.x % 4) * 2 + i;
    return rows.first[r] <= key && key < rows.limit[r];
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x = wb_add(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return wb_add(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* s becomes the weights of its keys; *state goes on by the block. Returns in scale[r] what sums so far are to
 * be multiplied by. `factor`: the attention's scale times log2(e). */
__device__ __forceinline__ void soften(const lane_rows &rows, int32_t j0, float factor,
                                       float (&s)[KEYS / 8][4], row_state *state, float (&scale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = MINUS_INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            float &x = s[i / 2][2 * r + i % 2];
            x = sees(rows, r, j0, i / 2, i % 2) ? wb_mul(x, factor) : MINUS_INFINITY;
            most = fmaxf(most, x);
        }
        const float largest = fmaxf(state->largest[r], quad_max(most));
        /* nothing was seen yet: any number will do in place of -inf - -inf */
        const float base = largest == MINUS_INFINITY ? 0.0f : largest;
        scale[r] = exp2_of(wb_sub(state->largest[r], base));
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            float &x = s[i / 2][2 * r + i % 2];
            x = exp2_of(wb_sub(x, base));
            sum = wb_add(sum, x);
        }
        state->sum[r] = wb_fma(state->sum[r], scale[r], sum);
        state->largest[r] = largest;
    }
}

/* After the last block, with row r's whole sum: the sink of `head` joins in it. Returns what its values are
 * multiplied by; no row: anything. */
__device__ __forceinline__ float end_whole_sum(const wb_attention &args, int64_t head, int r,
                                               row_state *state) {
    float before = 1.0f;
    if (args.sinks) {
        const float sink = wb_mul(args.sinks[head], WB_LOG2_E), old = state->largest[r];
        state->largest[r] = fmaxf(old, sink);
        before = exp2_of(wb_sub(old, state->largest[r]));
        state->sum[r] = wb_fma(state->sum[r], before, exp2_of(wb_sub(sink, state->largest[r])));
    }
    return wb_mul(before, __frcp_rn(state->sum[r]));
}

/* The same with the lane's part of the sum. */
__device__ __forceinline__ float end_sum(const wb_attention &args, int64_t head, int r, row_state *state) {
    state->sum[r] = quad_sum(state->sum[r]);
    return end_whole_sum(args, head, r, state);
}

/* Then: what log_sums has of row r, from the first of its four lanes. */
__device__ __forceinline__ void store_log_sum(const wb_attention &args, const lane_rows &rows, int r,
                                              const row_state &state) {
    if (!args.log_sums || rows.at[r] < 0 || threadIdx.x % 4 != 0) return;
    const float log2_sum = wb_add(state.largest[r], __log2f(state.sum[r]));
    args.log_sums[rows.at[r]] = rows.limit[r] > 0 ? wb_mul(log2_sum, WB_LN_2) : 0.0f;
}

template <int D> __device__ __forceinline__ void scale_rows(const float (&scale)[2], float (&sum)[D / 8][4]) {
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[j][i] = wb_mul(sum[j][i], scale[i / 2]);
}

/* Rows of `to`, of D elements, (=) sum times factor[r]. Adding 0 makes -0 0: whether a sum of nothing but
 * zeros is one depends on how many keys that are not seen it went over. */
template <int D>
__device__ __forceinline__ void store_rows(const wb_rows &to, const lane_rows &rows, const float (&factor)[2],
                                           const float (&sum)[D / 8][4]) {
    uint16_t *data = static_cast<uint16_t *>(to.data);
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float low = wb_add(wb_mul(sum[j][2 * r], factor[r]), 0.0f);
            const float high = wb_add(wb_mul(sum[j][2 * r + 1], factor[r]), 0.0f);
            if (rows.at[r] < 0) continue;
            *reinterpret_cast<uint32_t *>(data + rows.at[r] * D + 8 * j + column) = pack_pair(low, high);
        }
}

} // namespace

#endif
