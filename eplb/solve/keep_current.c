/* keep_current.c - see keep_current.h. */
#include "solve/keep_current.h"

#include <math.h>

/* Sums of the same loads in another order differ by less. */
#define ROUNDING 1e-12

static uint32_t live_slots(const wb_placement *frame) {
    uint32_t n = 0;
    for (uint32_t r = 0; r < frame->topology.n_ranks; r++)
        if (!frame->topology.dead[r]) n += frame->topology.slots_of_rank[r];
    return n;
}

/* Over the micro-batches, of a map in which each expert is once. */
static double sum_of_maxima(const wb_layer_problem *p, const int32_t *experts) {
    double sum = 0;
    for (uint32_t m = 0; m < p->n_batches; m++) {
        const double *loads = p->loads + (size_t)m * p->frame->n_experts;
        double max = 0;
        for (uint32_t r = 0; r < p->frame->topology.n_ranks; r++) {
            double rank = 0;
            for (uint32_t s = p->frame->first_slot[r]; s < p->frame->first_slot[r + 1]; s++)
                if (experts[s] >= 0) rank += loads[experts[s]];
            max = fmax(max, rank);
        }
        sum += max;
    }
    return sum;
}

bool wb_keep_current(const wb_layer_problem *problem, const int32_t *current, const int32_t *solved) {
    if (live_slots(problem->frame) != problem->frame->n_experts) return false;
    if (wb_placement_check_map(problem->frame, "current", problem->layer, current, NULL) != WB_OK)
        return false;
    return sum_of_maxima(problem, current) <= sum_of_maxima(problem, solved) * (1 + ROUNDING);
}
