/* device_fault.h - what an op finds wrong in the content of its operands: one layout for host and device, and
 * one set of words for all backends.
 *
 * The CPU looks before it computes, and its op fails. A kernel cannot fail: it writes the fault into the word
 * that its device has, where the first fault stays until the device is next waited for, which reports it and
 * clears the word. Refuses: what is read from the shapes, which every backend checks before it starts. */
#ifndef WB_DEVICE_FAULT_H
#define WB_DEVICE_FAULT_H

#include "wb_device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wb_fault_kind {
    WB_FAULT_NONE,
    /* an expert's id in `ids`: row, choice */
    WB_FAULT_ID,
    /* the same in the table of a hash router: row is the token */
    WB_FAULT_TABLE_ID,
    /* a token outside of the vocabulary: row */
    WB_FAULT_TOKEN,
    /* an entry of a token's list (wb_entry_attention) that the token does not see, or that does not come
     * after the one before it: row, place in the list as `choice` */
    WB_FAULT_ENTRY,
    /* logits that no token can be drawn from: row */
    WB_FAULT_LOGITS,
    /* rows of a (micro-batch, layer): an id that is no expert's, a choice that the plan has not, or a second
     * time, and a weight (its bits are in `found`) that is no finite number */
    WB_FAULT_ROUTE_ID,
    WB_FAULT_ROUTE,
    WB_FAULT_WEIGHT,
    /* a rank that did not come: row, -1: the device's stream was lost; after so many milliseconds: found */
    WB_FAULT_PEER
} wb_fault_kind;

/* Zeros: no fault. */
typedef struct wb_fault {
    /* a wb_fault_kind, as what kernels compare and set */
    uint32_t kind;
    wb_op op;
    int64_t row;
    int32_t choice;
    /* what was found, where 0 .. limit - 1 was expected */
    int32_t limit;
    int64_t found;
    /* of the three kinds that speak of rows of a (micro-batch, layer) */
    int32_t micro_batch, layer;
} wb_fault;

/* WB_OK without a fault; MISMATCH of WB_FAULT_ROUTE; PEER for a rank that did not come; else
 * INVALID_ARGUMENT; each names op, operand, row, what was expected and found. */
wb_status wb_fault_report(const wb_fault *fault);

#ifdef __cplusplus
}
#endif
#endif
