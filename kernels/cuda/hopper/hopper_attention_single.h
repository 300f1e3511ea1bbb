/* hopper_attention_single.h - a split of an item of single tokens, by a block of threads: its keys on their
 * way, and what becomes of them.
 *
 * Operands are swapped, so that the heads that share keys are the 8 columns of mma.sync. Scores are K Q^T,
 * keys shared out among the warps, each of which finds the weights of its keys; values are V^T P^T,
 * dimensions shared out. The largest score is the same in any order; weights pass through shared memory to
 * where the chains of the rule add them up, 16 lanes a head. Refuses: launching
 * (hopper_attention_single.cu). For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_SINGLE_H
#define WB_HOPPER_ATTENTION_SINGLE_H

#include "cuda/hopper/hopper_attention_share.h"

namespace {

/* HEADS: 8 or 16 heads of an item. SLOTS: tiles of keys or values on their way. PAGED: rows of 16 keys are
 * adjacent. */
template <int D_, int HEADS_, int WARPS_, int SLOTS_, bool PAGED_> struct single_shape {
    static const int D = D_, HEADS = HEADS_, WARPS = WARPS_, SLOTS = SLOTS_, THREADS = 32 * WARPS;
    static const bool PAGED = PAGED_;
    /* tiles of 8 heads; of 16 keys and of 16 dimensions of a warp */
    static const int HEAD_TILES = HEADS / 8, KEY_TILES = 8 / WARPS,
                     VALUE_TILES = D / 16 > WARPS ? D / 16 / WARPS : 1;
    static const int TILE = BLOCK_KEYS * D * 2, GRAIN = PAGED ? PAGE_GRAIN : 1, PLACES = SPLIT_KEYS / GRAIN;
    /* Weights in f32 and in bf16, [heads, keys]: from a row to the next so that lanes meet other banks. */
    static const int WEIGHT_ROW = BLOCK_KEYS + 4, PACKED_ROW = BLOCK_KEYS + 8;
    /* heads whose sums a warp has, two at a time */
    static const int SUM_HEADS = HEADS / WARPS, SUM_PAIRS = (SUM_HEADS + 1) / 2;
    static const int WEIGHTS_AT = SLOTS * TILE, PACKED_AT = WEIGHTS_AT + HEADS * WEIGHT_ROW * 4,
                     LARGEST_AT = PACKED_AT + HEADS * PACKED_ROW * 2,
                     SUMS_AT = LARGEST_AT + WARPS * HEADS * 4, PLACES_AT = SUMS_AT + HEADS * 4,
                     WARPS_AT = PLACES_AT + PLACES * 8, BEFORE_AT = WARPS_AT + WARPS * 4;

    static size_t bytes(int64_t T) {
        return static_cast<size_t>(BEFORE_AT) + static_cast<size_t>(T / TOKEN_GROUP + 2) * 4;
    }
};

/* What a warp has of a split, and of the splits before it. Columns c of head tile h are the heads
 * 8 h + 2 (lane % 4) + c, rows the dimensions lane / 4 and 8 more. */
template <class S> struct single_state {
    uint32_t q[S::HEAD_TILES][S::D / 8];
    float sum[S::HEAD_TILES][S::VALUE_TILES][4], all_sum[S::HEAD_TILES][S::VALUE_TILES][4];
    row_state row[S::HEAD_TILES][2], all[S::HEAD_TILES][2];
    /* chains of weights of the heads sum_head */
    float chain[S::SUM_PAIRS];
};

ASM_INLINE void load_matrices_turned(uint32_t address, uint32_t (&v)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}

/* A split of an item: where its keys lie. Of those from position `first` on the token sees [begin, keys),
 * SPLIT_KEYS at most. */
struct split {
    int32_t seq, kv, first, begin, keys;
    ASM_INLINE int32_t first_block() const {
        return begin / BLOCK_KEYS;
    }
    ASM_INLINE int32_t blocks() const {
        return (keys + BLOCK_KEYS - 1) / BLOCK_KEYS;
    }
};

