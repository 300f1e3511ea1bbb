/* dump_record.h - what the files that parse a record share (internal): the parser's state, and its parts.
 * Refuses: other objects of a dump (dump_parse.h). */
#ifndef WB_DUMP_RECORD_H
#define WB_DUMP_RECORD_H

#include "dump_parse.h"

typedef struct wb_record_parser {
    const wb_file_bytes *file;
    const wb_route_model *model;
    wb_scan scan;
    wb_hash hash;
    uint64_t hashed;  /* file position up to which the hash has seen the record */
    wb_owner *memory; /* of the record's arrays */
    wb_stored_record *out;
    wb_status status; /* of what the cursor cannot say; its message is set */
} wb_record_parser;

/* dump_runs.c: an array for `count` members of `size` bytes, each of which takes at least `min_bytes` of the
 * file; NULL on failure, which the parser holds. */
void *wb_record_members(wb_record_parser *parser, uint32_t count, size_t min_bytes, size_t size);

/* dump_runs.c: the values of the keys `routes` and `indexer`. */
void wb_parse_routes(wb_record_parser *parser);
void wb_parse_indexer(wb_record_parser *parser);

#endif
