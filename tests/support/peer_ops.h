/* peer_ops.h - the ops of wb_peers.h restated for ranks that are threads, in the memory of the host: what a
 * device of the CPU is given in tests, and what the kernels are compared with. */
#ifndef PEER_OPS_H
#define PEER_OPS_H

#include "wb_check.h"
#include "wb_device.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline wb_mailbox *peer_mailbox(const wb_peers *p, int32_t r) {
    return p->mailbox[r];
}

static inline double peer_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- memory ---------------------------------------------------------------------------------------- */

/* What is shared and was not freed after a failure is no leak. */
static void *peer_shared[1024];
static size_t n_peer_shared;

static inline wb_status peer_memory_share(wb_device *dev, size_t bytes, void **memory_out,
                                          wb_shared_memory *shared_out) {
    WB_TRY(dev->mem_alloc(dev, bytes, memory_out));
    peer_shared[__atomic_fetch_add(&n_peer_shared, 1, __ATOMIC_RELAXED) % 1024] = *memory_out;
    memset(*memory_out, 0, bytes);
    memcpy(shared_out->bytes, memory_out, sizeof *memory_out);
    return WB_OK;
}

static inline wb_status peer_memory_attach(wb_device *dev, const wb_shared_memory *shared,
                                           void **memory_out) {
    (void)dev;
    memcpy(memory_out, shared->bytes, sizeof *memory_out);
    return WB_OK;
}

static inline void peer_memory_detach(wb_device *dev, const wb_shared_memory *shared, void *memory) {
    (void)dev, (void)shared, (void)memory;
}

/* The sends of this thread fail, so that its rows never come. */
static _Thread_local bool peer_sends_fail;

/* ---- storing --------------------------------------------------------------------------------------- */

static inline void peer_tell(uint64_t *number, uint64_t value) {
    __atomic_store_n(number, value, __ATOMIC_RELEASE);
}

static inline wb_status peer_send_rows(wb_device *dev, const wb_peers *p, int64_t n, const int32_t *row_token,
                                       const int32_t *offsets, wb_rows x) {
    const size_t bytes = wb_mailbox_row_bytes(p);
    const uint64_t number = peer_mailbox(p, p->rank)->done + 1;
    (void)dev, (void)n;
    if (peer_sends_fail) return wb_fail(WB_DEVICE, "peer_send: made to fail");
    if (peer_mailbox(p, p->rank)->lost) return WB_OK;
    for (int32_t r = 0; r < p->n_ranks; r++) {
        const int32_t *const theirs = offsets + p->first_slot[r];
        const int32_t slots = p->first_slot[r + 1] - p->first_slot[r];
        memcpy(wb_mailbox_offsets(p, r, p->rank), theirs, (size_t)(slots + 1) * sizeof *theirs);
        for (int32_t row = theirs[0]; row < theirs[slots]; row++)
            memcpy(wb_mailbox_row(p, r, p->rank * p->max_rows + row - theirs[0]),
                   (const char *)x.data + (size_t)row_token[row] * bytes, bytes);
        peer_tell(&peer_mailbox(p, r)->sent[p->rank], number);
    }
    return WB_OK;
}

static inline wb_status peer_return_rows(wb_device *dev, const wb_peers *p, int64_t n, const int32_t *offsets,
                                         const int32_t *place, wb_rows rows) {
    const size_t bytes = wb_mailbox_row_bytes(p);
    const int32_t slots = p->first_slot[p->rank + 1] - p->first_slot[p->rank];
    const uint64_t number = peer_mailbox(p, p->rank)->done + 1;
    (void)dev, (void)n;
    if (peer_mailbox(p, p->rank)->lost) return WB_OK;
    for (int32_t row = 0; row < offsets[slots]; row++) {
        const int32_t to = (int32_t)(place[row] / p->max_rows), i = (int32_t)(place[row] % p->max_rows);
        memcpy(wb_mailbox_output(p, to, wb_mailbox_offsets(p, p->rank, to)[0] + i),
               (const char *)rows.data + (size_t)row * bytes, bytes);
    }
    for (int32_t r = 0; r < p->n_ranks; r++) peer_tell(&peer_mailbox(p, r)->returned[p->rank], number);
    return WB_OK;
}

/* ---- waiting --------------------------------------------------------------------------------------- */

static inline wb_status peer_all_came(const wb_peers *p, const uint64_t *numbers, const char *op) {
    wb_mailbox *own = peer_mailbox(p, p->rank);
    const double begin = peer_now();
    for (int32_t r = 0; r < p->n_ranks && !own->lost; r++)
        while (__atomic_load_n(&numbers[r], __ATOMIC_ACQUIRE) <= own->done && !own->lost) {
            if (peer_now() - begin > p->timeout) own->lost = 1 + r;
            sched_yield();
        }
    if (!own->lost) return WB_OK;
    return wb_fail(WB_PEER, "%s: waited %g s: rank %d did not come", op, p->timeout, own->lost - 1);
}

static inline wb_status peer_receive_rows(wb_device *dev, const wb_peers *p, int32_t *offsets,
                                          int32_t *place) {
    const int32_t slots = p->first_slot[p->rank + 1] - p->first_slot[p->rank];
    int32_t row = 0;
    (void)dev;
    WB_TRY(peer_all_came(p, peer_mailbox(p, p->rank)->sent, "peer_receive"));
    for (int32_t s = 0; s < slots; s++) {
        offsets[s] = row;
        for (int32_t r = 0; r < p->n_ranks; r++) {
            const int32_t *const theirs = wb_mailbox_offsets(p, p->rank, r);
            for (int32_t i = theirs[s]; i < theirs[s + 1]; i++)
                place[row++] = (int32_t)(r * p->max_rows) + i - theirs[0];
        }
    }
    offsets[slots] = row;
    return WB_OK;
}

static inline wb_status peer_wait_for_all(wb_device *dev, const wb_peers *p) {
    (void)dev;
    WB_TRY(peer_all_came(p, peer_mailbox(p, p->rank)->returned, "peer_wait"));
    peer_mailbox(p, p->rank)->done++;
    return WB_OK;
}

static inline void peer_ops_give(wb_device *dev) {
    dev->memory_share = peer_memory_share, dev->memory_attach = peer_memory_attach;
    dev->memory_detach = peer_memory_detach, dev->peer_send = peer_send_rows;
    dev->peer_receive = peer_receive_rows, dev->peer_return = peer_return_rows;
    dev->peer_wait = peer_wait_for_all;
}

#endif