template <class S> struct single_memory {
    uint8_t *bytes;

    ASM_INLINE uint32_t tile(int number) const {
        return shared_address(bytes) + static_cast<uint32_t>(number % S::SLOTS * S::TILE);
    }
    ASM_INLINE float *weights(int head) const {
        return reinterpret_cast<float *>(bytes + S::WEIGHTS_AT) + head * S::WEIGHT_ROW;
    }
    ASM_INLINE __nv_bfloat16 *packed(int head) const {
        return reinterpret_cast<__nv_bfloat16 *>(bytes + S::PACKED_AT) + head * S::PACKED_ROW;
    }
    /* The largest score of each head among a warp's keys. */
    ASM_INLINE float *largest(int warp) const {
        return reinterpret_cast<float *>(bytes + S::LARGEST_AT) + warp * S::HEADS;
    }
    ASM_INLINE float *sums() const {
        return reinterpret_cast<float *>(bytes + S::SUMS_AT);
    }
    /* Of every GRAIN keys of a split: elements from the beginning of the pool. */
    ASM_INLINE int64_t *places() const {
        return reinterpret_cast<int64_t *>(bytes + S::PLACES_AT);
    }
    ASM_INLINE int32_t *of_warp() const {
        return reinterpret_cast<int32_t *>(bytes + S::WARPS_AT);
    }
    ASM_INLINE int32_t *before() const {
        return reinterpret_cast<int32_t *>(bytes + S::BEFORE_AT);
    }
};

/* ---- keys on their way ------------------------------------------------------------------------- */

template <class S>
ASM_INLINE void find_places(const wb_attention &args, const single_memory<S> &shared, const split &s) {
    for (int i = s.begin / S::GRAIN + threadIdx.x; i < S::PLACES && i * S::GRAIN < s.keys; i += S::THREADS)
        shared.places()[i] =
            static_cast<int64_t>(pool_row(args, s.seq, s.first + i * S::GRAIN)) * args.n_kv_heads * S::D;
}

/* Tile 2 i is the keys of block i of the split, 2 i + 1 its values. Rows of keys that are not there become
 * zeros, and nothing is read for them. */
template <class S>
ASM_INLINE void begin_tile(const wb_attention &args, const single_memory<S> &shared, const split &s,
                           int number) {
    enum { PARTS = S::D / 8, AT_ONCE = S::THREADS / PARTS };
    if (number < 2 * s.blocks()) {
        const int part = threadIdx.x % PARTS, row = threadIdx.x / PARTS, block = number / 2;
        const int before = s.begin - block * BLOCK_KEYS - row;
        const unsigned left = static_cast<unsigned>(s.keys - s.begin);
        const int64_t stride = static_cast<int64_t>(args.n_kv_heads) * S::D;
        const int64_t *places = shared.places() + block * (BLOCK_KEYS / S::GRAIN) + row / S::GRAIN;
        const uint16_t *from = static_cast<const uint16_t *>(number % 2 ? args.v.data : args.k.data) +
                               s.kv * S::D + 8 * part + row % S::GRAIN * stride;
        const uint32_t to =
            shared.tile(number) + static_cast<uint32_t>(row * S::D * 2 + (part ^ row % 8) * 16);
#pragma unroll
        for (int i = 0; i < BLOCK_KEYS / AT_ONCE; i++) {
            const bool there = static_cast<unsigned>(i * AT_ONCE - before) < left;
            copy_16(to + static_cast<uint32_t>(i * AT_ONCE * S::D * 2),
                    there ? from + places[i * AT_ONCE / S::GRAIN] + i * AT_ONCE % S::GRAIN * stride : from,
                    there ? 16 : 0);
        }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* The oldest tile on its way has come, for all threads. */
template <class S> ASM_INLINE void wait_for_tile() {
    asm volatile("cp.async.wait_group %0;" ::"n"(S::SLOTS - 1) : "memory");
    __syncthreads();
}

/* ---- a block of keys --------------------------------------------------------------------------- */

/* Heads that are not there are zeros. */
template <class S>
ASM_INLINE void load_queries(const wb_attention &args, int64_t first_head, int heads, single_state<S> &w) {
    const int head = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < S::HEAD_TILES; h++) {
        const bool there = 8 * h + head < heads;
        const uint16_t *from = static_cast<const uint16_t *>(args.q.data) +
                               (first_head + (there ? 8 * h + head : 0)) * S::D + column;
#pragma unroll
        for (int i = 0; i < S::D / 8; i++)
            w.q[h][i] = there ? *reinterpret_cast<const uint32_t *>(from + 8 * i) : 0;
    }
}

/* A warp's scores of a block: keys lane / 4 and 8 more of each tile, columns as in single_state. */
template <class S> struct key_scores { float at[S::KEY_TILES][S::HEAD_TILES][4]; };

/* Of the tile's keys [begin, keys) are seen. */
template <class S>
ASM_INLINE void find_scores(const single_state<S> &w, uint32_t tile, int begin, int keys, key_scores<S> &s) {
    const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x / 32) * S::KEY_TILES * 16;
#pragma unroll
    for (int i = 0; i < S::KEY_TILES * S::HEAD_TILES * 4; i++)
        s.at[i / 4 / S::HEAD_TILES][i / 4 % S::HEAD_TILES][i % 4] = 0.0f;
#pragma unroll
    for (int k = 0; k < S::D / 16; k++)
#pragma unroll
        for (int j = 0; j < S::KEY_TILES; j++) {
            const int row = first + j * 16 + lane % 16;
            uint32_t a[4];
            load_matrices(tile + static_cast<uint32_t>(row * S::D * 2 + ((2 * k + lane / 16) ^ row % 8) * 16),
                          a);
#pragma unroll
            for (int h = 0; h < S::HEAD_TILES; h++)
                add_products_16(s.at[j][h], a, w.q[h][2 * k], w.q[h][2 * k + 1]);
        }
#pragma unroll
    for (int i = 0; i < S::KEY_TILES * S::HEAD_TILES * 4; i++) {
        const int key = first + i / 4 / S::HEAD_TILES * 16 + lane / 4 + i % 4 / 2 * 8;
        if (static_cast<unsigned>(key - begin) >= static_cast<unsigned>(keys - begin))
            s.at[i / 4 / S::HEAD_TILES][i / 4 % S::HEAD_TILES][i % 4] = NO_SCORE;
    }
}

