/* optimizer.c - AdamW over the tensors that live on this rank; the f32 weights of the trained model are the
 * master weights. The replicas of an expert have the same gradients on every rank after
 * wb_train_backward_last, so they stay the same; a replicated tensor is cut into a part for each rank, which
 * alone has the part's moments and updates it, and then the parts go to all. */
#include "grpo.h"
#include "wb_exchange.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* ---- who updates what ----------------------------------------------------------------------------- */

/* Where the part of rank r, 0..n_ranks, of n elements begins; no product overflows. */
static int64_t part_begin(int64_t n, int r, int n_ranks) {
    return n / n_ranks * r + n % n_ranks * r / n_ranks;
}

optimizer_part optimizer_part_of(const wb_tensor *tensor, int of_rank, int n_ranks) {
    if (tensor->expert >= 0) return (optimizer_part){0, tensor->n};
    const int64_t first = part_begin(tensor->n, of_rank, n_ranks);
    return (optimizer_part){first, part_begin(tensor->n, of_rank + 1, n_ranks) - first};
}

static optimizer_part own_part(const optimizer *opt, const wb_tensor *tensor) {
    return optimizer_part_of(tensor, wb_comm_rank(opt->comm), wb_comm_size(opt->comm));
}

/* ---- moments -------------------------------------------------------------------------------------- */

static wb_status take_moment(optimizer *opt, const wb_tensor *tensor, wb_buffer *moment) {
    const int64_t n = own_part(opt, tensor).n;
    WB_TRY(wb_reserve(&opt->workspace, moment, n, 1, sizeof(float)));
    return opt->device->zero(opt->device, moment->data, (size_t)n * sizeof(float));
}

wb_status optimizer_take_moments(optimizer *opt) {
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_tensor(opt->model, i);
        if (!t.data || opt->held[i]) continue;
        WB_TRY(take_moment(opt, &t, &opt->m[i]));
        WB_TRY(take_moment(opt, &t, &opt->v[i]));
        opt->held[i] = true;
    }
    return WB_OK;
}

static wb_status open_moments(optimizer *opt) {
    const size_t n = (size_t)wb_model_n_tensors(opt->model);
    WB_TRY(WB_OWN(&opt->workspace.host, opt->m, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->v, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->held, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->bounds, (size_t)wb_comm_size(opt->comm) + 1, "optimizer"));
    return optimizer_take_moments(opt);
}

wb_status optimizer_measure(const wb_config *config, int32_t n_ranks, int32_t of_rank, size_t *bytes_out) {
    const wb_model_options model = wb_model_options_default();
    wb_memory memory;
    int32_t n_moe = 0;
    WB_TRY(wb_model_measure(config, &model, n_ranks, of_rank, &memory));
    for (int32_t l = 0; l < config->n_layers; l++) n_moe += wb_config_is_moe(config, l);
    const int64_t E = config->router.n_experts;
    const int64_t n_local = part_begin(E, of_rank + 1, n_ranks) - part_begin(E, of_rank, n_ranks);
    const size_t experts =
        (size_t)(n_moe * n_local) * 3 * (size_t)config->expert_width * (size_t)config->hidden_size;
    size_t weights = 0;
    for (int32_t i = 0; i < memory.n_parts; i++)
        if (strcmp(memory.parts[i].name, "weights") == 0) weights = memory.parts[i].bytes / sizeof(float);
    const size_t replicated = (weights - experts + (size_t)n_ranks - 1) / (size_t)n_ranks;
    *bytes_out = 2 * (experts + replicated) * sizeof(float);
    return WB_OK;
}

wb_status optimizer_open(wb_model *model, wb_train *train, wb_device *device, wb_comm *comm, optimizer *opt) {
    static const wb_op needed[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_sum_squares, WB_OP_adamw};
    WB_TRY(wb_device_require(device, "optimizer", needed, sizeof needed / sizeof needed[0]));
    *opt = (optimizer){
        .model = model, .train = train, .device = device, .comm = comm, .workspace = {.device = device}};
    const wb_status status = open_moments(opt);
    if (status != WB_OK) optimizer_close(opt);
    return status;
}

void optimizer_close(optimizer *opt) {
    wb_workspace_close(&opt->workspace);
    opt->m = opt->v = NULL;
    opt->held = NULL;
}

/* Norm over the whole model: experts summed over ranks in rank order, each where its replica 0 is; replicated
 * tensors counted once. */
