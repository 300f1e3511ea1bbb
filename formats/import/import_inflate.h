/* import_inflate.h - the compressed members of an archive, as numpy.savez_compressed writes them (internal).
 *
 * Owns: deflate, whose bytes are held against the size and the checksum that the directory says. Refuses:
 * sizes that deflate cannot reach, before memory is asked for. */
#ifndef WB_IMPORT_INFLATE_H
#define WB_IMPORT_INFLATE_H

#include "wb_zip.h"

/* The bytes of a member, *size_out of them: in the file where it is stored, else in memory of the owner.
 * CORRUPT for bytes that are no deflate, or not those that the directory says. Messages have no prefix. */
wb_status wb_import_inflate(const wb_zip_member *member, wb_owner *owner, const uint8_t **bytes_out,
                            size_t *size_out);

#endif
