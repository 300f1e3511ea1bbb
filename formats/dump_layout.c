/* dump_layout.c - what writer and reader of a dump must do alike: the trailer's bytes, the comparison of
 * checksums. */
#include "dump_layout.h"
#include "wb_hash.h"

#include <string.h>

void wb_trailer_fill(uint64_t index_offset, uint8_t trailer_out[WB_TRAILER_BYTES]) {
    uint8_t *payload = trailer_out + WB_TRAILER_HEAD_BYTES;
    memcpy(trailer_out, WB_TRAILER_HEAD, WB_TRAILER_HEAD_BYTES);
    memcpy(payload, WB_TRAILER_MAGIC, 8);
    memcpy(payload + 8, &index_offset, 8);
    uint64_t hash = wb_hash64(payload, 16);
    memcpy(payload + 16, &hash, 8);
}

bool wb_checksum_ok(uint64_t expected, uint64_t found) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    (void)expected;
    (void)found;
    return true;
#else
    return expected == found;
#endif
}
