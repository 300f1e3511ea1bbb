/* load_report.c - balancedness of the ranks under a placement, from the window; and whether counts are one
 * rank's view. */
#include "load/load_internal.h"
#include "placement/placement_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The ratios mean / max of one layer's ranks, over passes with tokens, and what they are ratios of. */
typedef struct balance {
    double ratio_sum, mean_sum, max_sum;
    uint32_t n;
} balance;

static void add_ranks(const wb_topology *topology, const double *rank_loads, balance *b) {
    const wb_rank_spread spread = wb_placement_rank_spread(topology, rank_loads);
    if (!(spread.max > 0)) return;
    b->ratio_sum += spread.mean / spread.max;
    b->mean_sum += spread.mean;
    b->max_sum += spread.max;
    b->n++;
}

/* scratch [E + R] */
static balance layer_balance(const wb_load *load, const wb_load_table *table, uint32_t phases,
                             uint32_t passes, const wb_placement *placement, uint32_t layer,
                             double *scratch) {
    balance b = {0};
    double *loads = scratch, *rank_loads = scratch + table->shape.n_experts;
    for (uint32_t age = 0; age < passes; age++) {
        wb_load_layer_counts(table, wb_load_place(load, age), phases, layer, loads);
        wb_placement_rank_loads(placement, layer, loads, rank_loads);
        add_ranks(wb_placement_topology(placement), rank_loads, &b);
    }
    return b;
}

wb_status wb_load_balancedness(const wb_load *load, uint32_t region, uint32_t phases, uint32_t passes,
                               const wb_placement *placement, double *by_layer_out, double *mean_out,
                               double *weighted_out) {
    WB_TRY(wb_load_check_query(load, region, phases));
    const wb_load_table *table = &load->regions[region];
    uint32_t L = table->shape.n_layers, E = table->shape.n_experts, with_tokens = 0;
    WB_TRY(wb_placement_check_size(placement, L, E, "the load region"));
    if (passes == 0 || passes > load->passes) passes = load->passes;

    double *by_layer, *scratch, sum = 0, means = 0, maxima = 0;
    WB_TRY(WB_NEW(by_layer, (size_t)L + E + wb_placement_topology(placement)->n_ranks, "load balancedness"));
    scratch = by_layer + L;
    for (uint32_t l = 0; l < L; l++) {
        balance b = layer_balance(load, table, phases, passes, placement, l, scratch);
        by_layer[l] = b.n ? b.ratio_sum / b.n : 1;
        means += b.mean_sum;
        maxima += b.max_sum;
        if (b.n == 0) continue;
        sum += by_layer[l];
        with_tokens++;
    }
    if (with_tokens > 0) {
        if (by_layer_out) memcpy(by_layer_out, by_layer, L * sizeof *by_layer);
        if (mean_out) *mean_out = sum / with_tokens;
        if (weighted_out) *weighted_out = means / maxima;
    }
    free(by_layer);
    if (with_tokens > 0) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "load of region \"%s\": none of %" PRIu32 " passes has tokens",
                   table->shape.name, passes);
}

/* ---- one rank's view ----------------------------------------------------------------------------- */

bool wb_load_in_one_block(uint32_t n_experts, const double *counts, uint32_t n_blocks, uint32_t *block_out) {
    bool found = false;
    uint32_t block = 0;
    if (n_blocks < 2 || n_experts < n_blocks) return false;
    for (uint32_t e = 0; e < n_experts; e++) {
        if (counts[e] == 0) continue;
        const uint32_t b = wb_block_of(n_experts, n_blocks, e);
        if (found && b != block) return false;
        found = true;
        block = b;
    }
    if (found) *block_out = block;
    return found;
}
