/* mpi_lanes.c - see mpi_lanes.h. */
#include "mpi_lanes.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define FRAME_TAG 0
#define DATA_TAG 1
#define DROP_SECONDS 1.0

/* Of buffers, which begin with the numbers of a frame. */
#define ALIGNMENT 64

/* ---- between device memory and a message's buffer -------------------------------------------------- */

static wb_status fetch(const wb_lanes *x, void *host, const wb_lane_message *m) {
    if (m->length == 0) return WB_OK;
    if (!x->memory.host_access) return x->memory.to_host(x->memory.context, host, m->data, m->length);
    memcpy(host, m->data, m->length);
    return WB_OK;
}

static wb_status deliver(const wb_lanes *x, const wb_lane_message *m, const void *host) {
    if (m->length == 0) return WB_OK;
    if (!x->memory.host_access) return x->memory.to_device(x->memory.context, m->data, host, m->length);
    memcpy(m->data, host, m->length);
    return WB_OK;
}

/* ---- posting ------------------------------------------------------------------------------------- */

static wb_status post(const wb_lanes *x, const wb_lane *l, wb_lane_message *m, void *at, size_t length,
                      int tag) {
    if (l->receives)
        return wb_mpi_check(MPI_Irecv(at, (int)length, MPI_BYTE, l->peer, tag, x->comm, &m->request),
                            "MPI_Irecv");
    return wb_mpi_check(MPI_Isend(at, (int)length, MPI_BYTE, l->peer, tag, x->comm, &m->request),
                        "MPI_Isend");
}

static bool is_long(const wb_exchange_item *item) {
    return item->transfer.bytes > WB_MPI_SHORT_BYTES;
}

/* A receive takes any frame, whatever is in it. */
static wb_status post_frame(const wb_lanes *x, const wb_lane *l, wb_lane_message *m) {
    const wb_exchange_item *item = m->item;
    wb_lane_frame *frame = (void *)m->buffer;
    m->data = item->transfer.data;
    m->length = is_long(item) ? 0 : item->transfer.bytes;
    m->is_last = !is_long(item);
    if (l->receives) return post(x, l, m, frame, sizeof *frame, FRAME_TAG);
    frame->group = item->group->number;
    frame->bytes = item->transfer.bytes;
    WB_TRY(fetch(x, frame->part, m));
    return post(x, l, m, frame, offsetof(wb_lane_frame, part) + m->length, FRAME_TAG);
}

/* `moved` counts what was posted. */
static wb_status post_data(const wb_lanes *x, const wb_lane *l, wb_lane_message *m) {
    wb_exchange_item *item = m->item;
    const size_t left = item->transfer.bytes - item->moved;
    m->data = (unsigned char *)item->transfer.data + item->moved;
    m->length = left < x->piece_bytes ? left : x->piece_bytes;
    m->is_last = left == m->length;
    item->moved += m->length;
    if (x->memory.host_access) return post(x, l, m, m->data, m->length, DATA_TAG);
    if (!l->receives) WB_TRY(fetch(x, m->buffer, m));
    return post(x, l, m, m->buffer, m->length, DATA_TAG);
}

static wb_status post_next(const wb_lanes *x, wb_lane *l) {
    wb_lane_message *m = &l->messages[(l->begin + l->n) % WB_LANE_MESSAGES];
    m->item = l->first;
    m->is_frame = !l->announced;
    WB_TRY(m->is_frame ? post_frame(x, l, m) : post_data(x, l, m));
    l->n++;
    l->announced = !m->is_last;
    if (m->is_last) l->first = l->first->next;
    return WB_OK;
}

/* ---- taking -------------------------------------------------------------------------------------- */

static wb_status check_frame(const wb_lanes *x, const wb_lane *l, const wb_lane_message *m) {
    const wb_lane_frame *frame = (const void *)m->buffer;
    const uint64_t group = m->item->group->number;
    const size_t bytes = m->item->transfer.bytes;
    if (frame->group != group)
        return wb_fail(WB_MISMATCH,
                       "exchange: rank %d to rank %d: expected %zu bytes in group %" PRIu64 ", found %" PRIu64
                       " in group %" PRIu64,
                       l->peer, x->rank, bytes, group, frame->bytes, frame->group);
    if (frame->bytes != bytes)
        return wb_fail(WB_MISMATCH,
                       "exchange: group %" PRIu64 ": rank %d to rank %d: expected %zu bytes, found %" PRIu64,
                       group, l->peer, x->rank, bytes, frame->bytes);
    return WB_OK;
}

