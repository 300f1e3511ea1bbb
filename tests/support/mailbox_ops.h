/* mailbox_ops.h - the ops of wb_mailbox.h restated for ranks that are threads, in the memory of the host:
 * what a device of the CPU is given in tests, and what the kernels are compared with. */
#ifndef MAILBOX_OPS_H
#define MAILBOX_OPS_H

#include "wb_check.h"
#include "wb_device.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline wb_mailbox *mailbox_of(const wb_mailboxes *p, int32_t r) {
    return p->mailbox[r];
}

static inline double mailbox_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- memory ---------------------------------------------------------------------------------------- */

/* What is shared and was not freed after a failure is no leak. */
static void *shared_blocks[1024];
static size_t n_shared_blocks;
/* Of all threads: areas that were left because a rank still had them attached, and bytes that were put. */
static uint64_t unshared_late, fake_bytes_put;

/* Words of the ranks that have it attached, in front of it. */
static inline uint32_t *fake_attached(void *memory) {
    return (uint32_t *)(void *)((char *)memory - WB_SHARED_HEAD);
}

static inline wb_status fake_memory_share(wb_device *dev, size_t bytes, void **memory_out,
                                          wb_shared_memory *shared_out) {
    void *block = NULL;
    WB_TRY(dev->mem_alloc(dev, WB_SHARED_HEAD + bytes, &block));
    shared_blocks[__atomic_fetch_add(&n_shared_blocks, 1, __ATOMIC_RELAXED) % 1024] = block;
    memset(block, 0, WB_SHARED_HEAD + bytes);
    *memory_out = (char *)block + WB_SHARED_HEAD;
    memcpy(shared_out->bytes, memory_out, sizeof *memory_out);
    return WB_OK;
}

static inline wb_status fake_memory_attach(wb_device *dev, const wb_shared_memory *shared, int32_t rank,
                                           void **memory_out) {
    (void)dev;
    memcpy(memory_out, shared->bytes, sizeof *memory_out);
    __atomic_store_n(fake_attached(*memory_out) + rank, 1, __ATOMIC_RELEASE);
    return WB_OK;
}

static inline void fake_memory_detach(wb_device *dev, const wb_shared_memory *shared, int32_t rank,
                                      void *memory) {
    (void)dev, (void)shared;
    if (memory) __atomic_store_n(fake_attached(memory) + rank, 0, __ATOMIC_RELEASE);
}

static inline bool fake_is_attached(void *memory) {
    uint32_t any = 0;
    for (int r = 0; r < WB_MAX_SHARERS; r++)
        any |= __atomic_load_n(fake_attached(memory) + r, __ATOMIC_ACQUIRE);
    return any != 0;
}

static inline void fake_memory_unshare(wb_device *dev, void *memory, double seconds) {
    const double end = mailbox_now() + seconds;
    if (!memory) return;
    while (fake_is_attached(memory) && mailbox_now() < end) sched_yield();
    if (!fake_is_attached(memory))
        dev->mem_free(dev, fake_attached(memory));
    else
        __atomic_fetch_add(&unshared_late, 1, __ATOMIC_RELAXED);
}

static inline wb_status fake_memory_put(wb_device *dev, void *to, const void *from, size_t bytes) {
    (void)dev;
    memcpy(to, from, bytes);
    __atomic_fetch_add(&fake_bytes_put, bytes, __ATOMIC_RELAXED);
    return WB_OK;
}

static inline wb_status fake_memory_settle(wb_device *dev) {
    (void)dev;
    return WB_OK;
}

/* The sends of this thread fail, so that its rows never come. */
static _Thread_local bool mailbox_sends_fail;

/* ---- storing --------------------------------------------------------------------------------------- */

static inline void mailbox_tell(uint64_t *number, uint64_t value) {
    __atomic_store_n(number, value, __ATOMIC_RELEASE);
}

