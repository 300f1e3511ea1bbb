/* mlp.c - a dense feed-forward part: down(silu(gate x) * up x). */
#include "layers/layer.h"
#include "registry.h"

typedef struct mlp_weights {
    int32_t gate_up, down; /* [2I, H] rows gate before up, [H, I] */
} mlp_weights;

typedef struct mlp {
    wb_model *model;
    wb_buffer gate_up, act; /* [T, 2I], [T, I]; kept by a forward for its backward */
    wb_buffer dact;         /* [T, I] */
} mlp;

static void declare(wb_registry *registry, int32_t l, void *weights) {
    mlp_weights *w = weights;
    const wb_model *model = registry->model;
    const int64_t H = model->config.hidden_size, I = model->config.dense_width;
    w->gate_up = wb_registry_storage(registry, model->dtype, 2 * I, H);
    wb_registry_tensor(registry, l, -1, "mlp.gate_proj.weight", I, H, w->gate_up, 0);
    wb_registry_tensor(registry, l, -1, "mlp.up_proj.weight", I, H, w->gate_up, I * H);
    w->down = wb_registry_matrix(registry, l, "mlp.down_proj.weight", H, I);
}

static void layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    mlp *m = worker;
    const mlp *other = sizes->scratch_of;
    const int64_t T = sizes->tokens, I = model->config.dense_width;
    m->model = model;
    wb_place_activations(arena, model, &m->gate_up, T, 2 * I);
    wb_place_activations(arena, model, &m->act, T, I);
    if (sizes->backward) wb_place_scratch(arena, model, &m->dact, other ? &other->dact : NULL, T, I);
}

static double work(const wb_config *config, const wb_sizes *sizes) {
    return 3 * (double)sizes->tokens * config->hidden_size * (double)config->dense_width;
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    mlp *m = worker;
    const mlp_weights *w = weights;
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T;
    const wb_rows gate_up = wb_activations(model, &m->gate_up), act = wb_activations(model, &m->act);
    (void)state;
    const wb_matmul first = wb_matmul_forward(T, x, wb_model_weight(model, w->gate_up), gate_up);
    WB_TRY(dev->matmul(dev, 1, &first));
    WB_TRY(dev->swiglu_forward(dev, T, model->config.dense_width, gate_up, act));
    const wb_matmul second = wb_matmul_forward(T, act, wb_model_weight(model, w->down), y);
    return dev->matmul(dev, 1, &second);
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx) {
    mlp *m = worker;
    const mlp_weights *w = weights;
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size, I = model->config.dense_width;
    const wb_rows gate_up = wb_activations(model, &m->gate_up), act = wb_activations(model, &m->act),
                  dact = wb_activations(model, &m->dact);
    const wb_matmul down[] = {wb_matmul_wgrad(T, I, H, dy, act, grads[w->down]),
                              wb_matmul_dgrad(T, dy, wb_model_weight(model, w->down), dact, false)};
    WB_TRY(dev->matmul(dev, 2, down));
    const wb_rows dgate_up = gate_up;
    WB_TRY(dev->swiglu_backward(dev, T, I, gate_up, dact, dgate_up));
    const wb_matmul up[] = {wb_matmul_wgrad(T, H, 2 * I, dgate_up, x, grads[w->gate_up]),
                            wb_matmul_dgrad(T, dgate_up, wb_model_weight(model, w->gate_up), dx, false)};
    return dev->matmul(dev, 2, up);
}

const wb_layer_kind wb_layer_mlp = {
    .weights_size = sizeof(mlp_weights),
    .worker_size = sizeof(mlp),
    .declare = declare,
    .layout = layout,
    .work = work,
    .forward = forward,
    .backward = backward,
};
