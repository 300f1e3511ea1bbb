/* keep_current.h - when a layer keeps the map that it has, because a solver found none that is better. */
#ifndef WB_KEEP_CURRENT_H
#define WB_KEEP_CURRENT_H

#include "solve/solver.h"

/* Whether current [S] is as good as solved [S] where no expert has a replica: then all that a map can do is
 * to lower the maximum rank load, summed over the micro-batches, and a change that does not is for nothing.
 * With replicas a map of the same maximum may still be better for a dispatch by quotas. False for a map that
 * is none on the live ranks. */
bool wb_keep_current(const wb_layer_problem *problem, const int32_t *current, const int32_t *solved);

#endif
