/* step_verdict.c - see step_verdict.h. */
#include "step_verdict.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdio.h>

/* The first rank that failed, by name. */
static wb_status check_failures(const wb_step_word *words, int n_ranks) {
    for (int r = 0; r < n_ranks; r++)
        if (words[r].status != WB_OK)
            return wb_fail(WB_PEER, "engine step: rank %d failed: %s", r,
                           wb_status_string((wb_status)words[r].status));
    return WB_OK;
}

/* A version set on some ranks only would answer half of the requests by old weights. */
static wb_status check_weights(const wb_step_word *words, int n_ranks) {
    for (int r = 1; r < n_ranks; r++) {
        if (words[r].weight_version != words[0].weight_version)
            return wb_fail(WB_PEER,
                           "engine step: rank %d has weights of version %" PRIu64
                           ", rank 0 of version %" PRIu64 ": nothing was generated; set one version on all",
                           r, words[r].weight_version, words[0].weight_version);
        if (words[r].weights_digest != words[0].weights_digest)
            return wb_fail(WB_PEER,
                           "engine step: rank %d and rank 0 have different weights by the name of version "
                           "%" PRIu64 ": digest %016" PRIx64 ", expected %016" PRIx64
                           "; nothing was generated",
                           r, words[0].weight_version, words[r].weights_digest, words[0].weights_digest);
    }
    return WB_OK;
}

static wb_status check_option(int rank, const char *name, uint64_t found, uint64_t of_rank_0) {
    if (found == of_rank_0) return WB_OK;
    return wb_fail(WB_PEER,
                   "engine step: rank %d has %s %" PRIu64 ", rank 0 %" PRIu64
                   ": expected the same on all ranks",
                   rank, name, found, of_rank_0);
}

/* Ranks wait for each other in each step, so that one's larger steps were all ranks' longer ones. */
static wb_status check_sizes(const wb_step_word *words, int n_ranks) {
    for (int r = 1; r < n_ranks; r++)
        if (words[r].max_batch_tokens != words[0].max_batch_tokens ||
            words[r].max_prefill_tokens != words[0].max_prefill_tokens)
            return wb_fail(WB_PEER,
                           "engine step: rank %d has max_batch_tokens %" PRIu64
                           " and max_prefill_tokens %" PRIu64 ", rank 0 %" PRIu64 " and %" PRIu64
                           ": expected the same on all ranks",
                           r, words[r].max_batch_tokens, words[r].max_prefill_tokens,
                           words[0].max_batch_tokens, words[0].max_prefill_tokens);
    for (int r = 1; r < n_ranks; r++)
        if (words[r].mtp_drafts != words[0].mtp_drafts)
            return wb_fail(WB_PEER,
                           "engine step: rank %d has %" PRIu64 " drafts of MTP layers, rank 0 %" PRIu64
                           ": expected the same max_drafts on all ranks",
                           r, words[r].mtp_drafts, words[0].mtp_drafts);
    for (int r = 1; r < n_ranks; r++) {
        WB_TRY(check_option(r, "lend_requests", words[r].lending, words[0].lending));
        WB_TRY(check_option(r, "indexer", words[r].indexer, words[0].indexer));
    }
    return WB_OK;
}

/* Should the transport fail too, the caller still gets the message that goes with its own status. */
static wb_status gather(wb_comm *comm, const wb_step_word *own, wb_step_word *words) {
    const wb_status status = (wb_status)own->status;
    char message[1024];
    if (status != WB_OK) snprintf(message, sizeof message, "%s", wb_error_message());
    const wb_status gathered = wb_comm_all_gather(comm, own, sizeof *own, words);
    if (status == WB_OK || gathered == WB_OK) return status == WB_OK ? gathered : status;
    return wb_fail(status, "%s", message);
}

wb_status wb_step_agree(wb_comm *comm, const wb_step_word *own, wb_step_word *words, wb_step_word *sum_out) {
    const int n_ranks = wb_comm_size(comm);
    WB_TRY(gather(comm, own, words));
    WB_TRY(check_failures(words, n_ranks));
    WB_TRY(check_weights(words, n_ranks));
    WB_TRY(check_sizes(words, n_ranks));
    *sum_out = *own;
    sum_out->work_left = sum_out->decodes = sum_out->pauses = 0;
    for (int r = 0; r < n_ranks; r++) {
        sum_out->work_left += words[r].work_left;
        sum_out->decodes += words[r].decodes;
        sum_out->pauses += words[r].pauses;
    }
    return WB_OK;
}
