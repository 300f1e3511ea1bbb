/* engine_step.c - the order of a step: lend, start a round of moves of experts, schedule, forward, sample,
 * start the copy of the results, file the step before, wait for the copy, agree, commit, draft, take the
 * moves over.
 *
 * What the next step needs of this one are its tokens, which the commit puts into the records. Rows and
 * kept tokens are filed by the next step, while the device works (filing.h). A step that fails on any rank
 * changes no record on any: the same tokens are fed again by the next one. Drafts of MTP layers are made
 * behind the commit. Where that fails there are none, and the next step of the rank fails by it, so that all
 * ranks learn of it by the verdict that they have anyway. A step allocates nothing: memory is made at open
 * for the largest step, at submit for the longest that a request can become, and in wb_engine_set_weights for
 * the spans to come. A manager of experts does, at the boundaries where it begins, makes or ends a rebalance
 * (wb_rebalance.h), and so do requests that travel (lending.h). */
#include "engine.h"
#include "wb_check.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* The rows of the known blocks that a request was admitted with become its own, unless it has them. */
static void take_over(wb_engine *engine, wb_sched_entry *entry) {
    const wb_prefix_cache *cache = &engine->scheduler.blocks.cache;
    const uint32_t size = (uint32_t)engine->scheduler.block_size;
    wb_sequence *s = wb_sequence_of(entry);
    if (entry->n_taken_over == 0) return;
    wb_filing_finish(&engine->filing);
    for (uint32_t start = 0; start < entry->n_taken_over; start += size) {
        const uint8_t *rows = wb_prefix_cache_rows(cache, entry->blocks[start / size]);
        const wb_fed_rows fed = wb_sequence_feed(s, start + size, engine->weight_version);
        if (fed.n > 0) memcpy(fed.rows, rows + (fed.first - start) * s->row_bytes, fed.n * s->row_bytes);
        wb_cells_append_whole(&s->cells, s->cells.n_columns > 0 ? fed.n : 0);
    }
    engine->taken_over_tokens += entry->n_taken_over;
    entry->n_taken_over = 0;
}

/* Snapshots, what is had of them, and what drafts may have to go back to. */
static wb_status copy_states(wb_engine *engine) {
    const wb_state_pool *states = &engine->scheduler.states;
    for (int32_t i = 0; i < states->n_copies; i++)
        WB_TRY(wb_infer_copy_state(engine->infer, states->copies[i].from, states->copies[i].to));
    return WB_OK;
}

/* Chooses what to feed and prepares it, so that nothing that is this rank's alone can fail from here to the
 * commit but the device. On failure the batch is empty. */
static wb_status schedule(wb_engine *engine, const uint8_t **direction_out) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    if (engine->paused)
        wb_scheduler_drop_plan(&engine->scheduler);
    else
        wb_scheduler_plan(&engine->scheduler);
    for (int32_t i = 0; i < batch->n_entries; i++) take_over(engine, batch->entries[i]);
    wb_status status = copy_states(engine);
    if (status == WB_OK)
        status = wb_step_force(&engine->forcing, engine->workspace.device, batch, &engine->results,
                               &engine->filing, direction_out);
    if (status == WB_OK) status = wb_step_cells_begin(&engine->cells, batch);
    if (status != WB_OK) wb_scheduler_drop_plan(&engine->scheduler);
    return status;
}

static wb_status forward(wb_engine *engine, const uint8_t *direction, const float **logits_out) {
    wb_step_batch *batch = &engine->scheduler.batch;
    const bool as_it_is = direction || engine->cells.wanted;
    wb_step_batch_pad(batch, as_it_is ? batch->n_tokens : wb_infer_padded(engine->infer, batch->n_tokens));
    const wb_infer_batch infer = {.T = batch->n_rows,
                                  .tokens = batch->tokens,
                                  .pos = batch->pos,
                                  .seq = batch->seq,
                                  .n_seqs = batch->n_entries,
                                  .max_blocks = batch->max_blocks,
                                  .blocks = batch->blocks,
                                  .states = batch->states,
                                  .n_logits = batch->n_sampled,
                                  .logit_rows = batch->logit_rows};
    wb_routing routing = {.ids = wb_step_results_on_device(&engine->results).rows, .direction = direction};
    wb_step_cells_route(&engine->cells, &routing);
    return wb_infer_forward(engine->infer, &infer, &routing, logits_out);
}

