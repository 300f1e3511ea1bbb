/* nccl_keeper.h - the thread that ends a transfer which nobody else would (internal).
 *
 * Owns: the look at what lies on a plane's stream, as long as something does, and the abort of NCCL. The host
 * does not wait for transfers, and a host that waits for the stream, in a call of CUDA, cannot be woken but
 * by their end. Refuses: telling other ranks, which the caller's thread does in its next call. */
#ifndef WB_NCCL_KEEPER_H
#define WB_NCCL_KEEPER_H

#include "nccl_plane.h"

/* With the plane's stream and events, before NCCL's first call. */
wb_status wb_nccl_keeper_start(wb_nccl_plane *plane);

/* After wb_nccl_plane_end has found that NCCL ended. */
void wb_nccl_keeper_stop(wb_nccl_plane *plane);

#endif
