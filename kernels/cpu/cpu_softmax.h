/* cpu_softmax.h - the sum of a long row's exponentials, in the parts of sample_rules.h.
 *
 * Refuses: ops. */
#ifndef WB_CPU_SOFTMAX_H
#define WB_CPU_SOFTMAX_H

#include "cpu/cpu_lanes.h"
#include "sample_rules.h"

static inline int64_t softmax_part_length(int64_t n, int64_t begin) {
    return n - begin < SOFTMAX_PART ? n - begin : SOFTMAX_PART;
}

/* Sum of exp(x[i] - max), max being the largest; n >= 1. */
static inline float row_softmax_sum(const float *x, int64_t n, float max) {
    float sum[WB_LANES] = {0.0f};
    for (int64_t part = 0; part * SOFTMAX_PART < n; part++) {
        const int64_t begin = part * SOFTMAX_PART, length = softmax_part_length(n, begin);
        const float largest = row_max(x + begin, length);
        sum[part % WB_LANES] +=
            row_exp_sum(x + begin, length, softmax_origin(largest)) * wb_expf(largest - max);
    }
    return wb_lanes_sum(sum);
}

#endif
