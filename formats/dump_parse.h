/* dump_parse.h - from a file's bytes to what they say (internal): header (dump_header.c), records
 * (dump_record.c, dump_runs.c), index (dump_parse.c), as in dump_layout.h.
 *
 * Owns: every check of one object against itself. Refuses: other objects, decoding, I/O. Results point
 * into the file's bytes, and to arrays that belong to the owner given. Messages begin
 * "<file>: byte <position>: ". */
#ifndef WB_DUMP_PARSE_H
#define WB_DUMP_PARSE_H

#include "codec.h"
#include "dump_sampling.h"
#include "wb_hash.h"
#include "wb_memory.h"
#include "wb_msgpack_scan.h"

typedef struct wb_file_bytes {
    const char *name; /* for messages */
    const uint8_t *bytes;
    uint64_t size;
} wb_file_bytes;

typedef struct wb_stored_run {
    uint32_t start, rows;
    wb_codec codec;
    uint64_t xxh3;
    const uint8_t *valid; /* [(rows + 7) / 8] or NULL */
    uint64_t data_at;     /* byte of the data value in the file */
    uint32_t n_chunks;
    const uint8_t *chunk;  /* the only chunk when n_chunks is 1 */
    uint64_t stored_bytes; /* of all chunks */
} wb_stored_run;

typedef struct wb_stored_record {
    const char *rid; /* not NUL-terminated */
    size_t rid_length;
    uint64_t group;
    uint32_t sample, prompt_len, n_tokens;
    const uint8_t *tokens;   /* u32 [n_tokens], any alignment */
    const uint8_t *logprobs; /* f32 [n_tokens - prompt_len], any alignment, or NULL */
    wb_finish finish;
    uint32_t n_spans, n_runs, prefix_rows;
    wb_span *spans;      /* [n_spans] */
    wb_stored_run *runs; /* [n_runs] */
    bool has_indexer;
    wb_stored_run indexer;
    const char *prefix_rid;
    size_t prefix_rid_length;
    wb_stored_sampling sampling;
} wb_stored_record;

/* WB_CORRUPT with the cursor's error and its place. */
wb_status wb_parse_fail(const wb_file_bytes *file, const wb_scan *scan);

/* Whether a key, which may be NULL, is `name`. */
bool wb_key_is(const char *key, size_t length, const char *name);

/* Reads the next key of a map: its number among `names` [n], n up to 32, or n for any other. The bits of
 * *seen are the named ones read before, of which none may come again. */
uint32_t wb_scan_key(wb_scan *scan, const char *const *names, uint32_t n, uint32_t *seen);

/* Where the object at `begin` ends. When the file ends first, *cut_out is true and *end_out the file's
 * size. */
wb_status wb_object_end(const wb_file_bytes *file, uint64_t begin, uint64_t *end_out, bool *cut_out);

/* Verifies the xxh3 that ends the map [begin, end): `hash` has seen what counts before byte `hashed` and is
 * given the rest. */
wb_status wb_seal_check(const wb_file_bytes *file, uint64_t begin, uint64_t end, uint64_t hashed,
                        wb_hash *hash);

/* Parses the header, which is [0, end). */
wb_status wb_parse_header(const wb_file_bytes *file, uint64_t end, wb_owner *memory,
                          wb_route_model *model_out);

/* Whether the object at `begin` is a map whose first key is "index". */
bool wb_is_index(const wb_file_bytes *file, uint64_t begin, uint64_t end);

/* Parses the record [begin, end) and verifies its seal, not its rows' checksum. */
wb_status wb_parse_record(const wb_file_bytes *file, uint64_t begin, uint64_t end,
                          const wb_route_model *model, wb_owner *memory, wb_stored_record *record_out);

/* The index [begin, end), its seal verified: a cursor at its first pair, and how many there are. */
wb_status wb_parse_index(const wb_file_bytes *file, uint64_t begin, uint64_t end, wb_scan *pairs_out,
                         uint32_t *n_out);

#endif
