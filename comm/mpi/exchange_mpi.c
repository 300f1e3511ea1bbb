/* exchange_mpi.c - the data plane between MPI processes.
 *
 * Owns: a duplicate of the communicator's own, so that rows never meet the control plane's messages; a lane
 * to and from each other rank, on which transfers go one after the other; and, where the host has no access
 * to the memory, one buffer with a piece for each lane, through which all data pass. Refuses: threads of its
 * own: data move while a rank starts or waits.
 *
 * A transfer of at most a piece is one message; a longer one is announced by its size and travels in pieces.
 * A receiver looks at a message's size and group before MPI may write it anywhere (MPI_Improbe), so that a
 * size that the two sides disagree on is found and writes nothing. */
#include "exchange_mpi.h"
#include "mpi_messages.h"
#include "wb_check.h"

#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>

/* What is staged in all, and on one lane at once. */
#define STAGING_BYTES ((size_t)16 << 20)
#define MOST_PIECE_BYTES ((size_t)1 << 20)
#define LEAST_PIECE_BYTES ((size_t)4 << 10)

/* Rounds over all lanes between two looks at clock and letters. */
#define ROUNDS_A_LOOK 16
#define DROP_SECONDS 1.0

/* MPI promises tags up to 32767: groups by their number, and whether it is an announcement. */
#define GROUP_TAGS 16384

typedef struct lane {
    wb_exchange_item *first, *last; /* by `next`; both NULL when empty */
    MPI_Request request;            /* of the message on its way, or MPI_REQUEST_NULL */
    size_t length;                  /* of its data; 0: an announcement, or no bytes at all */
    uint64_t announced;             /* the size of the first transfer, 0 before it was announced */
    unsigned char *piece;           /* staged: [piece_bytes] */
} lane;

typedef struct mpi_exchange {
    wb_comm *comm;
    wb_mpi_state *plane; /* the communicator's own: its control, which a wait looks at */
    wb_exchange_memory memory;
    MPI_Comm mpi; /* MPI_COMM_NULL until duplicated */
    int rank, ranks;
    size_t piece_bytes;
    unsigned char *staging; /* NULL: MPI reads and writes the memory itself */
    lane *sends, *receives; /* [ranks] */
} mpi_exchange;

/* ---- lanes --------------------------------------------------------------------------------------- */

static void lane_push(lane *l, wb_exchange_item *item) {
    if (l->last)
        l->last->next = item;
    else
        l->first = item;
    l->last = item;
}

/* `length` bytes more of the first transfer are done, and perhaps all. */
static void lane_advance(lane *l) {
    wb_exchange_item *item = l->first;
    item->moved += l->length;
    if (item->moved < item->transfer.bytes) return;
    item->group->left--;
    l->first = item->next;
    if (!l->first) l->last = NULL;
    l->announced = 0;
}

static int tag_of(const wb_exchange_item *item, bool announces) {
    return (int)(item->group->number % GROUP_TAGS) * 2 + announces;
}

static bool is_long(const mpi_exchange *x, const wb_exchange_item *item) {
    return item->transfer.bytes > x->piece_bytes;
}

/* The bytes of the next message of data. */
static size_t next_length(const mpi_exchange *x, const wb_exchange_item *item) {
    const size_t left = item->transfer.bytes - item->moved;
    return left < x->piece_bytes ? left : x->piece_bytes;
}

static void *place_of(const wb_exchange_item *item) {
    return item->transfer.bytes > 0 ? (unsigned char *)item->transfer.data + item->moved : NULL;
}

/* Whether the lane has no message on its way. */
static wb_status lane_test(lane *l, bool *free_out) {
    int done = 1;
    if (l->request != MPI_REQUEST_NULL)
        WB_TRY(wb_mpi_check(MPI_Test(&l->request, &done, MPI_STATUS_IGNORE), "MPI_Test"));
    *free_out = done;
    return WB_OK;
}

/* ---- sending ------------------------------------------------------------------------------------- */

static wb_status send_next(mpi_exchange *x, int peer) {
    lane *l = &x->sends[peer];
    wb_exchange_item *item = l->first;
    if (is_long(x, item) && l->announced == 0) {
        l->announced = item->transfer.bytes;
        l->length = 0;
        return wb_mpi_check(MPI_Isend(&l->announced, (int)sizeof l->announced, MPI_BYTE, peer,
                                      tag_of(item, true), x->mpi, &l->request),
                            "MPI_Isend");
    }
    void *at = place_of(item);
    l->length = next_length(x, item);
    if (x->staging && l->length > 0) {
        WB_TRY(x->memory.to_host(x->memory.context, l->piece, at, l->length));
        at = l->piece;
    }
    return wb_mpi_check(
        MPI_Isend(at, (int)l->length, MPI_BYTE, peer, tag_of(item, false), x->mpi, &l->request), "MPI_Isend");
}

