/* cost_model.h - the check of figures that predictions are made with. */
#ifndef WB_COST_MODEL_CHECK_H
#define WB_COST_MODEL_CHECK_H

#include "wb_cost_model.h"

/* INVALID_ARGUMENT, naming the field, unless all figures are finite, none negative, and rates above 0. `what`
 * begins the message. */
wb_status wb_cost_model_check(const wb_cost_model *cost, const char *what);

#endif
