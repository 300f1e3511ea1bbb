/* engine.c - open, submit, step, poll, close.
 *
 * Owns: the engine object and the order of a step: schedule, forward, sample, fetch, commit, exchange.
 * Refuses: the choice of what to feed (schedule.c), a request's growth (request.c).
 *
 * A step that fails before its commit changes no record: the same tokens are fed again by the next one.
 * Once open, a step allocates nothing but a request's next span, when weights have changed, and what the
 * model's workspace grows. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine_internal.h"
#include "wb_memory.h"

/* ---- open and close ------------------------------------------------------------------------------ */

wb_engine_options wb_engine_options_default(void) {
    return (wb_engine_options){
        .n_blocks = 1024, .block_size = 16, .max_batch_tokens = 512, .max_running = 64};
}

wb_request wb_request_default(void) {
    return (wb_request){.temperature = 1, .top_p = 1, .return_routes = true};
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
    return WB_OK;
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

static wb_status open_batch(wb_step_batch *batch, size_t max_tokens, size_t max_sequences,
                            size_t max_blocks) {
    const struct {
        size_t count, size;
        void **out;
    } arrays[] = {
        {max_tokens, sizeof(int32_t), (void **)&batch->tokens},
        {max_tokens, sizeof(int32_t), (void **)&batch->pos},
        {max_tokens, sizeof(int32_t), (void **)&batch->seq},
        {max_sequences, sizeof(int32_t), (void **)&batch->logit_rows},
        {max_sequences * max_blocks, sizeof(int32_t), (void **)&batch->blocks},
        {max_sequences, sizeof(wb_sequence *), (void **)&batch->sequences},
        {max_sequences, sizeof(wb_sequence *), (void **)&batch->sampled},
        {max_sequences, sizeof(wb_sample_params), (void **)&batch->params},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        WB_TRY(WB_ALLOC(*arrays[i].out, arrays[i].count, arrays[i].size, "engine batch"));
    return WB_OK;
}

static wb_status open_results(wb_engine *engine, size_t max_tokens, size_t max_sequences) {
    wb_step_results *results = &engine->results;
    results->logprobs_offset = max_sequences * sizeof(int32_t);
    results->sampling_logprobs_offset = results->logprobs_offset + max_sequences * sizeof(float);
    results->ids_offset =
        (results->sampling_logprobs_offset + max_sequences * sizeof(float) + 63) & ~(size_t)63;
    const size_t bytes = results->ids_offset + max_tokens * engine->row_bytes;
    WB_TRY(WB_ALLOC(results->host, bytes, 1, "engine results"));
    return engine->device->mem_alloc(engine->device, bytes, &results->device);
}

static wb_status open_parts(wb_engine *engine) {
    const wb_engine_options *options = &engine->options;
    WB_TRY(wb_kv_blocks_open(options->n_blocks, options->block_size, &engine->pool));
    const uint64_t max_positions = (uint64_t)wb_model_config(engine->model)->max_positions;
    const size_t n_blocks = (size_t)options->n_blocks, max_tokens = (size_t)options->max_batch_tokens;
    const size_t max_sequences = smaller(smaller((size_t)options->max_running, n_blocks), max_tokens);
    const size_t max_blocks = smaller(n_blocks, (size_t)wb_kv_blocks_for(&engine->pool, max_positions));
    WB_TRY(open_batch(&engine->batch, max_tokens, max_sequences, max_blocks));
    WB_TRY(open_results(engine, max_tokens, max_sequences));
    wb_infer_options infer = wb_infer_options_default();
    infer.n_blocks = options->n_blocks;
    infer.block_size = options->block_size;
    return wb_infer_open(engine->model, &infer, &engine->infer);
}

wb_status wb_engine_open(wb_model *model, const wb_engine_options *options, wb_engine **engine_out) {
    WB_TRY(check_options(options));
    wb_device *device = wb_model_device(model);
    if (device->sample == NULL || device->logprob_forward == NULL)
        return wb_fail(WB_UNSUPPORTED, "engine: device %s has no sampling", device->name);
    void *memory;
    WB_TRY(WB_ALLOC(memory, 1, sizeof(wb_engine), "engine"));
    wb_engine *engine = memory;
    engine->model = model;
    engine->device = device;
    engine->comm = wb_model_comm(model);
    engine->route_model = wb_model_routes(model);
    engine->row_bytes = wb_route_row_bytes(engine->route_model);
    engine->options = *options;
    const wb_status status = open_parts(engine);
    if (status != WB_OK) {
        wb_engine_close(engine);
        return status;
    }
    *engine_out = engine;
    return WB_OK;
}

static void free_list(wb_sequence *first) {
    for (wb_sequence *s = first, *next; s != NULL; s = next) {
        next = s->next;
        wb_sequence_free(s);
    }
}

void wb_engine_close(wb_engine *engine) {
    if (engine == NULL) return;
    free_list(engine->first);
    free_list(engine->first_finished);
    free(engine->rids.buckets);
    wb_infer_close(engine->infer);
    engine->device->mem_free(engine->device, engine->results.device);
    free(engine->results.host);
    wb_step_batch *batch = &engine->batch;
    void *const arrays[] = {batch->tokens, batch->pos,       batch->seq,     batch->logit_rows,
                            batch->blocks, batch->sequences, batch->sampled, batch->params};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
    wb_kv_blocks_close(&engine->pool);
    free(engine);
}

/* ---- submit -------------------------------------------------------------------------------------- */

static wb_status check_tokens(const wb_engine *engine, const char *rid, const char *what, uint32_t n,
                              const uint32_t *tokens) {
    const uint32_t vocab_size = (uint32_t)wb_model_config(engine->model)->vocab_size;
    if (n > 0 && tokens == NULL)
        return wb_fail(WB_INVALID_ARGUMENT, "request %s: %s: expected %" PRIu32 ", found NULL", rid, what, n);
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] >= vocab_size)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "request %s: %s[%" PRIu32 "]: expected below the vocabulary's %" PRIu32
                           ", found %" PRIu32,
                           rid, what, i, vocab_size, tokens[i]);
    return WB_OK;
}