static wb_status push_sends(mpi_exchange *x, int peer) {
    lane *l = &x->sends[peer];
    while (l->first) {
        const bool busy = l->request != MPI_REQUEST_NULL;
        bool is_free;
        WB_TRY(lane_test(l, &is_free));
        if (!is_free) return WB_OK;
        if (busy) lane_advance(l);
        if (l->first) WB_TRY(send_next(x, peer));
    }
    return WB_OK;
}

/* ---- receiving ----------------------------------------------------------------------------------- */

static wb_status size_fail(const mpi_exchange *x, int peer, const wb_exchange_item *item, uint64_t found) {
    return wb_fail(WB_MISMATCH,
                   "exchange: group %" PRIu64 ": rank %d to rank %d: expected %zu bytes, found %" PRIu64,
                   item->group->number, peer, x->rank, item->transfer.bytes, found);
}

/* A message has come; MPI may write it once its group and its size are those of the first transfer. */
static wb_status receive_next(mpi_exchange *x, int peer, MPI_Message *message, const MPI_Status *found) {
    lane *l = &x->receives[peer];
    wb_exchange_item *item = l->first;
    int length = 0;
    WB_TRY(wb_mpi_check(MPI_Get_count(found, MPI_BYTE, &length), "MPI_Get_count"));
    if (found->MPI_TAG / 2 != tag_of(item, false) / 2)
        return wb_fail(WB_MISMATCH,
                       "exchange: group %" PRIu64 ": rank %d to rank %d: expected %zu bytes, found a message "
                       "of %d bytes of another group",
                       item->group->number, peer, x->rank, item->transfer.bytes, length);
    const bool announces = found->MPI_TAG % 2 != 0;
    l->length = announces ? 0 : next_length(x, item);
    if (!announces && ((size_t)length != l->length || (is_long(x, item) && l->announced == 0)))
        return size_fail(x, peer, item, (uint64_t)length);
    void *at = announces ? (void *)&l->announced : x->staging ? l->piece : place_of(item);
    return wb_mpi_check(MPI_Imrecv(at, length, MPI_BYTE, message, &l->request), "MPI_Imrecv");
}

/* The message that was on its way is there. */
static wb_status take_received(mpi_exchange *x, int peer) {
    lane *l = &x->receives[peer];
    wb_exchange_item *item = l->first;
    if (l->announced > 0 && l->announced != item->transfer.bytes)
        return size_fail(x, peer, item, l->announced);
    if (x->staging && l->length > 0)
        WB_TRY(x->memory.to_device(x->memory.context, place_of(item), l->piece, l->length));
    lane_advance(l);
    return WB_OK;
}

static wb_status pull_receives(mpi_exchange *x, int peer) {
    lane *l = &x->receives[peer];
    while (l->first) {
        const bool busy = l->request != MPI_REQUEST_NULL;
        bool is_free;
        WB_TRY(lane_test(l, &is_free));
        if (!is_free) return WB_OK;
        if (busy) WB_TRY(take_received(x, peer));
        if (!l->first) return WB_OK;
        int is_there = 0;
        MPI_Message message;
        MPI_Status found;
        WB_TRY(
            wb_mpi_check(MPI_Improbe(peer, MPI_ANY_TAG, x->mpi, &is_there, &message, &found), "MPI_Improbe"));
        if (!is_there) return WB_OK;
        WB_TRY(receive_next(x, peer, &message, &found));
    }
    return WB_OK;
}

/* ---- the adapter --------------------------------------------------------------------------------- */

static wb_status move(mpi_exchange *x) {
    for (int i = 1; i < x->ranks; i++) {
        WB_TRY(pull_receives(x, (x->rank - i + x->ranks) % x->ranks));
        WB_TRY(push_sends(x, (x->rank + i) % x->ranks));
    }
    return WB_OK;
}

static wb_status exchange_start(void *opaque, wb_exchange_group *group) {
    mpi_exchange *x = opaque;
    WB_TRY(wb_mpi_control_enter(x->comm, &x->plane->control, WB_MPI_EXCHANGE));
    /* MPI knows nothing of the stream; staged data are fetched in its order. */
    if (group->n > 0 && !x->staging) WB_TRY(x->memory.to_host(x->memory.context, NULL, NULL, 0));
    for (size_t i = 0; i < group->n; i++) {
        wb_exchange_item *item = &group->items[i];
        lane_push(&(item->transfer.receive ? x->receives : x->sends)[item->transfer.peer], item);
    }
    return move(x);
}

static wb_status exchange_wait(void *opaque, wb_exchange_group *group) {
    mpi_exchange *x = opaque;
    WB_TRY(wb_mpi_control_enter(x->comm, &x->plane->control, WB_MPI_EXCHANGE));
    for (unsigned rounds = 1;; rounds++) {
        WB_TRY(move(x));
        if (group->left == 0) return WB_OK;
        if (rounds % ROUNDS_A_LOOK != 0) continue;
        /* Another rank may need this core to come. */
        sched_yield();
        WB_TRY(wb_mpi_control_look(x->comm, &x->plane->control));
    }
}

