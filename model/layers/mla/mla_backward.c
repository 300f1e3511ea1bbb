/* mla_backward.c - the backward of latent attention, from the output to the input. Refuses: what is done
 * head by head (mla_heads.c). */
#include "layers/mla/mla.h"

/* dmixed from dy. */
static wb_status values_backward(const wb_mla *m, const wb_mla_weights *w, int64_t T, wb_rows dy,
                                 float *const *grads) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size, width = wb_mla_widths_of(&model->config).values;
    const wb_mla_rows to_weight = wb_mla_values(m, &m->dvalues, &m->mixed),
                      to_mixed = wb_mla_values(m, &m->dvalues, &m->dmixed);
    const wb_matmul o[] = {wb_matmul_wgrad(T, width, H, dy, wb_activations(model, &m->values), grads[w->o]),
                           wb_matmul_dgrad(T, dy, wb_model_weight(model, w->o), to_mixed.outer, false)};
    WB_TRY(dev->matmul(dev, 2, o));
    WB_TRY(wb_mla_to_weight(m, w, &to_weight, T, grads));
    return wb_mla_to_inner(m, w, &to_mixed, T);
}

static wb_status zero(const wb_mla *m, const wb_buffer *buffer, int64_t n) {
    wb_device *dev = m->model->device;
    return dev->zero(dev, buffer->data, (size_t)n * wb_dtype_size(m->model->activations));
}

/* dq_latent, dlatent and dc from dmixed. */
static wb_status attention_backward(const wb_mla *m, const wb_pass *pass) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, rank = model->config.mla.kv_rank;
    wb_attention args = wb_mla_attention(m, pass, NULL);
    args.v = wb_activations(model, &m->c_normed); /* the same values, apart from the keys */
    WB_TRY(zero(m, &m->dlatent, T * wb_mla_widths_of(&model->config).latent));
    WB_TRY(zero(m, &m->dc, T * rank));
    return dev->attention_backward(dev, &args, wb_activations(model, &m->dmixed),
                                   wb_activations(model, &m->dq_latent), wb_activations(model, &m->dlatent),
                                   wb_activations(model, &m->dc), NULL);
}

/* Of y = W norm(low): from dy grads of W and of the norm, and dlow. */
static wb_status low_rank_backward(const wb_mla *m, const wb_mla_weights *w, int64_t T, wb_rows dq,
                                   float *const *grads) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const int64_t rank = model->config.mla.q_rank, width = wb_mla_widths_of(&model->config).q;
    const wb_rows normed = wb_activations(model, &m->q_low_normed), dlow = wb_activations(model, &m->dq_low);
    const wb_matmul list[] = {wb_matmul_wgrad(T, rank, width, dq, normed, grads[w->q]),
                              wb_matmul_dgrad(T, dq, wb_model_weight(model, w->q), dlow, false)};
    WB_TRY(dev->matmul(dev, 2, list));
    return dev->rmsnorm_backward(dev, T, rank, wb_activations(model, &m->q_low),
                                 wb_mla_norm(model, w->q_norm), dlow, dlow, grads[w->q_norm]);
}

/* dq from dq_latent, then dx (=). */
static wb_status queries_backward(const wb_mla *m, const wb_mla_weights *w, const wb_pass *pass, wb_rows x,
                                  float *const *grads, wb_rows dx) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const wb_mla_widths width = wb_mla_widths_of(config);
    const int64_t T = pass->T, H = config->hidden_size;
    const wb_mla_rows to_weight = wb_mla_keys(m, &m->q, &m->dq_latent),
                      to_q = wb_mla_keys(m, &m->dq, &m->dq_latent);
    const bool low = config->mla.q_rank > 0;
    const int32_t first = low ? w->q_a : w->q;
    WB_TRY(wb_mla_to_weight(m, w, &to_weight, T, grads));
    WB_TRY(wb_mla_to_outer(m, w, &to_q, T));
    WB_TRY(wb_mla_copy_rotated(m, T, to_q.inner, width.latent, to_q.outer, width.head));
    WB_TRY(wb_mla_rotate(m, pass, config->n_heads, width.head, true, to_q.outer));
    if (low) WB_TRY(low_rank_backward(m, w, T, to_q.outer, grads));
    const wb_rows d = low ? wb_activations(model, &m->dq_low) : to_q.outer;
    const int64_t n = low ? config->mla.q_rank : width.q;
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, n, d, x, grads[first]),
                              wb_matmul_dgrad(T, d, wb_model_weight(model, first), dx, false)};
    return dev->matmul(dev, 2, list);
}

/* dx (+=) from dlatent, as keys, and dc, as values. */
static wb_status latents_backward(const wb_mla *m, const wb_mla_weights *w, const wb_pass *pass, wb_rows x,
                                  float *const *grads, wb_rows dx) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size, rank = model->config.mla.kv_rank,
                  rope = model->config.mla.rope_dim, W = rank + rope;
    const wb_rows dlatent = wb_activations(model, &m->dlatent), dc = wb_activations(model, &m->dc),
                  of_keys = wb_activations(model, &m->dc_of_keys), dk = wb_rows_from(dlatent, rank);
    WB_TRY(wb_mla_rotate(m, pass, 1, W, true, dlatent));
    WB_TRY(dev->copy_columns(dev, T, rank, dlatent, W, of_keys, rank));
    WB_TRY(dev->add(dev, T * rank, of_keys, dc));
    WB_TRY(dev->rmsnorm_backward(dev, T, rank, wb_activations(model, &m->c), wb_mla_norm(model, w->kv_norm),
                                 dc, dc, grads[w->kv_norm]));
    wb_weight to_c, to_k;
    WB_TRY(wb_mla_latent_weights(m, w, &to_c, &to_k));
    wb_matmul list[] = {wb_matmul_wgrad(T, H, rank, dc, x, grads[w->kv_a]),
                        wb_matmul_wgrad(T, H, rope, dk, x, grads[w->kv_a] + rank * H),
                        wb_matmul_dgrad(T, dc, to_c, dx, true)};
    list[1].a_col = W;
    WB_TRY(dev->matmul(dev, 3, list));
    wb_matmul last = wb_matmul_dgrad(T, dk, to_k, dx, true);
    last.a_row = W;
    return dev->matmul(dev, 1, &last);
}

wb_status wb_mla_backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx) {
    const wb_mla *m = worker;
    const wb_mla_weights *w = weights;
    WB_TRY(values_backward(m, w, pass->T, dy, grads));
    WB_TRY(attention_backward(m, pass));
    WB_TRY(queries_backward(m, w, pass, x, grads, dx));
    return latents_backward(m, w, pass, x, grads, dx);
}
