/* import_spread.c - see import_spread.h. */
#include "import/import_spread.h"

#include <string.h>

static import_value find_choices(const import_value *document) {
    static const char *const names[] = {"choices", "outputs", NULL};
    const import_request whole = {.answer = *document, .number = -1};
    const import_value list = wb_import_field(&whole, IMPORT_WANT_LIST, names, NULL);
    if (list.kind != IMPORT_LIST || list.length == 0) return (import_value){0};
    return wb_import_at(&list, 0).kind == IMPORT_MAP ? list : (import_value){0};
}

static bool is_list_of_lists(const import_value *v) {
    if (v->kind != IMPORT_LIST || v->length == 0) return false;
    return wb_import_at(v, 0).kind == IMPORT_LIST;
}

/* A batch of arrays, or of lists: routes of four dimensions, or tokens of two. */
static size_t batch_of(const import_value *document) {
    static const char *const routes[] = {"routed_experts", "rollout_routed_experts", NULL},
                             *const tokens[] = {"input_ids", "prompts", NULL};
    for (size_t i = 0; routes[i]; i++) {
        const import_value v = wb_import_get(document, routes[i]);
        if (v.kind == IMPORT_ARRAY && v.array.n_dims == 4) return v.array.shape[0];
    }
    for (size_t i = 0; tokens[i]; i++) {
        const import_value ids = wb_import_get(document, tokens[i]);
        if (ids.kind == IMPORT_ARRAY && ids.array.n_dims == 2) return ids.array.shape[0];
        if (is_list_of_lists(&ids)) return ids.length;
    }
    return 0;
}

/* The number behind `name` that a member is called by, as printf writes it, plus one, and at most `most`; 0:
 * it is called otherwise. */
static size_t number_behind(const import_member *member, const char *name, size_t most) {
    const size_t begin = strlen(name);
    if (member->length <= begin || memcmp(member->name, name, begin) != 0) return 0;
    if (member->name[begin] == '0' && member->length > begin + 1) return 0;
    size_t number = 0;
    for (size_t i = begin; i < member->length; i++) {
        const char c = member->name[i];
        if (c < '0' || c > '9') return 0;
        if (number < most) number = 10 * number + (size_t)(c - '0');
    }
    return number < most ? number + 1 : most;
}

/* Of tokens_0, routed_experts_0, tokens_1, .. as many as the largest number says: an aborted sample has no
 * routes, and what stands behind it would be dropped without a word. A number that nothing is called by is a
 * request too, and refused. No archive has more requests than members: one that is called by a huge number
 * does not make as many. */
static size_t numbered_of(const import_value *document) {
    static const char *const names[] = {"tokens_", "routed_experts_", "rollout_routed_experts_"};
    size_t n = 0;
    for (size_t m = 0; document->members && m < document->length; m++) {
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            const size_t found = number_behind(&document->members[m], names[i], document->length);
            if (found > n) n = found;
        }
    }
    return n;
}

import_spread wb_import_spread_of(const import_value *document) {
    import_spread s = {.document = *document, .choices = find_choices(document), .n = 1};
    const size_t numbered = numbered_of(document);
    s.n_batch = batch_of(document);
    s.is_numbered = numbered > 0;
    if (s.choices.kind != IMPORT_NONE) s.n = s.choices.length;
    if (s.n_batch > 0) s.n = s.n_batch;
    if (s.is_numbered) s.n = numbered;
    return s;
}

bool wb_import_spread_next(import_spread *spread, import_request *request_out) {
    const size_t i = spread->next;
    if (i >= spread->n) return false;
    import_request r = {.answer = spread->document, .number = spread->is_numbered ? (int)i : -1};
    if (spread->n_batch > 0) {
        r.batch_row = i;
        r.n_batch = spread->n_batch;
    } else if (spread->choices.kind != IMPORT_NONE) {
        r.choice = wb_import_at(&spread->choices, i);
        r.n_choices = (uint32_t)spread->choices.length;
        const import_value index = wb_import_get(&r.choice, "index");
        const bool is_index =
            index.kind == IMPORT_INTEGER && index.integer >= 0 && index.integer < UINT32_MAX;
        r.index = is_index ? (uint32_t)index.integer : (uint32_t)i;
    }
    spread->next++;
    *request_out = r;
    return true;
}
