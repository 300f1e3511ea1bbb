/* wb_formats.h - what passes between Waybill's rooms, and how it is kept in a file.
 *
 * Owns: the route tensor and the record, the dump file (msgpack) with its writer, reader and validator.
 * Refuses: MPI, CUDA, models.
 *
 * Letters for dimensions, errors, outputs and threads: as in wb_base.h, which this header includes.
 */
#ifndef WB_FORMATS_H
#define WB_FORMATS_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the route tensor --------------------------------------------------------------------------- */

/* Which model routes belong to. `fingerprint` is a hex string made from the architecture (not from the
 * weights, which change every step): routes of one model are refused by another. */
typedef struct wb_route_model {
    char name[64];              /* model_type of config.json, "qwen3_moe" */
    char fingerprint[33];       /* 32 hex digits and NUL */
    char router[16];            /* router type, "softmax_norm", ... (wb_router_name) */
    uint32_t num_hidden_layers; /* all layers, dense ones included */
    uint32_t n_moe_layers;      /* L */
    const uint32_t *moe_layers; /* [L] ascending model-layer indices; owner: whoever owns this struct */
    uint32_t num_experts;       /* E, 1..65536 */
    uint32_t top_k;             /* K, 1..E */
} wb_route_model;

/* WB_U8 when E <= 256, else WB_U16: by E, never by the ids seen. */
WB_API wb_dtype wb_route_dtype(uint32_t num_experts);

/* Checks E, K, L, the layer list and the strings; a message that names the field otherwise. */
WB_API wb_status wb_route_model_check(const wb_route_model *model);

/* MISMATCH, with a message naming the first field that differs, unless both are the same model. */
WB_API wb_status wb_route_model_match(const wb_route_model *expected, const wb_route_model *found);

/* A run of consecutive rows. Row r holds the experts chosen when the token at absolute position
 * start + r was fed: ids[r][l][k], logical expert ids, slot order as routed, little endian, of
 * wb_route_dtype(E). Whether a row exists is a bit (`valid`, LSB first, bit r), never a value: with 256
 * experts every u8 is an expert. `valid` NULL means that all rows are valid. */
typedef struct wb_route_rows {
    uint32_t start;
    uint32_t rows;
    const void *ids;      /* host, [rows][L][K] u8 or u16; not necessarily aligned for u16 */
    const uint8_t *valid; /* host, [(rows + 7) / 8] or NULL */
} wb_route_rows;

/* Tokens [start, end) of the request were computed (fed) under weight version `weight_version`. */
typedef struct wb_span {
    uint32_t start, end;
    uint64_t weight_version;
} wb_span;

typedef enum wb_finish {
    WB_FINISH_NONE,   /* still running or unknown; "none" in a dump */
    WB_FINISH_STOP,   /* a stop token was sampled (it is the last token); "stop" */
    WB_FINISH_LENGTH, /* max tokens reached; "length" */
    WB_FINISH_ABORT   /* aborted by the caller; "abort" */
} wb_finish;
WB_API const char *wb_finish_name(wb_finish finish);

/* One request with what it generated: the only thing that passes from rollout to trainer.
 * N tokens have N-1 rows: the last sampled token was never fed. Absent arrays are NULL with count 0. */
typedef struct wb_record {
    const char *rid;        /* request id, NUL-terminated, unique in a dump file */
    uint64_t group;         /* GRPO prompt group */
    uint32_t sample;        /* index in the group */
    uint32_t prompt_len;    /* tokens[0 .. prompt_len) is the prompt */
    uint32_t n_tokens;      /* prompt and sampled */
    const uint32_t *tokens; /* [n_tokens]; from a mapped dump: 4-byte aligned by the reader */
    const float *logprobs;  /* [n_tokens - prompt_len] of the sampled tokens, at temperature 1; or NULL */
    wb_finish finish;
    uint32_t n_spans;
    const wb_span *spans;        /* ascending, disjoint */
    uint32_t n_routes;           /* runs of rows, ascending and disjoint; 0: routes were not asked for */
    const wb_route_rows *routes; /* [n_routes] */
} wb_record;

/* ---- rows of a record --------------------------------------------------------------------------- */

