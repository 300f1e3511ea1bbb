/* hopper_attention_tiles.h - how tiles of queries and blocks of keys come into shared memory for the kernel
 * of adjacent tokens: the warpgroup that fills.
 *
 * A tile is 128 rows, each a token and a head of the group that shares a kv head: 128 / group tokens. What is
 * attended to at once is a piece: the tokens of a tile that are of one sequence. Blocks of keys come as boxes
 * by TMA: of whole pages, or of 128 rows where the pool has them one after the other. The last block, and
 * with a window the first, of which some keys are not there, and rows that are scattered come by copies of 16
 * bytes, with zeros for what is not there: nothing that lies in the pool beyond a sequence or before the
 * window of all tokens is read.
 *
 * Queries lie in parts of 64 columns, 128 rows of 128 bytes each. Keys and values lie in groups of 8 rows, of
 * which the parts of 64 columns follow each other, so that one box brings all columns of its rows.
 *
 * Refuses: what is computed. For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_TILES_H
#define WB_HOPPER_ATTENTION_TILES_H

#include "cuda/hopper/hopper_attention_rule.h"

namespace {

enum { TILE_ROWS = 128, STAGES = 2, GROUP_THREADS = 128 };

/* Numbers of threads_sync: 0 is __syncthreads. */
enum { SYNC_FILLERS = 1, SYNC_TURNS = 2 };

/* Shared memory. */
template <int D> struct tile_memory {
    uint32_t base;

    /* bytes of a part of queries, of a tile, and from 8 rows of keys or values to the next 8 */
    static const int PART = TILE_ROWS * 128, TILE = D / 64 * PART;
    static const uint32_t EIGHT_ROWS = D * 16;
    static const int KEYS_AT = TILE, VALUES_AT = KEYS_AT + STAGES * TILE, KEPT_AT = VALUES_AT + STAGES * TILE,
                     BARRIERS_AT = KEPT_AT + TILE_ROWS * D * 4, PIECE_AT = BARRIERS_AT + 8 * (2 + 4 * STAGES),
                     NUMBERS_AT = PIECE_AT + 16, BYTES = NUMBERS_AT + 2 * 4;

    ASM_INLINE uint32_t queries() const {
        return base;
    }
    ASM_INLINE uint32_t keys(uint32_t stage) const {
        return base + KEYS_AT + stage * TILE;
    }
    ASM_INLINE uint32_t values(uint32_t stage) const {
        return base + VALUES_AT + stage * TILE;
    }
    /* What earlier splits left of the rows of a warpgroup, in f32. */
    ASM_INLINE uint32_t kept(int warpgroup) const {
        return base + KEPT_AT + static_cast<uint32_t>(warpgroup) * TILE;
    }
    ASM_INLINE uint32_t piece() const {
        return base + PIECE_AT;
    }
    ASM_INLINE uint32_t number(uint32_t turn) const {
        return base + NUMBERS_AT + 4 * (turn % 2);
    }
    ASM_INLINE uint32_t barrier(uint32_t i) const {
        return base + BARRIERS_AT + 8 * i;
    }
    ASM_INLINE uint32_t piece_full() const {
        return barrier(0);
    }
    ASM_INLINE uint32_t piece_empty() const {
        return barrier(1);
    }
    ASM_INLINE uint32_t keys_full(uint32_t stage) const {
        return barrier(2 + stage);
    }
    ASM_INLINE uint32_t keys_empty(uint32_t stage) const {
        return barrier(2 + STAGES + stage);
    }
    ASM_INLINE uint32_t values_full(uint32_t stage) const {
        return barrier(2 + 2 * STAGES + stage);
    }
    ASM_INLINE uint32_t values_empty(uint32_t stage) const {
        return barrier(2 + 3 * STAGES + stage);
    }
};

template <int D> ASM_INLINE void init_barriers(const tile_memory<D> &shared) {
    barrier_init(shared.piece_full(), 1);
    barrier_init(shared.piece_empty(), 2 * GROUP_THREADS);
    for (uint32_t i = 0; i < STAGES; i++) {
        barrier_init(shared.keys_full(i), GROUP_THREADS), barrier_init(shared.values_full(i), GROUP_THREADS);
        barrier_init(shared.keys_empty(i), 8), barrier_init(shared.values_empty(i), 8);
    }
    barrier_init_fence();
}

/* The stage of a block of keys, counted over all that this block of threads sees, and the parity of its
 * phase. */
