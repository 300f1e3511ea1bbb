/* import_logprobs.c - see import_logprobs.h. */
#include "import/import_logprobs.h"
#include "import/import_stream.h"
#include "wb_check.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* What rounding leaves of a probability of one: engines compute it in bf16 or in f32. */
static const float max_logprob = 1e-3f;

wb_status wb_import_logprob(import_value value, size_t i, float *logprob_out) {
    if (value.kind == IMPORT_LIST && value.length > 0) value = wb_import_at(&value, 0);
    if (value.kind == IMPORT_MAP) value = wb_import_get(&value, "logprob");
    if (value.kind != IMPORT_REAL && value.kind != IMPORT_INTEGER)
        return wb_fail(WB_CORRUPT, "log-probabilities: new token %zu: expected a number, found %s", i,
                       wb_import_kind_name(value.kind));
    const float number = (float)value.real;
    if (!isfinite(number) || number > max_logprob)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "log-probabilities: new token %zu: expected a finite number of at most %g, found %g",
                       i, (double)max_logprob, value.real);
    *logprob_out = number;
    return WB_OK;
}

/* ---- where they are ------------------------------------------------------------------------------- */

static const char *const pair_names[] = {"output_token_logprobs", NULL};

static wb_status check_pair(import_value value, size_t i, uint32_t token) {
    const import_value id =
        value.kind == IMPORT_LIST && value.length >= 2 ? wb_import_at(&value, 1) : (import_value){0};
    if (id.kind == IMPORT_NONE || (id.kind == IMPORT_INTEGER && id.integer == token)) return WB_OK;
    if (id.kind != IMPORT_INTEGER)
        return wb_fail(WB_CORRUPT, "output_token_logprobs[%zu]: expected [logprob, id, ..], found %s", i,
                       wb_import_kind_name(id.kind));
    return wb_fail(WB_INVALID_ARGUMENT,
                   "output_token_logprobs[%zu]: expected that of the new token %" PRIu32
                   ", found of %" PRId64,
                   i, token, id.integer);
}

wb_status wb_import_check_pairs(const import_request *request, const uint32_t *tokens, size_t n) {
    const import_value list = wb_import_field(request, IMPORT_WANT_LIST, pair_names, NULL);
    if (list.kind != IMPORT_LIST || list.length > n) return WB_OK;
    for (size_t i = 0; i < list.length; i++)
        WB_TRY(check_pair(wb_import_at(&list, i), i, tokens[n - list.length + i]));
    return WB_OK;
}

/* A request that came beside its answer has a `logprobs` too: whether, or how many, are wanted. */
static bool may_have_no_list(import_kind kind) {
    return kind == IMPORT_NONE || kind == IMPORT_MAP || kind == IMPORT_BOOL || kind == IMPORT_INTEGER;
}

/* OpenAI's `logprobs` is a map whose `content` or `token_logprobs` is the list. */
wb_status wb_import_logprobs(const import_request *request, import_value *list_out) {
    static const char *const lists[] = {"output_token_logprobs",
                                        "rollout_log_probs",
                                        "generation_log_probs",
                                        "generation_logprobs",
                                        "completion_logprobs",
                                        "response_logprobs",
                                        "output_logprobs",
                                        "log_probs",
                                        "logprobs",
                                        NULL},
                             *const inner[] = {"content", "token_logprobs", "logprobs"};
    import_value v = wb_import_field(request, IMPORT_WANT_ANY, lists, NULL), list = {0};
    if (v.kind == IMPORT_LIST || v.kind == IMPORT_ARRAY) {
        *list_out = v;
        return WB_OK;
    }
    if (!may_have_no_list(v.kind))
        return wb_fail(WB_CORRUPT, "log-probabilities: expected a list, found %s",
                       wb_import_kind_name(v.kind));
    for (size_t i = 0; i < 3 && list.kind != IMPORT_LIST; i++) list = wb_import_get(&v, inner[i]);
    *list_out = list.kind == IMPORT_LIST ? list : (import_value){0};
    return WB_OK;
}

