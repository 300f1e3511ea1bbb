/* hopper_attention_back_fill.h - how rows of queries and of keys come into shared memory for the backward of
 * attention on sm_90a: what the filling warpgroup of both kernels does.
 *
 * A tile of ROWS rows of D elements is D / 64 parts of ROWS rows of 128 bytes, swizzled as wgmma reads them.
 * Rows that lie one after the other come as boxes by TMA. Others come by copies of 16 bytes, so that keys may
 * lie in pages of any size, and rows that are not there are zeros: what lies beyond a run is never read, not
 * even to be multiplied by zero. For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_BACK_FILL_H
#define WB_HOPPER_ATTENTION_BACK_FILL_H

#include "cuda/hopper/hopper_attention_back.h"

namespace {

/* Bytes that will come by TMA, in this phase; the thread has still to arrive. */
ASM_INLINE void barrier_more(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* Rows [row, row + ROWS) of a matrix, its columns from `column` on. One thread. */
template <int D, int ROWS>
ASM_INLINE void fill_box(const CUtensorMap &map, int column, int row, uint32_t tile, uint32_t full) {
    barrier_more(full, ROWS * D * 2);
    for (int part = 0; part < D / 64; part++)
        for (int i = 0; i < ROWS; i += STAGE_ROWS)
            copy_box_2d(tile + (part * ROWS + i) * 128, map, column + 64 * part, row + i, full);
}

/* A thread of the filling warpgroup: of single rows it brings 16 bytes of the rows row + i * STEP; STEP is a
 * multiple of 8. */
template <int D> struct filler {
    static constexpr int STEP = WARPGROUP * 8 / D;
    bool first;
    int row, column; /* column: element */

    ASM_INLINE explicit filler(int thread)
        : first(thread == 0), row(thread / (D / 8)), column(thread % (D / 8) * 8) {}

    /* where the thread's 16 bytes of its first row lie in a tile of ROWS rows */
    template <int ROWS> ASM_INLINE uint32_t place() const {
        return static_cast<uint32_t>(column / 64 * ROWS * 128 + row * 128 +
                                     ((column % 64 / 8) ^ row % 8) * 16);
    }
};

/* Rows of one head of the tokens [begin, end), ROWS at most, zeros beyond. */
template <int D, int ROWS>
ASM_INLINE void fill_tokens(const filler<D> &f, const wb_attention &args, const CUtensorMap &map,
                            const wb_rows &rows, int head, int begin, int end, uint32_t tile, uint32_t full) {
    if (begin + ROWS <= end) {
        if (f.first) fill_box<D, ROWS>(map, head * D, begin, tile, full);
        return;
    }
    const int64_t stride = static_cast<int64_t>(args.n_heads) * D;
    const uint16_t *from =
        static_cast<const uint16_t *>(rows.data) + (begin + f.row) * stride + head * D + f.column;
    uint32_t to = tile + f.template place<ROWS>();
#pragma unroll 1
    for (int t = begin + f.row; t < begin + ROWS; t += f.STEP) {
        copy_16(to, t < end ? from : static_cast<const uint16_t *>(rows.data), t < end ? 16 : 0);
        from += f.STEP * stride, to += f.STEP * 128;
    }
}

/* Where the STAGE_ROWS keys from position j0 on lie in the pool: lane l has keys l and 32 more. Their rows
 * are made of it when they are needed, so that nobody waits for the table before. */
struct key_places {
    int32_t block[2], within[2]; /* block -1: before `begin` and from `end` on there are none */

    ASM_INLINE int32_t row(const wb_attention &args, int i) const {
        return block[i] >= 0 ? block[i] * args.block_size + within[i] : -1;
    }
};

ASM_INLINE key_places find_key_places(const wb_attention &args, int seq, int j0, int begin, int end) {
    const int32_t *blocks = args.blocks + static_cast<int64_t>(seq) * args.max_blocks;
    key_places p;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int j = j0 + static_cast<int>(threadIdx.x) % 32 + 32 * i;
        const bool there = begin <= j && j < end;
        p.block[i] = there ? blocks[j / args.block_size] : -1, p.within[i] = j % args.block_size;
    }
    return p;
}

/* Those keys' rows of kv head `kv` in `pool`, zeros where there is none, one by one. */
template <int D, int ROWS>
ASM_INLINE void fill_single_keys(const filler<D> &f, const wb_attention &args, const wb_rows &pool, int kv,
                                 const int32_t (&rows)[2], uint32_t tile) {
    const uint16_t *from = static_cast<const uint16_t *>(pool.data) + kv * D + f.column;
    uint32_t to = tile + f.template place<ROWS>();
#pragma unroll 1
    for (int key = f.row; key < STAGE_ROWS; key += f.STEP, to += f.STEP * 128) {
        const int32_t low = __shfl_sync(ALL_LANES, rows[0], key % 32);
        const int32_t high = __shfl_sync(ALL_LANES, rows[1], key % 32), row = key < 32 ? low : high;
        copy_16(to, from + static_cast<int64_t>(max(row, 0)) * (args.n_kv_heads * D), row >= 0 ? 16 : 0);
    }
}

/* Those keys and their values, into STAGE_ROWS rows of tiles of ROWS. */
template <int D, int ROWS>
ASM_INLINE void fill_keys(const filler<D> &f, const wb_attention_back &call, int kv, const key_places &p,
                          uint32_t k, uint32_t v, uint32_t full) {
    const int32_t rows[2] = {p.row(call.args, 0), p.row(call.args, 1)};
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int32_t first = __shfl_sync(ALL_LANES, rows[0], 0);
    if (__all_sync(ALL_LANES, rows[0] == first + lane && rows[1] == first + lane + 32)) {
        if (!f.first) return;
        barrier_more(full, 2 * STAGE_ROWS * D * 2);
        for (int part = 0; part < D / 64; part++) {
            copy_box_2d(k + part * ROWS * 128, call.k_map, kv * D + 64 * part, first, full);
            copy_box_2d(v + part * ROWS * 128, call.v_map, kv * D + 64 * part, first, full);
        }
        return;
    }
    fill_single_keys<D, ROWS>(f, call.args, call.args.k, kv, rows, k);
    fill_single_keys<D, ROWS>(f, call.args, call.args.v, kv, rows, v);
}

} // namespace

#endif
