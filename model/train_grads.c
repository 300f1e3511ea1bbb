/* train_grads.c - the gradients of a trainer: memory, zeroing, and their sum over ranks.
 *
 * Every rank gets the whole sum: of each bucket the ranks sum a part each, in the order of the ranks, and
 * give it to the others. An optimizer that is cut over ranks needs its own parts alone, so that the second
 * transfer could go. It stays because wb_train_grad hands out whole gradients, which callers read on any
 * rank: the norm, which is summed over a gradient in one order whatever the number of ranks. What it costs
 * is in tests/bench/README.md (bench_train_cuda). Refuses: computing them, the optimizer. */
#include "collective.h"
#include "train_state.h"

/* Gradients travel in buckets of as many elements as there are, within these bounds. Each is two transfers,
 * and the layers wait for the second one: in buckets of the lower bound 3 GB took 63 ms between two H100. */
#define MIN_BUCKET ((int64_t)1 << 20)
#define MAX_BUCKET ((int64_t)1 << 24)

static int64_t replicated_elements(const wb_model *model) {
    int64_t n = 0;
    for (int32_t i = 0; i < model->n_params; i++)
        if (model->params[i].moe_layer < 0) n += model->params[i].n;
    return n;
}

wb_status wb_train_open_grads(wb_train *train) {
    const wb_model *model = train->model;
    const int64_t all = replicated_elements(model), most = all < MAX_BUCKET ? all : MAX_BUCKET;
    train->reduction.room = train->reduction.bucket_elements = most > MIN_BUCKET ? most : MIN_BUCKET;
    return WB_OWN(&train->memory.host, train->grads, (size_t)model->n_params, "gradients");
}

/* Parts are rounded up: from 1057 ranks on, R - 1 parts of a bucket can be more than all of it. */
int64_t wb_train_bucket_scratch(int64_t elements, int32_t n_ranks) {
    const int64_t parts = (n_ranks - 1) * ((elements + n_ranks - 1) / n_ranks);
    return parts > elements ? parts : elements;
}

/* Of a bucket with its scratch. */
static int64_t bucket_stride(const wb_train *train) {
    return train->reduction.room + wb_train_bucket_scratch(train->reduction.room, train->model->n_ranks);
}

void wb_train_layout_grads(wb_train *train, wb_arena *arena) {
    const wb_model *model = train->model;
    for (int32_t i = 0; i < model->n_params; i++) {
        wb_buffer gradient;
        wb_place(arena, &gradient, model->params[i].n, 1, sizeof(float));
        train->grads[i] = gradient.data;
    }
    wb_train_layout_parts(train, arena);
    if (model->n_ranks > 1)
        wb_place(arena, &train->buckets, GRAD_BUCKETS, bucket_stride(train), sizeof(float));
}

float *wb_train_grad(const wb_train *train, const wb_tensor *tensor) {
    return tensor->data && !train->forward_only ? train->grads[tensor->param] + tensor->offset : NULL;
}

wb_status wb_train_check_has_grads(const wb_train *train) {
    if (!train->forward_only) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "gradients: expected a trainer that has them, found one for forwards only");
}

/* Those of the replicated weights, or of the experts. */
static wb_status zero_grads(const wb_train *train, bool of_experts) {
    wb_device *dev = train->model->device;
    for (int32_t i = 0; i < train->model->n_params; i++) {
        const wb_param *param = &train->model->params[i];
        if ((param->moe_layer >= 0) != of_experts) continue;
        WB_TRY(dev->zero(dev, train->grads[i], (size_t)param->n * sizeof(float)));
    }
    return WB_OK;
}

wb_status wb_train_clear_grads(const wb_train *train) {
    WB_TRY(zero_grads(train, true));
    return zero_grads(train, false);
}

/* Of a model of experts nearly all gradients are theirs, and each backward goes over all of them: the next
 * one writes what it would have added, which saves writing zeros and reading them again. */
wb_status wb_train_zero_grads(wb_train *train) {
    WB_TRY(wb_train_check_has_grads(train));
    train->experts.grads_are_old = true;
    return zero_grads(train, false);
}

wb_status wb_train_settle_grads(wb_train *train) {
    WB_TRY(wb_train_check_has_grads(train));
    if (!train->experts.grads_are_old) return WB_OK;
    WB_TRY(zero_grads(train, true));
    train->experts.grads_are_old = false;
    return WB_OK;
}

/* ---- their sum over ranks -------------------------------------------------------------------------- */

/* Copies up to `room` elements from `at` on between the gradients and a bucket, the last parameter first,
 * down to parameter `lowest`; returns how many, and where it stopped. */
