/* comm_mpi.c - the transport between MPI processes, opened and closed.
 *
 * Owns: a duplicate of the caller's MPI communicator, so that its messages never meet the caller's. Refuses:
 * MPI_Init, MPI_Finalize, MPI_Abort. */
#include "comm_mpi.h"
#include "exchange_mpi.h"
#include "mpi_calls.h"
#include "mpi_messages.h"
#include "wb_check.h"

#include <stdlib.h>

#define WB_MESSAGE_BYTES (1 << 30)

static void mpi_abort(wb_comm *comm) {
    wb_mpi_state *state = wb_comm_state(comm);
    wb_mpi_control_give_up(comm, &state->control, wb_error_message());
}

static wb_status mpi_look(wb_comm *comm) {
    wb_mpi_state *state = wb_comm_state(comm);
    return wb_mpi_control_peek(&state->control);
}

/* After a failure there are messages that nobody receives, and MPI_Comm_free may wait for them: both
 * communicators and what MPI may still read are left to MPI_Finalize and the end of the process. */
static void state_free(wb_mpi_state *state) {
    if (!state || state->control.dead) return;
    if (state->comm != MPI_COMM_NULL) MPI_Comm_free(&state->comm);
    wb_mpi_control_close(&state->control);
    free(state->messages);
    free(state->sent);
    free(state->received);
    free(state->same_bytes);
    free(state->same_offsets);
    free(state->rising_offsets);
    free(state);
}

static void mpi_close(wb_comm *comm) {
    state_free(wb_comm_state(comm));
    wb_comm_delete(comm);
}

static const wb_comm_ops mpi_ops = {.size = sizeof(wb_comm_ops),
                                    .name = "mpi",
                                    .broadcast = wb_mpi_broadcast,
                                    .all_gather = wb_mpi_all_gather,
                                    .all_to_all_v = wb_mpi_all_to_all_v,
                                    .barrier = wb_mpi_barrier,
                                    .abort = mpi_abort,
                                    .close = mpi_close,
                                    .open_exchange = wb_mpi_open_exchange,
                                    .look = mpi_look};

/* Everything that is local to this rank; without a communicator yet. This adapter is a library of its own
 * that links what users link, so that base's owners are not there for it. */
static wb_status open_local(int rank, int size, int message_bytes, wb_comm **comm_out) {
    wb_status status;
    const size_t ranks = (size_t)size;
    wb_mpi_state *state = calloc(1, sizeof *state);
    if (!state) return wb_fail(WB_OUT_OF_MEMORY, "MPI communicator");
    state->comm = MPI_COMM_NULL;
    state->message_bytes = (size_t)message_bytes;
    WB_GOTO(wb_mpi_control_prepare(size, &state->control), free_state);
    state->messages = calloc(ranks, 2 * sizeof *state->messages);
    state->sent = calloc(ranks, sizeof *state->sent);
    state->received = calloc(ranks, sizeof *state->received);
    state->same_bytes = calloc(ranks, sizeof *state->same_bytes);
    state->same_offsets = calloc(ranks, sizeof *state->same_offsets);
    state->rising_offsets = calloc(ranks, sizeof *state->rising_offsets);
    if (!state->messages || !state->sent || !state->received || !state->same_bytes || !state->same_offsets ||
        !state->rising_offsets) {
        status = wb_fail(WB_OUT_OF_MEMORY, "MPI messages of %d ranks", size);
        goto free_state;
    }
    WB_GOTO(wb_comm_new(&mpi_ops, rank, size, state, comm_out), free_state);
    return WB_OK;

free_state:
    state_free(state);
    return status;
}

/* Collective: makes the duplicates, unless `local` is a failure on some rank, of which the first is named. */
static wb_status open_together(MPI_Comm mpi_comm, int rank, wb_status local, wb_mpi_state *state) {
    struct {
        int failed, rank;
    } mine = {local != WB_OK, rank}, first = {0, 0};
    int status = (int)local;
    WB_TRY(wb_mpi_check(MPI_Allreduce(&mine, &first, 1, MPI_2INT, MPI_MAXLOC, mpi_comm), "MPI_Allreduce"));
    WB_TRY(wb_mpi_check(MPI_Bcast(&status, 1, MPI_INT, first.rank, mpi_comm), "MPI_Bcast"));
    if (local != WB_OK) return local;
    if (first.failed)
        return wb_fail(WB_PEER, "open_mpi: rank %d failed: %s", first.rank,
                       wb_status_string((wb_status)status));
    WB_TRY(wb_mpi_check(MPI_Comm_dup(mpi_comm, &state->comm), "MPI_Comm_dup"));
    WB_TRY(wb_mpi_check(MPI_Comm_set_errhandler(state->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    return wb_mpi_control_open(mpi_comm, &state->control);
}

wb_status wb_comm_open_mpi_messages(MPI_Comm mpi_comm, int message_bytes, wb_comm **comm_out) {
    int initialized = 0, rank = 0, size = 0;
    WB_TRY(wb_mpi_check(MPI_Initialized(&initialized), "MPI_Initialized"));
    if (!initialized) return wb_fail(WB_INVALID_ARGUMENT, "open_mpi: MPI_Init was not called");
    if (mpi_comm == MPI_COMM_NULL) return wb_fail(WB_INVALID_ARGUMENT, "open_mpi: MPI_COMM_NULL");
    WB_TRY(wb_mpi_check(MPI_Comm_rank(mpi_comm, &rank), "MPI_Comm_rank"));
    WB_TRY(wb_mpi_check(MPI_Comm_size(mpi_comm, &size), "MPI_Comm_size"));

    wb_comm *comm = NULL;
    wb_status status = open_local(rank, size, message_bytes, &comm);
    status = open_together(mpi_comm, rank, status, comm ? wb_comm_state(comm) : NULL);
    if (status != WB_OK) {
        if (comm) mpi_close(comm);
        return status;
    }
    *comm_out = comm;
    return WB_OK;
}

wb_status wb_comm_open_mpi(MPI_Comm mpi_comm, wb_comm **comm_out) {
    return wb_comm_open_mpi_messages(mpi_comm, WB_MESSAGE_BYTES, comm_out);
}
