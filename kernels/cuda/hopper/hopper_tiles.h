/* hopper_tiles.h - the products of matrices of bf16 on sm_90a as tiles: what a tile is, which one comes next,
 * and how its operands come into shared memory.
 *
 * A block has WARPGROUPS warpgroups that multiply, 64 rows of its tile each, and one more that fills STAGES
 * stages of 64 k with the operands. Blocks stay for the whole product and draw tiles from one counter, so
 * that those in work at one time lie side by side and share what is in the L2. Two blocks of a cluster take
 * the tiles of adjacent rows, and each fetches half of B for both.
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

/* Slots of the queue in which the first block of a cluster hands the numbers of tiles to all its threads. */
enum { QUEUE = 4 };

template <wb_product_form FORM_, wb_product_result RESULT_, bool GATHER_, int COLUMNS_, int WARPGROUPS_,
          int STAGES_, int CLUSTER_>
struct shape {
    static constexpr wb_product_form FORM = FORM_;
    static constexpr wb_product_result RESULT = RESULT_;
    static constexpr bool GATHER = GATHER_;
    static constexpr int COLUMNS = COLUMNS_, WARPGROUPS = WARPGROUPS_, STAGES = STAGES_, CLUSTER = CLUSTER_;
    static constexpr int TILE_ROWS = PART * WARPGROUPS, THREADS = WARPGROUP * (WARPGROUPS + 1);
    static constexpr int A_BYTES = TILE_ROWS * 128, B_BYTES = COLUMNS * 128, STAGE = A_BYTES + B_BYTES;
    /* a warp's boxes of 16 x 64 results: gate and up of all columns, or one */
    static constexpr int BOXES = RESULT == WB_PRODUCT_DSWIGLU ? 2 * COLUMNS / 64 : 1;
    /* after the stages, in bytes: the boxes; the barriers of stages (full, empty) and of the queue (full,
     * empty); the queue; the tiles before each group, and the offsets */
    static constexpr int BOX = STAGES * STAGE, BARRIERS = BOX + WARPGROUPS * 4 * BOXES * 2048;
    static constexpr int QUEUED = BARRIERS + 16 * STAGES + 16 * QUEUE, TABLES = QUEUED + 4 * QUEUE;
    static int shared_bytes(int n_groups) {
        return TABLES + 8 * (n_groups + 1);
    }
};

