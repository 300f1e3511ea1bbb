/* dump_indexer.h - the indexer rows of a record as a dump stores them (internal).
 *
 * Cells follow each other as in wb_indexer_rows, each as numbers of 7 bits a byte, low bits first, the top
 * bit set in all bytes but the last: 2 * count + 1 where the choice is all of 0 .. count - 1, else 2 * count,
 * then the first position and for each further one how far it lies beyond the smallest that it could be.
 * Codec raw stores these bytes as they are, zstd compressed. Refuses: to believe a count. */
#ifndef WB_DUMP_INDEXER_H
#define WB_DUMP_INDEXER_H

#include "dump_parse.h"
#include "dump_rows_encode.h"

/* Encodes rows that passed wb_record_check. */
wb_status wb_indexer_encode(const wb_dump_options *options, const wb_route_model *model,
                            const wb_indexer_rows *rows, wb_owner *memory, wb_encoded_run *run_out);

/* Decodes a run whose checksum was verified; arrays belong to `memory`. CORRUPT, without the name of file and
 * record, for bytes that are not as above. What the positions are is for wb_record_check. */
wb_status wb_indexer_decode(const wb_file_bytes *file, const wb_stored_run *run, const wb_route_model *model,
                            wb_owner *memory, wb_indexer_rows *rows_out);

#endif
