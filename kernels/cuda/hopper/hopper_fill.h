/* hopper_fill.h - the warpgroup that fills stages: the operands of a tile, 64 k at a time, from global
 * memory into shared memory. A tensor map brings boxes of 64 columns; rows that are gathered come by copies
 * of 16 bytes of each thread. What lies beyond a matrix arrives as zeros.
 *
 * Refuses: which tile (hopper_tiles.h). For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_FILL_H
#define WB_HOPPER_FILL_H

#include "cuda/hopper/hopper_tiles.h"

namespace {

/* ---- boxes ------------------------------------------------------------------------------------- */

/* Whether B's halves, which a block of a cluster fetches each, are those of the k. */
template <class S> constexpr __host__ __device__ bool k_halves() {
    return S::FORM != WB_PRODUCT_FORWARD && S::COLUMNS % 128 != 0;
}

/* A's part for warpgroup w. Boxes of no rows are not asked for. */
template <class S> ASM_INLINE bool a_is_there(const tile &t, int w) {
    return S::FORM == WB_PRODUCT_WGRAD || t.rows > PART * w;
}

template <class S>
ASM_INLINE void fill_a(const CUtensorMap &map, const memory<S> &shared, const tile &t, int step,
                       uint32_t stage) {
    for (int w = 0; w < S::WARPGROUPS; w++) {
        const uint32_t to = shared.a(stage) + w * PART_BYTES;
        if (!a_is_there<S>(t, w)) continue;
        if constexpr (S::FORM == WB_PRODUCT_WGRAD)
            copy_box_2d(to, map, t.m + PART * w, t.row + PART * step, shared.full(stage));
        else
            copy_box_2d(to, map, PART * step, t.row + PART * w, shared.full(stage));
    }
}

/* The tensor map of B has four dimensions: FORWARD k, rows, gate or up, group; DGRAD columns, k, 1, group;
 * WGRAD columns, rows, 1, 1. B is fetched in two halves, by two blocks one each, for both: halves of the
 * columns, or of the k where the columns have no halves of whole boxes. */
template <class S>
ASM_INLINE void fill_half_b(const CUtensorMap &map, uint32_t to, uint32_t full, const tile &t, int step,
                            int half) {
    const uint16_t blocks = S::CLUSTER == 2 && !t.apart ? 3 : 0;
    constexpr int HALF = S::COLUMNS / 2;
    if constexpr (S::FORM == WB_PRODUCT_FORWARD && S::RESULT == WB_PRODUCT_SWIGLU) {
        copy_box_4d(to + half * (S::B_BYTES / 2), map, PART * step, t.n * HALF, half, t.group, full, blocks);
    } else if constexpr (S::FORM == WB_PRODUCT_FORWARD) {
        copy_box_4d(to + half * (S::B_BYTES / 2), map, PART * step, t.n * S::COLUMNS + half * HALF, 0,
                    t.group, full, blocks);
    } else {
        const int k = (S::FORM == WB_PRODUCT_WGRAD ? t.row : 0) + PART * step;
        const int group = S::FORM == WB_PRODUCT_WGRAD ? 0 : t.group;
        for (int i = 0; i < S::COLUMNS / 64; i++) {
            const int column = t.n * S::COLUMNS + 64 * i;
            if (k_halves<S>())
                copy_box_4d(to + i * PART_BYTES + half * (PART_BYTES / 2), map, column, k + half * (PART / 2),
                            0, group, full, blocks);
            else if (i / (HALF / 64) == half)
                copy_box_4d(to + i * PART_BYTES, map, column, k, 0, group, full, blocks);
        }
    }
}

template <class S>
ASM_INLINE void fill_b(const CUtensorMap &map, const memory<S> &shared, const tile &t, int step,
                       uint32_t stage, int block) {
    for (int half = 0; half < 2; half++)
        if (S::CLUSTER == 1 || t.apart || half == block)
            fill_half_b<S>(map, shared.b(stage), shared.full(stage), t, step, half);
}

/* Bytes that the boxes of a stage bring. */
template <class S> ASM_INLINE uint32_t box_bytes(const tile &t) {
    uint32_t bytes = S::B_BYTES;
    if constexpr (!S::GATHER)
        for (int w = 0; w < S::WARPGROUPS; w++) bytes += a_is_there<S>(t, w) ? PART_BYTES : 0;
    return bytes;
}

/* ---- rows that are gathered -------------------------------------------------------------------- */

/* A thread brings part `part` of the rows `row` + 16 i of each 64: eight threads a row of 128 bytes. */
struct gatherer {
    int part, row;
    uint32_t to; /* from the beginning of 64 rows, swizzled */
};

ASM_INLINE gatherer make_gatherer(int thread) {
    gatherer g = {thread % 8, thread / 8, 0};
    g.to = static_cast<uint32_t>(g.row * 128 + (g.part ^ g.row % 8) * 16);
    return g;
}