/* Each head's largest score among the warp's keys, for the other warps. */
template <class S> ASM_INLINE void tell_largest(const single_memory<S> &shared, const key_scores<S> &s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < S::HEAD_TILES; h++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float max = fmaxf(s.at[0][h][c], s.at[0][h][c + 2]);
#pragma unroll
            for (int j = 1; j < S::KEY_TILES; j++) max = fmaxf(max, fmaxf(s.at[j][h][c], s.at[j][h][c + 2]));
#pragma unroll
            for (int step = 4; step < 32; step *= 2)
                max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, step));
            if (lane < 4) shared.largest(warp)[8 * h + 2 * lane + c] = max;
        }
}

/* The weights of the warp's keys; what was summed is scaled. Returns in scale what sums are multiplied by. */
template <class S>
ASM_INLINE void find_weights(const single_memory<S> &shared, const key_scores<S> &s, float factor,
                             single_state<S> &w, float (&scale)[S::HEAD_TILES][2]) {
    const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x / 32) * S::KEY_TILES * 16;
#pragma unroll
    for (int h = 0; h < S::HEAD_TILES; h++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int head = 8 * h + lane % 4 * 2 + c;
            float max = shared.largest(0)[head];
#pragma unroll
            for (int i = 1; i < S::WARPS; i++) max = fmaxf(max, shared.largest(i)[head]);
            const block_factors by = renew_largest(&w.row[h][c], max, factor);
            scale[h][c] = by.scale;
#pragma unroll
            for (int i = 0; i < S::KEY_TILES * 2; i++) {
                const int key = first + i / 2 * 16 + lane / 4 + i % 2 * 8;
                const float p = weight_of(s.at[i / 2][h][i % 2 * 2 + c], factor, by);
                shared.weights(head)[key] = p;
                shared.packed(head)[key] = __float2bfloat16_rn(p);
            }
        }
#pragma unroll
    for (int i = 0; i < S::HEAD_TILES * S::VALUE_TILES * 4; i++) {
        float &sum = w.sum[i / 4 / S::VALUE_TILES][i / 4 % S::VALUE_TILES][i % 4];
        sum = __fmul_rn(sum, scale[i / 4 / S::VALUE_TILES][i % 2]);
    }
}

/* The head whose sum the lane has in pair i of its warp: sixteen lanes a head, chain lane % 4 of the rule's
 * lane lane / 4 % 4. */
template <class S> ASM_INLINE int sum_head(int i) {
    const int warp = threadIdx.x / 32, half = threadIdx.x % 32 / 16;
    return S::SUM_HEADS == 1 ? warp : warp * S::SUM_HEADS + 2 * i + half;
}

/* Of a value of each head in the lanes' columns: that of `head`. */
template <class S> ASM_INLINE float of_head(const float (&x)[S::HEAD_TILES][2], int head) {
    float found = 0.0f;
#pragma unroll
    for (int i = 0; i < S::HEAD_TILES * 2; i++) {
        const float one = __shfl_sync(0xffffffffu, x[i / 2][i % 2], head % 8 / 2);
        if (head / 8 == i / 2 && head % 2 == i % 2) found = one;
    }
    return found;
}

