/* compress_check.h - what both backends refuse of the description of a compressor, in the same words. */
#ifndef WB_COMPRESS_CHECK_H
#define WB_COMPRESS_CHECK_H

#include "recurrent_check.h"
#include "wb_ops_entries.h"

#include <inttypes.h>

static inline wb_status compress_check(const char *op, const wb_compress *args, const char *name,
                                       wb_rows rows) {
    WB_TRY(operand_check(op, "values", args->values.dtype));
    WB_TRY(operand_check_like(op, "gates", args->gates.dtype, "values", args->values.dtype));
    WB_TRY(operand_check_like(op, name, rows.dtype, "values", args->values.dtype));
    if (args->ratio >= 1 && args->width >= 1) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: ratio %d and width %" PRId64 ": expected 1 or more", op,
                   args->ratio, args->width);
}

/* And of a backward, which is of whole sequences. */
static inline wb_status compress_back_check(const wb_compress *args, wb_rows dentries, wb_rows dvalues,
                                            wb_rows dgates) {
    const char *op = "compress_backward";
    WB_TRY(compress_check(op, args, "dentries", dentries));
    WB_TRY(operand_check_like(op, "dvalues", dvalues.dtype, "values", args->values.dtype));
    WB_TRY(operand_check_like(op, "dgates", dgates.dtype, "values", args->values.dtype));
    return recurrent_check_whole(op, &args->of);
}

#endif
