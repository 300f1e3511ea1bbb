/* mpi_calls.c - see mpi_calls.h. Refuses: MPI's own sums (their order is not fixed). MPI counts are int:
 * longer parts travel as several messages of `message_bytes`. */
#include "mpi_calls.h"
#include "mpi_messages.h"
#include "wb_check.h"

#include <string.h>

/* What rank `from` sends to rank `to` is not what that rank expects. */
static wb_status check_size(const wb_mpi_state *state, int from, int to, uint64_t expected, uint64_t found) {
    if (expected == found) return WB_OK;
    return wb_fail(WB_MISMATCH, "%s: rank %d to rank %d: expected %zu bytes, found %zu",
                   wb_mpi_call_name(state->control.call), from, to, (size_t)expected, (size_t)found);
}

/* The end of a call after which ranks are no longer in step: the end of the communicator, for all ranks. */
static wb_status give_up(wb_comm *comm, wb_status status) {
    wb_mpi_state *state = wb_comm_state(comm);
    wb_mpi_control_give_up(comm, &state->control, wb_error_message());
    wb_mpi_drop(state);
    return status;
}

/* ---- broadcast ----------------------------------------------------------------------------------- */

#define MAX_CHILDREN 31

/* The neighbours of this rank in a tree of ranks, numbered from the root: rank n has it from n without its
 * lowest bit. */
typedef struct tree {
    int parent; /* -1: this rank is the root */
    int n_children, children[MAX_CHILDREN];
} tree;

static tree tree_of(const wb_comm *comm, int root) {
    const int size = wb_comm_size(comm), me = (wb_comm_rank(comm) - root + size) % size;
    tree found;
    found.parent = -1;
    found.n_children = 0;
    int bit = 1;
    while (bit < size && (me & bit) == 0) bit <<= 1;
    if (me != 0) found.parent = (me - bit + root) % size;
    for (bit >>= 1; bit > 0; bit >>= 1)
        if (me + bit < size) found.children[found.n_children++] = (me + bit + root) % size;
    return found;
}

/* The frame of the parent. Where the buffer is long the parent waits for the answer, a frame without a part:
 * what is sent before the receiver has agreed to its size could never be received. */
static wb_status meet_parent(wb_comm *comm, int parent, void *buffer, size_t bytes) {
    wb_mpi_state *state = wb_comm_state(comm);
    const wb_mpi_frame *frame = &state->received[parent];
    WB_TRY(wb_mpi_receive_frame(state, parent));
    WB_TRY(wb_mpi_finish(comm));
    WB_TRY(wb_mpi_check_frame(state, parent));
    WB_TRY(check_size(state, parent, wb_comm_rank(comm), bytes, frame->sends));
    if (bytes <= WB_MPI_SHORT_BYTES) {
        if (bytes > 0) memcpy(buffer, frame->part, bytes);
        return WB_OK;
    }
    WB_TRY(wb_mpi_send_frame(state, parent, NULL, 0, bytes));
    return wb_mpi_finish(comm);
}

static wb_status meet_children(wb_comm *comm, const tree *ranks, const void *buffer, size_t bytes) {
    wb_mpi_state *state = wb_comm_state(comm);
    const bool is_long = bytes > WB_MPI_SHORT_BYTES;
    for (int i = 0; is_long && i < ranks->n_children; i++)
        WB_TRY(wb_mpi_receive_frame(state, ranks->children[i]));
    for (int i = 0; i < ranks->n_children; i++)
        WB_TRY(wb_mpi_send_frame(state, ranks->children[i], buffer, bytes, 0));
    WB_TRY(wb_mpi_finish(comm));
    for (int i = 0; is_long && i < ranks->n_children; i++)
        WB_TRY(wb_mpi_check_frame(state, ranks->children[i]));
    return WB_OK;
}

