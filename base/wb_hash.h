/* wb_hash.h - XXH3 of bytes, in one call or as they come (not installed). The values are part of the dump
 * format and of what ranks compare: they must never change. */
#ifndef WB_HASH_H
#define WB_HASH_H

#include "wb_base.h"

/* XXH3-64 of the bytes. */
uint64_t wb_hash64(const void *bytes, size_t size);

/* Another function of the bytes for each seed; seed 0 is wb_hash64. */
uint64_t wb_hash64_seeded(const void *bytes, size_t size, uint64_t seed);

/* XXH3-128 of the bytes as 32 lower-case hex digits and NUL, the high half first. */
void wb_hash128_hex(const void *bytes, size_t size, char hex_out[33]);

/* wb_hash64 of bytes that come in pieces. Opaque; lives where its user puts it and needs no end. */
typedef struct wb_hash {
    _Alignas(64) unsigned char state[576];
} wb_hash;

void wb_hash_start(wb_hash *hash);
void wb_hash_add(wb_hash *hash, const void *bytes, size_t size);
uint64_t wb_hash_value(const wb_hash *hash);

#endif
