/* octet_lanes.c - see octets.h. */
#include "octets.h"
#include "wb_isa.h"

#include <string.h>

/* A group is checked as one 64-bit word, without branches, so that the compiler makes vectors of the loop
 * over words. */
typedef struct octet_range {
    uint64_t add;   /* added to a byte's low 7 bits: carries into bit 7 when they are too large for E */
    uint64_t small; /* all ones when E <= 128: a byte with bit 7 is then too large whatever its low bits */
} octet_range;

/* Not zero if an id of the word is not below E or two are equal; bits other than bit 7 of a byte are zero.
 * Equal ids: turning the word by 1, 2, 3 and 4 bytes lays each of the 28 pairs of bytes over each other once
 * at least, and their exclusive or has a zero byte where a pair is equal. (x - 0x01..01) & ~x & 0x80..80 is
 * not zero exactly if x has a zero byte. */
static uint64_t octet_bad(uint64_t v, octet_range range) {
    const uint64_t ones = 0x0101010101010101u;
    uint64_t low = (v & ones * 0x7f) + range.add;
    uint64_t bad = (low & v) | ((low | v) & range.small);
    for (unsigned turn = 8; turn <= 32; turn += 8) {
        uint64_t x = v ^ (v << turn | v >> (64 - turn));
        bad |= (x - ones) & ~x;
    }
    return bad & ones * 0x80;
}

bool WB_LANES(wb_octets_ok)(const uint8_t *ids, size_t n, uint32_t num_experts) {
    uint64_t headroom = num_experts <= 128 ? 128 - num_experts : 256 - num_experts;
    octet_range range = {0x0101010101010101u * headroom, num_experts <= 128 ? UINT64_MAX : 0};
    uint64_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t v;
        memcpy(&v, ids + 8 * i, sizeof v);
        bad |= octet_bad(v, range);
    }
    return bad == 0;
}
