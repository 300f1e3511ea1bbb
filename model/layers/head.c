/* head.c - see head.h. Refuses: which rows, chunks. */
#include "layers/head.h"
#include "layers/hyper.h"

/* One row of a token's stream, to or from rows[T,H]. */
static wb_status copy_stream(const wb_model *model, int64_t T, int32_t s, bool to_stream, wb_rows rows,
                             wb_rows stream) {
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size, W = wb_model_stream_width(model);
    const wb_rows at = wb_rows_from(stream, s * H);
    return to_stream ? dev->copy_columns(dev, T, H, rows, H, at, W)
                     : dev->copy_columns(dev, T, H, at, W, rows, H);
}

wb_status wb_embed_forward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows rows, wb_rows x) {
    wb_device *dev = model->device;
    const wb_weight table = wb_model_weight(model, model->embed);
    if (!wb_model_is_hyper(model)) return dev->embed_forward(dev, T, tokens, table, x);
    WB_TRY(dev->embed_forward(dev, T, tokens, table, rows));
    for (int32_t s = 0; s < model->config.hyper.n_streams; s++)
        WB_TRY(copy_stream(model, T, s, true, rows, x));
    return WB_OK;
}

wb_status wb_embed_backward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows rows, wb_rows dx,
                            float *const *grads) {
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size;
    float *grad = grads[model->embed];
    if (!wb_model_is_hyper(model)) return dev->embed_backward(dev, T, H, tokens, dx, grad);
    for (int32_t s = 0; s < model->config.hyper.n_streams; s++) {
        WB_TRY(copy_stream(model, T, s, false, rows, dx));
        WB_TRY(dev->embed_backward(dev, T, H, tokens, rows, grad));
    }
    return WB_OK;
}

/* ---- from the streams to the head ------------------------------------------------------------ */

void wb_head_rows_layout(wb_head_rows *rows, const wb_model *model, int64_t n, bool backward,
                         wb_arena *arena) {
    const int64_t S = model->config.hyper.n_streams, W = wb_model_stream_width(model);
    if (S == 0) return;
    wb_place_activations(arena, model, &rows->stream, n, W);
    if (backward) wb_place_activations(arena, model, &rows->dstream, n, W);
    wb_place(arena, &rows->products, n, S, sizeof(float));
    wb_place(arena, &rows->weights, n, S, sizeof(float));
}

wb_status wb_head_mix(const wb_model *model, const wb_head_rows *rows, int64_t n, wb_rows x, wb_rows *out) {
    if (wb_model_is_hyper(model))
        return wb_hyper_end(model, n, x, rows->products.data, rows->weights.data, *out);
    *out = x;
    return WB_OK;
}

wb_status wb_head_take(const wb_model *model, const wb_head_rows *rows, int64_t n, const int32_t *index,
                       wb_rows x, wb_rows out) {
    wb_device *dev = model->device;
    const wb_rows stream = wb_model_is_hyper(model) ? wb_activations(model, &rows->stream) : out;
    WB_TRY(dev->gather_rows(dev, n, wb_model_stream_width(model), index, x, stream));
    return wb_head_mix(model, rows, n, stream, &out);
}

/* The products are made again: others may have been since. */
static wb_status mix_backward(const wb_model *model, const wb_head_rows *rows, int64_t n, wb_rows dout,
                              float *const *grads, wb_rows dstream) {
    wb_device *dev = model->device;
    const wb_rows stream = wb_activations(model, &rows->stream);
    float *products = rows->products.data;
    const wb_matmul product =
        wb_matmul_forward(n, stream, wb_model_weight(model, model->end.fn), wb_f32_rows(products));
    WB_TRY(dev->matmul(dev, 1, &product));
    WB_TRY(dev->zero(dev, dstream.data,
                     (size_t)(n * wb_model_stream_width(model)) * wb_dtype_size(dstream.dtype)));
    return wb_hyper_read_backward(model, &model->end, products, 0, n, stream, dout, rows->weights.data, grads,
                                  dstream);
}

wb_status wb_head_take_backward(const wb_model *model, const wb_head_rows *rows, int64_t n,
                                const int32_t *index, int64_t T, wb_rows dout, float *const *grads,
                                wb_rows dx) {
    wb_device *dev = model->device;
    const int64_t W = wb_model_stream_width(model);
    const wb_rows dstream = wb_model_is_hyper(model) ? wb_activations(model, &rows->dstream) : dout;
    if (wb_model_is_hyper(model)) WB_TRY(mix_backward(model, rows, n, dout, grads, dstream));
    WB_TRY(dev->zero(dev, dx.data, (size_t)(T * W) * wb_dtype_size(dx.dtype)));
    return dev->scatter_rows(dev, n, W, index, dstream, dx);
}

/* ---- the head -------------------------------------------------------------------------------- */

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
