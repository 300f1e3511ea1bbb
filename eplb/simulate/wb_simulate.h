/* wb_simulate.h - what a placement and a dispatch policy make of a step's tokens: balancedness, also of
 * replicas that share evenly, predicted seconds and bytes, and the lower bound that no placement goes
 * below; over how many ranks a record's tokens are spread; and loads made up from a seed.
 *
 * Offline. Letters and common rules: as in wb_eplb.h. */
#ifndef WB_SIMULATE_H
#define WB_SIMULATE_H

#include "wb_base.h"
#include "wb_cost_model.h"
#include "wb_dispatch.h"
#include "wb_formats.h"
#include "wb_placement.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the simulator ------------------------------------------------------------------------------- */

/* The routed tokens of one optimiser step, batch by batch; wb_dump_counts_fill (wb_load.h) is the `fill` of a
 * dump. `fill` writes counts_out [R][E]: tokens of each source rank for each expert. It is called once for
 * each (batch, layer), one call at a time, but by any thread and in any order within a batch. */
typedef struct wb_traffic {
    uint32_t n_batches; /* M */
    wb_status (*fill)(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out);
    void *ctx;
} wb_traffic;

typedef struct wb_simulation {
    double balancedness;      /* mean over (batch, layer) with tokens of mean / max */
    double balancedness_time; /* sum of means / sum of maxima */
    double min_layer;         /* the worst layer's mean over batches */
    double seconds;           /* of the step: sum of compute and transfers of each layer's slowest rank */
    /* No placement on these slots, and no dispatch to the experts that the router chose, can be faster. In
     * each pass the longest of: tokens even over live ranks and each expert read once; a rank reading its
     * share of experts; the hottest replica, slots being given to experts so that it is as cool as can be. To
     * which comes the sending, over all links of a rank at once, of the tokens that are not for the experts
     * it could hold. Of fake dispatch, which sends tokens to other experts than theirs, only the first
     * two. */
    double bound_seconds;
    double node_bytes, network_bytes; /* of dispatch and combine */
} wb_simulation;

/* Sends a step's tokens through a placement and a dispatch policy, in as many threads as OpenMP gives the
 * caller (omp_set_num_threads, OMP_NUM_THREADS), one where passes are small; the result does not depend on
 * it. rank_tokens_out [R]: tokens of each rank summed over batches and layers, or NULL. Errors of
 * wb_dispatch_loads and of `fill`; INVALID_ARGUMENT for a cost model that is not finite, negative or has a
 * rate of 0. */
WB_API wb_status wb_simulate(const wb_placement *placement, wb_dispatch_policy policy,
                             const wb_traffic *traffic, const wb_cost_model *cost, double *rank_tokens_out,
                             wb_simulation *simulation_out);

/* What replicas that share their expert's tokens evenly make of loads: the figure that solvers and
 * published tables mean, without a dispatch and without a rest of tokens that do not divide. */
typedef struct wb_even_split {
    double balancedness;      /* mean over (batch, layer) with a load of mean / max */
    double balancedness_time; /* sum of means / sum of maxima */
    double min_layer;         /* the worst layer's mean over batches */
    double max_over_mean;     /* mean over (batch, layer) with a load of max / mean */
    double max_layer;         /* the worst layer's mean over batches of that */
} wb_even_split;

/* loads: [M][L][E], as wb_eplb_solve reads them, finite and not negative. Layers without a load enter
 * nothing; all are 1 where no layer has one. */
WB_API wb_status wb_even_split_of(const wb_placement *placement, uint32_t n_batches, const double *loads,
                                  wb_even_split *split_out);

/* ---- the spread of tokens ------------------------------------------------------------------------ */

/* Per token: of a captured record's valid rows, how many distinct ranks and nodes hold the K chosen
 * experts, when `policy` picks for tokens of rank `rank` (static or dynamic). ranks_out, nodes_out: [rows
 * of all runs][L], or NULL; 0 for rows that are not valid, 255 for 255 and more. Under dynamic a token's
 * key is wb_dispatch_token_key, so that the ranks are those of the model. MISMATCH on a placement of other
 * L or E; the record is checked, ids too. */
WB_API wb_status wb_token_spread(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                                 const wb_route_model *model, const wb_record *record, uint8_t *ranks_out,
                                 uint8_t *nodes_out);

/* ---- synthetic loads ----------------------------------------------------------------------------- */

typedef enum wb_synthetic_kind {
    WB_SYNTHETIC_ZIPF,      /* the i-th most popular expert ~ (i + 1)^-skew, shuffled for each layer */
    WB_SYNTHETIC_LOGNORMAL, /* exp(skew x normal) */
    WB_SYNTHETIC_DRIFT      /* log-normal whose base moves by `noise` from step to step */
} wb_synthetic_kind;

typedef struct wb_synthetic {
    wb_synthetic_kind kind;
    double skew;     /* see the kinds; 0..1000 */
    double noise;    /* each (batch, expert) times exp(noise x normal); 0..1000 */
    uint64_t tokens; /* routed (token, choice) pairs of a batch and layer, before rounding; at most 2^50 */
    uint64_t seed;
} wb_synthetic;
/* loads_out [M][L][E] of step `step`: whole numbers. The same for the same arguments everywhere.
 * INVALID_ARGUMENT for fields out of range. */
WB_API wb_status wb_synthetic_loads(const wb_synthetic *synthetic, uint32_t step, uint32_t n_batches,
                                    uint32_t n_layers, uint32_t n_experts, double *loads_out);

#ifdef __cplusplus
}
#endif
#endif
