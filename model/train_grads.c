/* train_grads.c - the gradients of a trainer: memory, zeroing, and their sum over ranks. Refuses: computing
 * them, the optimizer. */
#include "collective.h"
#include "train_state.h"

/* Gradients travel in pieces of this many elements. */
#define REDUCE_ELEMENTS ((int64_t)1 << 20)

wb_status wb_train_open_grads(wb_train *train) {
    const wb_model *model = train->model;
    const size_t n = (size_t)model->n_params;
    WB_TRY(WB_OWN(&train->memory.host, train->grads, n, "gradients"));
    return WB_OK;
}

void wb_train_layout_grads(wb_train *train, wb_arena *arena) {
    const wb_model *model = train->model;
    for (int32_t i = 0; i < model->n_params; i++) {
        wb_buffer gradient;
        wb_place(arena, &gradient, model->params[i].n, 1, sizeof(float));
        train->grads[i] = gradient.data;
    }
    wb_train_layout_replicas(train, arena);
    if (model->n_ranks > 1) WB_PLACE_HOST(arena, train->reduce_piece, REDUCE_ELEMENTS);
}

float *wb_train_grad(const wb_train *train, const wb_tensor *tensor) {
    return tensor->data && !train->forward_only ? train->grads[tensor->param] + tensor->offset : NULL;
}

static wb_status check_has_grads(const wb_train *train) {
    if (!train->forward_only) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "gradients: expected a trainer that has them, found one for forwards only");
}

wb_status wb_train_zero_grads(wb_train *train) {
    WB_TRY(check_has_grads(train));
    wb_device *dev = train->model->device;
    for (int32_t i = 0; i < train->model->n_params; i++)
        WB_TRY(dev->zero(dev, train->grads[i], (size_t)train->model->params[i].n * sizeof(float)));
    return WB_OK;
}

/* A piece of the replicated gradients, taken one after the other: small ones share it, large ones are cut. */
typedef struct reduce_piece {
    int32_t param;
    int64_t offset; /* where the piece starts */
} reduce_piece;

/* Moves up to `room` elements from `at` on between the gradients and `piece`; returns how many, and where it
 * stopped. */
static wb_status move_piece(wb_train *train, reduce_piece *at, float *piece, int64_t room, bool to_host,
                            int64_t *n_out) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    int64_t filled = 0;
    while (at->param < model->n_params && filled < room) {
        const wb_param *param = &model->params[at->param];
        const int64_t left = param->moe_layer >= 0 ? 0 : param->n - at->offset;
        const int64_t n = left < room - filled ? left : room - filled;
        float *grad = train->grads[at->param] + at->offset;
        const size_t bytes = (size_t)n * sizeof(float);
        if (n > 0)
            WB_TRY(to_host ? dev->to_host(dev, piece + filled, grad, bytes)
                           : dev->to_device(dev, grad, piece + filled, bytes));
        filled += n;
        at->offset += n;
        if (n == left) *at = (reduce_piece){at->param + 1, 0};
    }
    *n_out = filled;
    return WB_OK;
}

/* Piece after piece through `piece`, [REDUCE_ELEMENTS]. */
static wb_status reduce_pieces(wb_train *train, float *piece) {
    reduce_piece start = {0, 0}, end = {0, 0};
    for (;;) {
        int64_t n;
        WB_TRY(move_piece(train, &end, piece, REDUCE_ELEMENTS, true, &n));
        if (n == 0) return WB_OK;
        WB_TRY(wb_comm_all_reduce_f32(train->model->comm, piece, (size_t)n));
        WB_TRY(move_piece(train, &start, piece, REDUCE_ELEMENTS, false, &n));
    }
}

wb_status wb_train_reduce_grads(wb_train *train) {
    wb_comm *comm = train->model->comm;
    WB_TRY(wb_comm_agree(comm, check_has_grads(train)));
    wb_status status = wb_train_sum_replicas(train);
    if (status == WB_OK && wb_comm_size(comm) > 1) status = reduce_pieces(train, train->reduce_piece);
    return wb_collective_end(train->model, status);
}
