/* comm_nccl.c - the communicator of the adapter, opened and closed; its control plane is another one's, call
 * by call. Refuses: transfers (exchange_nccl.c), waiting for NCCL without a bound (nccl_keeper.c). */
#include "nccl_keeper.h"
#include "nccl_state.h"
#include "wb_check.h"
#include "wb_comm_nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the control plane --------------------------------------------------------------------------- */

static wb_comm *control_of(wb_comm *comm) {
    const wb_nccl_state *state = wb_comm_state(comm);
    WB_IGNORE(wb_comm_set_timeout(state->control, wb_comm_timeout(comm)));
    return state->control;
}

/* PEER of a transport is its end: what lies on the stream for those ranks does not come either. */
static wb_status ended(wb_comm *comm, wb_status status) {
    const wb_nccl_state *state = wb_comm_state(comm);
    if (status == WB_PEER) wb_nccl_plane_give_up(state->plane, wb_error_message());
    return status;
}

static wb_status nccl_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    return ended(comm, wb_comm_broadcast(control_of(comm), buffer, bytes, root));
}

static wb_status nccl_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    return ended(comm, wb_comm_all_gather(control_of(comm), send, bytes, recv));
}

static wb_status nccl_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                   const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                   const size_t *recv_offsets) {
    return ended(comm, wb_comm_all_to_all_v(control_of(comm), send, send_bytes, send_offsets, recv,
                                            recv_bytes, recv_offsets));
}

static wb_status nccl_barrier(wb_comm *comm) {
    return ended(comm, wb_comm_barrier(control_of(comm)));
}

static wb_status nccl_look(wb_comm *comm) {
    return ended(comm, wb_comm_look(control_of(comm)));
}

static void nccl_abort(wb_comm *comm) {
    wb_nccl_state *state = wb_comm_state(comm);
    char text[480], why[512];
    snprintf(text, sizeof text, "%s", wb_error_message());
    wb_comm_abort(state->control);
    snprintf(why, sizeof why, "rank %d gave up%s%s", wb_comm_rank(comm), text[0] ? ": " : "", text);
    wb_nccl_plane_give_up(state->plane, why);
}

/* ---- closing ------------------------------------------------------------------------------------- */

/* What cannot be ended is left to the end of the process, with the thread that tries to. */
static void close_plane(wb_nccl_plane *plane) {
    if (!plane || !wb_nccl_plane_end(plane)) return;
    wb_nccl_keeper_stop(plane);
    wb_nccl_plane_free(plane);
}

static void free_state(wb_nccl_state *state) {
    if (!state) return;
    close_plane(state->plane);
    free(state);
}

/* A rank whose transfers have come may be ahead of one that still reads, over the wire, what this one holds.
 * So NCCL ends when all have come here, or a failure has made that worthless. Others that wait for transfers
 * of this rank wait for a timeout, and then say so: longer than that, so that they are heard. */
static void meet_others(wb_comm *comm) {
    const wb_nccl_state *state = wb_comm_state(comm);
    const double timeout = wb_comm_timeout(comm);
    WB_IGNORE(wb_comm_set_timeout(state->control, 2 * timeout + 5));
    WB_IGNORE(wb_comm_barrier(state->control));
    WB_IGNORE(wb_comm_set_timeout(state->control, timeout));
}

static void nccl_close(wb_comm *comm) {
    wb_nccl_state *state = wb_comm_state(comm);
    if (wb_nccl_plane_drain(state->plane) == WB_OK) meet_others(comm);
    free_state(state);
    wb_comm_delete(comm);
}

static const wb_comm_ops nccl_ops = {.size = sizeof(wb_comm_ops),
                                     .name = "nccl",
                                     .broadcast = nccl_broadcast,
                                     .all_gather = nccl_all_gather,
                                     .all_to_all_v = nccl_all_to_all_v,
                                     .barrier = nccl_barrier,
                                     .abort = nccl_abort,
                                     .close = nccl_close,
                                     .open_exchange = wb_nccl_open_exchange,
                                     .look = nccl_look};

/* ---- what the ranks have ------------------------------------------------------------------------- */

typedef struct offer {
    int32_t status, version;
    unsigned char gpu_id[WB_GPU_ID_BYTES];
    char text[232]; /* of a failure */
} offer;

static wb_status find_means(wb_nccl_plane *plane, offer *mine) {
    WB_TRY(wb_nccl_load(&plane->nccl));
    mine->version = plane->nccl->version;
    return wb_gpu_id(plane->gpu, mine->gpu_id);
}

static wb_status judge_pair(const offer *offers, int a, int b) {
    if (offers[a].version != offers[b].version)
        return wb_fail(WB_UNSUPPORTED, "NCCL: rank %d has version %d, rank %d has %d", a, offers[a].version,
                       b, offers[b].version);
    if (memcmp(offers[a].gpu_id, offers[b].gpu_id, WB_GPU_ID_BYTES) == 0)
        return wb_fail(WB_UNSUPPORTED, "NCCL: ranks %d and %d have the same GPU", a, b);
    return WB_OK;
}

/* Every rank has all offers, and comes to the same verdict. */
static wb_status judge(const offer *offers, int ranks) {
    for (int r = 0; r < ranks; r++)
        if (offers[r].status != WB_OK) return wb_fail(WB_UNSUPPORTED, "rank %d: %s", r, offers[r].text);
    for (int b = 1; b < ranks; b++)
        for (int a = 0; a < b; a++) WB_TRY(judge_pair(offers, a, b));
    return WB_OK;
}

