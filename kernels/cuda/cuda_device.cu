/* cuda_device.cu - opening and closing a CUDA device, and its memory.
 *
 * Owns: the stream that all calls of a device lie on, whether its own or its caller's. Refuses: ops, peer
 * devices.
 */
#include "cuda/cuda_device.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

extern "C" {
static cudaStream_t stream_of(wb_device *dev) {
    return (cudaStream_t)dev->stream;
}

/* ---- memory -------------------------------------------------------------------------------------- */

/* What an allocation of `bytes` bytes returned. */
static wb_status check_taken(const wb_device *dev, cudaError_t error, const char *what, size_t bytes) {
    if (error != cudaErrorMemoryAllocation) return wb_cuda_check(error, what);
    (void)cudaGetLastError();
    return wb_fail(WB_OUT_OF_MEMORY, "%s: CUDA device %d: %zu bytes: %s", what,
                   ((const wb_cuda_device *)dev)->index, bytes, cudaGetErrorString(error));
}

static wb_status cuda_mem_alloc(wb_device *dev, size_t bytes, void **device_out) {
    WB_TRY(wb_cuda_use(dev, "mem_alloc"));
    void *memory = NULL;
    /* cudaMalloc(0) would give NULL. */
    WB_TRY(check_taken(dev, cudaMalloc(&memory, bytes ? bytes : 1), "mem_alloc", bytes));
    *device_out = memory;
    return WB_OK;
}

static wb_status cuda_host_alloc(wb_device *dev, size_t bytes, void **host_out) {
    WB_TRY(wb_cuda_use(dev, "host_alloc"));
    void *memory = NULL;
    WB_TRY(check_taken(dev, cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocDefault), "host_alloc",
                       bytes));
    *host_out = memory;
    return WB_OK;
}

/* No copy from or to it is on its way: both were waited for. */
static void cuda_host_free(wb_device *dev, void *host) {
    if (!host) return;
    WB_IGNORE(wb_cuda_use(dev, "host_free"));
    WB_IGNORE(wb_cuda_check(cudaFreeHost(host), "host_free"));
}

/* Beside the thread that uses the device, which may be in `finish`. The first reason stays until it is
 * told. */
static void cuda_lose(wb_device *dev, const char *why) {
    wb_cuda_device *cuda = (wb_cuda_device *)dev;
    if (__atomic_load_n(&cuda->words->lost, __ATOMIC_ACQUIRE)) return;
    snprintf(cuda->why_lost, sizeof cuda->why_lost, "%s", why);
    __atomic_store_n(&cuda->words->lost, 1, __ATOMIC_RELEASE);
}

/* After a wait. What an op before it found wrong is returned once, whatever this call did; where the stream
 * was lost, that is of what others should have sent. */
static wb_status tell_faults(wb_device *dev, const char *what) {
    wb_cuda_device *cuda = (wb_cuda_device *)dev;
    const wb_fault fault = cuda->words->fault;
    cuda->words->fault = wb_fault();
    if (!__atomic_load_n(&cuda->words->lost, __ATOMIC_ACQUIRE)) return wb_fault_report(&fault);
    const wb_status status = wb_fail(WB_PEER, "%s: %s", what, cuda->why_lost);
    __atomic_store_n(&cuda->words->lost, 0, __ATOMIC_RELEASE);
    return status;
}

static wb_status finish(wb_device *dev, const char *what) {
    WB_TRY(wb_cuda_check(cudaStreamSynchronize(stream_of(dev)), what));
    return tell_faults(dev, what);
}

static void cuda_mem_free(wb_device *dev, void *device) {
    if (!device) return;
    WB_IGNORE(wb_cuda_use(dev, "mem_free"));
    WB_IGNORE(wb_cuda_check(cudaStreamSynchronize(stream_of(dev)), "mem_free, or an op before it"));
    WB_IGNORE(wb_cuda_check(cudaFree(device), "mem_free"));
}

/* A copy from ordinary host memory waits for what is on the stream, unless it is of 64 KiB or less: those the
 * driver takes into memory of its own. So one of a few MiB, as a batch's inputs are, goes in such pieces, and
 * the host stays ahead of the device. */
static size_t piece_of(const struct cudaPointerAttributes *where, size_t bytes) {
    const size_t piece = (size_t)64 << 10, most = (size_t)4 << 20;
    return where->type == cudaMemoryTypeUnregistered && bytes <= most ? piece : bytes;
}

/* Ordinary host memory has been read when cudaMemcpyAsync returns; pinned memory, as of trainers and of
 * host_alloc, has not, so that its copy is waited for: the caller may write it again on return. */
