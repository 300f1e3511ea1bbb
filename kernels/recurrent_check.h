/* recurrent_check.h - what both backends ask of the descriptions of the ops of recurrent layers, in the same
 * words. */
#ifndef WB_RECURRENT_CHECK_H
#define WB_RECURRENT_CHECK_H

#include "operand_check.h"
#include "wb_ops_recurrent.h"

/* A backward is of whole sequences. */
static inline wb_status recurrent_check_whole(const char *op, const wb_sequences *of) {
    if (!of->states) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: states: expected NULL, a backward being of whole sequences", op);
}

static inline wb_status short_conv_check(const char *op, const wb_short_conv *args) {
    WB_TRY(operand_check(op, "x", args->x.dtype));
    if (args->channels < 1)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: channels: expected 1 or more, found %d", op, args->channels);
    if (args->width < 1 || args->width > WB_MAX_CONV_WIDTH)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: width: expected 1..%d, found %d", op, WB_MAX_CONV_WIDTH,
                       args->width);
    return WB_OK;
}

static inline wb_status short_conv_back_check(const wb_short_conv *args, wb_rows dy, wb_rows dx) {
    const char *op = "short_conv_backward";
    WB_TRY(short_conv_check(op, args));
    WB_TRY(operand_check_like(op, "dy", dy.dtype, "x", args->x.dtype));
    WB_TRY(operand_check_like(op, "dx", dx.dtype, "x", args->x.dtype));
    return recurrent_check_whole(op, &args->of);
}

static inline wb_status gated_delta_check(const char *op, const wb_gated_delta *args) {
    const wb_delta_heads *h = &args->heads;
    WB_TRY(operand_check(op, "qkv", args->qkv.dtype));
    WB_TRY(operand_check_like(op, "b", args->b.dtype, "qkv", args->qkv.dtype));
    WB_TRY(operand_check_like(op, "a", args->a.dtype, "qkv", args->qkv.dtype));
    if (h->n_key < 1 || h->n_value < 1 || h->n_value % h->n_key != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: value heads: expected a multiple of %d key heads, found %d",
                       op, h->n_key, h->n_value);
    if (h->key_dim < 1 || h->value_dim < 1)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: key_dim %d and value_dim %d: expected 1 or more", op,
                       h->key_dim, h->value_dim);
    return WB_OK;
}

static inline wb_status gated_delta_back_check(const wb_gated_delta *args, wb_rows dout, wb_rows dqkv,
                                               wb_rows db, wb_rows da) {
    const char *op = "gated_delta_backward";
    const wb_dtype dtype = args->qkv.dtype;
    WB_TRY(gated_delta_check(op, args));
    WB_TRY(operand_check_like(op, "dout", dout.dtype, "qkv", dtype));
    WB_TRY(operand_check_like(op, "dqkv", dqkv.dtype, "qkv", dtype));
    WB_TRY(operand_check_like(op, "db", db.dtype, "qkv", dtype));
    WB_TRY(operand_check_like(op, "da", da.dtype, "qkv", dtype));
    WB_TRY(recurrent_check_whole(op, &args->of));
    if (args->checkpoints) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: checkpoints: expected what the forward left there, found NULL",
                   op);
}

#endif
