/* cuda_vector.h - rows of bf16 eight elements at a time, 16 bytes: how kernels that are bound by memory read
 * and write them. For .cu files. */
#ifndef WB_CUDA_VECTOR_H
#define WB_CUDA_VECTOR_H

#include "cuda/cuda_operands.h"

namespace {

inline uint16_t *bf16_of(wb_rows rows) {
    return static_cast<uint16_t *>(rows.data);
}

/* Rows of bf16 that begin and end at multiples of 16 bytes. */
inline bool in_eights(int64_t width, wb_rows rows) {
    return rows.dtype == WB_BF16 && width % 8 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

__device__ __forceinline__ uint4 load_eight(const uint16_t *from) {
    return *reinterpret_cast<const uint4 *>(from);
}

__device__ __forceinline__ void widen_eight(const uint4 &v, float (&x)[8]) {
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(pair[i] << 16);
        x[2 * i + 1] = __uint_as_float(pair[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ void store_eight(uint16_t *to, const float (&x)[8]) {
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        pair[i] = wb_f32_to_bf16(x[2 * i]) | static_cast<uint32_t>(wb_f32_to_bf16(x[2 * i + 1])) << 16;
    *reinterpret_cast<uint4 *>(to) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

} // namespace

#endif
