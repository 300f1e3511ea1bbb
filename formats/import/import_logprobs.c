/* import_logprobs.c - see import_logprobs.h. */
#include "import/import_logprobs.h"
#include "import/import_numbers.h"
#include "import/import_stream.h"
#include "wb_check.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* What rounding leaves of a probability of one: engines compute it in bf16 or in f32. */
static const float max_logprob = 1e-3f;

/* A name that is a number differs from the token's. Any other is text, which needs a tokenizer. */
static bool is_of_another(const import_value *name, uint32_t token) {
    static const char mark[] = "token_id:";
    char own[sizeof mark + 10];
    snprintf(own, sizeof own, "%s%" PRIu32, mark, token);
    return name->kind == IMPORT_TEXT && name->length >= sizeof mark - 1 &&
           memcmp(name->text, mark, sizeof mark - 1) == 0 && !wb_import_is_text(name, own);
}

static wb_status check_name(const import_logprobs *list, size_t at, const import_value *value, size_t i,
                            uint32_t token) {
    import_value name = wb_import_get(value, "token");
    if (name.kind == IMPORT_NONE && at < list->names.length) name = wb_import_at(&list->names, at);
    if (!is_of_another(&name, token)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "log-probabilities: new token %zu: expected that of token %" PRIu32 ", found of \"%.*s\"",
                   i, token, name.length < 40 ? (int)name.length : 40, name.text);
}

/* vLLM in one process has a map for each token, of all whose log-probability was asked for. */
static wb_status choose_own(import_value *value, size_t i, uint32_t token) {
    char own[12];
    snprintf(own, sizeof own, "%" PRIu32, token);
    const import_value found = wb_import_get(value, own);
    if (found.kind == IMPORT_NONE)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "log-probabilities: new token %zu: expected \"logprob\" or \"%s\", its token, among the "
            "keys of a map, found neither",
            i, own);
    *value = found;
    return WB_OK;
}

wb_status wb_import_logprob(const import_logprobs *list, size_t at, size_t i, const uint32_t *token,
                            float *logprob_out) {
    import_value value = wb_import_number(&list->numbers, at);
    if (token) WB_TRY(check_name(list, at, &value, i, *token));
    if (token && value.kind == IMPORT_MAP && wb_import_get(&value, "logprob").kind == IMPORT_NONE)
        WB_TRY(choose_own(&value, i, *token));
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

static bool is_list(const import_value *v) {
    return v->kind == IMPORT_LIST || v->kind == IMPORT_ARRAY;
}

/* OpenAI's `logprobs` is a map whose `content` or `token_logprobs` is the list; beside the latter `tokens`
 * has the names. A request that came with its answer has a `logprobs` too: whether, or how many, are
 * wanted. */
wb_status wb_import_find_logprobs(const import_request *request, import_logprobs *list_out) {
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
    const import_value v = wb_import_field(request, IMPORT_WANT_NO_SWITCH, lists, NULL);
    import_logprobs list = {.numbers = v};
    if (v.kind != IMPORT_NONE && v.kind != IMPORT_MAP && !is_list(&v))
        return wb_fail(WB_CORRUPT, "log-probabilities: expected a list, found %s",
                       wb_import_kind_name(v.kind));
    for (size_t i = 0; v.kind == IMPORT_MAP && i < 3 && list.numbers.kind != IMPORT_LIST; i++) {
        list.numbers = wb_import_get(&v, inner[i]);
        list.names = wb_import_get(&v, "tokens");
    }
    if (!is_list(&list.numbers) || list.numbers.length == 0) list.numbers = (import_value){0};
    if (list.names.kind != IMPORT_LIST) list.names = (import_value){0};
    *list_out = list;
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

static wb_status read_list(const import_logprobs *list, const import_tokens *t, wb_owner *owner,
                           const float **logprobs_out) {
    const uint32_t n = t->n - t->prompt_len;
    float *logprobs = NULL;
    new_part part;
    if (!find_part(t, list->numbers.length, &part)) return wrong_number(n, list->numbers.length);
    WB_TRY(WB_OWN(owner, logprobs, n, "log-probabilities"));
    for (uint32_t i = 0; i < n; i++) {
        const size_t at = part.padded ? t->places[t->prompt_len + i] - part.first : part.first + i;
        WB_TRY(wb_import_logprob(list, at, i, &t->tokens[t->prompt_len + i], &logprobs[i]));
    }
    *logprobs_out = logprobs;
    return WB_OK;
}

/* What came in parts of a stream, and the last part. */
static wb_status read_parts(const import_parts *parts, const import_logprobs *list, const import_tokens *t,
                            wb_owner *owner, const float **logprobs_out) {
    const size_t n = t->n - t->prompt_len, before = parts->n_logprobs;
    float *logprobs = NULL;
    if (before + list->numbers.length != n) return wrong_number(n, before + list->numbers.length);
    WB_TRY(WB_OWN(owner, logprobs, n, "log-probabilities"));
    memcpy(logprobs, parts->logprobs, before * sizeof *logprobs);
    for (size_t i = before; i < n; i++)
        WB_TRY(wb_import_logprob(list, i - before, i, &t->tokens[t->prompt_len + i], &logprobs[i]));
    *logprobs_out = logprobs;
    return WB_OK;
}

wb_status wb_import_read_logprobs(const import_request *request, const import_tokens *tokens, wb_owner *owner,
                                  wb_record *record) {
    static const char *const sampling[] = {"sampling_logprobs", NULL};
    const import_logprobs sampled = {.numbers = wb_import_field(request, IMPORT_WANT_ANY, sampling, NULL)};
    import_logprobs list = {0};
    const import_parts *parts = request->parts;
    WB_TRY(wb_import_find_logprobs(request, &list));
    if (sampled.numbers.kind != IMPORT_NONE && !is_list(&sampled.numbers))
        return wb_fail(WB_CORRUPT, "sampling_logprobs: expected a list, found %s",
                       wb_import_kind_name(sampled.numbers.kind));
    if (parts && parts->n_logprobs > 0 && list.numbers.length != tokens->n - tokens->prompt_len)
        WB_TRY(read_parts(parts, &list, tokens, owner, &record->logprobs));
    else if (list.numbers.kind != IMPORT_NONE)
        WB_TRY(read_list(&list, tokens, owner, &record->logprobs));
    if (sampled.numbers.kind != IMPORT_NONE)
        WB_TRY(read_list(&sampled, tokens, owner, &record->sampling_logprobs));
    return wb_import_check_pairs(request, tokens->tokens, tokens->n);
}
