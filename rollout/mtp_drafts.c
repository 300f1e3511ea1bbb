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
    /* Nothing was sampled where the last token but one was fed again, after a preemption or a wrong draft:
     * guesses of an earlier step still stand there, and the request has no room for both. */
    s->entry.n_proposed = 0;
    drafts->sequences[drafts->n_guesses] = s;
    drafts->logit_rows[drafts->n_guesses++] = (int32_t)drafts->n_rows - 1;
}

/* The likeliest token of each row of logits. Rows that cannot be sampled from guess nothing, all or none of
 * them: a guess is worth no failure. */
static wb_status find_likeliest(wb_mtp_drafts *drafts, wb_device *dev, int64_t vocab_size,
                                const float *logits, const wb_step_results *results) {
    const wb_results_view to = wb_step_results_on_device(results);
    const int32_t n = drafts->n_guesses;
    if (n == 0) return WB_OK;
    drafts->n_guesses = 0;
    wb_status status =
        dev->sample(dev, n, vocab_size, logits, drafts->greedy, NULL, to.tokens, to.sampling_logprobs);
    if (status == WB_OK) status = dev->to_host(dev, drafts->found, to.tokens, (size_t)n * sizeof(int32_t));
    if (status == WB_INVALID_ARGUMENT) return WB_OK;
    if (status == WB_OK) drafts->n_guesses = n;
    return status;
}

static wb_status make_pass(wb_mtp_drafts *drafts, wb_infer *infer, wb_device *device, int64_t vocab_size,
                           const wb_step_batch *batch, const wb_step_results *results, bool first) {
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
    WB_TRY((first ? wb_infer_draft : wb_infer_draft_further)(infer, &rows, drafts->hidden_rows, &logits));
    WB_TRY(find_likeliest(drafts, device, vocab_size, logits, results));
    for (int32_t i = 0; i < drafts->n_guesses; i++)
        wb_sequence_propose(drafts->sequences[i], (uint32_t)drafts->found[i]);
    return WB_OK;
}

/* Room for the keys of further passes. A pass feeds the token that the one before guessed, at the position
 * before that token's. */
static void reach(const wb_mtp_drafts *drafts, wb_scheduler *scheduler) {
    wb_step_batch *batch = &scheduler->batch;
    for (int32_t i = 0; i < drafts->n_guesses; i++) {
        wb_sequence *s = drafts->sequences[i];
        const uint32_t left = wb_sequence_max_drafts(s),
                       n_drafts = left < drafts->n_passes ? left : drafts->n_passes;
        wb_scheduler_reach(scheduler, &s->entry, wb_sequence_length(s) + n_drafts - 2);
        if (batch->max_blocks < s->entry.n_blocks) batch->max_blocks = s->entry.n_blocks;
    }
    wb_step_batch_fill_held(batch);
}

/* The rows of a further pass: behind each guess whose request can take another one and has a block for it.
 * Guess i stands in the rows at i or behind, so that what is written is read no more. */
static void go_on(wb_mtp_drafts *drafts, uint32_t block_size) {
    int32_t n = 0;
    for (int32_t i = 0; i < drafts->n_guesses; i++) {
        wb_sequence *s = drafts->sequences[i];
        const uint32_t token = wb_sequence_length(s) + s->entry.n_proposed - 1;
        if (s->entry.n_proposed >= wb_sequence_max_drafts(s) ||
            token > (uint32_t)s->entry.n_blocks * block_size)
            continue;
        drafts->tokens[n] = (int32_t)s->tokens[token];
        drafts->pos[n] = (int32_t)token - 1;
        drafts->seq[n] = drafts->seq[drafts->logit_rows[i]];
        drafts->hidden_rows[n] = drafts->logit_rows[i];
        drafts->logit_rows[n] = n;
        drafts->sequences[n++] = s;
    }
    drafts->n_rows = drafts->n_guesses = n;
}

static void keep_failure(wb_mtp_drafts *drafts, wb_status status) {
    drafts->n_guesses = 0;
    if (drafts->failure != WB_OK) return;
    drafts->failure = status;
    snprintf(drafts->why, sizeof drafts->why, "%s", wb_error_message());
}

void wb_mtp_drafts_make(wb_mtp_drafts *drafts, wb_infer *infer, wb_device *device, int64_t vocab_size,
                        wb_scheduler *scheduler, const wb_step_results *results) {
    if (!drafts->on) return;
    for (uint32_t pass = 0; pass < drafts->n_passes; pass++) {
        if (pass == 1) reach(drafts, scheduler);
        if (pass > 0) go_on(drafts, (uint32_t)scheduler->block_size);
        const wb_status status =
            make_pass(drafts, infer, device, vocab_size, &scheduler->batch, results, pass == 0);
        if (status != WB_OK) keep_failure(drafts, status);
    }
    wb_scheduler_trim(scheduler);
}

wb_status wb_mtp_drafts_failure(wb_mtp_drafts *drafts) {
    const wb_status failure = drafts->failure;
    drafts->failure = WB_OK;
    return failure == WB_OK ? WB_OK : wb_fail(failure, "%s", drafts->why);
}
