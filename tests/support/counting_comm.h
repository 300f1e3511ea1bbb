/* counting_comm.h - a communicator that counts the exchanges which pass through it to another one. */
#ifndef COUNTING_COMM_H
#define COUNTING_COMM_H

#include "wb_comm.h"

#include <stdlib.h>

typedef struct counting_comm {
    wb_comm *inner;
    int64_t exchanges; /* all_to_all_v calls */
} counting_comm;

static inline counting_comm *counting_of(const wb_comm *comm) {
    return wb_comm_state(comm);
}

static inline wb_status counting_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    return wb_comm_broadcast(counting_of(comm)->inner, buffer, bytes, root);
}

static inline wb_status counting_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    return wb_comm_all_gather(counting_of(comm)->inner, send, bytes, recv);
}

static inline wb_status counting_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                              const size_t *send_offsets, void *recv,
                                              const size_t *recv_bytes, const size_t *recv_offsets) {
    counting_of(comm)->exchanges++;
    return wb_comm_all_to_all_v(counting_of(comm)->inner, send, send_bytes, send_offsets, recv, recv_bytes,
                                recv_offsets);
}

static inline wb_status counting_barrier(wb_comm *comm) {
    return wb_comm_barrier(counting_of(comm)->inner);
}

static inline void counting_abort(wb_comm *comm) {
    wb_comm_abort(counting_of(comm)->inner);
}

/* `inner` stays the caller's. */
static inline void counting_close(wb_comm *comm) {
    free(counting_of(comm));
    wb_comm_delete(comm);
}

static inline wb_status counting_open(wb_comm *inner, wb_comm **comm_out) {
    static const wb_comm_ops ops = {.size = sizeof ops,
                                    .name = "counting",
                                    .broadcast = counting_broadcast,
                                    .all_gather = counting_all_gather,
                                    .all_to_all_v = counting_all_to_all_v,
                                    .barrier = counting_barrier,
                                    .abort = counting_abort,
                                    .close = counting_close};
    counting_comm *state = calloc(1, sizeof *state);
    if (!state) abort();
    state->inner = inner;
    return wb_comm_new(&ops, wb_comm_rank(inner), wb_comm_size(inner), state, comm_out);
}

#endif
