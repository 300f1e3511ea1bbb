/* json_text.c - see wb_json.h. Refuses: what a value means. */
#include "wb_check.h"

#include "wb_json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

wb_status wb_json_parse(const char *text, size_t bytes, const char *where, json_t **object_out) {
    json_error_t error;
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!object) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for JSON of %zu bytes", where, bytes);
        return wb_fail(WB_CORRUPT, "%s: JSON line %d, byte %d: %s", where, error.line, error.position,
                       error.text);
    }
    if (!json_is_object(object)) {
        json_decref(object);
        return wb_fail(WB_CORRUPT, "%s: expected a JSON object", where);
    }
    *object_out = object;
    return WB_OK;
}

/* A value as it stands in the file, cut to fit a message. */
typedef struct shown {
    char text[80];
    size_t length;
} shown;

/* As much of a piece as there is room for. */
static int add_piece(const char *piece, size_t bytes, void *opaque) {
    shown *s = opaque;
    const size_t room = sizeof s->text - 1 - s->length, n = bytes < room ? bytes : room;
    memcpy(s->text + s->length, piece, n);
    s->length += n;
    return 0;
}

static shown show(const json_t *value) {
    shown s = {.length = 0};
    json_dump_callback(value, add_piece, &s, JSON_ENCODE_ANY | JSON_COMPACT);
    if (s.length == sizeof s.text - 1) memcpy(s.text + s.length - 3, "...", 3);
    return s;
}

wb_status wb_json_wrong_type(const char *key, const json_t *value, const char *expected) {
    return wb_fail(WB_CORRUPT, "%s: expected %s, found %s", key, expected, show(value).text);
}

wb_status wb_json_unsupported(const char *key, const json_t *value, const char *supported) {
    return wb_fail(WB_UNSUPPORTED, "%s: supported is %s, found %s", key, supported, show(value).text);
}

const json_t *wb_json_value(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

wb_status wb_json_int(const json_t *object, const char *key, int32_t fallback, int32_t *value_out) {
    const json_t *value = wb_json_value(object, key);
    if (!value) {
        if (fallback == WB_JSON_REQUIRED)
            return wb_fail(WB_CORRUPT, "%s: expected an integer, found none", key);
        *value_out = fallback;
        return WB_OK;
    }
    if (!json_is_integer(value)) return wb_json_wrong_type(key, value, "an integer");
    json_int_t number = json_integer_value(value);
    if (number < 0 || number > INT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: expected 0..%d, found %s", key, INT32_MAX, show(value).text);
    *value_out = (int32_t)number;
    return WB_OK;
}

wb_status wb_json_number(const json_t *object, const char *key, double fallback, double *value_out) {
    const json_t *value = wb_json_value(object, key);
    if (value && !json_is_number(value)) return wb_json_wrong_type(key, value, "a number");
    *value_out = value ? json_number_value(value) : fallback;
    return WB_OK;
}

wb_status wb_json_bool(const json_t *object, const char *key, bool *value_out) {
    const json_t *value = wb_json_value(object, key);
    if (value && !json_is_boolean(value)) return wb_json_wrong_type(key, value, "true or false");
    *value_out = json_is_true(value);
    return WB_OK;
}

json_t *wb_json_real(float x) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    return json_real(strtod(text, NULL));
}
