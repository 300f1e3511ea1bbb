/* test_stream_cuda.c - a CUDA device on a stream of its caller's: ops and copies take their place among what
 * the caller enqueues there, without a wait between them.
 *
 * The stream is held up at first by a host function that sleeps. What a call of the device would do on any
 * other stream is then done long before the caller's work that it has to follow, and the result is wrong: the
 * tests of order fail when the device is opened with a stream of its own (argument "own"). A plain program,
 * so that it needs no test library; 77, with the reason, where there is no CUDA device. */
#include "wb_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SKIP = 77 };

#ifndef WB_HAVE_CUDA

int main(void) {
    printf("skipped: built without CUDA\n");
    return SKIP;
}

#else

#include <cuda_runtime_api.h>
#include <time.h>

enum { T = 64, E = 32, K = 4, HELD_MS = 100, POISON = 0x3c };

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

static void must(wb_status status, const char *what) {
    if (status == WB_OK) return;
    fprintf(stderr, "FAILED: %s: %s\n", what, wb_error_message());
    exit(1);
}

static void cuda_ok(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "FAILED: %s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

static void *pinned(size_t bytes) {
    void *memory = NULL;
    cuda_ok(cudaMallocHost(&memory, bytes), "cudaMallocHost");
    return memory;
}

static void *device_memory(wb_device *dev, size_t bytes) {
    void *memory = NULL;
    must(wb_device_alloc(dev, bytes, &memory), "alloc");
    return memory;
}

/* ---- a stream that is held up -------------------------------------------------------------------- */

static void sleep_on_stream(void *unused) {
    (void)unused;
    struct timespec pause = {0, HELD_MS * 1000000L};
    nanosleep(&pause, NULL);
}

static void hold(cudaStream_t stream) {
    cuda_ok(cudaLaunchHostFunc(stream, sleep_on_stream, NULL), "cudaLaunchHostFunc");
}

static cudaStream_t open_stream(void) {
    cudaStream_t stream;
    cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return stream;
}

/* ---- ops between the caller's copies ------------------------------------------------------------- */

typedef struct routing {
    float *logits;  /* [T, E] */
    uint16_t *ids;  /* [T, K] */
    float *weights; /* [T, K] */
    float *dlogits; /* [T, E], with the weights as dweights */
} routing;

static const wb_router router = {WB_ROUTER_SIGMOID, E, K, 1, 1, true, 1.5f};

static void enqueue_routing(wb_device *dev, routing r) {
    wb_ids ids = {r.ids, WB_U16, K};
    wb_topk topk = {.router = router, .T = T, .logits = r.logits, .ids = ids};
    must(dev->topk(dev, &topk), "topk");
    must(dev->gate_forward(dev, &router, T, r.logits, NULL, ids, r.weights), "gate_forward");
    must(dev->gate_backward(dev, &router, T, r.logits, NULL, ids, r.weights, r.dlogits), "gate_backward");
}

static const size_t logit_bytes = T * E * sizeof(float), id_bytes = T * K * sizeof(uint16_t),
                    weight_bytes = T * K * sizeof(float);

/* The caller writes the logits, the device routes, the caller takes the results and spoils all buffers. */
static void test_ops_follow_the_callers_work(wb_device *cpu, wb_device *cuda, cudaStream_t stream) {
    routing host = {pinned(logit_bytes), pinned(id_bytes), pinned(weight_bytes), pinned(logit_bytes)};
    routing expected = {host.logits, malloc(id_bytes), malloc(weight_bytes), malloc(logit_bytes)};
    if (!expected.ids || !expected.weights || !expected.dlogits) fail("host memory");
    for (size_t i = 0; i < T * E; i++) host.logits[i] = (float)((i * 2654435761u) % 1000u) * 0.01f - 5.0f;
    enqueue_routing(cpu, expected);

    routing on = {device_memory(cuda, logit_bytes), device_memory(cuda, id_bytes),
                  device_memory(cuda, weight_bytes), device_memory(cuda, logit_bytes)};
    cuda_ok(cudaMemset(on.logits, 0, logit_bytes), "cudaMemset");
    cuda_ok(cudaMemset(on.ids, 0, id_bytes), "cudaMemset");
    cuda_ok(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    hold(stream);
    cuda_ok(cudaMemcpyAsync(on.logits, host.logits, logit_bytes, cudaMemcpyHostToDevice, stream), "copy");
    enqueue_routing(cuda, on);
    cuda_ok(cudaMemcpyAsync(host.ids, on.ids, id_bytes, cudaMemcpyDeviceToHost, stream), "copy");
    cuda_ok(cudaMemcpyAsync(host.weights, on.weights, weight_bytes, cudaMemcpyDeviceToHost, stream), "copy");
    cuda_ok(cudaMemcpyAsync(host.dlogits, on.dlogits, logit_bytes, cudaMemcpyDeviceToHost, stream), "copy");
    cuda_ok(cudaMemsetAsync(on.logits, POISON, logit_bytes, stream), "spoil");
    cuda_ok(cudaMemsetAsync(on.ids, POISON, id_bytes, stream), "spoil");
    cuda_ok(cudaStreamSynchronize(stream), "cudaStreamSynchronize");

    if (memcmp(host.ids, expected.ids, id_bytes) != 0) fail("ids are not those of the caller's logits");
    if (memcmp(host.weights, expected.weights, weight_bytes) != 0) fail("weights differ");
    if (memcmp(host.dlogits, expected.dlogits, logit_bytes) != 0) fail("dlogits differ");
    void *on_device[] = {on.logits, on.ids, on.weights, on.dlogits};
    void *on_host[] = {host.logits, host.ids, host.weights, host.dlogits};
    for (int i = 0; i < 4; i++) wb_device_free(cuda, on_device[i]);
    for (int i = 0; i < 4; i++) cuda_ok(cudaFreeHost(on_host[i]), "cudaFreeHost");
    free(expected.ids), free(expected.weights), free(expected.dlogits);
    printf("ops between the caller's copies: the CPU's bits\n");
}

/* ---- copies between the caller's ------------------------------------------------------------------ */

enum { BYTES = 4096 };

static void expect_bytes(const uint8_t *found, uint8_t value, const char *what) {
    for (int i = 0; i < BYTES; i++)
        if (found[i] != value) fail(what);
}

/* upload, copy, zero and download, each after a write of the caller's that it has to see or to replace. */
static void test_copies_follow_the_callers_work(wb_device *cuda, cudaStream_t stream) {
    uint8_t host[BYTES], back[BYTES];
    uint8_t *a = device_memory(cuda, BYTES), *b = device_memory(cuda, BYTES);
    memset(host, 7, sizeof host);

    hold(stream);
    cuda_ok(cudaMemsetAsync(a, 1, BYTES, stream), "cudaMemset");
    must(wb_device_download(cuda, back, a, BYTES), "download");
    expect_bytes(back, 1, "download does not see the caller's write");

    hold(stream);
    cuda_ok(cudaMemsetAsync(a, 2, BYTES, stream), "cudaMemset");
    must(wb_device_upload(cuda, a, host, BYTES), "upload");
    cuda_ok(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    must(wb_device_download(cuda, back, a, BYTES), "download");
    expect_bytes(back, 7, "the caller's earlier write replaces an upload");

    hold(stream);
    cuda_ok(cudaMemsetAsync(a, 3, BYTES, stream), "cudaMemset");
    must(cuda->copy(cuda, b, a, BYTES), "copy");
    must(cuda->zero(cuda, a, BYTES), "zero");
    cuda_ok(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    must(wb_device_download(cuda, back, b, BYTES), "download");
    expect_bytes(back, 3, "copy does not see the caller's write");
    must(wb_device_download(cuda, back, a, BYTES), "download");
    expect_bytes(back, 0, "the caller's earlier write replaces zeros");

    wb_device_free(cuda, a);
    wb_device_free(cuda, b);
    printf("copies between the caller's: ok\n");
}

/* Pinned memory is the caller's again on return: its copy is not on the way any more. */
static void test_upload_is_done_with_pinned_memory(wb_device *cuda, cudaStream_t stream) {
    uint8_t back[BYTES], *host = pinned(BYTES), *a = device_memory(cuda, BYTES);
    memset(host, 5, BYTES);
    hold(stream);
    must(wb_device_upload(cuda, a, host, BYTES), "upload");
    memset(host, 6, BYTES);
    must(wb_device_download(cuda, back, a, BYTES), "download");
    expect_bytes(back, 5, "upload of pinned memory returns before it has read it");
    wb_device_free(cuda, a);
    cuda_ok(cudaFreeHost(host), "cudaFreeHost");
    printf("upload of pinned memory: ok\n");
}

/* Host memory of the device is pinned, and there is none of 2^60 bytes. */
static void test_host_memory_is_pinned(wb_device *cuda) {
    struct cudaPointerAttributes where;
    void *host = NULL, *empty = NULL;
    must(cuda->host_alloc(cuda, BYTES, &host), "host_alloc");
    must(cuda->host_alloc(cuda, 0, &empty), "host_alloc of 0 bytes");
    if (!empty || (uintptr_t)host % 64 != 0) fail("host_alloc: NULL or not aligned");
    cuda_ok(cudaPointerGetAttributes(&where, host), "cudaPointerGetAttributes");
    if (where.type != cudaMemoryTypeHost) fail("host_alloc: memory that is not pinned");
    void *huge = host;
    if (cuda->host_alloc(cuda, (size_t)1 << 60, &huge) != WB_OUT_OF_MEMORY || huge != host)
        fail("host_alloc of 2^60 bytes: expected out of memory, output untouched");
    cuda->host_free(cuda, host);
    cuda->host_free(cuda, empty);
    cuda->host_free(cuda, NULL);
    printf("host memory: pinned\n");
}

/* A copy that is started returns before the stream is there, and has come when its event was waited for, with
 * what the device had at its place on the stream. */
static void test_a_copy_is_waited_for_later(wb_device *cuda) {
    void *host = NULL, *event = NULL, *a = device_memory(cuda, BYTES);
    must(cuda->host_alloc(cuda, BYTES, &host), "host_alloc");
    must(cuda->event_open(cuda, &event), "event_open");
    memset(host, POISON, BYTES);
    hold(cuda->stream);
    must(cuda->zero(cuda, a, BYTES), "zero");
    must(cuda->start_to_host(cuda, host, a, BYTES, event), "start_to_host");
    cuda_ok(cudaMemsetAsync(a, 1, BYTES, cuda->stream), "cudaMemsetAsync");
    if (*(volatile unsigned char *)host != POISON) fail("start_to_host: expected to return at once");
    must(cuda->event_wait(cuda, event), "event_wait");
    expect_bytes(host, 0, "a copy that was waited for by its event");
    cuda->event_close(cuda, event);
    cuda->event_close(cuda, NULL);
    cuda->host_free(cuda, host);
    wb_device_free(cuda, a);
    printf("a copy that is waited for later: ok\n");
}

/* What is captured is done at a launch, each time with what lies at the addresses then. */
static void test_a_graph_reads_at_its_launch(wb_device *cuda) {
    uint8_t host[BYTES], back[BYTES], *from = device_memory(cuda, BYTES), *to = device_memory(cuda, BYTES);
    void *handle = NULL;
    must(cuda->zero(cuda, to, BYTES), "zero");
    must(cuda->graph_begin(cuda), "graph_begin");
    must(cuda->copy(cuda, to, from, BYTES), "copy");
    must(cuda->graph_end(cuda, &handle), "graph_end");
    must(wb_device_download(cuda, back, to, BYTES), "download");
    expect_bytes(back, 0, "a capture does nothing");
    for (int value = 1; value < 4; value++) {
        memset(host, value, BYTES);
        must(wb_device_upload(cuda, from, host, BYTES), "upload");
        must(cuda->graph_launch(cuda, handle), "graph_launch");
        must(wb_device_download(cuda, back, to, BYTES), "download");
        expect_bytes(back, (uint8_t)value, "a launch");
    }
    cuda->graph_free(cuda, handle);
    cuda->graph_free(cuda, NULL);
    wb_device_free(cuda, from);
    wb_device_free(cuda, to);
    printf("a graph: ok\n");
}

/* ---- what is lost --------------------------------------------------------------------------------- */

/* What others should have put on the stream did not come: the next call that waits says so, once. */
static void test_a_lost_stream_is_told(wb_device *cuda) {
    uint8_t back[BYTES], *a = device_memory(cuda, BYTES);
    must(cuda->zero(cuda, a, BYTES), "zero");
    cuda->lose(cuda, "rank 1 did not come");
    cuda->lose(cuda, "another reason");
    if (wb_device_download(cuda, back, a, BYTES) != WB_PEER) fail("a lost stream is not told");
    if (!strstr(wb_error_message(), "rank 1 did not come")) fail("why a stream was lost is not told");
    must(wb_device_download(cuda, back, a, BYTES), "download after that");
    expect_bytes(back, 0, "download after a lost stream");
    wb_device_free(cuda, a);
    printf("a lost stream: told once\n");
}

/* ---- owners -------------------------------------------------------------------------------------- */

/* Closing waits for the stream and leaves a borrowed one to its owner. */
static void test_close_leaves_a_borrowed_stream(cudaStream_t stream) {
    wb_device *cuda = NULL;
    must(wb_device_open_cuda(0, stream, &cuda), "open");
    if (cuda->stream != stream) fail("the device is not on the stream that it was given");
    hold(stream);
    wb_device_close(cuda);
    if (cudaStreamQuery(stream) != cudaSuccess) fail("close does not wait for the stream, or destroys it");
    hold(stream);
    cuda_ok(cudaStreamSynchronize(stream), "the stream after close");
    printf("close: the borrowed stream is left\n");
}

/* The default streams have names of their own; NULL asks for a new stream. */
static void test_default_and_own_streams(void) {
    wb_device *own = NULL, *legacy = NULL;
    must(wb_device_open_cuda(0, NULL, &own), "open");
    must(wb_device_open_cuda(0, cudaStreamLegacy, &legacy), "open on the default stream");
    if (!own->stream || own->stream == legacy->stream) fail("NULL gives no stream of its own");
    wb_device_close(own);
    wb_device_close(legacy);
    printf("own stream, default stream: ok\n");
}

static void test_a_foreign_stream_is_refused(void) {
    int count = 0;
    cuda_ok(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    if (count < 2) {
        printf("a stream of another device: not tried, there is one device\n");
        return;
    }
    cuda_ok(cudaSetDevice(1), "cudaSetDevice");
    cudaStream_t foreign = open_stream();
    wb_device *none = NULL;
    if (wb_device_open_cuda(0, foreign, &none) != WB_INVALID_ARGUMENT || none)
        fail("a stream of device 1 for device 0: expected invalid argument, output untouched");
    cuda_ok(cudaStreamDestroy(foreign), "cudaStreamDestroy");
    cuda_ok(cudaSetDevice(0), "cudaSetDevice");
    printf("a stream of another device: refused\n");
}

/* argument "own": the device on a stream of its own, to see the tests fail. */
int main(int argc, char **argv) {
    const bool wrong = argc > 1 && strcmp(argv[1], "own") == 0;
    wb_device *probe = NULL, *cpu = NULL, *cuda = NULL;
    wb_status status = wb_device_open_cuda(0, NULL, &probe);
    if (status == WB_UNSUPPORTED) {
        printf("skipped: %s\n", wb_error_message());
        return SKIP;
    }
    must(status, "wb_device_open_cuda");
    wb_device_close(probe);
    cudaStream_t stream = open_stream();
    must(wb_device_open_cpu(1, &cpu), "wb_device_open_cpu");
    must(wb_device_open_cuda(0, wrong ? NULL : stream, &cuda), "wb_device_open_cuda on a stream");
    test_copies_follow_the_callers_work(cuda, stream);
    test_ops_follow_the_callers_work(cpu, cuda, stream);
    test_upload_is_done_with_pinned_memory(cuda, stream);
    test_a_copy_is_waited_for_later(cuda);
    test_a_graph_reads_at_its_launch(cuda);
    test_host_memory_is_pinned(cuda);
    test_a_lost_stream_is_told(cuda);
    test_close_leaves_a_borrowed_stream(stream);
    test_default_and_own_streams();
    test_a_foreign_stream_is_refused();
    wb_device_close(cuda);
    wb_device_close(cpu);
    cuda_ok(cudaStreamDestroy(stream), "cudaStreamDestroy");
    return 0;
}

#endif
