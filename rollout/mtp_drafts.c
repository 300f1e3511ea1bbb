/* mtp_drafts.c - see mtp_drafts.h. */
#include "mtp_drafts.h"
#include "wb_check.h"
#include "wb_device.h"

#include <stdio.h>

wb_status wb_mtp_drafts_open(wb_owner *owner, const wb_infer *infer, size_t max_tokens, size_t max_entries,
                             wb_mtp_drafts *drafts) {
    static const char what[] = "engine drafts";
    drafts->on = wb_infer_drafts(infer);
    if (!drafts->on) return WB_OK;
    WB_TRY(WB_OWN(owner, drafts->tokens, max_tokens, what));
    WB_TRY(WB_OWN(owner, drafts->pos, max_tokens, what));
    WB_TRY(WB_OWN(owner, drafts->seq, max_tokens, what));
    WB_TRY(WB_OWN(owner, drafts->hidden_rows, max_tokens, what));
    WB_TRY(WB_OWN(owner, drafts->sequences, max_entries, what));
    WB_TRY(WB_OWN(owner, drafts->logit_rows, max_entries, what));
    WB_TRY(WB_OWN(owner, drafts->found, max_entries, what));
    WB_TRY(WB_OWN(owner, drafts->greedy, max_entries, what));
    for (size_t i = 0; i < max_entries; i++) drafts->greedy[i].top_p = 1;
    return WB_OK;
}

void wb_mtp_drafts_begin(wb_mtp_drafts *drafts) {
    drafts->n_rows = 0;
    drafts->n_guesses = 0;
}

void wb_mtp_drafts_add(wb_mtp_drafts *drafts, wb_sequence *s, int32_t seq, int32_t row, uint32_t start,
                       uint32_t n) {
    if (!drafts->on || n == 0) return;
    for (uint32_t i = 0; i < n; i++) {
        const int64_t t = drafts->n_rows++;
        drafts->tokens[t] = (int32_t)s->tokens[start + i + 1];
        drafts->pos[t] = (int32_t)(start + i);
        drafts->seq[t] = seq;
        drafts->hidden_rows[t] = row + (int32_t)i;
    }
    if (start + n + 1 != wb_sequence_length(s) || wb_sequence_max_drafts(s) == 0) return;
    drafts->sequences[drafts->n_guesses] = s;
    drafts->logit_rows[drafts->n_guesses++] = (int32_t)drafts->n_rows - 1;
}

/* The likeliest token of each row of logits. Rows that cannot be sampled from guess nothing: a guess is worth
 * no failure. *n_out: as many as can be used, all or none. */
static wb_status find_likeliest(const wb_mtp_drafts *drafts, wb_device *dev, int64_t vocab_size,
                                const float *logits, const wb_step_results *results, int32_t *n_out) {
    const wb_results_view to = wb_step_results_on_device(results);
    const int32_t n = drafts->n_guesses;
    *n_out = 0;
    if (n == 0) return WB_OK;
    wb_status status =
        dev->sample(dev, n, vocab_size, logits, drafts->greedy, NULL, to.tokens, to.sampling_logprobs);
    if (status == WB_OK) status = dev->to_host(dev, drafts->found, to.tokens, (size_t)n * sizeof(int32_t));
    if (status == WB_INVALID_ARGUMENT) return WB_OK;
    if (status == WB_OK) *n_out = n;
    return status;
}

static wb_status make(wb_mtp_drafts *drafts, wb_infer *infer, wb_device *device, int64_t vocab_size,
                      const wb_step_batch *batch, const wb_step_results *results) {
    const wb_infer_batch rows = {.T = drafts->n_rows,
                                 .tokens = drafts->tokens,
                                 .pos = drafts->pos,
                                 .seq = drafts->seq,
                                 .n_seqs = batch->n_entries,
                                 .max_blocks = batch->max_blocks,
                                 .blocks = batch->blocks,
                                 .states = batch->states,
                                 .n_logits = drafts->n_guesses,
                                 .logit_rows = drafts->logit_rows};
    const float *logits = NULL;
    int32_t n = 0;
    WB_TRY(wb_infer_draft(infer, &rows, drafts->hidden_rows, &logits));
    WB_TRY(find_likeliest(drafts, device, vocab_size, logits, results, &n));
    for (int32_t i = 0; i < n; i++)
        wb_sequence_propose(drafts->sequences[i], 1, (const uint32_t *)&drafts->found[i]);
    return WB_OK;
}

void wb_mtp_drafts_make(wb_mtp_drafts *drafts, wb_infer *infer, wb_device *device, int64_t vocab_size,
                        const wb_step_batch *batch, const wb_step_results *results) {
    if (!drafts->on) return;
    drafts->failure = make(drafts, infer, device, vocab_size, batch, results);
    if (drafts->failure != WB_OK) snprintf(drafts->why, sizeof drafts->why, "%s", wb_error_message());
}

wb_status wb_mtp_drafts_failure(wb_mtp_drafts *drafts) {
    const wb_status failure = drafts->failure;
    drafts->failure = WB_OK;
    return failure == WB_OK ? WB_OK : wb_fail(failure, "%s", drafts->why);
}
