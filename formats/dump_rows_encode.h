/* dump_rows_encode.h - the rows of a run as a dump stores them (internal): cut into chunks, compressed when
 * that gains something, with their checksum; and how that is packed. Refuses: the check of ids, files. */
#ifndef WB_DUMP_ROWS_ENCODE_H
#define WB_DUMP_ROWS_ENCODE_H

#include "dump_pack.h"
#include "wb_memory.h"

/* A run that was encoded. Its arrays belong to the owner that was given. */
typedef struct wb_encoded_run {
    uint32_t start, rows;
    const uint8_t *valid; /* [(rows + 7) / 8], or NULL: all rows are valid */
    wb_codec codec;
    uint32_t n_chunks;
    const uint8_t **chunks; /* [n_chunks] pointers into the caller's rows or into compressed ones */
    size_t *sizes;          /* [n_chunks] bytes */
    uint64_t xxh3;          /* of all chunks */
} wb_encoded_run;

/* Encodes a run of the model's rows without its first `skip` rows. The rows are borrowed until the pack is
 * written. */
wb_status wb_rows_encode(const wb_dump_options *options, const wb_route_model *model,
                         const wb_route_rows *run, uint32_t skip, wb_owner *memory, wb_encoded_run *run_out);

/* Encodes `size` bytes that are no route rows, zstd unless the options say raw; start and rows of the run are
 * the caller's to set. The bytes are borrowed until the pack is written. */
wb_status wb_bytes_encode(const wb_dump_options *options, const uint8_t *bytes, size_t size, wb_owner *memory,
                          wb_encoded_run *run_out);

/* Packs a run as an object of `routes`. */
void wb_rows_pack(wb_pack *pack, const wb_encoded_run *run);

#endif
