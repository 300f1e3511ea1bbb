/* wb_zip.h - the zip archive that torch.save and numpy.savez write: where its members lie in the bytes of the
 * file (not installed).
 *
 * Owns: the central directory, zip64 too. Refuses: members that are encrypted, compressing and
 * what is compressed (wb_zip_next says where it lies), archives of several disks, names given twice,
 * members of another checksum than the directory's, unless that is 0: torch can be told to write none. */
#ifndef WB_ZIP_H
#define WB_ZIP_H

#include "wb_memory.h"

/* Borrows the bytes. */
typedef struct wb_zip {
    const uint8_t *bytes;
    size_t size;
    size_t directory, directory_end; /* the records of all members are bytes [directory, directory_end) */
    uint64_t n_members;
} wb_zip;

typedef struct wb_zip_member {
    const uint8_t *bytes; /* NULL: there is none of the name */
    size_t size;          /* bytes that it takes in the file */
    bool is_deflated;     /* of wb_zip_next alone */
    size_t unpacked;      /* bytes that it has, as the directory says; `size` where it is stored */
    uint32_t checksum;    /* CRC-32 of those; 0: none was written */
} wb_zip_member;

/* CORRUPT unless the bytes end with the directory of an archive. */
wb_status wb_zip_open(const uint8_t *bytes, size_t size, wb_zip *zip_out);

/* Holds all members that are stored against their checksums, unless these are 0. CORRUPT, naming the one that
 * has been damaged or does not lie within the file. */
wb_status wb_zip_check(const wb_zip *zip);

/* The member "<folder>/<name>", whatever the folder. CORRUPT for one that does not lie within the file or is
 * there twice, UNSUPPORTED for one that is not stored as it is. */
wb_status wb_zip_find(const wb_zip *zip, const char *name, wb_zip_member *member_out);

typedef struct wb_zip_name {
    const char *text; /* not NUL-terminated */
    size_t length;
} wb_zip_name;

/* The member whose record is at byte *at, which begins as zip->directory, and steps over it; there are
 * zip->n_members. It is stored or deflated; the errors of wb_zip_find. */
wb_status wb_zip_next(const wb_zip *zip, size_t *at, wb_zip_name *name_out, wb_zip_member *member_out);

/* ---- writing ----------------------------------------------------------------------------------- */

typedef wb_status wb_zip_write_fn(void *ctx, const void *bytes, size_t size);

/* An archive of members that are stored, written from its beginning to its end. A zeroed struct with `write`
 * and `ctx` is an empty one. Archives, and members, may have 4 GiB and more. */
typedef struct wb_zip_writer {
    wb_zip_write_fn *write;
    void *ctx;
    uint64_t at; /* bytes written */
    struct wb_zip_written *members;
    size_t n_members, room;
} wb_zip_writer;

wb_status wb_zip_begin(wb_zip_writer *zip, const char *name); /* the next member, whose bytes follow */
wb_status wb_zip_add(wb_zip_writer *zip, const void *bytes, size_t size);
wb_status wb_zip_end(wb_zip_writer *zip);    /* of the member */
wb_status wb_zip_finish(wb_zip_writer *zip); /* the directory; free comes after it */
void wb_zip_free(wb_zip_writer *zip);

/* CRC-32 of bytes that come in pieces: it begins as 0. */
uint32_t wb_zip_checksum(uint32_t before, const void *bytes, size_t size);

#endif
