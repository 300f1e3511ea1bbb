/* sampling.c - a request's random numbers, and the check of its sampling values.
 *
 * Owns: the stream, which is counter-based: no state advances, so that neither preemption nor the batch around a token can shift
 * it. Refuses: the choice of the token from the logits, an op of the device. */
#include <math.h>

#include "engine_internal.h"

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

float wb_sampling_uniform(uint64_t seed, uint32_t position) {
    const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15);
    const uint64_t bits = mix(mix(seed + golden) + golden * ((uint64_t)position + 1));
    return (float)(bits >> 40) * 0x1p-24f;
}

const char *wb_sampling_fault(const wb_request *request) {
    const float t = request->temperature; /* logits / t must stay finite */
    if (!(t == 0 || (t >= 1e-6f && isfinite(t)))) return "temperature must be 0, or finite and at least 1e-6";
    if (request->top_k < 0) return "top_k must be at least 0";
    if (!(request->top_p > 0 && request->top_p <= 1)) return "top_p must be in (0, 1]";
    if (request->max_tokens == 0) return "max_tokens must be at least 1";
    return NULL;
}
