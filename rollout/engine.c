/* engine.c - the engine and its requests: open, submit, abort, poll, close. Refuses: a step
 * (engine_step.c), new weights (engine_weights.c), the choice of what to feed (scheduler.c), a request's
 * growth (sequence.c). */
#include "engine.h"
#include "wb_check.h"
#include "wb_memory.h"
#include "wb_options.h"
#include "weights_digest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- open and close ------------------------------------------------------------------------------ */

WB_OPTIONS_END(wb_engine_options, max_unfinished_bytes);
static const wb_engine_options defaults = {.size = sizeof(wb_engine_options),
                                           .n_blocks = 1024,
                                           .block_size = 16,
                                           .max_batch_tokens = 512,
                                           .max_running = 64};

void wb_engine_options_init(wb_engine_options *options_out, size_t size) {
    wb_options_init(options_out, size, &defaults, sizeof defaults);
}

/* One for each request that runs, and what may be copied of them. */
static int32_t n_states(const wb_engine_options *options) {
    const int32_t n = wb_scheduler_max_running(options->n_blocks, options->max_running);
    if (!options->prefix_cache && options->max_drafts == 0) return n;
    const int64_t all = (int64_t)n + (options->n_snapshots > 0 ? options->n_snapshots : n);
    return all < INT32_MAX ? (int32_t)all : INT32_MAX;
}

/* What inference under an engine is opened with. */
static wb_infer_options infer_options(const wb_engine_options *options) {
    wb_infer_options infer = wb_infer_options_default();
    infer.n_blocks = options->n_blocks;
    infer.block_size = options->block_size;
    infer.max_tokens = options->max_batch_tokens;
    infer.max_sequences =
        wb_scheduler_max_entries(options->n_blocks, options->max_batch_tokens, options->max_running);
    infer.max_logits =
        wb_scheduler_max_sampled(infer.max_sequences, options->max_batch_tokens, options->max_drafts);
    infer.n_states = n_states(options);
    infer.drafts = options->max_drafts > 0;
    return infer;
}

/* Indexers of whose choices requests may ask. */
static uint32_t indexer_columns(const wb_config *config, const wb_engine_options *options) {
    return options->indexer ? (uint32_t)wb_config_n_indexers(config) : 0;
}

static wb_status check_options(const wb_engine_options *options) {
    const struct {
        const char *name;
        int32_t value;
    } counts[] = {{"n_blocks", options->n_blocks},
                  {"block_size", options->block_size},
                  {"max_batch_tokens", options->max_batch_tokens},
                  {"max_running", options->max_running}};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (counts[i].value < 1)
            return wb_fail(WB_INVALID_ARGUMENT, "engine: %s: expected at least 1, found %" PRId32,
                           counts[i].name, counts[i].value);
    if (options->max_prefill_tokens < 0 || options->max_drafts < 0 || options->n_snapshots < 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "engine: max_prefill_tokens, max_drafts and n_snapshots: expected at least 0, found "
                       "%" PRId32 ", %" PRId32 " and %" PRId32,
                       options->max_prefill_tokens, options->max_drafts, options->n_snapshots);
    return WB_OK;
}

