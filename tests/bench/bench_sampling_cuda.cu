/* bench_sampling_cuda.cu - time of log-probabilities, of their gradient and of drawing on CUDA at an engine's
 * numbers of rows, beside what their bytes take at this device's copy bandwidth.
 *
 * Medians of calls, which rows that together exceed the L2 cache take in turn. Refuses: whether they are
 * right (test_sampling_cuda). */
#include "bench_cuda.h"
#include "support/usage.h"

#include <cinttypes>

namespace {

const int64_t ROTATED_BYTES = int64_t(1) << 28;

/* The same few million over and over. */
float *random_logits(int64_t n) {
    const int64_t part = std::min(n, int64_t(1) << 22);
    float *from = random_floats(part, 2.0f), *to = static_cast<float *>(memory(4 * n));
    for (int64_t at = 0; at < n; at += part)
        must(dev->copy(dev, to + at, from, static_cast<size_t>(4 * std::min(part, n - at))), "copy");
    must_cuda(cudaStreamSynchronize(stream), "synchronize");
    dev->mem_free(dev, from);
    return to;
}

struct sampled {
    int64_t B, V, sets;
    float *logits; /* [sets][B][V] */
    int32_t *tokens;
    float *logprobs;
    int64_t turn;

    float *next() {
        return logits + turn++ % sets * B * V;
    }
};

void print(const sampled &s, const char *what, double ms, double times, double copy) {
    const double bytes = times * 4.0 * static_cast<double>(s.B * s.V), us = 1000.0 * ms;
    printf("%-28s rows %4" PRId64 " V %6" PRId64 " %9.1f us %8.1f MB, floor %7.1f us: %5.1f %% of copy\n",
           what, s.B, s.V, us, bytes * 1e-6, bytes / copy * 1e-3, 100.0 * bytes / copy * 1e-3 / us);
}

double time_sample(sampled &s, wb_sample_params params) {
    std::vector<wb_sample_params> all(static_cast<size_t>(s.B), params);
    for (int64_t b = 0; b < s.B; b++)
        all[static_cast<size_t>(b)].uniform = (static_cast<float>(b) + 0.5f) / static_cast<float>(s.B);
    return median_ms([&] {
        must(dev->sample(dev, s.B, s.V, s.next(), all.data(), NULL, s.tokens, s.logprobs), "sample");
    });
}

void bench(int64_t B, int64_t V, double copy) {
    const int64_t sets = ROTATED_BYTES / (4 * B * V) + 2;
    sampled s = {B,
                 V,
                 sets,
                 random_logits(sets * B * V),
                 static_cast<int32_t *>(memory(4 * B)),
                 static_cast<float *>(memory(4 * B)),
                 0};
    must(dev->zero(dev, s.tokens, static_cast<size_t>(4 * B)), "zero");
    const double forward = median_ms([&] {
        must(dev->logprob_forward(dev, B, V, s.next(), s.tokens, NULL, s.logprobs), "logprob_forward");
    });
    print(s, "logprob_forward", forward, 1.0, copy);
    print(s, "sample, temperature 1", time_sample(s, {1.0f, 0, 1.0f, 0.0f}), 1.0, copy);
    print(s, "sample, greedy", time_sample(s, {0.0f, 0, 1.0f, 0.0f}), 1.0, copy);
    print(s, "sample, top_k 50", time_sample(s, {1.0f, 50, 1.0f, 0.0f}), 1.0, copy);
    print(s, "sample, top_p 0.9, t 0.3", time_sample(s, {0.3f, 0, 0.9f, 0.0f}), 1.0, copy);
    print(s, "sample, top_p 0.9, t 1", time_sample(s, {1.0f, 0, 0.9f, 0.0f}), 1.0, copy);
    const double backward = median_ms([&] {
        float *z = s.next();
        must(dev->logprob_backward(dev, B, V, z, s.tokens, NULL, s.logprobs, z), "logprob_backward");
    });
    print(s, "logprob_backward, in place", backward, 2.0, copy);
    for (void *part :
         {static_cast<void *>(s.logits), static_cast<void *>(s.tokens), static_cast<void *>(s.logprobs)})
        dev->mem_free(dev, part);
}

/* Bytes read plus bytes written a nanosecond. */
double copy_rate() {
    const int64_t n = int64_t(1) << 26;
    float *from = random_logits(n), *to = static_cast<float *>(memory(4 * n));
    const double ms = median_ms([&] { must(dev->copy(dev, to, from, static_cast<size_t>(4 * n)), "copy"); });
    dev->mem_free(dev, from);
    dev->mem_free(dev, to);
    return 8.0 * static_cast<double>(n) / ms * 1e-6;
}

} // namespace

int main(int argc, char **argv) {
    int code = 0;
    if (usage_ends(argc, argv, 0, 0, "usage: bench_sampling_cuda\n", &code)) return code;
    if (!open_device()) return 77;
    const double copy = copy_rate();
    printf("device-to-device copy %.0f GB/s read + written\n", copy);
    for (int64_t V : {int64_t(32768), int64_t(151936)})
        for (int64_t B : {int64_t(64), int64_t(256)}) bench(B, V, copy);
    wb_device_close(dev);
    return 0;
}
