/* comm_mpi.c - the transport between MPI processes.
 *
 * Owns: a duplicate of the caller's MPI communicator, so that its messages never meet the caller's. Refuses:
 * MPI_Init, MPI_Finalize, MPI's own sums (their order is not fixed). MPI counts are int: longer buffers
 * travel as several messages of `message_bytes`. */
#include "comm_mpi.h"
#include "wb_check.h"

#include <stdlib.h>
#include <string.h>

#define WB_MESSAGE_BYTES (1 << 30)
#define WB_MESSAGE_TAG 0

typedef struct mpi_state {
    MPI_Comm comm; /* MPI_COMM_NULL until duplicated */
    size_t message_bytes;
    MPI_Request *requests; /* [2 * size] */
    MPI_Status *statuses;  /* [2 * size] */
} mpi_state;

/* ---- errors -------------------------------------------------------------------------------------- */

static wb_status mpi_fail(int code, const char *call) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
    return wb_fail(WB_PEER, "%s: MPI error %d: %.*s", call, code, length, text);
}

static wb_status mpi_check(int code, const char *call) {
    return code == MPI_SUCCESS ? WB_OK : mpi_fail(code, call);
}

/* ---- broadcast and all-gather -------------------------------------------------------------------- */

static wb_status mpi_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    const mpi_state *state = wb_comm_state(comm);
    char *at = buffer;
    while (bytes > 0) {
        const size_t message = bytes < state->message_bytes ? bytes : state->message_bytes;
        WB_TRY(mpi_check(MPI_Bcast(at, (int)message, MPI_BYTE, root, state->comm), "MPI_Bcast"));
        at += message;
        bytes -= message;
    }
    return WB_OK;
}

static wb_status mpi_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    const mpi_state *state = wb_comm_state(comm);
    if (bytes == 0) return WB_OK;
    if (bytes <= state->message_bytes / (size_t)wb_comm_size(comm))
        return mpi_check(MPI_Allgather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, state->comm),
                         "MPI_Allgather");
    memcpy((char *)recv + (size_t)wb_comm_rank(comm) * bytes, send, bytes);
    for (int r = 0; r < wb_comm_size(comm); r++)
        WB_TRY(mpi_broadcast(comm, (char *)recv + (size_t)r * bytes, bytes, r));
    return WB_OK;
}

/* ---- all-to-all-v -------------------------------------------------------------------------------- */

/* Parts travel in rounds: message i of a part is [i * message_bytes, ...) of it. Ranks need not have the
 * same number of rounds, since message i of a pair is posted by both in their round i. */
static size_t message_length(const mpi_state *state, size_t part_bytes, size_t round) {
    const size_t start = round * state->message_bytes;
    if (start >= part_bytes) return 0;
    const size_t rest = part_bytes - start;
    return rest < state->message_bytes ? rest : state->message_bytes;
}

/* At least one: empty parts are exchanged too, or a part that only one side knows of would stay in the
 * network and be taken for a part of a later call. */
static size_t count_rounds(const wb_comm *comm, const size_t *send_bytes, const size_t *recv_bytes) {
    const mpi_state *state = wb_comm_state(comm);
    size_t longest = 1;
    for (int r = 0; r < wb_comm_size(comm); r++) {
        if (r == wb_comm_rank(comm)) continue;
        if (send_bytes[r] > longest) longest = send_bytes[r];
        if (recv_bytes[r] > longest) longest = recv_bytes[r];
    }
    return (longest - 1) / state->message_bytes + 1;
}

static wb_status post_receives(wb_comm *comm, void *recv, const size_t *recv_bytes,
                               const size_t *recv_offsets, size_t round, int *posted) {
    mpi_state *state = wb_comm_state(comm);
    for (int r = 0; r < wb_comm_size(comm); r++) {
        const size_t length = message_length(state, recv_bytes[r], round);
        if (r == wb_comm_rank(comm) || (length == 0 && round > 0)) continue;
        char *at = length > 0 ? (char *)recv + recv_offsets[r] + round * state->message_bytes : NULL;
        WB_TRY(mpi_check(
            MPI_Irecv(at, (int)length, MPI_BYTE, r, WB_MESSAGE_TAG, state->comm, &state->requests[*posted]),
            "MPI_Irecv"));
        (*posted)++;
    }
    return WB_OK;
}

