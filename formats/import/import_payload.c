/* import_payload.c - see import_payload.h. */
#include "import/import_payload.h"
#include "import/import_text.h"
#include "wb_check.h"

#include <inttypes.h>
#include <string.h>

/* ---- bytes and text ------------------------------------------------------------------------------- */

static wb_status of_bytes(const uint8_t *bytes, size_t size, import_type raw, wb_owner *owner,
                          import_array *out) {
    if (wb_import_is_npy(bytes, size)) return wb_import_npy(bytes, size, owner, out);
    if (raw.kind == 0)
        return wb_fail(WB_CORRUPT, "expected a .npy file, found %zu bytes that do not begin like one", size);
    const size_t count = size / raw.bytes;
    return wb_import_raw(bytes, size, raw, 1, &count, out);
}

/* "nrlre1:int16:2x1x2:AAABAAIAAwA=": the part up to the next colon. */
static bool take_part(const char **at, const char *end, const char **part_out, size_t *length_out) {
    const char *colon = memchr(*at, ':', (size_t)(end - *at));
    if (!colon) return false;
    *part_out = *at;
    *length_out = (size_t)(colon - *at);
    *at = colon + 1;
    return true;
}

static bool read_times(const char *text, size_t length, size_t shape[3]) {
    uint32_t n = 0;
    size_t digits = 0;
    for (size_t i = 0; i <= length; i++) {
        const char c = i < length ? text[i] : 'x';
        if (c == 'x') {
            if (digits == 0 || n++ == 3) return false;
            digits = 0;
            continue;
        }
        if (c < '0' || c > '9' || n == 3 || digits++ == 10) return false;
        shape[n] = (digits == 1 ? 0 : 10 * shape[n]) + (size_t)(c - '0');
    }
    return n == 3;
}

static wb_status of_envelope(const char *at, const char *end, wb_owner *owner, import_array *out) {
    const char *type_text = NULL, *shape_text = NULL;
    size_t type_length = 0, shape_length = 0, shape[3] = {0}, size = 0;
    const uint8_t *bytes = NULL;
    import_type type = {0};
    if (!take_part(&at, end, &type_text, &type_length) || !take_part(&at, end, &shape_text, &shape_length))
        return wb_fail(WB_CORRUPT, "nrlre1: expected \"nrlre1:<type>:<S>x<L>x<K>:<base64>\"");
    if (!wb_import_type(type_text, type_length, &type) || type.kind != 'i')
        return wb_fail(WB_UNSUPPORTED, "nrlre1: expected int8, int16 or int32, found \"%.*s\"",
                       type_length < 40 ? (int)type_length : 40, type_text);
    if (!read_times(shape_text, shape_length, shape))
        return wb_fail(WB_CORRUPT, "nrlre1: expected a shape as 7x4x2, found \"%.*s\"",
                       shape_length < 40 ? (int)shape_length : 40, shape_text);
    wb_status status = wb_import_base64(at, (size_t)(end - at), owner, &bytes, &size);
    if (status == WB_OK) status = wb_import_raw(bytes, size, type, 3, shape, out);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "nrlre1");
}

static wb_status of_text(const import_value *v, import_type raw, wb_owner *owner, import_array *out) {
    static const char mark[] = "nrlre1:";
    const size_t n = sizeof mark - 1, n_name = sizeof "nrlre" - 1;
    const uint8_t *bytes = NULL;
    size_t size = 0;
    if (v->length >= n && memcmp(v->text, mark, n) == 0)
        return of_envelope(v->text + n, v->text + v->length, owner, out);
    /* Base64 has no colon, so that this is an envelope, of a version that nobody here knows. */
    const char *colon =
        v->length >= n && memcmp(v->text, mark, n_name) == 0 ? memchr(v->text, ':', v->length) : NULL;
    if (colon)
        return wb_fail(WB_UNSUPPORTED, "expected nrlre1, found %.*s",
                       colon - v->text < 40 ? (int)(colon - v->text) : 40, v->text);
    WB_TRY(wb_import_base64(v->text, v->length, owner, &bytes, &size));
    return of_bytes(bytes, size, raw, owner, out);
}

/* ---- data, shape and type ------------------------------------------------------------------------- */

typedef struct shaped {
    import_value data;
    import_type type; /* kind 0: not given */
    uint32_t n_dims;
    size_t shape[IMPORT_MAX_DIMS], count;
} shaped;

