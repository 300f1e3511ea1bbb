/* zip_write.c - see wb_zip.h: writing. Sizes and checksums stand after each member, where they are known,
 * and in the directory. */
#include "wb_check.h"
#include "wb_zip.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct wb_zip_written {
    char name[64];
    uint32_t checksum, size, at; /* at: of its header */
} written;

enum { HEADER_BYTES = 30, AFTER_BYTES = 16, ENTRY_BYTES = 46, END_BYTES = 22 };

/* CRC-32 as zip has it: reflected, all bits turned before and after. */
uint32_t wb_zip_checksum(uint32_t before, const void *bytes, size_t size) {
    const uint8_t *at = bytes;
    uint32_t table[256], crc = ~before;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? UINT32_C(0xedb88320) : 0);
    }
    for (size_t i = 0; i < size; i++) crc = crc >> 8 ^ table[(crc ^ at[i]) & 0xff];
    return ~crc;
}

static uint8_t *put(uint8_t *at, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

static wb_status emit(wb_zip_writer *zip, const void *bytes, size_t size) {
    if (size > UINT32_MAX - zip->at)
        return wb_fail(WB_CAPACITY, "zip: expected an archive of less than 4 GiB");
    WB_TRY(zip->write(zip->ctx, bytes, size));
    zip->at += size;
    return WB_OK;
}

/* What header and directory say alike: version 2.0, sizes after the member, stored, the first of January
 * 1980. */
static uint8_t *put_common(uint8_t *at, const written *w, bool in_directory) {
    at = put(at, 20, 2);
    at = put(at, 8, 2);
    at = put(at, 0, 4);
    at = put(at, 0x21, 2);
    at = put(at, in_directory ? w->checksum : 0, 4);
    at = put(at, in_directory ? w->size : 0, 4);
    at = put(at, in_directory ? w->size : 0, 4);
    at = put(at, strlen(w->name), 2);
    return put(at, 0, 2);
}

wb_status wb_zip_begin(wb_zip_writer *zip, const char *name) {
    uint8_t header[HEADER_BYTES], *at = header;
    if (strlen(name) >= sizeof zip->members->name)
        return wb_fail(WB_INVALID_ARGUMENT, "zip: the name %s is too long", name);
    WB_TRY(WB_GROW(zip->members, zip->n_members + 1, &zip->room, "zip"));
    written *w = &zip->members[zip->n_members++];
    *w = (written){.at = (uint32_t)zip->at};
    memcpy(w->name, name, strlen(name) + 1);
    at = put(at, 0x04034b50, 4);
    put_common(at, w, false);
    WB_TRY(emit(zip, header, sizeof header));
    return emit(zip, name, strlen(name));
}

wb_status wb_zip_add(wb_zip_writer *zip, const void *bytes, size_t size) {
    written *w = &zip->members[zip->n_members - 1];
    WB_TRY(emit(zip, bytes, size));
    w->checksum = wb_zip_checksum(w->checksum, bytes, size);
    w->size += (uint32_t)size;
    return WB_OK;
}

wb_status wb_zip_end(wb_zip_writer *zip) {
    const written *w = &zip->members[zip->n_members - 1];
    uint8_t after[AFTER_BYTES], *at = put(after, 0x08074b50, 4);
    at = put(at, w->checksum, 4);
    at = put(at, w->size, 4);
    put(at, w->size, 4);
    return emit(zip, after, sizeof after);
}

static wb_status emit_entry(wb_zip_writer *zip, const written *w) {
    uint8_t entry[ENTRY_BYTES], *at = put(entry, 0x02014b50, 4);
    at = put(at, 20, 2);
    at = put_common(at, w, true);
    at = put(at, 0, 8); /* no comment, disk 0, no attributes */
    at = put(at, 0, 2);
    put(at, w->at, 4);
    WB_TRY(emit(zip, entry, sizeof entry));
    return emit(zip, w->name, strlen(w->name));
}

wb_status wb_zip_finish(wb_zip_writer *zip) {
    const uint64_t directory = zip->at;
    uint8_t end[END_BYTES], *at = put(end, 0x06054b50, 4);
    if (zip->n_members >= UINT16_MAX)
        return wb_fail(WB_CAPACITY, "zip: expected fewer than %d members, found %zu", UINT16_MAX,
                       zip->n_members);
    for (size_t i = 0; i < zip->n_members; i++) WB_TRY(emit_entry(zip, &zip->members[i]));
    at = put(at, 0, 4);
    at = put(at, zip->n_members, 2);
    at = put(at, zip->n_members, 2);
    at = put(at, zip->at - directory, 4);
    at = put(at, directory, 4);
    put(at, 0, 2);
    return emit(zip, end, sizeof end);
}

void wb_zip_free(wb_zip_writer *zip) {
    free(zip->members);
    *zip = (wb_zip_writer){0};
}