/* ---- which of a list are those of new tokens ------------------------------------------------------ */

/* Number i is `first` + i of the list, or with `padded` that at the token's place, less `first`. */
typedef struct new_part {
    size_t first;
    bool padded;
} new_part;

/* Lists are of the new tokens, of all of them (an answer that echoes its prompt), of all padded places, or
 * of the padded places of new tokens. False: of none of these. */
static bool find_part(const import_tokens *t, size_t length, new_part *part_out) {
    const size_t n_new = t->n - t->prompt_len;
    *part_out = (new_part){0, false};
    if (length == n_new) return true;
    if (!t->places) {
        part_out->first = t->prompt_len;
        return length == t->n;
    }
    *part_out = (new_part){length == t->n_padded ? 0 : t->prompt_pad, true};
    return length == t->n_padded || length == t->n_padded - t->prompt_pad;
}

static wb_status wrong_number(size_t expected, size_t found) {
    return wb_fail(WB_CORRUPT, "log-probabilities: expected %zu, one of each new token, found %zu", expected,
                   found);
}

static wb_status read_list(const import_value *list, const import_tokens *t, wb_owner *owner,
                           const float **logprobs_out) {
    const uint32_t n = t->n - t->prompt_len;
    float *logprobs = NULL;
    new_part part;
    if (!find_part(t, list->length, &part)) return wrong_number(n, list->length);
    WB_TRY(WB_OWN(owner, logprobs, n, "log-probabilities"));
    for (uint32_t i = 0; i < n; i++) {
        const size_t at = part.padded ? t->places[t->prompt_len + i] - part.first : part.first + i;
        WB_TRY(wb_import_logprob(wb_import_number(list, at), i, &logprobs[i]));
    }
    *logprobs_out = logprobs;
    return WB_OK;
}

/* What came in parts of a stream, and the last part. */
static wb_status read_parts(const import_parts *parts, const import_value *list, uint32_t n, wb_owner *owner,
                            const float **logprobs_out) {
    float *logprobs = NULL;
    if (parts->n_logprobs + list->length != n) return wrong_number(n, parts->n_logprobs + list->length);
    WB_TRY(WB_OWN(owner, logprobs, n, "log-probabilities"));
    memcpy(logprobs, parts->logprobs, parts->n_logprobs * sizeof *logprobs);
    for (size_t i = 0; i < list->length; i++)
        WB_TRY(wb_import_logprob(wb_import_number(list, i), parts->n_logprobs + i,
                                 &logprobs[parts->n_logprobs + i]));
    *logprobs_out = logprobs;
    return WB_OK;
}

wb_status wb_import_read_logprobs(const import_request *request, const import_tokens *tokens, wb_owner *owner,
                                  wb_record *record) {
    static const char *const sampling[] = {"sampling_logprobs", NULL};
    const import_value sampled = wb_import_field(request, IMPORT_WANT_ANY, sampling, NULL);
    import_value list = {0};
    const import_parts *parts = request->parts;
    const uint32_t n = tokens->n - tokens->prompt_len;
    WB_TRY(wb_import_logprobs(request, &list));
    if (sampled.kind != IMPORT_NONE && sampled.kind != IMPORT_LIST && sampled.kind != IMPORT_ARRAY)
        return wb_fail(WB_CORRUPT, "sampling_logprobs: expected a list, found %s",
                       wb_import_kind_name(sampled.kind));
    if (parts && parts->n_logprobs > 0 && list.length != n)
        WB_TRY(read_parts(parts, &list, n, owner, &record->logprobs));
    else if (list.kind != IMPORT_NONE)
        WB_TRY(read_list(&list, tokens, owner, &record->logprobs));
    if (sampled.kind != IMPORT_NONE) WB_TRY(read_list(&sampled, tokens, owner, &record->sampling_logprobs));
    return wb_import_check_pairs(request, tokens->tokens, tokens->n);
}
