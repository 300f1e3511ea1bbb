/* rebalance_state.h - the manager, for the files of this folder: what it counts, decides and does. */
#ifndef WB_REBALANCE_STATE_H
#define WB_REBALANCE_STATE_H

#include "manage/migrate.h"
#include "manage/solve_job.h"

struct wb_rebalance {
    wb_expert_store store;
    wb_rebalance_options options;
    wb_comm *comm; /* the exchange's */
    uint32_t n_layers, n_experts, n_ranks;
    wb_owner memory;
    wb_load *load;
    wb_migration migration; /* with the map in force */

    /* Of the latest decision, the same on all ranks. */
    double *counts;              /* [L][E] over all ranks and the window */
    double passes;               /* that the weights of the window add up to */
    bool *usable;                /* [L] the layer has a load */
    double *rank_loads;          /* [R] scratch */
    wb_rebalance_verdict chosen; /* what the solver's thread made of the placement that it found */
    double expected_balancedness;
    wb_solve_job *job; /* the solver at work, or NULL; one that was given up stays until it ends */
    uint64_t solving;  /* boundaries since it began */
    wb_placement *target;
    uint32_t *layers; /* [n_chosen] of the target that are to be moved, ascending */
    uint32_t n_chosen, next_chosen;
    wb_move_plan *plan; /* of the present chunk of layers, or NULL */
    uint32_t next_group;

    uint64_t latest_epoch;
    wb_rebalance_stats stats;
    char failure[256];
};

/* ---- rebalance_decide.c ------------------------------------------------------------------------ */

/* Sums the counts of all ranks into `counts`, and says of each layer whether it has a load. Collective. */
wb_status wb_rebalance_take_counts(wb_rebalance *manager);

/* Whether the counts ask for another placement: MOVED if so. */
wb_rebalance_verdict wb_rebalance_judge_counts(wb_rebalance *manager);

/* The layers whose move to `found` pays, into `layers`, and `chosen`: MOVED where there are any. Called with
 * the manager in the solver's thread: counts, layers and scratch are that thread's while there is a job. */
wb_status wb_rebalance_choose_layers(void *manager, const wb_placement *found);

#endif
