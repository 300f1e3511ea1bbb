/* request.c - one request while the engine holds it, and the index of requests by rid.
 *
 * Owns: the growing record: tokens, logprobs, rows, spans; rows and spans are append-only. Refuses: when
 * to feed (schedule.c).
 *
 * A sequence is one block of memory, made at submit for the longest that the request can become, and its
 * spans. */
#include <stdlib.h>
#include <string.h>

#include "engine_internal.h"
#include "wb_memory.h"

/* ---- memory -------------------------------------------------------------------------------------- */

/* Reserves count * size bytes at *bytes, 8-byte aligned. Tokens are below 2^31 and a row is at most 2^30
 * bytes: no overflow. */
static size_t place(size_t *bytes, uint64_t count, size_t size) {
    const size_t at = *bytes;
    *bytes += ((size_t)count * size + 7) & ~(size_t)7;
    return at;
}

/* Where a sequence's arrays lie in its block of memory. */
typedef struct sequence_layout {
    size_t rid, tokens, stop_tokens, logprobs, sampling_logprobs, blocks, rows, bytes;
} sequence_layout;

static sequence_layout layout_of(const wb_request *request, size_t row_bytes, int64_t max_blocks) {
    const uint64_t max_len = (uint64_t)request->n_tokens + request->max_tokens;
    sequence_layout at = {0};
    place(&at.bytes, 1, sizeof(wb_sequence));
    at.rid = place(&at.bytes, strlen(request->rid) + 1, 1);
    at.tokens = place(&at.bytes, max_len, sizeof(uint32_t));
    at.stop_tokens = place(&at.bytes, request->n_stop, sizeof(uint32_t));
    at.logprobs = place(&at.bytes, request->max_tokens, sizeof(float));
    at.sampling_logprobs = place(&at.bytes, request->max_tokens, sizeof(float));
    at.blocks = place(&at.bytes, (uint64_t)max_blocks, sizeof(int32_t));
    at.rows = place(&at.bytes, request->return_routes ? max_len - 1 - request->routes_start : 0, row_bytes);
    return at;
}

wb_status wb_sequence_create(const wb_request *request, size_t row_bytes, int64_t max_blocks,
                             wb_sequence **sequence_out) {
    const sequence_layout at = layout_of(request, row_bytes, max_blocks);
    void *memory, *spans;
    WB_TRY(WB_ALLOC(memory, at.bytes, 1, "request"));
    const wb_status status = WB_ALLOC(spans, 1, sizeof(wb_span), "request spans");
    if (status != WB_OK) {
        free(memory);
        return status;
    }
    uint8_t *base = memory;
    wb_sequence *s = memory;
    s->spans = spans;
    s->spans_capacity = 1;
    s->tokens = (uint32_t *)(void *)(base + at.tokens);
    s->stop_tokens = (uint32_t *)(void *)(base + at.stop_tokens);
    s->logprobs = (float *)(void *)(base + at.logprobs);
    s->sampling_logprobs = (float *)(void *)(base + at.sampling_logprobs);
    s->blocks = (int32_t *)(void *)(base + at.blocks);
    s->rows = request->return_routes ? base + at.rows : NULL;
    s->max_len = request->n_tokens + request->max_tokens;
    s->routes_start = request->routes_start;
    s->params = (wb_sample_params){request->temperature, request->top_k, request->top_p, 0};
    s->seed = request->seed;
    s->n_stop = request->n_stop;
    memcpy(base + at.rid, request->rid, strlen(request->rid) + 1);
    memcpy(s->tokens, request->tokens, request->n_tokens * sizeof(uint32_t));
    if (request->n_stop > 0) memcpy(s->stop_tokens, request->stop_tokens, request->n_stop * sizeof(uint32_t));
    s->completion.record = (wb_record){.rid = (const char *)(base + at.rid),
                                       .group = request->group,
                                       .sample = request->sample,
                                       .prompt_len = request->n_tokens,
                                       .n_tokens = request->n_tokens,
                                       .tokens = s->tokens,
                                       .finish = WB_FINISH_NONE};
    *sequence_out = s;
    return WB_OK;
}

void wb_sequence_free(wb_sequence *s) {
    if (s == NULL) return;
    free(s->spans);
    free(s);
}

/* ---- growth -------------------------------------------------------------------------------------- */

static bool span_continues(const wb_sequence *s, uint64_t weight_version) {
    const uint32_t n = s->completion.record.n_spans;
    return n > 0 && s->spans[n - 1].weight_version == weight_version;
}

