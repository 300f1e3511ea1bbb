/* comm.c - the communicator over any adapter: made, named, closed; and the calls that move bytes, whose
 * arguments it checks before the adapter sees them. Refuses: threads, MPI. */
#include "comm_state.h"
#include "wb_check.h"
#include "wb_options.h"

#include <stdlib.h>

#define DEFAULT_TIMEOUT 1800.0
#define MAX_TIMEOUT 1e9

/* ---- the object ---------------------------------------------------------------------------------- */

WB_OPTIONS_END(wb_comm_ops, look);
static wb_status check_ops(const wb_comm_ops *ops) {
    if (ops->size != sizeof *ops)
        return wb_fail(WB_INVALID_ARGUMENT, "transport: expected ops of %zu bytes, found %zu", sizeof *ops,
                       ops->size);
    const struct {
        const char *name;
        bool is_set;
    } parts[] = {{"name", ops->name},
                 {"broadcast", ops->broadcast},
                 {"all_gather", ops->all_gather},
                 {"all_to_all_v", ops->all_to_all_v},
                 {"barrier", ops->barrier},
                 {"abort", ops->abort},
                 {"close", ops->close}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (!parts[i].is_set)
            return wb_fail(WB_INVALID_ARGUMENT, "transport %s: %s is NULL",
                           ops->name ? ops->name : "(no name)", parts[i].name);
    return WB_OK;
}

static wb_status open_memory(wb_comm *comm) {
    const size_t ranks = (size_t)comm->size;
    comm->scratch_bytes = WB_SUM_BYTES + ranks * sizeof(uint64_t);
    WB_TRY(WB_OWN(&comm->memory, comm->scratch, comm->scratch_bytes, "communicator scratch"));
    WB_TRY(WB_OWN(&comm->memory, comm->part_bytes, ranks, "communicator part sizes"));
    return WB_OWN(&comm->memory, comm->part_offsets, ranks, "communicator part offsets");
}

wb_status wb_comm_new(const wb_comm_ops *ops, int rank, int size, void *state, wb_comm **comm_out) {
    wb_comm *comm = NULL;
    if (!ops || !comm_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_comm_new: NULL");
    WB_TRY(check_ops(ops));
    if (size < 1 || rank < 0 || rank >= size)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "transport %s: expected a rank below the number of ranks, found %d of %d", ops->name,
                       rank, size);
    WB_TRY(WB_NEW(comm, 1, "communicator"));
    comm->ops = *ops;
    comm->rank = rank;
    comm->size = size;
    comm->state = state;
    comm->timeout = DEFAULT_TIMEOUT;
    const wb_status status = open_memory(comm);
    if (status == WB_OK)
        *comm_out = comm;
    else
        wb_comm_delete(comm);
    return status;
}

void wb_comm_delete(wb_comm *comm) {
    if (!comm) return;
    wb_owner_close(&comm->memory);
    free(comm);
}

int wb_comm_rank(const wb_comm *comm) {
    return comm->rank;
}

int wb_comm_size(const wb_comm *comm) {
    return comm->size;
}

const char *wb_comm_name(const wb_comm *comm) {
    return comm->ops.name;
}

void *wb_comm_state(const wb_comm *comm) {
    return comm->state;
}

wb_comm_count wb_comm_stats(const wb_comm *comm) {
    return comm->count;
}

void wb_comm_close(wb_comm *comm) {
    if (comm) comm->ops.close(comm);
}

void wb_comm_abort(wb_comm *comm) {
    if (comm) comm->ops.abort(comm);
}

wb_status wb_comm_look(wb_comm *comm) {
    return comm->ops.look ? comm->ops.look(comm) : WB_OK;
}

wb_status wb_comm_set_timeout(wb_comm *comm, double seconds) {
    if (!(seconds > 0 && seconds <= MAX_TIMEOUT))
        return wb_fail(WB_INVALID_ARGUMENT, "timeout: expected above 0 and at most %g seconds, found %g",
                       MAX_TIMEOUT, seconds);
    comm->timeout = seconds;
    return WB_OK;
}

double wb_comm_timeout(const wb_comm *comm) {
    return comm->timeout;
}

/* ---- moving bytes -------------------------------------------------------------------------------- */

wb_status wb_comm_check_buffer(const char *call, const char *name, const void *buffer, size_t bytes) {
    if (bytes > 0 && !buffer)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %s: expected %zu bytes, found NULL", call, name, bytes);
    return WB_OK;
}

wb_status wb_comm_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    if (root < 0 || root >= comm->size)
        return wb_fail(WB_INVALID_ARGUMENT, "broadcast: root: expected 0..%d, found %d", comm->size - 1,
                       root);
    WB_TRY(wb_comm_check_buffer("broadcast", "buffer", buffer, bytes));
    comm->count.broadcasts++;
    return comm->ops.broadcast(comm, buffer, bytes, root);
}

wb_status wb_comm_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    if (bytes > SIZE_MAX / (size_t)comm->size)
        return wb_fail(WB_INVALID_ARGUMENT, "all_gather: %zu bytes on each of %d ranks overflow", bytes,
                       comm->size);
    WB_TRY(wb_comm_check_buffer("all_gather", "send", send, bytes));
    WB_TRY(wb_comm_check_buffer("all_gather", "recv", recv, bytes));
    comm->count.all_gathers++;
    return comm->ops.all_gather(comm, send, bytes, recv);
}

wb_status wb_comm_check_parts(int ranks, const char *name, const void *buffer, const size_t *bytes,
                              const size_t *offsets) {
    if (!bytes || !offsets)
        return wb_fail(WB_INVALID_ARGUMENT, "all_to_all_v: %s: expected sizes and offsets, found NULL", name);
    for (int r = 0; r < ranks; r++) {
        if (bytes[r] > SIZE_MAX - offsets[r])
            return wb_fail(WB_INVALID_ARGUMENT, "all_to_all_v: %s: rank %d: offset %zu + %zu bytes overflow",
                           name, r, offsets[r], bytes[r]);
        WB_TRY(wb_comm_check_buffer("all_to_all_v", name, buffer, bytes[r]));
    }
    return WB_OK;
}

wb_status wb_comm_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                               const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                               const size_t *recv_offsets) {
    WB_TRY(wb_comm_check_parts(comm->size, "send", send, send_bytes, send_offsets));
    WB_TRY(wb_comm_check_parts(comm->size, "recv", recv, recv_bytes, recv_offsets));
    comm->count.all_to_alls++;
    return comm->ops.all_to_all_v(comm, send, send_bytes, send_offsets, recv, recv_bytes, recv_offsets);
}

wb_status wb_comm_barrier(wb_comm *comm) {
    comm->count.barriers++;
    return comm->ops.barrier(comm);
}
