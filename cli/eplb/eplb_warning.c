/* eplb_warning.c - what `waybill eplb` says of counts that are one rank's view (rule 33), or no counts. */
#include "eplb/eplb.h"

#include <inttypes.h>

static void warn_of_one_rank(const eplb_run *run) {
    const uint32_t n_ranks = run->settings->topology.n_ranks;
    uint32_t n = 0, first = 0, first_rank = 0, rank = 0;
    const wb_counts_info info = wb_counts_get_info(run->counts);
    for (uint32_t l = 0; l < info.n_layers; l++) {
        if (!wb_counts_in_one_block(run->counts, l, n_ranks, &rank)) continue;
        if (n++ > 0) continue;
        first = info.layers[l];
        first_rank = rank;
    }
    if (n == 0) return;
    fprintf(stderr,
            "waybill eplb: warning: in %" PRIu32 " of %" PRIu32
            " layers all counts lie in the experts of one rank (layer %" PRIu32 ": rank %" PRIu32
            " of %" PRIu32 "): expected the counts of all ranks; give each rank's file with --loads\n",
            n, info.n_layers, first, first_rank, n_ranks);
}

/* Balancedness and what is saved do not depend on how many tokens there are, all else does. */
static void warn_of_shares(const eplb_run *run) {
    if (!run->source.shares) return;
    fprintf(stderr,
            "waybill eplb: warning: --loads %s: loads are shares, no counts of tokens: seconds "
            "and bytes are told as of %.0f choices in a pass and layer\n",
            run->settings->loads->items[0], run->source.pass_tokens);
}

void eplb_warn_of_counts(const eplb_run *run) {
    if (!run->counts) return;
    warn_of_one_rank(run);
    warn_of_shares(run);
}
