/* eplb_file.c - see the header. Owns the bytes of a tree's file and their decoding; refuses to know what a
 * tree means. */
#include "placement/offline/eplb_file.h"
#include "wb_msgpack_scan.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <msgpack.h>
#include <msgpack/fbuffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A tree takes up to 150 times the memory of its file ("[]," is a whole array), and Jansson counts bytes
 * in an int. */
#define MAX_FILE_BYTES ((size_t)1 << 30)

/* ---- the bytes of a file --------------------------------------------------------------------- */

static wb_status read_bytes(int fd, const char *path, uint8_t *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t got = read(fd, bytes + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return wb_fail(WB_IO, "%s: byte %zu: %s", path, done, strerror(errno));
        if (got == 0) return wb_fail(WB_IO, "%s: expected %zu bytes, found %zu", path, size, done);
        done += (size_t)got;
    }
    return WB_OK;
}

static wb_status read_open_file(int fd, const char *path, uint8_t **bytes_out, size_t *size_out) {
    struct stat info;
    if (fstat(fd, &info) != 0) return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return wb_fail(WB_IO, "%s: not a regular file", path);
    if ((uint64_t)info.st_size > MAX_FILE_BYTES)
        return wb_fail(WB_UNSUPPORTED, "%s: expected at most %zu bytes, found %llu", path, MAX_FILE_BYTES,
                       (unsigned long long)info.st_size);
    const size_t size = (size_t)info.st_size;
    uint8_t *bytes = malloc(size + 1);
    if (!bytes) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for %zu bytes", path, size);
    wb_status status = read_bytes(fd, path, bytes, size);
    if (status != WB_OK) {
        free(bytes);
        return status;
    }
    *bytes_out = bytes;
    *size_out = size;
    return WB_OK;
}

static wb_status read_file(const char *path, uint8_t **bytes_out, size_t *size_out) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return wb_fail(errno == ENOENT ? WB_NOT_FOUND : WB_IO, "%s: %s", path, strerror(errno));
    wb_status status = read_open_file(fd, path, bytes_out, size_out);
    close(fd);
    return status;
}

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
            wb_scan_refuse(&s, whole.pos, "expected the end of the file after one map");
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
 * nobody. So the first key of the object is one of ours, longer than any token that matters: the buffer
 * has grown by then, and where a byte was dropped the key is not there. Its closing quote is at no power
 * of two, where the buffer grows. */
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

