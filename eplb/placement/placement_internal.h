/* placement_internal.h - what a placement is made of, for the files of the room that read its arrays
 * directly. */
#ifndef WB_PLACEMENT_INTERNAL_H
#define WB_PLACEMENT_INTERNAL_H

#include "wb_check.h"
#include "wb_memory.h"
#include "wb_placement.h"

struct wb_placement {
    wb_owner memory;
    wb_topology topology; /* its arrays are the three below */
    uint32_t *slots_of_rank, *node_of_rank;
    uint8_t *dead;
    uint32_t *first_slot;   /* [R + 1] */
    uint32_t *rank_of_slot; /* [S] */
    uint32_t n_layers, n_experts;
    int32_t *expert_of_slot;   /* [L][S] */
    uint32_t *replica_of_slot; /* [L][S] */
    uint32_t *replica_begin;   /* [L][E + 1] */
    wb_physical_id *replicas;  /* [L][S] */
    uint64_t *epoch;           /* [L] the callers' number */
    uint64_t *version;         /* [L] raised by every change: what tables made from a map compare */
};

/* Fills the arrays of a placement's topology from one that has been checked. */
void wb_topology_fill(wb_placement *placement, const wb_topology *topology);

/* The logical -> physical side of a layer from the other; the map has been checked. Raises the version. */
void wb_placement_index_layer(wb_placement *placement, uint32_t layer);
/* Replicas numbered in slot order; count [E] is scratch. */
void wb_placement_number_replicas(uint32_t n_slots, uint32_t n_experts, const int32_t *experts,
                                  uint32_t *count, uint32_t *replica_out);
/* One layer's maps from another placement of the same shape; the epoch stays. */
void wb_placement_copy_layer(wb_placement *to, const wb_placement *from, uint32_t layer);

/* Refused as in wb_placement_set_layer; writes nothing. `what` begins the message ("file.json"). */
wb_status wb_placement_check_map(const wb_placement *placement, const char *what, uint32_t layer,
                                 const int32_t *expert_of_slot, const uint32_t *replica_of_slot);

/* MISMATCH unless the placement has L layers of E experts; `what` has them. */
wb_status wb_placement_check_size(const wb_placement *placement, uint32_t L, uint32_t E, const char *what);

/* MISMATCH unless both have the same L, E, R, S and slots of each rank (nodes and dead ranks may differ). */
wb_status wb_placement_check_shape(const wb_placement *expected, const wb_placement *found);

/* Of the loads of ranks [R], over live ones: a dead rank has no load and would only pull the mean down. */
typedef struct wb_rank_spread {
    double mean, max;
} wb_rank_spread;
wb_rank_spread wb_placement_rank_spread(const wb_topology *topology, const double *rank_loads);

static inline const int32_t *wb_placement_experts_of(const wb_placement *placement, uint32_t layer) {
    return placement->expert_of_slot + (size_t)layer * placement->topology.n_slots;
}

#endif
