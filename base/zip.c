/* zip.c - see wb_zip.h. Every offset and size is compared with the bytes that are there before it is
 * used; nothing is allocated. */
#include "wb_check.h"
#include "wb_zip.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Records of the format: their signatures, and the bytes before their variable parts. */
enum {
    END_BYTES = 22,
    LOCATOR_BYTES = 20,
    END64_BYTES = 56,
    ENTRY_BYTES = 46,
    LOCAL_BYTES = 30,
    MAX_COMMENT = 65535
};
static const uint8_t end_mark[4] = "PK\x05\x06", locator_mark[4] = "PK\x06\x07", end64_mark[4] = "PK\x06\x06",
                     entry_mark[4] = "PK\x01\x02", local_mark[4] = "PK\x03\x04";

static uint64_t little(const uint8_t *bytes, unsigned n) {
    uint64_t value = 0;
    while (n-- > 0) value = value << 8 | bytes[n];
    return value;
}

static bool has_mark(const wb_zip *zip, uint64_t at, size_t record_bytes, const uint8_t *mark) {
    return at <= zip->size && record_bytes <= zip->size - at && memcmp(zip->bytes + at, mark, 4) == 0;
}

/* ---- the directory ------------------------------------------------------------------------------- */

/* The last record of the file, which a comment may follow. */
static wb_status find_end(const wb_zip *zip, size_t *at_out) {
    for (size_t comment = 0; comment <= MAX_COMMENT && comment + END_BYTES <= zip->size; comment++) {
        const size_t at = zip->size - END_BYTES - comment;
        if (!has_mark(zip, at, END_BYTES, end_mark)) continue;
        if (little(zip->bytes + at + 20, 2) != comment) continue;
        *at_out = at;
        return WB_OK;
    }
    return wb_fail(WB_CORRUPT,
                   "zip: expected a directory at the end of the %zu bytes, found none: is it cut?",
                   zip->size);
}

static wb_status set_directory(wb_zip *zip, uint64_t n, uint64_t at, uint64_t bytes, uint64_t end) {
    if (at > end || bytes > end - at || n > bytes / ENTRY_BYTES)
        return wb_fail(WB_CORRUPT,
                       "zip: expected a directory of %" PRIu64 " members below byte %" PRIu64
                       ", found %" PRIu64 " bytes at %" PRIu64,
                       n, end, bytes, at);
    zip->n_members = n;
    zip->directory = (size_t)at;
    zip->directory_end = (size_t)(at + bytes);
    return WB_OK;
}

/* zip64 has its own end record, which a locator before the ordinary one points to. */
static wb_status read_end64(wb_zip *zip, size_t end) {
    if (end < LOCATOR_BYTES || !has_mark(zip, end - LOCATOR_BYTES, LOCATOR_BYTES, locator_mark))
        return wb_fail(WB_CORRUPT, "zip: expected a zip64 locator before byte %zu", end);
    const uint64_t at = little(zip->bytes + end - LOCATOR_BYTES + 8, 8);
    if (!has_mark(zip, at, END64_BYTES, end64_mark))
        return wb_fail(WB_CORRUPT, "zip: expected a zip64 end record at byte %" PRIu64, at);
    const uint8_t *record = zip->bytes + at;
    if (little(record + 16, 4) != 0 || little(record + 20, 4) != 0)
        return wb_fail(WB_UNSUPPORTED, "zip: expected one disk");
    return set_directory(zip, little(record + 32, 8), little(record + 48, 8), little(record + 40, 8), at);
}

wb_status wb_zip_open(const uint8_t *bytes, size_t size, wb_zip *zip_out) {
    wb_zip zip = {.bytes = bytes, .size = size};
    size_t end = 0;
    WB_TRY(find_end(&zip, &end));
    const uint64_t disk = little(bytes + end + 4, 2), n = little(bytes + end + 10, 2),
                   length = little(bytes + end + 12, 4), at = little(bytes + end + 16, 4);
    if (n == UINT16_MAX || length == UINT32_MAX || at == UINT32_MAX)
        WB_TRY(read_end64(&zip, end));
    else if (disk != 0)
        return wb_fail(WB_UNSUPPORTED, "zip: expected one disk");
    else
        WB_TRY(set_directory(&zip, n, at, length, end));
    *zip_out = zip;
    return WB_OK;
}