static wb_status cuda_to_device(wb_device *dev, void *device, const void *host, size_t bytes) {
    if (bytes == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "to_device"));
    struct cudaPointerAttributes where;
    WB_TRY(wb_cuda_check(cudaPointerGetAttributes(&where, host), "to_device: host"));
    const size_t piece = piece_of(&where, bytes);
    for (size_t at = 0; at < bytes; at += piece)
        WB_TRY(wb_cuda_check(cudaMemcpyAsync((char *)device + at, (const char *)host + at,
                                             bytes - at < piece ? bytes - at : piece, cudaMemcpyHostToDevice,
                                             stream_of(dev)),
                             "to_device"));
    if (where.type == cudaMemoryTypeUnregistered) return WB_OK;
    return finish(dev, "to_device, or an op before it");
}

static wb_status cuda_to_host(wb_device *dev, void *host, const void *device, size_t bytes) {
    WB_TRY(wb_cuda_use(dev, "to_host"));
    if (bytes > 0)
        WB_TRY(wb_cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_of(dev)),
                             "to_host"));
    return finish(dev, "to_host, or an op before it");
}

/* ---- copies that are waited for later ------------------------------------------------------------ */

static wb_status cuda_event_open(wb_device *dev, void **event_out) {
    cudaEvent_t event;
    WB_TRY(wb_cuda_use(dev, "event_open"));
    WB_TRY(check_taken(dev, cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event_open", 0));
    *event_out = event;
    return WB_OK;
}

static void cuda_event_close(wb_device *dev, void *event) {
    if (!event) return;
    WB_IGNORE(wb_cuda_use(dev, "event_close"));
    WB_IGNORE(wb_cuda_check(cudaEventDestroy((cudaEvent_t)event), "event_close"));
}

static wb_status cuda_start_to_host(wb_device *dev, void *host, const void *device, size_t bytes,
                                    void *event) {
    WB_TRY(wb_cuda_use(dev, "start_to_host"));
    if (bytes > 0)
        WB_TRY(wb_cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_of(dev)),
                             "start_to_host"));
    return wb_cuda_check(cudaEventRecord((cudaEvent_t)event, stream_of(dev)), "start_to_host");
}

static wb_status cuda_event_look(wb_device *dev, void *event, bool *come_out) {
    WB_TRY(wb_cuda_use(dev, "event_look"));
    const cudaError_t error = cudaEventQuery((cudaEvent_t)event);
    *come_out = error == cudaSuccess;
    if (error != cudaErrorNotReady) return wb_cuda_check(error, "event_look, or an op before it");
    /* cudaEventQuery leaves even this as the thread's last error. */
    (void)cudaGetLastError();
    return WB_OK;
}

static wb_status cuda_event_wait(wb_device *dev, void *event) {
    static const char what[] = "event_wait, or an op before it";
    WB_TRY(wb_cuda_use(dev, "event_wait"));
    WB_TRY(wb_cuda_check(cudaEventSynchronize((cudaEvent_t)event), what));
    return tell_faults(dev, what);
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

/* Behind the counters, whose number is even. */
static uint64_t *digest_of(const wb_cuda_device *cuda) {
    return (uint64_t *)(void *)(cuda->counters + WB_CUDA_DRAWS + 2 * cuda->multiprocessors);
}

static wb_status cuda_digest(wb_device *dev, const void *data, size_t bytes, uint64_t *digest_out) {
    uint64_t *const digest = digest_of((wb_cuda_device *)dev);
    uint64_t found = 0;
    WB_TRY(wb_cuda_start_digest(dev, data, bytes, digest));
    WB_TRY(cuda_to_host(dev, &found, digest, sizeof found));
    *digest_out = found;
    return WB_OK;
}

static wb_status cuda_reserve_scratch(wb_device *dev, const wb_op_sizes *most) {
    void *scratch = NULL;
    WB_TRY(wb_cuda_use(dev, "reserve_scratch"));
    return wb_cuda_scratch_reserve(dev, wb_cuda_scratch_bytes(dev, most), &scratch);
}

/* ---- opening and closing ------------------------------------------------------------------------- */

static void cuda_close(wb_device *dev) {
    wb_cuda_device *cuda = (wb_cuda_device *)dev;
    WB_IGNORE(wb_cuda_use(dev, "close"));
    cuda_mem_free(dev, cuda->scratch);
    cuda_mem_free(dev, cuda->counters);
    WB_IGNORE(wb_cuda_check(cudaStreamSynchronize(stream_of(dev)), "close, or an op before it"));
    wb_cuda_close_puts(cuda);
    if (cuda->owns_stream) WB_IGNORE(wb_cuda_check(cudaStreamDestroy(stream_of(dev)), "close"));
    WB_IGNORE(wb_cuda_check(cudaFreeHost(cuda->words), "close"));
    free(cuda);
}

/* UNSUPPORTED unless device `index` exists and runs what the kernels need (__reduce_max_sync: 8.0). */
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

/* A caller's stream has to be one of device `index`, the current one. CUDA tells by the record of an event:
 * an event of the current device cannot be recorded on a stream of another. */
static wb_status check_stream(int index, cudaStream_t stream) {
    cudaEvent_t event;
    WB_TRY(wb_cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "open"));
    cudaError_t error = cudaEventRecord(event, stream);
    wb_status destroyed = wb_cuda_check(cudaEventDestroy(event), "open");
    if (error == cudaErrorInvalidResourceHandle) {
        (void)cudaGetLastError();
        return wb_fail(WB_INVALID_ARGUMENT,
                       "stream: expected a stream of CUDA device %d, found one of another", index);
    }
    WB_TRY(wb_cuda_check(error, "open: stream"));
    return destroyed;
}

