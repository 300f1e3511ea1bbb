/* attention_check.h - what both backends ask of the description of an attention, in the same words. */
#ifndef WB_ATTENTION_CHECK_H
#define WB_ATTENTION_CHECK_H

#include "attention_keys.h"
#include "operand_check.h"

static inline wb_status attention_check(const char *op, const wb_attention *args) {
    WB_TRY(operand_check(op, "q", args->q.dtype));
    WB_TRY(operand_check(op, "k", args->k.dtype));
    WB_TRY(operand_check_like(op, "v", args->v.dtype, "k", args->k.dtype));
    if (args->q.dtype == WB_BF16) WB_TRY(operand_check_like(op, "k", args->k.dtype, "q", args->q.dtype));
    if (args->n_kv_heads < 1 || args->n_heads < 1 || args->n_heads % args->n_kv_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: n_heads: expected a multiple of %d kv heads, found %d", op,
                       args->n_kv_heads, args->n_heads);
    if (args->head_dim < 1 || args->value_dim < 1 || args->block_size < 1)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: head_dim %d, value_dim %d and block_size %d: expected 1 or more", op,
                       args->head_dim, args->value_dim, args->block_size);
    if (args->window < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: window: expected 0 or more, found %d", op, args->window);
    if (attention_values_in_keys(args) && args->value_dim > args->head_dim)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: value_dim: values that lie in keys have at most their %d elements, found %d", op,
                       args->head_dim, args->value_dim);
    return WB_OK;
}

/* A backward has a gradient for sinks where there are some. */
static inline wb_status attention_sinks_check(const char *op, const wb_attention *args, const float *dsinks) {
    if (!args->sinks == !dsinks) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: dsinks: expected %s, found %s", op,
                   args->sinks ? "an array, since there are sinks" : "NULL, since there are no sinks",
                   dsinks ? "an array" : "NULL");
}

/* And of a backward's operands: all of one dtype, values beside the keys, and a gradient for sinks. */
static inline wb_status attention_back_check(const wb_attention *args, wb_rows dout, wb_rows dq, wb_rows dk,
                                             wb_rows dv, const float *dsinks) {
    const char *op = "attention_backward";
    const wb_dtype dtype = args->q.dtype;
    WB_TRY(attention_check(op, args));
    WB_TRY(operand_check_like(op, "k", args->k.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dout", dout.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dq", dq.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dk", dk.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dv", dv.dtype, "q", dtype));
    if (attention_values_in_keys(args))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: v: expected values beside the keys, found them in the keys (value_dim %d of %d)",
                       op, args->value_dim, args->head_dim);
    return attention_sinks_check(op, args, dsinks);
}

#endif
