/* expert_placement.h - which rank holds each expert, and where among that rank's: the same in every layer.
 *
 * Slots number places for experts over all ranks; rank r has the slots [E r / R, E (r + 1) / R). Refuses:
 * moving weights. */
#ifndef WB_EXPERT_PLACEMENT_H
#define WB_EXPERT_PLACEMENT_H

#include "model_weights.h"

/* Expert e in slot e; fills expert_rank, local_index and n_local_experts. */
wb_status wb_expert_placement_open(wb_model *model);

/* Slot s holds expert expert_of_slot[s], host [E], the same on every rank: the tables, and where the registry
 * finds the tensors of experts. What stands there is the caller's to write (wb_model_tensor).
 * INVALID_ARGUMENT unless every expert is there once; nothing has changed then. Not collective; not between
 * a forward and its backward. */
wb_status wb_expert_placement_set(wb_model *model, const int32_t *expert_of_slot);

#endif
