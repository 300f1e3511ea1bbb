/* mlp.c - a dense feed-forward part: down(silu(gate x) * up x). */
#include "layers/layer.h"
#include "registry.h"

typedef struct mlp_weights {
    int32_t gate_up, down; /* [2I, H] rows gate before up, [H, I] */
} mlp_weights;

typedef struct mlp {
    wb_model *model;
    wb_workspace *memory;   /* borrowed */
    wb_buffer gate_up, act; /* [T, 2I], [T, I]; kept by a forward for its backward */
    wb_buffer dact;         /* [T, I] */
} mlp;

static void declare(wb_registry *registry, int32_t l, void *weights) {
    mlp_weights *w = weights;
    const wb_model *model = registry->model;
    const int64_t H = model->config.hidden_size, I = model->config.dense_width;
    w->gate_up = wb_registry_storage(registry, model->dtype, 2 * I * H);
    wb_registry_tensor(registry, l, -1, "mlp.gate_proj.weight", I, H, w->gate_up, 0);
    wb_registry_tensor(registry, l, -1, "mlp.up_proj.weight", I, H, w->gate_up, I * H);
    w->down = wb_registry_matrix(registry, l, "mlp.down_proj.weight", H, I);
}

static wb_status open(wb_model *model, wb_workspace *memory, void *worker) {
    mlp *m = worker;
    m->model = model;
    m->memory = memory;
    return WB_OK;
}

static wb_status reserve(void *worker, const void *weights, int64_t T, bool backward) {
    mlp *m = worker;
    const int64_t I = m->model->config.dense_width;
    (void)weights;
    WB_TRY(wb_reserve(m->memory, &m->gate_up, T, 2 * I, sizeof(float)));
    WB_TRY(wb_reserve(m->memory, &m->act, T, I, sizeof(float)));
    return backward ? wb_reserve(m->memory, &m->dact, T, I, sizeof(float)) : WB_OK;
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         const float *x, float *y) {
    mlp *m = worker;
    const mlp_weights *w = weights;
    wb_device *dev = m->model->device;
    const int64_t T = pass->T, H = m->model->config.hidden_size, I = m->model->config.dense_width;
    (void)state;
    const wb_matmul gate_up = wb_param_forward(m->model, w->gate_up, T, H, 2 * I, x, m->gate_up.data);
    WB_TRY(dev->matmul(dev, 1, &gate_up));
    WB_TRY(dev->swiglu_forward(dev, T, I, m->gate_up.data, m->act.data));
    const wb_matmul down = wb_param_forward(m->model, w->down, T, I, H, m->act.data, y);
    return dev->matmul(dev, 1, &down);
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, const float *x,
                          const float *dy, float *const *grads, float *dx) {
    mlp *m = worker;
    const mlp_weights *w = weights;
    wb_device *dev = m->model->device;
    const int64_t T = pass->T, H = m->model->config.hidden_size, I = m->model->config.dense_width;
    const wb_matmul down[] = {wb_matmul_wgrad(T, I, H, dy, m->act.data, grads[w->down]),
                              wb_param_dgrad(m->model, w->down, T, I, H, dy, m->dact.data, false)};
    WB_TRY(dev->matmul(dev, 2, down));
    float *dgate_up = m->gate_up.data;
    WB_TRY(dev->swiglu_backward(dev, T, I, m->gate_up.data, m->dact.data, dgate_up));
    const wb_matmul gate_up[] = {wb_matmul_wgrad(T, H, 2 * I, dgate_up, x, grads[w->gate_up]),
                                 wb_param_dgrad(m->model, w->gate_up, T, H, 2 * I, dgate_up, dx, false)};
    return dev->matmul(dev, 2, gate_up);
}

const wb_layer_kind wb_layer_mlp = {
    .weights_size = sizeof(mlp_weights),
    .worker_size = sizeof(mlp),
    .declare = declare,
    .open = open,
    .reserve = reserve,
    .forward = forward,
    .backward = backward,
};
