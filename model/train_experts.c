/* train_experts.c - the update of experts: weight and gradient of each go from its lead replica to its home
 * rank, which updates it, and from there the new weight goes to every slot that the next placement gives the
 * expert, so that a changed placement costs no traffic of its own. Without an update experts go from their
 * leads straight to the slots that did not have them.
 *
 * Part by part of each slot: on all ranks the weights of a part have been read before one of them is written.
 * Refuses: the formula of the update, and what state it needs. */
#include "collective.h"
#include "expert_home.h"
#include "expert_placement.h"
#include "train_state.h"

/* The update of one storage. */
typedef struct expert_update {
    wb_train *train;
    slot_part part;
    wb_layer_map next;                /* where the weights go */
    int32_t first_tensor, end_tensor; /* of the registry: those of the storage are among them */
    wb_update_fn *update;             /* NULL: the weights stay what they are */
    void *ctx;
} expert_update;

static int32_t home_of(const wb_model *model, int32_t expert) {
    return wb_home_rank(wb_config_weighted(&model->config), model->n_ranks, expert);
}

static wb_physical_id lead_of(const expert_update *u, int32_t expert) {
    const wb_layer_map *map = &u->part.map;
    return map->replicas[map->replica_begin[expert] + wb_expert_lead(u->train->model, map, expert)];
}

/* Bytes of the part of a slot's weights, and of its gradients. */
static size_t weight_bytes(const expert_update *u) {
    return (size_t)u->part.n * wb_dtype_size(u->part.weight.dtype);
}
static size_t grad_bytes(const expert_update *u) {
    return (size_t)u->part.n * sizeof(float);
}

/* Place i in the scratch, for weights. */
static wb_rows weight_scratch(const expert_update *u, int64_t i) {
    return (wb_rows){wb_train_scratch_part(u->train, i), u->part.weight.dtype};
}

/* ---- the way home -------------------------------------------------------------------------------- */

/* The lead is here: the gradient stays where it is, and the weight does in a slot that keeps its expert;
 * another slot is written before all have been read. */
static wb_status take_own(expert_update *u, int32_t expert, wb_physical_id lead, int64_t *n_used) {
    wb_train *train = u->train;
    wb_device *dev = train->model->device;
    expert_at_home *at = &train->experts.at_home[expert];
    at->grad = wb_slot_part_grad(train->model, &u->part, lead);
    at->weight = wb_slot_part_weight(train->model, &u->part, lead);
    if (u->next.expert_of_slot[lead.slot] == expert) return WB_OK;
    const wb_rows copy = weight_scratch(u, (*n_used)++);
    WB_TRY(dev->copy(dev, copy.data, at->weight.data, weight_bytes(u)));
    at->weight = copy;
    return WB_OK;
}

static void receive_at_home(expert_update *u, int32_t expert, int32_t from, int64_t *n_used) {
    wb_train *train = u->train;
    float *const grad = wb_train_scratch_part(train, (*n_used)++);
    const wb_rows weight = weight_scratch(u, (*n_used)++);
    wb_slot_receive(&train->experts.traffic, from, grad, grad_bytes(u));
    wb_slot_receive(&train->experts.traffic, from, weight.data, weight_bytes(u));
    train->experts.at_home[expert] = (expert_at_home){grad, weight};
}

static void send_home(expert_update *u, int32_t home, wb_physical_id lead) {
    const wb_model *model = u->train->model;
    wb_slot_traffic *traffic = &u->train->experts.traffic;
    wb_slot_send(traffic, home, wb_slot_part_grad(model, &u->part, lead), grad_bytes(u));
    wb_slot_send(traffic, home, wb_slot_part_weight(model, &u->part, lead).data, weight_bytes(u));
}

/* Whether there is something to do for an expert: an update, or a slot that does not have it yet. */
static bool is_due(const expert_update *u, int32_t expert) {
    if (u->update) return true;
    for (uint32_t k = u->next.replica_begin[expert]; k < u->next.replica_begin[expert + 1]; k++)
        if (u->part.map.expert_of_slot[u->next.replicas[k].slot] != expert) return true;
    return false;
}