/* Collective. offers: [ranks], one that this rank failed to allocate is NULL. */
static wb_status agree_on_means(wb_comm *control, wb_nccl_plane *plane, wb_status local, offer *offers) {
    offer mine = {0};
    WB_TRY(wb_comm_agree(control, local));
    mine.status = (int32_t)find_means(plane, &mine);
    if (mine.status != WB_OK) snprintf(mine.text, sizeof mine.text, "%s", wb_error_message());
    WB_TRY(wb_comm_all_gather(control, &mine, sizeof mine, offers));
    return judge(offers, wb_comm_size(control));
}

/* ---- opening ------------------------------------------------------------------------------------- */

/* The first transfers: a byte to and from each other rank. */
typedef struct first_transfers {
    wb_exchange_item *items; /* [2 * ranks] */
    void *bytes;             /* device, [2 * ranks] */
    void *come;              /* event */
} first_transfers;

/* What can fail on this rank alone, while no other waits for it in NCCL. */
static wb_status open_plane(wb_nccl_plane *plane, first_transfers *first) {
    const size_t n = 2 * (size_t)plane->ranks;
    first->items = calloc(n, sizeof *first->items);
    if (!first->items) return wb_fail(WB_OUT_OF_MEMORY, "NCCL: the first transfers");
    WB_TRY(wb_gpu_use(plane->gpu));
    WB_TRY(wb_gpu_alloc(n, &first->bytes));
    WB_TRY(wb_gpu_event_open(&first->come));
    WB_TRY(wb_gpu_stream_open(&plane->stream));
    WB_TRY(wb_gpu_event_open(&plane->joined));
    WB_TRY(wb_gpu_event_open(&plane->probe));
    return wb_nccl_keeper_start(plane);
}

/* NCCL has come to their end, or has ended; else their memory is still its own. */
static void free_first(first_transfers *first) {
    wb_gpu_event_close(first->come);
    wb_gpu_free(first->bytes);
    free(first->items);
}

static wb_status make_id(const wb_nccl_plane *plane, ncclUniqueId *id_out) {
    if (plane->rank != 0) return WB_OK;
    const ncclResult_t code = plane->nccl->GetUniqueId(id_out);
    if (code == ncclSuccess) return WB_OK;
    return wb_fail(WB_PEER, "NCCL: id: %s (%s)", plane->nccl->GetErrorString(code),
                   plane->nccl->GetLastError(NULL));
}

/* NCCL connects two ranks when the first of their transfers is started, and waits for the other meanwhile,
 * which no later start may do. */
static wb_status connect_pairs(wb_nccl_plane *plane, const first_transfers *first) {
    char *const bytes = first->bytes;
    size_t n = 0;
    for (int i = 1; i < plane->ranks; i++) {
        const int to = (plane->rank + i) % plane->ranks,
                  from = (plane->rank - i + plane->ranks) % plane->ranks;
        first->items[n++].transfer = (wb_transfer){to, false, bytes + to, 1};
        first->items[n++].transfer = (wb_transfer){from, true, bytes + plane->ranks + from, 1};
    }
    if (n == 0) return WB_OK;
    WB_TRY(wb_nccl_plane_queue(plane, plane->stream, first->items, n, first->come));
    return wb_nccl_plane_drain(plane);
}

/* Collective. */
static wb_status connect_ranks(wb_comm *control, wb_nccl_plane *plane, first_transfers *first) {
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    WB_TRY(wb_comm_agree(control, open_plane(plane, first)));
    WB_TRY(wb_comm_agree(control, make_id(plane, &id)));
    WB_TRY(wb_comm_broadcast(control, &id, sizeof id, 0));
    WB_TRY(wb_comm_agree(control, wb_nccl_plane_connect(plane, &id)));
    return wb_comm_agree(control, connect_pairs(plane, first));
}

static wb_status connect_all(wb_comm *control, wb_nccl_plane *plane) {
    first_transfers first = {NULL, NULL, NULL};
    const wb_status status = connect_ranks(control, plane, &first);
    if (status == WB_OK || wb_nccl_plane_end(plane)) free_first(&first);
    return status;
}

/* Memory of this rank; what was made when it fails is in *comm_out or *state_out. */
static wb_status open_local(wb_comm *control, int gpu, bool check_sizes, wb_nccl_state **state_out,
                            offer **offers_out, wb_comm **comm_out) {
    const int rank = wb_comm_rank(control), ranks = wb_comm_size(control);
    wb_nccl_state *state = calloc(1, sizeof *state);
    *state_out = state;
    *offers_out = calloc((size_t)ranks, sizeof **offers_out);
    if (!state || !*offers_out) return wb_fail(WB_OUT_OF_MEMORY, "NCCL communicator");
    *state = (wb_nccl_state){.control = control, .check_sizes = check_sizes};
    WB_TRY(wb_nccl_plane_new(gpu, rank, ranks, &state->plane));
    state->plane->timeout = wb_comm_timeout(control);
    return wb_comm_new(&nccl_ops, rank, ranks, state, comm_out);
}

wb_status wb_comm_open_nccl(wb_comm *control, int gpu, bool check_sizes, wb_comm **comm_out) {
    if (!control || !comm_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_comm_open_nccl: NULL");
    wb_nccl_state *state = NULL;
    wb_comm *comm = NULL;
    offer *offers = NULL;
    wb_status status = open_local(control, gpu, check_sizes, &state, &offers, &comm);
    status = agree_on_means(control, state ? state->plane : NULL, status, offers);
    free(offers);
    if (status == WB_OK) status = connect_all(control, state->plane);
    if (status == WB_OK) status = wb_comm_set_timeout(comm, wb_comm_timeout(control));
    if (status == WB_OK) {
        *comm_out = comm;
        return WB_OK;
    }
    wb_comm_delete(comm);
    free_state(state);
    return status;
}
