/* entry_check.h - what both backends refuse of attention over entries and of an indexer, in the same
 * words. */
#ifndef WB_ENTRY_CHECK_H
#define WB_ENTRY_CHECK_H

#include "attention_check.h"
#include "wb_ops_entries.h"

#include <inttypes.h>

static inline wb_status entries_check(const char *op, const char *name, const wb_entries *entries,
                                      int32_t width) {
    if (entries->ratio < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: ratio: expected 0 or more, found %d", op, entries->ratio);
    if (entries->ratio == 0 || entries->stride >= width) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: %s: a row of %d elements in a stride of %" PRId64, op, name,
                   width, entries->stride);
}

static inline wb_status entry_attention_check(const char *op, const wb_entry_attention *args) {
    const wb_attention *raw = &args->raw;
    WB_TRY(attention_check(op, raw));
    if (raw->n_kv_heads != 1 || raw->value_dim != raw->head_dim || raw->v.data != raw->k.data)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: v: expected the rows of k, of one kv head, found %d kv heads and values of %d "
                       "elements beside keys of %d",
                       op, raw->n_kv_heads, raw->value_dim, raw->head_dim);
    if (raw->log_sums)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: log_sums: expected NULL, found an array, which nothing would write", op);
    if (args->entries.ratio > 0)
        WB_TRY(operand_check_like(op, "entries", args->entries.rows.dtype, "k", raw->k.dtype));
    return entries_check(op, "entries", &args->entries, raw->head_dim);
}

static inline wb_status entry_attention_back_check(const wb_entry_attention *args, wb_rows dout, wb_rows dq,
                                                   wb_rows dk, wb_rows dentries, const float *dsinks) {
    const char *op = "entry_attention_backward";
    const wb_dtype dtype = args->raw.q.dtype;
    WB_TRY(entry_attention_check(op, args));
    WB_TRY(operand_check_like(op, "k", args->raw.k.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dout", dout.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dq", dq.dtype, "q", dtype));
    WB_TRY(operand_check_like(op, "dk", dk.dtype, "q", dtype));
    if (args->entries.ratio > 0) WB_TRY(operand_check_like(op, "dentries", dentries.dtype, "q", dtype));
    return attention_sinks_check(op, &args->raw, dsinks);
}

static inline wb_status indexer_check(const wb_indexer *args) {
    const char *op = "indexer_topk";
    WB_TRY(operand_check(op, "q", args->q.dtype));
    WB_TRY(operand_check(op, "keys", args->keys.rows.dtype));
    if (args->q.dtype == WB_BF16)
        WB_TRY(operand_check_like(op, "keys", args->keys.rows.dtype, "q", args->q.dtype));
    if (args->n_heads < 1 || args->head_dim < 1 || args->top_k < 1 || args->block_size < 1 ||
        args->keys.ratio < 1)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "%s: n_heads %d, head_dim %d, top_k %d, block_size %d and ratio %d: expected 1 or more", op,
            args->n_heads, args->head_dim, args->top_k, args->block_size, args->keys.ratio);
    return entries_check(op, "keys", &args->keys, args->head_dim);
}

#endif
