/* cuda_ids.h - reading and writing expert ids in place, and the check of a view of them. For .cu files.
 *
 * Refuses: checking the ids themselves, which kernels do where they use them (cuda_fault.h).
 */
#ifndef WB_CUDA_IDS_H
#define WB_CUDA_IDS_H

#include "wb_ops_moe.h"

extern "C" {
#include "wb_check.h"
}

namespace {

__device__ __forceinline__ uint32_t load_id(wb_ids ids, int64_t t, int32_t k) {
    int64_t at = t * ids.stride + k;
    return ids.dtype == WB_U8 ? static_cast<const uint8_t *>(ids.data)[at]
                              : static_cast<const uint16_t *>(ids.data)[at];
}

__device__ __forceinline__ void store_id(wb_ids ids, int64_t t, int32_t k, uint32_t id) {
    int64_t at = t * ids.stride + k;
    if (ids.dtype == WB_U8)
        static_cast<uint8_t *>(ids.data)[at] = static_cast<uint8_t>(id);
    else
        static_cast<uint16_t *>(ids.data)[at] = static_cast<uint16_t>(id);
}

inline wb_status check_ids(const char *op, const char *name, wb_ids ids, const wb_router *router) {
    if (ids.dtype != WB_U8 && ids.dtype != WB_U16)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %s.dtype: expected u8 or u16, found %s", op, name,
                       wb_dtype_name(ids.dtype));
    if (ids.dtype == WB_U8 && router->n_experts > 256)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %s.dtype: expected u16 for %d experts, found u8", op, name,
                       router->n_experts);
    return WB_OK;
}

} // namespace

#endif