/* Addresses of a block's shared memory. */
template <class S> struct memory {
    uint32_t base;
    int32_t *tiles, *offsets; /* [n_groups + 1] */

    ASM_INLINE uint32_t a(uint32_t stage) const {
        return base + stage * S::STAGE;
    }
    ASM_INLINE uint32_t b(uint32_t stage) const {
        return a(stage) + S::A_BYTES;
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
    ASM_INLINE uint32_t queued(uint32_t slot) const {
        return base + S::QUEUED + 4 * slot;
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

/* A block's tile: rows of A [row, row + rows), of which there may be none; rows and columns of C; stages. */
struct tile {
    int group, row, rows, m, n, steps;
};

/* Tiles along the columns, and those of WGRAD along the rows of C, a whole number of clusters. */
template <class S> ASM_INLINE int column_tiles(const wb_product &p) {
    const int wide = S::RESULT == WB_PRODUCT_SWIGLU ? S::COLUMNS / 2 : S::COLUMNS;
    const int n = S::RESULT == WB_PRODUCT_SWIGLU ? p.N / 2 : p.N;
    return (n + wide - 1) / wide;
}
template <class S> ASM_INLINE int cluster_row_tiles(const wb_product &p) {
    const int rows = S::TILE_ROWS * S::CLUSTER;
    return (p.M + rows - 1) / rows;
}

/* Where tile `number` of this block's cluster lies. `group` only rises from call to call. Columns change
 * fastest, so that a tile's rows of A are read into the L2 once. */
template <class S>
ASM_INLINE tile find_tile(const wb_product &p, const memory<S> &shared, int number, int *group, int block) {
    const int across = column_tiles<S>(p);
    tile t;
    if constexpr (S::FORM == WB_PRODUCT_WGRAD) {
        const int each = cluster_row_tiles<S>(p) * across, rest = number % each;
        *group = number / each;
        t.n = rest % across, t.m = (rest / across * S::CLUSTER + block) * S::TILE_ROWS;
        t.row = shared.offsets[*group], t.rows = shared.offsets[*group + 1] - t.row;
        t.steps = (t.rows + PART - 1) / PART;
    } else {
        while (shared.tiles[*group + 1] * across <= number) ++*group;
        const int rest = number - shared.tiles[*group] * across, first = rest / across;
        const int begin = shared.offsets[*group] + first * S::TILE_ROWS * S::CLUSTER;
        const int left = shared.offsets[*group + 1] - begin;
        /* The last rows of a group are shared out evenly between two blocks. */
        const int share = S::CLUSTER == 2 && left <= S::TILE_ROWS ? S::TILE_ROWS / 2 : S::TILE_ROWS;
        t.n = rest % across, t.m = 0;
        t.row = begin + block * share, t.rows = min(share, left - block * share);
        t.steps = (p.K + PART - 1) / PART;
    }
    t.group = *group;
    return t;
}

/* Fills `tiles` and `offsets` of the shared memory: one warp. */
template <class S> ASM_INLINE void count_tiles(const wb_product &p, const memory<S> &shared) {
    const int lane = threadIdx.x, rows = S::TILE_ROWS * S::CLUSTER;
    int total = 0;
    for (int first = 0; first < p.n_groups; first += 32) {
        const int g = first + lane, there = g < p.n_groups;
        const int begin = there && p.offsets ? p.offsets[g] : 0;
        const int end = !there ? 0 : p.offsets ? p.offsets[g + 1] : p.rows;
        int sum = (end - begin + rows - 1) / rows;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? other : 0;
        }
        if (there) shared.tiles[g + 1] = total + sum, shared.offsets[g + 1] = end;
        total += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (lane == 0) shared.tiles[0] = 0, shared.offsets[0] = p.offsets ? p.offsets[0] : 0;
}

/* All tiles of a cluster's numbering. */
template <class S> ASM_INLINE int all_tiles(const wb_product &p, const memory<S> &shared) {
    if constexpr (S::FORM == WB_PRODUCT_WGRAD)
        return p.n_groups * cluster_row_tiles<S>(p) * column_tiles<S>(p);
    return shared.tiles[p.n_groups] * column_tiles<S>(p);
}

/* ---- the queue of tiles ------------------------------------------------------------------------ */

/* The next number for this thread's warp, or for this thread where it is the only one that fills. */
template <class S, bool WHOLE_WARP> ASM_INLINE int take_tile(const memory<S> &shared, ring<QUEUE> *at) {
    barrier_wait(shared.queue_full(at->at), at->parity);
    const int number = static_cast<int>(load_word(shared.queued(at->at)));
    if (WHOLE_WARP) __syncwarp();
    if (!WHOLE_WARP || threadIdx.x % 32 == 0) {
        if constexpr (S::CLUSTER == 1)
            barrier_arrive(shared.queue_empty(at->at));
        else
            barrier_arrive_at(shared.queue_empty(at->at), 0);
    }
    at->next();
    return number;
}

/* Hands a number to all threads of the cluster: called by one thread of each block; that of the first block
 * has the number. */
template <class S> ASM_INLINE void put_tile(const memory<S> &shared, ring<QUEUE> at, int number, int block) {
    if constexpr (S::CLUSTER > 1) barrier_expect(shared.queue_full(at.at), 4);
    if (block != 0) return;
    barrier_wait(shared.queue_empty(at.at), at.parity ^ 1);
    const uint32_t word = static_cast<uint32_t>(number);
    if constexpr (S::CLUSTER == 1) {
        store_word(shared.queued(at.at), word);
        barrier_arrive(shared.queue_full(at.at));
    } else {
        for (int b = 0; b < S::CLUSTER; b++)
            store_word_at(shared.queued(at.at), word, shared.queue_full(at.at), b);
    }
}

/* The counter's next number. The first numbers are the clusters' own. */
ASM_INLINE int draw_tile(const wb_product &p, int clusters) {
    return clusters + atomicAdd(p.counters, 1);
}

/* The last cluster leaves the counters as it found them. One thread of each cluster. */
ASM_INLINE void end_drawing(const wb_product &p, int clusters) {
    __threadfence();
    if (atomicAdd(p.counters + 1, 1) == clusters - 1) p.counters[0] = p.counters[1] = 0;
}

} // namespace

#endif