/* Bytes of one row: L * K * dtype size. */
WB_API size_t wb_route_row_bytes(const wb_route_model *model);

/* Id `index` of a row of `dtype` (u8 or u16, little endian, any alignment); choice k of MoE layer l has
 * index l * K + k. */
static inline uint32_t wb_route_id(const void *row, wb_dtype dtype, size_t index) {
    const uint8_t *bytes = (const uint8_t *)row;
    if (dtype == WB_U8) return bytes[index];
    return (uint32_t)bytes[2 * index] | (uint32_t)bytes[2 * index + 1] << 8;
}

/* Writes what wb_route_id reads; `id` fits `dtype`. */
static inline void wb_route_id_set(void *row, wb_dtype dtype, size_t index, uint32_t id) {
    uint8_t *bytes = (uint8_t *)row;
    if (dtype == WB_U8) {
        bytes[index] = (uint8_t)id;
    } else {
        bytes[2 * index] = (uint8_t)id;
        bytes[2 * index + 1] = (uint8_t)(id >> 8);
    }
}

/* Validity bits, one a row, LSB first; `valid` NULL: all rows are valid. */
static inline bool wb_row_valid(const uint8_t *valid, size_t row) {
    return !valid || (valid[row / 8] >> (row % 8) & 1) != 0;
}
static inline void wb_row_set_valid(uint8_t *valid, size_t row, bool is_valid) {
    uint8_t bit = (uint8_t)(1u << row % 8);
    valid[row / 8] = (uint8_t)(is_valid ? valid[row / 8] | bit : valid[row / 8] & ~bit);
}

/* How many of the rows [row, rows) starting with `row` are alike, all valid or all not; row < rows. */
WB_API uint32_t wb_row_stretch(const uint8_t *valid, uint32_t row, uint32_t rows);

/* The valid rows of a record in ascending position:
 *
 *     for (wb_row_walk walk = wb_rows_of(model, record); wb_row_next(&walk);) use(walk.position, walk.row);
 *
 * Borrows model and record. */
typedef struct wb_row_walk {
    uint32_t position; /* absolute, of the current row */
    const void *row;   /* [L][K] */
    const wb_record *record;
    size_t row_bytes;
    uint32_t run, next; /* where the next row is looked for */
} wb_row_walk;
WB_API wb_row_walk wb_rows_of(const wb_route_model *model, const wb_record *record);
WB_API bool wb_row_next(wb_row_walk *walk);

/* The row at absolute position `position`, [L][K]; NULL when the record has none that is valid there. */
WB_API const void *wb_record_row(const wb_route_model *model, const wb_record *record, uint32_t position);

/* counts[l][e] += how often expert e was chosen in MoE layer l of the record's valid rows at positions
 * [first, end). counts: [L][E]. Ids are taken as checked (wb_record_check): an id that is not below E
 * writes out of bounds. */
WB_API void wb_record_count(const wb_route_model *model, const wb_record *record, uint32_t first,
                            uint32_t end, uint64_t *counts);

/* Checks a record against its model: runs ascending and inside [0, n_tokens - 1), spans ordered, every
 * valid row's ids < E and distinct within a layer. `deep` false skips the ids. Messages name the rid, the
 * position and the MoE layer. */
WB_API wb_status wb_record_check(const wb_route_model *model, const wb_record *record, bool deep);

/* ---- the dump: writing -------------------------------------------------------------------------- */

typedef enum wb_codec { WB_CODEC_RAW, WB_CODEC_ZSTD } wb_codec;

typedef struct wb_dump_options {
    wb_codec codec;       /* of the rows */
    int zstd_level;       /* 1..19 */
    size_t chunk_bytes;   /* rows beyond this many bytes become a list of bins; <= 1 GiB */
    const char *producer; /* free text for the header, or NULL */
    bool trust_ids;       /* append skips the check of ids (range, distinct): for rows a top-k kernel made */
} wb_dump_options;
WB_API wb_dump_options wb_dump_options_default(void); /* raw, level 3, 1 GiB, NULL, false */

typedef struct wb_dump_writer wb_dump_writer;

/* Creates `path` (refuses to overwrite) and writes the header. One writer per file; a directory of such
 * files ("part-<rank>.wbr", extension .wbr) is one dump. `options` NULL: the defaults. */
