/* import_record.c - see import_record.h. */
#include "import/import_record.h"
#include "import/import_logprobs.h"
#include "import/import_mask.h"
#include "import/import_names.h"
#include "import/import_numbers.h"
#include "import/import_stream.h"
#include "wb_check.h"
#include "wb_hash.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- id, group, sample ---------------------------------------------------------------------------- */

static wb_status copy_text(const char *text, size_t length, const char *suffix, wb_owner *owner,
                           const char **out) {
    char *copy = NULL;
    WB_TRY(WB_OWN(owner, copy, length + strlen(suffix) + 1, "rid"));
    memcpy(copy, text, length);
    memcpy(copy + length, suffix, strlen(suffix));
    *out = copy;
    return WB_OK;
}

wb_status wb_import_read_rid(const import_request *request, uint64_t number, wb_owner *owner,
                             const char **rid_out) {
    static const char *const rids[] = {"rid", "request_id", "id", NULL};
    char made[64], suffix[32] = "";
    const import_value text = wb_import_field(request, IMPORT_WANT_TEXT, rids, NULL),
                       value = wb_import_field(request, IMPORT_WANT_INTEGER, rids, NULL);
    const bool is_text = text.kind == IMPORT_TEXT && text.length > 0;
    /* A part of a stream has one choice of several. */
    if (request->n_choices > 1 || request->index > 0)
        snprintf(suffix, sizeof suffix, "-%" PRIu32, request->index);
    if (is_text && memchr(text.text, '\0', text.length))
        return wb_fail(WB_CORRUPT, "rid: expected text, found a NUL in it, behind which it would end");
    if (is_text) return copy_text(text.text, text.length, suffix, owner, rid_out);
    if (value.kind == IMPORT_INTEGER)
        snprintf(made, sizeof made, "%" PRId64 "%s", value.integer, suffix);
    else
        snprintf(made, sizeof made, "request-%" PRIu64, number);
    return copy_text(made, strlen(made), "", owner, rid_out);
}

/* An integer of 0..most, or -1, which is none; *number stays as it is where there is none. */
static wb_status take_number(const import_request *r, const char *name, int64_t most, uint64_t *number) {
    const char *const names[] = {name, NULL};
    const import_value v = wb_import_field(r, IMPORT_WANT_INTEGER, names, NULL);
    if (v.kind != IMPORT_INTEGER || v.integer == -1) return WB_OK;
    if (v.integer < 0 || v.integer > most)
        return wb_fail(WB_CORRUPT, "%s: expected 0..%" PRId64 ", or -1 for none, found %" PRId64, name, most,
                       v.integer);
    *number = (uint64_t)v.integer;
    return WB_OK;
}

static bool is_same(const import_value *a, const import_value *b) {
    if (a->kind != b->kind) return false;
    if (a->kind == IMPORT_INTEGER) return a->integer == b->integer;
    return a->length == b->length && memcmp(a->text, b->text, a->length) == 0;
}

/* How many requests before this one of the batch have its uid. */
static uint32_t number_in_group(const import_request *r, const import_value *uid) {
    const import_value all = wb_import_get(&r->answer, "uid");
    uint32_t n = 0;
    const bool is_batch = all.kind == IMPORT_ARRAY || all.kind == IMPORT_LIST;
    for (size_t i = 0; is_batch && i < r->batch_row && i < all.length; i++) {
        const import_value one = wb_import_number(&all, i);
        n += is_same(&one, uid);
    }
    return n;
}

/* The group of a uid that is text is 53 bits of its hash, a number that readers of JSON hold. numpy's
 * objects are pickled, and as if they were not there. */
static void take_uid(const import_request *r, wb_record *record) {
    static const char *const uids[] = {"uid", NULL};
    const import_value uid = wb_import_field(r, IMPORT_WANT_ANY, uids, NULL);
    if (uid.kind == IMPORT_TEXT)
        record->group = wb_hash64(uid.text, uid.length) >> 11;
    else if (uid.kind == IMPORT_INTEGER && uid.integer >= 0)
        record->group = (uint64_t)uid.integer;
    else
        return;
    record->sample = number_in_group(r, &uid);
}

static wb_status take_group(const import_request *r, const import_rules *rules, wb_record *record) {
    record->sample = r->index;
    if (rules->uid_is_group) take_uid(r, record);
    uint64_t sample = record->sample;
    WB_TRY(take_number(r, "group_index", INT64_MAX, &record->group));
    WB_TRY(take_number(r, "group", INT64_MAX, &record->group));
    WB_TRY(take_number(r, "sample", UINT32_MAX, &sample));
    record->sample = (uint32_t)sample;
    return WB_OK;
}

/* ---- how it ended --------------------------------------------------------------------------------- */