static wb_status post_sends(wb_comm *comm, const void *send, const size_t *send_bytes,
                            const size_t *send_offsets, size_t round, int *posted) {
    mpi_state *state = wb_comm_state(comm);
    for (int r = 0; r < wb_comm_size(comm); r++) {
        const size_t length = message_length(state, send_bytes[r], round);
        if (r == wb_comm_rank(comm) || (length == 0 && round > 0)) continue;
        const char *at =
            length > 0 ? (const char *)send + send_offsets[r] + round * state->message_bytes : NULL;
        WB_TRY(mpi_check(
            MPI_Isend(at, (int)length, MPI_BYTE, r, WB_MESSAGE_TAG, state->comm, &state->requests[*posted]),
            "MPI_Isend"));
        (*posted)++;
    }
    return WB_OK;
}

/* A finished receive: too long is an MPI error, too short is not. */
static wb_status check_received(const wb_comm *comm, const MPI_Status *received, int code, size_t expected) {
    int class = MPI_SUCCESS, found = 0;
    if (code != MPI_SUCCESS) {
        WB_TRY(mpi_check(MPI_Error_class(code, &class), "MPI_Error_class"));
        if (class != MPI_ERR_TRUNCATE) return mpi_fail(code, "all_to_all_v");
        return wb_fail(WB_MISMATCH, "all_to_all_v: rank %d to rank %d: expected %zu bytes, found more",
                       received->MPI_SOURCE, wb_comm_rank(comm), expected);
    }
    WB_TRY(mpi_check(MPI_Get_count(received, MPI_BYTE, &found), "MPI_Get_count"));
    if ((size_t)found == expected) return WB_OK;
    return wb_fail(WB_MISMATCH, "all_to_all_v: rank %d to rank %d: expected %zu bytes, found %d",
                   received->MPI_SOURCE, wb_comm_rank(comm), expected, found);
}

/* Waits for requests [0, posted), of which the first `receives` are receives. */
static wb_status finish_round(wb_comm *comm, const size_t *recv_bytes, size_t round, int receives,
                              int posted) {
    mpi_state *state = wb_comm_state(comm);
    const int code = MPI_Waitall(posted, state->requests, state->statuses);
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) return mpi_fail(code, "MPI_Waitall");
    for (int i = 0; i < posted; i++) {
        const MPI_Status *done = &state->statuses[i];
        const int error = code == MPI_SUCCESS ? MPI_SUCCESS : done->MPI_ERROR;
        if (i < receives)
            WB_TRY(check_received(comm, done, error,
                                  message_length(state, recv_bytes[done->MPI_SOURCE], round)));
        else
            WB_TRY(mpi_check(error, "MPI_Isend"));
    }
    return WB_OK;
}

static wb_status mpi_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                  const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                  const size_t *recv_offsets) {
    const size_t rounds = count_rounds(comm, send_bytes, recv_bytes);
    const int me = wb_comm_rank(comm);
    wb_status status = WB_OK;
    if (send_bytes[me] != recv_bytes[me])
        status = wb_fail(WB_MISMATCH, "all_to_all_v: rank %d to itself: expected %zu bytes, found %zu", me,
                         recv_bytes[me], send_bytes[me]);
    else if (send_bytes[me] > 0)
        memcpy((char *)recv + recv_offsets[me], (const char *)send + send_offsets[me], send_bytes[me]);

    /* After a mismatch the rounds go on: the peers wait for their messages. */
    for (size_t round = 0; round < rounds; round++) {
        int posted = 0;
        WB_TRY(post_receives(comm, recv, recv_bytes, recv_offsets, round, &posted));
        const int receives = posted;
        WB_TRY(post_sends(comm, send, send_bytes, send_offsets, round, &posted));
        const wb_status finished = finish_round(comm, recv_bytes, round, receives, posted);
        if (finished == WB_PEER) return finished;
        if (status == WB_OK) status = finished;
    }
    return status;
}

