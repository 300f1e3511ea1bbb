/* bound.h - what no placement can better: the load of the hottest replica, the tokens that leave a rank
 * (internal). */
#ifndef WB_EPLB_BOUND_H
#define WB_EPLB_BOUND_H

#include "wb_base.h"

/* The tokens that some rank gets of one expert at least, whatever the placement and however the tokens of an
 * expert are dealt to its replicas: the smallest T with which n_slots (E..) slots can hold every expert, each
 * once and often enough that no replica has more than T, when replicas on one of the n_ranks (1..) ranks
 * count once. tokens [E], E 1... */
double wb_bound_of_hottest(uint32_t n_experts, const uint64_t *tokens, uint32_t n_slots, uint32_t n_ranks);

/* The tokens of one source rank that are sent off it at least: those of all experts but the n_slots that it
 * has most tokens for. counts [E], E 1..; n_slots 1..; top: scratch [n_slots]. */
uint64_t wb_bound_of_sent(uint32_t n_experts, const uint32_t *counts, uint32_t n_slots, uint32_t *top);

#endif