static wb_status gradient_norm(optimizer *opt, double *norm_out) {
    double experts = 0, replicated = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_replica(opt->model, i, 0);
        if (!t.data) continue;
        double squares;
        WB_TRY(opt->device->sum_squares(opt->device, t.n, wb_train_grad(opt->train, &t), &squares));
        *(t.expert >= 0 ? &experts : &replicated) += squares;
    }
    WB_TRY(wb_comm_all_reduce_f64(opt->comm, &experts, 1));
    *norm_out = sqrt(experts + replicated);
    return WB_OK;
}

static wb_status update_part(optimizer *opt, const wb_adamw *hyper, int32_t i, const wb_tensor *t) {
    const optimizer_part part = own_part(opt, t);
    return opt->device->adamw(opt->device, part.n, hyper, wb_train_grad(opt->train, t) + part.first,
                              opt->m[i].data, opt->v[i].data, (float *)t->data + part.first);
}

/* Waits for the gathers before number `end`. */
static wb_status finish_gathers(optimizer *opt, uint64_t end) {
    for (; opt->n_done < end; opt->n_done++)
        WB_TRY(
            wb_exchange_wait(wb_model_exchange(opt->model), opt->works[opt->n_done % WB_EXCHANGE_IN_FLIGHT]));
    return WB_OK;
}

/* The parts of a replicated tensor go to all ranks. As many as an exchange has in flight travel while the
 * next ones are updated. */
static wb_status start_gather(optimizer *opt, const wb_tensor *t) {
    const int R = wb_comm_size(opt->comm);
    if (R == 1) return WB_OK;
    if (opt->n_started - opt->n_done == WB_EXCHANGE_IN_FLIGHT) WB_TRY(finish_gathers(opt, opt->n_done + 1));
    for (int r = 0; r < R; r++) opt->bounds[r] = (size_t)optimizer_part_of(t, r, R).first * sizeof(float);
    opt->bounds[R] = (size_t)t->n * sizeof(float);
    uint64_t *work = &opt->works[opt->n_started % WB_EXCHANGE_IN_FLIGHT];
    WB_TRY(wb_exchange_start_all_gather(wb_model_exchange(opt->model), t->data, opt->bounds, work));
    opt->n_started++;
    return WB_OK;
}

/* Of an expert the first replica here is updated and copied to the others: their gradients and moments are
 * the same. */
static wb_status update_tensor(optimizer *opt, const wb_adamw *hyper, int32_t i, const wb_tensor *t) {
    WB_TRY(update_part(opt, hyper, i, t));
    return t->expert >= 0 ? wb_model_fill_replicas(opt->model, i) : start_gather(opt, t);
}

/* Without its moments an expert that came to this rank would be trained on as if it were new. Those of one
 * that went miss this step. */
static wb_status check_moments(optimizer *opt) {
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_tensor(opt->model, i);
        if (!t.data) opt->held[i] = false;
        if (t.data && !opt->held[i])
            return wb_fail(WB_MISMATCH, "optimizer: %s came to rank %d without its moments", t.name,
                           wb_comm_rank(opt->comm));
    }
    return WB_OK;
}

wb_status optimizer_step(optimizer *opt, const options *o, double lr, double *grad_norm_out) {
    double norm;
    WB_TRY(wb_comm_agree(opt->comm, check_moments(opt)));
    WB_TRY(gradient_norm(opt, &norm));
    if (!isfinite(norm))
        return wb_fail(WB_MISMATCH, "update %" PRIu64 ": the gradient's norm is %g", opt->step + 1, norm);
    double clip = o->grad_clip > 0 && norm > o->grad_clip ? o->grad_clip / norm : 1;
    wb_adamw hyper = {.lr = (float)lr,
                      .beta1 = 0.9f,
                      .beta2 = 0.95f,
                      .eps = 1e-8f,
                      .grad_scale = (float)clip,
                      .step = ++opt->step};
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        wb_tensor t = wb_model_tensor(opt->model, i);
        if (!t.data) continue;
        hyper.weight_decay = t.n_dims > 1 ? (float)o->weight_decay : 0;
        WB_TRY(update_tensor(opt, &hyper, i, &t));
    }
    WB_TRY(finish_gathers(opt, opt->n_started));
    *grad_norm_out = norm;
    return WB_OK;
}
