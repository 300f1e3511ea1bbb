/* hopper_tiles.h - the products of matrices of bf16 on sm_90a as tiles: what a tile is, which one comes next,
 * and where a block's shared memory has what.
 *
 * A block has WARPGROUPS warpgroups that multiply, 64 rows of its tile each, and one more that fills STAGES
 * stages of 64 k with the operands. Blocks stay for the whole product and draw tiles from one counter, so
 * that those in work at one time lie side by side and share what is in the L2. Two blocks of a cluster take
 * the tiles of adjacent rows, and each fetches half of B for both; or, where a group has rows left for one
 * block alone, adjacent columns of these. One warp of a cluster looks up where a tile lies and tells all
 * others, who would otherwise divide.
 *
 * Refuses: multiplying (hopper_product.h), what becomes of sums (hopper_results.h). For .cu files compiled
 * for sm_90a. */
#ifndef WB_HOPPER_TILES_H
#define WB_HOPPER_TILES_H

#include "cuda/hopper/hopper_call.h"
#include "cuda/hopper/hopper_ptx.h"

namespace {

/* Rows of a warpgroup's part of a tile, k of a stage, and the bytes of such a part of A: 64 rows of 128. */
enum { PART = 64, PART_BYTES = PART * 128, WARPGROUP = 128 };

/* Numbers of threads_sync: 0 is __syncthreads; from SYNC_PAIRS on one for each two warps that multiply. */
enum { SYNC_MULTIPLIERS = 1, SYNC_PAIRS = 2 };

/* Bytes of a box of results: 16 rows of 128. */
enum { BOX_BYTES = 16 * 128 };

/* Slots of the queue in which a cluster's first block hands tiles to all its threads. */
enum { QUEUE = 4 };

/* BOXES: of each warp, for the results on their way out. */
template <wb_product_form FORM_, wb_product_result RESULT_, bool GATHER_, int COLUMNS_, int WARPGROUPS_,
          int STAGES_, int CLUSTER_, int BOXES_>
struct shape {
    static constexpr wb_product_form FORM = FORM_;
    static constexpr wb_product_result RESULT = RESULT_;
    static constexpr bool GATHER = GATHER_;
    static constexpr int COLUMNS = COLUMNS_, WARPGROUPS = WARPGROUPS_, STAGES = STAGES_, CLUSTER = CLUSTER_,
                         BOXES = BOXES_;
    static constexpr int TILE_ROWS = PART * WARPGROUPS, THREADS = WARPGROUP * (WARPGROUPS + 1);
    static constexpr int A_BYTES = TILE_ROWS * 128, B_BYTES = COLUMNS * 128, STAGE = A_BYTES + B_BYTES;
    /* DSWIGLU: pairs of boxes of a warp's part of a tile, gate and up of 64 columns */
    static constexpr int WARPS = 4 * WARPGROUPS, PAIRS = RESULT == WB_PRODUCT_DSWIGLU ? COLUMNS / 64 : 0;
    /* after the stages, in bytes: the boxes; the queue; the barriers of stages (full, empty), of the queue
     * (full, empty) and of each warp's pairs of boxes */
    static constexpr int BOX = STAGES * STAGE, QUEUED = BOX + WARPS * BOXES * BOX_BYTES;
    static constexpr int BARRIERS = QUEUED + 16 * QUEUE;
    static constexpr int SHARED_BYTES = BARRIERS + 8 * (2 * STAGES + 2 * QUEUE + WARPS * PAIRS);
};

/* Addresses of a block's shared memory. */
template <class S> struct memory {
    uint32_t base;

    ASM_INLINE uint32_t a(uint32_t stage) const {
        return base + stage * S::STAGE;
    }
    ASM_INLINE uint32_t b(uint32_t stage) const {
        return a(stage) + S::A_BYTES;
    }
    ASM_INLINE uint32_t boxes(uint32_t warp) const {
        return base + S::BOX + warp * S::BOXES * BOX_BYTES;
    }
    ASM_INLINE uint32_t full(uint32_t stage) const {
        return base + S::BARRIERS + 8 * stage;
    }
    ASM_INLINE uint32_t empty(uint32_t stage) const {
        return full(S::STAGES + stage);
    }
    ASM_INLINE uint32_t queue_full(uint32_t slot) const {
        return full(2 * S::STAGES + slot);
    }
    ASM_INLINE uint32_t queue_empty(uint32_t slot) const {
        return full(2 * S::STAGES + QUEUE + slot);
    }
    ASM_INLINE uint32_t pair_full(uint32_t warp) const {
        return full(2 * S::STAGES + 2 * QUEUE + warp * S::PAIRS);
    }
    ASM_INLINE uint32_t queued(uint32_t slot) const {
        return base + S::QUEUED + 16 * slot;
    }
};

/* A place that goes round in a ring of stages or slots, and the parity of its barriers' phase. */
template <int N> struct ring {
    uint32_t at, parity;
    ASM_INLINE void next() {
        if (++at == N) at = 0, parity ^= 1;
    }
};

/* ---- which tile -------------------------------------------------------------------------------- */

/* Tiles along the columns, and those of WGRAD along the rows of C, a whole number of clusters. */
template <class S> ASM_INLINE int column_tiles(const wb_product &p) {
    const int wide = S::RESULT == WB_PRODUCT_SWIGLU ? S::COLUMNS / 2 : S::COLUMNS;
    const int n = S::RESULT == WB_PRODUCT_SWIGLU ? p.N / 2 : p.N;
    return (n + wide - 1) / wide;
}

/* Whether the blocks of a cluster take tiles apart, of the same rows, since one has room for all that are
 * left. */
template <class S> ASM_INLINE bool takes_apart(int left) {
    return S::FORM != WB_PRODUCT_WGRAD && S::CLUSTER == 2 && left <= S::TILE_ROWS;
}

/* A cluster's tiles of a group with so many rows. One without rows has none of WGRAD either, where it would
 * add nothing to its gradient. */
template <class S> ASM_INLINE int tiles_of_rows(const wb_product &p, int rows) {
    constexpr int each = S::TILE_ROWS * S::CLUSTER;
    const int across = column_tiles<S>(p), left = rows % each;
    if (S::FORM == WB_PRODUCT_WGRAD) return rows == 0 && p.accumulate ? 0 : (p.M + each - 1) / each * across;
    return rows / each * across + (left == 0 ? 0 : takes_apart<S>(left) ? (across + 1) / 2 : across);
}

/* 32 groups from `first` on, one for each lane of a warp: its rows, and the tiles before it; `after`: those
 * before the next 32. */
struct groups_in_view {
    int first, begin, end, before, after;
};

template <class S> ASM_INLINE void view_next(const wb_product &p, int lane, groups_in_view *v) {
    v->first += 32;
    const int g = v->first + lane, there = g < p.n_groups;
    v->begin = there && p.offsets ? p.offsets[g] : 0;
    v->end = !there ? 0 : p.offsets ? p.offsets[g + 1] : p.rows;
    const int own = there ? tiles_of_rows<S>(p, v->end - v->begin) : 0;
    int sum = own;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? other : 0;
    }
    v->before = v->after + sum - own;
    v->after += __shfl_sync(0xffffffffu, sum, 31);
}

