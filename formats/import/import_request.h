/* import_request.h - one request of an answer, and where its fields are (internal).
 *
 * Owns: that a field stands in the choice, or around it, under one of several names; one request of a batch
 * of arrays. Refuses: what a field means. */
#ifndef WB_IMPORT_REQUEST_H
#define WB_IMPORT_REQUEST_H

#include "import/import_layout.h"
#include "import/import_value.h"

/* What a field must be to be taken: names are short, and others use them for something else. */
typedef enum import_want {
    IMPORT_WANT_ANY,
    IMPORT_WANT_NUMBERS, /* a list that is empty or begins with a number, or an array of one dimension */
    IMPORT_WANT_INTEGER,
    IMPORT_WANT_TEXT,
    IMPORT_WANT_LIST,
    IMPORT_WANT_NO_SWITCH /* anything but true, false and an integer: what was asked for, or a code */
} import_want;

typedef struct import_request {
    import_value choice; /* the map that the request alone has; kind NONE where the answer is one request */
    import_value answer; /* the map around it */
    uint32_t index, n_choices; /* of n choices this is number `index`, which the answer says or the order */
    size_t batch_row, n_batch; /* of a batch of n_batch this is one; 0: no batch */
    const struct import_parts
        *parts; /* what parts of a stream before this one said (import_stream.h); or NULL */
    int number; /* fields are called "<name>_<number>"; -1: they are called by their names */
} import_request;

/* The field under the first of the names, up to a NULL, that the choice has, else the answer, else maps
 * inside of them, the outer ones first. Kind NONE: there is none. *in_answer_out (may be NULL): not the
 * choice's own. */
import_value wb_import_field(const import_request *request, import_want want, const char *const *names,
                             bool *in_answer_out);

/* For a message: what stands under the first of the names that has anything but a number, which would be a
 * count, as "input_ids: text"; "nothing". */
enum { IMPORT_FOUND_MAX = 96 };
void wb_import_say_found(const import_request *request, const char *const *names,
                         char text_out[IMPORT_FOUND_MAX]);

/* As wb_import_field for a field that is an integer wherever it is there. CORRUPT, naming it, for one that is
 * something else, which would be as if it were not there. */
wb_status wb_import_integer_field(const import_request *request, const char *const *names,
                                  import_value *value_out);

#endif
