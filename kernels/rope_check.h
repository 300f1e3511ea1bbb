/* rope_check.h - what every backend refuses of the description of a rotary embedding. */
#ifndef WB_ROPE_CHECK_H
#define WB_ROPE_CHECK_H

#include "operand_check.h"

static inline wb_status rope_check(const wb_rope *args) {
    WB_TRY(operand_check("rope", "x", args->x.dtype));
    if (args->first < 0 || args->first > args->head_dim)
        return wb_fail(WB_INVALID_ARGUMENT, "rope: first: expected 0..%d, found %d", args->head_dim,
                       args->first);
    const int32_t most = args->head_dim - args->first;
    if (args->rot_dim < 0 || args->rot_dim > most || args->rot_dim % 2 != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "rope: rot_dim: expected an even number up to %d, found %d", most,
                       args->rot_dim);
    return WB_OK;
}

#endif
