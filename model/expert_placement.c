/* expert_placement.c - see expert_placement.h; and the placement of a model for its users. */
#include "expert_placement.h"
#include "collective.h"
#include "model_dispatch.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening --------------------------------------------------------------------------------- */

static wb_status check_number(const char *what, uint32_t expected, uint32_t found) {
    if (expected == found) return WB_OK;
    return wb_fail(WB_MISMATCH, "placement: %s: expected %" PRIu32 ", as in the model, found %" PRIu32, what,
                   expected, found);
}

/* That the model can have its experts there, whatever the numbers of slots. */
static wb_status check_fits(const wb_model *m, const wb_placement *placement) {
    const wb_topology *topology = wb_placement_topology(placement);
    WB_TRY(check_number("MoE layers", m->route_model.n_moe_layers, wb_placement_layers(placement)));
    WB_TRY(check_number("experts", wb_route_weighted(&m->route_model), wb_placement_experts(placement)));
    return check_number("ranks", (uint32_t)m->n_ranks, topology->n_ranks);
}

/* A model keeps the topology that it was opened with. If another could say that a rank is live again, experts
 * would be on a rank that a manager, which goes by the model's, takes for dead; and the other way round. */
static wb_status check_same_dead(const wb_model *m, const wb_placement *placement) {
    const uint8_t *expected = wb_placement_topology(m->placement)->dead;
    const uint8_t *found = wb_placement_topology(placement)->dead;
    for (int32_t r = 0; r < m->n_ranks; r++)
        if (!expected[r] != !found[r])
            return wb_fail(WB_MISMATCH,
                           "placement: rank %" PRId32 ": expected %s, as in the model, found it %s", r,
                           expected[r] ? "dead" : "live", found[r] ? "dead" : "live");
    return WB_OK;
}

/* A slot an expert, in blocks that differ by one at the most. */
static wb_status open_default(wb_model *m) {
    const uint32_t E = wb_route_weighted(&m->route_model), R = (uint32_t)m->n_ranks;
    uint32_t *slots_of_rank = NULL;
    WB_TRY(WB_NEW(slots_of_rank, R, "placement"));
    for (uint32_t r = 0; r < R; r++) slots_of_rank[r] = wb_block_begin(E, R, r + 1) - wb_block_begin(E, R, r);
    const wb_topology topology = {.n_ranks = R, .n_nodes = 1, .n_slots = E, .slots_of_rank = slots_of_rank};
    const wb_status status = wb_placement_open(&topology, m->route_model.n_moe_layers, E, &m->placement);
    free(slots_of_rank);
    return status;
}

wb_status wb_expert_placement_open(wb_model *m, const wb_placement *placement) {
    if (!placement) return open_default(m);
    WB_TRY(check_fits(m, placement));
    return wb_placement_clone(placement, &m->placement);
}

/* ---- use ------------------------------------------------------------------------------------- */

const wb_placement *wb_model_placement(const wb_model *model) {
    return model->placement;
}

static bool same_map(const wb_placement *a, const wb_placement *b, uint32_t l) {
    const size_t S = wb_placement_topology(a)->n_slots;
    const wb_layer_map x = wb_placement_layer(a, l), y = wb_placement_layer(b, l);
    return memcmp(x.expert_of_slot, y.expert_of_slot, S * sizeof *x.expert_of_slot) == 0 &&
           memcmp(x.replica_of_slot, y.replica_of_slot, S * sizeof *x.replica_of_slot) == 0;
}

static bool is_later(const wb_model *m, const wb_placement *placement, uint32_t l) {
    return wb_placement_layer(placement, l).epoch > wb_placement_layer(m->placement, l).epoch;
}

/* All that one rank can find wrong alone. */
static wb_status check_change(const wb_model *m, const wb_placement *placement) {
    if (!placement) return wb_fail(WB_INVALID_ARGUMENT, "placement: NULL");
    WB_TRY(check_fits(m, placement));
    /* Of no layers: that the slots of each rank are the same. */
    WB_TRY(wb_placement_copy_layers(m->placement, placement, 0, NULL, 0));
    WB_TRY(check_same_dead(m, placement));
    for (uint32_t l = 0; l < wb_placement_layers(placement); l++) {
        const uint64_t present = wb_placement_layer(m->placement, l).epoch,
                       found = wb_placement_layer(placement, l).epoch;
        if (found > present || (found == present && same_map(m->placement, placement, l))) continue;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "placement: MoE layer %" PRIu32 " is at epoch %" PRIu64
                       ": expected another map to be of a later one, found %" PRIu64,
                       l, present, found);
    }
    return WB_OK;
}

static wb_status take_layer(wb_model *m, const wb_placement *placement, uint32_t l) {
    WB_TRY(wb_placement_copy_layers(m->placement, placement, 1, &l, wb_placement_layer(placement, l).epoch));
    return wb_model_dispatch_fill(m, l);
}

wb_status wb_model_check_placement(const wb_model *model, const wb_placement *placement) {
    WB_TRY(wb_comm_agree(model->comm, check_change(model, placement)));
    return wb_placement_check_equal(placement, model->comm);
}

wb_status wb_model_take_placement(wb_model *model, const wb_placement *placement) {
    for (uint32_t l = 0; l < wb_placement_layers(placement); l++)
        if (is_later(model, placement, l)) WB_TRY(take_layer(model, placement, l));
    return WB_OK;
}

wb_status wb_model_set_placement(wb_model *model, const wb_placement *placement) {
    WB_TRY(wb_model_check_placement(model, placement));
    return wb_collective_end(model, wb_model_take_placement(model, placement));
}
