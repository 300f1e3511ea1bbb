/* dump_state.h - what an open dump holds (internal): dump_files.c has its files in memory while they are
 * needed, dump_open.c finds their records, dump_read.c reads them. */
#ifndef WB_DUMP_STATE_H
#define WB_DUMP_STATE_H

#include "dump_parse.h"
#include "packed.h"
#include "wb_string_table.h"

/* Maps of one dump at a time. The kernel gives a process 65,530 by default, and others need some too. */
enum { WB_DUMP_MAX_MAPS = 16384 };

typedef struct wb_dump_file {
    const char *path;     /* as messages say it; owner: the dump's memory */
    const char *name;     /* its last part */
    const uint8_t *bytes; /* NULL: not in memory, or empty */
    /* As it was when it was opened first; what came later is not looked at. */
    uint64_t size, device, inode;
    uint64_t passed_begin, passed_end; /* not needed for now, but mapped pages of it are still there */
    uint32_t users;                    /* who need the bytes where they are */
    bool known;                        /* it was opened once: size, device and inode are set */
    bool copied;                       /* bytes are from malloc, not mapped */
} wb_dump_file;

/* A record as the caller sees it, made when it is given and kept while it is held. It is a user of its
 * file. */
typedef struct wb_loaded {
    wb_owner memory; /* of the arrays below and of those in `stored`, but not of `joined` */
    wb_stored_record stored;
    const uint32_t *tokens; /* where they are mapped, or a copy when that is not aligned; NULL: none */
    const float *logprobs;  /* the same; as are sampling_logprobs and the mask */
    const float *sampling_logprobs;
    const uint32_t *mask_ids, *mask_ends;
    wb_indexer_rows indexer;
    wb_route_rows *routes; /* [n_routes]; the shared run first when there is a prefix */
    uint32_t n_routes;
    bool in_place;   /* own rows are used where they are mapped */
    uint8_t *joined; /* else, while they are needed: all own rows, decoded, from malloc */
    size_t joined_bytes;
} wb_loaded;

typedef struct wb_dump_record_place {
    const char *rid;        /* owner: the table of rids */
    uint64_t offset, bytes; /* in its file */
    wb_loaded *loaded;      /* owned; NULL while nobody needs it */
    uint32_t file;
    uint32_t users; /* records that are held and whose first rows are this one's */
    uint64_t held;  /* how often it was given by wb_dump_record and not yet released */
    bool intact;    /* the checksum of its rows was verified once */
    /* The record that has its first rows is lost: it is given without them (dump_salvage.c). */
    bool without_prefix;
} wb_dump_record_place;

struct wb_dump {
    wb_owner memory; /* of the names of files and of the model's layers */
    wb_route_model model;
    bool has_model;
    int directory;       /* descriptor that names are opened in; -1: the dump is one file */
    wb_dump_file *files; /* [n_files] */
    size_t n_files, files_capacity;
    uint32_t *mapped; /* [n_mapped] the files that are mapped, at most max_maps */
    size_t n_mapped, max_maps;
    size_t n_mapped_used;          /* those of them that have users */
    size_t hand;                   /* where in `mapped` a file without users is looked for */
    wb_dump_record_place *records; /* [n_records] */
    size_t n_records, records_capacity;
    wb_string_table rids; /* rid -> index of its record */
    wb_dump_info info;
    /* What records are decoded with is kept for the next one: memory that is new for each of them costs more
     * than decoding. */
    wb_packed_scratch scratch;
    uint8_t *spare; /* [spare_bytes] a block of rows that no record needs any more, or NULL */
    size_t spare_bytes;
};

/* wb_dump_open with at most `max_maps` (1..) maps at a time. */
wb_status wb_dump_open_mapping(const char *path, size_t max_maps, wb_dump **dump_out);

/* Names the file, or the *.wbr files of the directory, in name order. What was taken when it fails is in
 * `dump`. */
wb_status wb_dump_list_files(wb_dump *dump, const char *path);
void wb_dump_free_files(wb_dump *dump);

/* Adds the record [begin, end) of a file; CORRUPT when its rid is there already. */
wb_status wb_dump_add_record(wb_dump *dump, uint32_t file, const char *rid, size_t length, uint64_t begin,
                             uint64_t end);

/* Brings a file's bytes into memory, where they stay until as many wb_dump_file_drop as there were successes
 * of this. IO when the file is no longer the one that was opened, or shorter. */
wb_status wb_dump_file_use(wb_dump *dump, size_t file);
void wb_dump_file_drop(wb_dump *dump, size_t file);

/* Bytes [begin, end) of a file are not needed for now: their pages leave the process, which has them again
 * from the file when they are read. So who reads a dump from end to end holds a record of it, not all. Records
 * that lie behind each other leave together, a MiB at a time, however small they are. */
void wb_dump_file_forget(wb_dump *dump, size_t file, uint64_t begin, uint64_t end);

/* Of a file that has a user. */
wb_file_bytes wb_dump_bytes(const wb_dump *dump, size_t file);

/* Parses record i and checks it and its rows' checksums, unless it is loaded. The rows of a shared prefix are
 * not looked for, those that have to be decoded are not made. */
wb_status wb_dump_load(wb_dump *dump, uint64_t i);
void wb_dump_unload(wb_dump *dump, uint64_t i); /* a no-op unless it is loaded */

/* The runs of a loaded record that are its own; the first of its routes may be a shared one. */
wb_route_rows *wb_loaded_own_runs(const wb_loaded *loaded);

/* The loaded record i as its user sees it. */
wb_record wb_dump_as_record(const wb_dump *dump, uint64_t i);

/* CORRUPT, with the record's place before `why`. */
wb_status wb_dump_record_fail(const wb_dump *dump, uint64_t i, const char *why);

#endif
