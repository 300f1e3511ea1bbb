/* eplb_internal.h - what the files of this folder share: a placement's memory and one layer's problem as
 * solvers see it. Refuses: anything public. */
#ifndef WB_EPLB_INTERNAL_H
#define WB_EPLB_INTERNAL_H

#include "wb_check.h"
#include "wb_eplb.h"

struct wb_placement {
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

/* Refused as in wb_placement_set_layer; writes nothing. `what` begins the message ("file.json"). */
wb_status wb_placement_check_map(const wb_placement *placement, const char *what, uint32_t layer,
                                 const int32_t *expert_of_slot, const uint32_t *replica_of_slot);

/* MISMATCH unless both have the same L, E, R, S and slots of each rank (nodes and dead ranks may differ). */
wb_status wb_placement_check_shape(const wb_placement *expected, const wb_placement *found);

static inline const int32_t *wb_placement_experts_of(const wb_placement *placement, uint32_t layer) {
    return placement->expert_of_slot + (size_t)layer * placement->topology.n_slots;
}

/* INVALID_ARGUMENT, naming the field, unless all figures are finite, none negative, and rates above 0. */
wb_status wb_cost_model_check(const wb_cost_model *cost, const char *what);

/* INVALID_ARGUMENT, naming the field, unless the rows can be read; *stride_out: bytes from one to the
 * next. */
wb_status wb_routed_rows_check(const wb_routed_rows *rows, const char *what, size_t *stride_out);

/* One layer as a solver sees it. */
typedef struct wb_layer_problem {
    const wb_placement *frame; /* topology with all arrays, first_slot, rank_of_slot; its maps are not read */
    const wb_eplb_options *options;
    uint32_t layer;         /* for messages and for the seed of the search */
    uint32_t n_batches;     /* M; 1 for all solvers but microbatch */
    const double *loads;    /* [M][E] */
    const int32_t *current; /* [S] incremental: the map to start from; else NULL */
} wb_layer_problem;

/* Each fills expert_of_slot_out [S] and replica_of_slot_out [S]; what they may rely on was checked by
 * wb_eplb_solve. */
typedef wb_status wb_layer_solver(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                                  uint32_t *replica_of_slot_out);
wb_layer_solver wb_solve_deepseek, wb_solve_balanced, wb_solve_incremental, wb_solve_microbatch;

/* deepseek's demands on the shape, checked once for all layers. */
wb_status wb_solve_deepseek_check(const wb_topology *topology, uint32_t n_experts, uint32_t n_groups);

#endif
