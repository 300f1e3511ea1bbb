/* import_stream.c - see import_stream.h. */
#include "import/import_stream.h"
#include "import/import_logprobs.h"
#include "import/import_names.h"
#include "import/import_numbers.h"
#include "import/import_record.h"
#include "import/import_tokens.h"
#include "wb_check.h"

#include <stdlib.h>
#include <string.h>

void wb_import_parts_free(import_parts *parts) {
    if (!parts) return;
    free(parts->rid);
    free(parts->prompt);
    free(parts->ids);
    free(parts->logprobs);
    free(parts);
}

void wb_import_stream_close(import_stream *stream) {
    while (stream->first) {
        import_parts *parts = stream->first;
        stream->first = parts->next;
        wb_import_parts_free(parts);
    }
}

static bool ends_with(const import_value *text, const char *end) {
    const size_t n = strlen(end);
    return text->kind == IMPORT_TEXT && text->length >= n &&
           memcmp(text->text + text->length - n, end, n) == 0;
}

bool wb_import_is_part(const import_request *r, bool of_events) {
    static const char *const objects[] = {"object", NULL}, *const metas[] = {"meta_info", NULL};
    if (wb_import_field(r, IMPORT_WANT_ANY, wb_import_route_names, NULL).kind != IMPORT_NONE) return false;
    const import_value object = wb_import_field(r, IMPORT_WANT_TEXT, objects, NULL);
    if (of_events || ends_with(&object, ".chunk")) return true;
    const bool may_go_on =
        r->choice.kind == IMPORT_MAP || wb_import_field(r, IMPORT_WANT_ANY, metas, NULL).kind == IMPORT_MAP;
    if (!may_go_on) return false;
    return wb_import_field(r, IMPORT_WANT_NO_SWITCH, wb_import_finish_names, NULL).kind == IMPORT_NONE;
}

/* ---- adding --------------------------------------------------------------------------------------- */

static import_parts **find(import_stream *stream, const char *rid) {
    import_parts **at = &stream->first;
    while (*at && strcmp((*at)->rid, rid) != 0) at = &(*at)->next;
    return at;
}

static wb_status append_u32(const import_value *list, const char *what, uint32_t **numbers, size_t *n,
                            size_t *room) {
    wb_owner memory = {0};
    uint32_t *more = NULL;
    wb_status status = wb_import_u32(list, what, &memory, &more);
    if (status == WB_OK) status = WB_GROW(*numbers, *n + list->length, room, what);
    if (status == WB_OK && list->length > 0) memcpy(*numbers + *n, more, list->length * sizeof **numbers);
    if (status == WB_OK) *n += list->length;
    wb_owner_close(&memory);
    return status;
}

static wb_status append_logprobs(const import_logprobs *list, import_parts *p) {
    const size_t n = list->numbers.length;
    WB_TRY(WB_GROW(p->logprobs, p->n_logprobs + n, &p->logprobs_room, "log-probabilities"));
    for (size_t i = 0; i < n; i++, p->n_logprobs++)
        WB_TRY(wb_import_logprob(list, i, p->n_logprobs,
                                 p->n_logprobs < p->n_ids ? &p->ids[p->n_logprobs] : NULL,
                                 &p->logprobs[p->n_logprobs]));
    return WB_OK;
}

/* Where the part says how many new tokens there are so far and has as many, it has all of them. */
static wb_status add_new(const import_request *r, import_parts *p) {
    const import_value ids = wb_import_field(r, IMPORT_WANT_NUMBERS, wb_import_output_names, NULL);
    import_logprobs logprobs = {0};
    WB_TRY(wb_import_find_logprobs(r, &logprobs));
    if (wb_import_has_all_so_far(r, ids.length)) p->n_ids = p->n_logprobs = 0;
    if (ids.kind != IMPORT_NONE) WB_TRY(append_u32(&ids, "new tokens", &p->ids, &p->n_ids, &p->ids_room));
    if (logprobs.numbers.kind != IMPORT_NONE) WB_TRY(append_logprobs(&logprobs, p));
    return wb_import_check_pairs(r, p->ids, p->n_ids);
}

static wb_status add(const import_request *r, import_parts *p) {
    const import_value prompt = wb_import_field(r, IMPORT_WANT_NUMBERS, wb_import_prompt_names, NULL);
    const wb_finish finish = wb_import_finish(r);
    if (finish != WB_FINISH_NONE) p->finish = finish;
    if (prompt.kind != IMPORT_NONE && p->n_prompt == 0)
        WB_TRY(append_u32(&prompt, "prompt tokens", &p->prompt, &p->n_prompt, &p->prompt_room));
    return add_new(r, p);
}

/* A part that says nothing, as the last one of some streams, which has no choice any more, is no request. */
static bool says_nothing(const import_request *r) {
    return wb_import_field(r, IMPORT_WANT_NUMBERS, wb_import_output_names, NULL).kind == IMPORT_NONE &&
           wb_import_field(r, IMPORT_WANT_NUMBERS, wb_import_prompt_names, NULL).kind == IMPORT_NONE &&
           r->choice.kind == IMPORT_NONE;
}

wb_status wb_import_stream_add(import_stream *stream, const import_request *request, const char *rid) {
    import_parts **at = find(stream, rid), *fresh = NULL;
    if (*at) return add(request, *at);
    if (says_nothing(request)) return WB_OK;
    WB_TRY(WB_NEW(fresh, 1, "stream"));
    wb_status status = WB_NEW(fresh->rid, strlen(rid) + 1, "stream");
    if (status == WB_OK) {
        memcpy(fresh->rid, rid, strlen(rid));
        status = add(request, fresh);
    }
    if (status != WB_OK) {
        wb_import_parts_free(fresh);
        return status;
    }
    *at = fresh;
    return WB_OK;
}

import_parts *wb_import_stream_take(import_stream *stream, const char *rid) {
    import_parts **at = find(stream, rid), *parts = *at;
    if (parts) *at = parts->next;
    return parts;
}