/* The rank that an expert's slots get their weight from. */
static int32_t source_of(const expert_update *u, int32_t expert) {
    const wb_model *model = u->train->model;
    return u->update ? home_of(model, expert) : wb_model_rank_of(model, lead_of(u, expert));
}

/* Whether each expert, on every rank, is worked on in the slot that it is in. Then no scratch is needed, and
 * a slot need not be cut. */
static bool all_stay(const expert_update *u) {
    for (int32_t e = 0; e < wb_config_weighted(&u->train->model->config); e++) {
        const wb_physical_id lead = lead_of(u, e);
        if (!is_due(u, e)) continue;
        if (source_of(u, e) != wb_model_rank_of(u->train->model, lead) ||
            u->next.expert_of_slot[lead.slot] != e)
            return false;
    }
    return true;
}

static wb_status bring_home(expert_update *u) {
    const wb_model *model = u->train->model;
    int64_t n_used = 0;
    for (int32_t e = 0; e < wb_config_weighted(&model->config); e++) {
        if (!is_due(u, e)) continue;
        const wb_physical_id lead = lead_of(u, e);
        const int32_t to = source_of(u, e), from = wb_model_rank_of(model, lead);
        if (to == model->rank && from == model->rank)
            WB_TRY(take_own(u, e, lead, &n_used));
        else if (to == model->rank)
            receive_at_home(u, e, from, &n_used);
        else if (from == model->rank)
            send_home(u, to, lead);
    }
    if (model->n_ranks == 1 || !u->update) return WB_OK;
    return wb_slot_traffic_run(&u->train->experts.traffic, model->exchange);
}

/* ---- the update ---------------------------------------------------------------------------------- */

/* What of tensor i lies in the part. */
static wb_status update_tensor(expert_update *u, int32_t i) {
    const wb_model *model = u->train->model;
    const wb_tensor *tensor = &model->tensors[i];
    const slot_part *part = &u->part;
    if (&model->params[tensor->param] != part->param || home_of(model, tensor->expert) != model->rank)
        return WB_OK;
    const int64_t tensor_end = tensor->offset + tensor->n, part_end = part->first + part->n;
    const int64_t first = tensor->offset > part->first ? tensor->offset : part->first;
    const int64_t end = tensor_end < part_end ? tensor_end : part_end;
    if (first >= end) return WB_OK;
    const expert_at_home *at = &u->train->experts.at_home[tensor->expert];
    const int64_t skip = first - part->first;
    return u->update(u->ctx, i, first - tensor->offset, end - first, at->grad + skip,
                     wb_rows_from(at->weight, skip));
}

static wb_status update_part(expert_update *u) {
    if (!u->update) return WB_OK;
    for (int32_t i = u->first_tensor; i < u->end_tensor; i++) WB_TRY(update_tensor(u, i));
    return WB_OK;
}

/* ---- and to the next placement ------------------------------------------------------------------- */

/* The slots of the next placement that an expert has, of which some may be its own or this rank's. */
static wb_status give_expert(expert_update *u, int32_t expert) {
    wb_train *train = u->train;
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    const int32_t source = source_of(u, expert);
    const void *from = train->experts.at_home[expert].weight.data;
    const size_t bytes = weight_bytes(u);
    for (uint32_t k = u->next.replica_begin[expert]; k < u->next.replica_begin[expert + 1]; k++) {
        const wb_physical_id slot = u->next.replicas[k];
        const int32_t rank = wb_model_rank_of(model, slot);
        if (!u->update && u->part.map.expert_of_slot[slot.slot] == expert) continue;
        if (rank != model->rank) {
            if (source == model->rank) wb_slot_send(&train->experts.traffic, rank, from, bytes);
            continue;
        }
        void *const to = wb_slot_part_weight(model, &u->part, slot).data;
        if (source != model->rank)
            wb_slot_receive(&train->experts.traffic, source, to, bytes);
        else if (to != from)
            WB_TRY(dev->copy(dev, to, from, bytes));
    }
    return WB_OK;
}

