/* import_value.h - a value of an answer, whether it came as JSON, as msgpack or as an array of numpy
 * (internal).
 *
 * Owns: one way to ask for members, keys, numbers and text. Refuses: which key means what. A value owns
 * nothing: it points into the document it came from. */
#ifndef WB_IMPORT_VALUE_H
#define WB_IMPORT_VALUE_H

#include "import/import_array.h"

#include <jansson.h>
#include <msgpack.h>

typedef enum import_kind {
    IMPORT_NONE, /* there is no such member, or it is null: "not given" to every reader */
    IMPORT_BOOL,
    IMPORT_INTEGER,
    IMPORT_REAL,
    IMPORT_TEXT,
    IMPORT_BYTES,
    IMPORT_LIST,
    IMPORT_MAP,
    IMPORT_ARRAY,
    IMPORT_OTHER /* what no reader asks for: an extension of msgpack */
} import_kind;

/* An array that has a name, as the members of a .npz file. */
typedef struct import_member {
    const char *name; /* not NUL-terminated */
    size_t length;
    import_array array;
} import_member;

typedef struct import_value {
    import_kind kind;
    int64_t integer;    /* also of true and false; beyond int64_t: INT64_MAX */
    double real;        /* also of an integer */
    const char *text;   /* [length], not NUL-terminated; of text and bytes */
    size_t length;      /* members of a list, pairs of a map */
    const json_t *json; /* a list or map has one of these three */
    const msgpack_object *msgpack;
    const import_member *members;
    import_array array;
} import_value;

import_value wb_import_of_json(const json_t *json);
import_value wb_import_of_msgpack(const msgpack_object *object);
import_value wb_import_of_array(const import_array *array);

/* A map of arrays, which are sorted by name: an archive of numbered fields has as many as requests, and each
 * request asks for some thirty names. */
import_value wb_import_of_members(import_member *members, size_t n);

/* Member i of a list, i below its length. */
import_value wb_import_at(const import_value *list, size_t i);

/* The value of a key; kind NONE where the value is no map or has no such key. */
import_value wb_import_get(const import_value *map, const char *key);

/* Goes over the values of a map that may be maps, which those of a map of arrays are not: *place begins as a
 * zeroed struct. False at the end. */
typedef struct import_place {
    size_t next;
    void *json;
    bool begun;
} import_place;
bool wb_import_next_value(const import_value *map, import_place *place, import_value *value_out);

/* "an integer", "text", ... */
const char *wb_import_kind_name(import_kind kind);

/* Whether it has the text. */
bool wb_import_is_text(const import_value *value, const char *text);

#endif
