/* hf_mtp.h - what a model's first MTP layer makes of sequences: the logits that make_oracle.py has of it.
 * Refuses: the comparison (hf_oracle.c). */
#ifndef HF_MTP_H
#define HF_MTP_H

#include "wb_check.h"
#include "wb_device.h"
#include "wb_model.h"

#include <stdlib.h>

enum { MTP_BLOCK_SIZE = 4, MTP_FURTHER = 2 };

/* Sequences of one length, of which there may be none, and the rows that a pass feeds of them. */
typedef struct mtp_run {
    wb_device *device;
    wb_infer *infer;
    int64_t n_seqs, S, V;
    const int32_t *tokens; /* [n_seqs, S] */
    int32_t *memory, *fed, *pos, *seq, *rows, *hidden_rows, *blocks, *states;
    int32_t n_blocks; /* of a sequence */
    void *ids;        /* device, of the decoder's choices */
} mtp_run;

/* max_seqs: the most of a rank, the same on all of them. */
static wb_status mtp_open(wb_model *model, wb_device *device, int64_t n_seqs, int64_t max_seqs, int64_t S,
                          const int32_t *tokens, mtp_run *run) {
    const int64_t T = n_seqs * S, blocks = (S + MTP_BLOCK_SIZE - 1) / MTP_BLOCK_SIZE;
    *run = (mtp_run){.device = device,
                     .n_seqs = n_seqs,
                     .S = S,
                     .V = wb_model_config(model)->vocab_size,
                     .tokens = tokens,
                     .n_blocks = (int32_t)blocks};
    wb_infer_options options = wb_infer_options_default();
    options.block_size = MTP_BLOCK_SIZE;
    options.n_blocks = (int32_t)(max_seqs * blocks);
    options.max_tokens = options.max_logits = max_seqs * S;
    options.max_sequences = (int32_t)max_seqs;
    options.max_blocks = (int32_t)blocks;
    options.drafts = true;
    run->memory = calloc((size_t)(5 * T + n_seqs * (blocks + 1)) + 1, sizeof *run->memory);
    if (!run->memory) return wb_fail(WB_OUT_OF_MEMORY, "rows of MTP layers");
    int32_t **const arrays[] = {&run->fed, &run->pos, &run->seq, &run->rows, &run->hidden_rows, &run->blocks};
    for (int i = 0; i < 6; i++) *arrays[i] = run->memory + i * T;
    for (int64_t i = 0; i < n_seqs * blocks; i++) run->blocks[i] = (int32_t)i;
    run->states = run->blocks + n_seqs * blocks;
    for (int64_t s = 0; s < n_seqs; s++) run->states[s] = (int32_t)s;
    WB_TRY(wb_infer_open(model, &options, &run->infer));
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(model));
    return device->mem_alloc(device, (size_t)T * row_bytes + 1, &run->ids);
}

static void mtp_close(mtp_run *run) {
    run->device->mem_free(run->device, run->ids);
    wb_infer_close(run->infer);
    free(run->memory);
}

/* Of each sequence n rows from position `first` on, each with the token `behind` positions further; the
 * logits of all of them are wanted. Row i goes on from row i of the latest pass, if nothing else is said. */
static wb_infer_batch mtp_rows(const mtp_run *run, int64_t first, int64_t n, int64_t behind) {
    const int64_t T = run->n_seqs * n;
    for (int64_t t = 0; t < T; t++) {
        const int64_t s = t / n, pos = first + t % n;
        run->fed[t] = run->tokens[s * run->S + pos + behind];
        run->pos[t] = (int32_t)pos;
        run->seq[t] = (int32_t)s;
        run->rows[t] = run->hidden_rows[t] = (int32_t)t;
    }
    return (wb_infer_batch){.T = T,
                            .tokens = run->fed,
                            .pos = run->pos,
                            .seq = run->seq,
                            .n_seqs = (int32_t)run->n_seqs,
                            .max_blocks = run->n_blocks,
                            .blocks = run->blocks,
                            .states = run->states,
                            .n_logits = T,
                            .logit_rows = run->rows};
}

/* As mtp_rows, behind the decoder's rows at the same positions. */
static wb_infer_batch mtp_rows_behind_decoder(const mtp_run *run, int64_t first, int64_t n) {
    const wb_infer_batch batch = mtp_rows(run, first, n, 1);
    for (int64_t t = 0; t < batch.T; t++) run->hidden_rows[t] = run->seq[t] * (int32_t)run->S + run->pos[t];
    return batch;
}

/* Each sequence's n rows of logits to its place, [n_seqs, stride, V] from `at` on. */
static wb_status mtp_take(const mtp_run *run, const float *logits, int64_t n, int64_t stride, float *at) {
    const int64_t V = run->V;
    for (int64_t s = 0; s < run->n_seqs; s++)
        WB_TRY(run->device->to_host(run->device, at + s * stride * V, logits + s * n * V,
                                    (size_t)(n * V) * sizeof(float)));
    return WB_OK;
}

/* first [n_seqs, S - 1, V], further [n_seqs, S - 3, MTP_FURTHER, V]. Collective. */
static wb_status mtp_logits(mtp_run *run, float *first, float *further) {
    const int64_t S = run->S, V = run->V;
    const wb_routing routing = {.ids = run->ids};
    const float *logits = NULL;
    wb_infer_batch batch = mtp_rows(run, 0, S, 0);
    WB_TRY(wb_infer_forward(run->infer, &batch, &routing, &logits));
    batch = mtp_rows_behind_decoder(run, 0, S - 1);
    WB_TRY(wb_infer_draft(run->infer, &batch, run->hidden_rows, &logits));
    WB_TRY(mtp_take(run, logits, S - 1, S - 1, first));
    /* What was fed further behind an earlier row is overwritten, position by position. */
    for (int64_t p = 0; p < S - 1 - MTP_FURTHER; p++) {
        batch = mtp_rows_behind_decoder(run, p, 1);
        WB_TRY(wb_infer_draft(run->infer, &batch, run->hidden_rows, &logits));
        for (int64_t k = 0; k < MTP_FURTHER; k++) {
            batch = mtp_rows(run, p + 1 + k, 1, 1);
            WB_TRY(wb_infer_draft_further(run->infer, &batch, run->hidden_rows, &logits));
            WB_TRY(mtp_take(run, logits, 1, (S - 1 - MTP_FURTHER) * MTP_FURTHER,
                            further + (p * MTP_FURTHER + k) * V));
        }
    }
    return WB_OK;
}

#endif