static wb_status check_capacity(const wb_engine *engine, const wb_request *request) {
    const int32_t max_positions = wb_model_config(engine->model)->max_positions;
    const uint64_t length = (uint64_t)request->n_tokens + request->max_tokens;
    if (length > (uint64_t)max_positions)
        return wb_fail(WB_CAPACITY,
                       "request %s: %" PRIu32 " prompt tokens and %" PRIu32
                       " new ones: expected at most the model's %" PRId32 " positions, found %" PRIu64,
                       request->rid, request->n_tokens, request->max_tokens, max_positions, length);
    const wb_kv_blocks *pool = &engine->pool;
    const int64_t needed = wb_kv_blocks_for(pool, length - 1); /* the last token is never fed */
    if (needed > pool->n_blocks)
        return wb_fail(WB_CAPACITY,
                       "request %s: %" PRIu32 " prompt tokens and %" PRIu32
                       " new ones: expected at most the KV pool's %" PRId32 " blocks of %" PRId32
                       " tokens, found %" PRId64 " blocks for %" PRIu64 " tokens",
                       request->rid, request->n_tokens, request->max_tokens, pool->n_blocks, pool->block_size,
                       needed, length - 1);
    return WB_OK;
}

static wb_status check_request(const wb_engine *engine, const wb_request *request) {
    const wb_record record = {.rid = request->rid}; /* the rules for rids are those of records */
    WB_TRY(wb_record_check(engine->route_model, &record, false));
    const char *rid = request->rid;
    if (wb_rid_index_find(&engine->rids, rid) != NULL)
        return wb_fail(WB_INVALID_ARGUMENT, "request %s: this rid is in use", rid);
    if (request->n_tokens == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "request %s: the prompt has no token", rid);
    WB_TRY(check_tokens(engine, rid, "prompt tokens", request->n_tokens, request->tokens));
    WB_TRY(check_tokens(engine, rid, "stop_tokens", request->n_stop, request->stop_tokens));
    const char *fault = wb_sampling_fault(request);
    if (fault != NULL) return wb_fail(WB_INVALID_ARGUMENT, "request %s: %s", rid, fault);
    if (request->routes_start > request->n_tokens)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "request %s: routes_start: expected at most the %" PRIu32
                       " prompt tokens, found %" PRIu32,
                       rid, request->n_tokens, request->routes_start);
    return check_capacity(engine, request);
}

