/* device_fault.c - see device_fault.h. */
#include "device_fault.h"
#include "wb_check.h"

#include <inttypes.h>

wb_status wb_fault_report(const wb_fault *fault) {
    const char *op = wb_op_name(fault->op);
    switch (fault->kind) {
    case WB_FAULT_NONE:
        return WB_OK;
    case WB_FAULT_ID:
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: ids: row %" PRId64 ", choice %d: expected an id below %d, found %" PRId64, op,
                       fault->row, fault->choice, fault->limit, fault->found);
    case WB_FAULT_TABLE_ID:
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: table[%" PRId64 "][%d]: expected an id below %d, found %" PRId64, op, fault->row,
                       fault->choice, fault->limit, fault->found);
    case WB_FAULT_TOKEN:
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: tokens: row %" PRId64 ": expected a token below %d, found %" PRId64, op,
                       fault->row, fault->limit, fault->found);
    case WB_FAULT_LOGITS:
        return wb_fail(WB_INVALID_ARGUMENT, "%s: row %" PRId64 ": a logit is NaN or +inf, or all are -inf",
                       op, fault->row);
    case WB_FAULT_PEER:
        return wb_fail(WB_PEER, "%s: waited %g s: rank %" PRId64 " did not come", op,
                       1e-3 * (double)fault->found, fault->row);
    default:
        return wb_fail(WB_DEVICE, "%s: a fault of unknown kind %u", op, fault->kind);
    }
}