/* What is under way at this moment is waited for, but not for ever: a message that nobody receives stays
 * MPI's. */
static void exchange_drop(void *opaque) {
    mpi_exchange *x = opaque;
    const double end = MPI_Wtime() + DROP_SECONDS;
    for (int r = 0; r < 2 * x->ranks; r++) {
        lane *l = r < x->ranks ? &x->receives[r] : &x->sends[r - x->ranks];
        int done = l->request == MPI_REQUEST_NULL;
        while (!done && MPI_Wtime() < end)
            if (MPI_Test(&l->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) done = 1;
        l->first = l->last = NULL;
    }
}

/* After a failure MPI may still read and write, and the duplicate has messages that nobody receives: all is
 * left to MPI_Finalize and the end of the process. */
static void exchange_close(void *opaque) {
    mpi_exchange *x = opaque;
    if (x->plane->control.dead) return;
    if (x->mpi != MPI_COMM_NULL) MPI_Comm_free(&x->mpi);
    free(x->staging);
    free(x->sends);
    free(x->receives);
    free(x);
}

static const wb_exchange_ops exchange_ops = {.size = sizeof(wb_exchange_ops),
                                             .start = exchange_start,
                                             .wait = exchange_wait,
                                             .drop = exchange_drop,
                                             .close = exchange_close};

/* ---- opening ------------------------------------------------------------------------------------- */

/* Of the longest message where a rank of this many stages its data; the same on all ranks. */
static size_t staged_piece(const mpi_exchange *x) {
    size_t piece = STAGING_BYTES / 2 / (size_t)x->ranks;
    if (piece > MOST_PIECE_BYTES) piece = MOST_PIECE_BYTES;
    if (piece < LEAST_PIECE_BYTES) piece = LEAST_PIECE_BYTES;
    return piece < x->plane->message_bytes ? piece : x->plane->message_bytes;
}

/* What this rank can fail at alone. */
static wb_status open_local(mpi_exchange *x) {
    const size_t ranks = (size_t)x->ranks, piece = staged_piece(x);
    x->sends = calloc(ranks, sizeof *x->sends);
    x->receives = calloc(ranks, sizeof *x->receives);
    if (!x->memory.host_access) x->staging = calloc(2 * ranks, piece);
    if (!x->sends || !x->receives || (!x->memory.host_access && !x->staging))
        return wb_fail(WB_OUT_OF_MEMORY, "exchange over MPI: %d ranks, %zu bytes a piece", x->ranks, piece);
    for (size_t r = 0; r < ranks; r++) {
        x->sends[r] = x->receives[r] = (lane){.request = MPI_REQUEST_NULL};
        if (!x->staging) continue;
        x->sends[r].piece = x->staging + r * piece;
        x->receives[r].piece = x->staging + (ranks + r) * piece;
    }
    return WB_OK;
}

/* Collective. MPI_Comm_dup waits as long as MPI likes, but all ranks have just come. */
static wb_status open_together(mpi_exchange *x, wb_status local) {
    uint64_t staged = !x->memory.host_access;
    WB_TRY(wb_comm_agree(x->comm, local));
    WB_TRY(wb_comm_all_reduce_max_u64(x->comm, &staged));
    x->piece_bytes = staged ? staged_piece(x) : x->plane->message_bytes;
    WB_TRY(wb_mpi_check(MPI_Comm_dup(x->plane->comm, &x->mpi), "MPI_Comm_dup"));
    return wb_mpi_check(MPI_Comm_set_errhandler(x->mpi, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

wb_status wb_mpi_open_exchange(wb_comm *comm, const wb_exchange_memory *memory, wb_exchange **exchange_out) {
    mpi_exchange *x = calloc(1, sizeof *x), none = {.comm = comm, .memory = *memory};
    wb_exchange *exchange = NULL;
    if (!x) return open_together(&none, wb_fail(WB_OUT_OF_MEMORY, "exchange over MPI"));
    *x = (mpi_exchange){.comm = comm,
                        .plane = wb_comm_state(comm),
                        .memory = *memory,
                        .mpi = MPI_COMM_NULL,
                        .rank = wb_comm_rank(comm),
                        .ranks = wb_comm_size(comm)};
    wb_status status = open_local(x);
    if (status == WB_OK) status = wb_exchange_new(&exchange_ops, comm, memory, x, &exchange);
    status = open_together(x, status);
    if (status == WB_OK) {
        *exchange_out = exchange;
        return WB_OK;
    }
    if (exchange)
        wb_exchange_close(exchange);
    else
        exchange_close(x);
    return status;
}