wb_status wb_engine_submit(wb_engine *engine, const wb_request *request) {
    WB_TRY(check_request(engine, request));
    WB_TRY(wb_rid_index_reserve(&engine->rids));
    const int64_t max_blocks =
        wb_kv_blocks_for(&engine->pool, (uint64_t)request->n_tokens + request->max_tokens - 1);
    wb_sequence *s;
    WB_TRY(wb_sequence_create(request, engine->row_bytes, max_blocks, &s));
    wb_rid_index_add(&engine->rids, s);
    s->previous = engine->last;
    if (engine->last != NULL)
        engine->last->next = s;
    else
        engine->first = s;
    engine->last = s;
    if (engine->first_waiting == NULL) engine->first_waiting = s;
    engine->stats.waiting++;
    return WB_OK;
}

/* ---- the end of a request ------------------------------------------------------------------------ */

/* From the unfinished requests to the finished ones. */
static void finish(wb_engine *engine, wb_sequence *s, wb_finish reason) {
    if (s->running)
        wb_schedule_release(engine, s);
    else
        engine->stats.waiting--;
    if (engine->first_waiting == s) engine->first_waiting = s->next;
    *(s->previous != NULL ? &s->previous->next : &engine->first) = s->next;
    *(s->next != NULL ? &s->next->previous : &engine->last) = s->previous;
    s->previous = s->next = NULL;

    wb_sequence_finish(s, reason);
    *(engine->last_finished != NULL ? &engine->last_finished->next : &engine->first_finished) = s;
    engine->last_finished = s;
}

wb_completion *wb_engine_poll(wb_engine *engine) {
    wb_sequence *s = engine->first_finished;
    if (s == NULL) return NULL;
    engine->first_finished = s->next;
    if (s->next == NULL) engine->last_finished = NULL;
    s->next = NULL;
    wb_rid_index_remove(&engine->rids, s);
    return &s->completion;
}

void wb_completion_free(wb_completion *completion) {
    wb_sequence_free((wb_sequence *)completion);
}

wb_status wb_engine_abort(wb_engine *engine, const char *rid) {
    wb_sequence *s = rid != NULL ? wb_rid_index_find(&engine->rids, rid) : NULL;
    if (s == NULL) return wb_fail(WB_NOT_FOUND, "abort: no request %s", rid != NULL ? rid : "(NULL)");
    if (s->completion.record.finish == WB_FINISH_NONE) finish(engine, s, WB_FINISH_ABORT);
    return WB_OK;
}

/* ---- a step -------------------------------------------------------------------------------------- */

static void *device_result(const wb_engine *engine, size_t offset) {
    return (uint8_t *)engine->results.device + offset;
}

static const void *host_result(const wb_engine *engine, size_t offset) {
    return (const uint8_t *)engine->results.host + offset;
}

/* The op names a row of its call; the caller knows requests. */
static wb_status name_sample_failure(wb_engine *engine, const float *logits, wb_status failure) {
    wb_device *dev = engine->device;
    const int64_t V = wb_model_config(engine->model)->vocab_size;
    for (int64_t i = 0; i < engine->batch.infer.n_logits; i++) {
        const wb_status status =
            dev->sample(dev, 1, V, logits + i * V, &engine->batch.params[i], device_result(engine, 0),
                        device_result(engine, engine->results.sampling_logprobs_offset));
        const wb_sequence *s = engine->batch.sampled[i];
        if (status != WB_OK)
            return wb_fail_context(status, "request %s: token at position %" PRIu32, s->completion.record.rid,
                                   wb_sequence_length(s));
    }
    return failure;
}

