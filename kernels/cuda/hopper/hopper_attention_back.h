/* hopper_attention_back.h - what both kernels of the backward of attention on sm_90a are made of: whose work
 * is what, the buffers between who fills and who multiplies, and the forms of wgmma that they need.
 *
 * A block has two warpgroups that multiply and one that fills (hopper_attention_back_fill.h). For .cu files
 * compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_BACK_H
#define WB_HOPPER_ATTENTION_BACK_H

#include "cuda/cuda_attention_warp.h"
#include "cuda/hopper/hopper_attention_back_kernels.h"
#include "cuda/hopper/hopper_tiles.h"

namespace {

/* Rows of a stage, and threads and multiplying warps of a block. */
enum { STAGE_ROWS = 64, BACK_THREADS = 3 * WARPGROUP, BACK_WARPS = 8 };

/* ---- work -------------------------------------------------------------------------------------- */

/* This block's piece of work in a round. Pieces come by falling size and rounds go back and forth over the
 * blocks, so that who has the largest in one has the smallest in the next. */
ASM_INLINE int work_number(int round) {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    return round * blocks + (round % 2 ? blocks - 1 - block : block);
}

/* Which of the item's kv heads, or heads, changes fastest: blocks that run side by side share keys. */
struct work {
    wb_back_item item;
    int head;
};

ASM_INLINE work find_work(const wb_attention_back &call, int number, int heads) {
    return {call.items[number / heads], number % heads};
}

/* A block a multiprocessor. */
inline wb_status launch_back(wb_device *dev, const char *op, void (*kernel)(wb_attention_back), int bytes,
                             const wb_attention_back &call) {
    const int blocks = reinterpret_cast<const wb_cuda_device *>(dev)->multiprocessors;
    WB_TRY(
        wb_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op));
    kernel<<<static_cast<unsigned>(blocks), BACK_THREADS, static_cast<size_t>(bytes), stream_of(dev)>>>(call);
    return wb_cuda_check(cudaGetLastError(), op);
}

/* ---- barriers ---------------------------------------------------------------------------------- */

/* A buffer that all threads of the filling warpgroup fill and all multiplying warps read. */
ASM_INLINE void init_buffer(uint32_t full, uint32_t empty) {
    barrier_init(full, WARPGROUP);
    barrier_init(empty, BACK_WARPS);
}

ASM_INLINE void release_buffer(uint32_t empty) {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

/* ---- wgmma ------------------------------------------------------------------------------------- */

#define REG_32 REG_UP_TO_9 "," REG_10(1) "," REG_10(2) ",%30,%31"
#define SUM_32 SUM_16(0), SUM_16(16)
#define WGMMA_ROWS(n, registers, sums, i_a, i_b, i_more, i_tb)                                         \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #i_more ", 0; wgmma.mma_async.sync.aligned.m64n" #n \
                 "k16.f32.bf16.bf16 {" registers "}, {" i_a "}, %" #i_b ", p, 1, 1, %" #i_tb ";}"      \
                 : sums                                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more), "n"(B_MN))

/* As wgmma of hopper_ptx.h, with A's 64 rows of 16 k in registers: pairs of the row l / 4 and of 8 more at k
 * 2 (l % 4), then both 8 k on. N = 2 HALF. */
template <int B_MN, int HALF>
ASM_INLINE void wgmma_rows(float (&sum)[HALF], const uint32_t *a, uint64_t b, int more) {
    static_assert(HALF == 64 || HALF == 32, "a width that it is written for");
    if constexpr (HALF == 64) {
        WGMMA_ROWS(128, REG_64, SUM_64(0), "%64,%65,%66,%67", 68, 69, 70);
    } else {
        WGMMA_ROWS(64, REG_32, SUM_32, "%32,%33,%34,%35", 36, 37, 38);
    }
}

/* wgmma of hopper_ptx.h with N = 64. */
template <int A_MN, int B_MN> ASM_INLINE void wgmma_64(float (&sum)[32], uint64_t a, uint64_t b, int more) {
    WGMMA(64, REG_32, SUM_32, 32, 33, 34, 35, 36);
}

/* From a K-major tile's beginning to its step of 16 k: parts of ROWS rows, 64 k each. In units of
 * descriptors. */
template <int ROWS> ASM_INLINE constexpr uint64_t k_step(int k) {
    return static_cast<uint64_t>(k / 4 * ROWS * 128 / 16 + k % 4 * 2);
}

/* sum[64][64] (=) 64 rows of a tile of WB_BACK_TILE rows times the rows of one of STAGE_ROWS. */
template <int D> ASM_INLINE void multiply_tiles(uint64_t a, uint64_t b, float (&sum)[32]) {
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        wgmma_64<0, 0>(sum, a + k_step<WB_BACK_TILE>(k), b + k_step<STAGE_ROWS>(k), k);
    wgmma_commit();
}

/* sum[64][D] += a[64][64] times the STAGE_ROWS rows of a tile, which are its k. `more` 0: =. */
template <int D>
ASM_INLINE void add_rows_of(const uint32_t (&a)[16], uint32_t tile, int more, float (&sum)[D / 2]) {
    const uint64_t b = operand_at(tile, STAGE_ROWS * 128);
#pragma unroll
    for (int k = 0; k < 4; k++) wgmma_rows<1>(sum, a + 4 * k, b + k * (2048 / 16), k == 0 ? more : 1);
}

/* x[64][64] as pairs of bf16, the A of wgmma_rows. They are made here, not below the next wgmma. */
ASM_INLINE void pack_sums(const float (&x)[32], uint32_t (&a)[16]) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
        a[i] = pack_pair(x[2 * i], x[2 * i + 1]);
        asm volatile("" : "+r"(a[i])::"memory");
    }
}

} // namespace

#endif
