/* engine_step.c - the order of a step: schedule, forward, sample, fetch, commit, exchange.
 *
 * A step that fails before its commit changes no record: the same tokens are fed again by the next one.
 * Once open, a step allocates nothing but a request's next span, when weights have changed, its sampling
 * mask, and what workspaces grow. */
#include "engine.h"
#include "wb_check.h"

/* Chooses what to feed, and makes sure that the commit cannot fail. On failure the batch is empty. */
static wb_status schedule(wb_engine *engine) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    wb_scheduler_plan(&engine->scheduler);
    for (int32_t i = 0; i < batch->n_entries; i++) {
        const wb_status status =
            wb_sequence_reserve_span(wb_sequence_of(batch->entries[i]), engine->weight_version);
        if (status == WB_OK) continue;
        wb_scheduler_drop_plan(&engine->scheduler);
        return status;
    }
    return WB_OK;
}

static wb_status forward(wb_engine *engine, const float **logits_out) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    const wb_infer_batch infer = {.T = batch->n_tokens,
                                  .tokens = batch->tokens,
                                  .pos = batch->pos,
                                  .seq = batch->seq,
                                  .n_seqs = batch->n_entries,
                                  .max_blocks = batch->max_blocks,
                                  .blocks = batch->blocks,
                                  .n_logits = batch->n_sampled,
                                  .logit_rows = batch->logit_rows};
    const wb_routing routing = {.ids = wb_step_results_on_device(&engine->results).rows};
    return wb_infer_forward(engine->infer, &infer, &routing, logits_out);
}

/* Rows cross to the host only where a fed request wants them. */
static wb_status fetch(wb_engine *engine) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    bool with_rows = false;
    for (int32_t i = 0; i < batch->n_entries; i++)
        with_rows = with_rows || wb_sequence_of(batch->entries[i])->rows;
    return wb_step_results_fetch(&engine->results, engine->workspace.device,
                                 with_rows ? (size_t)batch->n_tokens : 0);
}

static void count_fed(wb_engine *engine, const wb_sched_entry *entry) {
    const bool decode = entry->n_planned == 1 && entry->n_in_pool >= entry->record->prompt_len;
    *(decode ? &engine->decode_tokens : &engine->prefill_tokens) += entry->n_planned;
}

/* Records what was fed and sampled. Cannot fail. */
static void commit(wb_engine *engine) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    const wb_results_view found = wb_step_results_on_host(&engine->results);
    const uint8_t *rows = found.rows;
    int64_t n_sampled = 0;
    for (int32_t i = 0; i < batch->n_entries; i++) {
        wb_sched_entry *entry = batch->entries[i];
        wb_sequence *s = wb_sequence_of(entry);
        const bool samples = wb_sched_samples(entry);
        const uint32_t start = entry->n_in_pool, end = start + entry->n_planned;
        count_fed(engine, entry);
        wb_sequence_feed(s, start, end, engine->weight_version, rows);
        wb_sched_fed(entry);
        rows += (end - start) * engine->results.row_bytes;
        if (!samples) continue;
        const int64_t j = n_sampled++;
        const wb_sampled_token sampled = {(uint32_t)found.tokens[j], found.logprobs[j],
                                          found.sampling_logprobs[j], (uint32_t)found.kept_counts[j]};
        const wb_finish reason = wb_sequence_append(s, &sampled);
        if (reason != WB_FINISH_NONE) wb_engine_finish(engine, s, reason);
    }
}

/* All ranks learn in one exchange whether some rank has work left and whether some rank failed. The largest
 * word wins: the top bit says that a rank failed, then come its number and its status; 1 is work, 0 none. */
static wb_status exchange(wb_engine *engine, wb_status status, bool *busy_out) {
    const uint64_t failed = (uint64_t)1 << 63;
    uint64_t word = engine->scheduler.first != NULL;
    if (status != WB_OK) word = failed | (uint64_t)wb_comm_rank(engine->comm) << 32 | (uint64_t)status;
    const wb_status reduced = wb_comm_all_reduce_max_u64(engine->comm, &word);
    if (status != WB_OK) return status;
    WB_TRY(reduced);
    if ((word & failed) != 0)
        return wb_fail(WB_PEER, "engine step: rank %d failed: %s", (int)(word >> 32 & INT32_MAX),
                       wb_status_string((wb_status)(word & UINT32_MAX)));
    *busy_out = word != 0;
    return WB_OK;
}

wb_status wb_engine_step(wb_engine *engine, bool *busy_out) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    const float *logits;
    /* Where scheduling fails the forward is made with no token: it is collective, and the peers wait for
     * this rank in it. */
    wb_status status = schedule(engine);
    WB_TRY(forward(engine, &logits));
    if (status == WB_OK && batch->n_sampled > 0)
        status = wb_sample_step(&engine->sampler, batch, logits, &engine->results);
    if (status == WB_OK && batch->n_tokens > 0) status = fetch(engine);
    if (status == WB_OK) status = wb_sample_take_kept(&engine->sampler, batch, &engine->results);
    if (status == WB_OK) commit(engine);
    engine->steps++;
    return exchange(engine, status, busy_out);
}
