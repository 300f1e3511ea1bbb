/* hopper_product.h - the kernel of products on sm_90a: warpgroups that multiply a tile, stage by stage, and
 * one that fills the stages.
 *
 * An element of C is one chain of steps of 16 k in rising order, whatever the shape of the tile, so that its
 * bits depend on its row and column of A and B alone. Refuses: launching (hopper_*.cu). For .cu files
 * compiled for sm_90a. */
#ifndef WB_HOPPER_PRODUCT_H
#define WB_HOPPER_PRODUCT_H

#include "cuda/hopper/hopper_fill.h"
#include "cuda/hopper/hopper_results.h"

namespace {

/* ---- the beginning ----------------------------------------------------------------------------- */

template <class S> ASM_INLINE void init_barriers(const memory<S> &shared) {
    for (int i = 0; i < S::STAGES; i++) {
        barrier_init(shared.full(i), (S::GATHER ? WARPGROUP : 0) + 1);
        barrier_init(shared.empty(i), S::WARPS * S::CLUSTER);
    }
    for (int i = 0; i < QUEUE; i++) {
        barrier_init(shared.queue_full(i), 1);
        barrier_init(shared.queue_empty(i), S::CLUSTER * (S::WARPS + (S::GATHER ? 4 : 1)));
    }
    for (int i = 0; i < S::WARPS * S::PAIRS; i++) barrier_init(shared.pair_full(0) + 8 * i, 1);
    barrier_init_fence();
}

/* ---- multiplying ------------------------------------------------------------------------------- */

/* A warp has read the stage: one lane says so to each block that fills it. */
template <class S> ASM_INLINE void release(const memory<S> &shared, uint32_t stage, int lane) {
    if constexpr (S::CLUSTER == 2) {
        if (lane < 2) barrier_arrive_at(shared.empty(stage), lane);
    } else if (lane == 0) {
        barrier_arrive(shared.empty(stage));
    }
}

/* WGRAD's last step holds rows of the next group, which must not reach this one's sums, not even as NaN times
 * zero: they become zeros in both operands. Rows are k here, one after the other in each box. Of A where it
 * is gathered they came as zeros (gather_steps_a), so that its boxes, the first ones, stay as they are. */
template <class S> ASM_INLINE void clear_tail(const memory<S> &shared, uint32_t stage, int rows, int thread) {
    const int begin = rows * 128, left = PART_BYTES - begin;
    constexpr int FIRST = S::GATHER ? S::WARPGROUPS : 0, BOXES = S::STAGE / PART_BYTES;
    constexpr int THREADS = S::WARPGROUPS * WARPGROUP;
    for (int at = 16 * thread; at < left; at += 16 * THREADS)
        for (int box = FIRST; box < BOXES; box++)
            store_16(shared.a(stage) + box * PART_BYTES + begin + at, make_uint4(0, 0, 0, 0));
    fence_async();
    threads_sync(SYNC_MULTIPLIERS, THREADS);
}

/* sum (=) the tile's part of this warpgroup. Stages are released one step late, when their products are
 * done. `meanwhile` is called once, while products are made. */
template <class S, int HALF, class MEANWHILE>
ASM_INLINE void multiply(const memory<S> &shared, const tile &t, int warpgroup, ring<S::STAGES> *at,
                         float (&sum)[HALF], const MEANWHILE &meanwhile) {
    constexpr int A_MN = S::FORM == WB_PRODUCT_WGRAD, B_MN = S::FORM != WB_PRODUCT_FORWARD;
    constexpr int A_STEP = A_MN ? 2048 / 16 : 32 / 16, B_STEP = B_MN ? 2048 / 16 : 32 / 16;
    const int lane = threadIdx.x % 32;
    uint32_t last = 0;
    for (int step = 0; step < t.steps; step++, at->next()) {
        barrier_wait(shared.full(at->at), at->parity);
        if (S::FORM == WB_PRODUCT_WGRAD && t.rows - PART * step < PART)
            clear_tail<S>(shared, at->at, t.rows - PART * step, threadIdx.x);
        else if (S::GATHER)
            fence_async();
        wgmma_fence();
        const uint64_t a = operand_at(shared.a(at->at) + warpgroup * PART_BYTES, PART_BYTES);
        const uint64_t b = operand_at(shared.b(at->at), PART_BYTES);
#pragma unroll
        for (int i = 0; i < 4; i++) wgmma<A_MN, B_MN>(sum, a + i * A_STEP, b + i * B_STEP, step + i);
        wgmma_commit();
        if (step == min(2, t.steps - 1)) meanwhile();
        wgmma_wait<1>();
        if (step > 0) release<S>(shared, last, lane);
        last = at->at;
    }
    wgmma_wait<0>();
    sums_are_there(sum);
    if (t.steps > 0) release<S>(shared, last, lane);
}

/* A warpgroup without rows still lets the stages pass. */
template <class S> ASM_INLINE void pass_stages(const memory<S> &shared, const tile &t, ring<S::STAGES> *at) {
    for (int step = 0; step < t.steps; step++, at->next()) {
        barrier_wait(shared.full(at->at), at->parity);
        release<S>(shared, at->at, threadIdx.x % 32);
    }
}

/* ---- results ----------------------------------------------------------------------------------- */

template <class S>
ASM_INLINE warp_sums make_warp_sums(const wb_product &p, const memory<S> &shared, const tile &t) {
    const int warp = threadIdx.x / 32, first = 16 * warp;
    warp_sums w;
    w.lane = threadIdx.x % 32, w.warp = warp;
    w.group = t.group;
    w.rows = S::FORM == WB_PRODUCT_WGRAD ? p.M - t.m - first : t.rows - first;
    w.row = (S::FORM == WB_PRODUCT_WGRAD ? t.m : t.row) + first;
    w.column = t.n * (S::RESULT == WB_PRODUCT_SWIGLU ? S::COLUMNS / 2 : S::COLUMNS);
    w.boxes = shared.boxes(warp);
    return w;
}

template <class S, int HALF>
ASM_INLINE void store_results(const product_maps &maps, const wb_product &p, const memory<S> &shared,
                              const warp_sums &w, uint32_t parity, const float (&sum)[HALF]) {
    constexpr bool IN_PAIRS = S::RESULT == WB_PRODUCT_SUMS && S::GATHER;
    if (w.rows + (IN_PAIRS ? w.warp % 2 * 16 : 0) <= 0) return;
    if constexpr (S::RESULT == WB_PRODUCT_ROWS)
        store_rows<S>(maps, p, w, sum);
    else if constexpr (S::RESULT == WB_PRODUCT_ELEMENTS)
        store_elements(p, w, sum);
    else if constexpr (S::RESULT == WB_PRODUCT_SUMS)
        store_sums<S>(maps, p, w, sum);
    else if constexpr (S::RESULT == WB_PRODUCT_SWIGLU)
        store_swiglu<S>(maps, p, w, sum);
    else
        store_dswiglu<S>(maps, p, shared, w, parity, sum);
}

/* What a multiplying warpgroup does from beginning to end. */
template <class S>
ASM_INLINE void multiply_all(const product_maps &maps, const wb_product &p, const memory<S> &shared,
                             int block, int warpgroup) {
    float sum[S::COLUMNS / 2];
    ring<S::STAGES> stage = {0, 0};
    ring<QUEUE> queue = {0, 0};
    uint32_t parity = 0;
    for (tile t; (t = take_tile<S>(p, shared, &queue, block)).group >= 0;) {
        const warp_sums w = make_warp_sums<S>(p, shared, t);
        if (S::FORM != WB_PRODUCT_WGRAD && t.rows <= PART * warpgroup) {
            pass_stages<S>(shared, t, &stage);
            continue;
        }
        multiply<S>(shared, t, warpgroup, &stage, sum, [&] {
            if constexpr (S::RESULT == WB_PRODUCT_DSWIGLU) begin_dswiglu<S>(maps, p, shared, w);
        });
        store_results<S>(maps, p, shared, w, parity, sum);
        if (w.rows > 0) parity ^= 1;
    }
    if (threadIdx.x % 32 == 0) sent_wait();
}

/* ---- the kernel -------------------------------------------------------------------------------- */

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    multiply_tiles(const __grid_constant__ product_maps maps, const __grid_constant__ wb_product p) {
    extern __shared__ __align__(1024) uint8_t bytes[];
    const memory<S> shared = {shared_address(bytes)};
    const int block = S::CLUSTER > 1 ? static_cast<int>(block_in_cluster()) : 0;
    /* the same in all lanes, and known to be */
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / WARPGROUP), 0);
    if (threadIdx.x == 32) init_barriers<S>(shared);
    if (threadIdx.x == 64) prefetch_map(maps.a), prefetch_map(maps.b);
    if (threadIdx.x == 96) prefetch_map(maps.c), prefetch_map(maps.act);
    __syncthreads();
    if constexpr (S::CLUSTER > 1) cluster_sync();
    if (warpgroup == S::WARPGROUPS) {
        const int thread = static_cast<int>(threadIdx.x) % WARPGROUP;
        if constexpr (S::WARPGROUPS == 2) give_registers<72>();
        if (S::GATHER || thread < 32) fill_all<S>(maps.a, maps.b, p, shared, block, thread);
    } else {
        if constexpr (S::WARPGROUPS == 2) take_registers<216>();
        multiply_all<S>(maps, p, shared, block, warpgroup);
    }
    /* No block leaves while the other may still arrive at its barriers. */
    if constexpr (S::CLUSTER > 1) {
        __syncwarp();
        cluster_sync();
    }
}

} // namespace

#endif
