/* hyper_check.h - what both backends refuse of the description of hyper-connections, in the same words. */
#ifndef WB_HYPER_CHECK_H
#define WB_HYPER_CHECK_H

#include "operand_check.h"
#include "wb_ops_rows.h"

static inline wb_status hyper_check_streams(const char *op, int32_t S) {
    if (S >= 1 && S <= WB_MAX_STREAMS) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: streams: expected 1..%d, found %d", op, WB_MAX_STREAMS, S);
}

static inline wb_status hyper_check(const char *op, const wb_hyper *args, const char *name, wb_rows rows) {
    WB_TRY(operand_check(op, "x", args->x.dtype));
    WB_TRY(operand_check_like(op, name, rows.dtype, "x", args->x.dtype));
    WB_TRY(hyper_check_streams(op, args->n_streams));
    if (args->iterations >= 0 && args->iterations <= WB_MAX_SINKHORN) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: iterations: expected 0..%d, found %d", op, WB_MAX_SINKHORN,
                   args->iterations);
}

#endif
