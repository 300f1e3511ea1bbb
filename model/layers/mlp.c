/* mlp.c - a dense feed-forward part: a SwiGLU of dense_width. */
#include "layers/swiglu.h"

static void declare(wb_registry *registry, int32_t l, void *weights) {
    wb_swiglu_declare(registry, l, "mlp", registry->model->config.dense_width, weights);
}

static void layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    wb_swiglu_layout(worker, sizes->scratch_of, model, model->config.dense_width, sizes, arena);
}

static double work(const wb_config *config, const wb_sizes *sizes) {
    return wb_swiglu_work(config, config->dense_width, sizes->tokens);
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    (void)state;
    return wb_swiglu_forward(worker, weights, pass->T, x, y);
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx) {
    return wb_swiglu_backward(worker, weights, pass->T, x, dy, grads, false, dx);
}

const wb_layer_kind wb_layer_mlp = {
    .weights_size = sizeof(wb_swiglu_weights),
    .worker_size = sizeof(wb_swiglu),
    .declare = declare,
    .layout = layout,
    .work = work,
    .forward = forward,
    .backward = backward,
};
