/* import_npy.c - the .npy file: its header, and elements in Fortran order turned into C order; see
 * import_array.h. */
#include "import/import_array.h"
#include "wb_check.h"

#include <inttypes.h>
#include <string.h>

static const uint8_t mark[6] = "\x93NUMPY";

bool wb_import_is_npy(const uint8_t *bytes, size_t size) {
    return size >= sizeof mark && memcmp(bytes, mark, sizeof mark) == 0;
}

/* The text of a header, a dict of Python that has no nested ones: {'descr': '<i4', 'fortran_order': False,
 * 'shape': (3, 4), } */
typedef struct npy_text {
    const char *at, *end;
} npy_text;

static void skip_blanks(npy_text *t) {
    while (t->at < t->end && (*t->at == ' ' || *t->at == '\n' || *t->at == '\t')) t->at++;
}

static bool take(npy_text *t, const char *word) {
    const size_t length = strlen(word);
    skip_blanks(t);
    if ((size_t)(t->end - t->at) < length || memcmp(t->at, word, length) != 0) return false;
    t->at += length;
    return true;
}

static wb_status bad_header(const char *expected) {
    return wb_fail(WB_CORRUPT, ".npy: the header has no %s", expected);
}

static bool take_string(npy_text *t, const char **text_out, size_t *length_out) {
    skip_blanks(t);
    if (t->at == t->end || (*t->at != '\'' && *t->at != '"')) return false;
    const char quote = *t->at++;
    const char *end = memchr(t->at, quote, (size_t)(t->end - t->at));
    if (!end) return false;
    *text_out = t->at;
    *length_out = (size_t)(end - t->at);
    t->at = end + 1;
    return true;
}

/* "(3, 4)", "(3,)", "()" */
static bool take_shape(npy_text *t, import_array *array) {
    if (!take(t, "(")) return false;
    while (!take(t, ")")) {
        size_t n = 0, digits = 0;
        skip_blanks(t);
        for (; t->at < t->end && *t->at >= '0' && *t->at <= '9'; t->at++, digits++) {
            if (n > SIZE_MAX / 16) return false;
            n = 10 * n + (size_t)(*t->at - '0');
        }
        if (digits == 0 || array->n_dims == IMPORT_MAX_DIMS) return false;
        array->shape[array->n_dims++] = n;
        take(t, ",");
    }
    return true;
}

static wb_status take_type(npy_text *t, import_type *type_out) {
    const char *text = NULL;
    size_t length = 0;
    if (!take_string(t, &text, &length)) return bad_header("element type, a string, under 'descr'");
    if (wb_import_type(text, length, type_out)) return WB_OK;
    return wb_fail(WB_UNSUPPORTED, ".npy: expected elements that are integers, reals or bool, found '%.*s'",
                   length < 40 ? (int)length : 40, text);
}

static wb_status read_header(npy_text t, import_array *array, bool *fortran_out) {
    bool has_type = false, has_order = false, has_shape = false;
    if (!take(&t, "{")) return bad_header("dict");
    while (!take(&t, "}")) {
        const char *key = NULL;
        size_t length = 0;
        if (!take_string(&t, &key, &length) || !take(&t, ":")) return bad_header("key and value");
        if (length == 5 && memcmp(key, "descr", 5) == 0) {
            WB_TRY(take_type(&t, &array->type));
            has_type = true;
        } else if (length == 13 && memcmp(key, "fortran_order", 13) == 0) {
            *fortran_out = take(&t, "True");
            has_order = *fortran_out || take(&t, "False");
        } else if (length == 5 && memcmp(key, "shape", 5) == 0) {
            if (has_shape || !take_shape(&t, array)) return bad_header("shape of at most 5 dimensions");
            has_shape = true;
        } else {
            return bad_header("known key");
        }
        take(&t, ",");
    }
    return has_type && has_order && has_shape ? WB_OK : bad_header("'descr', 'fortran_order' and 'shape'");
}

