/* top_experts.c - see top_experts.h. */
#include "top_experts.h"

#include <stdbool.h>

void cli_top_experts(const double *loads, uint32_t E, uint32_t n, uint32_t *top_out) {
    for (uint32_t t = 0; t < n; t++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t e = 0; e < E; e++) {
            bool taken = false;
            for (uint32_t i = 0; i < t && !taken; i++) taken = top_out[i] == e;
            if (!taken && (best == UINT32_MAX || loads[e] > loads[best])) best = e;
        }
        top_out[t] = best;
    }
}
