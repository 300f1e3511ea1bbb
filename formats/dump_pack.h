/* dump_pack.h - one msgpack object on its way to a file (internal).
 *
 * Keys and numbers are packed by msgpack-c into `text`; bulk bins are only referenced, and go from the
 * caller's memory to the system in one writev. Packing cannot fail half way: a failure sticks and
 * wb_pack_seal or wb_pack_write reports it. */
#ifndef WB_DUMP_PACK_H
#define WB_DUMP_PACK_H

#include "wb_formats.h"

#include <msgpack.h>

typedef struct wb_piece {
    const void *data; /* the caller's bytes, or NULL: those of `text` from byte `at` on */
    size_t at, size;
    bool sealed; /* part of what the object's checksum is of */
} wb_piece;

typedef struct wb_pack {
    msgpack_packer packer;
    char *text;
    size_t text_size, text_capacity;
    wb_piece *pieces;
    size_t n_pieces, pieces_capacity;
    bool failed; /* out of memory */
} wb_pack;

void wb_pack_init(wb_pack *pack);
/* Makes it empty again and keeps its memory. */
void wb_pack_reset(wb_pack *pack);
void wb_pack_free(wb_pack *pack);

void wb_pack_map(wb_pack *pack, size_t pairs);
void wb_pack_array(wb_pack *pack, size_t members);
void wb_pack_str(wb_pack *pack, const char *text, size_t length);
/* A NUL-terminated string: keys too. */
void wb_pack_text(wb_pack *pack, const char *text);
void wb_pack_uint(wb_pack *pack, uint64_t value);
void wb_pack_float(wb_pack *pack, float value);
/* A number that takes 9 bytes whatever its value: checksums. */
void wb_pack_uint64(wb_pack *pack, uint64_t value);
/* A bin of `size` < 4 GiB bytes at `data`, which stay the caller's and are read by seal and write. */
void wb_pack_bin(wb_pack *pack, const void *data, size_t size, bool sealed);
/* Whole objects at `data`, which stay the caller's and are read by write. */
void wb_pack_borrow(wb_pack *pack, const void *data, size_t size);
/* Bytes outside any msgpack-c call: the trailer. Copied. */
void wb_pack_bytes(wb_pack *pack, const void *data, size_t size);

/* Appends the last pair of a map: the key xxh3 and the checksum of what is there so far. */
wb_status wb_pack_seal(wb_pack *pack);

uint64_t wb_pack_size(const wb_pack *pack);

/* Writes the object at byte `offset` of the file, whole or not at all: after a failure the file is cut
 * back to `offset`. `path` is for the message. */
wb_status wb_pack_write(const wb_pack *pack, int fd, uint64_t offset, const char *path);

#endif
