/* dump_state.h - what an open dump holds (internal): dump_files.c maps its files, dump_open.c finds their
 * records, dump_read.c reads them. */
#ifndef WB_DUMP_STATE_H
#define WB_DUMP_STATE_H

#include "dump_parse.h"
#include "wb_string_table.h"

typedef struct wb_dump_file {
    const char *name;     /* without its directory; owner: the dump's memory */
    const uint8_t *bytes; /* mapped, or NULL when empty */
    uint64_t size;
} wb_dump_file;

/* A record as the caller sees it, made at first access and kept until close. */
typedef struct wb_loaded {
    wb_owner memory; /* of the arrays below and of those in `stored`, but not of `joined` */
    wb_stored_record stored;
    const uint32_t *tokens; /* where they are mapped, or a copy when that is not aligned; NULL: none */
    const float *logprobs;  /* the same; as are sampling_logprobs and the mask */
    const float *sampling_logprobs;
    const uint32_t *mask_ids, *mask_ends;
    wb_route_rows *routes; /* [n_routes]; the shared run first when there is a prefix */
    uint32_t n_routes;
    bool in_place;   /* own rows are used where they are mapped */
    uint8_t *joined; /* else, while they are needed: all own rows, decoded, from malloc */
} wb_loaded;

typedef struct wb_dump_record_place {
    const char *rid;        /* owner: the table of rids */
    uint64_t offset, bytes; /* in its file */
    wb_loaded *loaded;      /* owned; NULL before the first access */
    uint32_t file;
    uint32_t users; /* records that are held and whose first rows are this one's */
    uint64_t held;  /* how often it was given by wb_dump_record and not yet released */
} wb_dump_record_place;

struct wb_dump {
    wb_owner memory; /* of the names of files and of the model's layers */
    wb_route_model model;
    bool has_model;
    wb_dump_file *files; /* [n_files] */
    size_t n_files, files_capacity;
    wb_dump_record_place *records; /* [n_records] */
    size_t n_records, records_capacity;
    wb_string_table rids; /* rid -> index of its record */
    wb_dump_info info;
};

/* Names and maps the file, or the *.wbr files of the directory, in name order. What was mapped when it fails
 * is in `dump`. */
wb_status wb_dump_map_files(wb_dump *dump, const char *path);
void wb_dump_unmap_files(wb_dump *dump);

wb_file_bytes wb_dump_bytes(const wb_dump *dump, size_t file);

/* Parses and checks record i and its rows' checksums, at the first call for it. The rows of a shared prefix
 * are not looked for, those that have to be decoded are not made. */
wb_status wb_dump_load(wb_dump *dump, uint64_t i);
void wb_loaded_free(wb_loaded *loaded); /* NULL is a no-op */

/* The runs of a loaded record that are its own; the first of its routes may be a shared one. */
wb_route_rows *wb_loaded_own_runs(const wb_loaded *loaded);

/* The loaded record i as its user sees it. */
wb_record wb_dump_as_record(const wb_dump *dump, uint64_t i);

/* CORRUPT, with the record's place before `why`. */
wb_status wb_dump_record_fail(const wb_dump *dump, uint64_t i, const char *why);

#endif
