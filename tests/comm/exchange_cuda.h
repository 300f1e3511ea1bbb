/* exchange_cuda.h - memory of a GPU for the tests of the data plane: managed, so that the host fills and
 * reads it at the addresses that the GPU has, once it has waited for the stream. A rank has a GPU; ranks are
 * processes, or threads of one. */
#ifndef EXCHANGE_CUDA_H
#define EXCHANGE_CUDA_H

#include "comm/exchange_device.h"
#include "wb_device.h"

#include <cuda_runtime_api.h>

/* Of the ranks of this process. */
static wb_device *cuda_devices[DEVICE_RANKS];

static wb_device *cuda_device_of(const device *d) {
    return cuda_devices[d->start / DEVICE_BYTES];
}

static wb_status cuda_host_alloc(void *context, size_t bytes, void **host_out) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    wb_device *dev = cuda_device_of(context);
    return dev->host_alloc(dev, bytes, host_out);
}

static void cuda_host_free(void *context, void *host) {
    wb_device *dev = cuda_device_of(context);
    dev->host_free(dev, host);
}

static wb_status cuda_to_host(void *context, void *host, const void *at, size_t bytes) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    wb_device *dev = cuda_device_of(context);
    return dev->to_host(dev, host, at, bytes);
}

static wb_status cuda_to_device(void *context, void *at, const void *host, size_t bytes) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    wb_device *dev = cuda_device_of(context);
    return dev->to_device(dev, at, host, bytes);
}

static wb_status cuda_copy(void *context, void *to, const void *from, size_t bytes) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    wb_device *dev = cuda_device_of(context);
    return dev->copy(dev, to, from, bytes);
}

static wb_status cuda_add(void *context, size_t n, const float *x, float *y) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    wb_device *dev = cuda_device_of(context);
    return dev->add(dev, (int64_t)n, wb_f32_rows(x), wb_f32_rows(y));
}

static void cuda_lose(void *context, const char *why) {
    wb_device *dev = cuda_device_of(context);
    dev->lose(dev, why);
}

static wb_exchange_memory cuda_memory(device *d) {
    return (wb_exchange_memory){.size = sizeof(wb_exchange_memory),
                                .context = d,
                                .stream = cuda_device_of(d)->stream,
                                .host_alloc = cuda_host_alloc,
                                .host_free = cuda_host_free,
                                .to_host = cuda_to_host,
                                .to_device = cuda_to_device,
                                .copy = cuda_copy,
                                .add = cuda_add,
                                .lose = cuda_lose};
}

/* The GPU of a rank of this process. */
static wb_status cuda_open_rank(int rank, int gpu) {
    int both = 0;
    const wb_status status = wb_device_open_cuda(gpu, NULL, &cuda_devices[rank]);
    if (status != WB_OK) return status;
    if (cudaDeviceGetAttribute(&both, cudaDevAttrConcurrentManagedAccess, gpu) != cudaSuccess || !both)
        return wb_fail(WB_UNSUPPORTED, "GPU %d: no managed memory beside running kernels", gpu);
    return WB_OK;
}

/* In place of device_arena_open, once the ranks of this process have their GPUs. */
static wb_status cuda_arena_open(void) {
    void *arena = NULL;
    if (cudaMallocManaged(&arena, DEVICE_BYTES * DEVICE_RANKS, cudaMemAttachGlobal) != cudaSuccess)
        return wb_fail(WB_OUT_OF_MEMORY, "managed memory");
    device_arena.base = device_arena.shadow = arena;
    device_on_streams = cuda_memory;
    return WB_OK;
}

static void cuda_arena_close(void) {
    if (device_arena.base) cudaFree(device_arena.base);
    for (int r = 0; r < DEVICE_RANKS; r++) wb_device_close(cuda_devices[r]);
}

/* What a rank's trial has lost is said once, and not to the next trial. */
static void cuda_forget(int rank) {
    (void)cuda_devices[rank]->to_host(cuda_devices[rank], NULL, NULL, 0);
}

#endif
