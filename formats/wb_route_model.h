/* wb_route_model.h - a copy of a route model with the lists that it points to (not installed). */
#ifndef WB_ROUTE_MODEL_H
#define WB_ROUTE_MODEL_H

#include "wb_formats.h"
#include "wb_memory.h"

/* Copies a model that passed wb_route_model_check; the lists belong to `memory`. `what` is whose they are,
 * for the message of a failure. */
wb_status wb_route_model_copy(wb_owner *memory, const wb_route_model *model, const char *what,
                              wb_route_model *copy_out);

#endif
