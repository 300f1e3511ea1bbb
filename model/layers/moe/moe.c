/* moe.c - the MoE feed-forward part: its tensors, and its steps in order, forward and backward.
 * Refuses: what the steps do (moe.h). */
#include "layers/moe/moe.h"
#include "registry.h"

typedef struct moe {
    wb_model *model;
    wb_workspace *memory; /* borrowed */
    wb_moe_choice choice;
    wb_moe_plan plan;
    wb_moe_exchange exchange;
    wb_moe_experts experts;

    /* Kept by a forward for its backward. */
    wb_buffer sent;  /* [T * K, H] input of each row */
    wb_buffer rows;  /* [T * K, H] its expert's output */
    wb_buffer input; /* [n, H]; R > 1 (one rank works on `sent` itself) */

    wb_buffer output; /* [n, H] */

    wb_buffer wide_in, wide_out; /* f32 [T, H]: rows of bf16 activations, widened and not yet rounded */
} moe;

static void declare(wb_registry *registry, int32_t l, void *weights) {
    const wb_model *m = registry->model;
    const int64_t H = m->config.hidden_size, F = m->config.expert_width, local = m->n_local_experts;
    wb_moe_weights *w = weights;
    w->moe_index = registry->n_moe++;
    w->router = wb_registry_matrix(registry, l, "mlp.gate.weight", m->config.router.n_experts, H);
    w->gate_up = wb_registry_storage(registry, m->dtype, local * 2 * F, H, true);
    w->down = wb_registry_storage(registry, m->dtype, local * H, F, true);
    for (int32_t e = 0; e < m->config.router.n_experts; e++) {
        const int64_t local_index = m->expert_rank[e] == wb_comm_rank(m->comm) ? m->local_index[e] : 0;
        wb_registry_tensor(registry, l, e, "gate_proj.weight", F, H, w->gate_up, local_index * 2 * F * H);
        wb_registry_tensor(registry, l, e, "up_proj.weight", F, H, w->gate_up,
                           local_index * 2 * F * H + F * H);
        wb_registry_tensor(registry, l, e, "down_proj.weight", H, F, w->down, local_index * H * F);
    }
}

static wb_status open(wb_model *model, wb_workspace *memory, void *worker) {
    moe *m = worker;
    m->model = m->choice.model = model;
    m->memory = m->choice.memory = memory;
    WB_TRY(wb_moe_plan_open(model, memory, &m->plan));
    WB_TRY(wb_moe_exchange_open(model, memory, &m->exchange));
    return wb_moe_experts_open(model, memory, &m->experts);
}

static bool has_peers(const moe *m) {
    return wb_comm_size(m->model->comm) > 1;
}

static wb_status reserve(void *worker, const void *weights, int64_t T, bool backward) {
    moe *m = worker;
    const wb_config *config = &m->model->config;
    const int64_t n_pairs = T * config->router.top_k, H = config->hidden_size;
    (void)weights;
    WB_TRY(wb_moe_choice_reserve(&m->choice, T, backward));
    WB_TRY(wb_moe_plan_reserve(&m->plan, T));
    WB_TRY(wb_reserve(m->memory, &m->sent, n_pairs, H, sizeof(float)));
    if (m->model->activations != WB_F32) {
        WB_TRY(wb_reserve(m->memory, &m->wide_in, T, H, sizeof(float)));
        WB_TRY(wb_reserve(m->memory, &m->wide_out, T, H, sizeof(float)));
    }
    return wb_reserve(m->memory, &m->rows, n_pairs, H, sizeof(float));
}

/* The part computes in f32: *wide_out are `rows`, or a copy of them in `copy`. */
static wb_status widen(const moe *m, int64_t T, wb_rows rows, const wb_buffer *copy, const float **wide_out) {
    wb_device *dev = m->model->device;
    *wide_out = rows.dtype == WB_F32 ? rows.data : copy->data;
    if (rows.dtype == WB_F32) return WB_OK;
    return dev->cast(dev, T * m->model->config.hidden_size, rows, wb_f32_rows(copy->data));
}

/* Where to compute what `rows` are to be, and their rounding from there. */
static float *wide_rows(const moe *m, wb_rows rows) {
    return rows.dtype == WB_F32 ? rows.data : m->wide_out.data;
}

static wb_status round_rows(const moe *m, int64_t T, wb_rows rows) {
    wb_device *dev = m->model->device;
    if (rows.dtype == WB_F32) return WB_OK;
    return dev->cast(dev, T * m->model->config.hidden_size, wb_f32_rows(m->wide_out.data), rows);
}