static wb_status give_part(expert_update *u) {
    const wb_model *model = u->train->model;
    for (int32_t e = 0; e < wb_config_weighted(&model->config); e++) WB_TRY(give_expert(u, e));
    return model->n_ranks == 1 ? WB_OK : wb_slot_traffic_run(&u->train->experts.traffic, model->exchange);
}

/* ---- all of it ----------------------------------------------------------------------------------- */

static void find_tensors(expert_update *u, int32_t param) {
    const wb_model *model = u->train->model;
    u->first_tensor = u->end_tensor = 0;
    for (int32_t i = 0; i < model->n_tensors; i++) {
        if (model->tensors[i].param != param) continue;
        if (u->end_tensor == 0) u->first_tensor = i;
        u->end_tensor = i + 1;
    }
}

static wb_status update_storage(expert_update *u, int32_t param, const wb_placement *next) {
    const uint32_t layer = (uint32_t)u->train->model->params[param].moe_layer;
    u->part = wb_train_first_part(u->train, param);
    u->next = wb_placement_layer(next, layer);
    find_tensors(u, param);
    if (all_stay(u)) u->part.n = u->part.param->slot_elements;
    do {
        WB_TRY(bring_home(u));
        WB_TRY(update_part(u));
        WB_TRY(give_part(u));
    } while (wb_train_next_part(u->train, &u->part));
    return WB_OK;
}

static wb_status update_all(expert_update *u, const wb_placement *next) {
    const wb_model *model = u->train->model;
    for (int32_t i = 0; i < model->n_params; i++)
        if (model->params[i].moe_layer >= 0) WB_TRY(update_storage(u, i, next));
    return WB_OK;
}

/* A rank that has nothing to send or receive hears of another's failure when all agree, before the map
 * changes. */
static wb_status run_update(expert_update *u, const wb_placement *next) {
    wb_model *model = u->train->model;
    if (next) WB_TRY(wb_model_check_placement(model, next));
    WB_TRY(wb_collective_end(model, update_all(u, next ? next : model->placement)));
    WB_TRY(wb_comm_agree(model->comm, WB_OK));
    return next ? wb_collective_end(model, wb_model_take_placement(model, next)) : WB_OK;
}

/* Memory of others goes with a manager's moves alone: here experts are sent to wherever `next` has them, and
 * what is attached to their slots would be left behind. */
static wb_status check_next(const wb_train *train, const wb_placement *next) {
    const wb_model *model = train->model;
    WB_TRY(wb_train_check_has_grads(train));
    if (!next || model->n_attached == 0) return WB_OK;
    return wb_fail(
        WB_INVALID_ARGUMENT,
        "placement: %zu pieces of memory are attached to slots (wb_model_attach_slots), which only a "
        "manager moves: expected none",
        model->n_attached);
}

static wb_status prepare_update(wb_train *train, const wb_placement *next, wb_update_fn *update) {
    if (!update) return wb_fail(WB_INVALID_ARGUMENT, "update of experts: expected a function, found NULL");
    WB_TRY(check_next(train, next));
    return wb_train_settle_grads(train);
}

wb_status wb_train_update_experts(wb_train *train, const wb_placement *next, wb_update_fn *update,
                                  void *ctx) {
    expert_update u = {.train = train, .update = update, .ctx = ctx};
    WB_TRY(wb_comm_agree(train->model->comm, prepare_update(train, next, update)));
    return run_update(&u, next);
}

wb_status wb_train_place_experts(wb_train *train, const wb_placement *next) {
    expert_update u = {.train = train};
    WB_TRY(wb_comm_agree(train->model->comm, check_next(train, next)));
    return run_update(&u, next);
}
