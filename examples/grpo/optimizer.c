/* optimizer.c - AdamW over the tensors of the trained model. Weights of f32 are their own masters; those of
 * bf16 are rounded from masters that lie with the moments. An expert is updated on its home rank, whatever
 * the placement, and its new weights go to all slots of the next one; a replicated tensor is cut into a part
 * for each rank, which alone has the part's moments and master and updates it, and then the parts go to all.
 * Refuses: learning rates. */
#include "grpo.h"
#include "wb_exchange.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- who updates what ----------------------------------------------------------------------------- */

/* Where the part of rank r, 0..n_ranks, of n elements begins; no product overflows. */
static int64_t part_begin(int64_t n, int r, int n_ranks) {
    return n / n_ranks * r + n % n_ranks * r / n_ranks;
}

optimizer_part optimizer_part_of(const wb_config *config, const wb_tensor *tensor, int of_rank, int n_ranks) {
    if (tensor->expert >= 0) {
        const bool home = wb_home_rank(wb_config_weighted(config), n_ranks, tensor->expert) == of_rank;
        return (optimizer_part){0, home ? tensor->n : 0};
    }
    const int64_t first = part_begin(tensor->n, of_rank, n_ranks);
    return (optimizer_part){first, part_begin(tensor->n, of_rank + 1, n_ranks) - first};
}

static optimizer_part part_of_rank(const optimizer *opt, const wb_tensor *tensor, int of_rank) {
    return optimizer_part_of(wb_model_config(opt->model), tensor, of_rank, wb_comm_size(opt->comm));
}

/* ---- what is kept of a tensor ----------------------------------------------------------------------- */

static wb_status make_moment(optimizer *opt, int64_t n, wb_buffer *moment) {
    WB_TRY(wb_reserve(&opt->workspace, moment, n, 1, sizeof(float)));
    return opt->device->zero(opt->device, moment->data, (size_t)n * sizeof(float));
}

static wb_status open_tensor(optimizer *opt, int32_t i) {
    const wb_tensor t = wb_model_tensor(opt->model, i);
    const int64_t part = part_of_rank(opt, &t, wb_comm_rank(opt->comm)).n;
    if (part == 0) return WB_OK;
    WB_TRY(make_moment(opt, part, &opt->m[i]));
    WB_TRY(make_moment(opt, part, &opt->v[i]));
    return t.dtype == WB_F32 ? WB_OK : wb_reserve(&opt->workspace, &opt->master[i], part, 1, sizeof(float));
}

static wb_status open_state(optimizer *opt) {
    const size_t n = (size_t)wb_model_n_tensors(opt->model);
    WB_TRY(WB_OWN(&opt->workspace.host, opt->m, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->v, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->master, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->squares, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->sums, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->gradients, n, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->bounds, (size_t)wb_comm_size(opt->comm) + 1, "optimizer"));
    WB_TRY(WB_OWN(&opt->workspace.host, opt->device_squares, 1, "optimizer"));
    WB_TRY(wb_reserve(&opt->workspace, opt->device_squares, (int64_t)n, 1, sizeof(double)));
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) WB_TRY(open_tensor(opt, i));
    return WB_OK;
}

/* Bytes of a model's weights on rank `of_rank`, under the default placement, and its tensors. */
static wb_status weight_bytes(const wb_config *config, wb_dtype dtype, int32_t n_ranks, int32_t of_rank,
                              size_t *bytes_out, size_t *n_tensors_out) {
    wb_model_options model = wb_model_options_default();
    wb_memory memory;
    model.dtype = dtype;
    WB_TRY(wb_model_measure(config, &model, n_ranks, of_rank, &memory));
    *n_tensors_out = (size_t)memory.n_tensors;
    *bytes_out = 0;
    for (int32_t i = 0; i < memory.n_parts; i++)
        if (strcmp(memory.parts[i].name, "weights") == 0) *bytes_out = memory.parts[i].bytes;
    return WB_OK;
}

/* Of n elements on a rank, `experts` of them at home and the others replicated. */
static size_t kept_elements(size_t n, size_t experts, int32_t n_ranks) {
    return experts + (n - experts + (size_t)n_ranks - 1) / (size_t)n_ranks;
}

