/* mpi_messages.c - see mpi_messages.h. */
#include "mpi_messages.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#define FRAME_TAG 0
#define PART_TAG 1
#define DROP_SECONDS 1.0

wb_status wb_mpi_check(int code, const char *call) {
    if (code == MPI_SUCCESS) return WB_OK;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
    return wb_fail(WB_PEER, "%s: MPI error %d: %.*s", call, code, length, text);
}

/* ---- posting ------------------------------------------------------------------------------------- */

static wb_status post_receive(wb_mpi_state *state, int from, void *at, size_t length, int tag) {
    MPI_Request *request = &state->messages[state->n_messages];
    *request = MPI_REQUEST_NULL;
    WB_TRY(wb_mpi_check(MPI_Irecv(at, (int)length, MPI_BYTE, from, tag, state->comm, request), "MPI_Irecv"));
    state->n_receives = ++state->n_messages;
    return WB_OK;
}

static wb_status post_send(wb_mpi_state *state, int to, const void *at, size_t length, int tag) {
    MPI_Request *request = &state->messages[state->n_messages];
    *request = MPI_REQUEST_NULL;
    WB_TRY(wb_mpi_check(MPI_Isend(at, (int)length, MPI_BYTE, to, tag, state->comm, request), "MPI_Isend"));
    state->n_messages++;
    return WB_OK;
}

wb_status wb_mpi_receive(wb_mpi_state *state, int from, void *at, size_t length) {
    return post_receive(state, from, at, length, PART_TAG);
}

wb_status wb_mpi_send(wb_mpi_state *state, int to, const void *at, size_t length) {
    return post_send(state, to, at, length, PART_TAG);
}

/* As it stands in frames. */
static uint64_t this_call(const wb_mpi_state *state) {
    return state->control.number * WB_MPI_CALLS + state->control.call;
}

/* What an empty message stands for is written before it can arrive. */
wb_status wb_mpi_receive_frame(wb_mpi_state *state, int from) {
    wb_mpi_frame *frame = &state->received[from];
    frame->call = this_call(state);
    frame->sends = frame->expects = 0;
    return post_receive(state, from, frame, sizeof *frame, FRAME_TAG);
}

wb_status wb_mpi_send_frame(wb_mpi_state *state, int to, const void *part, size_t sends, size_t expects) {
    wb_mpi_frame *frame = &state->sent[to];
    const size_t part_bytes = sends <= WB_MPI_SHORT_BYTES ? sends : 0;
    if (sends == 0 && expects == 0) return post_send(state, to, NULL, 0, FRAME_TAG);
    frame->call = this_call(state);
    frame->sends = sends;
    frame->expects = expects;
    if (part_bytes > 0) memcpy(frame->part, part, part_bytes);
    return post_send(state, to, frame, offsetof(wb_mpi_frame, part) + part_bytes, FRAME_TAG);
}

/* Ranks that make different calls, or not the same number of them, would take each other's sizes. */
wb_status wb_mpi_check_frame(const wb_mpi_state *state, int from) {
    const uint64_t found = state->received[from].call, expected = this_call(state);
    if (found == expected) return WB_OK;
    const char *const expected_name = wb_mpi_call_name(state->control.call);
    return wb_fail(WB_PEER,
                   "%s: rank %d is in another call: expected %s, call %" PRIu64 ", found %s, call %" PRIu64,
                   expected_name, from, expected_name, expected / WB_MPI_CALLS,
                   wb_mpi_call_name((wb_mpi_call)(found % WB_MPI_CALLS)), found / WB_MPI_CALLS);
}

/* ---- waiting ------------------------------------------------------------------------------------- */

wb_status wb_mpi_finish(wb_comm *comm) {
    wb_mpi_state *state = wb_comm_state(comm);
    for (int i = 0; i < state->n_messages; i++) {
        int code = MPI_SUCCESS;
        MPI_Status done;
        WB_TRY(wb_mpi_control_wait(comm, &state->control, &state->messages[i], &code, &done));
        WB_TRY(wb_mpi_check(code, wb_mpi_call_name(state->control.call)));
    }
    state->n_receives = state->n_messages = 0;
    return WB_OK;
}

void wb_mpi_drop(wb_mpi_state *state) {
    const double end = MPI_Wtime() + DROP_SECONDS;
    for (int i = 0; i < state->n_messages; i++) {
        MPI_Request *request = &state->messages[i];
        int done = *request == MPI_REQUEST_NULL;
        if (!done && i < state->n_receives) MPI_Cancel(request);
        while (!done && MPI_Wtime() < end)
            if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) done = 1;
    }
    state->n_receives = state->n_messages = 0;
}
