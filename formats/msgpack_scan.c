/* msgpack_scan.c - see the header. Every object begins with one head: a type byte, a length or value, and for
 * str, bin and ext a payload; read_head is the only place that knows msgpack's encoding. */
#include "wb_msgpack_scan.h"

#include <float.h>
#include <math.h>
#include <string.h>

typedef enum head_kind {
    HEAD_UINT,
    HEAD_FLOAT_32,
    HEAD_FLOAT_64,
    HEAD_STR,
    HEAD_BIN,
    HEAD_ARRAY,
    HEAD_MAP,
    HEAD_OTHER
} head_kind;

typedef struct head {
    head_kind kind;
    uint64_t value; /* of a uint; bits of a float; bytes of a payload; objects or pairs that follow */
    const uint8_t *payload;
} head;

wb_scan wb_scan_range(const void *bytes, size_t begin, size_t end) {
    wb_scan scan = {bytes, end, begin, WB_SCAN_OK, 0, NULL};
    return scan;
}

static bool stop(wb_scan *s, wb_scan_error error, size_t pos, const char *why) {
    if (s->error == WB_SCAN_OK) {
        s->error = error;
        s->error_pos = pos;
        s->why = why;
    }
    return false;
}

void wb_scan_refuse(wb_scan *s, size_t pos, const char *why) {
    stop(s, WB_SCAN_INVALID, pos, why);
}

/* The shape of each type byte from 0xc0 to 0xdf: bytes of the big-endian field after it, bytes of payload
 * besides what the field counts, and whether the field counts a payload or something else. */
typedef struct shape {
    uint8_t kind, field, extra;
    bool counts_payload;
} shape;

static const shape shapes[32] = {
    {HEAD_OTHER, 0, 0, false}, /* c0 nil */
    {HEAD_OTHER, 0, 0, false}, /* c1 is never used; refused before */
    {HEAD_OTHER, 0, 0, false}, /* c2 false */
    {HEAD_OTHER, 0, 0, false}, /* c3 true */
    {HEAD_BIN, 1, 0, true},       {HEAD_BIN, 2, 0, true},
    {HEAD_BIN, 4, 0, true},       {HEAD_OTHER, 1, 1, true},
    {HEAD_OTHER, 2, 1, true},     {HEAD_OTHER, 4, 1, true},     /* ext 8 16 32 */
    {HEAD_FLOAT_32, 4, 0, false}, {HEAD_FLOAT_64, 8, 0, false}, /* float 32 64 */
    {HEAD_UINT, 1, 0, false},     {HEAD_UINT, 2, 0, false},
    {HEAD_UINT, 4, 0, false},     {HEAD_UINT, 8, 0, false},
    {HEAD_OTHER, 0, 1, false},    {HEAD_OTHER, 0, 2, false}, /* int 8 16 .. */
    {HEAD_OTHER, 0, 4, false},    {HEAD_OTHER, 0, 8, false}, /* .. 32 64 */
    {HEAD_OTHER, 0, 2, false},    {HEAD_OTHER, 0, 3, false},
    {HEAD_OTHER, 0, 5, false},                                /* fixext 1 2 4 .. */
    {HEAD_OTHER, 0, 9, false},    {HEAD_OTHER, 0, 17, false}, /* .. 8 16 */
    {HEAD_STR, 1, 0, true},       {HEAD_STR, 2, 0, true},
    {HEAD_STR, 4, 0, true},       {HEAD_ARRAY, 2, 0, false},
    {HEAD_ARRAY, 4, 0, false},    {HEAD_MAP, 2, 0, false},
    {HEAD_MAP, 4, 0, false},
};

static bool fixed_head(uint8_t type, head *out) {
    if (type < 0x80)
        *out = (head){HEAD_UINT, type, NULL};
    else if (type < 0x90)
        *out = (head){HEAD_MAP, type & 0x0f, NULL};
    else if (type < 0xa0)
        *out = (head){HEAD_ARRAY, type & 0x0f, NULL};
    else if (type < 0xc0)
        *out = (head){HEAD_STR, type & 0x1f, NULL};
    else if (type >= 0xe0)
        *out = (head){HEAD_OTHER, 0, NULL}; /* negative fixint */
    else
        return false;
    return true;
}