/* Samples and starts the copy of tokens, logprobs, rows and kept tokens: the host is ahead of the device. */
static wb_status sample_and_start(wb_engine *engine, const float *logits) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    size_t n_kept = 0;
    wb_step_results_begin(&engine->results, (size_t)batch->n_rows);
    WB_TRY(wb_sample_step(&engine->sampler, batch, logits, &engine->results, &n_kept));
    WB_TRY(wb_step_cells_start(&engine->cells));
    return wb_step_results_start(&engine->results, n_kept);
}

static wb_status arrive(wb_engine *engine) {
    WB_TRY(wb_step_results_wait(&engine->results, engine->comm));
    WB_TRY(wb_step_cells_wait(&engine->cells));
    return wb_sample_check_kept(&engine->scheduler.batch, &engine->results);
}

/* Samples, and brings the results to the host. */
static wb_status sample_and_fetch(wb_engine *engine, const float *logits) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    const bool fed = batch->n_tokens > 0;
    wb_status status = fed ? sample_and_start(engine, logits) : WB_OK;
    /* While the device works. */
    wb_filing_finish(&engine->filing);
    if (fed && status == WB_OK) status = arrive(engine);
    return wb_sample_name_failure(&engine->sampler, batch, logits, &engine->results, status);
}

/* Which drafts each request takes, and what the commit will leave: unfinished requests, and those of them
 * that decode. Returns how many end. */
static uint64_t count_work(const wb_engine *engine, wb_step_word *word) {
    const wb_scheduler *scheduler = &engine->scheduler;
    const int32_t *sampled = wb_step_results_on_host(&engine->results).tokens;
    uint64_t n_ended = 0;
    for (int32_t i = 0; i < scheduler->batch.n_entries; i++) {
        wb_sched_entry *entry = scheduler->batch.entries[i];
        const uint32_t n = wb_sched_samples(entry) ? 1 + entry->n_drafts : 0;
        wb_finish finish;
        if (n == 0) continue;
        entry->n_accepted = wb_sequence_count_taken(wb_sequence_of(entry), n, sampled, &finish) - 1;
        n_ended += finish != WB_FINISH_NONE;
        sampled += n;
    }
    /* Those that are away count here too: until they are home, all ranks step. */
    word->work_left = (uint64_t)scheduler->running + (uint64_t)scheduler->waiting - n_ended +
                      (uint64_t)engine->lending.lent.n;
    word->decodes = wb_scheduler_n_decodes(scheduler) - n_ended;
    return n_ended;
}

/* Before any rank commits: a step is made on all ranks or on none. What holds for the next one is agreed
 * here too: whether some rank decodes, and then no rank prefills more than the options allow; whether all
 * pause. */
static wb_status agree(wb_engine *engine, wb_status status, bool *busy_out) {
    wb_step_word sum, own = {.status = (uint64_t)status,
                             .weight_version = engine->weight_version,
                             .weights_digest = engine->weights_digest,
                             .max_batch_tokens = (uint64_t)engine->scheduler.max_batch_tokens,
                             .max_prefill_tokens = (uint64_t)engine->max_prefill_tokens,
                             .mtp_drafts = engine->mtp.on ? engine->max_drafts : 0,
                             .pauses = engine->asks_for_pause,
                             .indexer = engine->limits.n_columns > 0,
                             .lending = engine->lending.on};
    const uint64_t n_ended = status == WB_OK ? count_work(engine, &own) : 0;
    wb_engine_tell_lending(engine, status == WB_OK, n_ended, &own);
    WB_TRY(wb_step_agree(engine->comm, &own, engine->words, &sum));
    engine->scheduler.max_prefill_tokens =
        sum.decodes > 0 ? engine->max_prefill_tokens : engine->scheduler.max_batch_tokens;
    engine->mtp.n_passes = sum.decodes > 0 ? engine->max_drafts : 1;
    engine->paused = sum.pauses > 0;
    *busy_out = sum.work_left > 0;
    return WB_OK;
}

