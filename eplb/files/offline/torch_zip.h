/* torch_zip.h - the zip archive that torch.save writes: where its members lie in the bytes of the file.
 *
 * Owns: the central directory, zip64 too. Refuses: members that are compressed or encrypted, archives of
 * several disks, names given twice, members of another checksum than the directory's, unless that is 0:
 * torch can be told to write none. */
#ifndef WB_TORCH_ZIP_H
#define WB_TORCH_ZIP_H

#include "wb_base.h"

/* Borrows the bytes. */
typedef struct wb_torch_zip {
    const uint8_t *bytes;
    size_t size;
    size_t directory, directory_end; /* the records of all members are bytes [directory, directory_end) */
    uint64_t n_members;
} wb_torch_zip;

typedef struct wb_torch_member {
    const uint8_t *bytes; /* NULL: there is none of the name */
    size_t size;
} wb_torch_member;

/* CORRUPT unless the bytes end with the directory of an archive. */
wb_status wb_torch_zip_open(const uint8_t *bytes, size_t size, wb_torch_zip *zip_out);

/* Holds all members that are stored against their checksums, unless these are 0. CORRUPT, naming the one that
 * has been damaged or does not lie within the file. */
wb_status wb_torch_zip_check(const wb_torch_zip *zip);

/* The member "<folder>/<name>", whatever the folder. CORRUPT for one that does not lie within the file or is
 * there twice, UNSUPPORTED for one that is not stored as it is. */
wb_status wb_torch_zip_find(const wb_torch_zip *zip, const char *name, wb_torch_member *member_out);

#endif
