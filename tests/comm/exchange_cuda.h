/* exchange_cuda.h - memory of a GPU for the tests of the data plane: managed, so that the host fills and
 * reads it at the addresses that the GPU has, once it has waited for the stream. One process has one GPU. */
#ifndef EXCHANGE_CUDA_H
#define EXCHANGE_CUDA_H

#include "comm/exchange_device.h"
#include "wb_device.h"

#include <cuda_runtime_api.h>

static wb_device *cuda_device;

static wb_status cuda_to_host(void *context, void *host, const void *at, size_t bytes) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    return cuda_device->to_host(cuda_device, host, at, bytes);
}

static wb_status cuda_to_device(void *context, void *at, const void *host, size_t bytes) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    return cuda_device->to_device(cuda_device, at, host, bytes);
}

static wb_status cuda_copy(void *context, void *to, const void *from, size_t bytes) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    return cuda_device->copy(cuda_device, to, from, bytes);
}

static wb_status cuda_add(void *context, size_t n, const float *x, float *y) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    return cuda_device->add(cuda_device, (int64_t)n, wb_f32_rows(x), wb_f32_rows(y));
}

static void cuda_lose(void *context, const char *why) {
    (void)context;
    cuda_device->lose(cuda_device, why);
}

static wb_exchange_memory cuda_memory(device *d) {
    return (wb_exchange_memory){.size = sizeof(wb_exchange_memory),
                                .context = d,
                                .stream = cuda_device->stream,
                                .to_host = cuda_to_host,
                                .to_device = cuda_to_device,
                                .copy = cuda_copy,
                                .add = cuda_add,
                                .lose = cuda_lose};
}

/* In place of device_arena_open. UNSUPPORTED where host and GPU cannot use one memory at a time. */
static wb_status cuda_arena_open(int gpu) {
    int both = 0;
    void *arena = NULL;
    const wb_status status = wb_device_open_cuda(gpu, NULL, &cuda_device);
    if (status != WB_OK) return status;
    if (cudaDeviceGetAttribute(&both, cudaDevAttrConcurrentManagedAccess, gpu) != cudaSuccess || !both)
        return wb_fail(WB_UNSUPPORTED, "GPU %d: no managed memory beside running kernels", gpu);
    if (cudaMallocManaged(&arena, DEVICE_BYTES * DEVICE_RANKS, cudaMemAttachGlobal) != cudaSuccess)
        return wb_fail(WB_OUT_OF_MEMORY, "GPU %d: managed memory", gpu);
    device_arena.base = device_arena.shadow = arena;
    device_on_streams = cuda_memory;
    return WB_OK;
}

static void cuda_arena_close(void) {
    if (device_arena.base) cudaFree(device_arena.base);
    wb_device_close(cuda_device);
}

#endif
