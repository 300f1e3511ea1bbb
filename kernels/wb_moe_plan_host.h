/* wb_moe_plan_host.h - the op moe_plan in host memory (not installed): the CPU's op, and what counts the
 * rows of a replayed step before it runs, which must be the same. */
#ifndef WB_MOE_PLAN_HOST_H
#define WB_MOE_PLAN_HOST_H

#include "wb_ops_moe.h"

/* As wb_moe_plan_fn, all arrays host memory. next: [S] scratch. INVALID_ARGUMENT, with nothing written, when
 * T * K does not fit an i32 and for an id of E or more. */
wb_status wb_moe_plan_host(const wb_moe_plan *plan, int32_t *next);

/* Its offsets alone, as nobody needs more who counts; pair_row is NULL and row_token not read. */
wb_status wb_moe_offsets_host(const wb_moe_plan *plan);

#endif
