/* hopper_results.h - what becomes of a tile's sums: rows of bf16, elements of either dtype, matrices of f32
 * that are overwritten or added to, the activation of gate and up, or the gradient of gate and up.
 *
 * Refuses: the products themselves (hopper_product.h), how boxes leave (hopper_boxes.h). For .cu files
 * compiled for sm_90a. */
#ifndef WB_HOPPER_RESULTS_H
#define WB_HOPPER_RESULTS_H

#include "cuda/cuda_swiglu.h"
#include "cuda/hopper/hopper_boxes.h"

namespace {

/* How the kernel's operands and results lie: A where it is not gathered, B, C where boxes take it, act. */
struct product_maps {
    CUtensorMap a, b, c, act;
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

/* ---- rows of bf16 ------------------------------------------------------------------------------ */

template <class S, int HALF>
ASM_INLINE void store_rows(const product_maps &maps, const wb_product &p, const warp_sums &w,
                           const float (&sum)[HALF]) {
    uint16_t *const c = static_cast<uint16_t *>(p.c.data);
#pragma unroll
    for (int b = 0; b < HALF / 32; b++) {
        const int column = w.column + 64 * b;
        uint32_t v[16];
        if (column >= p.N) break;
#pragma unroll
        for (int i = 0; i < 16; i++) v[i] = pack_bf16(sum[32 * b + 2 * i], sum[32 * b + 2 * i + 1]);
        store_columns<S::BOXES>(w, maps.c, b, v, c, p.c_row, column, p.N - column);
    }
}

/* ---- elements ---------------------------------------------------------------------------------- */

/* Two neighbours of a row of C that an op adds to or overwrites. */
struct f32_pair {
    float2 *at;
    ASM_INLINE f32_pair(const wb_product &p, int64_t first)
        : at(reinterpret_cast<float2 *>(static_cast<float *>(p.c.data) + first)) {}
    /* Added by the L2, which nobody waits for: each element has one adder, so that the sum is as fixed as
     * that of a load and a store. */
    ASM_INLINE void add(float2 v) const {
        asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(at), "f"(v.x), "f"(v.y) : "memory");
    }
    ASM_INLINE void store(float2 v) const {
        *at = v;
    }
};
struct bf16_pair {
    uint32_t *at;
    ASM_INLINE bf16_pair(const wb_product &p, int64_t first)
        : at(reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(p.c.data) + first)) {}
    ASM_INLINE void add(float2 v) const {
        store(make_float2(low_f32(*at) + v.x, high_f32(*at) + v.y));
    }
    ASM_INLINE void store(float2 v) const {
        *at = pack_bf16(v.x, v.y);
    }
};

template <class PAIR, int HALF>
ASM_INLINE void store_pairs(const wb_product &p, const warp_sums &w, const float (&sum)[HALF]) {
    const int64_t first = w.group * p.c_group + w.row * p.c_row;
#pragma unroll
    for (int i = 0; i < HALF / 2; i++) {
        const int row = w.lane / 4 + i % 2 * 8, column = w.column + i / 2 * 8 + w.lane % 4 * 2;
        const PAIR pair(p, first + row * p.c_row + column);
        if (row >= w.rows || column >= p.N) continue;
        if (p.accumulate)
            pair.add(make_float2(sum[2 * i], sum[2 * i + 1]));
        else
            pair.store(make_float2(sum[2 * i], sum[2 * i + 1]));
    }
}

template <int HALF>
ASM_INLINE void store_elements(const wb_product &p, const warp_sums &w, const float (&sum)[HALF]) {
    if (p.c.dtype == WB_BF16)
        store_pairs<bf16_pair>(p, w, sum);
    else
        store_pairs<f32_pair>(p, w, sum);
}

/* ---- matrices of f32 --------------------------------------------------------------------------- */

/* Sums s[16] of 16 rows and 32 columns, into a box whose rows are those of C. A lane has two neighbours of
 * two rows, 8 columns apart. Lanes of odd rows exchange the order of their columns, so that no two of half a
 * warp meet in a bank. */
ASM_INLINE void put_rows_f32(const warp_sums &w, uint32_t box, const float *s) {
    const int row = w.lane / 4;
    const bool odd = row % 2;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int half = i % 2, j = i / 2, other = j ^ 2, at = 4 * j + 2 * half, far = 4 * other + 2 * half;
        const int part = 2 * (odd ? other : j) + w.lane % 4 / 2;
        store_two_f32(box_part(box, row + 8 * half, part) + 8 * (w.lane % 2), odd ? s[far] : s[at],
                      odd ? s[far + 1] : s[at + 1]);
    }
}

/* The same into a box whose rows are columns of the product, and which the warps of a pair share. */
ASM_INLINE void put_columns_f32(const warp_sums &w, uint32_t box, const float *s) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const int column = i / 4 * 8 + w.lane % 4 * 2 + i % 2,
                  row = w.warp % 2 * 16 + w.lane / 4 + i / 2 % 2 * 8;
        store_f32(box_part(box, column, row / 4) + row % 4 * 4, s[i]);
    }
}

template <class S, int HALF>
ASM_INLINE void store_sums(const product_maps &maps, const wb_product &p, const warp_sums &w,
                           const float (&sum)[HALF]) {
#pragma unroll
    for (int b = 0; b < HALF / 16; b++) {
        const int column = w.column + 32 * b;
        if (column >= p.N) break;
        if constexpr (S::GATHER) {
            const uint32_t box = take_pair_box<S::BOXES>(w, b);
            put_columns_f32(w, box, sum + 16 * b);
            send_pair_sums(w, maps.c, box, column, p.accumulate);
        } else {
            const uint32_t box = take_box<S::BOXES>(w, b);
            put_rows_f32(w, box, sum + 16 * b);
            send_sums(w, maps.c, box, column, p.accumulate);
        }
    }
}

