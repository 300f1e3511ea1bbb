/* wb_mailbox.h - rows of a layer's experts between devices of one host that store into each other's memory
 * (not installed).
 *
 * Owns: what a rank's mailbox holds, and the ops on it. A rank stores its rows straight into the mailbox of
 * the rank whose experts they are for, and gets them back the same way, in its own: no count crosses to the
 * host, so that all of it can be a graph of the device. Refuses: who opens mailboxes and tells the others
 * (model/mailboxes.h); which row goes to which slot (moe_plan).
 *
 *     mailbox_send      rows of this rank's tokens, to the ranks of their slots
 *     mailbox_receive   waits for those of all ranks, and says which is where, by slot
 *     ...            the experts
 *     mailbox_return    their outputs, to the ranks of the tokens
 *     mailbox_wait      waits for the outputs of all ranks
 *
 * These four are an exchange. All ranks make the same number of them, each in this order, whether they have
 * rows or not, and a rank numbers them itself, in its mailbox. One set of places is enough: a rank sends for
 * an exchange when it has all outputs of the one before, and so when all others have read what it had sent.
 *
 * A wait ends when a rank has not come for as long as `timeout` says: its op is a fault (PEER) that names the
 * rank, what follows has no rows, and from then on every exchange is such a fault at once. It ends so at once
 * when the device is told that its stream is lost (wb_device.lose), as by a host that waits for the step and
 * hears meanwhile that a rank gave up. */
#ifndef WB_MAILBOX_H
#define WB_MAILBOX_H

#include "wb_host_device.h"
#include "wb_shared_memory.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WB_MAX_MAILBOXES = WB_MAX_SHARERS, WB_MAILBOX_ALIGNMENT = 256 };

/* The ranks of a group and what they exchange: the same on all, but for rank, mailboxes and timeout. */
typedef struct wb_mailboxes {
    int32_t rank, n_ranks; /* R, at most WB_MAX_MAILBOXES */
    /* rank r has the slots [first_slot[r], first_slot[r + 1]) of S = first_slot[R] */
    int32_t first_slot[WB_MAX_MAILBOXES + 1];
    int64_t max_rows; /* that the tokens of one rank have at most */
    int64_t width;    /* elements of a row */
    wb_dtype dtype;   /* of a row */
    double timeout;   /* seconds */
    /* device: mailbox[r] is rank r's, as this device addresses it; owner: who opened them */
    void *mailbox[WB_MAX_MAILBOXES];
} wb_mailboxes;

/* `lost` of a mailbox whose device was told that its stream is lost. */
enum { WB_MAILBOX_GIVEN_UP = -1 };

/* A mailbox begins with this; zeroed at first. */
typedef struct wb_mailbox {
    /* the latest exchange for which rank r has stored all its rows, and all its outputs */
    uint64_t sent[WB_MAX_MAILBOXES], returned[WB_MAX_MAILBOXES];
    /* of this rank alone: exchanges that have ended; blocks of a kernel that have stored their rows; and 1 +
     * the rank that did not come, or WB_MAILBOX_GIVEN_UP, which stays */
    uint64_t done;
    uint32_t blocks;
    int32_t lost;
} wb_mailbox;

/* And goes on with these, each at a multiple of WB_MAILBOX_ALIGNMENT bytes:
 * - rows [R][max_rows]: of each rank, in its order, those for this one
 * - rows [max_rows]: the outputs for the rows of this rank's tokens, in the order of its plan
 * - int32 [R][S + 1]: of each rank the first of its rows for each slot of this one, and behind the last one
 * Slots decide where nothing but the end is: exchanges over different slots may follow each other in one
 * mailbox, since a rank that sends for the next one meets no outputs that another still reads. */
static WB_HD size_t wb_mailbox_align(size_t bytes) {
    return (bytes + WB_MAILBOX_ALIGNMENT - 1) / WB_MAILBOX_ALIGNMENT * WB_MAILBOX_ALIGNMENT;
}

