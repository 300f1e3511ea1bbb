/* moe_experts.c - the experts of this rank's slots: each row times its slot's matrices.
 * Refuses: where rows come from. */
#include "layers/moe/moe.h"
#include "model_dispatch.h"

wb_status wb_moe_experts_reserve(wb_moe_experts *experts, int64_t n, bool backward) {
    const int64_t H = experts->model->config.hidden_size, F = experts->model->config.expert_width;
    WB_TRY(wb_reserve(experts->memory, &experts->input, n, H, sizeof(float)));
    WB_TRY(wb_reserve(experts->memory, &experts->gate_up, n, 2 * F, sizeof(float)));
    WB_TRY(wb_reserve(experts->memory, &experts->act, n, F, sizeof(float)));
    return backward ? wb_reserve(experts->memory, &experts->dact, n, F, sizeof(float)) : WB_OK;
}

/* The matrices [out, in] of a storage, a slot each, over the rows of the slots. */
static wb_grouped group(const wb_moe_experts *experts, const wb_layer_plan *plan, int32_t param, int64_t out,
                        int64_t in) {
    const wb_model *model = experts->model;
    const bool alone = wb_comm_size(model->comm) == 1;
    wb_grouped g = {.n_groups = (int32_t)wb_model_local_slots(model),
                    .offsets = alone ? plan->offsets.data : plan->grouped_offsets.data,
                    .max_rows = alone ? plan->T * model->config.router.top_k : plan->n,
                    .w = {wb_param_data(model, param), model->params[param].dtype, out, in}};
    return g;
}

static wb_grouped group_gate_up(const wb_moe_experts *experts, const wb_layer_plan *plan,
                                const wb_moe_weights *w) {
    const wb_config *config = &experts->model->config;
    const bool alone = wb_comm_size(experts->model->comm) == 1;
    wb_grouped g = group(experts, plan, w->gate_up, 2 * config->expert_width, config->hidden_size);
    g.gather = alone ? plan->row_token.data : plan->to_received.data;
    g.gathered = wb_f32_rows(experts->input.data);
    return g;
}

static wb_grouped group_down(const wb_moe_experts *experts, const wb_layer_plan *plan,
                             const wb_moe_weights *w) {
    const wb_config *config = &experts->model->config;
    return group(experts, plan, w->down, config->hidden_size, config->expert_width);
}

wb_status wb_moe_experts_forward(wb_moe_experts *experts, const wb_layer_plan *plan, const wb_moe_weights *w,
                                 const float *x, float *output) {
    wb_device *dev = experts->model->device;
    const wb_grouped gate_up = group_gate_up(experts, plan, w), down = group_down(experts, plan, w);
    const wb_rows act = wb_f32_rows(experts->act.data), none = wb_f32_rows(NULL);
    WB_TRY(dev->grouped_matmul(dev, &gate_up, wb_f32_rows(x), wb_f32_rows(experts->gate_up.data), act));
    return dev->grouped_matmul(dev, &down, act, wb_f32_rows(output), none);
}

wb_status wb_moe_experts_backward(wb_moe_experts *experts, const wb_layer_plan *plan, const wb_moe_weights *w,
                                  const float *x, float *const *grads, float *grad) {
    wb_device *dev = experts->model->device;
    const wb_grouped gate_up = group_gate_up(experts, plan, w), down = group_down(experts, plan, w);
    const wb_rows dgate_up = wb_f32_rows(experts->gate_up.data), none = wb_f32_rows(NULL);
    WB_TRY(dev->grouped_matmul_backward(dev, &down, wb_f32_rows(experts->act.data), wb_f32_rows(grad),
                                        grads[w->down], wb_f32_rows(experts->dact.data), dgate_up));
    return dev->grouped_matmul_backward(dev, &gate_up, wb_f32_rows(x), dgate_up, grads[w->gate_up],
                                        wb_f32_rows(grad), none);
}
