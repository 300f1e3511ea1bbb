/* wb_json.h - small JSON files: an object from text, and its values with one style of message (not
 * installed). */
#ifndef WB_JSON_H
#define WB_JSON_H

#include "wb_base.h"

#include <jansson.h>

/* An object from text; CORRUPT names `where` and the line. Freed with json_decref. */
wb_status wb_json_parse(const char *text, size_t bytes, const char *where, json_t **object_out);

#endif