wb_finish wb_import_finish(const import_request *r) {
    static const struct {
        const char *word;
        wb_finish finish;
    } words[] = {{"stop", WB_FINISH_STOP},       {"eos", WB_FINISH_STOP},
                 {"completed", WB_FINISH_STOP},  {"tool_calls", WB_FINISH_STOP},
                 {"length", WB_FINISH_LENGTH},   {"truncated", WB_FINISH_LENGTH},
                 {"abort", WB_FINISH_ABORT},     {"aborted", WB_FINISH_ABORT},
                 {"cancelled", WB_FINISH_ABORT}, {"failed", WB_FINISH_ABORT}};
    import_value reason = wb_import_field(r, IMPORT_WANT_NO_SWITCH, wb_import_finish_names, NULL);
    if (reason.kind == IMPORT_MAP)
        reason = wb_import_get(&reason, "type"); /* SGLang: {"type": "stop", "matched": 7} */
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (wb_import_is_text(&reason, words[i].word)) return words[i].finish;
    return r->parts ? r->parts->finish : WB_FINISH_NONE;
}

/* The choice's own field, or the answer's: what a map inside of them says is of something else. */
static import_value outer_field(const import_request *r, const char *name) {
    const import_value own = wb_import_get(&r->choice, name);
    return own.kind != IMPORT_NONE ? own : wb_import_get(&r->answer, name);
}

/* Whether there is anything to take: routes, or new tokens by any name. */
static bool has_tokens(const import_request *r) {
    static const char *const others[] = {"output_token_logprobs", "tokens", "all_token_ids", NULL};
    return wb_import_field(r, IMPORT_WANT_ANY, wb_import_route_names, NULL).kind != IMPORT_NONE ||
           wb_import_field(r, IMPORT_WANT_NUMBERS, wb_import_output_names, NULL).kind != IMPORT_NONE ||
           wb_import_field(r, IMPORT_WANT_ANY, others, NULL).kind != IMPORT_NONE;
}

wb_status wb_import_check_error(const import_request *r) {
    static const char *const messages[] = {"message", NULL};
    const import_value error = outer_field(r, "error"), object = outer_field(r, "object");
    const bool has_error = (error.kind == IMPORT_MAP || error.kind == IMPORT_TEXT) && error.length > 0;
    if (!has_error && !wb_import_is_text(&object, "error")) return WB_OK;
    if (wb_import_finish(r) == WB_FINISH_ABORT || has_tokens(r)) return WB_OK;
    const import_value said =
        error.kind == IMPORT_TEXT ? error : wb_import_field(r, IMPORT_WANT_TEXT, messages, NULL);
    const int length = said.length < 200 ? (int)said.length : 200;
    return wb_fail(WB_NOT_FOUND, "expected an answer, found an error: %.*s",
                   said.kind == IMPORT_TEXT ? length : 7, said.kind == IMPORT_TEXT ? said.text : "no text");
}

/* ---- weight versions ------------------------------------------------------------------------------ */

/* A version is a number, or text that is one: engines call what they cannot count "default". */
static bool version_of(const import_value *v, uint64_t *version_out) {
    char text[24], *end = NULL;
    if (v->kind == IMPORT_INTEGER && v->integer >= 0) {
        *version_out = (uint64_t)v->integer;
        return true;
    }
    if (v->kind != IMPORT_TEXT || v->length == 0 || v->length > 19) return false;
    memcpy(text, v->text, v->length);
    text[v->length] = '\0';
    if (text[0] < '0' || text[0] > '9') return false;
    *version_out = strtoull(text, &end, 10);
    return *end == '\0';
}

/* Number k of a member [start, end, version], of a list or a row of an array; kind NONE: it has no such
 * shape. */
static import_value part_of_span(const import_value *list, size_t i, size_t k) {
    import_value span = {0};
    if (list->kind == IMPORT_LIST) {
        span = wb_import_at(list, i);
    } else if (list->array.n_dims == 2) {
        const import_array row = wb_import_part(&list->array, i);
        span = wb_import_of_array(&row);
    }
    const bool is_one = (span.kind == IMPORT_LIST || span.kind == IMPORT_ARRAY) && span.length == 3;
    return is_one ? wb_import_number(&span, k) : (import_value){0};
}

static bool is_position(const import_value *v) {
    return v->kind == IMPORT_INTEGER && v->integer >= 0 && v->integer <= UINT32_MAX;
}

static wb_status read_spans(const import_value *list, wb_owner *owner, wb_record *record) {
    wb_span *spans = NULL;
    WB_TRY(WB_OWN(owner, spans, list->length, "spans"));
    for (size_t i = 0; i < list->length; i++) {
        const import_value start = part_of_span(list, i, 0), end = part_of_span(list, i, 1),
                           version = part_of_span(list, i, 2);
        if (!is_position(&start) || !is_position(&end) || !version_of(&version, &spans[i].weight_version))
            return wb_fail(WB_CORRUPT, "spans[%zu]: expected [start, end, weight version]", i);
        spans[i].start = (uint32_t)start.integer;
        spans[i].end = (uint32_t)end.integer;
    }
    record->spans = spans;
    record->n_spans = (uint32_t)list->length;
    return WB_OK;
}

