/* zip_write.c - see wb_zip.h: writing. Sizes and checksums stand after each member, where they are known,
 * and in the directory. How long a member will be is not known when its header is written, so that every header
 * says zip64, as numpy's do; directory and end say it where a number needs it. */
#include "wb_check.h"
#include "wb_zip.h"

#include <stdlib.h>
#include <string.h>

typedef struct wb_zip_written {
    char name[64];
    uint32_t checksum;
    uint64_t size, at; /* at: of its header */
} written;

enum {
    EXTRA_BYTES = 20, /* the zip64 field of a header: what it is, its length, two sizes */
    HEADER_BYTES = 30,
    AFTER_BYTES = 24,
    ENTRY_BYTES = 46,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    END_BYTES = 22,
    VERSION = 45 /* of who reads it: 4.5, which has zip64 */
};

/* What a byte, and what a byte before 1 to 7 bytes of zero, add to a checksum. */
static void fill_tables(uint32_t table[8][256]) {
    for (uint32_t i = 0; i < 256; i++) {
        table[0][i] = i;
        for (int bit = 0; bit < 8; bit++)
            table[0][i] = table[0][i] >> 1 ^ (table[0][i] & 1 ? UINT32_C(0xedb88320) : 0);
    }
    for (int zeros = 1; zeros < 8; zeros++)
        for (uint32_t i = 0; i < 256; i++) {
            const uint32_t before = table[zeros - 1][i];
            table[zeros][i] = before >> 8 ^ table[0][before & 0xff];
        }
}

/* CRC-32 as zip has it: reflected, all bits turned before and after. Eight bytes are looked up at once: one by
 * one, each waits for the one before it. */
uint32_t wb_zip_checksum(uint32_t before, const void *bytes, size_t size) {
    const uint8_t *at = bytes;
    uint32_t table[8][256], crc = ~before;
    fill_tables(table);
    for (; size >= 8; size -= 8, at += 8)
        crc = table[7][(crc ^ at[0]) & 0xff] ^ table[6][(crc >> 8 ^ at[1]) & 0xff] ^
              table[5][(crc >> 16 ^ at[2]) & 0xff] ^ table[4][crc >> 24 ^ at[3]] ^ table[3][at[4]] ^
              table[2][at[5]] ^ table[1][at[6]] ^ table[0][at[7]];
    while (size-- > 0) crc = crc >> 8 ^ table[0][(crc ^ *at++) & 0xff];
    return ~crc;
}

