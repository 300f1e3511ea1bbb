/* request.c - see request.h. */
#include "request.h"
#include "sched_entry.h"
#include "wb_check.h"
#include "wb_options.h"
#include "wb_route_limits.h"

#include <inttypes.h>
#include <math.h>

WB_OPTIONS_END(wb_request, continues);
static const wb_request defaults = {
    .size = sizeof(wb_request), .temperature = 1, .top_p = 1, .return_routes = true};

void wb_request_init(wb_request *request_out, size_t size) {
    wb_options_init(request_out, size, &defaults, sizeof defaults);
}

wb_status wb_request_read(const wb_request *request, wb_request *request_out) {
    wb_request own = defaults;
    WB_TRY(wb_options_read(&own, sizeof own, request, "request"));
    WB_TRY(wb_options_check_reserved(own.reserved, sizeof own.reserved, "request"));
    *request_out = own;
    return WB_OK;
}

static wb_status check_tokens(const char *rid, const char *what, uint32_t n, const uint32_t *tokens,
                              uint32_t vocab_size) {
    if (n > 0 && !tokens)
        return wb_fail(WB_INVALID_ARGUMENT, "request %s: %s: expected %" PRIu32 ", found NULL", rid, what, n);
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] >= vocab_size)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "request %s: %s[%" PRIu32 "]: expected below the vocabulary's %" PRIu32
                           ", found %" PRIu32,
                           rid, what, i, vocab_size, tokens[i]);
    return WB_OK;
}

static wb_status check_temperature(const wb_request *request) {
    const float t = request->temperature;
    if (t == 0 || (t >= WB_MIN_TEMPERATURE && isfinite(t))) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "request %s: temperature: expected 0, or finite and at least %g, found %g", request->rid,
                   (double)WB_MIN_TEMPERATURE, (double)t);
}

/* NULL, or what is odd about the request's other sampling values. */
static const char *sampling_fault(const wb_request *request) {
    if (request->top_k < 0) return "top_k must be at least 0";
    if (!(request->top_p > 0 && request->top_p <= 1)) return "top_p must be in (0, 1]";
    if (request->max_tokens == 0) return "max_tokens must be at least 1";
    return NULL;
}

static wb_status check_capacity(const wb_request *request, const wb_request_limits *limits) {
    const uint64_t prompt_len = wb_request_prompt_len(request), length = prompt_len + request->max_tokens;
    if (length > (uint64_t)limits->max_positions)
        return wb_fail(WB_CAPACITY,
                       "request %s: %" PRIu64 " prompt tokens and %" PRIu32
                       " new ones: expected at most the model's %" PRId32 " positions, found %" PRIu64,
                       request->rid, prompt_len, request->max_tokens, limits->max_positions, length);
    /* The last token is never fed. */
    const int64_t needed = wb_kv_blocks_for(limits->block_size, length - 1);
    if (needed > limits->n_blocks)
        return wb_fail(WB_CAPACITY,
                       "request %s: %" PRIu64 " prompt tokens and %" PRIu32
                       " new ones: expected at most the KV pool's %" PRId32 " blocks of %" PRId32
                       " tokens, found %" PRId64 " blocks for %" PRIu64 " tokens",
                       request->rid, prompt_len, request->max_tokens, limits->n_blocks, limits->block_size,
                       needed, length - 1);
    return WB_OK;
}

uint64_t wb_request_max_mask(const wb_request *request, int64_t vocab_size) {
    const wb_sample_params params = {request->temperature, request->top_k, request->top_p, 0};
    if (!request->return_sampling_mask) return 0;
    return (uint64_t)wb_sample_max_kept(&params, vocab_size) * request->max_tokens;
}

/* Under top-k alone every new token keeps the same number, so that a mask that a record cannot hold is known.
 * A nucleus keeps far fewer than it could: such a mask is refused when it comes to that. */
static wb_status check_mask(const wb_request *request, int64_t vocab_size) {
    const uint64_t n = wb_request_max_mask(request, vocab_size);
    if (n < WB_MAX_TOKENS || request->top_p < 1) return WB_OK;
    return wb_fail(WB_CAPACITY,
                   "request %s: its sampling mask: expected fewer than %u kept tokens, found %" PRIu64
                   " for each of %" PRIu32 " new ones",
                   request->rid, WB_MAX_TOKENS, n / request->max_tokens, request->max_tokens);
}

