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

    /* Of the latest decision, the same on all ranks. While there is a job, all of it is its thread's. */
    double *counts;              /* [L][E] over all ranks and the window */
    double passes;               /* that the weights of the window add up to */
    bool *usable;                /* [L] the layer has a load */
    double *rank_loads;          /* [R] scratch */
    wb_rebalance_verdict chosen; /* what the solver's thread made of the placement that it found */
    double expected_balancedness;
    uint32_t *layers;      /* [n_chosen] to be moved, ascending */
    wb_move_plan **plans;  /* [n_chosen] of each; owner: the manager */
    uint32_t *next_group;  /* [n_chosen] of each plan */
    uint64_t plans_digest; /* of layers and plans */
    uint32_t n_chosen;

    wb_solve_job *job; /* the solver at work, or NULL; one that was given up stays until it ends */
    uint64_t solving;  /* boundaries since it began */
    /* The present round of moves: groups of plans, and whose they are. */
    wb_round_group *round;  /* [L] */
    uint32_t *moving;       /* [L] indices of plans */
    uint32_t n_moving;      /* groups that are under way; 0: none */
    bool *sends, *receives; /* [R] the rank does, in this round */

    uint64_t latest_epoch;
    bool begun;   /* the present boundary has begun ... */
    double pause; /* ... and has taken so many seconds */
    wb_rebalance_stats stats;
    char failure[256];
};

/* ---- rebalance_options.c ----------------------------------------------------------------------- */

wb_status wb_rebalance_check_options(const wb_rebalance_options *options);

/* What the solver says of its own options, before a decision depends on it. */
wb_status wb_rebalance_check_solver(const wb_placement *placement, const wb_rebalance_options *options);

/* ---- rebalance_decide.c ------------------------------------------------------------------------ */

/* Sums the counts of all ranks into `counts`, and says of each layer whether it has a load. Collective. */
wb_status wb_rebalance_take_counts(wb_rebalance *manager);

/* Whether the counts ask for another placement: MOVED if so. */
wb_rebalance_verdict wb_rebalance_judge_counts(wb_rebalance *manager);

/* The layers whose move to `found` pays, and their plans; and `chosen`: MOVED where there are any. Called
 * with the manager in the solver's thread: a plan takes longer than generation is to wait. */
wb_status wb_rebalance_choose_layers(void *manager, const wb_placement *found);

/* ---- rebalance_move.c -------------------------------------------------------------------------- */

/* Starts the next round of the plans, and ends it; *done_out: none is left. *dead_out as in wb_migrate_start.
 * Collective. */
wb_status wb_rebalance_start_round(wb_rebalance *manager, bool *dead_out);
wb_status wb_rebalance_end_round(wb_rebalance *manager, bool *done_out, bool *dead_out);

/* Nothing is chosen. Not while there is a job. */
void wb_rebalance_drop_plans(wb_rebalance *manager);

#endif