static uint8_t *put(uint8_t *at, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

static wb_status emit(wb_zip_writer *zip, const void *bytes, size_t size) {
    WB_TRY(zip->write(zip->ctx, bytes, size));
    zip->at += size;
    return WB_OK;
}

/* A number where the format before zip64 has room for `bytes` of it: all ones say that it stands elsewhere. */
static uint8_t *put_narrow(uint8_t *at, uint64_t value, unsigned bytes) {
    const uint64_t most = (UINT64_C(1) << 8 * bytes) - 1;
    return put(at, value < most ? value : most, bytes);
}

/* What header and directory say alike: the version, sizes after the member, stored, the first of January
 * 1980. */
static uint8_t *put_common(uint8_t *at, const written *w, uint32_t checksum, uint64_t size, size_t extra) {
    at = put(at, VERSION, 2);
    at = put(at, 8, 2);
    at = put(at, 0, 4);
    at = put(at, 0x21, 2);
    at = put(at, checksum, 4);
    at = put_narrow(at, size, 4);
    at = put_narrow(at, size, 4);
    at = put(at, strlen(w->name), 2);
    return put(at, extra, 2);
}

wb_status wb_zip_begin(wb_zip_writer *zip, const char *name) {
    uint8_t header[HEADER_BYTES], extra[EXTRA_BYTES], *at = header;
    if (strlen(name) >= sizeof zip->members->name)
        return wb_fail(WB_INVALID_ARGUMENT, "zip: the name %s is too long", name);
    WB_TRY(WB_GROW(zip->members, zip->n_members + 1, &zip->room, "zip"));
    written *w = &zip->members[zip->n_members++];
    *w = (written){.at = zip->at};
    memcpy(w->name, name, strlen(name) + 1);
    at = put(at, 0x04034b50, 4);
    put_common(at, w, 0, UINT64_MAX, sizeof extra);
    at = put(extra, 1, 2);
    at = put(at, 16, 2);
    at = put(at, 0, 8);
    put(at, 0, 8);
    WB_TRY(emit(zip, header, sizeof header));
    WB_TRY(emit(zip, name, strlen(name)));
    return emit(zip, extra, sizeof extra);
}

wb_status wb_zip_add(wb_zip_writer *zip, const void *bytes, size_t size) {
    written *w = &zip->members[zip->n_members - 1];
    WB_TRY(emit(zip, bytes, size));
    w->checksum = wb_zip_checksum(w->checksum, bytes, size);
    w->size += size;
    return WB_OK;
}

wb_status wb_zip_end(wb_zip_writer *zip) {
    const written *w = &zip->members[zip->n_members - 1];
    uint8_t after[AFTER_BYTES], *at = put(after, 0x08074b50, 4);
    at = put(at, w->checksum, 4);
    at = put(at, w->size, 8);
    put(at, w->size, 8);
    return emit(zip, after, sizeof after);
}

/* A zip64 field of those numbers of a member that the directory has no room for. Returns its bytes, or 0. */
static size_t put_extra(uint8_t extra[4 + 3 * 8], const written *w) {
    uint8_t *at = extra + 4;
    if (w->size >= UINT32_MAX) {
        at = put(at, w->size, 8);
        at = put(at, w->size, 8);
    }
    if (w->at >= UINT32_MAX) at = put(at, w->at, 8);
    const size_t bytes = (size_t)(at - extra);
    put(put(extra, 1, 2), bytes - 4, 2);
    return bytes > 4 ? bytes : 0;
}

static wb_status emit_entry(wb_zip_writer *zip, const written *w) {
    uint8_t entry[ENTRY_BYTES], extra[4 + 3 * 8], *at = put(entry, 0x02014b50, 4);
    const size_t extra_bytes = put_extra(extra, w);
    at = put(at, VERSION, 2);
    at = put_common(at, w, w->checksum, w->size, extra_bytes);
    at = put(at, 0, 8); /* no comment, disk 0, no attributes */
    at = put(at, 0, 2);
    put_narrow(at, w->at, 4);
    WB_TRY(emit(zip, entry, sizeof entry));
    WB_TRY(emit(zip, w->name, strlen(w->name)));
    return emit(zip, extra, extra_bytes);
}

/* The end record of zip64 and where it is, which stand before the ordinary one. */
static wb_status emit_end64(wb_zip_writer *zip, uint64_t directory) {
    const uint64_t end64 = zip->at;
    uint8_t end[END64_BYTES + LOCATOR_BYTES], *at = put(end, 0x06064b50, 4);
    at = put(at, END64_BYTES - 12, 8); /* what follows */
    at = put(at, VERSION, 2);
    at = put(at, VERSION, 2);
    at = put(at, 0, 8); /* disk 0 */
    at = put(at, zip->n_members, 8);
    at = put(at, zip->n_members, 8);
    at = put(at, end64 - directory, 8);
    at = put(at, directory, 8);
    at = put(at, 0x07064b50, 4);
    at = put(at, 0, 4);
    at = put(at, end64, 8);
    put(at, 1, 4);
    return emit(zip, end, sizeof end);
}

wb_status wb_zip_finish(wb_zip_writer *zip) {
    const uint64_t directory = zip->at;
    uint8_t end[END_BYTES], *at = put(end, 0x06054b50, 4);
    for (size_t i = 0; i < zip->n_members; i++) WB_TRY(emit_entry(zip, &zip->members[i]));
    const uint64_t bytes = zip->at - directory;
    if (zip->n_members >= UINT16_MAX || bytes >= UINT32_MAX || directory >= UINT32_MAX)
        WB_TRY(emit_end64(zip, directory));
    at = put(at, 0, 4);
    at = put_narrow(at, zip->n_members, 2);
    at = put_narrow(at, zip->n_members, 2);
    at = put_narrow(at, bytes, 4);
    at = put_narrow(at, directory, 4);
    put(at, 0, 2);
    return emit(zip, end, sizeof end);
}

void wb_zip_free(wb_zip_writer *zip) {
    free(zip->members);
    *zip = (wb_zip_writer){0};
}
