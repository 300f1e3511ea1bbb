/* mtp_drafts.h - guesses at what requests go on with, by the model's MTP layers, which are fed at the end of
 * a step what the decoder was fed in it, and then, as often as drafts are asked for, their own guesses behind
 * their own output. Refuses: whether they are right, which the model says (engine_step.c). */
#ifndef WB_MTP_DRAFTS_H
#define WB_MTP_DRAFTS_H

#include "results.h"
#include "scheduler.h"
#include "sequence.h"
#include "wb_kernels.h"

/* Of the first pass a row for each token of the step that stays, with the token that follows it; of a further
 * one a row for each guess of the one before that it goes on from. Host arrays, made at open. */
typedef struct wb_mtp_drafts {
    bool on;
    uint32_t
        n_passes; /* behind the present step, the same on all ranks: drafts that a request gets at most */
    int64_t n_rows;
    int32_t *tokens, *pos, *seq, *hidden_rows; /* [n_rows], as of wb_infer_draft */
    int32_t n_guesses;
    wb_sequence **sequences;  /* [n_guesses] that get one by the present pass */
    int32_t *logit_rows;      /* [n_guesses] after which */
    int32_t *found;           /* [n_guesses] the guesses */
    wb_sample_params *greedy; /* [n_guesses] */
    wb_status failure;        /* of making them on this rank, the first one, until it has been told */
    char why[256];
} wb_mtp_drafts;

/* `infer` is that of the engine: it can draft, or `drafts` stay off. */
wb_status wb_mtp_drafts_open(wb_owner *owner, const wb_infer *infer, size_t max_tokens, size_t max_entries,
                             wb_mtp_drafts *drafts);
void wb_mtp_drafts_begin(wb_mtp_drafts *drafts);

/* Of a committed step the tokens [start, start + n) of a request that goes on, entry `seq` of the step's
 * batch, in which they are the rows from `row` on. All of them have a token behind them; when the last one's
 * is the last of the request, it gets a draft. */
void wb_mtp_drafts_add(wb_mtp_drafts *drafts, wb_sequence *sequence, int32_t seq, int32_t row, uint32_t start,
                       uint32_t n);

/* Makes n_passes passes and proposes what they guess. `scheduler`: with the batch of the step; a request goes
 * on as far as it has blocks, or nobody has them, which it holds while the passes are made. `results`: those
 * of the step, which are on the host. What a pass fails in proposes nothing and is kept, since the step has
 * been committed; this rank takes part in the others without rows, for its peers. Collective. */
void wb_mtp_drafts_make(wb_mtp_drafts *drafts, wb_infer *infer, wb_device *device, int64_t vocab_size,
                        wb_scheduler *scheduler, const wb_step_results *results);

/* The failure that is kept, once. */
wb_status wb_mtp_drafts_failure(wb_mtp_drafts *drafts);

#endif
