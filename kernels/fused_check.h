/* fused_check.h - what every backend refuses of the operands of attention_prepare. */
#ifndef WB_FUSED_CHECK_H
#define WB_FUSED_CHECK_H

#include "operand_check.h"
#include "wb_ops_attention.h"

static inline wb_status fused_check_cache(const char *name, wb_rows cache, wb_dtype dtype) {
    WB_TRY(operand_check("attention_prepare", name, cache.dtype));
    return dtype == WB_BF16 ? operand_check_like("attention_prepare", name, cache.dtype, "k", dtype) : WB_OK;
}

static inline wb_status fused_check_inputs(const wb_attention_inputs *args) {
    const wb_dtype dtype = args->q.dtype;
    if (args->rot_dim < 0 || args->rot_dim > args->head_dim || args->rot_dim % 2 != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "attention_prepare: rot_dim: expected an even number up to %d, found %d",
                       args->head_dim, args->rot_dim);
    WB_TRY(operand_check("attention_prepare", "q", dtype));
    WB_TRY(operand_check_like("attention_prepare", "k", args->k.dtype, "q", dtype));
    WB_TRY(operand_check_like("attention_prepare", "v", args->v.dtype, "q", dtype));
    if (!args->rows) return WB_OK;
    WB_TRY(fused_check_cache("k_cache", args->k_cache, dtype));
    return fused_check_cache("v_cache", args->v_cache, dtype);
}

#endif