static uint32_t character(const uint8_t *at, bool big_endian) {
    uint32_t c = 0;
    for (unsigned i = 0; i < 4; i++) c = c << 8 | at[big_endian ? i : 3 - i];
    return c;
}

/* A character in UTF-8, of 1 to 4 bytes. */
static uint8_t *put_utf8(uint8_t *at, uint32_t c) {
    const unsigned more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t marks[4] = {0, 0xc0, 0xe0, 0xf0};
    *at++ = (uint8_t)(marks[more] | c >> 6 * more);
    for (unsigned i = more; i-- > 0;) *at++ = (uint8_t)(0x80 | (c >> 6 * i & 0x3f));
    return at;
}

/* An element of n characters is at most 4 n bytes of UTF-8: it keeps its size. */
static wb_status to_utf8(wb_owner *owner, import_array *a) {
    uint8_t *text = NULL;
    WB_TRY(WB_OWN_ALLOC(owner, text, a->count, a->type.bytes, ".npy"));
    memset(text, 0, a->count * a->type.bytes);
    for (size_t i = 0; i < a->count; i++) {
        uint8_t *at = text + i * a->type.bytes;
        for (uint32_t k = 0; k < a->type.bytes; k += 4) {
            const uint32_t c = character(a->data + i * a->type.bytes + k, a->type.big_endian);
            if (c > 0x10ffff) return wb_fail(WB_CORRUPT, ".npy: element %zu is no text", i);
            if (c == 0) break;
            at = put_utf8(at, c);
        }
    }
    a->data = text;
    a->type = (import_type){'S', a->type.bytes, false};
    return WB_OK;
}

/* Element (i0, i1, ..) of Fortran order is number i0 + i1 * shape[0] + ... */
static wb_status to_c_order(wb_owner *owner, import_array *a) {
    uint8_t *turned = NULL;
    size_t index[IMPORT_MAX_DIMS] = {0};
    if (a->n_dims < 2 || a->count == 0) return WB_OK;
    WB_TRY(WB_OWN_ALLOC(owner, turned, a->count, a->type.bytes, ".npy"));
    for (size_t i = 0; i < a->count; i++) {
        size_t from = 0;
        for (uint32_t d = a->n_dims; d-- > 0;) from = from * a->shape[d] + index[d];
        memcpy(turned + i * a->type.bytes, a->data + from * a->type.bytes, a->type.bytes);
        for (uint32_t d = a->n_dims; d-- > 0 && ++index[d] == a->shape[d];) index[d] = 0;
    }
    a->data = turned;
    return WB_OK;
}

wb_status wb_import_npy(const uint8_t *bytes, size_t size, wb_owner *owner, import_array *array_out) {
    import_array a = {0};
    bool fortran = false;
    if (!wb_import_is_npy(bytes, size) || size < 10)
        return wb_fail(WB_CORRUPT, ".npy: expected its mark, found none");
    const unsigned version = bytes[6], wide = version == 1 ? 2 : 4;
    if (version < 1 || version > 3)
        return wb_fail(WB_UNSUPPORTED, ".npy: expected version 1..3, found %u", version);
    size_t length = 0;
    for (unsigned i = wide; i-- > 0 && size >= 8 + wide;) length = length << 8 | bytes[8 + i];
    if (size < 8 + wide || length > size - 8 - wide)
        return wb_fail(WB_CORRUPT, ".npy: the file ends inside its header");
    const uint8_t *text = bytes + 8 + wide;
    WB_TRY(read_header((npy_text){(const char *)text, (const char *)text + length}, &a, &fortran));
    const import_array found = a;
    const wb_status status =
        wb_import_raw(text + length, size - 8 - wide - length, found.type, found.n_dims, found.shape, &a);
    if (status != WB_OK) return wb_fail_context(status, ".npy");
    if (fortran) WB_TRY(to_c_order(owner, &a));
    if (a.type.kind == 'U') WB_TRY(to_utf8(owner, &a));
    *array_out = a;
    return WB_OK;
}
