/* comm_mpi.c - the transport between MPI processes.
 *
 * Owns: a duplicate of the caller's MPI communicator, so that its messages never meet the caller's. Refuses:
 * MPI_Init, MPI_Finalize, MPI_Abort, MPI's own sums (their order is not fixed). MPI counts are int: longer
 * buffers travel as several messages of `message_bytes`.
 *
 * Every call is made of messages between two ranks, none of MPI's collectives: a wait for messages can be
 * given up (mpi_control.h), and a receive that was posted can be taken back, so that MPI does not write into
 * the caller's memory after the call has failed. */
#include "comm_mpi.h"
#include "exchange_mpi.h"
#include "mpi_control.h"
#include "wb_check.h"

#include <stdlib.h>
#include <string.h>

#define WB_MESSAGE_BYTES (1 << 30)
#define WB_MESSAGE_TAG 0
#define DROP_SECONDS 1.0

/* A message on its way between this rank and `peer`. */
typedef struct message {
    MPI_Request request;
    int peer;
    size_t length;
} message;

typedef struct mpi_state {
    MPI_Comm comm; /* MPI_COMM_NULL until duplicated */
    wb_mpi_control control;
    size_t message_bytes;
    message *messages; /* [2 * size] those posted: receives, then sends */
    int n_receives, n_messages;
    /* [size] the arguments of an exchange in which every part has the same size */
    size_t *same_bytes, *same_offsets, *rising_offsets;
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

/* ---- messages ------------------------------------------------------------------------------------ */

static wb_status post_receive(mpi_state *state, int from, void *at, size_t length) {
    message *m = &state->messages[state->n_messages];
    *m = (message){MPI_REQUEST_NULL, from, length};
    WB_TRY(mpi_check(MPI_Irecv(at, (int)length, MPI_BYTE, from, WB_MESSAGE_TAG, state->comm, &m->request),
                     "MPI_Irecv"));
    state->n_receives = ++state->n_messages;
    return WB_OK;
}

static wb_status post_send(mpi_state *state, int to, const void *at, size_t length) {
    message *m = &state->messages[state->n_messages];
    *m = (message){MPI_REQUEST_NULL, to, length};
    WB_TRY(mpi_check(MPI_Isend(at, (int)length, MPI_BYTE, to, WB_MESSAGE_TAG, state->comm, &m->request),
                     "MPI_Isend"));
    state->n_messages++;
    return WB_OK;
}

/* A finished receive: too long is an MPI error, too short is not. */
static wb_status check_received(const wb_comm *comm, const message *m, const MPI_Status *received, int code) {
    const char *call = wb_mpi_call_name(((mpi_state *)wb_comm_state(comm))->control.call);
    int class = MPI_SUCCESS, found = 0;
    if (code != MPI_SUCCESS) {
        WB_TRY(mpi_check(MPI_Error_class(code, &class), "MPI_Error_class"));
        if (class != MPI_ERR_TRUNCATE) return mpi_fail(code, call);
        return wb_fail(WB_MISMATCH, "%s: rank %d to rank %d: expected %zu bytes, found more", call, m->peer,
                       wb_comm_rank(comm), m->length);
    }
    WB_TRY(mpi_check(MPI_Get_count(received, MPI_BYTE, &found), "MPI_Get_count"));
    if ((size_t)found == m->length) return WB_OK;
    return wb_fail(WB_MISMATCH, "%s: rank %d to rank %d: expected %zu bytes, found %d", call, m->peer,
                   wb_comm_rank(comm), m->length, found);
}

/* Waits for all messages that were posted. After a mismatch the others are waited for too: the peers wait for
 * their messages, and the next call finds an empty network. */
static wb_status finish_messages(wb_comm *comm) {
    mpi_state *state = wb_comm_state(comm);
    wb_status status = WB_OK;
    for (int i = 0; i < state->n_messages; i++) {
        message *m = &state->messages[i];
        int code = MPI_SUCCESS;
        MPI_Status done;
        WB_TRY(wb_mpi_control_wait(comm, &state->control, &m->request, &code, &done));
        const wb_status found =
            i < state->n_receives ? check_received(comm, m, &done, code) : mpi_check(code, "MPI_Isend");
        if (found == WB_PEER) return found;
        if (status == WB_OK) status = found;
    }
    state->n_receives = state->n_messages = 0;
    return status;
}

/* The memory of messages is the caller's again: receives are taken back, and what is under way at this moment
 * is waited for, but not for ever. A long message that nobody receives stays MPI's. */
static void drop_messages(mpi_state *state) {
    const double end = MPI_Wtime() + DROP_SECONDS;
    for (int i = 0; i < state->n_messages; i++) {
        MPI_Request *request = &state->messages[i].request;
        int done = *request == MPI_REQUEST_NULL;
        if (!done && i < state->n_receives) MPI_Cancel(request);
        while (!done && MPI_Wtime() < end)
            if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) done = 1;
    }
    state->n_receives = state->n_messages = 0;
}