WB_API wb_status wb_dump_create(const char *path, const wb_route_model *model, const wb_dump_options *options,
                                wb_dump_writer **writer_out);

/* Appends one record and hands it to the system (no user-space buffering survives the call), so that a
 * crash loses no whole record. When an earlier record of the same group in this file starts with the same
 * prompt and bit-identical rows, they are stored as a reference to it ("prefix"). A duplicate rid, or a
 * record that fails wb_record_check (deep unless trust_ids), is refused and nothing is written. A failed
 * write (disk full) leaves the file cut back to its last whole record. */
WB_API wb_status wb_dump_append(wb_dump_writer *writer, const wb_record *record);

/* Writes index and trailer, syncs, closes and frees, also on failure. NULL is a no-op. A file that is
 * never finished stays readable: readers fall back to a scan. */
WB_API wb_status wb_dump_finish(wb_dump_writer *writer);

/* ---- the dump: reading -------------------------------------------------------------------------- */

typedef struct wb_dump wb_dump;

/* What opening found out about the files' integrity. */
typedef struct wb_dump_info {
    uint64_t files, records;
    uint64_t bytes;               /* of all files */
    uint64_t files_without_index; /* cut, or still being written: scanned instead */
    uint64_t lost_bytes;          /* bytes after the last whole record of such files */
    char lost_where[256];         /* first such place: "part-0.wbr: byte 1234: ...", or "" */
} wb_dump_info;

/* Opens a dump file or a directory of *.wbr files (in name order). Files are mapped; rows of codec raw are
 * read in place. A file that was cut yields every whole record before the cut, and info says what was
 * lost; bytes that are damaged rather than cut (checksum, structure) are CORRUPT. Files of another major
 * version, of another model than the first file, or with an unknown codec are refused by name. Memory used
 * is bounded by a small multiple of the file size whatever the bytes say. */
WB_API wb_status wb_dump_open(const char *path, wb_dump **dump_out);
WB_API void wb_dump_close(wb_dump *dump); /* NULL is a no-op */

WB_API const wb_route_model *wb_dump_model(const wb_dump *dump); /* owner: dump */
WB_API wb_dump_info wb_dump_get_info(const wb_dump *dump);

/* Record i in file order, i < info.records. Everything it points to belongs to the dump and stays valid
 * until wb_dump_close (or, for rows that are compressed or in several chunks, until wb_dump_release of every
 * record that has them). Rows' checksums are verified at first access; ids only by wb_dump_verify or
 * wb_record_check, so a consumer that indexes by them checks first. */
WB_API wb_status wb_dump_record(wb_dump *dump, uint64_t i, wb_record *record_out);
/* Which record has this rid; NOT_FOUND names it. */
WB_API wb_status wb_dump_index(const wb_dump *dump, const char *rid, uint64_t *i_out);
WB_API wb_status wb_dump_find(wb_dump *dump, const char *rid,
                              wb_record *record_out); /* NOT_FOUND names rid */
WB_API void wb_dump_release(wb_dump *dump, uint64_t i);

/* File-level facts about record i that the record does not hold, for tools. */
typedef struct wb_dump_entry {
    const char *file; /* owner: dump */
    uint64_t offset;  /* byte of the record's first byte in it */
    uint64_t bytes;   /* of the whole record in the file */
    uint32_t n_tokens;
    uint64_t stored_rows;      /* its own rows: without those of the prefix */
    uint64_t stored_row_bytes; /* of its own rows as stored, after the codec */
    wb_codec codec;
    const char *prefix_rid; /* record its first rows are shared with, or NULL; owner: dump */
    uint32_t prefix_rows;
} wb_dump_entry;
WB_API wb_status wb_dump_get_entry(const wb_dump *dump, uint64_t i, wb_dump_entry *entry_out);

/* Everything wb_dump_open checks, and of every record checksum, shapes, ids in range and distinct.
 * `progress` (may be NULL) is called after each record. The first fault is returned. */
WB_API wb_status wb_dump_verify(const char *path, void (*progress)(void *ctx, uint64_t done, uint64_t total),
                                void *ctx, wb_dump_info *info_out);

#ifdef __cplusplus
}
#endif
#endif
