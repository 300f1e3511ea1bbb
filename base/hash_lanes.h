/* hash_lanes.h - the parts of XXH3 that walk long inputs (internal; base/lanes/ has them once for each
 * instruction set). */
#ifndef WB_HASH_LANES_H
#define WB_HASH_LANES_H

#include <stddef.h>
#include <stdint.h>

typedef struct wb_hash_lanes {
    uint64_t (*once)(const void *bytes, size_t size);         /* XXH3_64bits */
    void (*add)(void *state, const void *bytes, size_t size); /* XXH3_64bits_update */
} wb_hash_lanes;

extern const wb_hash_lanes wb_hash_lanes_generic, wb_hash_lanes_v3, wb_hash_lanes_v4;

#endif
