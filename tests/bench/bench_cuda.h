/* bench_cuda.h - what benchmarks of ops on CUDA share: the device, random operands in bf16, times. Included
 * by one program each. */
#ifndef WB_BENCH_CUDA_H
#define WB_BENCH_CUDA_H

#include "wb_device.h"
#include "wb_exact_math.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace {

enum { CALLS = 15, WARM_UPS = 3 };

wb_device *dev;
cudaStream_t stream;

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

/* ---- memory ------------------------------------------------------------------------------------ */

void *memory(int64_t bytes) {
    void *p = nullptr;
    must(dev->mem_alloc(dev, static_cast<size_t>(bytes), &p), "mem_alloc");
    return p;
}

uint64_t state = 88172645463325252u;

float normal() { /* of four uniform numbers */
    float sum = -2.0f;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    for (int i = 0; i < 4; i++) sum += static_cast<float>(state >> (16 * i) & 0xffff) / 65536.0f;
    return 1.73f * sum;
}

/* Random numbers of this size, the same few millions over and over. */
wb_rows random_rows(int64_t n, float scale) {
    const int64_t part = std::min(n, int64_t(1) << 22);
    std::vector<uint16_t> host(static_cast<size_t>(part));
    for (uint16_t &x : host) x = wb_f32_to_bf16(scale * normal());
    uint16_t *p = static_cast<uint16_t *>(memory(2 * n));
    for (int64_t at = 0; at < n; at += part)
        must(dev->to_device(dev, p + at, host.data(), static_cast<size_t>(2 * std::min(part, n - at))),
             "upload");
    return {p, WB_BF16};
}

float *random_floats(int64_t n, float scale) {
    std::vector<float> host(static_cast<size_t>(n));
    for (float &x : host) x = scale * normal();
    float *p = static_cast<float *>(memory(4 * n));
    must(dev->to_device(dev, p, host.data(), host.size() * 4), "upload");
    return p;
}

/* Opens device 0 on a stream of its own and prints its name; false where there is none. */
bool open_device() {
    cudaDeviceProp properties;
    const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess || wb_device_open_cuda(0, stream, &dev) != WB_OK) {
        printf("no CUDA device: %s\n", error != cudaSuccess ? cudaGetErrorString(error) : wb_error_message());
        return false;
    }
    must_cuda(cudaGetDeviceProperties(&properties, 0), "properties");
    printf("%s\n", properties.name);
    return true;
}

/* ---- times ------------------------------------------------------------------------------------- */

double time_ms(int calls, const std::function<void()> &op) {
    cudaEvent_t begin, end;
    float ms = 0;
    must_cuda(cudaEventCreate(&begin), "event");
    must_cuda(cudaEventCreate(&end), "event");
    must_cuda(cudaEventRecord(begin, stream), "record");
    for (int i = 0; i < calls; i++) op();
    must_cuda(cudaEventRecord(end, stream), "record");
    must_cuda(cudaEventSynchronize(end), "synchronize");
    must_cuda(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    must_cuda(cudaEventDestroy(begin), "event");
    must_cuda(cudaEventDestroy(end), "event");
    return static_cast<double>(ms) / calls;
}

double median_ms(const std::function<void()> &op) {
    std::vector<double> times;
    for (int i = 0; i < WARM_UPS + CALLS; i++) {
        const double ms = time_ms(1, op);
        if (i >= WARM_UPS) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

} // namespace

#endif
