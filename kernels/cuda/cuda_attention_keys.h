/* cuda_attention_keys.h - which rows a warp of an attention kernel has, and how blocks of keys come to it:
 * what the forward and the backward share. For .cu files. */
#ifndef WB_CUDA_ATTENTION_KEYS_H
#define WB_CUDA_ATTENTION_KEYS_H

#include "cuda/cuda_attention_warp.h"

namespace {

/* Warps of a block of adjacent tokens. */
enum { WARPS = 8, TILE_ROWS = WARPS * ROWS };

/* Copies are of 16 bytes. */
inline bool is_aligned(const wb_rows &rows) {
    return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* The end of the run that begins at token t, at `last` at most. */
__device__ __forceinline__ int64_t end_of_run(const wb_attention &args, int64_t t, int64_t last) {
    int64_t end = t + 1;
    while (end < last && args.seq[end] == args.seq[t]) end++;
    return end;
}

/* Heads of a kv head. */
__device__ __forceinline__ int group_size(const wb_attention &args) {
    return args.n_heads / args.n_kv_heads;
}

/* The rows of 16 from `first` on, of tokens [begin, end), which see their positions; those that are not there
 * see nothing. Row i is head i % group of token begin + i / group. */
__device__ __forceinline__ lane_rows find_rows(const wb_attention &args, int64_t kv, int64_t begin,
                                               int64_t end, int first) {
    lane_rows rows;
    const int group = group_size(args), lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first + lane / 4 + 8 * r;
        const int64_t t = begin + row / group;
        const bool there = t < end;
        rows.at[r] = there ? t * args.n_heads + kv * group + row % group : -1;
        rows.limit[r] = there && args.seq[t] >= 0 ? args.pos[t] + 1 : 0;
        rows.first[r] = rows.limit[r] > 0 ? attention_first_key(&args, rows.limit[r] - 1) : 0;
    }
    return rows;
}

/* The head of row r of the 16 from `first` on. */
__device__ __forceinline__ int64_t head_of_row(const wb_attention &args, int64_t kv, int first, int r) {
    const int group = group_size(args);
    return kv * group + (first + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r) % group;
}

/* The keys [begin, end) that the tokens of a run see whose first and last are these; none of padding. */
struct run_keys {
    int32_t begin, end;
    __device__ __forceinline__ int first_block() const {
        return begin / KEYS;
    }
    __device__ __forceinline__ int blocks() const {
        return (end + KEYS - 1) / KEYS;
    }
};

__device__ __forceinline__ run_keys keys_of_run(const wb_attention &args, int64_t first, int64_t last) {
    if (args.seq[first] < 0) return {0, 0};
    return {attention_first_key(&args, args.pos[first]), args.pos[last] + 1};
}

__device__ __forceinline__ float score_factor(const wb_attention &args) {
    return wb_mul(args.scale, WB_LOG2_E);
}

/* ---- keys on their way ------------------------------------------------------------------------- */

/* Two blocks of keys and values, heads of D and of V elements, in turn: one is read while the other comes. */
template <int D, int V> struct key_tiles {
    uint32_t tile; /* K, V, K, V */
    static const int K_BYTES = KEYS * D * 2, BYTES = 2 * KEYS * (D + V) * 2;
    __device__ __forceinline__ uint32_t k(int block) const {
        return tile + block % 2 * (BYTES / 2);
    }
    __device__ __forceinline__ uint32_t v(int block) const {
        return k(block) + K_BYTES;
    }
};

/* The pool's rows of a block's keys lane and lane + 32; -1 where the run does not see them. */
struct key_rows {
    int32_t at[2];
};

__device__ __forceinline__ key_rows find_key_rows(const wb_attention &args, int32_t seq, int block,
                                                  const run_keys &keys) {
    const int j = block * KEYS + threadIdx.x % 32;
    return {{j < keys.begin ? -1 : pool_row(args, seq, j, keys.end),
             j + 32 < keys.begin ? -1 : pool_row(args, seq, j + 32, keys.end)}};
}

/* Begins to copy a block's keys and values by warp `warp` of `warps`; those that the run does not see are
 * zeros. */
template <int D, int V>
__device__ __forceinline__ void begin_block(const wb_attention &args, int32_t seq, int64_t kv, int block,
                                            const run_keys &keys, const key_tiles<D, V> &tiles, int warp,
                                            int warps) {
    if (block < keys.blocks()) {
        const key_rows rows = find_key_rows(args, seq, block, keys);
        begin_key_copies<D>(args, args.k, kv, rows.at, warp, warps, tiles.k(block));
        begin_key_copies<V>(args, args.v, kv, rows.at, warp, warps, tiles.v(block));
    }
    end_group_of_copies();
}

} // namespace

#endif
