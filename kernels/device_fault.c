/* device_fault.c - see device_fault.h. */
#include "device_fault.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Of the kinds that know micro-batch and layer. */
static wb_status report_route(const wb_fault *fault) {
    char where[96];
    snprintf(where, sizeof where, "micro-batch %" PRId32 ", MoE layer %" PRId32 ", row %" PRId64,
             fault->micro_batch, fault->layer, fault->row);
    if (fault->kind == WB_FAULT_ROUTE)
        return wb_fail(WB_MISMATCH, "%s: %s was not routed as planned: expert %" PRId64 " at choice %d",
                       wb_op_name(fault->op), where, fault->found, fault->choice);
    if (fault->kind == WB_FAULT_ROUTE_ID)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: %s: expert %" PRId64 " is out of range, expected one below %d",
                       wb_op_name(fault->op), where, fault->found, fault->limit);
    const uint32_t bits = (uint32_t)fault->found;
    float weight;
    memcpy(&weight, &bits, sizeof weight);
    return wb_fail(WB_INVALID_ARGUMENT, "%s: %s: expected finite logits, found a weight of %g at choice %d",
                   wb_op_name(fault->op), where, (double)weight, fault->choice);
}

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
    case WB_FAULT_ENTRY:
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: listed: row %" PRId64
                       ", place %d: expected ascending entries below %d, found %" PRId64,
                       op, fault->row, fault->choice, fault->limit, fault->found);
    case WB_FAULT_LOGITS:
        return wb_fail(WB_INVALID_ARGUMENT, "%s: row %" PRId64 ": a logit is NaN or +inf, or all are -inf",
                       op, fault->row);
    case WB_FAULT_ROUTE_ID:
    case WB_FAULT_ROUTE:
    case WB_FAULT_WEIGHT:
        return report_route(fault);
    case WB_FAULT_PEER:
        if (fault->row < 0) return wb_fail(WB_PEER, "%s: another rank gave up in an earlier step", op);
        return wb_fail(WB_PEER, "%s: waited %g s: rank %" PRId64 " did not come", op,
                       1e-3 * (double)fault->found, fault->row);
    default:
        return wb_fail(WB_DEVICE, "%s: a fault of unknown kind %u", op, fault->kind);
    }
}
