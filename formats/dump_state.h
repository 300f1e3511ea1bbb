/* dump_state.h - what an open dump holds (internal): dump_open.c fills it, dump_read.c reads records from
 * it. */
#ifndef WB_DUMP_STATE_H
#define WB_DUMP_STATE_H

#include "dump_parse.h"
#include "wb_string_table.h"

typedef struct wb_dump_file {
    char *name;           /* without its directory; owned */
    const uint8_t *bytes; /* mapped, or NULL when empty */
    uint64_t size;
} wb_dump_file;

/* A record as the caller sees it, made at first access and kept until close. */
typedef struct wb_loaded {
    wb_stored_record stored;
    uint32_t *tokens;      /* owned copy when the mapped ones are not aligned, else NULL */
    float *logprobs;       /* the same */
    wb_route_rows *routes; /* owned, [n_routes]; the shared run first when there is a prefix */
    uint32_t n_routes;
    bool in_place;   /* own rows are used where they are mapped */
    uint8_t *joined; /* else, while they are needed: all own rows, decoded; owned */
} wb_loaded;

typedef struct wb_dump_record_place {
    const char *rid;        /* owner: the table of rids */
    uint64_t offset, bytes; /* in its file */
    wb_loaded *loaded;      /* owned; NULL before the first access */
    uint32_t file;
    uint32_t users; /* records held by the caller whose first rows are this one's */
    bool held;      /* by the caller: between wb_dump_record and wb_dump_release */
} wb_dump_record_place;

struct wb_dump {
    wb_route_model model;
    bool has_model;
    wb_dump_file *files;
    uint32_t n_files;
    wb_dump_record_place *records; /* [n_records] */
    size_t n_records, records_capacity;
    wb_string_table rids; /* rid -> index of its record */
    wb_dump_info info;
};

wb_file_bytes wb_dump_bytes(const wb_dump *dump, uint32_t file);

void wb_loaded_free(wb_loaded *loaded); /* NULL is a no-op */

#endif