/* What a cluster is told of a tile: its group, or -1 behind the last tile; the first row and how many from
 * there to the group's end; the number of its columns, and of its rows of C (WGRAD) times 2^16. Where tiles
 * are taken apart, the columns are those of the first block.
 *
 * Tile `number` of the cluster, which only rises from call to call: a whole warp. Columns change fastest, so
 * that a tile's rows of A are read into the L2 once. */
template <class S> ASM_INLINE uint4 find_tile(const wb_product &p, int number, int lane, groups_in_view *v) {
    while (number >= v->after) {
        if (v->first + 32 >= p.n_groups) return make_uint4(0xffffffffu, 0, 0, 0);
        view_next<S>(p, lane, v);
    }
    const int owner = 31 - __clz(static_cast<int>(__ballot_sync(0xffffffffu, v->before <= number)));
    const int rest = number - __shfl_sync(0xffffffffu, v->before, owner), across = column_tiles<S>(p);
    const int down = rest / across, n = rest - down * across;
    const int skip = S::FORM == WB_PRODUCT_WGRAD ? 0 : down * S::TILE_ROWS * S::CLUSTER;
    const int row = __shfl_sync(0xffffffffu, v->begin, owner) + skip;
    const int left = __shfl_sync(0xffffffffu, v->end, owner) - row;
    const int m = S::FORM == WB_PRODUCT_WGRAD ? down << 16 : 0;
    return make_uint4(static_cast<unsigned>(v->first + owner), static_cast<unsigned>(row),
                      static_cast<unsigned>(left),
                      static_cast<unsigned>(m | (takes_apart<S>(left) ? 2 * n : n)));
}

