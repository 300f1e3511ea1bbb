/* bench_router_cuda.cu - time of topk and of the gate on CUDA, as a share of this device's copy bandwidth.
 *
 * Owns: buffers that together exceed the L2 cache, used in turn; CUDA graphs of one call for each, so that
 * no launch gap is timed; CUDA events around a replay, medians. The first rows of a timed output are
 * compared with the CPU's. Refuses: peers. Bytes: what must cross memory at least, each once; of logits
 * gathered at ids, the 32-byte sectors that hold them. Random normal logits. argv[1]: the device.
 */
#include "support/usage.h"
#include "wb_device.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

namespace {

const int64_t K = 8, COPY_BYTES = int64_t(1) << 30, ROTATED_BYTES = int64_t(1) << 28, CHECKED_ROWS = 256;
enum { MAX_SETS = 32, REPLAYS = 31, WARM_UPS = 3, SECTOR_FLOATS = 8 };

void must(wb_status status, const char *what) {
    if (status == WB_OK) return;
    fprintf(stderr, "%s: %s: %s\n", what, wb_status_string(status), wb_error_message());
    exit(1);
}

void must_cuda(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

/* Median microseconds of one call of `op(i)`, i going over `sets`. */
double time_us(cudaStream_t stream, int sets, const std::function<void(int)> &op) {
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    cudaEvent_t begin, end;
    must_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    for (int i = 0; i < sets; i++) op(i);
    must_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
    must_cuda(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
    must_cuda(cudaEventCreate(&begin), "event");
    must_cuda(cudaEventCreate(&end), "event");
    std::vector<double> times;
    for (int i = 0; i < WARM_UPS + REPLAYS; i++) {
        float ms = 0.0f;
        must_cuda(cudaEventRecord(begin, stream), "record");
        must_cuda(cudaGraphLaunch(replay, stream), "launch");
        must_cuda(cudaEventRecord(end, stream), "record");
        must_cuda(cudaEventSynchronize(end), "synchronize");
        must_cuda(cudaEventElapsedTime(&ms, begin, end), "elapsed");
        if (i >= WARM_UPS) times.push_back(1000.0 * ms / sets);
    }
    must_cuda(cudaEventDestroy(begin), "event");
    must_cuda(cudaEventDestroy(end), "event");
    must_cuda(cudaGraphExecDestroy(replay), "graph");
    must_cuda(cudaGraphDestroy(graph), "graph");
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

float *device_floats(wb_device *dev, const std::vector<float> &host) {
    void *memory = nullptr;
    must(dev->mem_alloc(dev, host.size() * sizeof(float), &memory), "mem_alloc");
    must(dev->to_device(dev, memory, host.data(), host.size() * sizeof(float)), "to_device");
    return static_cast<float *>(memory);
}

std::vector<float> random_normal(size_t count) {
    std::vector<float> values(count);
    uint64_t state = 88172645463325252u;
    for (float &value : values) {
        float sum = -2.0f; /* four uniform numbers */
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        for (int i = 0; i < 4; i++) sum += static_cast<float>(state >> (16 * i) & 0xffff) / 65536.0f;
        value = 3.4f * sum;
    }
    return values;
}

struct buffers {
    float *logits, *weights, *dweights, *dlogits;
    wb_ids ids;
};

struct workload {
    wb_router router;
    int64_t T;
    float *bias;
    std::vector<buffers> sets;
};

buffers make_buffers(wb_device *dev, int64_t T, const std::vector<float> &logits,
                     const std::vector<float> &dweights) {
    buffers set;
    void *ids = nullptr;
    must(dev->mem_alloc(dev, static_cast<size_t>(T * K), &ids), "mem_alloc");
    set.ids = wb_ids{ids, WB_U8, K};
    set.logits = device_floats(dev, logits);
    set.dlogits = device_floats(dev, logits);
    set.dweights = device_floats(dev, dweights);
    set.weights = device_floats(dev, dweights);
    return set;
}

void free_buffers(wb_device *dev, buffers &set) {
    dev->mem_free(dev, set.ids.data);
    dev->mem_free(dev, set.logits);
    dev->mem_free(dev, set.dlogits);
    dev->mem_free(dev, set.dweights);
    dev->mem_free(dev, set.weights);
}

void run_topk(wb_device *dev, const workload &work, const buffers &set) {
    wb_topk args = {};
    args.router = work.router;
    args.T = work.T;
    args.logits = set.logits;
    args.bias = work.bias;
    args.ids = set.ids;
    must(dev->topk(dev, &args), "topk");
}

void run_forward(wb_device *dev, const workload &work, const buffers &set) {
    must(dev->gate_forward(dev, &work.router, work.T, set.logits, NULL, set.ids, set.weights),
         "gate_forward");
}

void run_backward(wb_device *dev, const workload &work, const buffers &set) {
    must(dev->gate_backward(dev, &work.router, work.T, set.logits, NULL, set.ids, set.dweights, set.dlogits),
         "gate_backward");
}

template <typename T> std::vector<T> download(wb_device *dev, const void *device, int64_t count) {
    std::vector<T> host(static_cast<size_t>(count));
    must(dev->to_host(dev, host.data(), device, host.size() * sizeof(T)), "to_host");
    return host;
}

void must_equal(const void *cpu, const void *cuda, size_t bytes, const char *what) {
    if (memcmp(cpu, cuda, bytes) == 0) return;
    fprintf(stderr, "%s: not the CPU's bits\n", what);
    exit(1);
}

/* The first rows of a set's timed outputs against the CPU. */
void check(wb_device *dev, const workload &work, const buffers &set) {
    int64_t E = work.router.n_experts, T = CHECKED_ROWS;
    std::vector<float> logits = download<float>(dev, set.logits, T * E);
    std::vector<float> dweights = download<float>(dev, set.dweights, T * K);
    std::vector<float> bias(static_cast<size_t>(E)), weights(dweights), dlogits(logits);
    std::vector<uint8_t> ids(static_cast<size_t>(T * K));
    if (work.bias) bias = download<float>(dev, work.bias, E);
    workload host = {work.router, T, work.bias ? bias.data() : nullptr, {}};
    buffers at = {logits.data(), weights.data(), dweights.data(), dlogits.data(),
                  wb_ids{ids.data(), WB_U8, K}};
    wb_device *cpu = nullptr;
    must(wb_device_open_cpu(1, &cpu), "wb_device_open_cpu");
    run_topk(cpu, host, at);
    run_forward(cpu, host, at);
    run_backward(cpu, host, at);
    wb_device_close(cpu);
    must_equal(ids.data(), download<uint8_t>(dev, set.ids.data, T * K).data(), ids.size(), "topk");
    must_equal(weights.data(), download<float>(dev, set.weights, T * K).data(), weights.size() * 4,
               "gate_forward");
    must_equal(dlogits.data(), download<float>(dev, set.dlogits, T * E).data(), dlogits.size() * 4,
               "gate_backward");
}

/* Bytes of logits that the gate must read: all for SOFTMAX, else the sectors of the chosen experts. */
double gate_logit_bytes(wb_device *dev, const workload &work) {
    int64_t E = work.router.n_experts, sectors = 0;
    if (work.router.type == WB_ROUTER_SOFTMAX) return 4.0 * static_cast<double>(work.T * E);
    std::vector<uint8_t> ids = download<uint8_t>(dev, work.sets[0].ids.data, work.T * K);
    for (int64_t t = 0; t < work.T; t++) {
        uint64_t seen = 0; /* E <= 256: at most 32 sectors */
        for (int64_t k = 0; k < K; k++)
            seen |= uint64_t(1) << (ids[static_cast<size_t>(t * K + k)] / SECTOR_FLOATS);
        for (; seen; seen &= seen - 1) sectors++;
    }
    return static_cast<double>(sectors * SECTOR_FLOATS * 4);
}

void print(const workload &work, const char *op, double us, double bytes, double copy) {
    double rate = bytes / us * 1e-3;
    printf("%-14s %-12s T %7" PRId64 " E %4d K %" PRId64
           " groups %d/%d %9.2f us %8.1f MB %7.0f GB/s  %5.1f %% of copy\n",
           op, wb_router_name(work.router.type), work.T, work.router.n_experts, K, work.router.topk_group,
           work.router.n_group, us, bytes * 1e-6, rate, 100.0 * rate / copy);
}

void bench(wb_device *dev, const wb_router &router, int64_t T, double copy) {
    int64_t E = router.n_experts;
    cudaStream_t stream = static_cast<cudaStream_t>(dev->stream);
    std::vector<float> logits = random_normal(static_cast<size_t>(T * E));
    std::vector<float> dweights = random_normal(static_cast<size_t>(T * K));
    bool biased = router.type == WB_ROUTER_SIGMOID;
    workload work = {
        router, T, biased ? device_floats(dev, random_normal(static_cast<size_t>(E))) : nullptr, {}};
    int64_t wanted = ROTATED_BYTES / (T * E * 4) + 1;
    int sets = static_cast<int>(std::min<int64_t>(MAX_SETS, std::max<int64_t>(2, wanted)));
    for (int i = 0; i < sets; i++) work.sets.push_back(make_buffers(dev, T, logits, dweights));

    double all = static_cast<double>(T * E * 4), ids = static_cast<double>(T * K), weights = 4.0 * ids;
    double topk =
        time_us(stream, sets, [&](int i) { run_topk(dev, work, work.sets[static_cast<size_t>(i)]); });
    double forward =
        time_us(stream, sets, [&](int i) { run_forward(dev, work, work.sets[static_cast<size_t>(i)]); });
    double backward =
        time_us(stream, sets, [&](int i) { run_backward(dev, work, work.sets[static_cast<size_t>(i)]); });
    check(dev, work, work.sets[static_cast<size_t>(sets - 1)]);
    double read = gate_logit_bytes(dev, work) + ids + weights;
    print(work, "topk", topk, all + ids, copy);
    print(work, "gate_forward", forward, read, copy);
    print(work, "gate_backward", backward, read + all, copy);
    print(work, "forward+back", forward + backward, 2.0 * read + all, copy);
    for (buffers &set : work.sets) free_buffers(dev, set);
    dev->mem_free(dev, work.bias);
}

/* GB/s of a device-to-device copy, bytes read plus bytes written. */
double copy_rate(wb_device *dev) {
    std::vector<float> values = random_normal(static_cast<size_t>(COPY_BYTES / 4));
    float *from = device_floats(dev, values), *to = device_floats(dev, values);
    double us = time_us(static_cast<cudaStream_t>(dev->stream), 2, [&](int i) {
        must(dev->copy(dev, i ? from : to, i ? to : from, static_cast<size_t>(COPY_BYTES)), "copy");
    });
    dev->mem_free(dev, from);
    dev->mem_free(dev, to);
    return 2.0 * static_cast<double>(COPY_BYTES) / us * 1e-3;
}

} // namespace

int main(int argc, char **argv) {
    int code = 0;
    if (usage_ends(argc, argv, 0, 1, "usage: bench_router_cuda [DEVICE]\n", &code)) return code;
    int index = argc > 1 ? atoi(argv[1]) : 0;
    wb_device *dev = nullptr;
    wb_status status = wb_device_open_cuda(index, nullptr, &dev);
    if (status == WB_UNSUPPORTED) {
        printf("skipped: %s\n", wb_error_message());
        return 77;
    }
    must(status, "wb_device_open_cuda");
    cudaDeviceProp properties;
    must_cuda(cudaGetDeviceProperties(&properties, index), "properties");
    double copy = copy_rate(dev);
    printf("%s, %d multiprocessors, L2 %d MB; device-to-device copy %.0f GB/s read + written\n",
           properties.name, properties.multiProcessorCount, properties.l2CacheSize >> 20, copy);
    const wb_router routers[] = {
        {WB_ROUTER_SOFTMAX_NORM, 128, int32_t(K), 1, 1, false, 1.0f},
        {WB_ROUTER_SOFTMAX_NORM, 256, int32_t(K), 1, 1, false, 1.0f},
        {WB_ROUTER_SOFTMAX, 128, int32_t(K), 1, 1, false, 1.0f},
        {WB_ROUTER_SIGMOID, 128, int32_t(K), 1, 1, true, 2.5f},
        {WB_ROUTER_SIGMOID, 256, int32_t(K), 8, 4, true, 2.5f},
    };
    for (int64_t T : {int64_t(16384), int64_t(262144)})
        for (const wb_router &router : routers) bench(dev, router, T, copy);
    wb_device_close(dev);
    return 0;
}
