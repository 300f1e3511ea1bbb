/* bench_floor_cuda.h - the least time that a card allows for an op of f32 arithmetic: what a copy of its
 * bytes takes at the rate that is measured here, or its FLOP at the clock's rate. Included by one program
 * each, after bench_cuda.h. */
#ifndef WB_BENCH_FLOOR_CUDA_H
#define WB_BENCH_FLOOR_CUDA_H

#include "bench_cuda.h"

namespace {

struct card_rates {
    double bytes_per_ms, flop_per_ms;
};

/* An SM of what is built for (8.6 and later, 9.0) has 128 f32 units; 8.0 has 64. */
card_rates measure_card() {
    int clock_khz = 0, multiprocessors = 0, major = 0, minor = 0;
    must_cuda(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0), "clock");
    must_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "SMs");
    must_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "capability");
    must_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "capability");
    const int64_t n = int64_t(1) << 30;
    void *const from = memory(n), *const to = memory(n);
    const double ms = median_ms([&] { must(dev->copy(dev, to, from, static_cast<size_t>(n)), "copy"); });
    dev->mem_free(dev, from), dev->mem_free(dev, to);
    const double units = major == 8 && minor == 0 ? 64 : 128;
    const card_rates rates = {2.0 * static_cast<double>(n) / ms, 2.0 * units * multiprocessors * clock_khz};
    printf("copy %.0f GB/s, f32 %.1f TFLOP/s\n", rates.bytes_per_ms / 1e6, rates.flop_per_ms / 1e9);
    return rates;
}

void print_time(const char *what, double ms, double bytes, double flop, const card_rates &rates) {
    const double of_bytes = bytes / rates.bytes_per_ms, of_flop = flop / rates.flop_per_ms;
    const double least = of_bytes > of_flop ? of_bytes : of_flop;
    printf("%-46s %10.3f ms, floor %8.3f ms of %s, of it %5.3f, %7.2f TFLOP/s\n", what, ms, least,
           of_bytes > of_flop ? "bytes" : "FLOP", least / ms, flop / ms / 1e9);
    fflush(stdout);
}

} // namespace

#endif
