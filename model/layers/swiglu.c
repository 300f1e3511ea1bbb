/* swiglu.c - see swiglu.h. Refuses: which layers have one, and what is done with its result. */
#include "layers/swiglu.h"

#include <stdio.h>

/* A storage may hold several tensors; each has its name below the prefix. */
static void declare_tensor(wb_registry *registry, int32_t l, const char *prefix, const char *name,
                           int64_t rows, int64_t cols, int32_t param, int64_t offset) {
    char full[WB_TENSOR_NAME_BYTES];
    snprintf(full, sizeof full, "%s.%s", prefix, name);
    wb_registry_tensor(registry, l, -1, full, rows, cols, param, offset);
}

void wb_swiglu_declare(wb_registry *registry, int32_t l, const char *prefix, int64_t width,
                       wb_swiglu_weights *w) {
    const wb_model *model = registry->model;
    const int64_t H = model->config.hidden_size, I = width;
    w->gate_up = wb_registry_storage(registry, model->dtype, 2 * I, H);
    wb_registry_multiplied(registry, w->gate_up);
    declare_tensor(registry, l, prefix, "gate_proj.weight", I, H, w->gate_up, 0);
    declare_tensor(registry, l, prefix, "up_proj.weight", I, H, w->gate_up, I * H);
    w->down = wb_registry_storage(registry, model->dtype, H, I);
    wb_registry_multiplied(registry, w->down);
    declare_tensor(registry, l, prefix, "down_proj.weight", H, I, w->down, 0);
}

void wb_swiglu_layout(wb_swiglu *s, const wb_swiglu *other, wb_model *model, int64_t width,
                      const wb_sizes *sizes, wb_arena *arena) {
    const int64_t T = sizes->tokens, I = width;
    s->model = model;
    s->width = width;
    wb_place_activations(arena, model, &s->gate_up, T, 2 * I);
    wb_place_activations(arena, model, &s->act, T, I);
    if (sizes->backward) wb_place_scratch(arena, model, &s->dact, other ? &other->dact : NULL, T, I);
}

double wb_swiglu_work(const wb_config *config, int64_t width, int64_t tokens) {
    return 3 * (double)tokens * config->hidden_size * (double)width;
}

/* What a clamped one is over: all rows. */
static wb_grouped all_rows(int64_t T) {
    return (wb_grouped){.n_groups = 1, .max_rows = T};
}

static wb_status activate(const wb_swiglu *s, int64_t T, wb_rows gate_up, wb_rows act) {
    wb_device *dev = s->model->device;
    const wb_clamped_swiglu clamp = wb_swiglu_clamp(s->model);
    const wb_grouped rows = all_rows(T);
    if (clamp.limit == 0) return dev->swiglu_forward(dev, T, s->width, gate_up, act);
    return dev->grouped_swiglu_forward(dev, &rows, s->width, &clamp, gate_up, act);
}

/* In place on gate_up. */
static wb_status activate_backward(const wb_swiglu *s, int64_t T, wb_rows gate_up, wb_rows dact) {
    wb_device *dev = s->model->device;
    const wb_clamped_swiglu clamp = wb_swiglu_clamp(s->model);
    const wb_grouped rows = all_rows(T);
    if (clamp.limit == 0) return dev->swiglu_backward(dev, T, s->width, gate_up, dact, gate_up);
    return dev->grouped_swiglu_backward(dev, &rows, s->width, &clamp, gate_up, dact, gate_up);
}

wb_status wb_swiglu_forward(wb_swiglu *s, const wb_swiglu_weights *w, int64_t T, wb_rows x, wb_rows y) {
    const wb_model *model = s->model;
    wb_device *dev = model->device;
    const wb_rows gate_up = wb_activations(model, &s->gate_up), act = wb_activations(model, &s->act);
    const wb_matmul first = wb_matmul_forward(T, x, wb_model_weight(model, w->gate_up), gate_up);
    WB_TRY(dev->matmul(dev, 1, &first));
    WB_TRY(activate(s, T, gate_up, act));
    const wb_matmul second = wb_matmul_forward(T, act, wb_model_weight(model, w->down), y);
    return dev->matmul(dev, 1, &second);
}

wb_status wb_swiglu_backward(wb_swiglu *s, const wb_swiglu_weights *w, int64_t T, wb_rows x, wb_rows dy,
                             float *const *grads, bool accumulate, wb_rows dx) {
    const wb_model *model = s->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size, I = s->width;
    const wb_rows gate_up = wb_activations(model, &s->gate_up), act = wb_activations(model, &s->act),
                  dact = wb_activations(model, &s->dact);
    const wb_matmul down[] = {wb_matmul_wgrad(T, I, H, dy, act, grads[w->down]),
                              wb_matmul_dgrad(T, dy, wb_model_weight(model, w->down), dact, false)};
    WB_TRY(dev->matmul(dev, 2, down));
    const wb_rows dgate_up = gate_up;
    WB_TRY(activate_backward(s, T, gate_up, dact));
    const wb_matmul up[] = {wb_matmul_wgrad(T, H, 2 * I, dgate_up, x, grads[w->gate_up]),
                            wb_matmul_dgrad(T, dgate_up, wb_model_weight(model, w->gate_up), dx, accumulate)};
    return dev->matmul(dev, 2, up);
}