static void count_fed(wb_engine *engine, const wb_sched_entry *entry) {
    const uint32_t n_prefilled = wb_sched_n_prefilled(entry);
    engine->prefill_tokens += n_prefilled;
    engine->decode_tokens += wb_sched_n_kept(entry) - n_prefilled;
    engine->drafts += entry->n_drafts;
    engine->accepted_drafts += entry->n_accepted;
}

/* Its blocks that are full now, with their rows once these have been filed. */
static void make_known(wb_engine *engine, wb_sequence *s) {
    const size_t bytes = (size_t)engine->scheduler.block_size * s->row_bytes;
    uint32_t start;
    for (uint8_t *rows; wb_sched_know_next(&engine->scheduler, &s->entry, &start, &rows);)
        if (rows) wb_filing_add(&engine->filing, rows, s->rows + start * s->row_bytes, bytes);
}

/* What stays of the tokens that the entry fed, with the first ones of the step's rows from `row` on. */
static void commit_fed(wb_engine *engine, wb_sched_entry *entry, const wb_results_view *found, size_t row) {
    const size_t row_bytes = engine->results.row_bytes;
    wb_sequence *s = wb_sequence_of(entry);
    const uint32_t start = entry->n_in_pool;
    const wb_fed_rows fed = wb_sequence_feed(s, start + wb_sched_n_kept(entry), engine->weight_version);
    row += fed.first - start;
    if (fed.n > 0) wb_filing_add(&engine->filing, fed.rows, found->rows + row * row_bytes, fed.n * row_bytes);
    if (fed.n > 0) wb_step_cells_take(&engine->cells, s, row, fed.n);
    wb_scheduler_fed(&engine->scheduler, entry);
    make_known(engine, s);
}

/* The j-th token that was sampled. */
static void commit_sampled(wb_engine *engine, wb_sequence *s, const wb_results_view *found, int64_t j) {
    const wb_sampled_token sampled = {(uint32_t)found->tokens[j], found->logprobs[j],
                                      found->sampling_logprobs[j], (uint32_t)found->kept_counts[j]};
    uint32_t *ids;
    if (s->mask_ends && wb_sequence_next_mask(s, sampled.n_kept, &ids) == WB_OK)
        wb_filing_add(&engine->filing, ids, found->kept_ids + engine->sampler.kept_start[j],
                      sampled.n_kept * sizeof *ids);
    wb_sequence_append(s, &sampled);
}

/* The request takes what was sampled, from `j` on, after its last token and its drafts; it ends, or gets
 * drafts for the next step, of its own text or for now none. Returns whether it goes on. */
static bool commit_taken(wb_engine *engine, wb_sequence *s, const wb_results_view *found, int64_t j,
                         uint32_t n_drafts) {
    wb_finish finish;
    const uint32_t n = wb_sequence_count_taken(s, 1 + n_drafts, found->tokens + j, &finish);
    for (uint32_t k = 0; k < n; k++) commit_sampled(engine, s, found, j + k);
    if (finish != WB_FINISH_NONE)
        wb_engine_finish(engine, s, finish);
    else
        wb_sequence_propose_text(s, engine->mtp.on ? 0 : engine->max_drafts);
    return finish == WB_FINISH_NONE;
}

/* Records what entry i fed, from `row` of the batch on, and what was sampled behind it, from j on. Returns
 * how many tokens were sampled. */
