/* moe_experts.c - the experts of this rank: one product an expert that has rows, in their order.
 * Refuses: where rows come from. */
#include "layers/moe/moe.h"

wb_status wb_moe_experts_open(wb_model *model, wb_workspace *memory, wb_moe_experts *experts) {
    experts->model = model;
    experts->memory = memory;
    return WB_OWN(&memory->host, experts->list, 2 * (size_t)model->config.router.n_experts, "MoE experts");
}

/* A matrix [out, in] of each expert of this rank, one after the other in the storage `param`. */
typedef struct expert_linear {
    int32_t param;
    int64_t in, out;
} expert_linear;

static wb_weight expert_weight(const wb_model *model, expert_linear linear, int32_t local_index) {
    wb_weight w = wb_model_weight(model, linear.param);
    w.data = (uint8_t *)w.data + (size_t)(local_index * linear.out * linear.in) * wb_dtype_size(w.dtype);
    w.rows = linear.out;
    return w;
}

/* y[n,out] = x[n,in] w^T, each row with its expert's w. */
static wb_status linear_forward(wb_moe_experts *experts, const wb_moe_plan *plan, expert_linear linear,
                                const float *x, float *y) {
    const wb_model *model = experts->model;
    int64_t count = 0;
    for (int32_t i = 0; i < wb_moe_plan_n_local(plan); i++) {
        const int64_t start = plan->local_start[i], n = plan->local_start[i + 1] - start;
        if (n == 0) continue;
        experts->list[count++] =
            wb_matmul_forward(n, wb_f32_rows(x + start * linear.in), expert_weight(model, linear, i),
                              wb_f32_rows(y + start * linear.out));
    }
    return model->device->matmul(model->device, count, experts->list);
}

/* dx[n,in] (=) and dw (+=) from dy[n,out] and x[n,in]; the rows of an expert are summed in their order. */
static wb_status linear_backward(wb_moe_experts *experts, const wb_moe_plan *plan, expert_linear linear,
                                 const float *x, const float *dy, float *dw, float *dx) {
    const wb_model *model = experts->model;
    int64_t count = 0;
    for (int32_t i = 0; i < wb_moe_plan_n_local(plan); i++) {
        const int64_t start = plan->local_start[i], n = plan->local_start[i + 1] - start;
        if (n == 0) continue;
        const wb_rows dy_rows = wb_f32_rows(dy + start * linear.out);
        experts->list[count++] =
            wb_matmul_wgrad(n, linear.in, linear.out, dy_rows, wb_f32_rows(x + start * linear.in),
                            dw + i * linear.out * linear.in);
        experts->list[count++] = wb_matmul_dgrad(n, dy_rows, expert_weight(model, linear, i),
                                                 wb_f32_rows(dx + start * linear.in), false);
    }
    return model->device->matmul(model->device, count, experts->list);
}

wb_status wb_moe_experts_forward(wb_moe_experts *experts, const wb_moe_plan *plan, const wb_moe_weights *w,
                                 const float *input, float *output) {
    wb_device *dev = experts->model->device;
    const int64_t H = experts->model->config.hidden_size, F = experts->model->config.expert_width;
    WB_TRY(wb_reserve(experts->memory, &experts->gate_up, plan->n, 2 * F, sizeof(float)));
    WB_TRY(wb_reserve(experts->memory, &experts->act, plan->n, F, sizeof(float)));
    WB_TRY(
        linear_forward(experts, plan, (expert_linear){w->gate_up, H, 2 * F}, input, experts->gate_up.data));
    WB_TRY(dev->swiglu_forward(dev, plan->n, F, wb_f32_rows(experts->gate_up.data),
                               wb_f32_rows(experts->act.data)));
    return linear_forward(experts, plan, (expert_linear){w->down, F, H}, experts->act.data, output);
}

wb_status wb_moe_experts_backward(wb_moe_experts *experts, const wb_moe_plan *plan, const wb_moe_weights *w,
                                  const float *input, float *const *grads, float *grad) {
    wb_device *dev = experts->model->device;
    const int64_t H = experts->model->config.hidden_size, F = experts->model->config.expert_width;
    float *gate_up = experts->gate_up.data;
    WB_TRY(wb_reserve(experts->memory, &experts->dact, plan->n, F, sizeof(float)));
    WB_TRY(linear_backward(experts, plan, (expert_linear){w->down, F, H}, experts->act.data, grad,
                           grads[w->down], experts->dact.data));
    WB_TRY(dev->swiglu_backward(dev, plan->n, F, wb_f32_rows(gate_up), wb_f32_rows(experts->dact.data),
                                wb_f32_rows(gate_up)));
    return linear_backward(experts, plan, (expert_linear){w->gate_up, H, 2 * F}, input, gate_up,
                           grads[w->gate_up], grad);
}
