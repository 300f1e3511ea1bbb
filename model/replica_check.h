/* replica_check.h - that the replicas of an expert hold the same. */
#ifndef WB_REPLICA_CHECK_H
#define WB_REPLICA_CHECK_H

#include "model_weights.h"

/* Compares the 4 KiB in the middle of each tensor of each expert that has several replicas. MISMATCH, on
 * every rank, names the tensor, slots and ranks of the first that differ. Collective. */
wb_status wb_replicas_check(const wb_model *model);

#endif
