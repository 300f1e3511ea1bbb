/* import.c - see wb_import.h: from documents to requests, and from a request to a record. */
#include "import/import_indexer.h"
#include "import/import_record.h"
#include "import/import_routes.h"
#include "import/import_source.h"
#include "import/import_spread.h"
#include "import/import_stream.h"
#include "import/wb_import.h"
#include "wb_check.h"
#include "wb_hash.h"
#include "wb_route_model.h"
#include "wb_string_table.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct wb_import {
    const char *name;
    wb_route_model model;
    uint32_t vocab_size; /* 0: not known */
    const import_rules *rules;
    import_source source;
    import_spread spread;
    import_stream stream;
    uint64_t indexers_left_out;
    uint64_t requests, groups; /* that were begun; a group is an answer with its choices, or a request */
    bool has_group;            /* the document has begun one */
    /* Of the first choice of an answer: digests of the tokens that were fed and of its rows; 0: none. */
    uint64_t fed, rows;
    wb_string_table rids;            /* of the records given out: numbers of their requests */
    wb_owner memory, request_memory; /* of the import, and of the record given out */
};

/* ---- open and close ------------------------------------------------------------------------------- */

/* Arrays have the most choices of any layer in each; -1 stands behind those of a layer that has fewer. */
static wb_status check_choices(const wb_import *import, const char *name, const wb_route_model *model) {
    uint32_t l = 0;
    if (!model->layer_top_k || import->rules->minus_one_is_missing) return WB_OK;
    while (model->layer_top_k[l] == model->top_k) l++;
    return wb_fail(WB_UNSUPPORTED,
                   "%s: MoE layer %" PRIu32 " (model layer %" PRIu32 ") has %" PRIu32
                   " choices and others up to %" PRIu32 ": the layout has nothing to stand for the rest",
                   name, l, model->moe_layers[l], model->layer_top_k[l], model->top_k);
}

static wb_status copy_arguments(wb_import *import, const char *name, const wb_route_model *model) {
    char *text = NULL;
    WB_TRY(wb_route_model_check(model));
    WB_TRY(check_choices(import, name, model));
    WB_TRY(WB_OWN(&import->memory, text, strlen(name) + 1, name));
    memcpy(text, name, strlen(name));
    import->name = text;
    return wb_route_model_copy(&import->memory, model, name, &import->model);
}

wb_status wb_import_open(const char *name, const void *bytes, size_t size, wb_import_layout layout,
                         const wb_route_model *model, wb_import **import_out) {
    wb_import *import = NULL;
    const import_rules *rules = wb_import_rules(layout);
    if (!rules) return wb_fail(WB_INVALID_ARGUMENT, "%s: layout %d is none", name, (int)layout);
    WB_TRY(WB_NEW(import, 1, name));
    import->rules = rules;
    wb_status status = copy_arguments(import, name, model);
    if (status == WB_OK) {
        status = wb_import_source_open(bytes, size, &import->source);
        if (status != WB_OK) wb_fail_context(status, "%s", name);
    }
    if (status != WB_OK) {
        wb_owner_close(&import->memory);
        free(import);
        return status;
    }
    *import_out = import;
    return WB_OK;
}

void wb_import_close(wb_import *import) {
    if (!import) return;
    wb_import_stream_close(&import->stream);
    wb_import_source_close(&import->source);
    wb_string_table_free(&import->rids);
    wb_owner_close(&import->request_memory);
    wb_owner_close(&import->memory);
    free(import);
}

void wb_import_set_vocab_size(wb_import *import, uint32_t vocab_size) {
    import->vocab_size = vocab_size;
}

/* ---- a request as a record ------------------------------------------------------------------------ */

/* Rows of one choice at another whose tokens are others: some servers repeat those of the first. */
static wb_status check_copies(wb_import *import, const import_request *r, const import_tokens *t,
                              const import_rows *rows) {
    const uint32_t fed = rows->start + rows->rows;
    const uint64_t tokens = wb_tokens_digest(t->tokens, fed),
                   ids = wb_hash64(rows->ids, rows->rows * wb_route_row_bytes(&import->model));
    if (import->spread.next <= 1) {
        import->fed = tokens;
        import->rows = ids;
        return WB_OK;
    }
    if (r->n_choices < 2 || fed <= t->prompt_len || ids != import->rows || tokens == import->fed)
        return WB_OK;
    return wb_fail(
        WB_INVALID_ARGUMENT,
        "expected routes of this choice, found those of the first once more, whose tokens are others");
}

static wb_status take_routes(wb_import *import, const import_request *r, const import_tokens *t,
                             wb_record *record) {
    wb_owner *owner = &import->request_memory;
    wb_route_rows *run = NULL;
    import_rows rows;
    bool found = false;
    WB_TRY(wb_import_read_routes(r, import->rules, &import->model, t, owner, &rows, &found));
    if (!found && record->finish == WB_FINISH_ABORT) return WB_OK;
    if (!found) return wb_fail(WB_NOT_FOUND, "expected routes, found none");
    if (rows.rows == 0) return WB_OK;
    WB_TRY(check_copies(import, r, t, &rows));
    WB_TRY(WB_OWN(owner, run, 1, "routes"));
    *run = (wb_route_rows){rows.start, rows.rows, rows.ids, rows.missing > 0 ? rows.valid : NULL};
    record->n_routes = 1;
    record->routes = run;
    return WB_OK;
}

/* Rows belong to a request id: two records that have the same one would be mistaken for each other. */
static wb_status take_rid(wb_import *import, const char *rid) {
    const size_t length = strlen(rid);
    uint64_t before = 0;
    if (wb_string_table_find(&import->rids, rid, length, &before))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "expected an id of its own, found that of an earlier request, number %" PRIu64,
                       before);
    return wb_string_table_add(&import->rids, rid, length, import->rids.count, NULL);
}

