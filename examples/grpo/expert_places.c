/* expert_places.c - where the experts of a run are at its start. Refuses: where they go later. */
#include "grpo.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Slots and experts of a run, the same in every MoE layer. */
typedef struct slot_plan {
    uint32_t n_ranks, n_experts, n_layers, n_slots;
    uint32_t *slots_of_rank; /* [n_ranks] */
    uint32_t *layers;        /* [n_layers] the hidden layer of each MoE layer */
} slot_plan;

static void close_plan(slot_plan *plan) {
    free(plan->slots_of_rank);
    free(plan->layers);
}

static uint32_t block_size(uint32_t n, uint32_t n_ranks, uint32_t r) {
    return wb_block_begin(n, n_ranks, r + 1) - wb_block_begin(n, n_ranks, r);
}

/* No rank has use for an expert twice. A run that resumes on fewer ranks has what fits. */
static wb_status count_redundant(const options *o, const slot_plan *plan, bool loud, uint32_t *n_out) {
    const int64_t max = (int64_t)plan->n_experts * (plan->n_ranks - 1);
    if (o->redundant_experts > max && options_given(o, "--redundant-experts"))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "--redundant-experts %" PRId64 ": expected at most %" PRId64 " for %" PRIu32
                       " experts on %" PRIu32 " ranks, where each rank has each expert once",
                       o->redundant_experts, max, plan->n_experts, plan->n_ranks);
    if (o->redundant_experts > max && loud)
        fprintf(stderr,
                "--redundant-experts: %" PRId64 " in the checkpoint, %" PRId64 " on %" PRIu32 " ranks\n",
                o->redundant_experts, max, plan->n_ranks);
    *n_out = (uint32_t)(o->redundant_experts > max ? max : o->redundant_experts);
    return WB_OK;
}

/* As many on each rank where that comes out even, as other programs have it; else a rank has its block of
 * experts and its block of the others. */
static wb_status plan_slots(const options *o, const wb_config *config, int n_ranks, bool loud,
                            slot_plan *plan_out) {
    slot_plan plan = {.n_ranks = (uint32_t)n_ranks, .n_experts = (uint32_t)wb_config_weighted(config)};
    uint32_t redundant = 0;
    WB_TRY(count_redundant(o, &plan, loud, &redundant));
    plan.n_slots = plan.n_experts + redundant;
    wb_status status = WB_NEW(plan.slots_of_rank, plan.n_ranks, "slots of ranks");
    if (status == WB_OK) status = WB_NEW(plan.layers, (size_t)config->n_layers, "MoE layers");
    if (status != WB_OK) {
        close_plan(&plan);
        return status;
    }
    for (int32_t l = 0; l < config->n_layers; l++)
        if (wb_config_is_moe(config, l)) plan.layers[plan.n_layers++] = (uint32_t)l;
    for (uint32_t r = 0; r < plan.n_ranks; r++)
        plan.slots_of_rank[r] =
            plan.n_slots % plan.n_ranks == 0
                ? plan.n_slots / plan.n_ranks
                : block_size(plan.n_experts, plan.n_ranks, r) + block_size(redundant, plan.n_ranks, r);
    *plan_out = plan;
    return WB_OK;
}

static wb_topology topology_of(const slot_plan *plan) {
    return (wb_topology){.n_ranks = plan->n_ranks,
                         .n_nodes = 1,
                         .n_slots = plan->n_slots,
                         .slots_of_rank = plan->slots_of_rank};
}

static bool rank_has(const int32_t *experts, uint32_t n, uint32_t expert) {
    for (uint32_t i = 0; i < n; i++)
        if (experts[i] == (int32_t)expert) return true;
    return false;
}

/* The map of one layer: a rank's own block, which needs no way to its home, then others in turn. */
static void deal_experts(const slot_plan *plan, int32_t *experts) {
    uint32_t next = 0;
    for (uint32_t r = 0; r < plan->n_ranks; experts += plan->slots_of_rank[r++]) {
        const uint32_t first = wb_block_begin(plan->n_experts, plan->n_ranks, r);
        const uint32_t own = block_size(plan->n_experts, plan->n_ranks, r);
        for (uint32_t i = 0; i < own; i++) experts[i] = (int32_t)(first + i);
        for (uint32_t i = own; i < plan->slots_of_rank[r]; i++) {
            experts[i] = WB_NO_EXPERT;
            if (i >= plan->n_experts) continue;
            while (rank_has(experts, i, next % plan->n_experts)) next++;
            experts[i] = (int32_t)(next++ % plan->n_experts);
        }
    }
}

static wb_status place_default(const slot_plan *plan, wb_placement **placement_out) {
    const wb_topology topology = topology_of(plan);
    wb_placement *placement;
    int32_t *experts;
    WB_TRY(wb_placement_open(&topology, plan->n_layers, plan->n_experts, &placement));
    wb_status status = WB_NEW(experts, plan->n_slots, "placement");
    if (status == WB_OK) deal_experts(plan, experts);
    for (uint32_t l = 0; status == WB_OK && l < plan->n_layers; l++)
        status = wb_placement_set_layer(placement, l, experts, NULL, 0);
    free(experts);
    if (status == WB_OK)
        *placement_out = placement;
    else
        wb_placement_close(placement);
    return status;
}

wb_status expert_places_default(const options *o, const wb_config *config, int n_ranks,
                                wb_placement **placement_out) {
    slot_plan plan;
    *placement_out = NULL;
    if (o->eplb == EPLB_OFF) return WB_OK;
    WB_TRY(plan_slots(o, config, n_ranks, false, &plan));
    const wb_status status = place_default(&plan, placement_out);
    close_plan(&plan);
    return status;
}

/* ---- a run ----------------------------------------------------------------------------------- */

static wb_status read_placement(const char *path, const slot_plan *plan, wb_placement **placement_out) {
    const wb_topology topology = topology_of(plan);
    return wb_placement_read(path, &topology, plan->n_layers, plan->n_experts, plan->layers, NULL, NULL,
                             placement_out);
}

/* Of the run that is resumed. One of other slots is not a fault: experts are placed anew. */
static wb_status resume_placement(const char *checkpoint, const slot_plan *plan, bool loud,
                                  wb_placement **placement_out) {
    char path[PATH_BYTES];
    if (!checkpoint || !path_has(checkpoint, PLACEMENT_FILE)) return place_default(plan, placement_out);
    WB_TRY(path_join(path, checkpoint, PLACEMENT_FILE));
    const wb_status status = read_placement(path, plan, placement_out);
    if (status != WB_MISMATCH) return status;
    if (loud) fprintf(stderr, "%s: experts are placed anew\n", wb_error_message());
    return place_default(plan, placement_out);
}

wb_status expert_places_open(const options *o, const wb_config *config, int n_ranks, const char *checkpoint,
                             bool loud, wb_placement **placement_out) {
    slot_plan plan;
    *placement_out = NULL;
    if (o->eplb == EPLB_OFF) return WB_OK;
    WB_TRY(plan_slots(o, config, n_ranks, loud, &plan));
    wb_status status = o->init_placement ? read_placement(o->init_placement, &plan, placement_out)
                                         : resume_placement(checkpoint, &plan, loud, placement_out);
    if (status != WB_OK && o->init_placement) status = wb_fail_context(status, "--init-placement");
    close_plan(&plan);
    return status;
}
