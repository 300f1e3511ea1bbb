/* json_text.c - see wb_json.h. Refuses: what a value means. */
#include "wb_check.h"
#include "wb_json.h"

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
