/* model_dispatch.h - where this rank's tokens go in each MoE layer, on the device, for the ops that plan
 * rows. Refuses: the rule (wb_dispatch_rules.h), the maps (eplb/). */
#ifndef WB_MODEL_DISPATCH_H
#define WB_MODEL_DISPATCH_H

#include "model_weights.h"

/* S: slots of all ranks. */
static inline int32_t wb_model_n_slots(const wb_model *model) {
    return (int32_t)wb_placement_topology(model->placement)->n_slots;
}

/* The length of a table under the placement, and what making one takes: a placement is changed where there is
 * no way back, and must not fail for want of memory. */
wb_status wb_model_dispatch_open(wb_model *model, wb_dispatch_policy policy);

/* Memory for the tables, and the tables of the present placement. */
void wb_model_dispatch_layout(wb_model *model, wb_arena *arena);
wb_status wb_model_dispatch_fill_all(wb_model *model);

/* Those of MoE layer l again, whose map has changed. */
wb_status wb_model_dispatch_fill(wb_model *model, uint32_t l);

/* For tokens of this rank. */
wb_dispatch_rule wb_model_dispatch_rule(const wb_model *model, int32_t moe_index);

#endif
