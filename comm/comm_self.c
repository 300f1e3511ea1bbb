/* comm_self.c - the transport of one rank: every call is a copy or nothing.
 *
 * Refuses: more than one rank. */
#include "wb_comm.h"

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

static const wb_comm_ops self_ops = {.size = sizeof(wb_comm_ops),
                                     .name = "self",
                                     .broadcast = self_broadcast,
                                     .all_gather = self_all_gather,
                                     .all_to_all_v = self_all_to_all_v,
                                     .barrier = self_barrier,
                                     .abort = self_abort,
                                     .close = wb_comm_delete};

wb_status wb_comm_open_self(wb_comm **comm_out) {
    return wb_comm_new(&self_ops, 0, 1, NULL, comm_out);
}