/* *is_known_out false: a version that is not counted, "default" or, in a batch of arrays, -1. */
static wb_status read_version(const import_value *v, uint64_t *version_out, bool *is_known_out) {
    *is_known_out = version_of(v, version_out);
    if (*is_known_out || v->kind == IMPORT_TEXT || (v->kind == IMPORT_INTEGER && v->integer == -1))
        return WB_OK;
    if (v->kind == IMPORT_INTEGER)
        return wb_fail(WB_CORRUPT, "weight_version: expected a number of at least 0, found %" PRId64,
                       v->integer);
    return wb_fail(WB_CORRUPT, "weight_version: expected an integer, or text, found %s",
                   wb_import_kind_name(v->kind));
}

/* A list has the versions of the turns, or of the parts, of a text, without their places: only where all are
 * one is it known which tokens had it. */
static wb_status one_version(const import_value *v, uint64_t *version_out, bool *is_known_out) {
    if (v->kind != IMPORT_LIST && v->kind != IMPORT_ARRAY) return read_version(v, version_out, is_known_out);
    for (size_t i = 0; i < v->length; i++) {
        const import_value member = wb_import_number(v, i);
        uint64_t version = 0;
        bool is_known = false;
        WB_TRY(read_version(&member, &version, &is_known));
        if (i > 0 && (is_known != *is_known_out || version != *version_out))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "weight_versions: expected one of all tokens, or spans, which say where each "
                           "begins; found others from number %zu on",
                           i);
        *version_out = version;
        *is_known_out = is_known;
    }
    return WB_OK;
}

static wb_status take_spans(const import_request *r, wb_owner *owner, wb_record *record) {
    static const char *const spans[] = {"spans", NULL}, *const versions[] = {"weight_version",
                                                                             "weight_versions", NULL};
    const import_value list = wb_import_field(r, IMPORT_WANT_ANY, spans, NULL),
                       version = wb_import_field(r, IMPORT_WANT_ANY, versions, NULL);
    uint64_t number = 0;
    bool is_known = false;
    wb_span *span = NULL;
    if (list.kind == IMPORT_LIST || list.kind == IMPORT_ARRAY) return read_spans(&list, owner, record);
    if (list.kind != IMPORT_NONE)
        return wb_fail(WB_CORRUPT, "spans: expected a list, found %s", wb_import_kind_name(list.kind));
    if (version.kind != IMPORT_NONE) WB_TRY(one_version(&version, &number, &is_known));
    if (record->n_tokens == 0 || !is_known) return WB_OK;
    WB_TRY(WB_OWN(owner, span, 1, "spans"));
    *span = (wb_span){0, record->n_tokens, number};
    record->spans = span;
    record->n_spans = 1;
    return WB_OK;
}

/* ---- how it was sampled --------------------------------------------------------------------------- */

/* What is not a number would be as if it were not there, and the tokens as if of another distribution. Tables
 * make 50.0 of 50. */
static wb_status check_setting(const char *name, import_value *v, bool may_be_real) {
    if (v->kind == IMPORT_NONE || v->kind == IMPORT_INTEGER || (may_be_real && v->kind == IMPORT_REAL))
        return WB_OK;
    if (v->kind == IMPORT_REAL && v->real == floor(v->real) && fabs(v->real) <= UINT32_MAX) {
        v->integer = (int64_t)v->real;
        return WB_OK;
    }
    return wb_fail(WB_CORRUPT, "sampling %s: expected %s, found %s", name,
                   may_be_real ? "a number" : "an integer", wb_import_kind_name(v->kind));
}

static wb_status take_sampling(const import_request *r, wb_owner *owner, wb_record *record) {
    static const char *const names[] = {"sampling", NULL};
    const import_value map = wb_import_field(r, IMPORT_WANT_ANY, names, NULL);
    import_value temperature = wb_import_get(&map, "temperature"), top_k = wb_import_get(&map, "top_k"),
                 top_p = wb_import_get(&map, "top_p");
    wb_sampling *sampling = NULL;
    WB_TRY(check_setting("temperature", &temperature, true));
    WB_TRY(check_setting("top_k", &top_k, false));
    WB_TRY(check_setting("top_p", &top_p, true));
    if (temperature.kind == IMPORT_NONE) return WB_OK;
    if (top_k.integer > UINT32_MAX)
        return wb_fail(WB_CORRUPT, "sampling top_k: expected at most %" PRIu32 ", found %" PRId64, UINT32_MAX,
                       top_k.integer);
    WB_TRY(WB_OWN(owner, sampling, 1, "sampling"));
    sampling->temperature = (float)temperature.real;
    sampling->top_p = top_p.kind == IMPORT_NONE ? 1 : (float)top_p.real;
    sampling->top_k = top_k.integer > 0 ? (uint32_t)top_k.integer : 0; /* engines have -1 for all, too */
    record->sampling = sampling;
    return WB_OK;
}

wb_status wb_import_read_extras(const import_request *request, const import_rules *rules,
                                const import_tokens *tokens, wb_owner *owner, wb_record *record) {
    WB_TRY(take_group(request, rules, record));
    record->finish = wb_import_finish(request);
    WB_TRY(wb_import_read_logprobs(request, tokens, owner, record));
    WB_TRY(take_spans(request, owner, record));
    WB_TRY(take_sampling(request, owner, record));
    return wb_import_read_mask(request, owner, record);
}