static void set_ops(wb_device *dev) {
    dev->close = cuda_close;
    dev->lose = cuda_lose;
#define SET(op) dev->op = cuda_##op;
    WB_MEMORY_OPS(SET)
#undef SET
#define SET(op) dev->op = wb_cuda_##op;
    WB_COMPUTE_OPS(SET)
    WB_MAILBOX_OPS(SET)
#undef SET
}

int wb_device_count_cuda(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError();
    return 0;
}

/* What the launches of kernels go by, and what kernels count in. */
static wb_status open_counters(wb_cuda_device *cuda) {
    void *counters = NULL;
    WB_TRY(wb_cuda_check(
        cudaDeviceGetAttribute(&cuda->multiprocessors, cudaDevAttrMultiProcessorCount, cuda->index), "open"));
    WB_TRY(wb_cuda_check(
        cudaDeviceGetAttribute(&cuda->capability, cudaDevAttrComputeCapabilityMajor, cuda->index), "open"));
    const size_t counted = WB_CUDA_DRAWS + 2 * (size_t)cuda->multiprocessors;
    const size_t bytes = counted * sizeof *cuda->counters + sizeof(uint64_t);
    WB_TRY(cuda_mem_alloc(&cuda->base, bytes, &counters));
    cuda->counters = (int32_t *)counters;
    return cuda_zero(&cuda->base, counters, bytes);
}

/* What lies on CUDA's default stream cannot be captured. */
static void set_graphs(wb_device *dev) {
    if (dev->stream == (void *)cudaStreamLegacy) return;
    dev->graph_begin = wb_cuda_graph_begin;
    dev->graph_end = wb_cuda_graph_end;
    dev->graph_launch = wb_cuda_graph_launch;
    dev->graph_free = wb_cuda_graph_free;
}

/* A stream, unless the caller has one, and the words. What was made when it fails, cuda_close
 * frees. */
static wb_status open_parts(wb_cuda_device *cuda, void *stream) {
    wb_device *dev = &cuda->base;
    void *words = NULL, *words_on_device = NULL;
    cudaStream_t own = NULL;
    if (!stream) WB_TRY(wb_cuda_check(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "open"));
    cuda->owns_stream = !stream;
    dev->stream = stream ? stream : own;
    set_graphs(dev);
    WB_TRY(wb_cuda_check(cudaHostAlloc(&words, sizeof *cuda->words, cudaHostAllocMapped), "open"));
    cuda->words = (wb_cuda_words *)words;
    *cuda->words = wb_cuda_words();
    WB_TRY(wb_cuda_check(cudaHostGetDevicePointer(&words_on_device, words, 0), "open"));
    cuda->words_on_device = (wb_cuda_words *)words_on_device;
    return WB_OK;
}

wb_status wb_device_open_cuda(int index, void *stream, wb_device **device_out) {
    WB_TRY(check_device(index));
    WB_TRY(wb_cuda_check(cudaSetDevice(index), "open"));
    if (stream) WB_TRY(check_stream(index, (cudaStream_t)stream));
    wb_cuda_device *cuda = (wb_cuda_device *)wb_alloc(1, sizeof *cuda, "CUDA device");
    if (!cuda) return WB_OUT_OF_MEMORY;
    wb_device *dev = &cuda->base;
    cuda->index = index;
    dev->backend = WB_BACKEND_CUDA;
    dev->name = "cuda";
    dev->threads = 1;
    set_ops(dev);
    wb_status status = open_parts(cuda, stream);
    if (status == WB_OK) status = open_counters(cuda);
    if (status != WB_OK) {
        cuda_close(dev);
        return status;
    }
    *device_out = dev;
    return WB_OK;
}
}
