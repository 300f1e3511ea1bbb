/* fuzz_msgpack_scan.c - the bounded cursor against msgpack-c.
 * What the cursor steps over, msgpack-c unpacks, to the same length; what it calls invalid, msgpack-c refuses
 * too; every beginning of an object is incomplete, never something else. msgpack-c is only given bytes whose
 * counts the cursor has held against the bytes left. */
#include "wb_msgpack_scan.h"

#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#define PREFIXES 512 /* objects up to this long are tried cut at every byte */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds) {
    if (!holds) abort();
}

/* The length of the object msgpack-c finds, 0 for none. */
static size_t unpack(const uint8_t *data, size_t size) {
    msgpack_unpacked unpacked;
    size_t at = 0;
    msgpack_unpacked_init(&unpacked);
    msgpack_unpack_return found = msgpack_unpack_next(&unpacked, (const char *)data, size, &at);
    msgpack_unpacked_destroy(&unpacked);
    return found == MSGPACK_UNPACK_SUCCESS || found == MSGPACK_UNPACK_EXTRA_BYTES ? at : 0;
}

/* The typed readers agree with the type byte, and leave the cursor where it was when it is another type. */
static void check_types(const uint8_t *data, size_t size) {
    for (int type = 0; type < 5; type++) {
        wb_scan s = wb_scan_range(data, 0, size);
        size_t length = 0;
        uint32_t count = 0;
        const void *payload = NULL;
        if (type == 0) count = wb_scan_map(&s);
        if (type == 1) count = wb_scan_array(&s);
        if (type == 2) payload = wb_scan_str(&s, &length);
        if (type == 3) payload = wb_scan_bin(&s, &length);
        if (type == 4) wb_scan_uint(&s, UINT64_MAX);
        require(s.pos <= size);
        if (s.error != WB_SCAN_OK)
            require(s.pos == 0 && !payload && count == 0 && s.why);
        else
            require(count <= size && length <= size);
        if (payload && s.error == WB_SCAN_OK) require((const uint8_t *)payload + length == data + s.pos);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    wb_scan scan = wb_scan_range(data, 0, size);
    bool whole = wb_scan_skip(&scan);
    require(whole == (scan.error == WB_SCAN_OK));
    require(scan.pos <= size);
    check_types(data, size);
    if (whole) {
        require(scan.pos > 0 && unpack(data, scan.pos) == scan.pos);
        for (size_t cut = 0; cut < scan.pos && scan.pos <= PREFIXES; cut++) {
            wb_scan part = wb_scan_range(data, 0, cut);
            require(!wb_scan_skip(&part) && part.error == WB_SCAN_INCOMPLETE);
        }
    } else if (scan.error == WB_SCAN_INVALID && strcmp(scan.why, "nested too deeply") != 0) {
        require(unpack(data, size) == 0);
    }
    return 0;
}
