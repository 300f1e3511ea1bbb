/* optimizer.c - AdamW over the tensors of the trained model, whose f32 weights are the master weights. An
 * expert is updated on its home rank, whatever the placement, and its new weights go to all slots of the next
 * one; a replicated tensor is cut into a part for each rank, which alone has the part's moments and updates
 * it, and then the parts go to all. */
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

optimizer_part optimizer_part_of(const wb_config *config, const wb_tensor *tensor, int of_rank, int n_ranks) {
    if (tensor->expert >= 0) {
        const bool home = wb_home_rank(config->router.n_experts, n_ranks, tensor->expert) == of_rank;
        return (optimizer_part){0, home ? tensor->n : 0};
    }
    const int64_t first = part_begin(tensor->n, of_rank, n_ranks);
    return (optimizer_part){first, part_begin(tensor->n, of_rank + 1, n_ranks) - first};
}

static optimizer_part part_of_rank(const optimizer *opt, const wb_tensor *tensor, int of_rank) {
    return optimizer_part_of(wb_model_config(opt->model), tensor, of_rank, wb_comm_size(opt->comm));
}

/* ---- moments -------------------------------------------------------------------------------------- */

static wb_status make_moment(optimizer *opt, int64_t n, wb_buffer *moment) {
    WB_TRY(wb_reserve(&opt->workspace, moment, n, 1, sizeof(float)));
    return opt->device->zero(opt->device, moment->data, (size_t)n * sizeof(float));
}

static wb_status open_moments(optimizer *opt) {
    const size_t n = (size_t)wb_model_n_tensors(opt->model);
    WB_TRY(WB_OWN(&opt->workspace.host, opt->m, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->v, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->squares, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->bounds, (size_t)wb_comm_size(opt->comm) + 1, "optimizer"));
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_tensor(opt->model, i);
        const int64_t part = part_of_rank(opt, &t, wb_comm_rank(opt->comm)).n;
        if (part == 0) continue;
        WB_TRY(make_moment(opt, part, &opt->m[i]));
        WB_TRY(make_moment(opt, part, &opt->v[i]));
    }
    return WB_OK;
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
}

/* ---- a step --------------------------------------------------------------------------------------- */

/* squares[i], the same on all ranks, of the tensors of experts, and the sum of those of the others. */
static wb_status sum_squares(optimizer *opt, double *replicated_out) {
    const int32_t n = wb_model_n_tensors(opt->model);
    *replicated_out = 0;
    for (int32_t i = 0; i < n; i++) {
        const wb_tensor t = wb_model_lead(opt->model, i);
        opt->squares[i] = 0;
        if (!t.data) continue;
        double squares;
        WB_TRY(opt->device->sum_squares(opt->device, t.n, wb_train_grad(opt->train, &t), &squares));
        *(t.expert >= 0 ? &opt->squares[i] : replicated_out) += squares;
    }
    return wb_comm_all_reduce_f64(opt->comm, opt->squares, (size_t)n);
}

/* Norm over the whole model, replicated tensors counted once. The experts of a home rank are added up, then
 * ranks, so that no bit depends on where experts are. */
static wb_status gradient_norm(optimizer *opt, double *norm_out) {
    const int R = wb_comm_size(opt->comm), E = wb_model_config(opt->model)->router.n_experts;
    double experts = 0, replicated;
    WB_TRY(sum_squares(opt, &replicated));
    for (int r = 0; r < R; r++) {
        double of_rank = 0;
        for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
            const int32_t expert = wb_model_tensor(opt->model, i).expert;
            if (expert >= 0 && wb_home_rank(E, R, expert) == r) of_rank += opt->squares[i];
        }
        experts = r == 0 ? of_rank : experts + of_rank;
    }
    *norm_out = sqrt(experts + replicated);
    return WB_OK;
}

/* n elements of tensor i, by its moments from this rank's element `first` on. */
static wb_status update_elements(const optimizer *opt, int32_t i, int64_t first, int64_t n,
                                 const float *gradient, float *weight) {
    wb_adamw hyper = opt->hyper;
    if (wb_model_tensor(opt->model, i).n_dims == 1) hyper.weight_decay = 0;
    return opt->device->adamw(opt->device, n, &hyper, gradient, (float *)opt->m[i].data + first,
                              (float *)opt->v[i].data + first, weight);
}

static wb_status update_expert(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                               float *weight) {
    return update_elements(ctx, i, first, n, gradient, weight);
}

/* Waits for the gathers before number `end`. */
static wb_status finish_gathers(optimizer *opt, uint64_t end) {
    for (; opt->n_done < end; opt->n_done++)
        WB_TRY(
            wb_exchange_wait(wb_model_exchange(opt->model), opt->works[opt->n_done % WB_EXCHANGE_IN_FLIGHT]));
    return WB_OK;
}

/* The parts of a replicated tensor go to all ranks. They travel while the next ones, and experts, are
 * updated; one of an exchange's works in flight stays for those. */
static wb_status start_gather(optimizer *opt, const wb_tensor *t) {
    const int R = wb_comm_size(opt->comm);
    if (R == 1) return WB_OK;
    if (opt->n_started - opt->n_done == WB_EXCHANGE_IN_FLIGHT - 1)
        WB_TRY(finish_gathers(opt, opt->n_done + 1));
    for (int r = 0; r < R; r++) opt->bounds[r] = (size_t)part_of_rank(opt, t, r).first * sizeof(float);
    opt->bounds[R] = (size_t)t->n * sizeof(float);
    uint64_t *work = &opt->works[opt->n_started % WB_EXCHANGE_IN_FLIGHT];
    WB_TRY(wb_exchange_start_all_gather(wb_model_exchange(opt->model), t->data, opt->bounds, work));
    opt->n_started++;
    return WB_OK;
}

static wb_status update_replicated(optimizer *opt) {
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_tensor(opt->model, i);
        if (t.expert >= 0) continue;
        const optimizer_part part = part_of_rank(opt, &t, wb_comm_rank(opt->comm));
        WB_TRY(update_elements(opt, i, 0, part.n, wb_train_grad(opt->train, &t) + part.first,
                               (float *)t.data + part.first));
        WB_TRY(start_gather(opt, &t));
    }
    return WB_OK;
}

wb_status optimizer_step(optimizer *opt, const options *o, double lr, const wb_placement *next,
                         double *grad_norm_out) {
    double norm;
    WB_TRY(gradient_norm(opt, &norm));
    if (!isfinite(norm))
        return wb_fail(WB_MISMATCH, "update %" PRIu64 ": the gradient's norm is %g", opt->step + 1, norm);
    const double clip = o->grad_clip > 0 && norm > o->grad_clip ? o->grad_clip / norm : 1;
    opt->hyper = (wb_adamw){.lr = (float)lr,
                            .beta1 = 0.9f,
                            .beta2 = 0.95f,
                            .eps = 1e-8f,
                            .weight_decay = (float)o->weight_decay,
                            .grad_scale = (float)clip,
                            .step = ++opt->step};
    WB_TRY(update_replicated(opt));
    WB_TRY(wb_train_update_experts(opt->train, next, update_expert, opt));
    WB_TRY(finish_gathers(opt, opt->n_started));
    *grad_norm_out = norm;
    return WB_OK;
}