static wb_status read_record(wb_import *import, const import_request *r, const char *rid,
                             wb_record *record_out) {
    wb_owner *owner = &import->request_memory;
    import_tokens t;
    WB_TRY(wb_import_has_tokens(import) ? wb_import_read_tokens(r, import->rules, owner, &t)
                                        : wb_import_unknown_tokens(r, owner, &t));
    wb_record record = {.rid = rid,
                        .group = import->groups - 1,
                        .n_tokens = t.n,
                        .prompt_len = t.prompt_len,
                        .tokens = t.tokens};
    WB_TRY(wb_import_read_extras(r, import->rules, &t, owner, &record));
    WB_TRY(take_routes(import, r, &t, &record));
    const uint32_t start = record.n_routes > 0 ? record.routes[0].start : 0;
    bool left_out = false;
    WB_TRY(wb_import_read_indexer(r, &import->model, &t, start, owner, &record, &left_out));
    WB_TRY(wb_record_check(&import->model, &record, true));
    WB_TRY(wb_record_check_vocabulary(&record, import->vocab_size));
    WB_TRY(take_rid(import, rid));
    import->indexers_left_out += left_out;
    *record_out = record;
    return WB_OK;
}

/* Where the request stands and what it is called, before the message. */
static wb_status refuse(const wb_import *import, wb_status status, const char *rid) {
    const char *where = import->source.where;
    return wb_fail_context(status, "%s%s%s: request %s", import->name, where[0] ? ": " : "", where, rid);
}

/* *found_out false: it is a part of a stream, of which more follow. */
static wb_status read_request(wb_import *import, import_request *r, wb_record *record_out, bool *found_out) {
    const char *rid = NULL;
    wb_status status = wb_import_read_rid(r, import->requests, &import->request_memory, &rid);
    if (status == WB_OK) status = wb_import_check_error(r);
    *found_out = status == WB_OK && !wb_import_is_part(r, import->source.form == IMPORT_EVENTS);
    if (status == WB_OK && !*found_out) status = wb_import_stream_add(&import->stream, r, rid);
    if (*found_out) {
        import->groups += r->n_choices < 2 || !import->has_group;
        import->has_group = true;
        import_parts *parts = wb_import_stream_take(&import->stream, rid);
        import->requests++;
        r->parts = parts;
        status = read_record(import, r, rid, record_out);
        wb_import_parts_free(parts);
    }
    return status == WB_OK ? WB_OK : refuse(import, status, rid ? rid : "without an id");
}

/* The next request of the document, then those of the next one. *found_out false: there is none left. */
static wb_status next_request(wb_import *import, import_request *request_out, bool *found_out) {
    import_value document;
    while (!wb_import_spread_next(&import->spread, request_out)) {
        const wb_status status = wb_import_source_next(&import->source, &document, found_out);
        if (status != WB_OK) return wb_fail_context(status, "%s", import->name);
        if (!*found_out) return WB_OK;
        if (document.kind != IMPORT_MAP)
            return wb_fail(WB_CORRUPT, "%s: %s: expected a map, found %s", import->name, import->source.where,
                           wb_import_kind_name(document.kind));
        import->spread = wb_import_spread_of(&document);
        import->has_group = false;
    }
    *found_out = true;
    return WB_OK;
}

static wb_status read_aborted(wb_import *import, const import_parts *parts, wb_record *record_out) {
    const import_request request = {.parts = parts, .number = -1};
    char *rid = NULL;
    import->groups++;
    WB_TRY(WB_OWN(&import->request_memory, rid, strlen(parts->rid) + 1, "rid"));
    memcpy(rid, parts->rid, strlen(parts->rid));
    return read_record(import, &request, rid, record_out);
}

/* Streams that ended without routes: of a request that was aborted there is a record of its tokens, any
 * other one is broken off. */
static wb_status next_unfinished(wb_import *import, wb_record *record_out, bool *found_out) {
    import_parts *parts = import->stream.first;
    *found_out = parts != NULL;
    if (!parts) return WB_OK;
    import->stream.first = parts->next;
    import->source.where[0] = '\0';
    wb_status status =
        parts->finish == WB_FINISH_ABORT
            ? read_aborted(import, parts, record_out)
            : wb_fail(WB_NOT_FOUND, "expected routes in the last part of its stream, found none");
    if (status != WB_OK) status = refuse(import, status, parts->rid);
    wb_import_parts_free(parts);
    return status;
}

wb_status wb_import_next(wb_import *import, wb_record *record_out, bool *found_out) {
    for (;;) {
        import_request request;
        bool found = false, is_whole = false;
        wb_owner_close(&import->request_memory);
        WB_TRY(next_request(import, &request, &found));
        if (!found) return next_unfinished(import, record_out, found_out);
        WB_TRY(read_request(import, &request, record_out, &is_whole));
        if (!is_whole) continue;
        *found_out = true;
        return WB_OK;
    }
}

bool wb_import_has_tokens(const wb_import *import) {
    return import->source.form != IMPORT_NPY;
}

uint64_t wb_import_indexers_left_out(const wb_import *import) {
    return import->indexers_left_out;
}

size_t wb_import_bytes_read(const wb_import *import) {
    const import_source *s = &import->source;
    double part = 1;
    if (s->list.kind == IMPORT_LIST)
        part = (double)s->next_item / (double)s->list.length;
    else if (s->members && import->spread.n > 0)
        part = (double)import->spread.next / (double)import->spread.n;
    return s->begin + (size_t)((double)(s->pos - s->begin) * part);
}
