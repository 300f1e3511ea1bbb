/* exchange_device.h - device memory for the tests of the data plane: a kind that the host may touch, and one
 * that it must not, whose addresses fault and which only the functions of a wb_exchange_memory reach.
 *
 * Copies and sums lie on the device's stream until somebody waits for it: who reads their outcome before, or
 * lets others read it, finds what was there earlier.
 *
 * All ranks of a process share one arena, so that a rank can copy from another; each has a part of its own
 * and takes memory from it until it is reset. */
#ifndef EXCHANGE_DEVICE_H
#define EXCHANGE_DEVICE_H

#include "wb_exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DEVICE_BYTES ((size_t)64 << 20) /* of one rank */
#define DEVICE_RANKS 8
#define DEVICE_TASKS 64 /* on a stream; one more waits for it */

/* Host memory at `shadow`; the device's addresses, at `base`, are the same pages behind a locked door. */
static struct { char *base, *shadow; } device_arena;

/* Copies `bytes` bytes, or adds n floats. */
typedef struct device_task {
    void *to;
    const void *from;
    size_t bytes, n;
} device_task;

typedef struct device {
    size_t start, used; /* in the arena */
    bool host_access;
    int fails_after; /* calls of its functions that succeed; below 0: all */
    device_task tasks[DEVICE_TASKS];
    size_t n_tasks;
    const char *host; /* [host_bytes] the latest of host_alloc, which data are staged in */
    size_t host_bytes;
    int hosts; /* taken and not given back */
} device;

/* Once a process, before its ranks begin. */
static inline void device_arena_open(void) {
    const size_t bytes = DEVICE_BYTES * DEVICE_RANKS;
    const int file = memfd_create("exchange test", 0);
    if (file < 0 || ftruncate(file, (off_t)bytes) != 0) abort();
    device_arena.shadow = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    device_arena.base = mmap(NULL, bytes, PROT_NONE, MAP_SHARED, file, 0);
    if (device_arena.shadow == MAP_FAILED || device_arena.base == MAP_FAILED) abort();
    close(file);
}

static device device_of(int rank, bool host_access) {
    if (rank >= DEVICE_RANKS) abort();
    return (device){.start = DEVICE_BYTES * (size_t)rank, .host_access = host_access, .fails_after = -1};
}

/* Uninitialised; alignment is that of floats. */
static void *device_take(device *d, size_t bytes) {
    char *const arena = d->host_access ? device_arena.shadow : device_arena.base;
    void *const at = arena + d->start + d->used;
    d->used += (bytes + 64) / 64 * 64;
    if (d->used > DEVICE_BYTES) abort();
    return at;
}

/* Where the host finds it. */
static void *device_view(const device *d, const void *at) {
    return d->host_access ? (void *)(uintptr_t)at
                          : device_arena.shadow + ((const char *)at - device_arena.base);
}

static wb_status device_call(device *d) {
    if (d->fails_after == 0) return wb_fail(WB_DEVICE, "the device is broken");
    if (d->fails_after > 0) d->fails_after--;
    return WB_OK;
}

/* Does what lies on the stream. */
static void device_finish(device *d) {
    for (size_t i = 0; i < d->n_tasks; i++) {
        const device_task *const task = &d->tasks[i];
        void *const to = device_view(d, task->to), *const from = device_view(d, task->from);
        if (task->bytes > 0) memcpy(to, from, task->bytes);
        for (size_t j = 0; j < task->n; j++) ((float *)to)[j] += ((const float *)from)[j];
    }
    d->n_tasks = 0;
}

static wb_status device_put(device *d, device_task task) {
    if (device_call(d) != WB_OK) return WB_DEVICE;
    if (d->n_tasks == DEVICE_TASKS) device_finish(d);
    d->tasks[d->n_tasks++] = task;
    return WB_OK;
}

/* Filled with what no message has. */
static wb_status device_host_alloc(void *context, size_t bytes, void **host_out) {
    device *d = context;
    if (device_call(d) != WB_OK) return WB_DEVICE;
    char *const host = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!host) return wb_fail(WB_OUT_OF_MEMORY, "host_alloc: %zu bytes", bytes);
    memset(host, 0xa5, bytes);
    d->host = host;
    d->host_bytes = bytes;
    d->hosts++;
    *host_out = host;
    return WB_OK;
}

static void device_host_free(void *context, void *host) {
    if (host) ((device *)context)->hosts--;
    free(host);
}

/* A GPU would copy other memory too, and be slow. */
static wb_status device_staged(const device *d, const void *host, size_t bytes) {
    const size_t offset = (size_t)((uintptr_t)host - (uintptr_t)d->host);
    if (bytes == 0 || (offset <= d->host_bytes && bytes <= d->host_bytes - offset)) return WB_OK;
    return wb_fail(WB_DEVICE, "%zu bytes are staged outside of the memory of host_alloc", bytes);
}

static wb_status device_to_host(void *context, void *host, const void *at, size_t bytes) {
    if (device_call(context) != WB_OK || device_staged(context, host, bytes) != WB_OK) return WB_DEVICE;
    device_finish(context);
    if (bytes > 0) memcpy(host, device_view(context, at), bytes);
    return WB_OK;
}

static wb_status device_to_device(void *context, void *at, const void *host, size_t bytes) {
    if (device_call(context) != WB_OK || device_staged(context, host, bytes) != WB_OK) return WB_DEVICE;
    device_finish(context);
    if (bytes > 0) memcpy(device_view(context, at), host, bytes);
    return WB_OK;
}

static wb_status device_copy(void *context, void *to, const void *from, size_t bytes) {
    return device_put(context, (device_task){.to = to, .from = from, .bytes = bytes});
}

static wb_status device_add(void *context, size_t n, const float *x, float *y) {
    return device_put(context, (device_task){.to = y, .from = x, .n = n});
}

/* A program whose memory lies on streams sets it: the functions of that memory. */
static wb_exchange_memory (*device_on_streams)(device *d);

static wb_exchange_memory device_memory(device *d) {
    if (device_on_streams) return device_on_streams(d);
    return (wb_exchange_memory){.size = sizeof(wb_exchange_memory),
                                .context = d,
                                .host_access = d->host_access,
                                .host_alloc = device_host_alloc,
                                .host_free = device_host_free,
                                .to_host = device_to_host,
                                .to_device = device_to_device,
                                .copy = device_copy,
                                .add = device_add};
}

#endif
