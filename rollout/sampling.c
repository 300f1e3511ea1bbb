/* sampling.c - a request's random numbers, and the check of its sampling values.
 *
 * Owns: the stream, which is counter-based: no state advances, so that neither preemption nor the batch
 * around a token can shift it. Refuses: the choice of the token from the logits, an op of the device. */
#include <math.h>

#include "engine_internal.h"
#include "wb_random.h"

float wb_sampling_uniform(uint64_t seed, uint32_t position) {
    return wb_random_unit(wb_random_at(seed, position));
}

const char *wb_sampling_fault(const wb_request *request) {
    const float t = request->temperature; /* logits / t must stay finite */
    if (!(t == 0 || (t >= 1e-6f && isfinite(t)))) return "temperature must be 0, or finite and at least 1e-6";
    if (request->top_k < 0) return "top_k must be at least 0";
    if (!(request->top_p > 0 && request->top_p <= 1)) return "top_p must be in (0, 1]";
    if (request->max_tokens == 0) return "max_tokens must be at least 1";
    return NULL;
}