/* A block's tile: rows of A [row, row + rows), of which there may be none; rows and columns of C; stages;
 * whether B is this block's alone. */
struct tile {
    int group, row, rows, m, n, steps;
    bool apart;
};

template <class S> ASM_INLINE tile tile_of(const wb_product &p, const uint4 &told, int block) {
    const int row = static_cast<int>(told.y), left = static_cast<int>(told.z);
    tile t;
    t.group = static_cast<int>(told.x), t.apart = takes_apart<S>(left);
    if constexpr (S::FORM == WB_PRODUCT_WGRAD) {
        t.n = static_cast<int>(told.w & 0xffff);
        t.m = (static_cast<int>(told.w >> 16) * S::CLUSTER + block) * S::TILE_ROWS;
        /* Without rows one step of zeros, which overwrites. */
        t.row = row, t.rows = left, t.steps = max(1, (left + PART - 1) / PART);
    } else {
        const int skip = t.apart ? 0 : block * S::TILE_ROWS;
        t.n = static_cast<int>(told.w) + (t.apart ? block : 0), t.m = 0;
        t.row = row + skip, t.rows = t.n < column_tiles<S>(p) ? min(S::TILE_ROWS, left - skip) : 0;
        t.steps = (p.K + PART - 1) / PART;
    }
    return t;
}

/* ---- the queue of tiles ------------------------------------------------------------------------ */

/* The next tile, for this thread's warp. */
template <class S>
ASM_INLINE tile take_tile(const wb_product &p, const memory<S> &shared, ring<QUEUE> *at, int block) {
    barrier_wait(shared.queue_full(at->at), at->parity);
    const uint4 told = load_16(shared.queued(at->at));
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        if constexpr (S::CLUSTER == 1)
            barrier_arrive(shared.queue_empty(at->at));
        else
            barrier_arrive_at(shared.queue_empty(at->at), 0);
    }
    at->next();
    return tile_of<S>(p, told, block);
}

/* Hands a tile to all threads of the cluster: called by one thread of each block; that of the first block
 * knows the tile. */
template <class S> ASM_INLINE void put_tile(const memory<S> &shared, ring<QUEUE> at, uint4 told, int block) {
    if constexpr (S::CLUSTER > 1) barrier_expect(shared.queue_full(at.at), 16);
    if (block != 0) return;
    barrier_wait(shared.queue_empty(at.at), at.parity ^ 1);
    if constexpr (S::CLUSTER == 1) {
        store_16(shared.queued(at.at), told);
        barrier_arrive(shared.queue_full(at.at));
    } else {
        for (int b = 0; b < S::CLUSTER; b++)
            store_16_at(shared.queued(at.at), told, shared.queue_full(at.at), b);
    }
}

/* One warp of a block draws: in the first block of a cluster it asks the counter a tile ahead, so that nobody
 * waits for the answer, finds the tile and tells. The first numbers are the clusters' own. */
struct drawer {
    groups_in_view view;
    int next; /* lane 0 */
};

template <class S> ASM_INLINE drawer start_drawing() {
    return {{-32, 0, 0, 0, 0}, static_cast<int>(blockIdx.x) / S::CLUSTER};
}

template <class S>
ASM_INLINE void draw_tile(const wb_product &p, const memory<S> &shared, ring<QUEUE> at, int block,
                          drawer *d) {
    const int lane = threadIdx.x % 32;
    uint4 told = make_uint4(0, 0, 0, 0);
    if (block == 0) {
        told = find_tile<S>(p, __shfl_sync(0xffffffffu, d->next, 0), lane, &d->view);
        if (lane == 0) d->next = static_cast<int>(gridDim.x) / S::CLUSTER + atomicAdd(p.counters, 1);
    }
    if (lane == 0) put_tile<S>(shared, at, told, block);
    __syncwarp();
}

/* The last cluster leaves the counters as it found them. One thread of each cluster. */
template <class S> ASM_INLINE void end_drawing(const wb_product &p) {
    __threadfence();
    if (atomicAdd(p.counters + 1, 1) == static_cast<int>(gridDim.x) / S::CLUSTER - 1)
        p.counters[0] = p.counters[1] = 0;
}

} // namespace

#endif
