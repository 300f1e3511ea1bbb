/* hopper_ptx.h - the instructions of sm_90a that CUDA C++ has no name for: barriers in shared memory, copies
 * of boxes of a tensor (TMA), and products of tiles by a warpgroup (wgmma).
 *
 * Shared memory is addressed by 32-bit numbers, as these instructions do. Refuses: what is computed. For .cu
 * files that are compiled for sm_90a. */
#ifndef WB_HOPPER_PTX_H
#define WB_HOPPER_PTX_H

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

#define ASM_INLINE __device__ __forceinline__

ASM_INLINE uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/* ---- barriers ---------------------------------------------------------------------------------- */

ASM_INLINE void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

/* Barriers that were initialised are there for TMA and for the other block of the cluster. */
ASM_INLINE void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Arrives, and makes the phase wait for `bytes` of copies as well. */
ASM_INLINE void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

ASM_INLINE void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives at the same barrier of another block of the cluster. Only reads by wgmma come before it, and stores
 * that these have seen, so that it needs no .release.cluster, which would be a fence of the whole GPU. */
ASM_INLINE void barrier_arrive_at(uint32_t barrier, uint32_t block) {
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(barrier),
                 "r"(block)
                 : "memory");
}

/* Waits until the phase of this parity has ended. */
ASM_INLINE void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
                     "selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}

/* Stores 16 bytes into a block of the cluster and counts them at that block's barrier. */
ASM_INLINE void store_16_at(uint32_t address, uint4 v, uint32_t barrier, uint32_t block) {
    asm volatile(
        "{.reg .b32 to, at; mapa.shared::cluster.u32 to, %0, %6; mapa.shared::cluster.u32 at, %5, %6;"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [to], {%1, %2, %3, %4}, [at];}" ::"r"(
            address),
        "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier), "r"(block)
        : "memory");
}

ASM_INLINE void store_word(uint32_t address, uint32_t word) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

ASM_INLINE uint32_t load_word(uint32_t address) {
    uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

ASM_INLINE void store_f32(uint32_t address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}
ASM_INLINE void store_two_f32(uint32_t address, float x, float y) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y) : "memory");
}

ASM_INLINE void store_16(uint32_t address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

ASM_INLINE uint4 load_16(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

/* Waits for `threads` threads, this one too, that call it with this number, 1..15. */
ASM_INLINE void threads_sync(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

ASM_INLINE uint32_t block_in_cluster() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

ASM_INLINE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* Shared memory that this thread has written is there for TMA and wgmma, which go another way. */
ASM_INLINE void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* With a launch that may begin before the kernel before it has ended: the next kernel may begin; and what
 * came before this one has ended. */
ASM_INLINE void let_next_begin() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
ASM_INLINE void wait_for_kernels_before() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* Registers a thread of this warpgroup has from here on. */
template <int N> ASM_INLINE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> ASM_INLINE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- copies ------------------------------------------------------------------------------------ */

/* 16 bytes from global memory; `bytes` 0: zeros, and nothing is read. */
ASM_INLINE void copy_16(uint32_t to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

/* Arrives once all earlier copy_16 of this thread have landed: one of the arrivals that the barrier
 * expects. */
ASM_INLINE void copies_arrive(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/* A box of a tensor from these coordinates on, zeros beyond its ends. `blocks`: a bit for each block of the
 * cluster that it lands in, at the same address, and at whose barrier its bytes count; 0: this one alone. */
ASM_INLINE void copy_box_2d(uint32_t to, const CUtensorMap &map, int x, int y, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}

ASM_INLINE void copy_box_4d(uint32_t to, const CUtensorMap &map, int x, int y, int z, int u, uint32_t barrier,
                            uint16_t blocks) {
    if (blocks == 0)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
                     "l"(&map), "r"(x), "r"(y), "r"(z), "r"(u), "r"(barrier)
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
                     "l"(&map), "r"(x), "r"(y), "r"(z), "r"(u), "r"(barrier), "h"(blocks)
                     : "memory");
}

/* A box of a tensor begins to come into the L2. */
ASM_INLINE void prefetch_box_2d(const CUtensorMap &map, int x, int y) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map), "r"(x), "r"(y)
                 : "memory");
}

/* A box of shared memory to these coordinates of a tensor; what lies beyond its ends goes nowhere. */
ASM_INLINE void send_box_2d(const CUtensorMap &map, uint32_t from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
                 "r"(x), "r"(y), "r"(from)
                 : "memory");
}
ASM_INLINE void send_box_3d(const CUtensorMap &map, uint32_t from, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map), "r"(x),
        "r"(y), "r"(z), "r"(from)
        : "memory");
}
/* Adds it, element by element, in the L2. */
ASM_INLINE void add_box_3d(const CUtensorMap &map, uint32_t from, int x, int y, int z) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::
            "l"(&map),
        "r"(x), "r"(y), "r"(z), "r"(from)
        : "memory");
}

/* What this thread has sent since the last call is a group. It waits until all but the LEFT latest have been
 * read from shared memory, or until all have arrived. */
