/* hash.c - see wb_hash.h. Owns: the choice of XXH3, which is compiled in: so it is twice as fast as the
 * distribution's shared library, which is built without -O3. Refuses: a hash of its own. */
#include "hash_lanes.h"
#include "wb_hash.h"
#include "wb_isa.h"

#include <inttypes.h>
#include <stdio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

_Static_assert(sizeof(XXH3_state_t) <= sizeof(wb_hash), "wb_hash holds the library's state");
_Static_assert(_Alignof(XXH3_state_t) <= _Alignof(wb_hash), "wb_hash is aligned as the library's state");

static const wb_hash_lanes *lanes(void) {
    static const wb_hash_lanes *const of_isa[WB_ISAS] = WB_ISA_EACH(wb_hash_lanes);
    return of_isa[wb_isa_of_machine()];
}

uint64_t wb_hash64(const void *bytes, size_t size) {
    return lanes()->once(bytes, size);
}

uint64_t wb_hash64_seeded(const void *bytes, size_t size, uint64_t seed) {
    return XXH3_64bits_withSeed(bytes, size, seed);
}

void wb_hash128_hex(const void *bytes, size_t size, char hex_out[33]) {
    XXH128_hash_t hash = XXH3_128bits(bytes, size);
    snprintf(hex_out, 33, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64, (uint64_t)hash.low64);
}

static XXH3_state_t *state_of(wb_hash *hash) {
    return (XXH3_state_t *)(void *)hash->state;
}

void wb_hash_start(wb_hash *hash) {
    XXH3_64bits_reset(state_of(hash));
}

void wb_hash_add(wb_hash *hash, const void *bytes, size_t size) {
    lanes()->add(state_of(hash), bytes, size);
}

uint64_t wb_hash_value(const wb_hash *hash) {
    return XXH3_64bits_digest((const XXH3_state_t *)(const void *)hash->state);
}
