/* import_inflate.c - see import_inflate.h. */
#include "import/import_inflate.h"
#include "wb_check.h"

#include <inttypes.h>
#include <limits.h>
#include <zlib.h>

/* A byte of deflate is 1032 at most: 258 of them in two bits. */
enum { MAX_RATIO = 1032 };

static uInt piece_of(size_t left) {
    return left < UINT_MAX ? (uInt)left : UINT_MAX;
}

/* All of `member` into out [member->unpacked]. zlib counts what is left of a piece in 32 bits. */
static int inflate_all(z_stream *z, const wb_zip_member *member, uint8_t *out) {
    size_t in_left = member->size, out_left = member->unpacked;
    int result = Z_OK;
    /* zlib does not write what it reads, and its struct cannot say so. */
    z->next_in = (Bytef *)(uintptr_t)member->bytes;
    z->next_out = out;
    while (result == Z_OK) {
        const uInt in = piece_of(in_left), room = piece_of(out_left);
        z->avail_in = in;
        z->avail_out = room;
        result = inflate(z, Z_NO_FLUSH);
        in_left -= in - z->avail_in;
        out_left -= room - z->avail_out;
        if (result == Z_OK && z->avail_in == in && z->avail_out == room) result = Z_BUF_ERROR;
    }
    return result == Z_STREAM_END && in_left == 0 && out_left == 0 ? Z_OK
           : result == Z_MEM_ERROR                                 ? result
                                                                   : Z_DATA_ERROR;
}

static wb_status check(const wb_zip_member *member, const uint8_t *bytes) {
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    if (member->checksum == 0) return WB_OK;
    const uint32_t found = (uint32_t)crc32_z(0, bytes, member->unpacked);
    if (found != member->checksum)
        return wb_fail(WB_CORRUPT,
                       "expected the checksum %08" PRIx32 ", found %08" PRIx32 ": it has been damaged",
                       member->checksum, found);
#else
    (void)member;
    (void)bytes;
#endif
    return WB_OK;
}

wb_status wb_import_inflate(const wb_zip_member *member, wb_owner *owner, const uint8_t **bytes_out,
                            size_t *size_out) {
    z_stream z = {0};
    uint8_t *bytes = NULL;
    *size_out = member->unpacked;
    *bytes_out = member->bytes;
    if (!member->is_deflated) return WB_OK;
    if (member->unpacked / MAX_RATIO > member->size)
        return wb_fail(WB_CORRUPT, "expected at most %zu bytes of %zu compressed ones, found %zu",
                       member->size * MAX_RATIO, member->size, member->unpacked);
    WB_TRY(WB_OWN_ALLOC(owner, bytes, member->unpacked, 1, "compressed member"));
    /* Raw deflate: an archive has neither header nor checksum of zlib's. */
    if (inflateInit2(&z, -MAX_WBITS) != Z_OK) return wb_fail(WB_OUT_OF_MEMORY, "no memory to decompress");
    const int result = inflate_all(&z, member, bytes);
    inflateEnd(&z);
    if (result == Z_MEM_ERROR) return wb_fail(WB_OUT_OF_MEMORY, "no memory to decompress");
    if (result != Z_OK)
        return wb_fail(WB_CORRUPT, "expected deflate of %zu bytes, found other bytes", member->unpacked);
    WB_TRY(check(member, bytes));
    *bytes_out = bytes;
    return WB_OK;
}
