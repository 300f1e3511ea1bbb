/* hopper_results.h - what becomes of a tile's sums: rows of bf16, elements of any layout and dtype, the
 * activation of gate and up, or the gradient of gate and up.
 *
 * A warp has 16 rows. Rows of bf16 pass through boxes of 16 x 64 in shared memory that are the warp's own,
 * so that they leave in whole parts of 16 bytes. Refuses: the products themselves (hopper_product.h). For .cu
 * files compiled for sm_90a. */
#ifndef WB_HOPPER_RESULTS_H
#define WB_HOPPER_RESULTS_H

#include "cuda/cuda_swiglu.h"
#include "cuda/hopper/hopper_tiles.h"

namespace {

/* The sums of a warp: rows [0, rows) of 16, which is below 0 or above 16 as well; row 0 is row `row` of C,
 * and column 0 of the tile is column `column`. `box` is the warp's shared memory. */
struct warp_sums {
    int lane, rows, group;
    int64_t row, column;
    uint32_t box;
};

ASM_INLINE uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
}
ASM_INLINE float low_f32(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
ASM_INLINE float high_f32(uint32_t pair) {
    return __uint_as_float(pair & 0xFFFF0000u);
}

/* ---- boxes ------------------------------------------------------------------------------------- */

enum { BOX_BYTES = 16 * 128 };

/* Part `part` of row `row` of a box, swizzled so that neither rows nor columns meet in a bank. */
ASM_INLINE uint32_t box_part(uint32_t box, int row, int part) {
    return box + row * 128 + (part ^ row % 8) * 16;
}

/* Where this lane's rows of the four 8 x 8 matrices of columns 16 j .. 16 j + 15 lie. */
ASM_INLINE uint32_t box_matrices(const warp_sums &w, uint32_t box, int j) {
    return box_part(box, w.lane % 16, 2 * j + w.lane / 16);
}

/* A box's 64 columns, v[16] as wgmma leaves them, to rows of `to` that are `stride` apart: the first
 * `columns` of them, a multiple of 8. */
ASM_INLINE void store_box(const warp_sums &w, uint32_t box, const uint32_t (&v)[16], uint16_t *to,
                          int64_t stride, int64_t columns) {
    __syncwarp(); /* what was in the box has been read */
#pragma unroll
    for (int j = 0; j < 4; j++) store_matrices(box_matrices(w, box, j), v + 4 * j);
    __syncwarp();
    const int part = w.lane % 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = w.lane / 8 + 4 * i;
        if (row < w.rows && 8 * part < columns)
            *reinterpret_cast<uint4 *>(to + row * stride + 8 * part) = load_16(box_part(box, row, part));
    }
}

ASM_INLINE void copy_to_box(const warp_sums &w, uint32_t box, const uint16_t *from, int64_t stride,
                            int64_t columns) {
    const int part = w.lane % 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = w.lane / 8 + 4 * i;
        const bool there = row < w.rows && 8 * part < columns;
        copy_16(box_part(box, row, part), from + (there ? row * stride + 8 * part : 0), there ? 16 : 0);
    }
}

/* ---- rows of bf16 ------------------------------------------------------------------------------ */

template <int HALF>
ASM_INLINE void store_rows(const wb_product &p, const warp_sums &w, const float (&sum)[HALF]) {
    uint16_t *to = static_cast<uint16_t *>(p.c.data) + w.row * p.c_row + w.column;
#pragma unroll
    for (int b = 0; b < HALF / 32; b++) {
        uint32_t v[16];
#pragma unroll
        for (int i = 0; i < 16; i++) v[i] = pack_bf16(sum[32 * b + 2 * i], sum[32 * b + 2 * i + 1]);
        store_box(w, w.box, v, to + 64 * b, p.c_row, p.N - w.column - 64 * b);
    }
}

/* ---- elements ---------------------------------------------------------------------------------- */

/* Two neighbours of a row of C, at `at` and `c_column` further on, that an op adds to or overwrites. */
template <bool ADJACENT> struct f32_pair {
    float *low, *high;
    ASM_INLINE f32_pair(const wb_product &p, int64_t at)
        : low(static_cast<float *>(p.c.data) + at), high(low + p.c_column) {}
    /* Added by the L2, which nobody waits for: each element has one adder, so that the sum is as fixed as
     * that of a load and a store. */
    ASM_INLINE void add(float2 v) const {
        if (ADJACENT)
            asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(low), "f"(v.x), "f"(v.y) : "memory");
        else
            add_one(low, v.x), add_one(high, v.y);
    }
    static ASM_INLINE void add_one(float *to, float v) {
        asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(v) : "memory");
    }
    ASM_INLINE void store(float2 v) const {
        if (ADJACENT)
            *reinterpret_cast<float2 *>(low) = v;
        else
            *low = v.x, *high = v.y;
    }
};
template <bool ADJACENT> struct bf16_pair {
    uint16_t *low, *high;
    ASM_INLINE bf16_pair(const wb_product &p, int64_t at)
        : low(static_cast<uint16_t *>(p.c.data) + at), high(low + p.c_column) {}
    ASM_INLINE void add(float2 v) const {
        store(make_float2(wb_bf16_to_f32(*low) + v.x, wb_bf16_to_f32(*high) + v.y));
    }
    ASM_INLINE void store(float2 v) const {
        if (ADJACENT)
            *reinterpret_cast<uint32_t *>(low) = pack_bf16(v.x, v.y);
        else
            *low = wb_f32_to_bf16(v.x), *high = wb_f32_to_bf16(v.y);
    }
};