/* An element of a matrix takes two bytes less in a model of bf16, which is how many matrices have. */
wb_status optimizer_measure(const wb_config *config, wb_dtype dtype, int32_t n_ranks, int32_t of_rank,
                            size_t *moments_out, size_t *masters_out) {
    int32_t n_moe = 0;
    size_t all, rounded, n_tensors;
    WB_TRY(weight_bytes(config, WB_F32, n_ranks, of_rank, &all, &n_tensors));
    WB_TRY(weight_bytes(config, dtype, n_ranks, of_rank, &rounded, &n_tensors));
    for (int32_t l = 0; l < config->n_layers; l++) n_moe += wb_config_is_moe(config, l);
    const int64_t E = wb_config_weighted(config);
    const int64_t n_local = part_begin(E, of_rank + 1, n_ranks) - part_begin(E, of_rank, n_ranks);
    const size_t F = (size_t)config->expert_width, H = (size_t)config->hidden_size;
    const size_t biases = config->family == WB_FAMILY_GPT_OSS ? 2 * F + H : 0;
    const size_t experts = (size_t)(n_moe * n_local) * (3 * F * H + biases);
    const size_t matrices = (all - rounded) / sizeof(uint16_t);
    *moments_out =
        2 * kept_elements(all / sizeof(float), experts, n_ranks) * sizeof(float) + n_tensors * sizeof(double);
    *masters_out = matrices == 0 ? 0 : kept_elements(matrices, experts, n_ranks) * sizeof(float);
    return WB_OK;
}

wb_status optimizer_open(wb_model *model, wb_train *train, wb_device *device, wb_comm *comm, optimizer *opt) {
    static const wb_op needed[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_sum_squares, WB_OP_adamw, WB_OP_cast};
    WB_TRY(wb_device_require(device, "optimizer", needed, sizeof needed / sizeof needed[0]));
    *opt = (optimizer){
        .model = model, .train = train, .device = device, .comm = comm, .workspace = {.device = device}};
    const wb_status status = open_state(opt);
    if (status != WB_OK) optimizer_close(opt);
    return status;
}

void optimizer_close(optimizer *opt) {
    wb_workspace_close(&opt->workspace);
    opt->m = opt->v = opt->master = NULL;
}

/* ---- masters -------------------------------------------------------------------------------------- */

/* The master of n elements of tensor i, from this rank's element `first` on; NULL data: the weight itself is
 * it. */
static wb_rows master_of(const optimizer *opt, int32_t i, int64_t first) {
    float *const master = opt->master[i].data;
    return wb_f32_rows(master ? master + first : NULL);
}

static wb_status take_elements(const optimizer *opt, int32_t i, int64_t first, int64_t n, wb_rows weight) {
    const wb_rows master = master_of(opt, i, first);
    return master.data ? opt->device->cast(opt->device, n, weight, master) : WB_OK;
}

static wb_status take_expert(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                             wb_rows weight) {
    (void)gradient;
    return take_elements(ctx, i, first, n, weight);
}

static wb_status take_replicated(optimizer *opt) {
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_tensor(opt->model, i);
        if (t.expert >= 0) continue;
        const optimizer_part part = part_of_rank(opt, &t, wb_comm_rank(opt->comm));
        WB_TRY(take_elements(opt, i, 0, part.n, wb_rows_from((wb_rows){t.data, t.dtype}, part.first)));
    }
    return WB_OK;
}

/* The same on every rank. */
static bool has_masters(const wb_model *model) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++)
        if (wb_model_tensor(model, i).dtype != WB_F32) return true;
    return false;
}

wb_status optimizer_take_masters(optimizer *opt) {
    if (!has_masters(opt->model)) return WB_OK;
    WB_TRY(wb_comm_agree(opt->comm, take_replicated(opt)));
    return wb_train_update_experts(opt->train, NULL, take_expert, opt);
}

/* ---- a step --------------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b) {
    const uintptr_t x = (uintptr_t)((const tensor_gradient *)a)->data;
    const uintptr_t y = (uintptr_t)((const tensor_gradient *)b)->data;
    return (x > y) - (x < y);
}

/* Those of the leads that are here, by their places in memory; how many. */
static int32_t list_gradients(optimizer *opt) {
    int32_t count = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_lead(opt->model, i);
        if (t.data) opt->gradients[count++] = (tensor_gradient){wb_train_grad(opt->train, &t), t.n, i};
    }
    qsort(opt->gradients, (size_t)count, sizeof *opt->gradients, by_place);
    return count;
}