static int64_t commit_entry(wb_engine *engine, int32_t i, int64_t row, const wb_results_view *found,
                            int64_t j) {
    wb_sched_entry *entry = engine->scheduler.batch.entries[i];
    wb_sequence *s = wb_sequence_of(entry);
    const bool samples = wb_sched_samples(entry);
    const uint32_t start = entry->n_in_pool, n_kept = wb_sched_n_kept(entry), n_drafts = entry->n_drafts;
    count_fed(engine, entry);
    commit_fed(engine, entry, found, (size_t)row);
    if (!samples || commit_taken(engine, s, found, j, n_drafts))
        wb_mtp_drafts_add(&engine->mtp, s, i, (int32_t)row, start, n_kept);
    return samples ? 1 + n_drafts : 0;
}

/* Records what was fed and sampled. Cannot fail. */
static void commit(wb_engine *engine) {
    const wb_step_batch *batch = &engine->scheduler.batch;
    const wb_results_view found = wb_step_results_on_host(&engine->results);
    int64_t row = 0, j = 0;
    wb_mtp_drafts_begin(&engine->mtp);
    for (int32_t i = 0; i < batch->n_entries; i++) {
        const int64_t n_fed = wb_sched_n_fed(batch->entries[i]);
        j += commit_entry(engine, i, row, &found, j);
        row += n_fed;
    }
    wb_step_results_turn(&engine->results);
    engine->steps++;
}

/* What the next step's drafts are, once this one has been committed on all ranks. */
static void draft(wb_engine *engine) {
    wb_mtp_drafts_make(&engine->mtp, engine->infer, engine->workspace.device,
                       wb_model_config(engine->model)->vocab_size, &engine->scheduler, &engine->results);
}

/* After a step that was not made. Keys that it wrote are written again by the next one, the same; a state of
 * fixed size cannot take a token back, so its sequence is fed again from its start. */
static void forget_states(wb_engine *engine) {
    if (engine->scheduler.has_states) wb_scheduler_forget_states(&engine->scheduler);
}

static wb_status make_pass(wb_engine *engine, bool *busy_out) {
    const uint8_t *direction = NULL;
    const float *logits = NULL;
    /* Whatever fails, this rank goes on to the exchanges in which its peers wait for it: with no token where
     * scheduling failed, and to the verdict where the forward did. */
    wb_status status = schedule(engine, &direction);
    const wb_status fed = forward(engine, direction, &logits);
    if (fed != WB_OK) status = fed;
    if (status == WB_OK) status = wb_mtp_drafts_failure(&engine->mtp);
    if (status == WB_OK) status = sample_and_fetch(engine, logits);
    status = agree(engine, status, busy_out);
    /* Once for each row that is committed. */
    if (status == WB_OK)
        status = wb_load_count_step(&engine->load, wb_model_routes(engine->model), &engine->scheduler.batch,
                                    wb_step_results_on_host(&engine->results).rows);
    if (status != WB_OK) {
        forget_states(engine);
        return status;
    }
    commit(engine);
    draft(engine);
    return WB_OK;
}

/* Experts move beside the pass. A failure of the pass is on all ranks, and on none is it a reason not to end
 * the boundary; its message is the step's. */
static wb_status pass_beside_moves(wb_engine *engine, bool *busy_out) {
    char message[1024];
    WB_TRY(wb_rebalance_begin_boundary(engine->load.manager));
    const wb_status status = make_pass(engine, busy_out);
    if (status != WB_OK) snprintf(message, sizeof message, "%s", wb_error_message());
    const wb_status ended = wb_rebalance_end_boundary(engine->load.manager);
    return status != WB_OK ? wb_fail(status, "%s", message) : ended;
}

static wb_status make_step(wb_engine *engine, bool *busy_out) {
    WB_TRY(wb_engine_travel(engine));
    return engine->load.manager ? pass_beside_moves(engine, busy_out) : make_pass(engine, busy_out);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

wb_status wb_engine_step(wb_engine *engine, bool *busy_out) {
    if (!engine || !busy_out) return wb_fail(WB_INVALID_ARGUMENT, "engine step: engine or busy_out is NULL");
    const double begin = now();
    const wb_status status = make_step(engine, busy_out);
    engine->step_seconds += now() - begin;
    return status;
}
