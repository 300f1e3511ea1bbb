/* hyper.c - see hyper.h. Refuses: which part reads, and its norm (block.c). */
#include "layers/hyper.h"

wb_hyper_weights wb_hyper_declare(wb_registry *registry, int32_t l, const char *fn, const char *base,
                                  const char *scale, int32_t iterations) {
    const wb_config *c = &registry->model->config;
    const int64_t S = c->hyper.n_streams, M = wb_hyper_width((int32_t)S, iterations), W = S * c->hidden_size;
    wb_hyper_weights w = {-1, -1, -1};
    if (S == 0) return w;
    w.fn = wb_registry_storage(registry, WB_F32, M, W);
    wb_registry_tensor(registry, l, -1, fn, M, W, w.fn, 0);
    w.base = wb_registry_vector(registry, l, base, M);
    w.scale = wb_registry_vector(registry, l, scale, iterations > 0 ? 3 : 1);
    return w;
}

static int64_t width_of(const wb_model *model) {
    return wb_hyper_width(model->config.hyper.n_streams, model->config.hyper.iterations);
}

void wb_hyper_layout(wb_hyper_kept *kept, const wb_model *model, int64_t T, wb_arena *arena) {
    const int64_t H = model->config.hidden_size;
    if (model->config.hyper.n_streams == 0) return;
    wb_place_activations(arena, model, &kept->mixed, T, H);
    wb_place_activations(arena, model, &kept->out, T, H);
    wb_place(arena, &kept->products, T, width_of(model), sizeof(float));
    wb_place(arena, &kept->weights, T, width_of(model), sizeof(float));
}

static wb_hyper args_of(const wb_model *model, const wb_hyper_weights *w, const float *products,
                        int32_t iterations, int64_t T, wb_rows x) {
    const wb_config *c = &model->config;
    return (wb_hyper){.T = T,
                      .H = c->hidden_size,
                      .n_streams = c->hyper.n_streams,
                      .iterations = iterations,
                      .norm_eps = c->norm_eps,
                      .eps = c->hyper.eps,
                      .x = x,
                      .products = products,
                      .scale = wb_model_vector(model, w->scale),
                      .base = wb_model_vector(model, w->base)};
}

static wb_status read_stream(const wb_model *model, const wb_hyper_weights *w, int32_t iterations, int64_t T,
                             wb_rows x, float *products, float *weights, wb_rows out) {
    wb_device *dev = model->device;
    const wb_matmul product = wb_matmul_forward(T, x, wb_model_weight(model, w->fn), wb_f32_rows(products));
    const wb_hyper args = args_of(model, w, products, iterations, T, x);
    WB_TRY(dev->matmul(dev, 1, &product));
    return dev->hyper_pre_forward(dev, &args, out, weights);
}

wb_status wb_hyper_read(const wb_model *model, const wb_hyper_weights *w, const wb_hyper_kept *kept,
                        int64_t T, wb_rows x) {
    return read_stream(model, w, model->config.hyper.iterations, T, x, kept->products.data,
                       kept->weights.data, wb_activations(model, &kept->mixed));
}

wb_status wb_hyper_write(const wb_model *model, const wb_hyper_kept *kept, int64_t T, wb_rows x, wb_rows y) {
    wb_device *dev = model->device;
    return dev->hyper_post_forward(dev, T, model->config.hyper.n_streams, model->config.hidden_size,
                                   kept->weights.data, x, wb_activations(model, &kept->out), y);
}

wb_status wb_hyper_write_backward(const wb_model *model, const wb_hyper_kept *kept, int64_t T, wb_rows x,
                                  wb_rows dy, wb_rows dout, wb_rows dx, float *dweights) {
    wb_device *dev = model->device;
    return dev->hyper_post_backward(dev, T, model->config.hyper.n_streams, model->config.hidden_size,
                                    kept->weights.data, x, wb_activations(model, &kept->out), dy, dout, dx,
                                    dweights);
}

wb_status wb_hyper_read_backward(const wb_model *model, const wb_hyper_weights *w, const float *products,
                                 int32_t iterations, int64_t T, wb_rows x, wb_rows dmixed, float *dweights,
                                 float *const *grads, wb_rows dx) {
    wb_device *dev = model->device;
    const wb_hyper args = args_of(model, w, products, iterations, T, x);
    const wb_weight fn = wb_model_weight(model, w->fn);
    const wb_rows dproducts = wb_f32_rows(dweights);
    WB_TRY(
        dev->hyper_pre_backward(dev, &args, dmixed, dweights, dx, dweights, grads[w->scale], grads[w->base]));
    const wb_matmul list[] = {wb_matmul_wgrad(T, fn.cols, fn.rows, dproducts, x, grads[w->fn]),
                              wb_matmul_dgrad(T, dproducts, fn, dx, true)};
    return dev->matmul(dev, 2, list);
}

wb_status wb_hyper_end(const wb_model *model, int64_t n, wb_rows x, float *products, float *weights,
                       wb_rows out) {
    return read_stream(model, &model->end, 0, n, x, products, weights, out);
}
