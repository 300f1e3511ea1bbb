/* hopper_maps.h - tensor maps, by which TMA finds boxes of a tensor of bf16. They are made for each call, on
 * the host. For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_MAPS_H
#define WB_HOPPER_MAPS_H

#include "cuda/cuda_device.h"
#include "wb_check.h"

#include <cudaTypedefs.h>

namespace {

/* A tensor of bf16 in up to four dimensions, the first contiguous; strides in elements. */
struct tensor {
    const uint16_t *data;
    cuuint32_t n_dimensions;
    cuuint64_t size[4];
    int64_t stride[4];
    cuuint32_t box[4];
};

/* The driver's function that makes maps, found at run time: Waybill does not link the driver. */
inline wb_status find_encode(PFN_cuTensorMapEncodeTiled_v12000 *encode_out) {
    void *found = NULL;
    cudaDriverEntryPointQueryResult result;
    WB_TRY(wb_cuda_check(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
        "tensor map"));
    if (result != cudaDriverEntryPointSuccess)
        return wb_fail(WB_UNSUPPORTED, "tensor map: expected a driver of CUDA 12.0 or later");
    *encode_out = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
    return WB_OK;
}

inline wb_status make_map(const tensor &t, CUtensorMap *map_out) {
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    cuuint64_t bytes[3];
    WB_TRY(find_encode(&encode));
    for (cuuint32_t i = 1; i < t.n_dimensions; i++) bytes[i - 1] = static_cast<cuuint64_t>(t.stride[i]) * 2;
    const CUresult result =
        encode(map_out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, t.n_dimensions, const_cast<uint16_t *>(t.data),
               t.size, bytes, t.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return wb_fail(WB_DEVICE, "tensor map: CUDA: error %d", static_cast<int>(result));
    return WB_OK;
}

inline cuuint64_t size_of(int64_t n) {
    return static_cast<cuuint64_t>(n);
}

} // namespace

#endif