/* One message of a long buffer, down the tree. */
static wb_status pass_down(wb_comm *comm, const tree *ranks, void *at, size_t length) {
    wb_mpi_state *state = wb_comm_state(comm);
    if (ranks->parent >= 0) {
        WB_TRY(wb_mpi_receive(state, ranks->parent, at, length));
        WB_TRY(wb_mpi_finish(comm));
    }
    for (int i = 0; i < ranks->n_children; i++) WB_TRY(wb_mpi_send(state, ranks->children[i], at, length));
    return wb_mpi_finish(comm);
}

static wb_status broadcast(wb_comm *comm, char *buffer, size_t bytes, int root) {
    const wb_mpi_state *state = wb_comm_state(comm);
    const tree ranks = tree_of(comm, root);
    if (ranks.parent >= 0) WB_TRY(meet_parent(comm, ranks.parent, buffer, bytes));
    WB_TRY(meet_children(comm, &ranks, buffer, bytes));
    for (size_t at = 0; bytes > WB_MPI_SHORT_BYTES && at < bytes; at += state->message_bytes) {
        const size_t rest = bytes - at;
        WB_TRY(
            pass_down(comm, &ranks, buffer + at, rest < state->message_bytes ? rest : state->message_bytes));
    }
    return WB_OK;
}

/* A size that is not the root's ends the communicator: the root does not wait for anyone to take a short
 * buffer, and may have left with OK. */
wb_status wb_mpi_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    wb_mpi_state *state = wb_comm_state(comm);
    wb_status status = wb_mpi_control_enter(comm, &state->control, WB_MPI_BROADCAST);
    if (status == WB_OK) status = broadcast(comm, buffer, bytes, root);
    return status == WB_OK ? status : give_up(comm, status);
}

/* ---- exchanges ----------------------------------------------------------------------------------- */

/* The parts of one side: bytes[r] at buffer + offsets[r]. */
typedef struct parts {
    void *buffer;
    const size_t *bytes, *offsets;
} parts;

static char *part_at(const parts *side, int r) {
    return side->bytes[r] > 0 ? (char *)side->buffer + side->offsets[r] : NULL;
}

static wb_status exchange_frames(wb_comm *comm, const parts *send, const parts *recv) {
    wb_mpi_state *state = wb_comm_state(comm);
    const int me = wb_comm_rank(comm), size = wb_comm_size(comm);
    for (int r = 0; r < size; r++)
        if (r != me) WB_TRY(wb_mpi_receive_frame(state, r));
    for (int r = 0; r < size; r++)
        if (r != me) WB_TRY(wb_mpi_send_frame(state, r, part_at(send, r), send->bytes[r], recv->bytes[r]));
    WB_TRY(wb_mpi_finish(comm));
    for (int r = 0; r < size; r++)
        if (r != me) WB_TRY(wb_mpi_check_frame(state, r));
    return WB_OK;
}

/* Takes the short parts out of their frames; MISMATCH of the first size that two ranks do not share, which
 * both of them find. */
static wb_status take_frames(wb_comm *comm, const parts *send, const parts *recv) {
    const wb_mpi_state *state = wb_comm_state(comm);
    const int me = wb_comm_rank(comm);
    wb_status status = WB_OK;
    for (int r = 0; r < wb_comm_size(comm); r++) {
        const wb_mpi_frame *frame = &state->received[r];
        const size_t bytes = recv->bytes[r];
        if (r == me) continue;
        if (status == WB_OK) status = check_size(state, r, me, bytes, frame->sends);
        if (status == WB_OK) status = check_size(state, me, r, frame->expects, send->bytes[r]);
        if (bytes > 0 && bytes == frame->sends && bytes <= WB_MPI_SHORT_BYTES)
            memcpy(part_at(recv, r), frame->part, bytes);
    }
    return status;
}

static wb_status copy_own(wb_comm *comm, const parts *send, const parts *recv) {
    const int me = wb_comm_rank(comm);
    WB_TRY(check_size(wb_comm_state(comm), me, me, recv->bytes[me], send->bytes[me]));
    if (send->bytes[me] > 0) memcpy(part_at(recv, me), part_at(send, me), send->bytes[me]);
    return WB_OK;
}

