/* tree_file.c - reading: the bytes of a file, JSON, msgpack or YAML, as a tree. Refuses: what a tree
 * means, writing (tree_file_write.c). */
#include "files/offline/yaml_file.h"
#include "wb_file.h"
#include "wb_msgpack_scan.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A tree takes up to 150 times the memory of its file ("[]," is a whole array), and Jansson counts bytes
 * in an int. */
#define MAX_FILE_BYTES ((size_t)1 << 30)

/* ---- msgpack to tree ------------------------------------------------------------------------- */

/* Each returns NULL on failure: with s->error set for what the bytes say, else for want of memory. Depth
 * and counts were checked by wb_scan_skip over the whole, so that there is a byte wherever an object
 * should begin. */
static json_t *decode(wb_scan *s);

static json_t *refuse(wb_scan *s, size_t pos, const char *why) {
    wb_scan_refuse(s, pos, why);
    return NULL;
}

static uint64_t big_endian(const uint8_t *bytes, unsigned n) {
    uint64_t value = 0;
    for (unsigned i = 0; i < n; i++) value = value << 8 | bytes[i];
    return value;
}

static json_t *decode_unsigned(wb_scan *s) {
    uint64_t value = wb_scan_uint(s, INT64_MAX);
    return s->error == WB_SCAN_OK ? json_integer((json_int_t)value) : NULL;
}

/* 0xd0..0xd3 with 1, 2, 4 or 8 bytes, or one byte from 0xe0 on. */
static json_t *decode_signed(wb_scan *s, uint8_t type) {
    const uint8_t *at = s->bytes + s->pos;
    unsigned n = type >= 0xe0 ? 1 : 1u << (type - 0xd0);
    if (!wb_scan_skip(s)) return NULL;
    uint64_t value = big_endian(type >= 0xe0 ? at : at + 1, n);
    if (n < 8 && value >> (8 * n - 1)) value |= ~UINT64_C(0) << (8 * n);
    int64_t number;
    memcpy(&number, &value, sizeof number);
    return json_integer(number);
}

static json_t *decode_float(wb_scan *s, bool wide) {
    size_t begin = s->pos;
    if (!wb_scan_skip(s)) return NULL;
    double number;
    if (wide) {
        uint64_t bits = big_endian(s->bytes + begin + 1, 8);
        memcpy(&number, &bits, sizeof number);
    } else {
        uint32_t bits = (uint32_t)big_endian(s->bytes + begin + 1, 4);
        float narrow;
        memcpy(&narrow, &bits, sizeof narrow);
        number = (double)narrow;
    }
    if (!isfinite(number)) return refuse(s, begin, "expected a finite number, found NaN or an infinity");
    return json_real(number);
}

/* NUL is refused as in JSON, so that what is read can be written and a key is a C string. */
static json_t *decode_string(wb_scan *s) {
    size_t begin = s->pos, length = 0;
    const char *text = wb_scan_str(s, &length);
    if (!text) return NULL;
    if (memchr(text, '\0', length)) return refuse(s, begin, "a string has a NUL in it");
    errno = 0;
    json_t *string = json_stringn(text, length);
    if (!string && errno != ENOMEM) return refuse(s, begin, "a string is not UTF-8");
    return string;
}

static json_t *decode_array(wb_scan *s) {
    uint32_t n = wb_scan_array(s);
    json_t *array = json_array();
    bool failed = !array;
    for (uint32_t i = 0; i < n && !failed; i++) failed = json_array_append_new(array, decode(s)) != 0;
    if (!failed) return array;
    json_decref(array);
    return NULL;
}

/* Puts one pair into the map; false on failure. */
static bool decode_pair(wb_scan *s, json_t *map) {
    size_t begin = s->pos;
    json_t *key = decode_string(s);
    if (!key) return false;
    bool done = false;
    if (json_object_get(map, json_string_value(key)))
        wb_scan_refuse(s, begin, "a key is there twice");
    else
        done = json_object_set_new(map, json_string_value(key), decode(s)) == 0;
    json_decref(key);
    return done;
}

static json_t *decode_map(wb_scan *s) {
    uint32_t n = wb_scan_map(s);
    json_t *map = json_object();
    bool failed = !map;
    for (uint32_t i = 0; i < n && !failed; i++) failed = !decode_pair(s, map);
    if (!failed) return map;
    json_decref(map);
    return NULL;
}

static json_t *decode(wb_scan *s) {
    const uint8_t type = s->bytes[s->pos];
    if (type < 0x80 || (type >= 0xcc && type <= 0xcf)) return decode_unsigned(s);
    if (type >= 0xe0 || (type >= 0xd0 && type <= 0xd3)) return decode_signed(s, type);
    if (type < 0x90 || type == 0xde || type == 0xdf) return decode_map(s);
    if (type < 0xa0 || type == 0xdc || type == 0xdd) return decode_array(s);
    if (type < 0xc0 || (type >= 0xd9 && type <= 0xdb)) return decode_string(s);
    if (type == 0xca || type == 0xcb) return decode_float(s, type == 0xcb);
    if (type != 0xc0 && type != 0xc2 && type != 0xc3)
        return refuse(s, s->pos, "expected a number, a string, an array or a map, found a bin or ext");
    if (!wb_scan_skip(s)) return NULL;
    return type == 0xc0 ? json_null() : json_boolean(type == 0xc3);
}

