/* import_logprobs.c - see import_logprobs.h. */
#include "import/import_logprobs.h"
#include "import/import_stream.h"
#include "wb_check.h"

#include <inttypes.h>
#include <string.h>

bool wb_import_logprob(import_value value, float *logprob_out) {
    if (value.kind == IMPORT_LIST && value.length > 0) value = wb_import_at(&value, 0);
    if (value.kind == IMPORT_MAP) value = wb_import_get(&value, "logprob");
    if (value.kind != IMPORT_REAL && value.kind != IMPORT_INTEGER) return false;
    *logprob_out = (float)value.real;
    return true;
}

/* OpenAI's `logprobs` is a map whose `content` or `token_logprobs` is the list. */
import_value wb_import_logprobs(const import_request *request) {
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
    if (v.kind == IMPORT_LIST || v.kind == IMPORT_ARRAY) return v;
    for (size_t i = 0; i < 3 && list.kind != IMPORT_LIST; i++) list = wb_import_get(&v, inner[i]);
    return list.kind == IMPORT_LIST ? list : (import_value){0};
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
        if (!wb_import_logprob(wb_import_number(list, at), &logprobs[i]))
            return wb_fail(WB_CORRUPT,
                           "log-probabilities: expected a number for new token %" PRIu32 ", found none", i);
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
        if (!wb_import_logprob(wb_import_number(list, i), &logprobs[parts->n_logprobs + i]))
            return wb_fail(WB_CORRUPT, "log-probabilities[%zu]: expected a number", i);
    *logprobs_out = logprobs;
    return WB_OK;
}

wb_status wb_import_read_logprobs(const import_request *request, const import_tokens *tokens, wb_owner *owner,
                                  wb_record *record) {
    static const char *const sampling[] = {"sampling_logprobs", NULL};
    const import_value list = wb_import_logprobs(request),
                       sampled = wb_import_field(request, IMPORT_WANT_LIST, sampling, NULL);
    const import_parts *parts = request->parts;
    const uint32_t n = tokens->n - tokens->prompt_len;
    if (parts && parts->n_logprobs > 0 && list.length != n)
        WB_TRY(read_parts(parts, &list, n, owner, &record->logprobs));
    else if (list.kind != IMPORT_NONE)
        WB_TRY(read_list(&list, tokens, owner, &record->logprobs));
    if (sampled.kind != IMPORT_NONE) WB_TRY(read_list(&sampled, tokens, owner, &record->sampling_logprobs));
    return WB_OK;
}