/* FORWARD: token[i] is that of row g.row + 16 i of the tile, loaded a tile ahead. */
template <class S>
ASM_INLINE void load_tokens(const wb_product &p, const gatherer &g, const tile &t, int *token) {
#pragma unroll
    for (int i = 0; i < 4 * S::WARPGROUPS; i++) {
        const int row = g.row + 16 * i;
        token[i] = row < t.rows ? p.gather[t.row + row] : -1;
    }
}

/* What this thread brings of those rows, from k = 0 on; NULL: a row beyond the tile. */
template <class S>
ASM_INLINE void find_rows(const wb_product &p, const gatherer &g, const int *token, const uint16_t **row) {
#pragma unroll
    for (int i = 0; i < 4 * S::WARPGROUPS; i++)
        row[i] = token[i] >= 0 ? p.a + token[i] * p.lda + 8 * g.part : NULL;
}

/* Rows beyond the tile's stay what they were: they reach their own results alone, which nobody stores. */
template <class S>
ASM_INLINE void gather_a(const wb_product &p, const memory<S> &shared, const gatherer &g,
                         const uint16_t *const *row, int step, uint32_t stage) {
    const int k = PART * step;
    const bool there = k + 8 * g.part < p.K;
#pragma unroll
    for (int i = 0; i < 4 * S::WARPGROUPS; i++)
        if (row[i]) copy_16(shared.a(stage) + g.to + 2048 * i, there ? row[i] + k : p.a, there ? 16 : 0);
}

/* WGRAD: rows are k; tokens of step `step`, loaded a step ahead. */
ASM_INLINE void load_step_tokens(const wb_product &p, const gatherer &g, const tile &t, int step,
                                 int *token) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = PART * step + g.row + 16 * i;
        token[i] = row < t.rows ? p.gather[t.row + row] : -1;
    }
}

template <class S>
ASM_INLINE void gather_steps_a(const wb_product &p, const memory<S> &shared, const gatherer &g, const tile &t,
                               const int *token, uint32_t stage) {
#pragma unroll
    for (int w = 0; w < S::WARPGROUPS; w++) {
        const int m = t.m + PART * w + 8 * g.part;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool there = token[i] >= 0 && m < p.M;
            copy_16(shared.a(stage) + w * PART_BYTES + g.to + 2048 * i,
                    p.a + (there ? token[i] * p.lda + m : 0), there ? 16 : 0);
        }
    }
}

/* ---- a tile, and all of them ------------------------------------------------------------------- */

template <class S>
ASM_INLINE void fill_tile(const CUtensorMap &map_a, const CUtensorMap &map_b, const wb_product &p,
                          const memory<S> &shared, const gatherer &g, const tile &t,
                          const uint16_t *const *rows, int block, int thread, ring<S::STAGES> *at) {
    int step_token[4];
    if constexpr (S::GATHER && S::FORM == WB_PRODUCT_WGRAD) load_step_tokens(p, g, t, 0, step_token);
    for (int step = 0; step < t.steps; step++, at->next()) {
        barrier_wait(shared.empty(at->at), at->parity ^ 1);
        if (thread == 0) {
            barrier_expect(shared.full(at->at), box_bytes<S>(t));
            if constexpr (!S::GATHER) fill_a<S>(map_a, shared, t, step, at->at);
            fill_b<S>(map_b, shared, t, step, at->at, block);
        }
        if constexpr (S::GATHER && S::FORM == WB_PRODUCT_WGRAD) {
            gather_steps_a<S>(p, shared, g, t, step_token, at->at);
            load_step_tokens(p, g, t, step + 1, step_token);
        } else if constexpr (S::GATHER) {
            gather_a<S>(p, shared, g, rows, step, at->at);
        }
        if constexpr (S::GATHER) copies_arrive(shared.full(at->at));
    }
}

/* What the filling warpgroup does from beginning to end: all its warps where it gathers, else the first. */
template <class S>
ASM_INLINE void fill_all(const CUtensorMap &map_a, const CUtensorMap &map_b, const wb_product &p,
                         const memory<S> &shared, int block, int thread) {
    constexpr bool AHEAD = S::GATHER && S::FORM != WB_PRODUCT_WGRAD;
    const gatherer g = make_gatherer(thread);
    const bool draws = thread < 32;
    drawer d = start_drawing<S>();
    ring<S::STAGES> stage = {0, 0};
    ring<QUEUE> queue = {0, 0};
    int tokens[8];
    const uint16_t *rows[8];
    if (draws) draw_tile<S>(p, shared, queue, block, &d);
    tile t = take_tile<S>(p, shared, &queue, block);
    if (AHEAD && t.group >= 0) load_tokens<S>(p, g, t, tokens);
    while (t.group >= 0) {
        if (draws) draw_tile<S>(p, shared, queue, block, &d);
        const tile next = take_tile<S>(p, shared, &queue, block);
        if constexpr (AHEAD) {
            find_rows<S>(p, g, tokens, rows);
            if (next.group >= 0) load_tokens<S>(p, g, next, tokens);
        }
        fill_tile<S>(map_a, map_b, p, shared, g, t, rows, block, thread, &stage);
        t = next;
    }
    if (thread == 0 && block == 0) end_drawing<S>(p);
}

} // namespace

#endif
