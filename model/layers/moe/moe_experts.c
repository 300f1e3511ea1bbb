/* moe_experts.c - the experts of this rank's slots: each row times its slot's matrices.
 * Refuses: where rows come from. */
#include "layers/moe/moe.h"

void wb_moe_experts_layout(wb_moe_experts *experts, const wb_moe_experts *other, wb_model *model,
                           const wb_sizes *sizes, wb_arena *arena) {
    const int64_t n = sizes->expert_rows, H = model->config.hidden_size, F = model->config.expert_width;
    experts->model = model;
    wb_place_activations(arena, model, &experts->input, n, H);
    wb_place_activations(arena, model, &experts->gate_up, n, 2 * F);
    wb_place_activations(arena, model, &experts->act, n, F);
    if (sizes->backward) wb_place_scratch(arena, model, &experts->dact, other ? &other->dact : NULL, n, F);
}

/* The matrices [out, in] of a storage, a slot each, over the rows of the slots. */
static wb_grouped group(const wb_moe_experts *experts, const wb_moe_rows *plan, int32_t param, int64_t out) {
    const wb_model *model = experts->model;
    const bool alone = !wb_moe_rows_travel(model);
    wb_grouped g = {.n_groups = (int32_t)wb_model_local_slots(model),
                    .offsets = alone ? plan->offsets.data : plan->grouped_offsets.data,
                    .max_rows = alone ? plan->T * model->config.router.top_k : plan->n,
                    .w = wb_model_weight(model, param)};
    g.w.rows = out;
    return g;
}

/* With one rank the op gathers the rows from the tokens' x, which is there in the backward too, and where
 * rows go by mailboxes from the mailbox, which no backward reads. What the exchange received is not there:
 * the gradients arrive in its place. So `input` has those rows in order. */
static wb_grouped group_gate_up(const wb_moe_experts *experts, const wb_moe_rows *plan,
                                const wb_moe_weights *w) {
    wb_grouped g = group(experts, plan, w->gate_up, 2 * experts->model->config.expert_width);
    if (!plan->gather) return g;
    g.gather = plan->gather;
    g.gathered = wb_activations(experts->model, &experts->input);
    return g;
}

static wb_rows gate_up_input(const wb_moe_experts *experts, const wb_moe_rows *plan, wb_rows x) {
    return plan->gather ? x : wb_activations(experts->model, &experts->input);
}

static wb_grouped group_down(const wb_moe_experts *experts, const wb_moe_rows *plan,
                             const wb_moe_weights *w) {
    return group(experts, plan, w->down, experts->model->config.hidden_size);
}

/* ---- between the products of clamped experts --------------------------------------------------- */

/* y (+=) the bias of each row's expert; param -1: there is none. */
static wb_status add_biases(const wb_model *model, const wb_grouped *g, int32_t param, wb_rows y) {
    wb_device *dev = model->device;
    return param < 0 ? WB_OK : dev->grouped_bias_forward(dev, g, g->w.rows, wb_model_vector(model, param), y);
}

static wb_status clamped_forward(wb_moe_experts *experts, const wb_grouped *gate_up, const wb_grouped *down,
                                 const wb_moe_weights *w, wb_rows from, wb_rows output) {
    const wb_model *model = experts->model;
    wb_device *dev = model->device;
    const wb_clamped_swiglu clamp = wb_swiglu_clamp(model);
    const wb_rows y = wb_activations(model, &experts->gate_up), act = wb_activations(model, &experts->act),
                  none = {0};
    WB_TRY(dev->grouped_matmul(dev, gate_up, from, y, none));
    WB_TRY(add_biases(model, gate_up, w->gate_up_bias, y));
    WB_TRY(dev->grouped_swiglu_forward(dev, gate_up, model->config.expert_width, &clamp, y, act));
    WB_TRY(dev->grouped_matmul(dev, down, act, output, none));
    return add_biases(model, down, w->down_bias, output);
}

/* dgate_up, in the place of gate_up, from dact. */
static wb_status clamped_backward(wb_moe_experts *experts, const wb_grouped *gate_up, const wb_moe_weights *w,
                                  float *const *grads) {
    const wb_model *model = experts->model;
    wb_device *dev = model->device;
    const wb_clamped_swiglu clamp = wb_swiglu_clamp(model);
    const wb_rows dgate_up = wb_activations(model, &experts->gate_up),
                  dact = wb_activations(model, &experts->dact);
    WB_TRY(dev->grouped_swiglu_backward(dev, gate_up, model->config.expert_width, &clamp, dgate_up, dact,
                                        dgate_up));
    if (w->gate_up_bias < 0) return WB_OK;
    return dev->grouped_bias_backward(dev, gate_up, gate_up->w.rows, dgate_up, grads[w->gate_up_bias]);
}

/* ---- all experts ------------------------------------------------------------------------------- */

static bool is_clamped(const wb_moe_experts *experts) {
    return experts->model->config.swiglu_limit > 0;
}

wb_status wb_moe_experts_forward(wb_moe_experts *experts, const wb_moe_rows *plan, const wb_moe_weights *w,
                                 bool leaves_nothing, wb_rows x, wb_rows output) {
    const wb_model *model = experts->model;
    wb_device *dev = model->device;
    const wb_grouped down = group_down(experts, plan, w);
    wb_grouped gate_up = group_gate_up(experts, plan, w);
    const wb_rows from = gate_up_input(experts, plan, x), act = wb_activations(model, &experts->act),
                  none = {0};
    gate_up.y_is_scratch = leaves_nothing && !is_clamped(experts);
    if (!plan->gather)
        WB_TRY(dev->gather_rows(dev, plan->n, model->config.hidden_size, plan->to_received.data, x, from));
    if (is_clamped(experts)) return clamped_forward(experts, &gate_up, &down, w, from, output);
    WB_TRY(dev->grouped_matmul(dev, &gate_up, from, wb_activations(model, &experts->gate_up), act));
    return dev->grouped_matmul(dev, &down, act, output, none);
}

wb_status wb_moe_experts_backward(wb_moe_experts *experts, const wb_moe_rows *plan, const wb_moe_weights *w,
                                  bool starts_grads, wb_rows x, float *const *grads, wb_rows grad) {
    const wb_model *model = experts->model;
    wb_device *dev = model->device;
    wb_grouped gate_up = group_gate_up(experts, plan, w), down = group_down(experts, plan, w);
    gate_up.overwrites = down.overwrites = starts_grads;
    const wb_rows dgate_up = wb_activations(model, &experts->gate_up), none = {0};
    const bool clamped = is_clamped(experts);
    if (w->down_bias >= 0)
        WB_TRY(dev->grouped_bias_backward(dev, &down, down.w.rows, grad, grads[w->down_bias]));
    WB_TRY(dev->grouped_matmul_backward(dev, &down, wb_activations(model, &experts->act), grad,
                                        grads[w->down], wb_activations(model, &experts->dact),
                                        clamped ? none : dgate_up));
    if (clamped) WB_TRY(clamped_backward(experts, &gate_up, w, grads));
    return dev->grouped_matmul_backward(dev, &gate_up, gate_up_input(experts, plan, x), dgate_up,
                                        grads[w->gate_up], grad, none);
}
