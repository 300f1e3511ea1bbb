/* nccl_state.h - what a communicator of this adapter holds (internal): the control plane, which is another
 * communicator, and NCCL's. */
#ifndef WB_NCCL_STATE_H
#define WB_NCCL_STATE_H

#include "nccl_plane.h"

typedef struct wb_nccl_state {
    wb_comm *control; /* not owned */
    wb_nccl_plane *plane;
    bool check_sizes;
} wb_nccl_state;

/* wb_comm_ops.open_exchange of NCCL. */
wb_status wb_nccl_open_exchange(wb_comm *comm, const wb_exchange_memory *memory, wb_exchange **exchange_out);

/* The other ranks' word for it: a group's sizes are the same on both sides. Collective, over the control
 * plane; MISMATCH on the rank that expects others. */
wb_status wb_nccl_check_sizes(wb_comm *control, const wb_exchange_group *group);

#endif