/* ---- members ------------------------------------------------------------------------------------- */

/* One record of the directory. */
typedef struct zip_entry {
    const char *name;
    size_t name_bytes;
    const uint8_t *extra;
    size_t extra_bytes;
    unsigned flags, method;
    uint32_t checksum;            /* CRC-32 of the member; 0: none was written */
    uint64_t packed, size, local; /* bytes in the file, bytes of the member, where its header is */
} zip_entry;

/* Takes the 8-byte values that a zip64 extra field has in place of those that are all ones. */
static wb_status widen(zip_entry *e) {
    uint64_t *wide[] = {&e->size, &e->packed, &e->local}; /* the order of the field */
    size_t at = 0, next = 0;
    if (e->size != UINT32_MAX && e->packed != UINT32_MAX && e->local != UINT32_MAX) return WB_OK;
    while (e->extra_bytes - at >= 4) {
        const uint64_t id = little(e->extra + at, 2), bytes = little(e->extra + at + 2, 2);
        if (bytes > e->extra_bytes - at - 4) break;
        for (size_t i = 0; id == 1 && i < 3; i++) {
            if (*wide[i] != UINT32_MAX || next + 8 > bytes) continue;
            *wide[i] = little(e->extra + at + 4 + next, 8);
            next += 8;
        }
        if (id == 1) return WB_OK;
        at += 4 + (size_t)bytes;
    }
    return wb_fail(WB_CORRUPT, "zip: expected the zip64 sizes of a member, found none");
}

/* Reads the record at *at and steps over it. */
static wb_status next_entry(const wb_zip *zip, size_t *at, zip_entry *entry_out) {
    const size_t left = zip->directory_end - *at;
    const uint8_t *record = zip->bytes + *at;
    if (left < ENTRY_BYTES || memcmp(record, entry_mark, 4) != 0)
        return wb_fail(WB_CORRUPT, "zip: byte %zu: expected a record of the directory", *at);
    zip_entry e = {.name = (const char *)record + ENTRY_BYTES,
                   .name_bytes = (size_t)little(record + 28, 2),
                   .extra_bytes = (size_t)little(record + 30, 2),
                   .flags = (unsigned)little(record + 8, 2),
                   .method = (unsigned)little(record + 10, 2),
                   .checksum = (uint32_t)little(record + 16, 4),
                   .packed = little(record + 20, 4),
                   .size = little(record + 24, 4),
                   .local = little(record + 42, 4)};
    const size_t bytes = ENTRY_BYTES + e.name_bytes + e.extra_bytes + (size_t)little(record + 32, 2);
    if (bytes > left)
        return wb_fail(WB_CORRUPT, "zip: byte %zu: a record of the directory is longer than what is left",
                       *at);
    e.extra = record + ENTRY_BYTES + e.name_bytes;
    *at += bytes;
    *entry_out = e;
    return widen(entry_out);
}

static bool is_stored(const zip_entry *e) {
    return e->method == 0 && (e->flags & 1) == 0 && e->packed == e->size;
}

static bool is_deflated(const zip_entry *e) {
    return e->method == 8 && (e->flags & 1) == 0;
}

/* Where the bytes of a member are: after its own header, whose name and extra field have their own
 * lengths. */
