/* even_split.c - balancedness of replicas that share evenly. Refuses: tokens, which do not divide evenly,
 * and what they take (simulate.c). */
#include "placement/placement_internal.h"
#include "wb_simulate.h"

#include <math.h>
#include <stdlib.h>

/* Sums while going over layers, and memory to work in. */
typedef struct even_sums {
    double *ranks; /* [R] */
    uint32_t n_live;
    uint64_t n; /* (batch, layer) with a load */
    double balancedness, over, means, maxima;
    wb_even_split worst; /* min_layer and max_layer */
} even_sums;

/* One layer over all batches. */
static void add_layer(const wb_placement *p, uint32_t layer, uint32_t n_batches, const double *loads,
                      even_sums *s) {
    double balancedness = 0, over = 0;
    uint32_t n = 0;
    for (uint32_t m = 0; m < n_batches; m++) {
        double sum = 0, max = 0;
        wb_placement_rank_loads(p, layer, loads + ((size_t)m * p->n_layers + layer) * p->n_experts, s->ranks);
        for (uint32_t r = 0; r < p->topology.n_ranks; r++) {
            sum += s->ranks[r];
            max = fmax(max, s->ranks[r]);
        }
        if (max <= 0) continue;
        const double mean = sum / s->n_live;
        balancedness += mean / max;
        over += max / mean;
        s->means += mean;
        s->maxima += max;
        n++;
    }
    if (n == 0) return;
    s->n += n;
    s->balancedness += balancedness;
    s->over += over;
    s->worst.min_layer = fmin(s->worst.min_layer, balancedness / n);
    s->worst.max_layer = fmax(s->worst.max_layer, over / n);
}

wb_status wb_even_split_of(const wb_placement *placement, uint32_t n_batches, const double *loads,
                           wb_even_split *split_out) {
    even_sums s = {.worst = {.min_layer = 1, .max_layer = 1}};
    const wb_topology *t = &placement->topology;
    WB_TRY(WB_NEW(s.ranks, t->n_ranks, "loads of ranks"));
    for (uint32_t r = 0; r < t->n_ranks; r++) s.n_live += !t->dead[r];
    for (uint32_t l = 0; l < placement->n_layers; l++) add_layer(placement, l, n_batches, loads, &s);
    free(s.ranks);
    *split_out = (wb_even_split){1, 1, s.worst.min_layer, 1, s.worst.max_layer};
    if (s.n == 0) return WB_OK;
    split_out->balancedness = s.balancedness / (double)s.n;
    split_out->balancedness_time = s.means / s.maxima;
    split_out->max_over_mean = s.over / (double)s.n;
    return WB_OK;
}
