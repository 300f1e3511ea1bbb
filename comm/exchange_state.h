/* exchange_state.h - what an exchange holds (internal): exchange.c makes it, runs groups and ends works,
 * exchange_ops.c makes groups of collective calls, and exchange_parts.c has what both need. */
#ifndef WB_EXCHANGE_STATE_H
#define WB_EXCHANGE_STATE_H

#include "wb_exchange.h"
#include "wb_memory.h"

/* What is left to do when the parts of a sum have come. */
typedef struct wb_exchange_sums {
    float *own;     /* device [n], this rank's part of the buffer; NULL: the work sums nothing */
    float *scratch; /* device [R - 1][n], the part as the other ranks have it, in rank order */
    size_t n;
    /* All-reduce: the sums of all parts are gathered then, in this buffer of n_total elements. */
    float *buffer;
    size_t n_total;
} wb_exchange_sums;

typedef struct wb_exchange_work {
    uint64_t number; /* 0: not in flight */
    wb_exchange_kind kind;
    wb_exchange_group group; /* items: [item_room] */
    wb_exchange_sums sums;
} wb_exchange_work;

struct wb_exchange {
    wb_exchange_ops ops;
    wb_exchange_memory memory;
    wb_comm *comm;
    void *state; /* the adapter's */
    int rank, ranks;
    wb_exchange_work works[WB_EXCHANGE_IN_FLIGHT];
    /* [WB_EXCHANGE_IN_FLIGHT][item_room], from malloc, since a larger one replaces it */
    wb_exchange_item *items;
    size_t item_room;
    size_t *bounds;             /* [R + 1] of an all-reduce, from malloc */
    uint64_t n_works, n_groups; /* so far */
    bool dead;
    char failure[512]; /* why, once dead */
    wb_exchange_count counts[WB_EXCHANGE_KINDS];
};

/* Begins a work of at most n transfers: PEER when the exchange is dead. It is in flight once launched. */
wb_status wb_exchange_begin(wb_exchange *exchange, wb_exchange_kind kind, size_t n,
                            wb_exchange_work **work_out);

/* Starts the group and puts the work in flight. */
wb_status wb_exchange_launch(wb_exchange *exchange, wb_exchange_work *work, uint64_t *work_out);

/* The end of the exchange on all ranks, unless `status` is OK, which it returns. */
wb_status wb_exchange_end(wb_exchange *exchange, wb_status status);

/* ---- what groups are made of (exchange_parts.c) --------------------------------------------------- */

/* The i-th rank that this one sends to and the i-th that it receives from, i = 1 .. R-1: in every round each
 * rank has one of either. */
static inline int wb_exchange_send_peer(const wb_exchange *exchange, int i) {
    return (exchange->rank + i) % exchange->ranks;
}

static inline int wb_exchange_receive_peer(const wb_exchange *exchange, int i) {
    return (exchange->rank - i + exchange->ranks) % exchange->ranks;
}

/* NULL stays NULL: a part without bytes may have no buffer. */
static inline void *wb_exchange_offset(const void *buffer, size_t bytes) {
    return buffer ? (void *)((uintptr_t)buffer + bytes) : NULL;
}

/* One transfer more for the work's group. */
void wb_exchange_put(wb_exchange_work *work, wb_transfer transfer);

/* to[bytes] = from[bytes], nothing where bytes is 0. */
wb_status wb_exchange_copy(wb_exchange *exchange, void *to, const void *from, size_t bytes);

/* The transfers of a gather of the parts of buffer, of `unit` bytes an element. */
void wb_exchange_put_gather(const wb_exchange *exchange, wb_exchange_work *work, void *buffer,
                            const size_t *bounds, size_t unit);

/* Elements of a part of an all-reduce, of which the last ones may be shorter; all of them, in bounds. */
size_t wb_exchange_even_part(const wb_exchange *exchange, size_t n);
void wb_exchange_even_bounds(wb_exchange *exchange, size_t n);

/* Adds up the parts that have come; an all-reduce's second half is put into the work's group, to be started
 * and waited for: *more_out. */
wb_status wb_exchange_add_up(wb_exchange *exchange, wb_exchange_work *work, bool *more_out);

#endif
