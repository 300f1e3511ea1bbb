/* import_routes.c - see import_routes.h: which fields the routes are in, and which rows each has to have. */
#include "import/import_routes.h"
#include "import/import_names.h"
#include "wb_check.h"

#include <inttypes.h>
#include <string.h>

/* What a request says about its routes. */
typedef struct tape_fields {
    import_value rows, prompt; /* kind NONE: not there */
    bool has_rows, has_prompt;
    bool of_answer; /* `rows` is the answer's and not the choice's */
    import_type raw;
    import_payload open, open_prompt; /* set where they are there */
    uint32_t start;
} tape_fields;

static wb_status find_type(const import_request *r, const import_rules *rules, import_type *type_out) {
    static const char *const names[] = {"routed_experts_dtype", NULL};
    const import_value name = wb_import_field(r, IMPORT_WANT_ANY, names, NULL);
    *type_out = rules->raw;
    if (name.kind != IMPORT_NONE && name.kind != IMPORT_TEXT)
        return wb_fail(WB_CORRUPT, "routed_experts_dtype: expected text, found %s",
                       wb_import_kind_name(name.kind));
    if (name.kind == IMPORT_NONE || wb_import_type(name.text, name.length, type_out)) return WB_OK;
    return wb_fail(WB_UNSUPPORTED, "routed_experts_dtype: expected int8, uint8, .. int64, found \"%.*s\"",
                   name.length < 40 ? (int)name.length : 40, name.text);
}

/* The position of the first row. */
static wb_status find_start(const import_request *r, const import_tokens *t, tape_fields *f) {
    static const char *const names[] = {"routed_experts_start_len", "routed_experts_prompt_start",
                                        "routed_experts_start", NULL};
    import_value field;
    WB_TRY(wb_import_integer_field(r, names, &field));
    const int64_t start = f->has_rows && f->open.start >= 0 ? f->open.start
                          : field.kind == IMPORT_INTEGER    ? field.integer
                                                            : 0;
    if (start < 0 || start > t->prompt_len)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "expected routes that start at 0..%" PRIu32 ", in the prompt, found %" PRId64,
                       t->prompt_len, start);
    f->start = (uint32_t)start;
    return WB_OK;
}

/* A response has the routes of its first choice. Taken for another's they would be of other tokens. */
static wb_status check_choice(const import_request *r, const tape_fields *f) {
    if (!f->has_rows || !f->of_answer || r->index == 0 || r->choice.kind == IMPORT_NONE) return WB_OK;
    return wb_fail(WB_NOT_FOUND,
                   "expected routes of this choice, found those of the answer, which are of choice 0 alone");
}

static wb_status open_payload(const char *what, const import_value *v, import_type raw, wb_owner *owner,
                              import_payload *out) {
    const wb_status status = wb_import_open_payload(v, raw, owner, out);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", what);
}

static wb_status find_fields(const import_request *r, const import_rules *rules, const import_tokens *t,
                             wb_owner *owner, tape_fields *f) {
    f->rows = wb_import_field(r, IMPORT_WANT_ANY, wb_import_route_names, &f->of_answer);
    f->prompt = wb_import_field(r, IMPORT_WANT_ANY, wb_import_prompt_route_names, NULL);
    f->has_rows = f->rows.kind != IMPORT_NONE;
    f->has_prompt = f->prompt.kind != IMPORT_NONE;
    if (!f->has_rows && !f->has_prompt) return WB_OK;
    WB_TRY(check_choice(r, f));
    WB_TRY(find_type(r, rules, &f->raw));
    if (f->has_rows) WB_TRY(open_payload("routes", &f->rows, f->raw, owner, &f->open));
    if (f->has_prompt)
        WB_TRY(open_payload("routes of the prompt", &f->prompt, f->raw, owner, &f->open_prompt));
    return find_start(r, t, f);
}

/* ---- the rows of the fields ----------------------------------------------------------------------- */

static wb_status fill(import_rows *rows, const import_payload *payload, uint32_t start, size_t n,
                      bool drop_last, const import_tokens *t) {
    import_tape tape = {.array = &payload->array, .start = start, .rows = n, .drop_last = drop_last};
    tape.may_have_last = rows->rules->last_row != IMPORT_LAST_NEVER;
    return wb_import_rows_fill(rows, &tape, t);
}

/* The prompt's rows, and those of the new tokens: of these the last may have a row, which is not one of a
 * token that was fed. */
static wb_status fill_two(import_rows *rows, const tape_fields *f, const import_tokens *t) {
    const uint32_t n_prompt = t->prompt_len - f->start,
                   n_new = rows->rows > n_prompt ? rows->rows - n_prompt : 0;
    WB_TRY(fill(rows, &f->open_prompt, f->start, n_prompt < rows->rows ? n_prompt : rows->rows,
                n_prompt > rows->rows, t));
    if (n_new == 0 && !f->has_rows) return WB_OK;
    if (!f->has_rows)
        return wb_fail(WB_NOT_FOUND, "expected routes of the new tokens beside those of the prompt");
    return fill(rows, &f->open, t->prompt_len, n_new, true, t);
}

static wb_status check_copy(const import_rows *rows, const tape_fields *f, const import_tokens *t,
                            wb_owner *owner) {
    import_rows copy;
    const uint32_t n = rows->rows < t->prompt_len ? rows->rows : t->prompt_len;
    WB_TRY(wb_import_rows_open(rows->model, rows->rules, f->start, n, owner, &copy));
    WB_TRY(fill(&copy, &f->open_prompt, f->start, n, false, t));
    if (memcmp(copy.ids, rows->ids, n * wb_route_row_bytes(rows->model)) == 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "expected routes of the prompt that begin those of the text, found others");
}

wb_status wb_import_read_routes(const import_request *request, const import_rules *rules,
                                const wb_route_model *model, const import_tokens *tokens, wb_owner *owner,
                                import_rows *rows_out, bool *found_out) {
    tape_fields f = {0};
    import_rows rows;
    WB_TRY(find_fields(request, rules, tokens, owner, &f));
    *found_out = f.has_rows || f.has_prompt;
    if (!*found_out) return WB_OK;
    const uint32_t fed = tokens->n > 0 ? tokens->n - 1 : 0;
    const uint32_t n = f.start < fed ? fed - f.start : 0;
    WB_TRY(wb_import_rows_open(model, rules, f.start, n, owner, &rows));
    if (f.has_prompt && rules->prompt_rows == IMPORT_PROMPT_FIRST)
        WB_TRY(fill_two(&rows, &f, tokens));
    else if (!f.has_rows)
        return wb_fail(WB_NOT_FOUND, "expected routes of the text, found those of the prompt alone");
    else
        WB_TRY(fill(&rows, &f.open, f.start, tokens->places ? tokens->n_padded - 1 : n, false, tokens));
    if (f.has_prompt && rules->prompt_rows == IMPORT_PROMPT_COPY)
        WB_TRY(check_copy(&rows, &f, tokens, owner));
    WB_TRY(wb_import_rows_check(&rows, tokens));
    *rows_out = rows;
    return WB_OK;
}
