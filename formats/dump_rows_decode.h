/* dump_rows_decode.h - the rows of a run as a dump stores them (internal): their checksum, and what they
 * decode to. Messages do not name the file or the record. Refuses: rows beyond the number that the run
 * states. */
#ifndef WB_DUMP_ROWS_DECODE_H
#define WB_DUMP_ROWS_DECODE_H

#include "dump_parse.h"
#include "packed.h"

/* Whether the stored bytes, all chunks joined, have the checksum that the run states. */
bool wb_rows_intact(const wb_file_bytes *file, const wb_stored_run *run);

/* Decodes all chunks of a run into rows_out, [rows] of the model's rows, which they must fill exactly, each
 * with whole rows: CORRUPT otherwise. */
wb_status wb_rows_decode(const wb_file_bytes *file, const wb_stored_run *run, const wb_route_model *model,
                         wb_packed_scratch *scratch, uint8_t *rows_out);

/* All chunks of a run that wb_bytes_encode made, as one block: where they lie, or decoded into memory of
 * `memory`. CORRUPT where they cannot be decoded. */
wb_status wb_bytes_decode(const wb_file_bytes *file, const wb_stored_run *run, wb_owner *memory,
                          const uint8_t **bytes_out, size_t *size_out);

#endif
