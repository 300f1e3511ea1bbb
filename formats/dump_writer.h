/* dump_writer.h - what the writer of a dump lets dump_copy.c do (internal): records as another dump stores
 * them. Refuses: to look into their bytes. */
#ifndef WB_DUMP_WRITER_H
#define WB_DUMP_WRITER_H

#include "wb_formats.h"

/* A record as a dump stores it, and its seal: the checksum that ends it, which is of its rows' checksums
 * too. */
typedef struct wb_record_bytes {
    const uint8_t *bytes;
    size_t size;
    uint64_t seal;
} wb_record_bytes;

/* What wb_dump_append looks at before it writes, and that the model is the writer's. */
wb_status wb_writer_check(const wb_dump_writer *writer, const wb_route_model *model, const wb_record *record);

/* Whether the writer was given a record of this rid and seal by wb_writer_put. */
bool wb_writer_has(const wb_dump_writer *writer, const char *rid, uint64_t seal);

/* Writes the record at the end of the file. INVALID_ARGUMENT: the file has one of this rid. */
wb_status wb_writer_put(wb_dump_writer *writer, const char *rid, wb_record_bytes stored);

#endif