/* ---- gate and up ------------------------------------------------------------------------------- */

/* silu(gate) * up of gate and up as bf16 has them. */
ASM_INLINE uint32_t swiglu_pair(uint32_t gate, uint32_t up) {
    return pack_bf16(swiglu<fast_sigmoid>(low_f32(gate), low_f32(up)),
                     swiglu<fast_sigmoid>(high_f32(gate), high_f32(up)));
}

/* The first half of the tile's columns is gate, the second up, of the same columns [column, ...) of F. Boxes
 * have the numbers that they have where gate and up are kept: without those, of two boxes act takes the one
 * and the other in turn. */
template <class S, int HALF>
ASM_INLINE void store_swiglu(const product_maps &maps, const wb_product &p, const warp_sums &w,
                             const float (&sum)[HALF]) {
    const int F = p.N / 2;
    uint16_t *const c = static_cast<uint16_t *>(p.c.data);
#pragma unroll
    for (int b = 0; b < HALF / 64; b++) {
        const int column = w.column + 64 * b, left = F - column;
        uint32_t gate[16], up[16], act[16];
        if (left <= 0) break;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int at = 32 * b + 2 * i;
            gate[i] = pack_bf16(sum[at], sum[at + 1]);
            up[i] = pack_bf16(sum[HALF / 2 + at], sum[HALF / 2 + at + 1]);
            act[i] = swiglu_pair(gate[i], up[i]);
        }
        store_columns<S::BOXES>(w, maps.act, 3 * b, act, p.act, F, column, left);
        if (!c) continue;
        store_columns<S::BOXES>(w, maps.c, 3 * b + 1, gate, c, p.c_row, column, left);
        store_columns<S::BOXES>(w, maps.c, 3 * b + 2, up, c, p.c_row, F + column, left);
    }
}

/* ---- the gradient of gate and up --------------------------------------------------------------- */

/* Gate and up of 64 columns of the tile begin to come into a pair of the warp's boxes: lane 0. */
template <class S>
ASM_INLINE void load_pair(const product_maps &maps, const wb_product &p, const memory<S> &shared,
                          const warp_sums &w, int b) {
    constexpr int ROOM = S::BOXES / 2;
    const uint32_t box = w.boxes + 2 * (b % ROOM) * BOX_BYTES, full = shared.pair_full(w.warp) + 8 * b;
    barrier_expect(full, 2 * BOX_BYTES);
    copy_box_2d(box, maps.c, w.column + 64 * b, w.row, full);
    copy_box_2d(box + BOX_BYTES, maps.c, p.N + w.column + 64 * b, w.row, full);
}

/* As many as there is room for, while the products are made; the others come into the L2. */
template <class S>
ASM_INLINE void begin_dswiglu(const product_maps &maps, const wb_product &p, const memory<S> &shared,
                              const warp_sums &w) {
    constexpr int ROOM = S::BOXES / 2;
    __syncwarp();
    if (w.lane != 0 || w.rows <= 0) return;
    sent_wait_read<0>(); /* the last tile's have left */
    for (int b = 0; b < ROOM && b < S::PAIRS; b++) load_pair<S>(maps, p, shared, w, b);
    for (int b = ROOM; b < S::PAIRS; b++) {
        prefetch_box_2d(maps.c, w.column + 64 * b, w.row);
        prefetch_box_2d(maps.c, p.N + w.column + 64 * b, w.row);
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

/* Sums s[16] of 32 columns, those from 16 j on, in the boxes of gate and of up. */
ASM_INLINE void put_gradient(const warp_sums &w, uint32_t gate_box, uint32_t up_box, int j, const float *s) {
#pragma unroll
    for (int end = j + 2; j < end; j++, s += 8) {
        uint32_t gate[4], up[4];
        load_matrices(box_matrices(w, gate_box, j), gate);
        load_matrices(box_matrices(w, up_box, j), up);
#pragma unroll
        for (int i = 0; i < 4; i++) swiglu_gradient_pair(pack_bf16(s[2 * i], s[2 * i + 1]), gate + i, up + i);
        store_matrices(box_matrices(w, gate_box, j), gate);
        store_matrices(box_matrices(w, up_box, j), up);
    }
}

/* `parity`: of the pairs' barriers. A pair's boxes are filled again when they have left, which is so half a
 * pair later. */
template <class S, int HALF>
ASM_INLINE void store_dswiglu(const product_maps &maps, const wb_product &p, const memory<S> &shared,
                              const warp_sums &w, uint32_t parity, const float (&sum)[HALF]) {
    constexpr int ROOM = S::BOXES / 2;
    uint16_t *const c = static_cast<uint16_t *>(p.c.data);
#pragma unroll
    for (int b = 0; b < S::PAIRS; b++) {
        const uint32_t gate = w.boxes + 2 * (b % ROOM) * BOX_BYTES, up = gate + BOX_BYTES;
        const int column = w.column + 64 * b, left = p.N - column, next = b - 1 + ROOM;
        barrier_wait(shared.pair_full(w.warp) + 8 * b, parity);
        put_gradient(w, gate, up, 0, sum + 32 * b);
        if (b > 0 && next < S::PAIRS) {
            __syncwarp();
            if (w.lane == 0) sent_wait_read<0>(), load_pair<S>(maps, p, shared, w, next);
        }
        put_gradient(w, gate, up, 2, sum + 32 * b + 16);
        send_rows(w, maps.c, gate, c, p.c_row, column, left);
        send_rows(w, maps.c, up, c, p.c_row, p.N + column, left);
    }
}

} // namespace

#endif