static wb_status mpi_barrier(wb_comm *comm) {
    const mpi_state *state = wb_comm_state(comm);
    return mpi_check(MPI_Barrier(state->comm), "MPI_Barrier");
}

/* ---- opening and closing ------------------------------------------------------------------------- */

static void mpi_abort(wb_comm *comm) {
    const mpi_state *state = wb_comm_state(comm);
    MPI_Abort(state->comm, 1);
}

static void state_free(mpi_state *state) {
    if (!state) return;
    if (state->comm != MPI_COMM_NULL) MPI_Comm_free(&state->comm);
    free(state->statuses);
    free(state->requests);
    free(state);
}

static void mpi_close(wb_comm *comm) {
    state_free(wb_comm_state(comm));
    wb_comm_delete(comm);
}

static const wb_comm_ops mpi_ops = {.size = sizeof(wb_comm_ops),
                                    .name = "mpi",
                                    .broadcast = mpi_broadcast,
                                    .all_gather = mpi_all_gather,
                                    .all_to_all_v = mpi_all_to_all_v,
                                    .barrier = mpi_barrier,
                                    .abort = mpi_abort,
                                    .close = mpi_close};

/* Everything that is local to this rank; without a communicator yet. This adapter is a library of its own
 * that links what users link, so that base's owners are not there for it. */
static wb_status open_local(int rank, int size, int message_bytes, wb_comm **comm_out) {
    wb_status status;
    const size_t ranks = (size_t)size;
    mpi_state *state = calloc(1, sizeof *state);
    if (!state) return wb_fail(WB_OUT_OF_MEMORY, "MPI communicator");
    state->comm = MPI_COMM_NULL;
    state->message_bytes = (size_t)message_bytes;
    state->requests = calloc(ranks, 2 * sizeof *state->requests);
    state->statuses = calloc(ranks, 2 * sizeof *state->statuses);
    if (!state->requests || !state->statuses) {
        status = wb_fail(WB_OUT_OF_MEMORY, "MPI requests of %d ranks", size);
        goto free_state;
    }
    WB_GOTO(wb_comm_new(&mpi_ops, rank, size, state, comm_out), free_state);
    return WB_OK;

free_state:
    state_free(state);
    return status;
}

/* Collective: makes the duplicate, unless `local` is a failure on some rank. */
static wb_status open_together(MPI_Comm mpi_comm, wb_status local, mpi_state *state) {
    int mine = (int)local, worst = 0;
    WB_TRY(mpi_check(MPI_Allreduce(&mine, &worst, 1, MPI_INT, MPI_MAX, mpi_comm), "MPI_Allreduce"));
    if (local != WB_OK) return local;
    if (worst != WB_OK)
        return wb_fail(WB_PEER, "open_mpi: another rank failed: %s", wb_status_string((wb_status)worst));
    WB_TRY(mpi_check(MPI_Comm_dup(mpi_comm, &state->comm), "MPI_Comm_dup"));
    return mpi_check(MPI_Comm_set_errhandler(state->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

wb_status wb_comm_open_mpi_messages(MPI_Comm mpi_comm, int message_bytes, wb_comm **comm_out) {
    int initialized = 0, rank = 0, size = 0;
    WB_TRY(mpi_check(MPI_Initialized(&initialized), "MPI_Initialized"));
    if (!initialized) return wb_fail(WB_INVALID_ARGUMENT, "open_mpi: MPI_Init was not called");
    if (mpi_comm == MPI_COMM_NULL) return wb_fail(WB_INVALID_ARGUMENT, "open_mpi: MPI_COMM_NULL");
    WB_TRY(mpi_check(MPI_Comm_rank(mpi_comm, &rank), "MPI_Comm_rank"));
    WB_TRY(mpi_check(MPI_Comm_size(mpi_comm, &size), "MPI_Comm_size"));

    wb_comm *comm = NULL;
    wb_status status = open_local(rank, size, message_bytes, &comm);
    status = open_together(mpi_comm, status, comm ? wb_comm_state(comm) : NULL);
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
