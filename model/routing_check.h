/* routing_check.h - a caller's routing, checked once, where it comes in. */
#ifndef WB_ROUTING_CHECK_H
#define WB_ROUTING_CHECK_H

#include "model_weights.h"

/* A zeroed struct is empty. */
typedef struct wb_routing_stage {
    wb_host_buffer direction, ids; /* where device memory is not host memory */
} wb_routing_stage;

/* INVALID_ARGUMENT unless routing has ids and every forced id is below E; names token, layer, choice and
 * id. */
wb_status wb_routing_check(const wb_model *model, wb_workspace *memory, wb_routing_stage *stage, int64_t T,
                           const wb_routing *routing);

#endif
