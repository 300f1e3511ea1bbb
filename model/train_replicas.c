/* train_replicas.c - an expert in several slots has a gradient in each, of the rows that went there: in the
 * slot of its lead replica it becomes their sum, added in replica order.
 *
 * The other ranks send what they have to the lead's, a part of each slot at a time, so that scratch is
 * bounded. Refuses: replicated weights of other kinds (train_grads.c), the update (train_experts.c). */
#include "expert_home.h"
#include "train_state.h"

/* ---- the sums ------------------------------------------------------------------------------------ */

/* One expert with its replicas: their ranks, and which one leads. */
typedef struct replica_group {
    const wb_physical_id *slots;
    uint32_t n, lead;
    int32_t lead_rank;
} replica_group;

static replica_group group_of(const wb_model *model, const slot_part *part, int32_t expert) {
    const uint32_t begin = part->map.replica_begin[expert];
    replica_group g = {.slots = part->map.replicas + begin,
                       .n = part->map.replica_begin[expert + 1] - begin,
                       .lead = wb_expert_lead(model, &part->map, expert)};
    g.lead_rank = wb_model_rank_of(model, g.slots[g.lead]);
    return g;
}

static bool is_here(const wb_model *model, const replica_group *g, uint32_t k) {
    return wb_model_rank_of(model, g->slots[k]) == model->rank;
}

/* Lists what travels to the leads; experts ascending, then replicas. */
static void list_group(wb_train *train, const slot_part *part, const replica_group *g, int64_t *n_used) {
    const wb_model *model = train->model;
    train_experts *x = &train->experts;
    const size_t bytes = (size_t)part->n * sizeof(float);
    for (uint32_t k = 0; k < g->n; k++) {
        const int32_t rank = wb_model_rank_of(model, g->slots[k]);
        if (rank == g->lead_rank) continue;
        if (rank == model->rank)
            wb_slot_send(&x->traffic, g->lead_rank, wb_slot_part_grad(model, part, g->slots[k]), bytes);
        else if (g->lead_rank == model->rank)
            wb_slot_receive(&x->traffic, rank, wb_train_scratch_part(train, (*n_used)++), bytes);
    }
}

/* The sum in replica order, in the lead's slot. Replicas before the lead are on other ranks, so that their
 * sum may lie in scratch; a + b is b + a. */
static wb_status add_group(wb_train *train, const slot_part *part, const replica_group *g, int64_t *n_used) {
    wb_device *dev = train->model->device;
    float *const lead = wb_slot_part_grad(train->model, part, g->slots[g->lead]);
    float *sum = lead;
    for (uint32_t k = 0; k < g->n; k++) {
        if (k == g->lead) {
            if (sum != lead) WB_TRY(dev->add(dev, part->n, wb_f32_rows(sum), wb_f32_rows(lead)));
            sum = lead;
            continue;
        }
        float *const found = is_here(train->model, g, k) ? wb_slot_part_grad(train->model, part, g->slots[k])
                                                         : wb_train_scratch_part(train, (*n_used)++);
        if (k == 0)
            sum = found;
        else
            WB_TRY(dev->add(dev, part->n, wb_f32_rows(found), wb_f32_rows(sum)));
    }
    return WB_OK;
}

static wb_status sum_part(wb_train *train, const slot_part *part) {
    const wb_model *model = train->model;
    const int32_t E = wb_config_weighted(&model->config);
    int64_t n_used = 0;
    for (int32_t e = 0; e < E; e++) {
        const replica_group g = group_of(model, part, e);
        if (model->n_ranks > 1) list_group(train, part, &g, &n_used);
    }
    if (model->n_ranks > 1) WB_TRY(wb_slot_traffic_run(&train->experts.traffic, model->exchange));
    n_used = 0;
    for (int32_t e = 0; e < E; e++) {
        const replica_group g = group_of(model, part, e);
        if (g.lead_rank == model->rank) WB_TRY(add_group(train, part, &g, &n_used));
    }
    return WB_OK;
}

static bool has_replicas(const wb_model *model, int32_t param) {
    if (model->params[param].moe_layer < 0) return false;
    const wb_layer_map map = wb_placement_layer(model->placement, (uint32_t)model->params[param].moe_layer);
    return map.replica_begin[wb_config_weighted(&model->config)] >
           (uint32_t)wb_config_weighted(&model->config);
}

wb_status wb_train_sum_replicas(wb_train *train) {
    for (int32_t i = 0; i < train->model->n_params; i++) {
        if (!has_replicas(train->model, i)) continue;
        slot_part part = wb_train_first_part(train, i);
        do WB_TRY(sum_part(train, &part));
        while (wb_train_next_part(train, &part));
    }
    return WB_OK;
}
