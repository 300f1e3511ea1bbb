/* import_source.h - the documents of a file of answers, one by one (internal).
 *
 * Owns: which of JSON, events of a stream, msgpack, .npz and .npy the bytes are, and where a document ends.
 * Refuses: what a document says. A document that cannot be read is an error, after which the next one can be
 * asked for. */
#ifndef WB_IMPORT_SOURCE_H
#define WB_IMPORT_SOURCE_H

#include "import/import_value.h"

typedef enum import_form { IMPORT_JSON, IMPORT_EVENTS, IMPORT_MSGPACK, IMPORT_NPZ, IMPORT_NPY } import_form;

typedef struct import_source {
    const uint8_t *bytes;
    size_t size, pos, begin; /* begin: of the document that was begun last */
    import_form form;
    uint64_t line, documents; /* of JSON: the line at pos, from 1 on; documents that were begun */
    json_t *json;             /* the one being read, or NULL */
    msgpack_zone *zone;       /* likewise */
    msgpack_object object;
    wb_owner memory; /* of members */
    const import_member *members;
    import_value list; /* kind LIST: the document is a list of answers, of which `next_item` is next */
    size_t next_item;
    char where[64]; /* "line 3", "object 2, item 5"; of the document given out last */
} import_source;

/* Begins at the first document; a .npz archive is looked at as a whole. */
wb_status wb_import_source_open(const uint8_t *bytes, size_t size, import_source *source_out);
void wb_import_source_close(import_source *source);

/* The next document, which lives until the next call. *found_out false: there is none left. */
wb_status wb_import_source_next(import_source *source, import_value *value_out, bool *found_out);

#endif