ASM_INLINE void sent_group() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int LEFT> ASM_INLINE void sent_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
}
ASM_INLINE void sent_wait() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

ASM_INLINE void prefetch_map(const CUtensorMap &map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/* Four 8 x 8 matrices of bf16 between a warp's registers, as wgmma has them, and rows of shared memory. */
ASM_INLINE void store_matrices(uint32_t address, const uint32_t *v) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v[0]),
                 "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}
ASM_INLINE void load_matrices(uint32_t address, uint32_t *v) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}

/* ---- wgmma ------------------------------------------------------------------------------------- */

ASM_INLINE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
ASM_INLINE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> ASM_INLINE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

/* Keeps the compiler from reading sums above the wait. */
template <int N> ASM_INLINE void sums_are_there(float (&sum)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

/* Describes an operand in shared memory, in rows of 128 bytes whose 16-byte parts are swizzled as TMA does
 * (part p of row r lies at p ^ (r % 8)); it begins at a multiple of 1,024.
 *   A row is an m or n, 64 k of it (K-major): `groups` is not read; the next 16 k lie 32 bytes on.
 *   A row is a k, 64 m or n of it (MN-major): `groups` bytes from 64 m or n to the next 64; the next 16 k lie
 *   2,048 bytes on.
 * 8 rows lie `eight_rows` bytes apart from the next 8. */
ASM_INLINE uint64_t operand_at(uint32_t address, uint32_t groups, uint32_t eight_rows = 1024) {
    const uint64_t swizzle_128 = 1ull << 62;
    return swizzle_128 | static_cast<uint64_t>(eight_rows >> 4) << 32 |
           static_cast<uint64_t>(groups >> 4) << 16 | (address & 0x3FFFF) >> 4;
}

#define REG_4(i) "%" #i "0,%" #i "1,%" #i "2,%" #i "3"
#define REG_10(i) REG_4(i) ",%" #i "4,%" #i "5,%" #i "6,%" #i "7,%" #i "8,%" #i "9"
#define REG_UP_TO_9 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9"
#define REG_16 REG_UP_TO_9 ",%10,%11,%12,%13,%14,%15"
#define REG_60 REG_UP_TO_9 "," REG_10(1) "," REG_10(2) "," REG_10(3) "," REG_10(4) "," REG_10(5)
#define REG_64 REG_60 "," REG_4(6)
#define REG_96 REG_60 "," REG_10(6) "," REG_10(7) "," REG_10(8) ",%90,%91,%92,%93,%94,%95"
#define REG_128                                                                               \
    REG_60 "," REG_10(6) "," REG_10(7) "," REG_10(8) "," REG_10(9) "," REG_10(10) "," REG_10( \
        11) ",%120,"                                                                          \
            "%121,%122,%123,%124,%125,%126,%127"
#define SUM_4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define SUM_16(i) SUM_4(i), SUM_4(i + 4), SUM_4(i + 8), SUM_4(i + 12)
#define SUM_64(i) SUM_16(i), SUM_16(i + 16), SUM_16(i + 32), SUM_16(i + 48)
#define SUM_96 SUM_64(0), SUM_16(64), SUM_16(80)
#define SUM_128 SUM_64(0), SUM_64(64)
#define WGMMA(n, registers, sums, i_a, i_b, i_more, i_ta, i_tb)                                          \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #i_more ", 0; wgmma.mma_async.sync.aligned.m64n" #n   \
                 "k16.f32.bf16.bf16 {" registers "}, %" #i_a ", %" #i_b ", p, 1, 1, %" #i_ta ", %" #i_tb \
                 ";}"                                                                                    \
                 : sums                                                                                  \
                 : "l"(a), "l"(b), "r"(more), "n"(A_MN), "n"(B_MN))

/* sum[64][N] (+)= A[64][16] B[16][N], N = 2 HALF; more = 0 begins a sum. A_MN, B_MN 1: that operand is
 * MN-major. Lane l of warp w has the rows 16 w + l / 4 and 8 more, and the columns 8 j + 2 (l % 4) and 1
 * more: sum[4 j], [4 j + 1] are of the first row, [4 j + 2], [4 j + 3] of the second. */
template <int A_MN, int B_MN, int HALF>
ASM_INLINE void wgmma(float (&sum)[HALF], uint64_t a, uint64_t b, int more) {
    static_assert(HALF == 128 || HALF == 96 || HALF == 64 || HALF == 16, "a width that wgmma is written for");
    if constexpr (HALF == 16) {
        WGMMA(32, REG_16, SUM_16(0), 16, 17, 18, 19, 20);
    } else if constexpr (HALF == 128) {
        WGMMA(256, REG_128, SUM_128, 128, 129, 130, 131, 132);
    } else if constexpr (HALF == 96) {
        WGMMA(192, REG_96, SUM_96, 96, 97, 98, 99, 100);
    } else {
        WGMMA(128, REG_64, SUM_64(0), 64, 65, 66, 67, 68);
    }
}

} // namespace

#endif
