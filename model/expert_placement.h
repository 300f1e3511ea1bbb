/* expert_placement.h - where a model's experts are: the placement that it opens with, and another one later.
 * Refuses: choosing places (eplb/), moving weights. */
#ifndef WB_EXPERT_PLACEMENT_H
#define WB_EXPERT_PLACEMENT_H

#include "model_weights.h"

/* A copy of `placement`, or the default of wb_model_options for NULL, for a model that knows its routes.
 * MISMATCH, naming what differs, for one of another shape. */
wb_status wb_expert_placement_open(wb_model *model, const wb_placement *placement);

/* The two halves of wb_model_set_placement: everything that it refuses, and the change, in which only the
 * device can fail. The first is collective. */
wb_status wb_model_check_placement(const wb_model *model, const wb_placement *placement);
wb_status wb_model_take_placement(wb_model *model, const wb_placement *placement);

#endif
