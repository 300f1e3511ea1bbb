/* solver.h - one layer's problem as a solver sees it, and the solvers that there are. A new solver is
 * one file that fills a layer's maps, and one line in WB_EPLB_ALGORITHM_LIST. */
#ifndef WB_SOLVER_H
#define WB_SOLVER_H

#include "placement/placement_internal.h"
#include "wb_solve.h"

typedef struct wb_layer_problem {
    const wb_placement *frame; /* topology with all arrays, first_slot, rank_of_slot; its maps are not read */
    const wb_eplb_options *options;
    uint32_t layer;         /* for messages and for the seed of the search */
    uint32_t n_batches;     /* M; 1 for all solvers but microbatch */
    const double *loads;    /* [M][E] */
    const int32_t *current; /* [S] incremental: the map to start from; else NULL */
} wb_layer_problem;

/* Each fills expert_of_slot_out [S] and replica_of_slot_out [S] (deepseek alone; the others number
 * replicas in slot order); what they may rely on was checked by wb_eplb_solve. */
typedef wb_status wb_layer_solver(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                                  uint32_t *replica_of_slot_out);
#define X(VALUE, name) wb_layer_solver wb_solve_##name;
WB_EPLB_ALGORITHM_LIST(X)
#undef X

/* All that wb_eplb_solve refuses but for loads. */
wb_status wb_solve_check_options(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                                 uint32_t n_batches, const wb_eplb_options *options);

/* deepseek's demands on the shape, checked once for all layers. */
wb_status wb_solve_deepseek_check(const wb_topology *topology, uint32_t n_experts, uint32_t n_groups);

#endif
