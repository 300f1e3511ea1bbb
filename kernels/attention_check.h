/* attention_check.h - what both backends ask of the description of an attention, in the same words. */
#ifndef WB_ATTENTION_CHECK_H
#define WB_ATTENTION_CHECK_H

#include "operand_check.h"

static inline wb_status attention_check(const char *op, const wb_attention *args) {
    WB_TRY(operand_check(op, "q", args->q.dtype));
    WB_TRY(operand_check(op, "k", args->k.dtype));
    WB_TRY(operand_check_like(op, "v", args->v.dtype, "k", args->k.dtype));
    if (args->q.dtype == WB_BF16) WB_TRY(operand_check_like(op, "k", args->k.dtype, "q", args->q.dtype));
    if (args->n_kv_heads < 1 || args->n_heads < 1 || args->n_heads % args->n_kv_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: n_heads: expected a multiple of %d kv heads, found %d", op,
                       args->n_kv_heads, args->n_heads);
    if (args->head_dim < 1 || args->block_size < 1)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: head_dim %d and block_size %d: expected 1 or more", op,
                       args->head_dim, args->block_size);
    return WB_OK;
}

#endif
