/* operand_check.h - whether the dtypes of an op's operands are ones that it takes, in the words of both
 * backends. */
#ifndef WB_OPERAND_CHECK_H
#define WB_OPERAND_CHECK_H

#include "wb_check.h"

/* INVALID_ARGUMENT unless `dtype` of operand `name` is f32 or bf16. */
static inline wb_status operand_check(const char *op, const char *name, wb_dtype dtype) {
    if (dtype == WB_F32 || dtype == WB_BF16) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: %s: expected f32 or bf16, found %s", op, name,
                   wb_dtype_name(dtype));
}

/* The same for an operand that is to have the dtype of `like`. */
static inline wb_status operand_check_like(const char *op, const char *name, wb_dtype dtype, const char *like,
                                           wb_dtype like_dtype) {
    WB_TRY(operand_check(op, name, dtype));
    if (dtype == like_dtype) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: %s: expected %s like %s, found %s", op, name,
                   wb_dtype_name(like_dtype), like, wb_dtype_name(dtype));
}

/* For what reads a weight's rows as they lie. */
static inline wb_status operand_check_rows(const char *op, bool packed) {
    if (!packed) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: w: expected its rows as they lie, found packed weights", op);
}

#endif
