/* expert_home.h - the home rank of an expert (wb_home_rank) and its lead replica (wb_model_lead), as the
 * files of training need them. Refuses: the optimizer. */
#ifndef WB_EXPERT_HOME_H
#define WB_EXPERT_HOME_H

#include "model_weights.h"

/* How many experts the rank that is home to most has. */
int64_t wb_expert_max_homes(int32_t n_experts, int32_t n_ranks);

/* The lead replica of an expert in a layer of its model's placement, counted from replica 0. */
uint32_t wb_expert_lead(const wb_model *model, const wb_layer_map *map, int32_t expert);

#endif