static wb_status open_parts(wb_engine *engine, const wb_engine_options *options) {
    const wb_config *config = wb_model_config(engine->model);
    const wb_route_model *route_model = wb_model_routes(engine->model);
    engine->limits = (wb_request_limits){.route_model = route_model,
                                         .vocab_size = config->vocab_size,
                                         .max_positions = config->max_positions,
                                         .n_blocks = options->n_blocks,
                                         .block_size = options->block_size,
                                         .n_columns = indexer_columns(config, options),
                                         .max_unfinished = options->max_unfinished,
                                         .max_unfinished_tokens = options->max_unfinished_tokens,
                                         .max_unfinished_bytes = options->max_unfinished_bytes};
    engine->recompute_keys = options->recompute_keys;
    engine->max_drafts = (uint32_t)options->max_drafts;
    engine->max_prefill_tokens =
        options->max_prefill_tokens > 0 ? options->max_prefill_tokens : options->max_batch_tokens;
    const wb_infer_options infer = infer_options(options);
    WB_TRY(wb_infer_open(engine->model, &infer, &engine->infer));
    wb_scheduler *scheduler = &engine->scheduler;
    const wb_scheduler_sizes sizes = {.n_blocks = options->n_blocks,
                                      .block_size = options->block_size,
                                      .max_batch_tokens = options->max_batch_tokens,
                                      .max_running = options->max_running,
                                      .max_drafts = options->max_drafts,
                                      .max_positions = config->max_positions,
                                      .n_states = n_states(options),
                                      .has_states = wb_infer_sequence_bytes(engine->infer) > 0,
                                      .prefix_cache = options->prefix_cache,
                                      .row_bytes = wb_route_row_bytes(route_model)};
    WB_TRY(wb_scheduler_open(scheduler, &sizes));
    const size_t max_sampled = (size_t)wb_scheduler_max_sampled(
        scheduler->max_entries, options->max_batch_tokens, options->max_drafts);
    WB_TRY(wb_sampler_open(&engine->workspace, config->vocab_size, max_sampled, &engine->sampler));
    WB_TRY(wb_step_results_open(&engine->workspace, (size_t)options->max_batch_tokens, max_sampled,
                                wb_route_row_bytes(route_model), &engine->results));
    /* Rows and kept tokens of each entry of a step, and the rows of blocks that it fills. */
    WB_TRY(wb_filing_open(&engine->workspace.host, 2 * max_sampled + (size_t)options->max_batch_tokens,
                          &engine->filing));
    WB_TRY(wb_step_forcing_open(&engine->workspace, (size_t)options->max_batch_tokens, &engine->forcing));
    WB_TRY(wb_step_cells_open(&engine->workspace, engine->limits.n_columns, route_model->indexer_k,
                              (size_t)options->max_batch_tokens, &engine->cells));
    WB_TRY(wb_load_count_open(&engine->workspace.host, options->rebalance, route_model,
                              (size_t)options->max_batch_tokens, &engine->load));
    WB_TRY(wb_mtp_drafts_open(&engine->workspace.host, engine->infer, (size_t)options->max_batch_tokens,
                              (size_t)scheduler->max_entries, &engine->mtp));
    WB_TRY(wb_lending_open(&engine->workspace.host, options->lend_requests, wb_comm_size(engine->comm),
                           &engine->lending));
    WB_TRY(WB_OWN(&engine->workspace.host, engine->words, (size_t)wb_comm_size(engine->comm),
                  "engine step words"));
    WB_TRY(wb_weights_digest(engine->model, &engine->weights_digest));
    engine->source_digest = engine->weights_digest;
    return WB_OK;
}

/* The ops that the engine calls itself; wb_infer_open asks for those of the model. */
static wb_status check_device(const wb_device *device) {
    static const wb_op needed[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_sample, WB_OP_logprob_forward};
    return wb_device_require(device, "engine", needed, sizeof needed / sizeof needed[0]);
}

wb_status wb_engine_open(wb_model *model, const wb_engine_options *options, wb_engine **engine_out) {
    wb_engine_options own = defaults;
    if (!model || !engine_out) return wb_fail(WB_INVALID_ARGUMENT, "engine: model or engine_out is NULL");
    WB_TRY(wb_options_read(&own, sizeof own, options, "engine"));
    WB_TRY(check_options(&own));
    WB_TRY(check_device(wb_model_device(model)));
    wb_engine *engine = NULL;
    WB_TRY(WB_NEW(engine, 1, "engine"));
    engine->model = model;
    engine->comm = wb_model_comm(model);
    engine->workspace.device = wb_model_device(model);
    const wb_status status = open_parts(engine, &own);
    if (status != WB_OK) {
        wb_engine_close(engine);
        return status;
    }
    *engine_out = engine;
    return WB_OK;
}

/* Results and row directions of a step, there and on the host, and the kept tokens of its samples. */
static wb_status measure_step(const wb_config *config, const wb_engine_options *options, int64_t max_sampled,
                              int64_t max_kept, wb_memory *memory) {
    const size_t tokens = (size_t)options->max_batch_tokens, sampled = (size_t)max_sampled;
    size_t results = 0, cells = 0;
    WB_TRY(wb_step_cells_bytes(indexer_columns(config, options), (uint32_t)config->compressed.index_top_k,
                               tokens, &cells));
    WB_TRY(wb_step_results_bytes(tokens, sampled, max_kept, wb_config_row_bytes(config), &results));
    memory->parts[memory->n_parts++] = (wb_memory_part){"results", results + tokens};
    if (cells > 0) memory->parts[memory->n_parts++] = (wb_memory_part){"indexer lists", cells};
    memory->device_bytes += results + tokens + cells;
    memory->ops.sampled = max_sampled;
    memory->host_bytes += 2 * results + tokens + cells;
    if (options->prefix_cache)
        memory->host_bytes +=
            wb_prefix_cache_bytes(options->n_blocks, options->block_size, wb_config_row_bytes(config));
    return WB_OK;
}

