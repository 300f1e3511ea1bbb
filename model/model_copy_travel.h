/* model_copy_travel.h - experts that a model has on one rank and the model that they are copied into on
 * another. Refuses: everything that is on one rank in both (model_copy.c). */
#ifndef WB_MODEL_COPY_TRAVEL_H
#define WB_MODEL_COPY_TRAVEL_H

#include "model_weights.h"

/* That one can be copied into the other, on this rank and therefore on all. */
wb_status wb_model_check_copy(const wb_model *to, const wb_model *from);

/* Experts go to the slots of `to` on ranks that do not have them in `from`, rounded where they come from.
 * After wb_model_reserve_copy. Collective. */
wb_status wb_model_copy_travel(wb_model *to, const wb_model *from);

#endif
