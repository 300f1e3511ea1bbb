/* wb_json.h - small JSON files: an object from text, and its values with one style of message (not
 * installed). Messages begin with the key; which file it stands in is the caller's to add. */
#ifndef WB_JSON_H
#define WB_JSON_H

#include "wb_base.h"

#include <jansson.h>

/* An object from text; CORRUPT names `where` and the line. Freed with json_decref. */
wb_status wb_json_parse(const char *text, size_t bytes, const char *where, json_t **object_out);

/* The value of a key, owned by the object; NULL when absent or null. */
const json_t *wb_json_value(const json_t *object, const char *key);

#define WB_JSON_REQUIRED (-1)

/* An integer in 0..INT32_MAX; a finer range is the caller's to check. Absent: `fallback`, or CORRUPT where
 * that is WB_JSON_REQUIRED. */
wb_status wb_json_int(const json_t *object, const char *key, int32_t fallback, int32_t *value_out);
wb_status wb_json_number(const json_t *object, const char *key, double fallback, double *value_out);
wb_status wb_json_bool(const json_t *object, const char *key, bool *value_out); /* absent: false */

/* The number that a person would have written for this float: 1e-06f is 1e-06, not 9.99999997e-07. NULL: no
 * memory. */
json_t *wb_json_real(float x);

/* CORRUPT: "<key>: expected <expected>, found <value>", and UNSUPPORTED: "<key>: supported is ...". */
wb_status wb_json_wrong_type(const char *key, const json_t *value, const char *expected);
wb_status wb_json_unsupported(const char *key, const json_t *value, const char *supported);

#endif