wb_status wb_engine_measure(const wb_config *config, const wb_model_options *model,
                            const wb_engine_options *options, int64_t max_kept, int32_t n_ranks, int32_t rank,
                            wb_memory *memory_out) {
    wb_engine_options own = defaults;
    wb_memory memory;
    if (!config || !memory_out) return wb_fail(WB_INVALID_ARGUMENT, "engine: config or memory_out is NULL");
    WB_TRY(wb_options_read(&own, sizeof own, options, "engine"));
    WB_TRY(check_options(&own));
    if (max_kept < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "engine: max_kept: expected at least 0, found %" PRId64,
                       max_kept);
    const wb_infer_options infer = infer_options(&own);
    WB_TRY(wb_infer_measure(config, model, &infer, n_ranks, rank, &memory));
    WB_TRY(measure_step(config, &own, infer.max_logits, max_kept, &memory));
    *memory_out = memory;
    return WB_OK;
}

static void free_unfinished(wb_sched_entry *first) {
    for (wb_sched_entry *entry = first, *next; entry; entry = next) {
        next = entry->next;
        wb_sequence_free(wb_sequence_of(entry));
    }
}

void wb_engine_close(wb_engine *engine) {
    if (!engine) return;
    free_unfinished(engine->scheduler.first);
    wb_sequence_list_free(&engine->ready);
    wb_lending_close(&engine->lending);
    wb_string_table_free(&engine->rids);
    wb_infer_close(engine->infer);
    wb_step_cells_close(&engine->cells);
    wb_step_results_close(&engine->results);
    wb_workspace_close(&engine->workspace);
    wb_scheduler_close(&engine->scheduler);
    free(engine);
}

/* ---- requests in --------------------------------------------------------------------------------- */

/* The request that has this rid, or NULL. */
static wb_sequence *find(const wb_engine *engine, const char *rid) {
    uint64_t address;
    if (!wb_string_table_find(&engine->rids, rid, strlen(rid), &address)) return NULL;
    return (wb_sequence *)(uintptr_t)address;
}

static wb_request_load load_of(const wb_sequence *s) {
    return (wb_request_load){1, s->max_len, s->bytes};
}

/* What a record that goes on was fed under other weights follows rows that the present ones might not
 * choose. */
static bool may_share(const wb_engine *engine, const wb_sequence *s) {
    for (uint32_t i = 0; i < s->completion.record.n_spans; i++)
        if (s->spans[i].weight_version != engine->weight_version) return false;
    return engine->scheduler.blocks.cache.n_blocks > 0;
}

wb_status wb_engine_make_room(wb_engine *engine, const wb_sequence *s) {
    const int64_t max_kept = wb_sampler_max_kept(&engine->sampler, s);
    if (wb_step_results_have_room(&engine->results, max_kept)) return WB_OK;
    wb_filing_finish(&engine->filing);
    return wb_step_results_make_room(&engine->results, max_kept);
}

void wb_engine_enter(wb_engine *engine, wb_sequence *s) {
    s->entry.shares = may_share(engine, s);
    wb_scheduler_add(&engine->scheduler, &s->entry);
}

