/* hopper_boxes.h - how a warp's results leave: through boxes of 16 rows of 128 bytes in shared memory that
 * are its own, from which TMA takes them while the warp goes on.
 *
 * Where a warp has fewer than 16 rows, or a box fewer columns, its threads store what there is, so that
 * neighbours' rows and columns stay as they are. Refuses: what is in a box (hopper_results.h). For .cu files
 * compiled for sm_90a. */
#ifndef WB_HOPPER_BOXES_H
#define WB_HOPPER_BOXES_H

#include "cuda/hopper/hopper_tiles.h"

namespace {

/* The sums of a warp: rows [0, rows) of 16, which is below 0 or above 16 as well; row 0 is row `row` of C,
 * and column 0 of the tile is column `column`. `boxes`: the warp's shared memory. */
struct warp_sums {
    int lane, warp, rows, group, row, column;
    uint32_t boxes;
};

/* Part `part` of row `row` of a box, swizzled so that neither rows nor columns meet in a bank. */
ASM_INLINE uint32_t box_part(uint32_t box, int row, int part) {
    return box + row * 128 + (part ^ row % 8) * 16;
}

/* Where this lane's rows of the four 8 x 8 matrices of columns 16 j .. 16 j + 15 lie. */
ASM_INLINE uint32_t box_matrices(const warp_sums &w, uint32_t box, int j) {
    return box_part(box, w.lane % 16, 2 * j + w.lane / 16);
}

/* Box `number` of a tile, counted from 0: they are used in turn, and each when what was in it has left. */
template <int BOXES> ASM_INLINE uint32_t take_box(const warp_sums &w, int number) {
    if (w.lane == 0 && number == 0) sent_wait_read<0>();
    if (w.lane == 0 && number >= BOXES) sent_wait_read<BOXES - 1>();
    __syncwarp();
    return w.boxes + number % BOXES * BOX_BYTES;
}

/* All lanes have written the box: TMA may read it. */
ASM_INLINE void box_is_full() {
    fence_async();
    __syncwarp();
}

/* 64 columns of rows of bf16, those from `column` on, of which there are `left`, a multiple of 8. */
ASM_INLINE void send_rows(const warp_sums &w, const CUtensorMap &map, uint32_t box, uint16_t *c,
                          int64_t stride, int column, int left) {
    box_is_full();
    if (w.rows >= 16 && left >= 64) {
        if (w.lane == 0) send_box_2d(map, box, column, w.row);
    } else {
        const int part = w.lane % 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = w.lane / 8 + 4 * i;
            if (row < w.rows && 8 * part < left)
                *reinterpret_cast<uint4 *>(c + (w.row + row) * stride + column + 8 * part) =
                    load_16(box_part(box, row, part));
        }
        /* TMA may be the next that writes here. */
        fence_async();
    }
    if (w.lane == 0) sent_group();
}

/* v[16] as wgmma leaves 64 columns, as rows of bf16. */
template <int BOXES>
ASM_INLINE void store_columns(const warp_sums &w, const CUtensorMap &map, int number, const uint32_t (&v)[16],
                              uint16_t *c, int64_t stride, int column, int left) {
    const uint32_t box = take_box<BOXES>(w, number);
#pragma unroll
    for (int j = 0; j < 4; j++) store_matrices(box_matrices(w, box, j), v + 4 * j);
    send_rows(w, map, box, c, stride, column, left);
}

/* ---- boxes of f32 ------------------------------------------------------------------------------ */

/* To [group][y][x] of C, which has ends where TMA cuts it off. */
ASM_INLINE void send_f32(const warp_sums &w, const CUtensorMap &map, uint32_t box, int x, int y,
                         bool accumulate) {
    if (accumulate)
        add_box_3d(map, box, x, y, w.group);
    else
        send_box_3d(map, box, x, y, w.group);
    sent_group();
}

/* 16 rows and 32 columns. */
ASM_INLINE void send_sums(const warp_sums &w, const CUtensorMap &map, uint32_t box, int column,
                          bool accumulate) {
    box_is_full();
    if (w.lane == 0) send_f32(w, map, box, column, w.row, accumulate);
}

/* Where C's rows are columns of the product, two warps share boxes of twice the size: their 32 rows, which
 * are 128 adjacent bytes of C, by 32 columns. A warp alone would have 64. The even warp sends. */
ASM_INLINE void pair_sync(const warp_sums &w) {
    threads_sync(SYNC_PAIRS + w.warp / 2, 64);
}

template <int BOXES> ASM_INLINE uint32_t take_pair_box(const warp_sums &w, int number) {
    const bool sends = w.lane == 0 && w.warp % 2 == 0;
    if (sends && number == 0) sent_wait_read<0>();
    if (sends && number >= BOXES) sent_wait_read<BOXES - 1>();
    pair_sync(w);
    return w.boxes - w.warp % 2 * BOXES * BOX_BYTES + number % BOXES * 2 * BOX_BYTES;
}

ASM_INLINE void send_pair_sums(const warp_sums &w, const CUtensorMap &map, uint32_t box, int column,
                               bool accumulate) {
    fence_async();
    pair_sync(w);
    if (w.lane == 0 && w.warp % 2 == 0) send_f32(w, map, box, w.row, column, accumulate);
}

} // namespace

#endif