wb_status wb_sequence_reserve_span(wb_sequence *s, uint64_t weight_version) {
    if (s->completion.record.n_spans < s->spans_capacity || span_continues(s, weight_version)) return WB_OK;
    const size_t bytes = 2 * (size_t)s->spans_capacity * sizeof(wb_span);
    wb_span *wider = realloc(s->spans, bytes);
    if (wider == NULL)
        return wb_fail(WB_OUT_OF_MEMORY, "request %s: no memory for %zu bytes of spans",
                       s->completion.record.rid, bytes);
    s->spans = wider;
    s->spans_capacity *= 2;
    return WB_OK;
}

static void extend_spans(wb_sequence *s, uint32_t end, uint64_t weight_version) {
    if (span_continues(s, weight_version))
        s->spans[s->completion.record.n_spans - 1].end = end;
    else
        s->spans[s->completion.record.n_spans++] = (wb_span){s->n_fed, end, weight_version};
}

void wb_sequence_feed(wb_sequence *s, uint64_t weight_version, const uint8_t *rows, size_t row_bytes) {
    const uint32_t from = s->n_in_pool, end = from + s->n_planned;
    s->n_in_pool = end;
    s->n_planned = 0;
    if (end <= s->n_fed) return; /* a prefill after preemption: all of it has been answered for */
    const uint32_t first_row = s->n_fed > s->routes_start ? s->n_fed : s->routes_start;
    if (s->rows != NULL && end > first_row)
        memcpy(s->rows + (size_t)(first_row - s->routes_start) * row_bytes,
               rows + (size_t)(first_row - from) * row_bytes, (size_t)(end - first_row) * row_bytes);
    extend_spans(s, end, weight_version);
    s->n_fed = end;
}

wb_finish wb_sequence_append(wb_sequence *s, uint32_t token, float logprob, float sampling_logprob) {
    wb_record *record = &s->completion.record;
    const uint32_t i = record->n_tokens - record->prompt_len;
    s->tokens[record->n_tokens++] = token;
    s->logprobs[i] = logprob;
    s->sampling_logprobs[i] = sampling_logprob;
    for (uint32_t k = 0; k < s->n_stop; k++)
        if (s->stop_tokens[k] == token) return WB_FINISH_STOP;
    return record->n_tokens == s->max_len ? WB_FINISH_LENGTH : WB_FINISH_NONE;
}

void wb_sequence_finish(wb_sequence *s, wb_finish finish) {
    wb_record *record = &s->completion.record;
    record->finish = finish;
    if (record->n_tokens > record->prompt_len) {
        record->logprobs = s->logprobs;
        s->completion.sampling_logprobs = s->sampling_logprobs;
    }
    if (record->n_spans > 0) record->spans = s->spans;
    if (s->rows == NULL || s->n_fed <= s->routes_start) return;
    s->routes = (wb_route_rows){s->routes_start, s->n_fed - s->routes_start, s->rows, NULL};
    record->n_routes = 1;
    record->routes = &s->routes;
}

/* ---- requests by rid ----------------------------------------------------------------------------- */

static wb_sequence **bucket_of(const wb_rid_index *index, const char *rid) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (const char *c = rid; *c != '\0'; c++) hash = (hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    return &index->buckets[(hash ^ (hash >> 32)) & (index->n_buckets - 1)];
}

wb_sequence *wb_rid_index_find(const wb_rid_index *index, const char *rid) {
    if (index->n_buckets == 0) return NULL;
    wb_sequence *s = *bucket_of(index, rid);
    while (s != NULL && strcmp(s->completion.record.rid, rid) != 0) s = s->bucket_next;
    return s;
}

wb_status wb_rid_index_reserve(wb_rid_index *index) {
    if (index->count < index->n_buckets) return WB_OK;
    wb_rid_index wider = {NULL, index->n_buckets > 0 ? 2 * index->n_buckets : 64, 0};
    WB_TRY(WB_NEW(wider.buckets, wider.n_buckets, "request index"));
    for (size_t i = 0; i < index->n_buckets; i++)
        for (wb_sequence *s = index->buckets[i], *next; s != NULL; s = next) {
            next = s->bucket_next;
            wb_rid_index_add(&wider, s);
        }
    free(index->buckets);
    *index = wider;
    return WB_OK;
}

void wb_rid_index_add(wb_rid_index *index, wb_sequence *s) {
    wb_sequence **bucket = bucket_of(index, s->completion.record.rid);
    s->bucket_next = *bucket;
    *bucket = s;
    index->count++;
}

void wb_rid_index_remove(wb_rid_index *index, wb_sequence *s) {
    wb_sequence **at = bucket_of(index, s->completion.record.rid);
    while (*at != s) at = &(*at)->bucket_next;
    *at = s->bucket_next;
    index->count--;
}
