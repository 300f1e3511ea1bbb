/* moe_shared.c - the shared experts of a MoE layer: a SwiGLU that every token goes through on its own
 * rank, as it is or through a gate of its own. Refuses: choices, slots, routes, of which they are no part. */
#include "layers/logit_gradient.h"
#include "layers/moe/moe.h"

void wb_moe_shared_declare(wb_registry *registry, int32_t l, wb_moe_shared_weights *w) {
    const wb_model *model = registry->model;
    w->gate = -1;
    if (model->config.shared_width == 0) return;
    wb_swiglu_declare(registry, l, "mlp.shared_experts", model->config.shared_width, &w->mlp);
    if (model->family->shared_gate)
        w->gate =
            wb_registry_matrix(registry, l, "mlp.shared_expert_gate.weight", 1, model->config.hidden_size);
}

void wb_moe_shared_layout(wb_moe_shared *s, const wb_moe_shared *other, wb_model *model,
                          const wb_sizes *sizes, wb_arena *arena) {
    const int64_t T = sizes->tokens, H = model->config.hidden_size, I = model->config.shared_width;
    s->model = model;
    if (I == 0) return;
    wb_swiglu_layout(&s->mlp, other ? &other->mlp : NULL, model, I, sizes, arena);
    if (!model->family->shared_gate) {
        wb_place_scratch(arena, model, &s->output, other ? &other->output : NULL, T, H);
        return;
    }
    wb_place_activations(arena, model, &s->output, T, H);
    wb_place(arena, &s->gate, T, 1, sizeof(float));
    if (!sizes->backward) return;
    if (other) {
        s->dgate = other->dgate;
        s->rounded = other->rounded;
        return;
    }
    wb_place(arena, &s->dgate, T, 1, sizeof(float));
    wb_logit_gradient_place(arena, model, &s->rounded, T, 1);
}

wb_status wb_moe_shared_forward(wb_moe_shared *s, const wb_moe_shared_weights *w, int64_t T, wb_rows x,
                                wb_rows y) {
    const wb_model *model = s->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size;
    const wb_rows output = wb_activations(model, &s->output);
    if (s->mlp.width == 0) return WB_OK;
    WB_TRY(wb_swiglu_forward(&s->mlp, &w->mlp, T, x, output));
    if (w->gate < 0) return dev->add(dev, T * H, output, y);
    const wb_matmul gate =
        wb_matmul_forward(T, x, wb_model_weight(model, w->gate), wb_f32_rows(s->gate.data));
    WB_TRY(dev->matmul(dev, 1, &gate));
    return dev->add_gated_forward(dev, T, H, s->gate.data, output, y);
}

/* Of the gate; output: in, of the forward; out, its gradient. */
static wb_status gate_backward(wb_moe_shared *s, const wb_moe_shared_weights *w, int64_t T, wb_rows x,
                               wb_rows dy, float *const *grads, wb_rows output, wb_rows dx) {
    const wb_model *model = s->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size;
    wb_rows d;
    WB_TRY(dev->add_gated_backward(dev, T, H, s->gate.data, output, dy, output, s->dgate.data));
    WB_TRY(wb_logit_gradient(model, T, s->dgate.data, &s->rounded, &d));
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, 1, d, x, grads[w->gate]),
                              wb_matmul_dgrad(T, d, wb_model_weight(model, w->gate), dx, true)};
    return dev->matmul(dev, 2, list);
}

wb_status wb_moe_shared_backward(wb_moe_shared *s, const wb_moe_shared_weights *w, int64_t T, wb_rows x,
                                 wb_rows dy, float *const *grads, wb_rows dx) {
    wb_rows doutput = dy;
    if (s->mlp.width == 0) return WB_OK;
    if (w->gate >= 0) {
        doutput = wb_activations(s->model, &s->output);
        WB_TRY(gate_backward(s, w, T, x, dy, grads, doutput, dx));
    }
    return wb_swiglu_backward(&s->mlp, &w->mlp, T, x, doutput, grads, true, dx);
}