static inline wb_status mailbox_send_rows(wb_device *dev, const wb_mailboxes *p, int64_t n,
                                          const int32_t *row_token, const int32_t *offsets, wb_rows x) {
    const size_t bytes = wb_mailbox_row_bytes(p);
    const uint64_t number = mailbox_of(p, p->rank)->done + 1;
    (void)dev, (void)n;
    if (mailbox_sends_fail) return wb_fail(WB_DEVICE, "mailbox_send: made to fail");
    if (mailbox_of(p, p->rank)->lost) return WB_OK;
    for (int32_t r = 0; r < p->n_ranks; r++) {
        const int32_t *const theirs = offsets + p->first_slot[r];
        const int32_t slots = p->first_slot[r + 1] - p->first_slot[r];
        memcpy(wb_mailbox_offsets(p, r, p->rank), theirs, (size_t)(slots + 1) * sizeof *theirs);
        for (int32_t row = theirs[0]; row < theirs[slots]; row++)
            memcpy(wb_mailbox_row(p, r, p->rank * p->max_rows + row - theirs[0]),
                   (const char *)x.data + (size_t)row_token[row] * bytes, bytes);
        mailbox_tell(&mailbox_of(p, r)->sent[p->rank], number);
    }
    return WB_OK;
}

static inline wb_status mailbox_return_rows(wb_device *dev, const wb_mailboxes *p, int64_t n,
                                            const int32_t *offsets, const int32_t *place, wb_rows rows) {
    const size_t bytes = wb_mailbox_row_bytes(p);
    const int32_t slots = p->first_slot[p->rank + 1] - p->first_slot[p->rank];
    const uint64_t number = mailbox_of(p, p->rank)->done + 1;
    (void)dev, (void)n;
    if (mailbox_of(p, p->rank)->lost) return WB_OK;
    for (int32_t row = 0; row < offsets[slots]; row++) {
        const int32_t to = (int32_t)(place[row] / p->max_rows), i = (int32_t)(place[row] % p->max_rows);
        memcpy(wb_mailbox_output(p, to, wb_mailbox_offsets(p, p->rank, to)[0] + i),
               (const char *)rows.data + (size_t)row * bytes, bytes);
    }
    for (int32_t r = 0; r < p->n_ranks; r++) mailbox_tell(&mailbox_of(p, r)->returned[p->rank], number);
    return WB_OK;
}

/* ---- waiting --------------------------------------------------------------------------------------- */

static inline wb_status mailbox_all_came(const wb_mailboxes *p, const uint64_t *numbers, const char *op) {
    wb_mailbox *own = mailbox_of(p, p->rank);
    const double begin = mailbox_now();
    for (int32_t r = 0; r < p->n_ranks && !own->lost; r++)
        while (__atomic_load_n(&numbers[r], __ATOMIC_ACQUIRE) <= own->done && !own->lost) {
            if (mailbox_now() - begin > p->timeout) own->lost = 1 + r;
            sched_yield();
        }
    if (!own->lost) return WB_OK;
    return wb_fail(WB_PEER, "%s: waited %g s: rank %d did not come", op, p->timeout, own->lost - 1);
}

static inline wb_status mailbox_receive_rows(wb_device *dev, const wb_mailboxes *p, int32_t *offsets,
                                             int32_t *place) {
    const int32_t slots = p->first_slot[p->rank + 1] - p->first_slot[p->rank];
    int32_t row = 0;
    (void)dev;
    WB_TRY(mailbox_all_came(p, mailbox_of(p, p->rank)->sent, "mailbox_receive"));
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

static inline wb_status mailbox_wait_for_all(wb_device *dev, const wb_mailboxes *p) {
    (void)dev;
    WB_TRY(mailbox_all_came(p, mailbox_of(p, p->rank)->returned, "mailbox_wait"));
    mailbox_of(p, p->rank)->done++;
    return WB_OK;
}

static inline void mailbox_ops_give(wb_device *dev) {
    dev->memory_share = fake_memory_share, dev->memory_attach = fake_memory_attach;
    dev->memory_detach = fake_memory_detach, dev->memory_unshare = fake_memory_unshare;
    dev->memory_put = fake_memory_put, dev->memory_settle = fake_memory_settle;
    dev->mailbox_send = mailbox_send_rows;
    dev->mailbox_receive = mailbox_receive_rows, dev->mailbox_return = mailbox_return_rows;
    dev->mailbox_wait = mailbox_wait_for_all;
}

#endif