/* For the rows that come from all ranks. */
static wb_status reserve_received(moe *m) {
    const int64_t H = m->model->config.hidden_size;
    if (!has_peers(m)) return WB_OK;
    WB_TRY(wb_reserve(m->memory, &m->input, m->plan.n, H, sizeof(float)));
    return wb_reserve(m->memory, &m->output, m->plan.n, H, sizeof(float));
}

/* rows (=) the outputs of the experts for `sent`. */
static wb_status run_experts(moe *m, const wb_moe_weights *w) {
    if (!has_peers(m)) return wb_moe_experts_forward(&m->experts, &m->plan, w, m->sent.data, m->rows.data);
    WB_TRY(wb_moe_send_to_experts(&m->exchange, &m->plan, m->sent.data, m->input.data));
    WB_TRY(wb_moe_experts_forward(&m->experts, &m->plan, w, m->input.data, m->output.data));
    return wb_moe_return_to_tokens(&m->exchange, &m->plan, m->output.data, m->rows.data);
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x_rows, wb_rows y) {
    moe *m = worker;
    const wb_moe_weights *w = weights;
    wb_device *dev = m->model->device;
    const int32_t K = m->model->config.router.top_k;
    const int64_t T = pass->T, H = m->model->config.hidden_size;
    const float *x;
    (void)state;
    WB_TRY(widen(m, T, x_rows, &m->wide_in, &x));
    WB_TRY(wb_moe_choose(&m->choice, w, pass, x));
    WB_TRY(
        wb_moe_plan_make(&m->plan, &m->exchange, T, wb_moe_ids(m->model, pass->routing->ids, w->moe_index)));
    if (pass->used && !pass->recompute)
        WB_TRY(wb_moe_plan_used(&m->plan, T, wb_moe_ids(m->model, pass->used, w->moe_index)));
    WB_TRY(reserve_received(m));
    WB_TRY(
        dev->gather_rows(dev, T * K, H, m->plan.row_token.data, wb_f32_rows(x), wb_f32_rows(m->sent.data)));
    WB_TRY(run_experts(m, w));
    WB_TRY(dev->moe_combine(dev, T, K, H, m->rows.data, m->plan.choice_row.data, m->choice.weights.data,
                            false, wide_rows(m, y)));
    return round_rows(m, T, y);
}

/* Gradients of the experts' inputs from those of their outputs, which come in `sent` or, with one rank, in
 * `output`; *drows_out: where they lie, row by row. */
static wb_status run_experts_backward(moe *m, const wb_moe_weights *w, float *const *grads,
                                      const float **drows_out) {
    float *output = m->output.data;
    if (!has_peers(m)) {
        *drows_out = output;
        return wb_moe_experts_backward(&m->experts, &m->plan, w, m->sent.data, grads, output);
    }
    *drows_out = m->rows.data;
    WB_TRY(wb_moe_send_to_experts(&m->exchange, &m->plan, m->sent.data, output));
    WB_TRY(wb_moe_experts_backward(&m->experts, &m->plan, w, m->input.data, grads, output));
    return wb_moe_return_to_tokens(&m->exchange, &m->plan, output, m->rows.data);
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x_rows,
                          wb_rows dy_rows, float *const *grads, wb_rows dx_rows) {
    moe *m = worker;
    const wb_moe_weights *w = weights;
    wb_device *dev = m->model->device;
    const int32_t K = m->model->config.router.top_k;
    const int64_t T = pass->T, H = m->model->config.hidden_size;
    WB_TRY(wb_reserve(m->memory, &m->output, m->plan.n, H, sizeof(float)));

    /* With several ranks the experts hold `input`, so that `sent` is free once its content has gone, and so
     * are `rows` after the combine's backward. */
    float *const doutputs = has_peers(m) ? m->sent.data : m->output.data;
    const float *drows, *x, *dy;
    float *dx = wide_rows(m, dx_rows);
    /* dy takes the place of x until dx is there, and x that of dy after it. */
    WB_TRY(widen(m, T, dy_rows, &m->wide_in, &dy));
    WB_TRY(dev->moe_combine_backward(dev, T, K, H, m->rows.data, m->plan.choice_row.data,
                                     m->choice.weights.data, dy, doutputs, m->choice.dweights.data));
    WB_TRY(run_experts_backward(m, w, grads, &drows));
    WB_TRY(dev->moe_combine(dev, T, K, H, drows, m->plan.choice_row.data, NULL, false, dx));
    WB_TRY(widen(m, T, x_rows, &m->wide_in, &x));
    WB_TRY(wb_moe_choose_backward(&m->choice, w, pass, x, grads, dx));
    return round_rows(m, T, dx_rows);
}

const wb_layer_kind wb_layer_moe = {
    .weights_size = sizeof(wb_moe_weights),
    .worker_size = sizeof(moe),
    .declare = declare,
    .open = open,
    .reserve = reserve,
    .forward = forward,
    .backward = backward,
};