/* The end of every call: a failure of the transport is the end of the communicator, for all ranks. */
static wb_status end_call(wb_comm *comm, wb_status status) {
    mpi_state *state = wb_comm_state(comm);
    if (status != WB_PEER) return status;
    wb_mpi_control_give_up(comm, &state->control, wb_error_message());
    drop_messages(state);
    return status;
}

/* ---- broadcast ----------------------------------------------------------------------------------- */

/* One message down a tree of ranks, numbered from the root: rank n has it from n without its lowest bit. */
static wb_status broadcast_message(wb_comm *comm, void *buffer, size_t bytes, int root) {
    mpi_state *state = wb_comm_state(comm);
    const int size = wb_comm_size(comm), me = (wb_comm_rank(comm) - root + size) % size;
    int bit = 1;
    while (bit < size && (me & bit) == 0) bit <<= 1;
    wb_status status = WB_OK;
    if (me != 0) {
        WB_TRY(post_receive(state, (me - bit + root) % size, buffer, bytes));
        status = finish_messages(comm);
        if (status == WB_PEER) return status;
    }
    for (bit >>= 1; bit > 0; bit >>= 1)
        if (me + bit < size) WB_TRY(post_send(state, (me + bit + root) % size, buffer, bytes));
    const wb_status sent = finish_messages(comm);
    return status == WB_OK || sent == WB_PEER ? sent : status;
}

static wb_status mpi_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    mpi_state *state = wb_comm_state(comm);
    char *at = buffer;
    wb_status status = wb_mpi_control_enter(comm, &state->control, WB_MPI_BROADCAST);
    while (bytes > 0 && status == WB_OK) {
        const size_t message_bytes = bytes < state->message_bytes ? bytes : state->message_bytes;
        status = broadcast_message(comm, at, message_bytes, root);
        at += message_bytes;
        bytes -= message_bytes;
    }
    return end_call(comm, status);
}

/* ---- all-to-all-v -------------------------------------------------------------------------------- */

/* The parts of one side: bytes[r] at buffer + offsets[r]. */
typedef struct parts {
    void *buffer;
    const size_t *bytes, *offsets;
} parts;

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
static size_t count_rounds(const wb_comm *comm, const parts *send, const parts *recv) {
    const mpi_state *state = wb_comm_state(comm);
    size_t longest = 1;
    for (int r = 0; r < wb_comm_size(comm); r++) {
        if (r == wb_comm_rank(comm)) continue;
        if (send->bytes[r] > longest) longest = send->bytes[r];
        if (recv->bytes[r] > longest) longest = recv->bytes[r];
    }
    return (longest - 1) / state->message_bytes + 1;
}

static wb_status post_round(wb_comm *comm, const parts *side, size_t round, bool sending) {
    mpi_state *state = wb_comm_state(comm);
    for (int r = 0; r < wb_comm_size(comm); r++) {
        const size_t length = message_length(state, side->bytes[r], round);
        if (r == wb_comm_rank(comm) || (length == 0 && round > 0)) continue;
        char *at = length > 0 ? (char *)side->buffer + side->offsets[r] + round * state->message_bytes : NULL;
        WB_TRY(sending ? post_send(state, r, at, length) : post_receive(state, r, at, length));
    }
    return WB_OK;
}

static wb_status exchange(wb_comm *comm, const parts *send, const parts *recv) {
    const size_t rounds = count_rounds(comm, send, recv);
    const int me = wb_comm_rank(comm);
    wb_status status = WB_OK;
    if (send->bytes[me] != recv->bytes[me])
        status = wb_fail(WB_MISMATCH, "all_to_all_v: rank %d to itself: expected %zu bytes, found %zu", me,
                         recv->bytes[me], send->bytes[me]);
    else if (send->bytes[me] > 0)
        memcpy((char *)recv->buffer + recv->offsets[me], (const char *)send->buffer + send->offsets[me],
               send->bytes[me]);

    /* After a mismatch the rounds go on: the peers wait for their messages. */
    for (size_t round = 0; round < rounds; round++) {
        WB_TRY(post_round(comm, recv, round, false));
        WB_TRY(post_round(comm, send, round, true));
        const wb_status finished = finish_messages(comm);
        if (finished == WB_PEER) return finished;
        if (status == WB_OK) status = finished;
    }
    return status;
}

static wb_status mpi_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                  const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                  const size_t *recv_offsets) {
    mpi_state *state = wb_comm_state(comm);
    wb_status status = wb_mpi_control_enter(comm, &state->control, WB_MPI_ALL_TO_ALL_V);
    if (status == WB_OK)
        status = exchange(comm, &(parts){(void *)(uintptr_t)send, send_bytes, send_offsets},
                          &(parts){recv, recv_bytes, recv_offsets});
    return end_call(comm, status);
}

/* ---- all-gather and barrier ---------------------------------------------------------------------- */