/* Reads one head and its payload; `pos` is after both. Nothing moves on failure. */
static bool read_head(wb_scan *s, head *out) {
    if (s->error != WB_SCAN_OK) return false;
    size_t begin = s->pos, pos = begin;
    if (pos == s->end) return stop(s, WB_SCAN_INCOMPLETE, begin, "the bytes end where an object begins");
    uint8_t type = s->bytes[pos++];
    if (type == 0xc1) return stop(s, WB_SCAN_INVALID, begin, "0xc1 begins no msgpack object");
    head h;
    uint64_t payload = 0;
    if (fixed_head(type, &h)) {
        if (h.kind == HEAD_STR) payload = h.value;
    } else {
        shape sh = shapes[type - 0xc0];
        if (s->end - pos < sh.field) return stop(s, WB_SCAN_INCOMPLETE, begin, "the bytes end in a length");
        h = (head){(head_kind)sh.kind, 0, NULL};
        for (unsigned i = 0; i < sh.field; i++) h.value = h.value << 8 | s->bytes[pos++];
        payload = sh.extra + (sh.counts_payload ? h.value : 0);
    }
    if (payload > s->end - pos)
        return stop(s, WB_SCAN_INCOMPLETE, begin, "a payload is longer than the bytes left");
    /* A member takes at least one byte, a pair two. */
    uint64_t members = h.kind == HEAD_MAP ? 2 * h.value : h.kind == HEAD_ARRAY ? h.value : 0;
    if (members > s->end - pos)
        return stop(s, WB_SCAN_INCOMPLETE, begin, "a count is larger than the bytes left");
    h.payload = s->bytes + pos;
    s->pos = pos + (size_t)payload;
    *out = h;
    return true;
}

bool wb_scan_skip(wb_scan *s) {
    uint64_t left[WB_SCAN_MAX_DEPTH + 1] = {1}; /* objects still to read at each depth */
    unsigned depth = 0;
    head h;
    for (;;) {
        while (left[depth] == 0) {
            if (depth == 0) return true;
            depth--;
        }
        size_t begin = s->pos;
        if (!read_head(s, &h)) return false;
        left[depth]--;
        if (h.kind != HEAD_MAP && h.kind != HEAD_ARRAY) continue;
        if (depth == WB_SCAN_MAX_DEPTH) return stop(s, WB_SCAN_INVALID, begin, "nested too deeply");
        left[++depth] = h.kind == HEAD_MAP ? 2 * h.value : h.value;
    }
}

/* One head of the kind asked for; the cursor stays at it otherwise. */
static bool expect(wb_scan *s, head_kind kind, const char *why, head *out) {
    size_t begin = s->pos;
    if (!read_head(s, out)) return false;
    if (out->kind == kind) return true;
    s->pos = begin;
    return stop(s, WB_SCAN_INVALID, begin, why);
}

uint32_t wb_scan_map(wb_scan *s) {
    head h;
    return expect(s, HEAD_MAP, "expected a map", &h) ? (uint32_t)h.value : 0;
}

uint32_t wb_scan_array(wb_scan *s) {
    head h;
    return expect(s, HEAD_ARRAY, "expected an array", &h) ? (uint32_t)h.value : 0;
}

bool wb_scan_is_array(const wb_scan *s) {
    wb_scan copy = *s;
    head h;
    return read_head(&copy, &h) && h.kind == HEAD_ARRAY;
}

uint64_t wb_scan_uint(wb_scan *s, uint64_t max) {
    head h;
    size_t begin = s->pos;
    if (!expect(s, HEAD_UINT, "expected an unsigned integer", &h)) return 0;
    if (h.value <= max) return h.value;
    stop(s, WB_SCAN_INVALID, begin, "a number is out of range");
    return 0;
}

float wb_scan_float(wb_scan *s) {
    const size_t begin = s->pos;
    head h;
    float f;
    double d;
    if (!read_head(s, &h)) return 0;
    if (h.kind == HEAD_UINT) return (float)h.value;
    if (h.kind == HEAD_FLOAT_32) {
        const uint32_t bits = (uint32_t)h.value;
        memcpy(&f, &bits, sizeof f);
        return f;
    }
    memcpy(&d, &h.value, sizeof d);
    if (h.kind == HEAD_FLOAT_64 && fabs(d) <= (double)FLT_MAX) return (float)d;
    s->pos = begin;
    stop(s, WB_SCAN_INVALID, begin, "expected a number that an f32 holds");
    return 0;
}

const char *wb_scan_str(wb_scan *s, size_t *length_out) {
    head h;
    if (!expect(s, HEAD_STR, "expected a string", &h)) return NULL;
    *length_out = (size_t)h.value;
    return (const char *)h.payload;
}

const uint8_t *wb_scan_bin(wb_scan *s, size_t *length_out) {
    head h;
    if (!expect(s, HEAD_BIN, "expected a bin", &h)) return NULL;
    *length_out = (size_t)h.value;
    return h.payload;
}