template <class PAIR, int HALF>
ASM_INLINE void store_pairs(const wb_product &p, const warp_sums &w, const float (&sum)[HALF]) {
    const int64_t first = w.group * p.c_group + w.row * p.c_row;
#pragma unroll
    for (int i = 0; i < HALF / 2; i++) {
        const int64_t row = w.lane / 4 + i % 2 * 8, column = w.column + i / 2 * 8 + w.lane % 4 * 2;
        const PAIR pair(p, first + row * p.c_row + column * p.c_column);
        if (row >= w.rows || column >= p.N) continue;
        if (p.accumulate)
            pair.add(make_float2(sum[2 * i], sum[2 * i + 1]));
        else
            pair.store(make_float2(sum[2 * i], sum[2 * i + 1]));
    }
}

template <int HALF>
ASM_INLINE void store_elements(const wb_product &p, const warp_sums &w, const float (&sum)[HALF]) {
    if (p.c.dtype == WB_BF16 && p.c_column == 1)
        store_pairs<bf16_pair<true>>(p, w, sum);
    else if (p.c.dtype == WB_BF16)
        store_pairs<bf16_pair<false>>(p, w, sum);
    else if (p.c_column == 1)
        store_pairs<f32_pair<true>>(p, w, sum);
    else
        store_pairs<f32_pair<false>>(p, w, sum);
}

/* ---- gate and up ------------------------------------------------------------------------------- */

/* silu(gate) * up of gate and up as bf16 has them. */
ASM_INLINE uint32_t swiglu_pair(uint32_t gate, uint32_t up) {
    return pack_bf16(swiglu<fast_sigmoid>(low_f32(gate), low_f32(up)),
                     swiglu<fast_sigmoid>(high_f32(gate), high_f32(up)));
}

/* The first half of the tile's columns is gate, the second up, of the same columns [column, ...) of F. */
template <int HALF>
ASM_INLINE void store_swiglu(const wb_product &p, const warp_sums &w, const float (&sum)[HALF]) {
    const int64_t F = p.N / 2;
    uint16_t *to = static_cast<uint16_t *>(p.c.data) + w.row * p.c_row + w.column;
#pragma unroll
    for (int b = 0; b < HALF / 64; b++) {
        const int64_t left = F - w.column - 64 * b;
        uint32_t gate[16], up[16], act[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int at = 32 * b + 2 * i;
            gate[i] = pack_bf16(sum[at], sum[at + 1]);
            up[i] = pack_bf16(sum[HALF / 2 + at], sum[HALF / 2 + at + 1]);
            act[i] = swiglu_pair(gate[i], up[i]);
        }
        store_box(w, w.box, gate, to + 64 * b, p.c_row, left);
        store_box(w, w.box, up, to + F + 64 * b, p.c_row, left);
        store_box(w, w.box, act, p.act + w.row * F + w.column + 64 * b, F, left);
    }
}

/* Gate and up of the tile begin to come into the warp's boxes while the products are made. */
template <int HALF> ASM_INLINE void begin_dswiglu(const wb_product &p, const warp_sums &w) {
    const uint16_t *from = static_cast<const uint16_t *>(p.c.data) + w.row * p.c_row + w.column;
    __syncwarp(); /* the last tile's have been read */
#pragma unroll
    for (int b = 0; b < HALF / 32; b++) {
        const int64_t left = p.N - w.column - 64 * b;
        copy_to_box(w, w.box + 2 * b * BOX_BYTES, from + 64 * b, p.c_row, left);
        copy_to_box(w, w.box + (2 * b + 1) * BOX_BYTES, from + p.N + 64 * b, p.c_row, left);
    }
}

/* dact is rounded as an op that writes it rounds it. */
ASM_INLINE void swiglu_gradient_pair(uint32_t dact, uint32_t *gate, uint32_t *up) {
    float dgate[2], dup[2];
    swiglu_gradient<fast_sigmoid>(low_f32(*gate), low_f32(*up), low_f32(dact), &dgate[0], &dup[0]);
    swiglu_gradient<fast_sigmoid>(high_f32(*gate), high_f32(*up), high_f32(dact), &dgate[1], &dup[1]);
    *gate = pack_bf16(dgate[0], dgate[1]);
    *up = pack_bf16(dup[0], dup[1]);
}

template <int HALF>
ASM_INLINE void store_dswiglu(const wb_product &p, const warp_sums &w, const float (&sum)[HALF]) {
    uint16_t *to = static_cast<uint16_t *>(p.c.data) + w.row * p.c_row + w.column;
    copies_wait();
    __syncwarp();
#pragma unroll
    for (int b = 0; b < HALF / 32; b++) {
        const int64_t left = p.N - w.column - 64 * b;
        const uint32_t box = w.box + 2 * b * BOX_BYTES;
        uint32_t gate[16], up[16];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            load_matrices(box_matrices(w, box, j), gate + 4 * j);
            load_matrices(box_matrices(w, box + BOX_BYTES, j), up + 4 * j);
        }
#pragma unroll
        for (int i = 0; i < 16; i++)
            swiglu_gradient_pair(pack_bf16(sum[32 * b + 2 * i], sum[32 * b + 2 * i + 1]), gate + i, up + i);
        store_box(w, box, gate, to + 64 * b, p.c_row, left);
        store_box(w, box + BOX_BYTES, up, to + p.N + 64 * b, p.c_row, left);
    }
}

} // namespace

#endif
