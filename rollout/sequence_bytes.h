/* sequence_bytes.h - a sequence as bytes, in which it goes to another rank of the job, and back: without what
 * its record alone is to say of it (group, sample, the first row that is returned), which its home knows.
 * Refuses: bytes of another build or from a file, which nobody has checked. */
#ifndef WB_SEQUENCE_BYTES_H
#define WB_SEQUENCE_BYTES_H

#include "sequence.h"

/* Bytes of the sequence as it stands, a multiple of 8; without its rows where these are not wanted. */
size_t wb_sequence_bytes(const wb_sequence *sequence, bool with_rows);

/* Writes them at `to`, 8-byte aligned. */
void wb_sequence_write(const wb_sequence *sequence, bool with_rows, uint8_t *to);

/* The sequence that was written as `bytes` [n], 8-byte aligned, with room for all that it can grow to, for
 * the engine of these limits. MISMATCH where they are not as long as they say. */
wb_status wb_sequence_create_from(const uint8_t *bytes, size_t n, const wb_request_limits *limits,
                                  wb_sequence **sequence_out);

/* Makes room in `sequence`, from which the one that was written as `bytes` [n] was made, for what has
 * become of it; then wb_sequence_read, which cannot fail, makes it the same and returns how it ended. */
wb_status wb_sequence_reserve_read(wb_sequence *sequence, const uint8_t *bytes, size_t n);
wb_finish wb_sequence_read(wb_sequence *sequence, const uint8_t *bytes);

#endif
