/* wb_digest_rules.h - the digest of bytes in device memory, as functions for host and device (not installed).
 *
 * Owns: the one rule that backends follow, so that the digest of an expert is the same on ranks of either. It
 * is a sum over words of 8 bytes, each mixed with its place, so that threads may take them in any order; the
 * last word is filled up with zeros. Refuses: being hard to forge. */
#ifndef WB_DIGEST_RULES_H
#define WB_DIGEST_RULES_H

#include "wb_random.h"

#include <string.h>

/* The words of `bytes` bytes. */
static WB_HD uint64_t wb_digest_words(uint64_t bytes) {
    return (bytes + 7) / 8;
}

/* What word i adds. */
static WB_HD uint64_t wb_digest_word(uint64_t word, uint64_t i) {
    return wb_mix64(word ^ (i + 1) * WB_RANDOM_STEP);
}

/* Word i of data[bytes], which may begin anywhere. */
static WB_HD uint64_t wb_digest_load(const void *data, uint64_t bytes, uint64_t i) {
    const uint64_t left = bytes - 8 * i;
    uint64_t word = 0;
    memcpy(&word, (const char *)data + 8 * i, left < 8 ? left : 8);
    return word;
}

#endif