static wb_status read_shape(const import_value *list, shaped *s) {
    const bool is_list = list->kind == IMPORT_LIST || list->kind == IMPORT_ARRAY;
    if (!is_list || list->length > IMPORT_MAX_DIMS)
        return wb_fail(WB_CORRUPT, "shape: expected a list of at most %d numbers", IMPORT_MAX_DIMS);
    s->count = 1;
    for (size_t i = 0; i < list->length; i++) {
        const import_value n = list->kind == IMPORT_LIST ? wb_import_at(list, i) : (import_value){0};
        if (n.kind != IMPORT_INTEGER || n.integer < 0 || n.integer > UINT32_MAX ||
            (n.integer > 0 && s->count > SIZE_MAX / 8 / (size_t)n.integer))
            return wb_fail(WB_CORRUPT, "shape[%zu]: expected a number of elements", i);
        s->shape[s->n_dims++] = (size_t)n.integer;
        s->count *= (size_t)n.integer;
    }
    return WB_OK;
}

static wb_status read_type(const import_value *name, shaped *s) {
    if (name->kind == IMPORT_NONE) return WB_OK;
    if (name->kind != IMPORT_TEXT && name->kind != IMPORT_BYTES)
        return wb_fail(WB_CORRUPT, "dtype: expected text, found %s", wb_import_kind_name(name->kind));
    if (wb_import_type(name->text, name->length, &s->type)) return WB_OK;
    return wb_fail(WB_UNSUPPORTED, "dtype: expected int8, uint8, .. int64, found \"%.*s\"",
                   name->length < 40 ? (int)name->length : 40, name->text);
}

/* Whether so many bytes are the elements of the shape. Elements without a type are as wide as the bytes make
 * them. */
static bool has_size(shaped *s, size_t size) {
    static const import_type types[] = {{'u', 1, false}, {'i', 2, false}, {'i', 4, false}, {'i', 8, false}};
    if (s->type.kind) return size == s->count * s->type.bytes;
    for (size_t i = 0; i < sizeof types / sizeof types[0] && !s->type.kind; i++)
        if (size == s->count * types[i].bytes) s->type = types[i];
    return s->type.kind != 0;
}

/* Base64 or base85, whichever has the length. No text has it in both for two widths: these differ by a factor
 * of two, its bytes by less. */
static wb_status decode_shaped(shaped *s, wb_owner *owner, const uint8_t **bytes_out, size_t *size_out) {
    const import_value *text = &s->data;
    const size_t in64 = wb_import_base64_bytes(text->text, text->length),
                 in85 = wb_import_base85_bytes(text->length);
    if (has_size(s, in64)) return wb_import_base64(text->text, text->length, owner, bytes_out, size_out);
    if (has_size(s, in85)) return wb_import_base85(text->text, text->length, owner, bytes_out, size_out);
    return wb_fail(
        WB_CORRUPT,
        "expected text of %zu elements, found %zu characters, which are neither base64 nor base85 of as many",
        s->count, text->length);
}

static wb_status of_shaped(shaped *s, wb_owner *owner, import_array *out) {
    const uint8_t *bytes = (const uint8_t *)s->data.text;
    size_t size = s->data.length;
    if (s->data.kind != IMPORT_TEXT && s->data.kind != IMPORT_BYTES)
        return wb_fail(WB_CORRUPT, "data: expected text or bytes, found %s",
                       wb_import_kind_name(s->data.kind));
    if (s->data.kind == IMPORT_TEXT) WB_TRY(decode_shaped(s, owner, &bytes, &size));
    if (!has_size(s, size) && !s->type.kind)
        return wb_fail(WB_CORRUPT, "expected %zu elements of 8 to 64 bits, found %zu bytes", s->count, size);
    return wb_import_raw(bytes, size, s->type, s->n_dims, s->shape, out);
}

/* ---- nested lists --------------------------------------------------------------------------------- */

/* The lists of `depth` and below it. Without a *next they are only compared with the shape. */
static wb_status fill_nested(const import_value *list, const import_array *a, uint32_t depth,
                             int32_t **next) {
    if (list->kind != IMPORT_LIST || list->length != a->shape[depth])
        return wb_fail(WB_CORRUPT,
                       "lists: expected %zu members in each list of depth %" PRIu32 ", found %s of %zu",
                       a->shape[depth], depth, wb_import_kind_name(list->kind), list->length);
    for (size_t i = 0; i < list->length; i++) {
        const import_value v = wb_import_at(list, i);
        if (depth + 1 < a->n_dims) {
            WB_TRY(fill_nested(&v, a, depth + 1, next));
            continue;
        }
        if (v.kind != IMPORT_INTEGER || v.integer < INT32_MIN || v.integer > INT32_MAX)
            return wb_fail(WB_CORRUPT, "lists: expected integers of 32 bits, found %s",
                           wb_import_kind_name(v.kind));
        if (*next) *(*next)++ = (int32_t)v.integer;
    }
    return WB_OK;
}