/* Gradients of one size that lie side by side, as those of a storage of experts, from the first one of list
 * [count] on. */
static int32_t count_alike(const tensor_gradient *list, int32_t count) {
    int32_t n = 1;
    while (n < count && list[n].n == list->n && list[n].data == list[n - 1].data + list->n) n++;
    return n;
}

/* squares[i] of this rank's leads, others 0, in one read, whatever the number of tensors. */
static wb_status read_squares(optimizer *opt) {
    wb_device *dev = opt->device;
    double *const sums = opt->device_squares->data;
    const int32_t count = list_gradients(opt);
    for (int32_t first = 0; first < count;) {
        const tensor_gradient *g = opt->gradients + first;
        const int32_t n = count_alike(g, count - first);
        WB_TRY(dev->sum_squares(dev, n, g->n, wb_f32_rows(g->data), sums + first));
        first += n;
    }
    WB_TRY(dev->to_host(dev, opt->sums, sums, (size_t)count * sizeof *sums));
    memset(opt->squares, 0, (size_t)wb_model_n_tensors(opt->model) * sizeof *opt->squares);
    for (int32_t k = 0; k < count; k++) opt->squares[opt->gradients[k].tensor] = opt->sums[k];
    return WB_OK;
}

/* squares[i], the same on all ranks, of the tensors of experts, and the sum of those of the others. */
static wb_status sum_squares(optimizer *opt, double *replicated_out) {
    const int32_t n = wb_model_n_tensors(opt->model);
    WB_TRY(read_squares(opt));
    *replicated_out = 0;
    for (int32_t i = 0; i < n; i++) {
        if (wb_model_tensor(opt->model, i).expert >= 0) continue;
        *replicated_out += opt->squares[i];
        opt->squares[i] = 0;
    }
    return wb_comm_all_reduce_f64(opt->comm, opt->squares, (size_t)n);
}

/* Norm over the whole model, replicated tensors counted once. The experts of a home rank are added up, then
 * ranks, so that no bit depends on where experts are. */
static wb_status gradient_norm(optimizer *opt, double *norm_out) {
    const int R = wb_comm_size(opt->comm), E = wb_config_weighted(wb_model_config(opt->model));
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

/* n elements of tensor i, by its moments and its master from this rank's element `first` on. */
static wb_status update_elements(const optimizer *opt, int32_t i, int64_t first, int64_t n,
                                 const float *gradient, wb_rows weight) {
    wb_adamw hyper = opt->hyper;
    const wb_rows master = master_of(opt, i, first);
    if (wb_model_tensor(opt->model, i).n_dims == 1) hyper.weight_decay = 0;
    return opt->device->adamw(opt->device, n, &hyper, gradient, (float *)opt->m[i].data + first,
                              (float *)opt->v[i].data + first, master.data ? master.data : weight.data,
                              master.data ? weight.data : NULL);
}

static wb_status update_expert(void *ctx, int32_t i, int64_t first, int64_t n, const float *gradient,
                               wb_rows weight) {
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
    const size_t size = wb_dtype_size(t->dtype);
    for (int r = 0; r < R; r++) opt->bounds[r] = (size_t)part_of_rank(opt, t, r).first * size;
    opt->bounds[R] = (size_t)t->n * size;
    uint64_t *work = &opt->works[opt->n_started % WB_EXCHANGE_IN_FLIGHT];
    WB_TRY(wb_exchange_start_all_gather(wb_model_exchange(opt->model), t->data, opt->bounds, work));
    opt->n_started++;
    return WB_OK;
}

static wb_status update_replicated(optimizer *opt) {
    for (int32_t i = 0; i < wb_model_n_tensors(opt->model); i++) {
        const wb_tensor t = wb_model_tensor(opt->model, i);
        if (t.expert >= 0 || t.no_gradient) continue;
        const optimizer_part part = part_of_rank(opt, &t, wb_comm_rank(opt->comm));
        WB_TRY(update_elements(opt, i, 0, part.n, wb_train_grad(opt->train, &t) + part.first,
                               wb_rows_from((wb_rows){t.data, t.dtype}, part.first)));
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
