/* rope_check.h - what every backend refuses of the description of a rotary embedding, and by which position a
 * row is rotated. */
#ifndef WB_ROPE_CHECK_H
#define WB_ROPE_CHECK_H

#include "operand_check.h"
#include "wb_host_device.h"
#include "wb_ops_rows.h"

/* The position whose angles row t has. */
static WB_HD int32_t rope_position(const wb_rope *args, int64_t t) {
    return args->ratio > 1 ? args->pos[t] / args->ratio * args->ratio : args->pos[t];
}

static inline wb_status rope_check(const wb_rope *args) {
    WB_TRY(operand_check("rope", "x", args->x.dtype));
    if (args->first < 0 || args->first > args->head_dim)
        return wb_fail(WB_INVALID_ARGUMENT, "rope: first: expected 0..%d, found %d", args->head_dim,
                       args->first);
    if (args->ratio < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "rope: ratio: expected 0 or more, found %d", args->ratio);
    const int32_t most = args->head_dim - args->first;
    if (args->rot_dim < 0 || args->rot_dim > most || args->rot_dim % 2 != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "rope: rot_dim: expected an even number up to %d, found %d", most,
                       args->rot_dim);
    return WB_OK;
}

#endif