/* The shape is that of the first list at each depth. */
static wb_status of_lists(const import_value *list, wb_owner *owner, import_array *out) {
    const uint16_t one = 1;
    import_array a = {.type = {'i', 4, *(const uint8_t *)&one == 0}, .count = 1};
    int32_t *numbers = NULL, *next = NULL;
    for (import_value v = *list; v.kind == IMPORT_LIST; v = wb_import_at(&v, 0)) {
        if (a.n_dims == IMPORT_MAX_DIMS || (v.length > 0 && a.count > SIZE_MAX / 8 / v.length))
            return wb_fail(WB_CORRUPT, "lists: expected at most %d in each other", IMPORT_MAX_DIMS);
        a.shape[a.n_dims++] = v.length;
        a.count *= v.length;
        if (v.length == 0) break;
    }
    /* The first list of each depth may be longer than the others: memory is taken when it is seen to be
     * needed. */
    WB_TRY(fill_nested(list, &a, 0, &next));
    WB_TRY(WB_OWN(owner, numbers, a.count, "lists"));
    next = numbers;
    WB_TRY(fill_nested(list, &a, 0, &next));
    a.data = (const uint8_t *)numbers;
    *out = a;
    return WB_OK;
}

/* ---- all of them ---------------------------------------------------------------------------------- */

static bool is_triple(const import_value *v) {
    if (v->kind != IMPORT_LIST || v->length < 2 || v->length > 3) return false;
    const import_value data = wb_import_at(v, 0), shape = wb_import_at(v, 1);
    return (data.kind == IMPORT_BYTES || data.kind == IMPORT_TEXT) && shape.kind == IMPORT_LIST;
}

/* {data, shape, dtype, start}, or [data, shape, dtype] */
static wb_status open_shaped(const import_value *v, import_type raw, wb_owner *owner, import_payload *p) {
    shaped s = {0};
    import_value shape, type, start = {0};
    if (v->kind == IMPORT_LIST) {
        s.data = wb_import_at(v, 0);
        shape = wb_import_at(v, 1);
        type = v->length == 3 ? wb_import_at(v, 2) : (import_value){0};
    } else {
        s.data = wb_import_get(v, "data");
        shape = wb_import_get(v, "shape");
        type = wb_import_get(v, "dtype");
        if (type.kind == IMPORT_NONE) type = wb_import_get(v, "type");
        start = wb_import_get(v, "start");
    }
    if (start.kind != IMPORT_NONE && (start.kind != IMPORT_INTEGER || start.integer < 0))
        return wb_fail(WB_CORRUPT, "start: expected a position, found %s",
                       start.kind == IMPORT_INTEGER ? "one below 0" : wb_import_kind_name(start.kind));
    if (start.kind == IMPORT_INTEGER) p->start = start.integer;
    if (s.data.kind == IMPORT_LIST) return of_lists(&s.data, owner, &p->array);
    if (shape.kind == IMPORT_NONE && s.data.kind == IMPORT_TEXT) {
        WB_TRY(read_type(&type, &s));
        return of_text(&s.data, s.type.kind ? s.type : raw, owner, &p->array);
    }
    WB_TRY(read_shape(&shape, &s));
    WB_TRY(read_type(&type, &s));
    return of_shaped(&s, owner, &p->array);
}

wb_status wb_import_open_payload(const import_value *value, import_type raw, wb_owner *owner,
                                 import_payload *payload_out) {
    import_payload p = {.start = -1};
    if (value->kind == IMPORT_TEXT)
        WB_TRY(of_text(value, raw, owner, &p.array));
    else if (value->kind == IMPORT_BYTES)
        WB_TRY(of_bytes((const uint8_t *)value->text, value->length, raw, owner, &p.array));
    else if (value->kind == IMPORT_ARRAY)
        p.array = value->array;
    else if (value->kind == IMPORT_MAP || is_triple(value))
        WB_TRY(open_shaped(value, raw, owner, &p));
    else if (value->kind == IMPORT_LIST)
        WB_TRY(of_lists(value, owner, &p.array));
    else
        return wb_fail(WB_CORRUPT, "expected an array of expert ids, found %s",
                       wb_import_kind_name(value->kind));
    *payload_out = p;
    return WB_OK;
}
