/* replay_placement.c - the placement of the options: that it is of this model, and whether its maps have
 * changed since padding was put in order and tables were made. Refuses: what is made of the maps
 * (replay_padding.c, replay_dispatch.c). */
#include "replay_state.h"

#include <inttypes.h>

wb_status wb_replay_open_placement(wb_replay *r) {
    const wb_placement *p = r->options.placement;
    if (!p) return WB_OK;
    const uint32_t L = wb_placement_layers(p), E = wb_placement_experts(p);
    if (L != r->model.n_moe_layers || E != wb_route_weighted(&r->model))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: placement: expected %" PRIu32 " MoE layers of %" PRIu32
                       " experts, found %" PRIu32 " of %" PRIu32,
                       r->model.n_moe_layers, wb_route_weighted(&r->model), L, E);
    r->placement_hash = wb_placement_hash(p);
    return WB_OK;
}

void wb_replay_refresh_placement(wb_replay *r) {
    if (!r->options.placement) return;
    const uint64_t now = wb_placement_hash(r->options.placement);
    if (now == r->placement_hash) return;
    r->placement_hash = now;
    r->dispatch.rank = -1;
    wb_replay_order_padding(r);
}
