/* nccl_cuda.c - see nccl_cuda.h. */
#include "nccl_cuda.h"
#include "wb_check.h"

#include <cuda_runtime.h>
#include <string.h>

static wb_status check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return WB_OK;
    /* It must not be found again by the next call. */
    (void)cudaGetLastError();
    return wb_fail(WB_DEVICE, "%s: CUDA: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

wb_status wb_gpu_use(int gpu) {
    return check(cudaSetDevice(gpu), "NCCL: GPU");
}

wb_status wb_gpu_id(int gpu, unsigned char id_out[WB_GPU_ID_BYTES]) {
    int count = 0;
    struct cudaDeviceProp properties;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return wb_fail(WB_UNSUPPORTED, "GPU %d: %s", gpu, cudaGetErrorString(error));
    }
    if (gpu < 0 || gpu >= count) return wb_fail(WB_UNSUPPORTED, "GPU %d: this machine has %d", gpu, count);
    WB_TRY(check(cudaGetDeviceProperties(&properties, gpu), "NCCL: GPU"));
    memcpy(id_out, properties.uuid.bytes, WB_GPU_ID_BYTES);
    return WB_OK;
}

wb_status wb_gpu_stream_open(void **stream_out) {
    cudaStream_t stream = NULL;
    WB_TRY(check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "NCCL: stream"));
    *stream_out = stream;
    return WB_OK;
}

void wb_gpu_stream_close(void *stream) {
    if (stream) WB_IGNORE(check(cudaStreamDestroy(stream), "NCCL: stream"));
}

wb_status wb_gpu_event_open(void **event_out) {
    cudaEvent_t event = NULL;
    WB_TRY(check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "NCCL: event"));
    *event_out = event;
    return WB_OK;
}

void wb_gpu_event_close(void *event) {
    if (event) WB_IGNORE(check(cudaEventDestroy(event), "NCCL: event"));
}

wb_status wb_gpu_record(void *event, void *stream) {
    const cudaError_t error = cudaEventRecord(event, stream);
    if (error == cudaErrorInvalidResourceHandle) {
        (void)cudaGetLastError();
        return wb_fail(WB_INVALID_ARGUMENT, "NCCL: stream: expected one of the communicator's GPU");
    }
    return check(error, "NCCL: event, or what lies on the stream before it");
}

wb_status wb_gpu_wait(void *stream, void *event) {
    return check(cudaStreamWaitEvent(stream, event, 0), "NCCL: stream");
}

wb_status wb_gpu_has_come(void *event, bool *come_out) {
    const cudaError_t error = cudaEventQuery(event);
    *come_out = error == cudaSuccess;
    if (error == cudaErrorNotReady) {
        /* cudaEventQuery leaves even this as the thread's last error. */
        (void)cudaGetLastError();
        return WB_OK;
    }
    return check(error, "NCCL: what lies on its stream");
}

wb_status wb_gpu_alloc(size_t bytes, void **memory_out) {
    void *memory = NULL;
    WB_TRY(check(cudaMalloc(&memory, bytes), "NCCL: memory"));
    *memory_out = memory;
    return WB_OK;
}

void wb_gpu_free(void *memory) {
    if (memory) WB_IGNORE(check(cudaFree(memory), "NCCL: memory"));
}