ASM_INLINE uint32_t stage_of(uint32_t block) {
    return block % STAGES;
}
ASM_INLINE uint32_t parity_of(uint32_t block) {
    return block / STAGES % 2;
}

/* n tokens from `token` on, of one sequence, the last of which sees `keys` keys; 0: padding. n 0: there are
 * no more. */
struct piece {
    int32_t token, n, keys, kv;
};

/* What the tokens of a piece see: the first sees the keys from `begin` on up to `first_position`, the last
 * those from `last_begin` on. Blocks before that of `begin` are left out. */
struct piece_view {
    int32_t begin, first_position, last_begin;
    ASM_INLINE int first_block() const {
        return begin / BLOCK_KEYS;
    }
};

ASM_INLINE piece_view view_of(const wb_attention &args, const piece &p) {
    if (p.keys == 0) return {0, 0, 0};
    const int32_t first = args.pos[p.token];
    return {attention_first_key(&args, first), first, attention_first_key(&args, p.keys - 1)};
}

/* Whether a block of which the keys [begin, keys) are there comes by copies of threads, whatever lies where:
 * a part of it is not there. */
ASM_INLINE bool is_cut(int32_t first, int32_t begin, int32_t keys) {
    return first < begin || keys - first < BLOCK_KEYS;
}

/* Whether a block of keys came by copies of threads: a fence stands between them and wgmma. */
ASM_INLINE bool was_copied(const wb_attention &args, const piece &p, const piece_view &v, int block) {
    return !comes_in_pages(args) || is_cut(block * BLOCK_KEYS, v.begin, p.keys);
}

/* What the call of a kernel is about. Maps: queries in boxes of 64 columns, a group of heads, and a tile's
 * tokens; keys and values in boxes of 64 columns and box_rows rows. */
struct tile_call {
    wb_attention args;
    wb_rows out;
    /* tokens of a tile, and rows of a box */
    int32_t tokens, box_rows;
    /* single tokens have a kernel of their own */
    bool skips_singles;
    /* device [2], zeros before and after: tiles drawn, and blocks of threads that have ended */
    int32_t *counters;
};

/* Heads of a kv head. */
ASM_INLINE int group_size(const wb_attention &args) {
    return args.n_heads / args.n_kv_heads;
}

/* ---- filling ----------------------------------------------------------------------------------- */

/* A block's key of this thread: its row in the pool, or -1 where there is none. */
ASM_INLINE int32_t own_row(const wb_attention &args, int32_t seq, int32_t first, int32_t begin,
                           int32_t keys) {
    const int32_t j = first + static_cast<int32_t>(threadIdx.x % GROUP_THREADS);
    return begin <= j && j < keys ? pool_row(args, seq, j) : -1;
}

/* 128 rows of the pool, a warp 32 of them, by copies. */
template <int D>
ASM_INLINE void copy_rows(const wb_attention &args, const wb_rows &pool, int32_t kv, int32_t row, uint32_t to,
                          uint32_t full) {
    enum { PARTS = D / 8, AT_ONCE = 32 / PARTS };
    const int lane = threadIdx.x % 32, part = lane % PARTS;
    const int first = static_cast<int>(threadIdx.x % GROUP_THREADS / 32) * 32;
    const uint16_t *data = static_cast<const uint16_t *>(pool.data) + kv * D + 8 * part;
    const int64_t stride = static_cast<int64_t>(args.n_kv_heads) * D;
    to += static_cast<uint32_t>(part / 8 * 1024);
#pragma unroll 4
    for (int i = lane / PARTS; i < 32; i += AT_ONCE) {
        const int32_t from = __shfl_sync(0xffffffffu, row, i);
        copy_16(to + static_cast<uint32_t>((first + i) / 8) * tile_memory<D>::EIGHT_ROWS +
                    static_cast<uint32_t>(i % 8 * 128 + ((part % 8) ^ (i % 8)) * 16),
                data + (from >= 0 ? from * stride : 0), from >= 0 ? 16 : 0);
    }
    copies_arrive(full);
}

/* How a block comes: by copies, or by boxes. row: the pool's row of this thread's key, or of its box, -1: it
 * has none; at: the box's first row in the block. */
struct block_source {
    bool copied;
    int32_t row, at;
};