/* Samples on the device; logprobs at temperature 1 come from the op that training uses. */
static wb_status sample(wb_engine *engine, const float *logits) {
    wb_device *dev = engine->device;
    const int64_t V = wb_model_config(engine->model)->vocab_size, n = engine->batch.infer.n_logits;
    int32_t *tokens = device_result(engine, 0);
    const wb_status status = dev->sample(dev, n, V, logits, engine->batch.params, tokens,
                                         device_result(engine, engine->results.sampling_logprobs_offset));
    if (status != WB_OK) return name_sample_failure(engine, logits, status);
    return dev->logprob_forward(dev, n, V, logits, tokens,
                                device_result(engine, engine->results.logprobs_offset));
}

/* The one place where a step's results cross to the host: sampled tokens, logprobs and, where asked for,
 * rows. */
static wb_status fetch(wb_engine *engine) {
    const wb_step_results *results = &engine->results;
    const wb_step_batch *batch = &engine->batch;
    size_t bytes = results->ids_offset;
    if (batch->with_rows) bytes += (size_t)batch->infer.T * engine->row_bytes;
    return engine->device->to_host(engine->device, results->host, results->device, bytes);
}

static void count_fed(wb_engine_stats *stats, const wb_sequence *s) {
    const bool decode = s->n_planned == 1 && s->n_in_pool >= s->completion.record.prompt_len;
    *(decode ? &stats->decode_tokens : &stats->prefill_tokens) += s->n_planned;
}

/* Records what was fed and sampled. Cannot fail. */
static void commit(wb_engine *engine) {
    const wb_step_results *results = &engine->results;
    const int32_t *tokens = host_result(engine, 0);
    const float *logprobs = host_result(engine, results->logprobs_offset);
    const float *sampling_logprobs = host_result(engine, results->sampling_logprobs_offset);
    const uint8_t *rows = host_result(engine, results->ids_offset);
    int64_t n_sampled = 0;
    for (int32_t i = 0; i < engine->batch.infer.n_seqs; i++) {
        wb_sequence *s = engine->batch.sequences[i];
        const bool samples = wb_sequence_samples(s);
        const size_t bytes = s->n_planned * engine->row_bytes;
        count_fed(&engine->stats, s);
        wb_sequence_feed(s, engine->weight_version, rows, engine->row_bytes);
        rows += bytes;
        if (!samples) continue;
        const int64_t j = n_sampled++;
        const wb_finish reason =
            wb_sequence_append(s, (uint32_t)tokens[j], logprobs[j], sampling_logprobs[j]);
        if (reason != WB_FINISH_NONE) finish(engine, s, reason);
    }
}

/* All ranks learn in one exchange whether some rank has work left and whether some rank failed. */
static wb_status exchange(wb_engine *engine, wb_status status, bool *busy_out) {
    const uint64_t failed = (uint64_t)1 << 63;
    uint64_t word = engine->first != NULL;
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
    const wb_infer_batch *infer = &engine->batch.infer;
    const wb_routing routing = {.ids = device_result(engine, engine->results.ids_offset)};
    const float *logits;
    wb_status status =
        wb_schedule_step(engine); /* on failure an empty batch: the peers' forward needs this rank */
    WB_TRY(wb_infer_forward(engine->infer, infer, &routing, &logits));
    if (status == WB_OK && infer->n_logits > 0) status = sample(engine, logits);
    if (status == WB_OK && infer->T > 0) status = fetch(engine);
    if (status == WB_OK) commit(engine);
    engine->stats.steps++;
    return exchange(engine, status, busy_out);
}

/* ---- weights and numbers ------------------------------------------------------------------------- */

wb_status wb_engine_set_weights(wb_engine *engine, const wb_model *from, uint64_t version) {
    WB_TRY(wb_model_copy_weights(engine->model, from));
    engine->weight_version = version;
    return WB_OK;
}

wb_engine_stats wb_engine_get_stats(const wb_engine *engine) {
    wb_engine_stats stats = engine->stats;
    stats.free_blocks = engine->pool.n_free;
    return stats;
}