/* A message that has come, or has left. */
static wb_status take(const wb_lanes *x, const wb_lane *l, const wb_lane_message *m) {
    if (l->receives && m->is_frame) {
        WB_TRY(check_frame(x, l, m));
        WB_TRY(deliver(x, m, ((const wb_lane_frame *)(const void *)m->buffer)->part));
    } else if (l->receives && !x->memory.host_access) {
        WB_TRY(deliver(x, m, m->buffer));
    }
    if (m->is_last) m->item->group->left--;
    return WB_OK;
}

/* The oldest first, so that nothing behind a frame is looked at before it. */
static wb_status move_lane(const wb_lanes *x, wb_lane *l) {
    while (l->n > 0) {
        wb_lane_message *m = &l->messages[l->begin];
        int done = 0;
        WB_TRY(wb_mpi_check(MPI_Test(&m->request, &done, MPI_STATUS_IGNORE), "MPI_Test"));
        if (!done) break;
        WB_TRY(take(x, l, m));
        l->begin = (l->begin + 1) % WB_LANE_MESSAGES;
        l->n--;
    }
    while (l->first && l->n < WB_LANE_MESSAGES) WB_TRY(post_next(x, l));
    return WB_OK;
}

/* ---- all lanes ----------------------------------------------------------------------------------- */

static wb_lane *lane_of(const wb_lanes *x, int peer, bool receives) {
    return &x->lanes[receives ? peer : x->ranks + peer];
}

void wb_lanes_push(wb_lanes *x, wb_exchange_item *item) {
    wb_lane *l = lane_of(x, item->transfer.peer, item->transfer.receive);
    if (l->first)
        l->last->next = item;
    else
        l->first = item;
    l->last = item;
}

wb_status wb_lanes_move(wb_lanes *x) {
    for (int i = 1; i < x->ranks; i++) {
        WB_TRY(move_lane(x, lane_of(x, (x->rank - i + x->ranks) % x->ranks, true)));
        WB_TRY(move_lane(x, lane_of(x, (x->rank + i) % x->ranks, false)));
    }
    return WB_OK;
}

void wb_lanes_drop(wb_lanes *x) {
    const double end = MPI_Wtime() + DROP_SECONDS;
    for (int i = 0; i < 2 * x->ranks; i++) {
        wb_lane *l = &x->lanes[i];
        for (; l->n > 0; l->n--, l->begin = (l->begin + 1) % WB_LANE_MESSAGES) {
            MPI_Request *request = &l->messages[l->begin].request;
            int done = *request == MPI_REQUEST_NULL;
            if (!done && l->receives) MPI_Cancel(request);
            while (!done && MPI_Wtime() < end)
                if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) done = 1;
        }
        l->first = l->last = NULL;
    }
}

/* ---- opening and closing ------------------------------------------------------------------------- */

wb_status wb_lanes_prepare(wb_lanes *x, size_t staged_bytes) {
    const size_t n = 2 * (size_t)x->ranks;
    size_t bytes = sizeof(wb_lane_frame);
    if (!x->memory.host_access && bytes < staged_bytes) bytes = staged_bytes;
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *buffers = NULL;
    x->lanes = calloc(n, sizeof *x->lanes);
    if (!x->lanes) return wb_fail(WB_OUT_OF_MEMORY, "exchange over MPI: %d ranks", x->ranks);
    WB_TRY(x->memory.host_alloc(x->memory.context, n * WB_LANE_MESSAGES * bytes, &buffers));
    x->buffers = buffers;
    for (size_t i = 0; i < n; i++) {
        wb_lane *l = &x->lanes[i];
        l->peer = (int)i % x->ranks;
        l->receives = (int)i < x->ranks;
        for (size_t k = 0; k < WB_LANE_MESSAGES; k++) {
            l->messages[k].request = MPI_REQUEST_NULL;
            l->messages[k].buffer = x->buffers + (i * WB_LANE_MESSAGES + k) * bytes;
        }
    }
    return WB_OK;
}

void wb_lanes_close(wb_lanes *x) {
    if (x->comm != MPI_COMM_NULL) MPI_Comm_free(&x->comm);
    free(x->lanes);
    x->memory.host_free(x->memory.context, x->buffers);
}
