/* hf_greedy.h - the greedy continuation: the engine goes on from the reference's prompts, and the training
 * forward follows over the same tokens. In f32 both are the reference's; in bf16 the engine's tokens are
 * its own, and what it captured is compared with that forward, bit for bit. */
#ifndef HF_GREEDY_H
#define HF_GREEDY_H

#include "tools/hf_choices.h"
#include "wb_rollout.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens: fed in one step, of a KV block. */
enum { CHUNK = 5, BLOCK_SIZE = 4 };

static wb_status submit_greedy(const rank_run *run, wb_engine *engine, int64_t s) {
    const reference *ref = run->ref;
    uint32_t prompt[PROMPT];
    for (int64_t t = 0; t < PROMPT; t++)
        prompt[t] = (uint32_t)ref->greedy_ids[reference_seq(run, s) * ref->W + t];
    char rid[32];
    snprintf(rid, sizeof rid, "%" PRId64, s);
    wb_request request = wb_request_default();
    request.rid = rid;
    request.n_tokens = PROMPT;
    request.tokens = prompt;
    request.temperature = 0;
    request.max_tokens = (uint32_t)(ref->W - PROMPT);
    return wb_engine_submit(engine, &request);
}

/* What the engine returned: in f32 the reference's tokens. `tokens`: the reference's [B, W], whose rows of
 * this rank become the engine's own in bf16. */
static void take_greedy(rank_run *run, int64_t s, const wb_record *record, int64_t *tokens) {
    const reference *ref = run->ref;
    const int64_t first = reference_seq(run, s) * ref->W;
    for (int64_t t = PROMPT; t < ref->W; t++) {
        const int64_t found = t < record->n_tokens ? (int64_t)record->tokens[t] : -1;
        if (ref->dtype == WB_F32 || found < 0)
            see_id(&run->outcomes[GREEDY_IDS], found, ref->greedy_ids[first + t]);
        else
            tokens[first + t] = found;
    }
}

/* forward: [W] log-probabilities of the next tokens, and the rows that the training forward chose. */
static void compare_greedy(rank_run *run, int64_t s, const wb_record *record, const float *forward,
                           const routes *chosen) {
    const reference *ref = run->ref;
    const int64_t row = ref->L * ref->K, first = reference_seq(run, s) * ref->W;
    const wb_dtype dtype = wb_route_dtype((uint32_t)ref->E);
    for (int64_t t = PROMPT; t < ref->W; t++) {
        const float logprob = t < record->n_tokens ? record->logprobs[t - PROMPT] : NAN;
        see_floats(&run->outcomes[ENGINE_LOGPROBS], 1, &logprob, &forward[t - 1]);
    }
    for (int64_t i = 0; i < (ref->W - 1) * row; i += ref->K) {
        const int64_t t = i / row, l = i % row / ref->K;
        const void *ids = wb_record_row(wb_model_routes(run->model), record, (uint32_t)t);
        int64_t found[MAX_K], expected[MAX_K];
        for (int64_t k = 0; k < ref->K; k++) {
            found[k] = ids ? (int64_t)wb_route_id(ids, dtype, (size_t)(i % row + k)) : -1;
            expected[k] = ref->dtype == WB_F32 ? ref->layers[l].greedy_ids[(first + t) * ref->K + k]
                                               : routes_get(chosen, s * ref->W * row + i + k);
        }
        if (ref->dtype == WB_F32) pair_choices(ref, expected, found);
        for (int64_t k = 0; k < ref->K; k++) see_id(&run->outcomes[GREEDY_ROUTES], found[k], expected[k]);
    }
}

/* Steps the engine dry; done: [n_seqs] what it completed. */
static wb_status run_greedy(const rank_run *run, wb_engine *engine, wb_completion **done) {
    wb_status status = WB_OK;
    for (int64_t s = 0; s < run->n_seqs && status == WB_OK; s++) status = submit_greedy(run, engine, s);
    bool busy = true;
    while (busy && status == WB_OK) status = wb_engine_step(engine, &busy);
    if (status != WB_OK) return status;
    int64_t n_done = 0;
    for (wb_completion *c; (c = wb_engine_poll(engine)); n_done++) done[atoll(c->record.rid)] = c;
    if (n_done == run->n_seqs) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "engine: expected %d completions, found %d", (int)run->n_seqs, (int)n_done);
}

/* The training forward over the greedy sequences, and the comparison with it. Collective. */
static wb_status follow_greedy(rank_run *run, wb_completion **done, int64_t *tokens) {
    routes r;
    for (int64_t s = 0; s < run->n_seqs; s++) take_greedy(run, s, &done[s]->record, tokens);
    packed p = pack(run, tokens, run->ref->W);
    wb_status status = routes_open(run, p.batch.T, &r);
    const wb_routing routing = {.ids = r.device_ids};
    if (status == WB_OK) status = wb_train_forward(run->train, &p.batch, &routing, NULL, p.logprobs);
    if (status == WB_OK) status = routes_download(&r);
    for (int64_t s = 0; status == WB_OK && s < run->n_seqs; s++)
        compare_greedy(run, s, &done[s]->record, p.logprobs + s * run->ref->W, &r);
    routes_close(&r);
    unpack(&p);
    return status;
}

/* Through the engine: prompts in chunks that end inside a block, then a token a step beside the other
 * requests. */
static wb_status check_greedy(rank_run *run) {
    const reference *ref = run->ref;
    const int64_t n_seqs = run->n_seqs > 0 ? run->n_seqs : 1;
    const int64_t seq_blocks = (ref->W + BLOCK_SIZE - 1) / BLOCK_SIZE;
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = (int32_t)(n_seqs * seq_blocks);
    options.block_size = BLOCK_SIZE;
    options.max_batch_tokens = CHUNK;
    options.max_running = (int32_t)n_seqs;
    wb_completion **done = allocate((size_t)n_seqs, sizeof(wb_completion *));
    int64_t *tokens = allocate((size_t)(ref->B * ref->W), sizeof *tokens);
    memcpy(tokens, ref->greedy_ids, (size_t)(ref->B * ref->W) * sizeof *tokens);
    wb_engine *engine = NULL;
    wb_status status = wb_engine_open(run->model, &options, &engine);
    if (status == WB_OK) status = run_greedy(run, engine, done);
    if (status == WB_OK) status = follow_greedy(run, done, tokens);
    for (int64_t s = 0; s < n_seqs; s++) wb_completion_free(done[s]);
    wb_engine_close(engine);
    free(tokens);
    free(done);
    return status;
}

#endif
