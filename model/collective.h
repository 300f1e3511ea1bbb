/* collective.h - how a collective call of this room ends when one rank fails in its middle.
 *
 * What a rank can fail alone and knows beforehand (arguments, memory for its own tokens) it does before the
 * first exchange, and all ranks agree on it: they leave together, and the communicator lives. What is known
 * only between two exchanges (memory for other ranks' rows, the device) cannot be agreed on without one more
 * exchange a layer: there the rank gives up, the others get PEER at once, and the communicator is dead. */
#ifndef WB_COLLECTIVE_H
#define WB_COLLECTIVE_H

#include "model_weights.h"

/* `status` of what came after the agreement, its message kept; a failure makes this rank give up. */
wb_status wb_collective_end(const wb_model *model, wb_status status);

#endif
