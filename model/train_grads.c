/* train_grads.c - the gradients of a trainer: memory, zeroing, and their sum over ranks. Refuses: computing
 * them, the optimizer. */
#include "collective.h"
#include "train_state.h"

/* Gradients travel in buckets of this many elements; an all-reduce's scratch is no larger. */
#define BUCKET_ELEMENTS ((int64_t)1 << 20)

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
    if (model->n_ranks > 1) wb_place(arena, &train->buckets, 4, BUCKET_ELEMENTS, sizeof(float));
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

/* A place in the replicated gradients, one after the other. */
typedef struct grad_place {
    int32_t param;
    int64_t offset;
} grad_place;

/* What travels at once: small gradients share a bucket, large ones are cut. */
typedef struct bucket {
    grad_place start;
    int64_t n;
    float *floats, *scratch; /* device [BUCKET_ELEMENTS] each */
    uint64_t work;
} bucket;

/* Moves up to BUCKET_ELEMENTS elements from `at` on between the gradients and the bucket; returns how many,
 * and where it stopped. */
static wb_status move_bucket(wb_train *train, grad_place *at, float *floats, bool to_bucket, int64_t *n_out) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    int64_t filled = 0;
    while (at->param < model->n_params && filled < BUCKET_ELEMENTS) {
        const wb_param *param = &model->params[at->param];
        const int64_t left = param->moe_layer >= 0 ? 0 : param->n - at->offset;
        const int64_t n = left < BUCKET_ELEMENTS - filled ? left : BUCKET_ELEMENTS - filled;
        float *grad = train->grads[at->param] + at->offset;
        float *const to = to_bucket ? floats + filled : grad;
        if (n > 0) WB_TRY(dev->copy(dev, to, to_bucket ? grad : floats + filled, (size_t)n * sizeof(float)));
        filled += n;
        at->offset += n;
        if (n == left) *at = (grad_place){at->param + 1, 0};
    }
    *n_out = filled;
    return WB_OK;
}

/* The next bucket from `at` on starts to travel; n is 0 where nothing is left. */
static wb_status start_bucket(wb_train *train, grad_place *at, bucket *b) {
    b->start = *at;
    WB_TRY(move_bucket(train, at, b->floats, true, &b->n));
    if (b->n == 0) return WB_OK;
    return wb_exchange_start_all_reduce(train->model->exchange, b->floats, (size_t)b->n, b->scratch,
                                        &b->work);
}

static wb_status finish_bucket(wb_train *train, bucket *b) {
    int64_t n;
    WB_TRY(wb_exchange_wait(train->model->exchange, b->work));
    return move_bucket(train, &b->start, b->floats, false, &n);
}

/* One bucket is filled while the one before it travels. */
static wb_status reduce_buckets(wb_train *train) {
    float *memory = train->buckets.data;
    bucket buckets[2] = {{.floats = memory, .scratch = memory + BUCKET_ELEMENTS},
                         {.floats = memory + 2 * BUCKET_ELEMENTS, .scratch = memory + 3 * BUCKET_ELEMENTS}};
    grad_place at = {0, 0};
    WB_TRY(start_bucket(train, &at, &buckets[0]));
    for (size_t i = 0; buckets[i % 2].n > 0; i++) {
        WB_TRY(start_bucket(train, &at, &buckets[(i + 1) % 2]));
        WB_TRY(finish_bucket(train, &buckets[i % 2]));
    }
    return WB_OK;
}

wb_status wb_train_reduce_grads(wb_train *train) {
    wb_comm *comm = train->model->comm;
    WB_TRY(wb_comm_agree(comm, check_has_grads(train)));
    wb_status status = wb_train_sum_replicas(train);
    if (status == WB_OK && wb_comm_size(comm) > 1) status = reduce_buckets(train);
    return wb_collective_end(train->model, status);
}
