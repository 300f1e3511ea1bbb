/* bound.c - what no placement can better; see bound.h. Refuses: seconds (simulate.c). */
#include "simulate/bound.h"

#include <math.h>
#include <string.h>

static double replicas_for(uint64_t tokens, double load) {
    return tokens > 0 ? ceil((double)tokens / load) : 1;
}

static bool fits(uint32_t n_experts, const uint64_t *tokens, double n_slots, double load) {
    double slots = 0;
    for (uint32_t e = 0; e < n_experts; e++) slots += replicas_for(tokens[e], load);
    return slots <= n_slots;
}

/* Each step of the search halves the interval between a load that is too small and one that is not; then the
 * numbers of replicas are those of the smallest, and give it without the search's error. */
double wb_bound_of_hottest(uint32_t n_experts, const uint64_t *tokens, uint32_t n_slots, uint32_t n_ranks) {
    enum { HALVINGS = 60 };
    uint64_t max = 0;
    for (uint32_t e = 0; e < n_experts; e++) max = tokens[e] > max ? tokens[e] : max;
    if (max == 0) return 0;
    double low = (double)max / n_ranks, high = (double)max, found = low;
    if (fits(n_experts, tokens, n_slots, low))
        return low; /* a replica on every rank is the most there can be */
    for (int i = 0; i < HALVINGS; i++) {
        const double middle = low + (high - low) / 2;
        if (fits(n_experts, tokens, n_slots, middle))
            high = middle;
        else
            low = middle;
    }
    for (uint32_t e = 0; e < n_experts; e++)
        found = fmax(found, (double)tokens[e] / replicas_for(tokens[e], high));
    return found;
}

uint64_t wb_bound_of_sent(uint32_t n_experts, const uint32_t *counts, uint32_t n_slots, uint32_t *top) {
    uint64_t sent = 0;
    if (n_slots >= n_experts) return 0;
    memset(top, 0, n_slots * sizeof *top); /* ascending: the largest counts so far */
    for (uint32_t e = 0; e < n_experts; e++) {
        uint32_t i = 0;
        sent += counts[e];
        for (; i + 1 < n_slots && counts[e] > top[i + 1]; i++) top[i] = top[i + 1];
        if (counts[e] > top[i]) top[i] = counts[e];
    }
    for (uint32_t i = 0; i < n_slots; i++) sent -= top[i];
    return sent;
}
