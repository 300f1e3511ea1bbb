/* cuda_tensor.h - one step of tensor cores on bf16, on sm_80 and later: what tiles of products (cuda_mma.h)
 * and attention (cuda_attention_warp.h) are made of. For .cu files. */
#ifndef WB_CUDA_TENSOR_H
#define WB_CUDA_TENSOR_H

#include <cuda_bf16.h>
#include <stdint.h>

namespace {

__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

/* sum[16][8] += A[16][16] B[16][8]: lane l has the rows l / 4 and 8 more, and the columns 2 (l % 4) and 1
 * more. a: [4] */
__device__ __forceinline__ void add_products_16(float (&sum)[4], const uint32_t *a, uint32_t b0,
                                                uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

} // namespace

#endif