/* What follows the frame: nothing when the part was in it, or when the ranks disagree, which both know. */
static size_t long_bytes(const wb_comm *comm, const parts *side, int r, bool sending) {
    const wb_mpi_frame *frame = &((const wb_mpi_state *)wb_comm_state(comm))->received[r];
    const size_t bytes = side->bytes[r];
    if (r == wb_comm_rank(comm) || bytes <= WB_MPI_SHORT_BYTES) return 0;
    return bytes == (sending ? frame->expects : frame->sends) ? bytes : 0;
}

/* Long parts travel in rounds: message i of a part begins at byte i * message_bytes of it. Ranks need not
 * have the same number of rounds, since message i of a pair is posted by both in their round i. */
static wb_status post_round(wb_comm *comm, const parts *side, size_t start, bool sending) {
    wb_mpi_state *state = wb_comm_state(comm);
    for (int r = 0; r < wb_comm_size(comm); r++) {
        const size_t bytes = long_bytes(comm, side, r, sending);
        if (start >= bytes) continue;
        const size_t length = bytes - start < state->message_bytes ? bytes - start : state->message_bytes;
        char *at = part_at(side, r) + start;
        WB_TRY(sending ? wb_mpi_send(state, r, at, length) : wb_mpi_receive(state, r, at, length));
    }
    return WB_OK;
}

static wb_status exchange_long(wb_comm *comm, const parts *send, const parts *recv) {
    const wb_mpi_state *state = wb_comm_state(comm);
    size_t longest = 0;
    for (int r = 0; r < wb_comm_size(comm); r++) {
        const size_t to = long_bytes(comm, send, r, true), from = long_bytes(comm, recv, r, false);
        if (to > longest) longest = to;
        if (from > longest) longest = from;
    }
    for (size_t start = 0; start < longest; start += state->message_bytes) {
        WB_TRY(post_round(comm, recv, start, false));
        WB_TRY(post_round(comm, send, start, true));
        WB_TRY(wb_mpi_finish(comm));
    }
    return WB_OK;
}

/* After a mismatch the rest goes on: the other ranks wait for their parts, and the communicator lives. */
static wb_status exchange(wb_comm *comm, const parts *send, const parts *recv) {
    WB_TRY(exchange_frames(comm, send, recv));
    const wb_status taken = take_frames(comm, send, recv);
    WB_TRY(exchange_long(comm, send, recv));
    const wb_status copied = copy_own(comm, send, recv);
    return taken == WB_OK ? copied : taken;
}

static wb_status run_exchange(wb_comm *comm, wb_mpi_call call, const parts *send, const parts *recv) {
    wb_mpi_state *state = wb_comm_state(comm);
    wb_status status = wb_mpi_control_enter(comm, &state->control, call);
    if (status == WB_OK) status = exchange(comm, send, recv);
    return status == WB_PEER ? give_up(comm, status) : status;
}

wb_status wb_mpi_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                              const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                              const size_t *recv_offsets) {
    return run_exchange(comm, WB_MPI_ALL_TO_ALL_V,
                        &(parts){(void *)(uintptr_t)send, send_bytes, send_offsets},
                        &(parts){recv, recv_bytes, recv_offsets});
}

/* An exchange in which every part of this rank is the same `bytes` bytes. */
static wb_status gather(wb_comm *comm, wb_mpi_call call, const void *send, size_t bytes, void *recv) {
    wb_mpi_state *state = wb_comm_state(comm);
    for (size_t r = 0; r < (size_t)wb_comm_size(comm); r++) {
        state->same_bytes[r] = bytes;
        state->rising_offsets[r] = r * bytes;
    }
    return run_exchange(comm, call, &(parts){(void *)(uintptr_t)send, state->same_bytes, state->same_offsets},
                        &(parts){recv, state->same_bytes, state->rising_offsets});
}

wb_status wb_mpi_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    return gather(comm, WB_MPI_ALL_GATHER, send, bytes, recv);
}

wb_status wb_mpi_barrier(wb_comm *comm) {
    return gather(comm, WB_MPI_BARRIER, NULL, 0, NULL);
}
