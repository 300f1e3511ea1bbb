/* octet_lanes.c - see octets.h. */
#include "lanes/byte_lanes.h"
#include "octets.h"
#include "wb_isa.h"

enum { GROUPS = LANES / 8 };

/* Whether no two ids of a group are the same. Turning the group by 1, 2, 3 and 4 bytes lays each of the 28
 * pairs of ids over each other once at least. */
LANES_INLINE lanes_mask all_differ(lanes ids) {
    lanes_mask m = lanes_same(ids, ids);
    for (unsigned n = 1; n <= 4; n++) m = lanes_differ(m, ids, lanes_turn(ids, n));
    return m;
}

bool WB_LANES(wb_octets_ok)(const uint8_t *ids, size_t n, uint32_t num_experts) {
    /* A last vector that is not full is filled up with groups that are right in any model. */
    uint8_t rest[LANES];
    for (unsigned i = 0; i < LANES; i++) rest[i] = i % 8;
    memcpy(rest, ids + n / GROUPS * LANES, n % GROUPS * 8);
    lanes largest = lanes_load(rest);
    lanes_mask ok = all_differ(largest);
    for (size_t i = 0; i < n / GROUPS; i++) {
        const lanes v = lanes_load(ids + i * LANES);
        largest = lanes_max(largest, v);
        ok &= all_differ(v);
    }
    return lanes_all(lanes_at_least(lanes_set(num_experts - 1), largest)) && lanes_all(ok);
}