/* Spans from 0 on without a gap, which leave a token to be fed, and a row for each position in them. */
static wb_status check_fed(const wb_request *request, const wb_request_limits *limits) {
    const wb_record *record = request->continues;
    const uint32_t n_fed = wb_request_n_fed(request);
    for (uint32_t i = 0, end = 0; i < record->n_spans; end = record->spans[i++].end)
        if (record->spans[i].start != end)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "request %s: it continues %s: expected a span from position %" PRIu32
                           " on, found one from %" PRIu32,
                           request->rid, record->rid, end, record->spans[i].start);
    if (n_fed >= record->n_tokens)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "request %s: it continues %s: expected spans of at most its %" PRIu32
                       " tokens but the last, found them up to %" PRIu32,
                       request->rid, record->rid, record->n_tokens, n_fed);
    for (uint32_t t = 0; t < n_fed; t++)
        if (!wb_record_row(limits->route_model, record, t))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "request %s: it continues %s: expected the rows of all %" PRIu32
                           " tokens that were fed, found none at position %" PRIu32,
                           request->rid, record->rid, n_fed, t);
    return WB_OK;
}

static wb_status check_continued(const wb_request *request, const wb_request_limits *limits) {
    const wb_record *record = request->continues;
    const wb_status status = wb_record_check(limits->route_model, record, true);
    if (status != WB_OK) return wb_fail_context(status, "request %s: it continues", request->rid);
    WB_TRY(check_tokens(request->rid, "tokens of the record that it continues", record->n_tokens,
                        record->tokens, (uint32_t)limits->vocab_size));
    return check_fed(request, limits);
}

static wb_status check_indexer(const wb_request *request, const wb_request_limits *limits) {
    if (!request->return_indexer) return WB_OK;
    if (wb_indexer_columns(limits->route_model) == 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "request %s: return_indexer: the model has no layer with an indexer", request->rid);
    if (limits->n_columns == 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "request %s: return_indexer: expected an engine with the option indexer, found it off",
                       request->rid);
    if (!request->continues) return WB_OK;
    return wb_cells_check(limits->route_model, request->continues, wb_request_n_fed(request), request->rid);
}

wb_status wb_request_check_load(const char *rid, const wb_request_load *unfinished,
                                const wb_request_load *request, const wb_request_limits *limits) {
    const struct {
        const char *what;
        uint64_t have, more, max;
    } loads[] = {{"requests", unfinished->n, request->n, limits->max_unfinished},
                 {"tokens", unfinished->tokens, request->tokens, limits->max_unfinished_tokens},
                 {"host bytes", unfinished->bytes, request->bytes, limits->max_unfinished_bytes}};
    for (size_t i = 0; i < sizeof loads / sizeof loads[0]; i++)
        if (loads[i].max > 0 && loads[i].have + loads[i].more > loads[i].max)
            return wb_fail(WB_CAPACITY,
                           "request %s: unfinished %s: expected at most %" PRIu64 ", found %" PRIu64
                           " and %" PRIu64 " more",
                           rid, loads[i].what, loads[i].max, loads[i].have, loads[i].more);
    return WB_OK;
}

wb_status wb_request_check(const wb_request *request, const wb_request_limits *limits) {
    const wb_record record = {.rid = request->rid}; /* the rules for rids are those of records */
    WB_TRY(wb_record_check(limits->route_model, &record, false));
    const char *rid = request->rid;
    const uint32_t vocab_size = (uint32_t)limits->vocab_size;
    const uint64_t prompt_len = wb_request_prompt_len(request);
    if (prompt_len == 0) return wb_fail(WB_INVALID_ARGUMENT, "request %s: the prompt has no token", rid);
    WB_TRY(check_tokens(rid, "prompt tokens", request->n_tokens, request->tokens, vocab_size));
    if (request->continues) WB_TRY(check_continued(request, limits));
    WB_TRY(check_tokens(rid, "stop_tokens", request->n_stop, request->stop_tokens, vocab_size));
    WB_TRY(check_temperature(request));
    const char *fault = sampling_fault(request);
    if (fault) return wb_fail(WB_INVALID_ARGUMENT, "request %s: %s", rid, fault);
    if (request->routes_start > prompt_len)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "request %s: routes_start: expected at most the %" PRIu64
                       " prompt tokens, found %" PRIu32,
                       rid, prompt_len, request->routes_start);
    WB_TRY(check_capacity(request, limits));
    WB_TRY(check_indexer(request, limits));
    return check_mask(request, vocab_size);
}
