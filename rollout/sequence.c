/* sequence.c - see sequence.h.
 *
 * A sequence is memory made at submit for the longest that the request can become. Its spans alone grow, when
 * weights are set. */
#include "sequence.h"
#include "draft.h"
#include "request.h"
#include "wb_check.h"
#include "wb_memory.h"
#include "wb_route_limits.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

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
    size_t rid, tokens, stop_tokens, logprobs, sampling_logprobs, mask_ends, blocks, counts, ends, rows,
        bytes;
} sequence_layout;

static sequence_layout layout_of(const wb_request *request, const wb_request_limits *limits, bool has_mask,
                                 int64_t max_blocks) {
    const uint64_t max_len = wb_request_prompt_len(request) + request->max_tokens;
    const uint64_t n_cells = request->return_indexer ? (max_len - 1) * limits->n_columns : 0;
    sequence_layout at = {0};
    place(&at.bytes, 1, sizeof(wb_sequence));
    at.rid = place(&at.bytes, strlen(request->rid) + 1, 1);
    at.tokens = place(&at.bytes, max_len, sizeof(uint32_t));
    at.stop_tokens = place(&at.bytes, request->n_stop, sizeof(uint32_t));
    at.logprobs = place(&at.bytes, request->max_tokens, sizeof(float));
    at.sampling_logprobs = place(&at.bytes, request->max_tokens, sizeof(float));
    at.mask_ends = place(&at.bytes, has_mask ? request->max_tokens : 0, sizeof(uint32_t));
    at.blocks = place(&at.bytes, (uint64_t)max_blocks, sizeof(int32_t));
    at.counts = place(&at.bytes, n_cells, sizeof(uint32_t));
    at.ends = place(&at.bytes, n_cells, sizeof(uint64_t));
    at.rows = place(&at.bytes, max_len - 1, wb_route_row_bytes(limits->route_model));
    return at;
}

/* The arrays beside the block. The mask and what indexers chose are among them because they are to stay as
 * they are got, without zeros: they are large, and the system gives memory to what is written alone. */
static wb_status open_arrays(wb_sequence *s, uint32_t n_spans, uint64_t max_mask) {
    const size_t room = (size_t)(max_mask < WB_MAX_TOKENS ? max_mask : WB_MAX_TOKENS - 1);
    WB_TRY(WB_GROW(s->spans, (size_t)n_spans + 1, &s->spans_capacity, "request spans"));
    if (s->cells.n_columns > 0) WB_TRY(wb_cells_open(&s->cells, s->max_len - 1));
    return room == 0 ? WB_OK : WB_GROW(s->mask_ids, room, &s->mask_room, "request sampling mask");
}

/* The prompt; and of the record that goes on, what was fed: its rows, cells and spans. Room for a span
 * more. */
static void copy_prompt(wb_sequence *s, const wb_request *request, const wb_route_model *route_model) {
    const wb_record *earlier = request->continues;
    const uint32_t n = earlier ? earlier->n_tokens : 0;
    if (request->n_tokens > 0) memcpy(s->tokens + n, request->tokens, request->n_tokens * sizeof *s->tokens);
    if (!earlier) return;
    memcpy(s->tokens, earlier->tokens, n * sizeof *s->tokens);
    s->n_fed = wb_request_n_fed(request);
    for (uint32_t t = 0; t < s->n_fed; t++)
        memcpy(s->rows + t * s->row_bytes, wb_record_row(route_model, earlier, t), s->row_bytes);
    if (s->cells.n_columns > 0) wb_cells_append_record(&s->cells, earlier, s->n_fed);
    for (uint32_t i = 0; i < earlier->n_spans; i++) s->spans[i] = earlier->spans[i];
    s->completion.record.n_spans = earlier->n_spans;
}

/* Known blocks have no cells: what is taken over is known without. */
static void place_cells(wb_sequence *s, const wb_request_limits *limits, uint32_t *counts, uint64_t *ends) {
    const uint64_t n_whole = wb_cells_n_whole(limits->route_model);
    s->cells = (wb_cells){
        .model = limits->route_model, .n_columns = limits->n_columns, .counts = counts, .ends = ends};
    s->entry.take_limit = n_whole < UINT32_MAX ? (uint32_t)n_whole : UINT32_MAX;
}

