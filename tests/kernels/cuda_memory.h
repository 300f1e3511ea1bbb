/* cuda_memory.h - lets a test of ops run on CUDA too: what calloc gives is managed memory, which host and
 * device can touch, and after an op the host waits for the device. Included before ops_test.h. */
#ifndef WB_CUDA_MEMORY_H
#define WB_CUDA_MEMORY_H

#include "wb_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WB_HAVE_CUDA

#include <cuda_runtime_api.h>

/* NULL: there is none, and memory is ordinary. */
static wb_device *cuda;

static void *managed_calloc(size_t count, size_t size) {
    void *memory = NULL;
    if (!cuda) return calloc(count, size);
    if (cudaMallocManaged(&memory, count * size + 1, cudaMemAttachGlobal) != cudaSuccess) return NULL;
    memset(memory, 0, count * size);
    return memory;
}

static void managed_free(void *memory) {
    if (!cuda)
        free(memory);
    else if (cudaFree(memory) != cudaSuccess)
        abort();
}

static void wait_for_cuda(void) {
    const cudaError_t error = cuda ? cudaDeviceSynchronize() : cudaSuccess;
    if (error == cudaSuccess) return;
    fprintf(stderr, "FAILED: %s\n", cudaGetErrorString(error));
    exit(1);
}

/* Before the first allocation. Prints why there is no device. */
static void open_cuda(void) {
    if (wb_device_open_cuda(0, NULL, &cuda) != WB_OK) printf("no CUDA device: %s\n", wb_error_message());
}

#define calloc managed_calloc
#define free managed_free
#define AFTER_OP wait_for_cuda

#else

static wb_device *const cuda = NULL;

static void open_cuda(void) {
    printf("no CUDA device: built without CUDA\n");
}

#endif

#endif
