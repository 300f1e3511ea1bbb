/* device_cuda.cu - a CUDA device as a wb_device: its stream, its memory, its table of ops.
 *
 * Owns: opening and closing, mem_alloc .. zero, the mapping of CUDA's errors to WB_DEVICE. Refuses: kernels
 * (router_cuda.cu), peer devices, pinned memory: host pointers are ordinary memory.
 */
#include "cuda_ops.h"
#include "wb_memory.h"

#include <cuda_runtime.h>
#include <stdlib.h>

extern "C" {
#include "wb_check.h"

typedef struct cuda_device {
    wb_device base; /* first: a wb_device * of this backend points to a cuda_device */
    int index;
} cuda_device;

wb_status wb_cuda_check(int code, const char *what) {
    if (code == cudaSuccess) return WB_OK;
    (void)cudaGetLastError(); /* an error that can be survived must not be found again by the next op */
    cudaError_t error = (cudaError_t)code;
    return wb_fail(WB_DEVICE, "%s: CUDA: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

wb_status wb_cuda_use(wb_device *dev, const char *op) {
    return wb_cuda_check(cudaSetDevice(((cuda_device *)dev)->index), op);
}

static cudaStream_t stream_of(wb_device *dev) {
    return (cudaStream_t)dev->stream;
}

static wb_status cuda_mem_alloc(wb_device *dev, size_t bytes, void **device_out) {
    WB_TRY(wb_cuda_use(dev, "mem_alloc"));
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 1); /* cudaMalloc(0) would give NULL */
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return wb_fail(WB_OUT_OF_MEMORY, "mem_alloc: CUDA device %d: %zu bytes: %s",
                       ((cuda_device *)dev)->index, bytes, cudaGetErrorString(error));
    }
    WB_TRY(wb_cuda_check(error, "mem_alloc"));
    *device_out = memory;
    return WB_OK;
}

static void cuda_mem_free(wb_device *dev, void *device) {
    if (!device) return;
    WB_IGNORE(wb_cuda_use(dev, "mem_free"));
    WB_IGNORE(wb_cuda_check(cudaFree(device), "mem_free"));
}

/* Ordinary (pageable) host memory has been read when cudaMemcpyAsync returns. */
static wb_status cuda_to_device(wb_device *dev, void *device, const void *host, size_t bytes) {
    if (bytes == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "to_device"));
    return wb_cuda_check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_of(dev)),
                         "to_device");
}

static wb_status cuda_to_host(wb_device *dev, void *host, const void *device, size_t bytes) {
    WB_TRY(wb_cuda_use(dev, "to_host"));
    if (bytes > 0)
        WB_TRY(wb_cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_of(dev)),
                             "to_host"));
    return wb_cuda_check(cudaStreamSynchronize(stream_of(dev)), "to_host, or an op before it");
}

static wb_status cuda_copy(wb_device *dev, void *to, const void *from, size_t bytes) {
    if (bytes == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "copy"));
    return wb_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(dev)), "copy");
}

static wb_status cuda_zero(wb_device *dev, void *device, size_t bytes) {
    if (bytes == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "zero"));
    return wb_cuda_check(cudaMemsetAsync(device, 0, bytes, stream_of(dev)), "zero");
}

/* UNSUPPORTED unless device `index` exists and runs what this file's kernels need (__reduce_max_sync:
 * 8.0). */
static wb_status check_device(int index) {
    int count = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return wb_fail(WB_UNSUPPORTED, "CUDA device %d: %s", index, cudaGetErrorString(error));
    }
    if (index < 0 || index >= count)
        return wb_fail(WB_UNSUPPORTED, "CUDA device %d: this machine has %d", index, count);
    WB_TRY(wb_cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "open"));
    WB_TRY(wb_cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "open"));
    if (major < 8)
        return wb_fail(WB_UNSUPPORTED,
                       "CUDA device %d: compute capability: expected 8.0 or more, found %d.%d", index, major,
                       minor);
    return WB_OK;
}

wb_status wb_device_open_cuda(int index, wb_device **device_out) {
    WB_TRY(check_device(index));
    WB_TRY(wb_cuda_check(cudaSetDevice(index), "open"));
    void *memory = NULL;
    memory = wb_alloc(1, sizeof(cuda_device), "CUDA device");
    if (!memory) return WB_OUT_OF_MEMORY;
    cuda_device *cuda = (cuda_device *)memory;
    cudaStream_t stream;
    wb_status status = wb_cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "open");
    if (status != WB_OK) {
        free(cuda);
        return status;
    }
    wb_device *dev = &cuda->base;
    cuda->index = index;
    dev->backend = WB_BACKEND_CUDA;
    dev->name = "cuda";
    dev->threads = 1;
    dev->stream = stream;
    dev->mem_alloc = cuda_mem_alloc;
    dev->mem_free = cuda_mem_free;
    dev->to_device = cuda_to_device;
    dev->to_host = cuda_to_host;
    dev->copy = cuda_copy;
    dev->zero = cuda_zero;
    dev->topk = wb_topk_cuda;
    dev->gate_forward = wb_gate_forward_cuda;
    dev->gate_backward = wb_gate_backward_cuda;
    *device_out = dev;
    return WB_OK;
}

void wb_cuda_close(wb_device *device) {
    if (!device) return;
    WB_IGNORE(wb_cuda_use(device, "close"));
    WB_IGNORE(wb_cuda_check(cudaStreamSynchronize(stream_of(device)), "close"));
    WB_IGNORE(wb_cuda_check(cudaStreamDestroy(stream_of(device)), "close"));
    free(device);
}
}
