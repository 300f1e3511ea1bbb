/* train_replicas.c - an expert in several slots has a gradient in each, of the rows that went there: all
 * become their sum, added in replica order, so that every replica is updated by the same bits.
 *
 * Replica 0's rank is the expert's owner: the others send it what they have, it adds, and sends the sum back.
 * Refuses: replicated weights of other kinds (train_grads.c). */
#include "model_dispatch.h"
#include "train_state.h"

#include <string.h>

/* One storage of slots on its way. */
typedef struct replica_sum {
    wb_train *train;
    const wb_param *param;
    float *grad; /* device [slots of this rank][slot_elements] */
    wb_layer_map map;
    size_t slot_bytes;
    size_t *to_bytes, *to_offsets, *from_bytes, *from_offsets; /* [R] of an all-to-all */
    size_t *cursor;                                            /* [R] next part of each rank */
    char *send, *receive;                                      /* host */
} replica_sum;

static size_t rank_of(const replica_sum *s, uint32_t replica) {
    return wb_placement_rank_of(s->train->model->placement, s->map.replicas[replica]);
}

static float *grad_of(const replica_sum *s, uint32_t replica) {
    const int64_t slot = s->map.replicas[replica].slot - wb_model_first_slot(s->train->model);
    return s->grad + slot * s->param->slot_elements;
}

static size_t own_rank(const replica_sum *s) {
    return (size_t)wb_comm_rank(s->train->model->comm);
}

/* Calls `visit` for every replica but the first of each expert, with the rank that has it and the expert's
 * owner: experts ascending, then replicas, which is the order of the parts between two ranks. */
typedef wb_status visit_fn(replica_sum *s, uint32_t first, uint32_t replica, size_t rank, size_t owner);

static wb_status visit_replicas(replica_sum *s, visit_fn *visit) {
    for (int32_t e = 0; e < s->train->model->config.router.n_experts; e++) {
        const uint32_t first = s->map.replica_begin[e], end = s->map.replica_begin[e + 1];
        const size_t owner = rank_of(s, first);
        for (uint32_t i = first + 1; i < end; i++) WB_TRY(visit(s, first, i, rank_of(s, i), owner));
    }
    return WB_OK;
}

/* ---- how much goes where ------------------------------------------------------------------------ */

static wb_status count_replica(replica_sum *s, uint32_t first, uint32_t replica, size_t rank, size_t owner) {
    (void)first, (void)replica;
    if (rank == owner) return WB_OK;
    if (rank == own_rank(s)) s->to_bytes[owner] += s->slot_bytes;
    if (owner == own_rank(s)) s->from_bytes[rank] += s->slot_bytes;
    return WB_OK;
}

static size_t lay_out(size_t R, const size_t *bytes, size_t *offsets) {
    size_t total = 0;
    for (size_t r = 0; r < R; r++) {
        offsets[r] = total;
        total += bytes[r];
    }
    return total;
}

/* Fills s for storage `param`; bytes of what this rank sends and receives as a holder of replicas. */
static wb_status start(replica_sum *s, int32_t param) {
    wb_train *train = s->train;
    const wb_model *model = train->model;
    const size_t R = (size_t)wb_comm_size(model->comm);
    size_t *sizes = train->replica_sizes;
    s->param = &model->params[param];
    s->grad = train->grads[param];
    s->map = wb_placement_layer(model->placement, (uint32_t)s->param->moe_layer);
    s->slot_bytes = (size_t)s->param->slot_elements * sizeof(float);
    s->to_bytes = sizes, s->to_offsets = sizes + R;
    s->from_bytes = sizes + 2 * R, s->from_offsets = sizes + 3 * R;
    s->cursor = sizes + 4 * R;
    memset(sizes, 0, 5 * R * sizeof *sizes);
    return visit_replicas(s, count_replica);
}

/* As many replicas as there are beyond the first of each expert may be elsewhere than their owner, or
 * here. */
void wb_train_layout_replicas(wb_train *train, wb_arena *arena) {
    const wb_model *model = train->model;
    const int64_t n = (int64_t)wb_model_n_slots(model) - model->config.router.n_experts;
    int64_t slot_elements = 0;
    if (n <= 0) return;
    for (int32_t i = 0; i < model->n_params; i++)
        if (model->params[i].moe_layer >= 0 && model->params[i].slot_elements > slot_elements)
            slot_elements = model->params[i].slot_elements;
    wb_place(arena, &train->replica_scratch, slot_elements, 1, sizeof(float));
    WB_PLACE_HOST(arena, train->replica_sizes, 5 * (int64_t)model->n_ranks);
    const int64_t bytes = model->n_ranks == 1 ? 0 : n * slot_elements * (int64_t)sizeof(float);
    WB_PLACE_HOST(arena, train->replica_sent, bytes);
    WB_PLACE_HOST(arena, train->replica_received, bytes);
}

