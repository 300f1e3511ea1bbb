/* import_request.c - see import_request.h. */
#include "import/import_request.h"
#include "wb_check.h"

#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 5 };

static bool is_list_of_numbers(const import_value *v) {
    if (v->kind != IMPORT_LIST || v->length == 0) return v->kind == IMPORT_LIST;
    const import_value first = wb_import_at(v, 0);
    return first.kind == IMPORT_INTEGER || first.kind == IMPORT_REAL;
}

static bool is_wanted(const import_value *v, import_want want) {
    switch (want) {
    case IMPORT_WANT_NUMBERS:
        return v->kind == IMPORT_ARRAY ? v->array.n_dims == 1 : is_list_of_numbers(v);
    case IMPORT_WANT_INTEGER:
        return v->kind == IMPORT_INTEGER;
    case IMPORT_WANT_TEXT:
        return v->kind == IMPORT_TEXT;
    case IMPORT_WANT_LIST:
        return v->kind == IMPORT_LIST || v->kind == IMPORT_ARRAY;
    case IMPORT_WANT_NO_SWITCH:
        return v->kind != IMPORT_NONE && v->kind != IMPORT_BOOL && v->kind != IMPORT_INTEGER;
    default:
        return v->kind != IMPORT_NONE;
    }
}

/* The request's own part of an array or a list that has one for each request of the batch. */
static import_value own_part(const import_request *r, import_value v) {
    if (r->n_batch > 0 && v.kind == IMPORT_LIST && v.length == r->n_batch)
        return wb_import_at(&v, r->batch_row);
    if (r->n_batch == 0 || v.kind != IMPORT_ARRAY || v.array.shape[0] != r->n_batch) return v;
    const import_array part = wb_import_part(&v.array, r->batch_row);
    return wb_import_of_array(&part);
}

/* The key's value; of numbered fields that of "<key>_<number>". */
static import_value get_numbered(const import_request *r, const import_value *map, const char *key) {
    char name[64];
    if (r->number < 0) return wb_import_get(map, key);
    snprintf(name, sizeof name, "%s_%d", key, r->number);
    return wb_import_get(map, name);
}

/* In maps that lie `depth` maps deep in this one. */
static import_value find_at(const import_request *r, const import_value *map, int depth, import_want want,
                            const char *const *names) {
    import_value found = {0};
    for (; depth == 0 && *names; names++) {
        found = own_part(r, get_numbered(r, map, *names));
        if (found.kind != IMPORT_NONE && is_wanted(&found, want)) return found;
    }
    found = (import_value){0};
    import_place place = {0};
    import_value inner;
    while (depth > 0 && found.kind == IMPORT_NONE && wb_import_next_value(map, &place, &inner))
        if (inner.kind == IMPORT_MAP) found = find_at(r, &inner, depth - 1, want, names);
    return found;
}

static import_value find_in(const import_request *r, const import_value *map, import_want want,
                            const char *const *names) {
    import_value found = {0};
    for (int depth = 0; depth < MAX_DEPTH && found.kind == IMPORT_NONE; depth++)
        found = find_at(r, map, depth, want, names);
    return found;
}

import_value wb_import_field(const import_request *request, import_want want, const char *const *names,
                             bool *in_answer_out) {
    import_value found = find_in(request, &request->choice, want, names);
    const bool in_answer = found.kind == IMPORT_NONE;
    if (in_answer) found = find_in(request, &request->answer, want, names);
    if (in_answer_out) *in_answer_out = in_answer;
    return found;
}

static void say_kind(const char *name, const import_value *v, char text_out[IMPORT_FOUND_MAX]) {
    const import_value first =
        v->kind == IMPORT_LIST && v->length > 0 ? wb_import_at(v, 0) : (import_value){0};
    if (v->kind == IMPORT_ARRAY)
        snprintf(text_out, IMPORT_FOUND_MAX, "%s: an array of %u dimensions", name, v->array.n_dims);
    else if (v->kind == IMPORT_LIST && v->length > 0)
        snprintf(text_out, IMPORT_FOUND_MAX, "%s: a list that begins with %s", name,
                 wb_import_kind_name(first.kind));
    else
        snprintf(text_out, IMPORT_FOUND_MAX, "%s: %s", name, wb_import_kind_name(v->kind));
}

void wb_import_say_found(const import_request *request, const char *const *names,
                         char text_out[IMPORT_FOUND_MAX]) {
    snprintf(text_out, IMPORT_FOUND_MAX, "nothing");
    for (; *names; names++) {
        const char *const one[] = {*names, NULL};
        const import_value v = wb_import_field(request, IMPORT_WANT_ANY, one, NULL);
        if (v.kind == IMPORT_NONE || v.kind == IMPORT_INTEGER || v.kind == IMPORT_REAL) continue;
        say_kind(*names, &v, text_out);
        return;
    }
}

wb_status wb_import_integer_field(const import_request *request, const char *const *names,
                                  import_value *value_out) {
    import_value found = {0};
    for (; *names && found.kind == IMPORT_NONE; names++) {
        const char *const one[] = {*names, NULL};
        found = wb_import_field(request, IMPORT_WANT_ANY, one, NULL);
        if (found.kind != IMPORT_NONE && found.kind != IMPORT_INTEGER)
            return wb_fail(WB_CORRUPT, "%s: expected an integer, found %s", *names,
                           wb_import_kind_name(found.kind));
    }
    *value_out = found;
    return WB_OK;
}
