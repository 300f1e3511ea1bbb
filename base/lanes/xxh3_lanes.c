/* xxh3_lanes.c - see hash_lanes.h. xxHash chooses its vectors by what this file is compiled for; the state
 * has one layout for all. */
#include "hash_lanes.h"
#include "wb_isa.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

static uint64_t once(const void *bytes, size_t size) {
    return XXH3_64bits(bytes, size);
}

static void add(void *state, const void *bytes, size_t size) {
    XXH3_64bits_update(state, bytes, size);
}

const wb_hash_lanes WB_LANES(wb_hash_lanes) = {once, add};