wb_status wb_engine_submit(wb_engine *engine, const wb_request *request) {
    wb_request own;
    if (!engine || !request) return wb_fail(WB_INVALID_ARGUMENT, "submit: engine or request is NULL");
    WB_TRY(wb_request_read(request, &own));
    WB_TRY(wb_request_check(&own, &engine->limits));
    if (find(engine, own.rid)) return wb_fail(WB_INVALID_ARGUMENT, "request %s: this rid is in use", own.rid);
    const int64_t max_blocks =
        wb_kv_blocks_for(engine->limits.block_size, wb_request_prompt_len(&own) + own.max_tokens - 1);
    wb_sequence *s = NULL;
    WB_TRY(wb_sequence_create(&own, &engine->limits, max_blocks, &s));
    const wb_request_load load = load_of(s);
    wb_status status = wb_request_check_load(own.rid, &engine->unfinished, &load, &engine->limits);
    if (status == WB_OK) status = wb_engine_make_room(engine, s);
    if (status == WB_OK)
        status = wb_string_table_add(&engine->rids, own.rid, strlen(own.rid), (uint64_t)(uintptr_t)s, NULL);
    if (status != WB_OK) {
        wb_sequence_free(s);
        return status;
    }
    s->home = s->host = wb_comm_rank(engine->comm);
    s->number = engine->submitted++;
    s->entry.place = (int64_t)engine->steps - own.priority;
    wb_engine_enter(engine, s);
    engine->unfinished.n += load.n;
    engine->unfinished.tokens += load.tokens;
    engine->unfinished.bytes += load.bytes;
    return WB_OK;
}

/* ---- requests out -------------------------------------------------------------------------------- */

void wb_engine_deliver(wb_engine *engine, wb_sequence *s, wb_finish reason) {
    wb_sequence_finish(s, reason);
    const wb_request_load load = load_of(s);
    engine->unfinished.n -= load.n;
    engine->unfinished.tokens -= load.tokens;
    engine->unfinished.bytes -= load.bytes;
    *(reason == WB_FINISH_ABORT ? &engine->aborted : &engine->finished) += 1;
    wb_sequence_list_append(&engine->ready, s);
}

void wb_engine_finish(wb_engine *engine, wb_sequence *s, wb_finish reason) {
    wb_scheduler_remove(&engine->scheduler, &s->entry);
    if (s->home == wb_comm_rank(engine->comm)) {
        wb_engine_deliver(engine, s, reason);
        return;
    }
    s->completion.record.finish = reason;
    wb_sequence_list_append(&engine->lending.ended, s);
}

wb_status wb_engine_abort(wb_engine *engine, const char *rid) {
    if (!engine) return wb_fail(WB_INVALID_ARGUMENT, "abort: engine is NULL");
    wb_sequence *s = rid ? find(engine, rid) : NULL;
    if (!s) return wb_fail(WB_NOT_FOUND, "abort: no request %s", rid ? rid : "(NULL)");
    if (s->completion.record.finish != WB_FINISH_NONE) return WB_OK;
    if (s->host == s->home)
        wb_engine_finish(engine, s, WB_FINISH_ABORT);
    else
        s->abort_asked = true;
    return WB_OK;
}

wb_completion *wb_engine_poll(wb_engine *engine) {
    wb_sequence *s = engine ? wb_sequence_list_pop(&engine->ready) : NULL;
    if (!s) return NULL;
    wb_filing_finish(&engine->filing);
    const char *rid = s->completion.record.rid;
    wb_string_table_remove(&engine->rids, rid, strlen(rid));
    return &s->completion;
}

void wb_completion_free(wb_completion *completion) {
    wb_sequence_free((wb_sequence *)completion);
}

/* ---- numbers ----------------------------------------------------------------------------------- */

wb_engine_stats wb_engine_get_stats(const wb_engine *engine) {
    if (!engine) return (wb_engine_stats){0};
    const wb_scheduler *scheduler = &engine->scheduler;
    return (wb_engine_stats){.steps = engine->steps,
                             .prefill_tokens = engine->prefill_tokens,
                             .decode_tokens = engine->decode_tokens,
                             .preemptions = scheduler->preemptions,
                             .taken_over_tokens = engine->taken_over_tokens,
                             .drafts = engine->drafts,
                             .accepted_drafts = engine->accepted_drafts,
                             .step_seconds = engine->step_seconds,
                             .finished = engine->finished,
                             .aborted = engine->aborted,
                             .unfinished_tokens = engine->unfinished.tokens,
                             .unfinished_bytes = engine->unfinished.bytes,
                             .waiting = scheduler->waiting,
                             .running = scheduler->running,
                             .lent = engine->lending.n_lent,
                             .away = engine->lending.lent.n,
                             .guests = engine->lending.n_guests,
                             .free_blocks = wb_kv_blocks_n_free(&scheduler->blocks),
                             .known_blocks = scheduler->blocks.cache.n_known,
                             .n_blocks = engine->limits.n_blocks,
                             .paused = engine->paused};
}
