/* rebalance_options.c - the options of a manager: their defaults and their ranges. Refuses: those that only a
 * solver or a move plan reads, which have their own checks. */
#include "manage/rebalance_state.h"
#include "move/move_internal.h"
#include "solve/solver.h"
#include "wb_check.h"
#include "wb_options.h"

#include <inttypes.h>

WB_OPTIONS_END(wb_rebalance_options, reserved);
void wb_rebalance_options_init(wb_rebalance_options *options_out, size_t size) {
    wb_rebalance_options defaults = {.every = 1000,
                                     .enough = 1,
                                     .sigmas = 2,
                                     .horizon_passes = 10000,
                                     .layers_per_chunk = WB_ALL_MOE_LAYERS,
                                     .phases = WB_PHASES_ALL,
                                     .load = wb_load_options_default(),
                                     .solver = wb_eplb_options_default(),
                                     .move = wb_move_options_default(),
                                     .patience = 1000,
                                     .check_every = 1};
    defaults.load.window = 1000;
    defaults.solver.threads = 1;
    wb_options_init(options_out, size, &defaults, sizeof defaults);
}

static wb_status check_range(const char *name, double low, double high, double found) {
    if (found >= low && found <= high) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "rebalance options: %s: expected %g..%g, found %g", name, low, high,
                   found);
}

wb_status wb_rebalance_check_options(const wb_rebalance_options *o) {
    WB_TRY(wb_options_check_reserved(o->reserved, sizeof o->reserved, "rebalance options"));
    if (o->layers_per_chunk < 1)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "rebalance options: layers_per_chunk: expected 1 or more, or WB_ALL_MOE_LAYERS for all, "
            "found %" PRId64,
            o->layers_per_chunk);
    WB_TRY(check_range("every", 1, UINT32_MAX, o->every));
    WB_TRY(check_range("patience", 1, UINT32_MAX, o->patience));
    WB_TRY(check_range("enough", 1e-9, 1, o->enough));
    WB_TRY(check_range("sigmas", 0, 1e9, o->sigmas));
    WB_TRY(check_range("phases", 1, WB_PHASES_ALL, o->phases));
    WB_TRY(check_range("horizon_passes", 0, 1e18, o->horizon_passes));
    return wb_move_check_options(&o->move);
}

wb_status wb_rebalance_check_solver(const wb_placement *placement, const wb_rebalance_options *o) {
    wb_eplb_options solver = o->solver;
    solver.current = placement;
    return wb_solve_check_options(wb_placement_topology(placement), wb_placement_layers(placement),
                                  wb_placement_experts(placement), 1, &solver);
}