wb_status wb_sequence_create(const wb_request *request, const wb_request_limits *limits, int64_t max_blocks,
                             wb_sequence **sequence_out) {
    const size_t row_bytes = wb_route_row_bytes(limits->route_model);
    const uint32_t prompt_len = (uint32_t)wb_request_prompt_len(request);
    const uint64_t max_mask = wb_request_max_mask(request, limits->vocab_size);
    const bool has_mask = max_mask > 0;
    const sequence_layout at = layout_of(request, limits, has_mask, max_blocks);
    uint8_t *base = NULL;
    WB_TRY(WB_NEW(base, at.bytes, "request"));
    wb_sequence *s = (wb_sequence *)(void *)base;
    s->max_len = prompt_len + request->max_tokens;
    if (request->return_indexer)
        place_cells(s, limits, (uint32_t *)(void *)(base + at.counts), (uint64_t *)(void *)(base + at.ends));
    const wb_status status = open_arrays(s, request->continues ? request->continues->n_spans : 0, max_mask);
    if (status != WB_OK) {
        wb_sequence_free(s);
        return status;
    }
    s->tokens = (uint32_t *)(void *)(base + at.tokens);
    s->stop_tokens = (uint32_t *)(void *)(base + at.stop_tokens);
    s->logprobs = (float *)(void *)(base + at.logprobs);
    s->sampling_logprobs = (float *)(void *)(base + at.sampling_logprobs);
    s->entry.blocks = (int32_t *)(void *)(base + at.blocks);
    s->rows = base + at.rows;
    s->bytes = at.bytes + s->spans_capacity * sizeof *s->spans + s->mask_room * sizeof *s->mask_ids +
               s->cells.room * sizeof *s->cells.positions;
    s->row_bytes = row_bytes;
    s->return_routes = request->return_routes;
    s->routes_start = request->routes_start;
    s->mask_ends = has_mask ? (uint32_t *)(void *)(base + at.mask_ends) : NULL;
    s->entry.expected_tokens = request->expected_tokens;
    s->sampling = (wb_sampling){request->temperature, (uint32_t)request->top_k, request->top_p};
    s->params = (wb_sample_params){request->temperature, request->top_k, request->top_p, 0};
    s->seed = request->seed;
    s->n_stop = request->n_stop;
    memcpy(base + at.rid, request->rid, strlen(request->rid) + 1);
    if (request->n_stop > 0) memcpy(s->stop_tokens, request->stop_tokens, request->n_stop * sizeof(uint32_t));
    s->completion.record = (wb_record){.rid = (const char *)(base + at.rid),
                                       .group = request->group,
                                       .sample = request->sample,
                                       .prompt_len = prompt_len,
                                       .n_tokens = prompt_len,
                                       .tokens = s->tokens,
                                       .finish = WB_FINISH_NONE};
    copy_prompt(s, request, limits->route_model);
    s->entry.record = &s->completion.record;
    *sequence_out = s;
    return WB_OK;
}

void wb_sequence_free(wb_sequence *s) {
    if (!s) return;
    free(s->spans);
    free(s->mask_ids);
    free(s->cells.positions);
    free(s);
}

/* ---- growth -------------------------------------------------------------------------------------- */

static bool span_continues(const wb_sequence *s, uint64_t weight_version) {
    const uint32_t n = s->completion.record.n_spans;
    return n > 0 && s->spans[n - 1].weight_version == weight_version;
}

wb_status wb_sequence_reserve_span(wb_sequence *s, uint64_t weight_version) {
    const size_t n = s->completion.record.n_spans;
    return span_continues(s, weight_version) ? WB_OK
                                             : WB_GROW(s->spans, n + 1, &s->spans_capacity, "request spans");
}

static void extend_spans(wb_sequence *s, uint32_t end, uint64_t weight_version) {
    if (span_continues(s, weight_version))
        s->spans[s->completion.record.n_spans - 1].end = end;
    else
        s->spans[s->completion.record.n_spans++] = (wb_span){s->n_fed, end, weight_version};
}

wb_fed_rows wb_sequence_feed(wb_sequence *s, uint32_t end, uint64_t weight_version) {
    const uint32_t first = s->n_fed;
    if (end <= first) return (wb_fed_rows){first, 0, NULL};
    extend_spans(s, end, weight_version);
    s->n_fed = end;
    return (wb_fed_rows){first, end - first, s->rows + first * s->row_bytes};
}