/* ---- to the owner ------------------------------------------------------------------------------- */

static wb_status send_replica(replica_sum *s, uint32_t first, uint32_t replica, size_t rank, size_t owner) {
    wb_device *dev = s->train->model->device;
    (void)first;
    if (rank == owner || rank != own_rank(s)) return WB_OK;
    char *to = s->send + s->cursor[owner];
    s->cursor[owner] += s->slot_bytes;
    return dev->to_host(dev, to, grad_of(s, replica), s->slot_bytes);
}

static wb_status add_replica(replica_sum *s, uint32_t first, uint32_t replica, size_t rank, size_t owner) {
    wb_device *dev = s->train->model->device;
    const int64_t n = s->param->slot_elements;
    if (owner != own_rank(s)) return WB_OK;
    const wb_rows sum = wb_f32_rows(grad_of(s, first));
    if (rank == owner) return dev->add(dev, n, wb_f32_rows(grad_of(s, replica)), sum);
    float *arrived = s->train->replica_scratch.data;
    WB_TRY(dev->to_device(dev, arrived, s->receive + s->cursor[rank], s->slot_bytes));
    s->cursor[rank] += s->slot_bytes;
    return dev->add(dev, n, wb_f32_rows(arrived), sum);
}

/* ---- and back ----------------------------------------------------------------------------------- */

static wb_status send_sum(replica_sum *s, uint32_t first, uint32_t replica, size_t rank, size_t owner) {
    wb_device *dev = s->train->model->device;
    if (owner != own_rank(s)) return WB_OK;
    if (rank == owner) return dev->copy(dev, grad_of(s, replica), grad_of(s, first), s->slot_bytes);
    char *to = s->send + s->cursor[rank];
    s->cursor[rank] += s->slot_bytes;
    return dev->to_host(dev, to, grad_of(s, first), s->slot_bytes);
}

static wb_status take_sum(replica_sum *s, uint32_t first, uint32_t replica, size_t rank, size_t owner) {
    wb_device *dev = s->train->model->device;
    (void)first;
    if (rank == owner || rank != own_rank(s)) return WB_OK;
    const char *from = s->receive + s->cursor[owner];
    s->cursor[owner] += s->slot_bytes;
    return dev->to_device(dev, grad_of(s, replica), from, s->slot_bytes);
}

/* ---- all of it ---------------------------------------------------------------------------------- */

static wb_status sum_storage(replica_sum *s, int32_t param) {
    wb_comm *comm = s->train->model->comm;
    const size_t R = (size_t)wb_comm_size(comm), offsets_bytes = R * sizeof(size_t);
    WB_TRY(start(s, param));
    lay_out(R, s->to_bytes, s->to_offsets);
    lay_out(R, s->from_bytes, s->from_offsets);

    memcpy(s->cursor, s->to_offsets, offsets_bytes);
    WB_TRY(visit_replicas(s, send_replica));
    WB_TRY(wb_comm_all_to_all_v(comm, s->send, s->to_bytes, s->to_offsets, s->receive, s->from_bytes,
                                s->from_offsets));
    memcpy(s->cursor, s->from_offsets, offsets_bytes);
    WB_TRY(visit_replicas(s, add_replica));

    memcpy(s->cursor, s->from_offsets, offsets_bytes);
    WB_TRY(visit_replicas(s, send_sum));
    WB_TRY(wb_comm_all_to_all_v(comm, s->send, s->from_bytes, s->from_offsets, s->receive, s->to_bytes,
                                s->to_offsets));
    memcpy(s->cursor, s->to_offsets, offsets_bytes);
    return visit_replicas(s, take_sum);
}

static bool has_replicas(const wb_model *model, int32_t param) {
    if (model->params[param].moe_layer < 0) return false;
    const wb_layer_map map = wb_placement_layer(model->placement, (uint32_t)model->params[param].moe_layer);
    return map.replica_begin[model->config.router.n_experts] > (uint32_t)model->config.router.n_experts;
}

wb_status wb_train_sum_replicas(wb_train *train) {
    replica_sum s = {.train = train, .send = train->replica_sent, .receive = train->replica_received};
    for (int32_t i = 0; i < train->model->n_params; i++)
        if (has_replicas(train->model, i)) WB_TRY(sum_storage(&s, i));
    return WB_OK;
}
