/* cuda_grid.h - the shape of a launch: blocks of a fixed size, rows shared out among their threads. For .cu
 * files.
 */
#ifndef WB_CUDA_GRID_H
#define WB_CUDA_GRID_H

#include "wb_base.h"
#include "wb_check.h"

#include <inttypes.h>

namespace {

enum { WARP = 32, BLOCK = 256 };
const unsigned ALL_LANES = 0xffffffffu;

/* The blocks of BLOCK threads for `n` rows or elements; `name` is what the op calls their number. */
inline wb_status count_blocks(const char *op, const char *name, int64_t n, int32_t threads_each,
                              unsigned *blocks_out) {
    /* A grid's first dimension. */
    const int64_t max_blocks = INT32_MAX;
    if (n < 0 || n > max_blocks * BLOCK / threads_each)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %s: expected 0..%" PRId64 ", found %" PRId64, op, name,
                       max_blocks * BLOCK / threads_each, n);
    *blocks_out = static_cast<unsigned>((n * threads_each + BLOCK - 1) / BLOCK);
    return WB_OK;
}

inline int power_of_2_from(int min) {
    int power = 1;
    while (power < min) power *= 2;
    return power;
}

} // namespace

#endif