/* Kept tokens of all sampled ones. */
static uint32_t mask_size(const wb_sequence *s) {
    const uint32_t n = s->completion.record.n_tokens - s->completion.record.prompt_len;
    return n > 0 ? s->mask_ends[n - 1] : 0;
}

wb_status wb_sequence_next_mask(const wb_sequence *s, uint32_t n_kept, uint32_t **ids_out) {
    const uint32_t size = mask_size(s);
    if (n_kept > s->mask_room - size)
        return wb_fail(WB_CAPACITY,
                       "request %s: its sampling mask: expected at most %zu kept tokens, found %" PRIu64,
                       s->completion.record.rid, s->mask_room, (uint64_t)size + n_kept);
    *ids_out = s->mask_ids + size;
    return WB_OK;
}

/* How a request of `length` tokens ends with `token` after them. */
static wb_finish finish_with(const wb_sequence *s, uint32_t length, uint32_t token) {
    for (uint32_t k = 0; k < s->n_stop; k++)
        if (s->stop_tokens[k] == token) return WB_FINISH_STOP;
    return length + 1 == s->max_len ? WB_FINISH_LENGTH : WB_FINISH_NONE;
}

uint32_t wb_sequence_count_taken(const wb_sequence *s, uint32_t n, const int32_t *sampled,
                                 wb_finish *finish_out) {
    const uint32_t length = wb_sequence_length(s);
    uint32_t i = 0;
    *finish_out = WB_FINISH_NONE;
    for (bool goes_on = true; goes_on && i < n; i++) {
        const uint32_t token = (uint32_t)sampled[i];
        *finish_out = finish_with(s, length + i, token);
        goes_on = *finish_out == WB_FINISH_NONE && i + 1 < n && s->tokens[length + i] == token;
    }
    return i;
}

void wb_sequence_append(wb_sequence *s, const wb_sampled_token *sampled) {
    wb_record *record = &s->completion.record;
    const uint32_t i = record->n_tokens - record->prompt_len;
    if (s->mask_ends) s->mask_ends[i] = mask_size(s) + sampled->n_kept;
    s->tokens[record->n_tokens++] = sampled->token;
    s->logprobs[i] = sampled->logprob;
    s->sampling_logprobs[i] = sampled->sampling_logprob;
}

/* The sizes say what exists; what is filed later overwrites what stands behind them. */
void wb_sequence_take_back(wb_sequence *s, uint32_t n_tokens) {
    wb_record *record = &s->completion.record;
    record->n_tokens = n_tokens;
    s->n_fed = n_tokens - 1;
    while (record->n_spans > 0 && s->spans[record->n_spans - 1].start >= s->n_fed) record->n_spans--;
    if (record->n_spans > 0) s->spans[record->n_spans - 1].end = s->n_fed;
    if (s->cells.n_rows > s->n_fed) s->cells.n_rows = s->n_fed;
    s->entry.n_proposed = 0;
}

/* A draft more than the request can still take would need a block that it has no room for. */
void wb_sequence_propose(wb_sequence *s, uint32_t token) {
    s->tokens[wb_sequence_length(s) + s->entry.n_proposed++] = token;
}

void wb_sequence_propose_text(wb_sequence *s, uint32_t max) {
    const uint32_t n = wb_sequence_length(s), left = wb_sequence_max_drafts(s);
    s->entry.n_proposed = wb_draft_find(s->tokens, n, max < left ? max : left, s->tokens + n);
}

void wb_sequence_finish(wb_sequence *s, wb_finish finish) {
    wb_record *record = &s->completion.record;
    record->finish = finish;
    record->sampling = &s->sampling;
    if (record->n_tokens > record->prompt_len) {
        record->logprobs = s->logprobs;
        record->sampling_logprobs = s->sampling_logprobs;
        record->mask_ends = s->mask_ends;
        record->mask_ids = s->mask_ids;
    }
    if (record->n_spans > 0) record->spans = s->spans;
    if (s->cells.n_columns > 0) record->indexer = wb_cells_return(&s->cells, s->routes_start);
    if (!s->return_routes || s->n_fed <= s->routes_start) return;
    s->routes = (wb_route_rows){s->routes_start, s->n_fed - s->routes_start,
                                s->rows + s->routes_start * s->row_bytes, NULL};
    record->n_routes = 1;
    record->routes = &s->routes;
}
