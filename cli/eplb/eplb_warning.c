/* eplb_warning.c - what `waybill eplb` says of counts that are one rank's view (rule 33), or no counts. */
#include "eplb/eplb.h"
#include "wb_check.h"

#include <inttypes.h>

/* Layers whose counts lie in the experts of one of this run's ranks; of the first one, its number and the
 * rank's. */
static uint32_t count_blocks(const eplb_run *run, uint32_t *layer_out, uint32_t *rank_out) {
    const wb_counts_info info = wb_counts_get_info(run->counts);
    uint32_t n = 0, rank = 0;
    for (uint32_t l = 0; l < info.n_layers; l++) {
        if (!wb_counts_in_one_block(run->counts, l, run->settings->topology.n_ranks, &rank)) continue;
        if (n++ > 0) continue;
        *layer_out = info.layers[l];
        *rank_out = rank;
    }
    return n;
}

static wb_status warn_of_one_rank(eplb_run *run) {
    uint32_t layer = 0, rank = 0;
    const wb_counts_info info = wb_counts_get_info(run->counts);
    const uint32_t n = count_blocks(run, &layer, &rank);
    WB_TRY(wb_counts_find_run(run->counts, &run->one_rank));
    if (run->one_rank.n_layers > n)
        fprintf(
            stderr,
            "waybill eplb: warning: in %" PRIu32 " of %" PRIu32 " layers all counts lie in %" PRIu32
            " of %" PRIu32 " experts, from %" PRIu32
            " on, as one rank of the engine that counted has them: expected the counts of all ranks; give "
            "each rank's file with --loads\n",
            run->one_rank.n_layers, info.n_layers, run->one_rank.n_experts, info.n_experts,
            run->one_rank.first);
    else if (n > 0)
        fprintf(stderr,
                "waybill eplb: warning: in %" PRIu32 " of %" PRIu32
                " layers all counts lie in the experts of one rank (layer %" PRIu32 ": rank %" PRIu32
                " of %" PRIu32 "): expected the counts of all ranks; give each rank's file with --loads\n",
                n, info.n_layers, layer, rank, run->settings->topology.n_ranks);
    return WB_OK;
}

/* Balancedness and what is saved do not depend on how many tokens there are, all else does. */
static void warn_of_shares(const eplb_run *run) {
    if (!run->source.shares) return;
    fprintf(stderr,
            "waybill eplb: warning: --loads %s: loads are shares, no counts of tokens: seconds "
            "and bytes are told as of %.0f choices in a pass and layer\n",
            run->settings->loads->items[0], run->source.pass_tokens);
}

wb_status eplb_warn_of_counts(eplb_run *run) {
    if (!run->counts) return WB_OK;
    warn_of_shares(run);
    return warn_of_one_rank(run);
}