/* bytes[brace] is the '{' that everything begins with. */
static wb_status parse_json(const char *path, const uint8_t *bytes, size_t size, size_t brace,
                            json_t **root_out) {
    static const char pad[] = "\"" PAD_KEY "\":0,";
    const size_t next = skip_spaces(bytes, size, brace + 1);
    const bool empty = next < size && bytes[next] == '}';
    const size_t pad_bytes = sizeof pad - 1 - empty; /* no comma before a '}' */
    json_feed f = {{{bytes, brace + 1}, {pad, pad_bytes}, {bytes + brace + 1, size - brace - 1}}, 0};
    json_error_t error = {.line = 0};
    errno = 0; /* not every want of memory has a message of Jansson's */
    json_t *root = json_load_callback(feed, &f, JSON_REJECT_DUPLICATES, &error);
    if (!root && errno != ENOMEM)
        return wb_fail(WB_CORRUPT, "%s: JSON line %d, byte %d: %s", path, error.line,
                       error.position - (int)pad_bytes, error.text);
    if (!root || json_object_del(root, PAD_KEY) != 0) {
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

static bool is_map(uint8_t type) {
    return (type >= 0x80 && type < 0x90) || type == 0xde || type == 0xdf;
}

static wb_status parse(const char *path, const uint8_t *bytes, size_t size, json_t **root_out) {
    const size_t first = skip_spaces(bytes, size, 0);
    if (first < size && bytes[first] == '{') return parse_json(path, bytes, size, first, root_out);
    if (is_torch(bytes, size))
        return wb_fail(WB_UNSUPPORTED,
                       "%s: expected JSON or msgpack, found a PyTorch file: convert it, in Python "
                       "json.dump({\"physical_to_logical_map\": m.tolist()}, f)",
                       path);
    if (size == 0 || !is_map(bytes[0]))
        return wb_fail(WB_CORRUPT, "%s: byte 0: expected a JSON object or a msgpack map, found %s", path,
                       size == 0 ? "an empty file" : "neither");
    return parse_msgpack(path, bytes, size, root_out);
}

wb_status wb_tree_read(const char *path, json_t **root_out) {
    uint8_t *bytes = NULL;
    size_t size = 0;
    WB_TRY(read_file(path, &bytes, &size));
    wb_status status = parse(path, bytes, size, root_out);
    free(bytes);
    return status;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* False when the tree is deeper than a reader takes. A failed write stays in the file's error flag. */
static bool pack(msgpack_packer *packer, const json_t *node, unsigned depth) {
    const char *key;
    json_t *child; /* Jansson's loop over an object wants a json_t that is not const, and changes nothing */
    size_t i;
    bool fits = depth < WB_SCAN_MAX_DEPTH;
    switch (json_typeof(node)) {
    case JSON_OBJECT:
        msgpack_pack_map(packer, json_object_size(node));
        json_object_foreach((json_t *)(uintptr_t)node, key, child) {
            if (!fits) break;
            msgpack_pack_str_with_body(packer, key, strlen(key));
            fits = pack(packer, child, depth + 1);
        }
        return fits;
    case JSON_ARRAY:
        msgpack_pack_array(packer, json_array_size(node));
        json_array_foreach(node, i, child) {
            if (!fits) break;
            fits = pack(packer, child, depth + 1);
        }
        return fits;
    case JSON_STRING:
        msgpack_pack_str_with_body(packer, json_string_value(node), json_string_length(node));
        return true;
    case JSON_INTEGER:
        msgpack_pack_int64(packer, json_integer_value(node));
        return true;
    case JSON_REAL:
        msgpack_pack_double(packer, json_real_value(node));
        return true;
    case JSON_TRUE:
        msgpack_pack_true(packer);
        return true;
    case JSON_FALSE:
        msgpack_pack_false(packer);
        return true;
    case JSON_NULL:
        msgpack_pack_nil(packer);
        return true;
    }
    return false;
}

static bool is_json_name(const char *path) {
    size_t length = strlen(path);
    return length >= 5 && strcmp(path + length - 5, ".json") == 0;
}

/* The tree into an open file, as far as the system's disk; errno of the first failure. */
static wb_status write_tree(FILE *file, const char *path, const json_t *root) {
    errno = 0;
    if (is_json_name(path)) {
        bool dumped = json_dumpf(root, file, JSON_COMPACT) == 0 && fputc('\n', file) != EOF;
        if (!dumped && errno == ENOMEM) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory to write JSON", path);
        if (!dumped && errno == 0) return wb_fail(WB_INVALID_ARGUMENT, "%s: the tree is no JSON", path);
    } else {
        msgpack_packer packer;
        msgpack_packer_init(&packer, file, msgpack_fbuffer_write);
        if (!pack(&packer, root, 0))
            return wb_fail(WB_INVALID_ARGUMENT, "%s: the tree is deeper than %d", path, WB_SCAN_MAX_DEPTH);
    }
    if (ferror(file) || fflush(file) != 0 || fsync(fileno(file)) != 0)
        return wb_fail(WB_IO, "%s: cannot be written: %s", path, strerror(errno));
    return WB_OK;
}

static wb_status write_and_rename(const char *temp, const char *path, const json_t *root) {
    FILE *file = fopen(temp, "wbe");
    if (!file && errno == ENOMEM) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory to write it", path);
    if (!file) return wb_fail(WB_IO, "%s: cannot be written: %s", temp, strerror(errno));
    wb_status status = write_tree(file, path, root);
    if (fclose(file) != 0 && status == WB_OK)
        status = wb_fail(WB_IO, "%s: cannot be written: %s", path, strerror(errno));
    if (status == WB_OK && rename(temp, path) != 0)
        status = wb_fail(WB_IO, "%s: cannot be renamed to %s: %s", temp, path, strerror(errno));
    if (status != WB_OK) unlink(temp);
    return status;
}

wb_status wb_tree_write(const char *path, const json_t *root) {
    const size_t size = strlen(path) + 32;
    char *temp = malloc(size); /* by process: ranks that write the same name do not mix */
    if (!temp) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for a name", path);
    snprintf(temp, size, "%s.%ld.tmp", path, (long)getpid());
    wb_status status = write_and_rename(temp, path, root);
    free(temp);
    return status;
}