static WB_HD size_t wb_mailbox_row_bytes(const wb_mailboxes *boxes) {
    return (size_t)boxes->width * (boxes->dtype == WB_F32 ? 4 : 2);
}

/* Bytes from the mailbox on to its rows, to its outputs, to its offsets, and to its end. */
static WB_HD size_t wb_mailbox_rows_at(void) {
    return wb_mailbox_align(sizeof(wb_mailbox));
}

static WB_HD size_t wb_mailbox_outputs_at(const wb_mailboxes *boxes) {
    const size_t rows = (size_t)boxes->n_ranks * (size_t)boxes->max_rows;
    return wb_mailbox_rows_at() + wb_mailbox_align(rows * wb_mailbox_row_bytes(boxes));
}

static WB_HD size_t wb_mailbox_offsets_at(const wb_mailboxes *boxes) {
    return wb_mailbox_outputs_at(boxes) +
           wb_mailbox_align((size_t)boxes->max_rows * wb_mailbox_row_bytes(boxes));
}

static WB_HD size_t wb_mailbox_offsets_stride(const wb_mailboxes *boxes) {
    return (size_t)boxes->first_slot[boxes->n_ranks] + 1;
}

static WB_HD size_t wb_mailbox_bytes(const wb_mailboxes *boxes) {
    return wb_mailbox_offsets_at(boxes) +
           (size_t)boxes->n_ranks * wb_mailbox_offsets_stride(boxes) * sizeof(int32_t);
}

/* In the mailbox of rank `to`: where rank r's rows for its slots begin. */
static WB_HD int32_t *wb_mailbox_offsets(const wb_mailboxes *boxes, int32_t to, int32_t r) {
    char *const at = (char *)boxes->mailbox[to] + wb_mailbox_offsets_at(boxes);
    return (int32_t *)(void *)at + (size_t)r * wb_mailbox_offsets_stride(boxes);
}

/* Row `row` of R * max_rows: those of rank r begin at r * max_rows. */
static WB_HD void *wb_mailbox_row(const wb_mailboxes *boxes, int32_t to, int64_t row) {
    return (char *)boxes->mailbox[to] + wb_mailbox_rows_at() + (size_t)row * wb_mailbox_row_bytes(boxes);
}

static WB_HD void *wb_mailbox_output(const wb_mailboxes *boxes, int32_t to, int64_t row) {
    return (char *)boxes->mailbox[to] + wb_mailbox_outputs_at(boxes) +
           (size_t)row * wb_mailbox_row_bytes(boxes);
}

/* ---- the ops --------------------------------------------------------------------------------------- */

/* row_token, offsets: device, of this rank's moe_plan over x[T, width], of at most n rows. */
typedef wb_status wb_mailbox_send_fn(wb_device *dev, const wb_mailboxes *boxes, int64_t n,
                                     const int32_t *row_token, const int32_t *offsets, wb_rows x);

/* Device, both out. offsets: [slots of this rank + 1], slot s has the rows [offsets[s], offsets[s + 1]), by
 * source rank, then in the source's order; place: where each of them lies in the mailbox, wb_mailbox_row. */
typedef wb_status wb_mailbox_receive_fn(wb_device *dev, const wb_mailboxes *boxes, int32_t *offsets,
                                        int32_t *place);

/* rows[n or fewer, width], device: the outputs in the order of mailbox_receive, whose offsets and place these
 * are. */
typedef wb_status wb_mailbox_return_fn(wb_device *dev, const wb_mailboxes *boxes, int64_t n,
                                       const int32_t *offsets, const int32_t *place, wb_rows rows);

/* The outputs lie at wb_mailbox_output of this rank's mailbox then. */
typedef wb_status wb_mailbox_wait_fn(wb_device *dev, const wb_mailboxes *boxes);

#ifdef __cplusplus
}
#endif
#endif