static wb_status move_bucket(wb_train *train, grad_place *at, int32_t lowest, int64_t room, float *floats,
                             bool to_bucket, int64_t *n_out) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    int64_t filled = 0;
    while (at->param >= lowest && filled < room) {
        const wb_param *param = &model->params[at->param];
        const int64_t left = param->moe_layer >= 0 ? 0 : param->n - at->offset;
        const int64_t n = left < room - filled ? left : room - filled;
        float *grad = train->grads[at->param] + at->offset;
        float *const to = to_bucket ? floats + filled : grad;
        if (n > 0) WB_TRY(dev->copy(dev, to, to_bucket ? grad : floats + filled, (size_t)n * sizeof(float)));
        filled += n;
        at->offset += n;
        if (n == left) *at = (grad_place){at->param - 1, 0};
    }
    *n_out = filled;
    return WB_OK;
}

/* Elements that have not been taken, down to parameter `lowest`. */
static int64_t count_left(const wb_train *train, int32_t lowest) {
    const grad_place at = train->reduction.at;
    int64_t n = -at.offset;
    for (int32_t i = at.param; i >= lowest; i--)
        if (train->model->params[i].moe_layer < 0) n += train->model->params[i].n;
    return n > 0 ? n : 0;
}

static wb_status finish_bucket(wb_train *train) {
    grad_reduction *r = &train->reduction;
    grad_bucket *b = &r->buckets[r->n_finished++ % GRAD_BUCKETS];
    int64_t n;
    WB_TRY(wb_exchange_wait(train->model->exchange, b->work));
    if (b->sums != b->floats) return WB_OK;
    return move_bucket(train, &b->start, 0, b->n, b->floats, false, &n);
}

/* A full bucket of one gradient, which is taken from where it is; NULL: the next gradient is smaller. */
static float *take_whole(wb_train *train, int32_t lowest) {
    grad_reduction *r = &train->reduction;
    const wb_param *params = train->model->params;
    while (r->at.param > lowest && params[r->at.param].moe_layer >= 0)
        r->at = (grad_place){r->at.param - 1, 0};
    const grad_place at = r->at;
    const int64_t left = params[at.param].n - at.offset;
    if (params[at.param].moe_layer >= 0 || left < r->bucket_elements) return NULL;
    r->at.offset += r->bucket_elements;
    if (left == r->bucket_elements) r->at = (grad_place){at.param - 1, 0};
    return train->grads[at.param] + at.offset;
}

static wb_status start_bucket(wb_train *train, int32_t lowest) {
    grad_reduction *r = &train->reduction;
    if (r->n_started - r->n_finished == GRAD_BUCKETS) WB_TRY(finish_bucket(train));
    grad_bucket *b = &r->buckets[r->n_started++ % GRAD_BUCKETS];
    b->n = r->bucket_elements;
    b->sums = take_whole(train, lowest);
    if (!b->sums) {
        b->sums = b->floats;
        b->start = r->at;
        WB_TRY(move_bucket(train, &r->at, lowest, r->bucket_elements, b->floats, true, &b->n));
    }
    return wb_exchange_start_all_reduce(train->model->exchange, b->sums, (size_t)b->n, b->scratch, &b->work);
}

void wb_train_start_reduction(wb_train *train) {
    float *memory = train->buckets.data;
    grad_reduction *r = &train->reduction;
    for (int i = 0; i < GRAD_BUCKETS && memory; i++) {
        r->buckets[i].floats = memory + i * bucket_stride(train);
        r->buckets[i].scratch = r->buckets[i].floats + r->room;
    }
    r->at = (grad_place){train->model->n_params - 1, 0};
    r->n_started = r->n_finished = 0;
}

wb_status wb_train_reduce_ready(wb_train *train, int32_t lowest) {
    if (train->model->n_ranks == 1) return WB_OK;
    while (count_left(train, lowest) >= train->reduction.bucket_elements) WB_TRY(start_bucket(train, lowest));
    return WB_OK;
}

wb_status wb_train_finish_reduction(wb_train *train) {
    grad_reduction *r = &train->reduction;
    WB_TRY(wb_train_sum_replicas(train));
    if (train->model->n_ranks == 1) return WB_OK;
    while (count_left(train, 0) > 0) WB_TRY(start_bucket(train, 0));
    while (r->n_finished < r->n_started) WB_TRY(finish_bucket(train));
    return WB_OK;
}

wb_status wb_train_reduce_grads(wb_train *train) {
    WB_TRY(wb_comm_agree(train->model->comm, wb_train_settle_grads(train)));
    wb_train_start_reduction(train);
    return wb_collective_end(train->model, wb_train_finish_reduction(train));
}