/* An exchange in which every part of this rank is the same `bytes` bytes. */
static wb_status gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    mpi_state *state = wb_comm_state(comm);
    for (size_t r = 0; r < (size_t)wb_comm_size(comm); r++) {
        state->same_bytes[r] = bytes;
        state->rising_offsets[r] = r * bytes;
    }
    return exchange(comm, &(parts){(void *)(uintptr_t)send, state->same_bytes, state->same_offsets},
                    &(parts){recv, state->same_bytes, state->rising_offsets});
}

static wb_status mpi_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    mpi_state *state = wb_comm_state(comm);
    wb_status status = wb_mpi_control_enter(comm, &state->control, WB_MPI_ALL_GATHER);
    if (status == WB_OK && bytes > 0) status = gather(comm, send, bytes, recv);
    return end_call(comm, status);
}

static wb_status mpi_barrier(wb_comm *comm) {
    mpi_state *state = wb_comm_state(comm);
    wb_status status = wb_mpi_control_enter(comm, &state->control, WB_MPI_BARRIER);
    if (status == WB_OK) status = gather(comm, NULL, 0, NULL);
    return end_call(comm, status);
}

/* ---- opening and closing ------------------------------------------------------------------------- */

static void mpi_abort(wb_comm *comm) {
    mpi_state *state = wb_comm_state(comm);
    wb_mpi_control_give_up(comm, &state->control, wb_error_message());
}

/* After a failure there are messages that nobody receives, and MPI_Comm_free may wait for them: both
 * communicators and what MPI may still read are left to MPI_Finalize and the end of the process. */
static void state_free(mpi_state *state) {
    if (!state || state->control.dead) return;
    if (state->comm != MPI_COMM_NULL) MPI_Comm_free(&state->comm);
    wb_mpi_control_close(&state->control);
    free(state->messages);
    free(state->same_bytes);
    free(state->same_offsets);
    free(state->rising_offsets);
    free(state);
}

static void mpi_close(wb_comm *comm) {
    state_free(wb_comm_state(comm));
    wb_comm_delete(comm);
}

static wb_status mpi_open_exchange(wb_comm *comm, const wb_exchange_memory *memory,
                                   wb_exchange **exchange_out) {
    mpi_state *state = wb_comm_state(comm);
    const wb_mpi_link link = {state->comm, &state->control, state->message_bytes};
    return wb_mpi_open_exchange(comm, &link, memory, exchange_out);
}

static const wb_comm_ops mpi_ops = {.size = sizeof(wb_comm_ops),
                                    .name = "mpi",
                                    .broadcast = mpi_broadcast,
                                    .all_gather = mpi_all_gather,
                                    .all_to_all_v = mpi_all_to_all_v,
                                    .barrier = mpi_barrier,
                                    .abort = mpi_abort,
                                    .close = mpi_close,
                                    .open_exchange = mpi_open_exchange};

/* Everything that is local to this rank; without a communicator yet. This adapter is a library of its own
 * that links what users link, so that base's owners are not there for it. */
static wb_status open_local(int rank, int size, int message_bytes, wb_comm **comm_out) {
    wb_status status;
    const size_t ranks = (size_t)size;
    mpi_state *state = calloc(1, sizeof *state);
    if (!state) return wb_fail(WB_OUT_OF_MEMORY, "MPI communicator");
    state->comm = MPI_COMM_NULL;
    state->message_bytes = (size_t)message_bytes;
    WB_GOTO(wb_mpi_control_prepare(size, &state->control), free_state);
    state->messages = calloc(ranks, 2 * sizeof *state->messages);
    state->same_bytes = calloc(ranks, sizeof *state->same_bytes);
    state->same_offsets = calloc(ranks, sizeof *state->same_offsets);
    state->rising_offsets = calloc(ranks, sizeof *state->rising_offsets);
    if (!state->messages || !state->same_bytes || !state->same_offsets || !state->rising_offsets) {
        status = wb_fail(WB_OUT_OF_MEMORY, "MPI messages of %d ranks", size);
        goto free_state;
    }
    WB_GOTO(wb_comm_new(&mpi_ops, rank, size, state, comm_out), free_state);
    return WB_OK;

free_state:
    state_free(state);
    return status;
}

/* Collective: makes the duplicates, unless `local` is a failure on some rank. */
static wb_status open_together(MPI_Comm mpi_comm, wb_status local, mpi_state *state) {
    int mine = (int)local, worst = 0;
    WB_TRY(mpi_check(MPI_Allreduce(&mine, &worst, 1, MPI_INT, MPI_MAX, mpi_comm), "MPI_Allreduce"));
    if (local != WB_OK) return local;
    if (worst != WB_OK)
        return wb_fail(WB_PEER, "open_mpi: another rank failed: %s", wb_status_string((wb_status)worst));
    WB_TRY(mpi_check(MPI_Comm_dup(mpi_comm, &state->comm), "MPI_Comm_dup"));
    WB_TRY(mpi_check(MPI_Comm_set_errhandler(state->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    return wb_mpi_control_open(mpi_comm, &state->control);
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