/* Whether it is so for all 128 threads. */
ASM_INLINE bool all_agree(bool mine) {
    uint32_t all;
    asm volatile(
        "{.reg .pred p, q; setp.ne.b32 p, %1, 0; bar.red.and.pred q, %2, %3, p; selp.u32 %0, 1, 0, q;}"
        : "=r"(all)
        : "r"(static_cast<uint32_t>(mine)), "r"(SYNC_FILLERS + 0), "r"(GROUP_THREADS + 0)
        : "memory");
    return all != 0;
}

/* Of the block of keys from position `first` on, of which [begin, keys) are there. Boxes are shared out among
 * the warps. */
ASM_INLINE block_source find_source(const tile_call &call, int32_t seq, int32_t first, int32_t begin,
                                    int32_t keys) {
    const int thread = threadIdx.x % GROUP_THREADS, box = thread % 32 * 4 + thread / 32;
    block_source s = {is_cut(first, begin, keys), -1, box * call.box_rows};
    if (s.copied || !comes_in_pages(call.args)) {
        s.row = own_row(call.args, seq, first, begin, keys);
        if (s.copied) return s;
        s.copied = !all_agree(s.row == pool_row(call.args, seq, first) + thread);
        if (!s.copied && thread > 0) s.row = -1;
    } else if (s.at < BLOCK_KEYS) {
        s.row = pool_row(call.args, seq, first + s.at);
    }
    return s;
}

template <int D>
ASM_INLINE void fill_block(const tile_call &call, const CUtensorMap &map, const wb_rows &pool, int32_t kv,
                           const block_source &s, uint32_t to, uint32_t full) {
    if (s.copied) {
        copy_rows<D>(call.args, pool, kv, s.row, to, full);
    } else if (s.row >= 0) {
        barrier_expect(full, static_cast<uint32_t>(call.box_rows * D * 2));
        copy_box_4d(to + static_cast<uint32_t>(s.at) / 8 * tile_memory<D>::EIGHT_ROWS, map, 0, s.row % 8,
                    kv * (D / 64), s.row / 8, full, 0);
    } else {
        barrier_arrive(full);
    }
}

/* Hands a piece over, with its queries, once the last one's have been read. One thread. */
template <int D>
ASM_INLINE void fill_piece(const tile_call &call, const CUtensorMap &map, const tile_memory<D> &shared,
                           const piece &p, uint32_t pieces) {
    const int group = group_size(call.args);
    barrier_wait(shared.piece_empty(), pieces % 2 ^ 1);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared.piece()), "r"(p.token), "r"(p.n),
                 "r"(p.keys), "r"(p.kv)
                 : "memory");
    if (p.n == 0 || p.keys == 0) {
        barrier_arrive(shared.piece_full());
        return;
    }
    barrier_expect(shared.piece_full(), static_cast<uint32_t>(call.tokens * group * D * 2));
    for (int i = 0; i < D / 64; i++)
        copy_box_4d(shared.queries() + static_cast<uint32_t>(i * tile_memory<D>::PART), map, 64 * i,
                    p.kv * group, p.token, 0, shared.piece_full(), 0);
}

/* Which tokens of a tile begin a sequence: bit i % 32 of lane i / 32 is of token `begin` + i. The first token
 * beyond the tile is among them, and what is beyond the call begins one. Every warp has it. */
ASM_INLINE uint32_t find_beginnings(const wb_attention &args, int32_t begin, int32_t tokens) {
    const int lane = threadIdx.x % 32;
    uint32_t mine = 0;
    for (int32_t i = 0; i <= tokens; i += 32) {
        const int32_t t = begin + i + lane;
        const bool begins = t >= args.T || t == 0 || args.seq[t] != args.seq[t - 1];
        const uint32_t word = __ballot_sync(0xffffffffu, begins);
        if (lane == i / 32) mine = word;
    }
    return mine;
}

/* The first token of the tile from `from` on that begins a sequence, `tokens` at most. */
ASM_INLINE int32_t next_beginning(uint32_t beginnings, int32_t from, int32_t tokens) {
    const int32_t first = static_cast<int32_t>(threadIdx.x % 32) * 32;
    const uint32_t seen = from <= first ? ~0u : from - first < 32 ? ~0u << (from - first) : 0u;
    const int32_t bit = __ffs(static_cast<int>(beginnings & seen));
    return min(tokens, static_cast<int32_t>(__reduce_min_sync(
                           0xffffffffu, static_cast<unsigned>(bit > 0 ? first + bit - 1 : tokens))));
}

/* What the filling warpgroup has done so far: pieces, and blocks of keys. */
struct filled {
    uint32_t pieces, blocks;
};

