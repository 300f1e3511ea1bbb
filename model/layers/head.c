/* head.c - see head.h. Refuses: which rows, chunks. */
#include "layers/head.h"

wb_status wb_embed_forward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows x) {
    return model->device->embed_forward(model->device, T, tokens, wb_model_weight(model, model->embed), x);
}

wb_status wb_embed_backward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows dx,
                            float *const *grads) {
    wb_device *dev = model->device;
    return dev->embed_backward(dev, T, model->config.hidden_size, tokens, dx, grads[model->embed]);
}

wb_status wb_head_forward(const wb_model *model, int64_t n, wb_rows x, wb_rows normed, float *logits) {
    wb_device *dev = model->device;
    WB_TRY(dev->rmsnorm_forward(dev, n, model->config.hidden_size, x, wb_model_norm(model, model->final_norm),
                                normed));
    const wb_matmul product =
        wb_matmul_forward(n, normed, wb_model_weight(model, model->lm_head), wb_f32_rows(logits));
    return dev->matmul(dev, 1, &product);
}

wb_status wb_head_logits_backward(const wb_model *model, int64_t n, wb_rows normed, wb_rows dlogits,
                                  float *const *grads, wb_rows dnormed) {
    wb_device *dev = model->device;
    const wb_weight w = wb_model_weight(model, model->lm_head);
    const wb_matmul list[] = {wb_matmul_wgrad(n, w.cols, w.rows, dlogits, normed, grads[model->lm_head]),
                              wb_matmul_dgrad(n, dlogits, w, dnormed, false)};
    return dev->matmul(dev, 2, list);
}

wb_status wb_head_norm_backward(const wb_model *model, int64_t n, wb_rows x, wb_rows dnormed,
                                float *const *grads, wb_rows dx) {
    wb_device *dev = model->device;
    return dev->rmsnorm_backward(dev, n, model->config.hidden_size, x,
                                 wb_model_norm(model, model->final_norm), dnormed, dx,
                                 grads[model->final_norm]);
}
