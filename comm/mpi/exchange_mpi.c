/* exchange_mpi.c - the data plane between MPI processes, opened, waited for and closed.
 *
 * Owns: a duplicate of the communicator's own, so that rows never meet the control plane's messages, and how
 * long a rank waits. Refuses: threads of its own: data move while a rank starts or waits; how data move
 * (mpi_lanes.h). */
#include "exchange_mpi.h"
#include "mpi_lanes.h"
#include "wb_check.h"

#include <sched.h>
#include <stdlib.h>

/* What is staged in all, and in one message. */
#define STAGING_BYTES ((size_t)16 << 20)
#define MAX_PIECE_BYTES ((size_t)256 << 10)
#define MIN_PIECE_BYTES ((size_t)4 << 10)

/* Rounds over all lanes between two looks at clock and letters. */
#define ROUNDS_A_LOOK 16

typedef struct mpi_exchange {
    wb_comm *comm;
    wb_mpi_state *plane; /* the communicator's own: its control, which a wait looks at */
    wb_lanes lanes;
} mpi_exchange;

/* ---- the adapter --------------------------------------------------------------------------------- */

/* Letters are left to the wait that follows. */
static wb_status exchange_start(void *opaque, wb_exchange_group *group) {
    mpi_exchange *x = opaque;
    const wb_exchange_memory *memory = &x->lanes.memory;
    WB_TRY(wb_mpi_control_begin(&x->plane->control, WB_MPI_EXCHANGE));
    /* MPI knows nothing of the stream; staged data are fetched in its order. */
    if (group->n > 0 && memory->host_access) WB_TRY(memory->to_host(memory->context, NULL, NULL, 0));
    for (size_t i = 0; i < group->n; i++) wb_lanes_push(&x->lanes, &group->items[i]);
    return wb_lanes_move(&x->lanes);
}

static wb_status exchange_wait(void *opaque, wb_exchange_group *group) {
    mpi_exchange *x = opaque;
    WB_TRY(wb_mpi_control_begin(&x->plane->control, WB_MPI_EXCHANGE));
    for (unsigned rounds = 0;; rounds++) {
        WB_TRY(wb_lanes_move(&x->lanes));
        /* Also where all is there: others may have waited for this rank, and have ended. */
        if (rounds == 0) WB_TRY(wb_mpi_control_hear(x->comm, &x->plane->control));
        if (group->left == 0) return WB_OK;
        if (rounds % ROUNDS_A_LOOK != ROUNDS_A_LOOK - 1) continue;
        /* Another rank may need this core to come. */
        sched_yield();
        WB_TRY(wb_mpi_control_look(x->comm, &x->plane->control));
    }
}

static void exchange_drop(void *opaque) {
    wb_lanes_drop(&((mpi_exchange *)opaque)->lanes);
}

/* After a failure MPI may still read and write, and the duplicate has messages that nobody receives: all is
 * left to MPI_Finalize and the end of the process. */
static void exchange_close(void *opaque) {
    mpi_exchange *x = opaque;
    if (x->plane->control.dead) return;
    wb_lanes_close(&x->lanes);
    free(x);
}

static const wb_exchange_ops exchange_ops = {.size = sizeof(wb_exchange_ops),
                                             .start = exchange_start,
                                             .wait = exchange_wait,
                                             .drop = exchange_drop,
                                             .close = exchange_close};

/* ---- opening ------------------------------------------------------------------------------------- */

/* Of the longest message of data where a rank of this many stages them; the same on all ranks. */
static size_t staged_piece(const mpi_exchange *x) {
    size_t piece = STAGING_BYTES / 2 / WB_LANE_MESSAGES / (size_t)x->lanes.ranks;
    if (piece > MAX_PIECE_BYTES) piece = MAX_PIECE_BYTES;
    if (piece < MIN_PIECE_BYTES) piece = MIN_PIECE_BYTES;
    return piece < x->plane->message_bytes ? piece : x->plane->message_bytes;
}

/* Collective. MPI_Comm_dup waits as long as MPI likes, but all ranks have just come. */
static wb_status open_together(mpi_exchange *x, wb_status local) {
    uint64_t staged = !x->lanes.memory.host_access;
    WB_TRY(wb_comm_agree(x->comm, local));
    WB_TRY(wb_comm_all_reduce_max_u64(x->comm, &staged));
    x->lanes.piece_bytes = staged ? staged_piece(x) : x->plane->message_bytes;
    WB_TRY(wb_mpi_check(MPI_Comm_dup(x->plane->comm, &x->lanes.comm), "MPI_Comm_dup"));
    return wb_mpi_check(MPI_Comm_set_errhandler(x->lanes.comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

wb_status wb_mpi_open_exchange(wb_comm *comm, const wb_exchange_memory *memory, wb_exchange **exchange_out) {
    mpi_exchange *x = calloc(1, sizeof *x), none = {.comm = comm, .lanes = {.memory = *memory}};
    wb_exchange *exchange = NULL;
    if (!x) return open_together(&none, wb_fail(WB_OUT_OF_MEMORY, "exchange over MPI"));
    *x = (mpi_exchange){.comm = comm,
                        .plane = wb_comm_state(comm),
                        .lanes = {.memory = *memory,
                                  .comm = MPI_COMM_NULL,
                                  .rank = wb_comm_rank(comm),
                                  .ranks = wb_comm_size(comm)}};
    wb_status status = wb_lanes_prepare(&x->lanes, staged_piece(x));
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