template <int D>
ASM_INLINE void fill_keys(const tile_call &call, const CUtensorMap &map_k, const CUtensorMap &map_v,
                          const tile_memory<D> &shared, const piece &p, filled *so_far) {
    const int32_t seq = call.args.seq[p.token], begin = view_of(call.args, p).begin;
    int32_t first = begin / BLOCK_KEYS * BLOCK_KEYS;
    block_source s = {};
    if (p.keys > 0) s = find_source(call, seq, first, begin, p.keys);
    for (; first < p.keys; first += BLOCK_KEYS, so_far->blocks++) {
        const uint32_t stage = stage_of(so_far->blocks), parity = parity_of(so_far->blocks);
        block_source next = {};
        barrier_wait(shared.keys_empty(stage), parity ^ 1);
        fill_block<D>(call, map_k, call.args.k, p.kv, s, shared.keys(stage), shared.keys_full(stage));
        if (first + BLOCK_KEYS < p.keys) next = find_source(call, seq, first + BLOCK_KEYS, begin, p.keys);
        barrier_wait(shared.values_empty(stage), parity ^ 1);
        fill_block<D>(call, map_v, call.args.v, p.kv, s, shared.values(stage), shared.values_full(stage));
        s = next;
    }
}

template <int D>
ASM_INLINE void fill_tile(const tile_call &call, const CUtensorMap &map_q, const CUtensorMap &map_k,
                          const CUtensorMap &map_v, const tile_memory<D> &shared, int32_t begin, int32_t kv,
                          filled *so_far) {
    const wb_attention &args = call.args;
    const int32_t tokens = min(call.tokens, static_cast<int32_t>(args.T) - begin);
    const uint32_t beginnings = find_beginnings(args, begin, tokens);
    bool begins = next_beginning(beginnings, 0, tokens) == 0;
    for (int32_t i = 0, end; i < tokens; i = end, begins = true) {
        end = next_beginning(beginnings, i + 1, tokens);
        /* a run that the tile cuts goes on there */
        const bool goes_on = end == tokens && next_beginning(beginnings, tokens, tokens + 1) != tokens;
        if (call.skips_singles && end == i + 1 && begins && !goes_on) continue;
        const int32_t t = begin + i;
        const piece p = {t, end - i, args.seq[t] < 0 ? 0 : args.pos[begin + end - 1] + 1, kv};
        if (threadIdx.x % GROUP_THREADS == 0) fill_piece<D>(call, map_q, shared, p, so_far->pieces);
        __syncwarp();
        so_far->pieces++;
        fill_keys<D>(call, map_k, map_v, shared, p, so_far);
    }
}

/* The last block of threads leaves the counters as it found them. */
ASM_INLINE void end_drawing(const tile_call &call) {
    __threadfence();
    if (atomicAdd(call.counters + 1, 1) == static_cast<int>(gridDim.x) - 1)
        call.counters[0] = call.counters[1] = 0;
}

/* What the filling warpgroup does from beginning to end. Tiles are drawn, the last tokens first, which see
 * most. */
template <int D>
ASM_INLINE void fill_all(const tile_call &call, const CUtensorMap &map_q, const CUtensorMap &map_k,
                         const CUtensorMap &map_v, const tile_memory<D> &shared) {
    const bool leads = threadIdx.x % GROUP_THREADS == 0;
    const int32_t heads = call.args.n_kv_heads;
    const int32_t tiles = (static_cast<int32_t>(call.args.T) + call.tokens - 1) / call.tokens;
    filled so_far = {0, 0};
    int32_t number = static_cast<int32_t>(blockIdx.x), drawn = 0;
    for (uint32_t turn = 0; number < tiles * heads; turn++) {
        if (leads) drawn = static_cast<int32_t>(gridDim.x) + atomicAdd(call.counters, 1);
        fill_tile<D>(call, map_q, map_k, map_v, shared, (tiles - 1 - number / heads) * call.tokens,
                     number % heads, &so_far);
        if (leads) store_word(shared.number(turn), static_cast<uint32_t>(drawn));
        threads_sync(SYNC_FILLERS, GROUP_THREADS);
        number = static_cast<int32_t>(load_word(shared.number(turn)));
    }
    if (leads) fill_piece<D>(call, map_q, shared, {0, 0, 0, 0}, so_far.pieces), end_drawing(call);
}

} // namespace

#endif
