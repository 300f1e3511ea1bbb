/* dump_parse.c - objects of a dump: where one ends, its seal, the index; see dump_parse.h.
 *
 * Index and records are read by the bounded cursor alone: it allocates nothing, whereas a tree of msgpack-c
 * takes 24 bytes for each 1-byte object of a hostile list. Refuses: what is in a header (dump_header.c) or
 * in a record (dump_record.c). */
#include "dump_parse.h"
#include "dump_layout.h"

#include <inttypes.h>
#include <string.h>

wb_status wb_parse_fail(const wb_file_bytes *file, const wb_scan *scan) {
    return wb_fail(WB_CORRUPT, "%s: byte %zu: %s", file->name, scan->error_pos, scan->why);
}

wb_status wb_object_end(const wb_file_bytes *file, uint64_t begin, uint64_t *end_out, bool *cut_out) {
    wb_scan scan = wb_scan_range(file->bytes, begin, file->size);
    bool whole = wb_scan_skip(&scan);
    if (!whole && scan.error != WB_SCAN_INCOMPLETE) return wb_parse_fail(file, &scan);
    *end_out = whole ? scan.pos : file->size;
    *cut_out = !whole;
    return WB_OK;
}

bool wb_key_is(const char *key, size_t length, const char *name) {
    return key && strlen(name) == length && memcmp(key, name, length) == 0;
}

uint32_t wb_scan_key(wb_scan *s, const char *const *names, uint32_t n, uint32_t *seen) {
    const size_t at = s->pos;
    size_t length = 0;
    const char *key = wb_scan_str(s, &length);
    uint32_t k = 0;
    while (k < n && !wb_key_is(key, length, names[k])) k++;
    if (k == n) return n;
    if (*seen >> k & 1) wb_scan_refuse(s, at, "a key is there twice");
    *seen |= UINT32_C(1) << k;
    return k;
}

bool wb_is_index(const wb_file_bytes *file, uint64_t begin, uint64_t end) {
    wb_scan scan = wb_scan_range(file->bytes, begin, end);
    size_t length = 0;
    wb_scan_map(&scan);
    const char *key = wb_scan_str(&scan, &length);
    return wb_key_is(key, length, "index");
}

wb_status wb_seal_check(const wb_file_bytes *file, uint64_t begin, uint64_t end, uint64_t hashed,
                        wb_hash *hash) {
    const uint8_t *seal = file->bytes + end - WB_SEAL_BYTES;
    if (end - hashed < WB_SEAL_BYTES || memcmp(seal, WB_SEAL_KEY, WB_SEAL_KEY_BYTES) != 0)
        return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": the object does not end with its xxh3", file->name,
                       begin);
    uint64_t expected = 0;
    for (size_t i = WB_SEAL_KEY_BYTES; i < WB_SEAL_BYTES; i++) expected = expected << 8 | seal[i];
    wb_hash_add(hash, file->bytes + hashed, (size_t)(end - WB_SEAL_VALUE_BYTES - hashed));
    uint64_t found = wb_hash_value(hash);
    if (wb_checksum_ok(expected, found)) return WB_OK;
    return wb_fail(WB_CORRUPT,
                   "%s: byte %" PRIu64 ": the checksum of the object there: expected %016" PRIx64
                   ", found %016" PRIx64,
                   file->name, begin, expected, found);
}

wb_status wb_parse_index(const wb_file_bytes *file, uint64_t begin, uint64_t end, wb_scan *pairs_out,
                         uint32_t *n_out) {
    wb_scan scan = wb_scan_range(file->bytes, begin, end);
    size_t length = 0;
    wb_scan_map(&scan);
    const char *key = wb_scan_str(&scan, &length);
    if (!wb_key_is(key, length, "index")) wb_scan_refuse(&scan, begin, "expected the index");
    uint32_t n = wb_scan_map(&scan);
    if (scan.error != WB_SCAN_OK) return wb_parse_fail(file, &scan);
    wb_hash hash;
    wb_hash_start(&hash);
    WB_TRY(wb_seal_check(file, begin, end, begin, &hash));
    *pairs_out = scan;
    *n_out = n;
    return WB_OK;
}
