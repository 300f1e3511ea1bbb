/* exchange_nccl.c - the data plane over NCCL: a group of transfers is one group of NCCL's sends and receives.
 *
 * Owns: the events by which a caller's stream waits for its groups. They lie on a stream of their own and not
 * on the caller's: there, what the caller does between a start and its wait would come after the transfer,
 * where the two are to run beside each other. Refuses: sums in NCCL, whose order depends on rank count and
 * size; waiting on the host for another rank; transfers of no bytes, which both sides leave out. */
#include "nccl_state.h"
#include "wb_check.h"

#include <stdlib.h>

/* A group that was started and is not waited for. */
typedef struct started {
    uint64_t group; /* 0: free */
    void *come;     /* event: behind its transfers */
} started;

typedef struct nccl_exchange {
    wb_comm *comm;
    wb_nccl_state *state;
    wb_exchange_memory memory;
    wb_nccl_listener listener;
    started groups[WB_EXCHANGE_IN_FLIGHT]; /* each work has one group at a time */
} nccl_exchange;

/* ---- the adapter --------------------------------------------------------------------------------- */

/* A rank that gave up has said why on the control plane, and that goes before NCCL's word for it. */
static wb_status check_alive(nccl_exchange *x) {
    wb_nccl_plane *plane = x->state->plane;
    const wb_status heard = wb_comm_look(x->state->control);
    if (heard != WB_OK) {
        wb_nccl_plane_give_up(plane, wb_error_message());
        return heard;
    }
    pthread_mutex_lock(&plane->mutex);
    plane->timeout = wb_comm_timeout(x->comm);
    pthread_mutex_unlock(&plane->mutex);
    return wb_nccl_plane_check(plane);
}

static bool has_bytes(const wb_exchange_group *group) {
    for (size_t i = 0; i < group->n; i++)
        if (group->items[i].transfer.bytes > 0) return true;
    return false;
}

static started *find_group(nccl_exchange *x, uint64_t group) {
    for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++)
        if (x->groups[i].group == group) return &x->groups[i];
    return NULL;
}

/* The items are NCCL's no longer when this returns. */
static wb_status exchange_start(void *opaque, wb_exchange_group *group) {
    nccl_exchange *x = opaque;
    WB_TRY(check_alive(x));
    if (x->state->check_sizes) WB_TRY(wb_nccl_check_sizes(x->state->control, group));
    if (has_bytes(group)) {
        started *const slot = find_group(x, 0);
        if (!slot) return wb_fail(WB_INVALID_ARGUMENT, "exchange over NCCL: too many groups in flight");
        WB_TRY(wb_gpu_use(x->state->plane->gpu));
        WB_TRY(wb_nccl_plane_queue(x->state->plane, x->memory.stream, group->items, group->n, slot->come));
        slot->group = group->number;
    }
    group->left = 0;
    return WB_OK;
}

/* A group without bytes has nothing to wait for. */
static wb_status exchange_wait(void *opaque, wb_exchange_group *group) {
    nccl_exchange *x = opaque;
    WB_TRY(check_alive(x));
    started *const slot = find_group(x, group->number);
    if (!slot) return WB_OK;
    WB_TRY(wb_gpu_wait(x->memory.stream, slot->come));
    slot->group = 0;
    return WB_OK;
}

/* All exchanges of the communicator end with it. NCCL's kernels have left the GPU then, unless the GPU itself
 * does not go on, of which nobody can take back anything. */
static void exchange_drop(void *opaque) {
    nccl_exchange *x = opaque;
    wb_nccl_plane_give_up(x->state->plane, wb_error_message());
    WB_IGNORE(wb_nccl_plane_end(x->state->plane));
}

static void free_exchange(nccl_exchange *x) {
    for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++) wb_gpu_event_close(x->groups[i].come);
    free(x);
}

/* What was waited for and has not come yet goes on: the caller's memory is his in the order of his stream. */
static void exchange_close(void *opaque) {
    nccl_exchange *x = opaque;
    wb_nccl_plane *plane = x->state->plane;
    pthread_mutex_lock(&plane->mutex);
    wb_nccl_listener **at = &plane->listeners;
    while (*at && *at != &x->listener) at = &(*at)->next;
    if (*at) *at = x->listener.next;
    pthread_mutex_unlock(&plane->mutex);
    free_exchange(x);
}

static const wb_exchange_ops exchange_ops = {.size = sizeof(wb_exchange_ops),
                                             .start = exchange_start,
                                             .wait = exchange_wait,
                                             .drop = exchange_drop,
                                             .close = exchange_close};

/* ---- opening ------------------------------------------------------------------------------------- */

static wb_status check_memory(const wb_exchange_memory *memory) {
    if (memory->host_access)
        return wb_fail(WB_INVALID_ARGUMENT, "exchange over NCCL: expected memory of a GPU, found the host's");
    if (!memory->lose) return wb_fail(WB_INVALID_ARGUMENT, "exchange over NCCL: memory: lose is NULL");
    return WB_OK;
}

/* That the stream is one of this GPU shows when an event of it is recorded there. */
static wb_status open_events(nccl_exchange *x) {
    WB_TRY(wb_gpu_use(x->state->plane->gpu));
    for (size_t i = 0; i < WB_EXCHANGE_IN_FLIGHT; i++) WB_TRY(wb_gpu_event_open(&x->groups[i].come));
    return wb_gpu_record(x->groups[0].come, x->memory.stream);
}

static wb_status open_local(wb_comm *comm, const wb_exchange_memory *memory, nccl_exchange **x_out,
                            wb_exchange **exchange_out) {
    WB_TRY(check_memory(memory));
    nccl_exchange *x = calloc(1, sizeof *x);
    if (!x) return wb_fail(WB_OUT_OF_MEMORY, "exchange over NCCL");
    *x = (nccl_exchange){.comm = comm, .state = wb_comm_state(comm), .memory = *memory};
    x->listener = (wb_nccl_listener){.lose = memory->lose, .context = memory->context};
    wb_status status = open_events(x);
    if (status == WB_OK) status = wb_exchange_new(&exchange_ops, comm, memory, x, exchange_out);
    if (status != WB_OK) {
        free_exchange(x);
        return status;
    }
    *x_out = x;
    return WB_OK;
}

wb_status wb_nccl_open_exchange(wb_comm *comm, const wb_exchange_memory *memory, wb_exchange **exchange_out) {
    nccl_exchange *x = NULL;
    wb_exchange *exchange = NULL;
    const wb_status status = wb_comm_agree(comm, open_local(comm, memory, &x, &exchange));
    if (status != WB_OK) {
        wb_exchange_close(exchange);
        return status;
    }
    wb_nccl_plane *plane = x->state->plane;
    pthread_mutex_lock(&plane->mutex);
    x->listener.next = plane->listeners;
    plane->listeners = &x->listener;
    pthread_mutex_unlock(&plane->mutex);
    *exchange_out = exchange;
    return WB_OK;
}
