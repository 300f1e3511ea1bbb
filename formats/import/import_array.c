/* import_array.c - see import_array.h: element types, and elements by number. */
#include "import/import_array.h"
#include "wb_check.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- types ---------------------------------------------------------------------------------------- */

static bool type_of(char kind, unsigned bytes, bool big_endian, import_type *type_out) {
    const bool known =
        ((kind == 'i' || kind == 'u') && (bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8)) ||
        (kind == 'f' && (bytes == 2 || bytes == 4 || bytes == 8)) || (kind == 'b' && bytes == 1);
    if (known) *type_out = (import_type){kind, bytes, big_endian && bytes > 1};
    return known;
}

/* "|S12": text of 12 bytes, filled up with NUL; "<U12": of 12 characters of 4 bytes. */
static bool read_text_type(const char *name, size_t length, import_type *type_out) {
    const bool wide = name[1] == 'U';
    uint32_t bytes = 0;
    for (size_t i = 2; i < length; i++) {
        if (name[i] < '0' || name[i] > '9' || bytes > 100000) return false;
        bytes = 10 * bytes + (uint32_t)(name[i] - '0');
    }
    if (bytes > 0) *type_out = (import_type){name[1], wide ? 4 * bytes : bytes, wide && name[0] == '>'};
    return bytes > 0;
}

/* "i4" after the byte order. */
static bool read_short(const char *name, size_t length, bool big_endian, import_type *type_out) {
    if (length != 2 || name[1] < '1' || name[1] > '8') return false;
    return type_of(name[0], (unsigned)(name[1] - '0'), big_endian, type_out);
}

bool wb_import_type(const char *name, size_t length, import_type *type_out) {
    static const struct {
        const char *name;
        import_type type;
    } names[] = {{"int8", {'i', 1, false}},    {"int16", {'i', 2, false}},   {"int32", {'i', 4, false}},
                 {"int64", {'i', 8, false}},   {"uint8", {'u', 1, false}},   {"uint16", {'u', 2, false}},
                 {"uint32", {'u', 4, false}},  {"uint64", {'u', 8, false}},  {"float16", {'f', 2, false}},
                 {"float32", {'f', 4, false}}, {"float64", {'f', 8, false}}, {"bool", {'b', 1, false}}};
    static const char *const prefixes[] = {"torch.", "numpy.", "np."};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        const size_t n = strlen(prefixes[i]);
        if (length <= n || memcmp(name, prefixes[i], n) != 0) continue;
        name += n;
        length -= n;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (length != strlen(names[i].name) || memcmp(name, names[i].name, length) != 0) continue;
        *type_out = names[i].type;
        return true;
    }
    if (length > 2 && strchr("<>|=", name[0]) && (name[1] == 'S' || name[1] == 'U'))
        return read_text_type(name, length, type_out);
    if (length == 3 && strchr("<>|=", name[0])) return read_short(name + 1, 2, name[0] == '>', type_out);
    return read_short(name, length, false, type_out);
}

const char *wb_import_type_name(import_type type) {
    static const char *const names[4][4] = {{"int8", "int16", "int32", "int64"},
                                            {"uint8", "uint16", "uint32", "uint64"},
                                            {"float8", "float16", "float32", "float64"},
                                            {"bool", "bool", "bool", "bool"}};
    if (type.kind == 'S' || type.kind == 'U') return "text";
    const unsigned kind = type.kind == 'i' ? 0 : type.kind == 'u' ? 1 : type.kind == 'f' ? 2 : 3;
    const unsigned size = type.bytes == 1 ? 0 : type.bytes == 2 ? 1 : type.bytes == 4 ? 2 : 3;
    return names[kind][size];
}

int64_t wb_import_type_max(import_type type) {
    if (type.kind == 'b') return 1;
    const unsigned bits = 8u * type.bytes - (type.kind == 'i');
    return bits >= 63 ? INT64_MAX : (int64_t)((UINT64_C(1) << bits) - 1);
}

/* ---- elements ------------------------------------------------------------------------------------- */

static uint64_t bits_of(const import_array *a, size_t i) {
    const uint8_t *at = a->data + i * a->type.bytes;
    uint64_t bits = 0;
    for (unsigned k = 0; k < a->type.bytes; k++)
        bits = bits << 8 | at[a->type.big_endian ? k : a->type.bytes - 1u - k];
    return bits;
}

bool wb_import_has_integers(const import_array *array) {
    return array->type.kind != 'f' && array->type.kind != 'S' && array->type.kind != 'U';
}

int64_t wb_import_integer(const import_array *array, size_t i) {
    const uint64_t bits = bits_of(array, i);
    if (array->type.kind == 'b') return bits != 0;
    if (array->type.kind == 'u') return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    const unsigned unused = 64 - 8u * array->type.bytes;
    return (int64_t)(bits << unused) >> unused;
}

static double half_of(uint64_t bits) {
    const int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    double value = exponent == 31  ? (fraction ? (double)NAN : (double)INFINITY)
                   : exponent == 0 ? ldexp(fraction, -24)
                                   : ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 & 1 ? -value : value;
}

double wb_import_real(const import_array *array, size_t i) {
    if (array->type.kind != 'f') return (double)wb_import_integer(array, i);
    const uint64_t bits = bits_of(array, i);
    if (array->type.bytes == 2) return half_of(bits);
    if (array->type.bytes == 4) {
        const uint32_t narrow = (uint32_t)bits;
        float value;
        memcpy(&value, &narrow, sizeof value);
        return (double)value;
    }
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- shapes --------------------------------------------------------------------------------------- */

wb_status wb_import_raw(const uint8_t *bytes, size_t size, import_type type, uint32_t n_dims,
                        const size_t *shape, import_array *array_out) {
    import_array a = {.type = type, .n_dims = n_dims, .count = 1, .data = bytes};
    for (uint32_t d = 0; d < n_dims; d++) {
        a.shape[d] = shape[d];
        if (shape[d] > 0 && a.count > SIZE_MAX / 8 / type.bytes / shape[d])
            return wb_fail(WB_CORRUPT, "expected a shape that fits memory, found %zu in dimension %" PRIu32,
                           shape[d], d);
        a.count *= shape[d];
    }
    if (size != a.count * type.bytes) {
        char text[IMPORT_SHAPE_TEXT];
        wb_import_show_shape(&a, text);
        return wb_fail(WB_CORRUPT, "expected %zu bytes for %s of %s, found %zu", a.count * type.bytes, text,
                       wb_import_type_name(type), size);
    }
    *array_out = a;
    return WB_OK;
}

import_array wb_import_part(const import_array *array, size_t i) {
    import_array part = *array;
    part.n_dims--;
    part.count = array->shape[0] ? array->count / array->shape[0] : 0;
    part.data = array->data + i * part.count * array->type.bytes;
    memmove(part.shape, part.shape + 1, part.n_dims * sizeof part.shape[0]);
    return part;
}

void wb_import_show_shape(const import_array *array, char text_out[IMPORT_SHAPE_TEXT]) {
    int used = snprintf(text_out, IMPORT_SHAPE_TEXT, "[");
    for (uint32_t d = 0; d < array->n_dims; d++)
        used += snprintf(text_out + used, IMPORT_SHAPE_TEXT - (size_t)used, "%s%zu", d ? ", " : "",
                         array->shape[d]);
    snprintf(text_out + used, IMPORT_SHAPE_TEXT - (size_t)used, "]");
}
