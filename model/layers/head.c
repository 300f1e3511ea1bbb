/* head.c - see head.h. Refuses: which rows, chunks. */
#include "layers/head.h"

wb_status wb_embed_forward(const wb_model *model, int64_t T, const int32_t *tokens, float *x) {
    wb_device *dev = model->device;
    return dev->embed_forward(dev, T, model->config.hidden_size, tokens, wb_param_data(model, model->embed),
                              model->params[model->embed].dtype, x);
}

wb_status wb_embed_backward(const wb_model *model, int64_t T, const int32_t *tokens, const float *dx,
                            float *const *grads) {
    wb_device *dev = model->device;
    return dev->embed_backward(dev, T, model->config.hidden_size, tokens, dx, grads[model->embed]);
}

wb_status wb_head_forward(const wb_model *model, int64_t n, const float *x, float *normed, float *logits) {
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size;
    WB_TRY(dev->rmsnorm_forward(dev, n, H, x, wb_param_data(model, model->final_norm), model->config.norm_eps,
                                normed));
    const wb_matmul product =
        wb_param_forward(model, model->lm_head, n, H, model->config.vocab_size, normed, logits);
    return dev->matmul(dev, 1, &product);
}

wb_status wb_head_logits_backward(const wb_model *model, int64_t n, const float *normed, const float *dlogits,
                                  float *const *grads, float *dnormed) {
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size, V = model->config.vocab_size;
    const wb_matmul list[] = {wb_matmul_wgrad(n, H, V, dlogits, normed, grads[model->lm_head]),
                              wb_param_dgrad(model, model->lm_head, n, H, V, dlogits, dnormed, false)};
    return dev->matmul(dev, 2, list);
}

wb_status wb_head_norm_backward(const wb_model *model, int64_t n, const float *x, const float *dnormed,
                                float *const *grads, float *dx) {
    wb_device *dev = model->device;
    return dev->rmsnorm_backward(dev, n, model->config.hidden_size, x,
                                 wb_param_data(model, model->final_norm), model->config.norm_eps, dnormed, dx,
                                 grads[model->final_norm]);
}