static wb_status parse_msgpack(const char *path, const uint8_t *bytes, size_t size, json_t **root_out) {
    wb_scan whole = wb_scan_range(bytes, 0, size), s = whole;
    json_t *root = NULL;
    if (wb_scan_skip(&whole)) {
        if (whole.pos < size)
            wb_scan_refuse(&s, whole.pos, "expected the end of the file after one value");
        else
            root = decode(&s);
    } else {
        s = whole;
    }
    if (!root && s.error == WB_SCAN_OK)
        return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for the tree of %zu bytes", path, size);
    if (!root) return wb_fail(WB_CORRUPT, "%s: msgpack byte %zu: %s", path, s.error_pos, s.why);
    *root_out = root;
    return WB_OK;
}

/* ---- JSON to tree ---------------------------------------------------------------------------- */

/* Jansson's lexer drops a byte of a token when it gets no memory to grow its buffer for it, and tells
 * nobody. So the first key of the object, or the first value of the array, is one of ours, longer than any
 * token that matters: the buffer has grown by then, and where a byte was dropped the text is not there. Its
 * closing quote is at no power of two, where the buffer grows. */
#define PAD_8 "waybill "
#define PAD_64 PAD_8 PAD_8 PAD_8 PAD_8 PAD_8 PAD_8 PAD_8 PAD_8
#define PAD_KEY PAD_64 PAD_64 PAD_64 PAD_64 PAD_64 PAD_64 PAD_64

typedef struct json_feed {
    struct {
        const void *at;
        size_t left;
    } pieces[3];
    unsigned current;
} json_feed;

static size_t feed(void *buffer, size_t room, void *ctx) {
    json_feed *f = ctx;
    while (f->current < 2 && f->pieces[f->current].left == 0) f->current++;
    size_t left = f->pieces[f->current].left, n = left < room ? left : room;
    memcpy(buffer, f->pieces[f->current].at, n);
    f->pieces[f->current].at = (const char *)f->pieces[f->current].at + n;
    f->pieces[f->current].left -= n;
    return n;
}

static size_t skip_spaces(const uint8_t *bytes, size_t size, size_t at) {
    while (at < size && memchr(" \t\r\n", bytes[at], 4)) at++;
    return at;
}

static bool remove_pad(json_t *root) {
    if (json_is_object(root)) return json_object_del(root, PAD_KEY) == 0;
    const char *first = json_string_value(json_array_get(root, 0));
    return first && strcmp(first, PAD_KEY) == 0 && json_array_remove(root, 0) == 0;
}

/* bytes[brace] is the '{' or '[' that everything begins with. */
static wb_status parse_json(const char *path, const uint8_t *bytes, size_t size, size_t brace,
                            json_t **root_out) {
    static const char key[] = "\"" PAD_KEY "\":0,", value[] = "\"" PAD_KEY "\",";
    const bool object = bytes[brace] == '{';
    const char *pad = object ? key : value;
    const size_t next = skip_spaces(bytes, size, brace + 1);
    const bool empty = next < size && bytes[next] == (object ? '}' : ']');
    const size_t pad_bytes = strlen(pad) - empty; /* no comma before the end */
    json_feed f = {{{bytes, brace + 1}, {pad, pad_bytes}, {bytes + brace + 1, size - brace - 1}}, 0};
    json_error_t error = {.line = 0};
    errno = 0; /* not every want of memory has a message of Jansson's */
    json_t *root = json_load_callback(feed, &f, JSON_REJECT_DUPLICATES, &error);
    if (!root && errno != ENOMEM)
        return wb_fail(WB_CORRUPT, "%s: JSON line %d, byte %d: %s", path, error.line,
                       error.position - (int)pad_bytes, error.text);
    if (!root || !remove_pad(root)) {
        json_decref(root);
        return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for the tree of %zu bytes", path, size);
    }
    *root_out = root;
    return WB_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* A zip archive (torch.save) or a bare pickle of protocol 2 to 5, which msgpack would take for an empty
 * map. */
static bool is_torch(const uint8_t *bytes, size_t size) {
    if (size >= 4 && memcmp(bytes, "PK\x03\x04", 4) == 0) return true;
    return size >= 2 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5;
}

/* A map or an array. */
static bool is_container(uint8_t type) {
    return (type >= 0x80 && type < 0xa0) || (type >= 0xdc && type <= 0xdf);
}

static wb_status parse(const char *path, const uint8_t *bytes, size_t size, json_t **root_out) {
    const size_t first = skip_spaces(bytes, size, 0);
    if (first < size && (bytes[first] == '{' || bytes[first] == '['))
        return parse_json(path, bytes, size, first, root_out);
    if (is_torch(bytes, size))
        return wb_fail(
            WB_UNSUPPORTED,
            "%s: expected JSON or msgpack, found a PyTorch file, of which only maps and counts that "
            "torch.save has written since 1.6 are read: write it anew, in Python with a torch of today "
            "torch.save(torch.load(old), new)",
            path);
    if (wb_yaml_is(bytes, size)) return wb_yaml_parse(path, bytes, size, root_out);
    if (size == 0 || !is_container(bytes[0]))
        return wb_fail(WB_CORRUPT, "%s: byte 0: expected an object or array of JSON or msgpack, found %s",
                       path, size == 0 ? "an empty file" : "neither");
    return parse_msgpack(path, bytes, size, root_out);
}

wb_status wb_tree_read(const char *path, json_t **root_out) {
    char *text = NULL;
    size_t size = 0;
    wb_status status = wb_file_read(path, MAX_FILE_BYTES, &text, &size);
    if (status == WB_CORRUPT) return WB_UNSUPPORTED; /* too large: no fault of the file */
    WB_TRY(status);
    status = parse(path, (const uint8_t *)text, size, root_out);
    free(text);
    return status;
}
