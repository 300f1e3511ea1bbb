/* train_parts.c - a part of every slot of one storage of experts, as long as fits the scratch for what
 * travels between ranks: gradients of replicas, weights and gradients on their way home and back. Elements of
 * a slot do not depend on each other, so that all is done for one part after the other. Refuses: what is done
 * with a part (train_replicas.c, train_experts.c). */
#include "expert_home.h"
#include "model_dispatch.h"
#include "train_state.h"

/* Elements of scratch for the parts of slots that are on their way, at most (wb_slot_part). */
#define SCRATCH_ELEMENTS ((int64_t)4 << 20)

/* ---- memory -------------------------------------------------------------------------------------- */

static int64_t max_slot_elements(const wb_model *model) {
    int64_t n = 0;
    for (int32_t i = 0; i < model->n_params; i++)
        if (model->params[i].moe_layer >= 0 && model->params[i].slot_elements > n)
            n = model->params[i].slot_elements;
    return n;
}

/* Parts that a rank may have on its way at once, on any rank: the gradients of replicas that are elsewhere
 * than their lead; weight and gradient of each expert that it is home to, of which on one rank there are
 * weights alone; its slots, where they change places. */
static int64_t max_parts(const wb_model *model) {
    const wb_topology *topology = wb_placement_topology(model->placement);
    const int64_t homes = wb_expert_max_homes(wb_config_weighted(&model->config), model->n_ranks);
    const int64_t extra = (int64_t)wb_model_n_slots(model) - wb_config_weighted(&model->config);
    int64_t n = model->n_ranks == 1 ? homes : 2 * homes;
    if (model->n_ranks > 1 && extra > n) n = extra;
    for (uint32_t r = 0; r < topology->n_ranks; r++)
        if (topology->slots_of_rank[r] > n) n = topology->slots_of_rank[r];
    return n;
}

/* Each is a send or a receive here: of the sums, the way home and the way back from there. */
static int64_t max_transfers(const wb_model *model) {
    const int64_t homes = wb_expert_max_homes(wb_config_weighted(&model->config), model->n_ranks);
    return 2 * homes + 2 * wb_model_local_slots(model) + wb_model_n_slots(model) -
           wb_config_weighted(&model->config);
}

static void layout_parts(wb_train *train, wb_arena *arena) {
    const wb_model *model = train->model;
    train_experts *x = &train->experts;
    const int64_t n = max_parts(model);
    x->part_elements = wb_slot_part(SCRATCH_ELEMENTS, n, max_slot_elements(model));
    wb_place(arena, &x->scratch, n, x->part_elements, sizeof(float));
    WB_PLACE_HOST(arena, x->at_home, wb_config_weighted(&model->config));
    x->traffic.room = model->n_ranks == 1 ? 0 : (size_t)max_transfers(model);
    WB_PLACE_HOST(arena, x->traffic.transfers, (int64_t)x->traffic.room);
}

void wb_train_layout_parts(wb_train *train, wb_arena *arena) {
    if (max_slot_elements(train->model) > 0) layout_parts(train, arena);
}

wb_status wb_train_open_parts(wb_train *train) {
    const wb_model *model = train->model;
    return model->n_ranks == 1 ? WB_OK : wb_exchange_reserve(model->exchange, train->experts.traffic.room);
}

/* ---- a part of every slot of one storage --------------------------------------------------------- */

slot_part wb_train_first_part(const wb_train *train, int32_t param) {
    const wb_model *model = train->model;
    const wb_param *p = &model->params[param];
    const int64_t n = train->experts.part_elements;
    return (slot_part){.param = p,
                       .grad = train->grads[param],
                       .weight = {p->memory.data, p->dtype},
                       .map = wb_placement_layer(model->placement, (uint32_t)p->moe_layer),
                       .n = n < p->slot_elements ? n : p->slot_elements};
}

bool wb_train_next_part(const wb_train *train, slot_part *part) {
    const int64_t n = train->experts.part_elements;
    part->first += part->n;
    const int64_t left = part->param->slot_elements - part->first;
    part->n = n < left ? n : left;
    return part->n > 0;
}

float *wb_train_scratch_part(const wb_train *train, int64_t i) {
    return (float *)train->experts.scratch.data + i * train->experts.part_elements;
}