/* The chains of weights go on by the block. */
template <class S>
ASM_INLINE void add_weights(const single_memory<S> &shared, const float (&scale)[S::HEAD_TILES][2],
                            single_state<S> &w) {
    const int chain = threadIdx.x % 4, place = 8 * (chain / 2) + chain % 2 + threadIdx.x / 4 % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::SUM_PAIRS; i++) {
        const int head = sum_head<S>(i);
        float sum = shared.weights(head)[place];
#pragma unroll
        for (int m = 1; m < LANE_KEYS / 4; m++) sum = __fadd_rn(sum, shared.weights(head)[place + 16 * m]);
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
        w.chain[i] = __fmaf_rn(w.chain[i], of_head<S>(scale, head), sum);
    }
}

template <class S>
ASM_INLINE void add_values(const single_memory<S> &shared, single_state<S> &w, uint32_t tile) {
    const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x / 32) * S::VALUE_TILES * 2;
    if (first >= S::D / 8) return;
#pragma unroll
    for (int k = 0; k < BLOCK_KEYS / 16; k += 2) {
        uint32_t weights[S::HEAD_TILES][4];
#pragma unroll
        for (int h = 0; h < S::HEAD_TILES; h++)
            load_matrices(shared_address(shared.packed(8 * h + lane % 8) + 16 * k + lane / 8 * 8),
                          weights[h]);
#pragma unroll
        for (int i = 0; i < 2 * S::VALUE_TILES; i++) {
            const int j = i % S::VALUE_TILES, half = i / S::VALUE_TILES;
            const int row = (k + half) * 16 + lane % 8 + lane / 16 * 8, part = first + 2 * j + lane / 8 % 2;
            uint32_t a[4];
            load_matrices_turned(tile + static_cast<uint32_t>(row * S::D * 2 + (part ^ row % 8) * 16), a);
#pragma unroll
            for (int h = 0; h < S::HEAD_TILES; h++)
                add_products_16(w.sum[h][j], a, weights[h][2 * half], weights[h][2 * half + 1]);
        }
    }
}

/* ---- a split ----------------------------------------------------------------------------------- */

template <class S> ASM_INLINE void begin_split(single_state<S> &w) {
#pragma unroll
    for (int i = 0; i < S::HEAD_TILES * 2; i++) w.row[i / 2][i % 2] = no_keys();
#pragma unroll
    for (int i = 0; i < S::SUM_PAIRS; i++) w.chain[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < S::HEAD_TILES * S::VALUE_TILES * 4; i++)
        w.sum[i / 4 / S::VALUE_TILES][i / 4 % S::VALUE_TILES][i % 4] = 0.0f;
}

/* The whole sum of each head, to all lanes that have a column of it. */
template <class S> ASM_INLINE void end_split(const single_memory<S> &shared, single_state<S> &w) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < S::SUM_PAIRS; i++) {
        float sum = w.chain[i];
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 4));
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 8));
        if (lane % 16 == 0) shared.sums()[sum_head<S>(i)] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::HEAD_TILES * 2; i++)
        w.row[i / 2][i % 2].sum = shared.sums()[i / 2 * 8 + lane % 4 * 2 + i % 2];
}

/* The first tiles of a split are on their way. */
template <class S>
ASM_INLINE void begin_keys(const wb_attention &args, const single_memory<S> &shared, const split &s) {
    find_places<S>(args, shared, s);
    __syncthreads();
    for (int i = 0; i < S::SLOTS; i++) begin_tile<S>(args, shared, s, 2 * s.first_block() + i);
}

/* The end of the keys that begin_keys asks for, as a position. */
template <class S> ASM_INLINE int32_t begun_keys_end(const split &s) {
    return s.first + (s.first_block() + (S::SLOTS + 1) / 2) * BLOCK_KEYS;
}

/* All blocks of a split that have a key which is seen, behind begin_keys; w.row has its whole sums then. */
template <class S>
ASM_INLINE void attend_split(const wb_attention &args, const single_memory<S> &shared, const split &s,
                             float factor, single_state<S> &w) {
    begin_split<S>(w);
    for (int block = s.first_block(); block < s.blocks(); block++) {
        float scale[S::HEAD_TILES][2];
        key_scores<S> scores;
        wait_for_tile<S>();
        find_scores<S>(w, shared.tile(2 * block), s.begin - block * BLOCK_KEYS, s.keys - block * BLOCK_KEYS,
                       scores);
        tell_largest<S>(shared, scores);
        __syncthreads();
        begin_tile<S>(args, shared, s, 2 * block + S::SLOTS);
        find_weights<S>(shared, scores, factor, w, scale);
        wait_for_tile<S>();
        add_values<S>(shared, w, shared.tile(2 * block + 1));
        add_weights<S>(shared, scale, w);
        __syncthreads();
        begin_tile<S>(args, shared, s, 2 * block + 1 + S::SLOTS);
    }
    end_split<S>(shared, w);
}

} // namespace

#endif