static wb_status locate(const wb_zip *zip, const char *name, const zip_entry *e, bool may_be_deflated,
                        wb_zip_member *member_out) {
    const bool deflated = is_deflated(e);
    if (!is_stored(e) && !(deflated && may_be_deflated))
        return wb_fail(WB_UNSUPPORTED, "zip: %s: expected a member that is stored, found %s (method %u)",
                       name, (e->flags & 1) != 0 ? "an encrypted one" : "a compressed one", e->method);
    if (!has_mark(zip, e->local, LOCAL_BYTES, local_mark))
        return wb_fail(WB_CORRUPT, "zip: %s: expected its header at byte %" PRIu64, name, e->local);
    const uint8_t *header = zip->bytes + e->local;
    const uint64_t at = e->local + LOCAL_BYTES + little(header + 26, 2) + little(header + 28, 2);
    if (at > zip->directory || e->packed > zip->directory - at)
        return wb_fail(WB_CORRUPT,
                       "zip: %s: expected %" PRIu64 " bytes from byte %" PRIu64
                       ", found the directory at %zu",
                       name, e->packed, at, zip->directory);
    *member_out = (wb_zip_member){zip->bytes + at, (size_t)e->packed, deflated, (size_t)e->size, e->checksum};
    return WB_OK;
}

static bool is_named(const zip_entry *e, const char *name) {
    const char *slash = memchr(e->name, '/', e->name_bytes);
    if (!slash) return false;
    const size_t bytes = e->name_bytes - (size_t)(slash + 1 - e->name);
    return bytes == strlen(name) && memcmp(slash + 1, name, bytes) == 0;
}

wb_status wb_zip_find(const wb_zip *zip, const char *name, wb_zip_member *member_out) {
    wb_zip_member found = {0};
    size_t at = zip->directory;
    for (uint64_t i = 0; i < zip->n_members; i++) {
        zip_entry e;
        WB_TRY(next_entry(zip, &at, &e));
        if (!is_named(&e, name)) continue;
        if (found.bytes) return wb_fail(WB_CORRUPT, "zip: %s is there twice", name);
        WB_TRY(locate(zip, name, &e, false, &found));
    }
    *member_out = found;
    return WB_OK;
}

wb_status wb_zip_next(const wb_zip *zip, size_t *at, wb_zip_name *name_out, wb_zip_member *member_out) {
    zip_entry e;
    char name[80];
    WB_TRY(next_entry(zip, at, &e));
    snprintf(name, sizeof name, "%.*s", e.name_bytes < sizeof name ? (int)e.name_bytes : 79, e.name);
    WB_TRY(locate(zip, name, &e, true, member_out));
    *name_out = (wb_zip_name){e.name, e.name_bytes};
    return WB_OK;
}

/* ---- checksums ----------------------------------------------------------------------------------- */

/* torch.serialization.set_crc32_options(False) leaves them 0: what cannot be compared is taken, and so are
 * members that are not read, compressed ones. *left: bytes that members may still have together, so that many
 * of the same bytes do not take time without end. */
static wb_status check_member(const wb_zip *zip, const zip_entry *e, size_t *left) {
    char name[80];
    wb_zip_member member = {0};
    if (e->checksum == 0 || !is_stored(e)) return WB_OK;
    snprintf(name, sizeof name, "%.*s", e->name_bytes < sizeof name ? (int)e->name_bytes : 79, e->name);
    WB_TRY(locate(zip, name, e, false, &member));
    if (member.size > *left)
        return wb_fail(WB_CORRUPT, "zip: %s: expected members of other bytes than those before it", name);
    *left -= member.size;
    const uint32_t found = wb_zip_checksum(0, member.bytes, member.size);
    if (found == e->checksum) return WB_OK;
    return wb_fail(WB_CORRUPT,
                   "zip: %s: expected the checksum %08" PRIx32 ", found %08" PRIx32 ": it has been damaged",
                   name, e->checksum, found);
}

wb_status wb_zip_check(const wb_zip *zip) {
    size_t at = zip->directory, left = zip->size;
    for (uint64_t i = 0; i < zip->n_members; i++) {
        zip_entry e;
        WB_TRY(next_entry(zip, &at, &e));
        WB_TRY(check_member(zip, &e, &left));
    }
    return WB_OK;
}
