/* comm_self.c - the transport of one rank: every call is a copy or nothing. Its data plane has nothing to do,
 * since an exchange copies by itself what a rank has for itself.
 *
 * Refuses: more than one rank. */
#include "wb_exchange.h"

#include <string.h>

static wb_status self_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    (void)comm, (void)buffer, (void)bytes, (void)root;
    return WB_OK;
}

static wb_status self_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    (void)comm;
    if (bytes > 0) memcpy(recv, send, bytes);
    return WB_OK;
}

static wb_status self_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                   const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                   const size_t *recv_offsets) {
    (void)comm;
    if (send_bytes[0] != recv_bytes[0])
        return wb_fail(WB_MISMATCH, "all_to_all_v: rank 0 to rank 0: expected %zu bytes, found %zu",
                       recv_bytes[0], send_bytes[0]);
    if (send_bytes[0] > 0)
        memcpy((char *)recv + recv_offsets[0], (const char *)send + send_offsets[0], send_bytes[0]);
    return WB_OK;
}

static wb_status self_barrier(wb_comm *comm) {
    (void)comm;
    return WB_OK;
}

/* There is no peer to tell. */
static void self_abort(wb_comm *comm) {
    (void)comm;
}

/* ---- the data plane ------------------------------------------------------------------------------ */

/* A group has no items: all of them are of other ranks. */
static wb_status self_start(void *state, wb_exchange_group *group) {
    (void)state, (void)group;
    return WB_OK;
}

static void self_nothing(void *state) {
    (void)state;
}

static wb_status self_open_exchange(wb_comm *comm, const wb_exchange_memory *memory,
                                    wb_exchange **exchange_out) {
    const wb_exchange_ops ops = {.size = sizeof ops,
                                 .start = self_start,
                                 .wait = self_start,
                                 .drop = self_nothing,
                                 .close = self_nothing};
    return wb_exchange_new(&ops, comm, memory, NULL, exchange_out);
}

static const wb_comm_ops self_ops = {.size = sizeof(wb_comm_ops),
                                     .name = "self",
                                     .broadcast = self_broadcast,
                                     .all_gather = self_all_gather,
                                     .all_to_all_v = self_all_to_all_v,
                                     .barrier = self_barrier,
                                     .abort = self_abort,
                                     .close = wb_comm_delete,
                                     .open_exchange = self_open_exchange};

wb_status wb_comm_open_self(wb_comm **comm_out) {
    return wb_comm_new(&self_ops, 0, 1, NULL, comm_out);
}
