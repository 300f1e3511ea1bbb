/* compressed_backward.c - the backward of attention over compressed entries, from the output to the input.
 * Refuses: gradients of an indexer, which there are none of. */
#include "layers/compressed/compressed.h"

static wb_rows rows_of(const wb_compressed *a, const wb_buffer *buffer) {
    return wb_activations(a->model, buffer);
}

/* dout, of what attention gave, from dy. */
static wb_status output_backward(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                                 wb_rows dy, float *const *grads) {
    const wb_model *m = a->model;
    wb_device *dev = m->device;
    const wb_weight o_b = wb_model_weight(m, w->o_b);
    const wb_matmul list[] = {
        wb_matmul_wgrad(pass->T, o_b.cols, o_b.rows, dy, rows_of(a, &a->mid), grads[w->o_b]),
        wb_matmul_dgrad(pass->T, dy, o_b, rows_of(a, &a->dmid), false)};
    WB_TRY(dev->matmul(dev, 2, list));
    WB_TRY(wb_compressed_groups_backward(a, w, pass->T, grads));
    return wb_compressed_rotate(a, pass, m->config.n_heads, m->config.head_dim, 0, false,
                                rows_of(a, &a->dout));
}

static wb_status zero(const wb_compressed *a, const wb_buffer *buffer, int64_t n) {
    wb_device *dev = a->model->device;
    return dev->zero(dev, buffer->data, (size_t)n * wb_dtype_size(a->model->activations));
}

/* dq, dkv and dentries from dout. */
static wb_status attention_backward(const wb_compressed *a, const wb_compressed_weights *w,
                                    const wb_pass *pass, float *const *grads) {
    const wb_model *m = a->model;
    wb_device *dev = m->device;
    const int64_t n = pass->T * m->config.head_dim;
    const wb_entry_attention args = wb_compressed_attention(a, w, pass, NULL);
    WB_TRY(zero(a, &a->dkv, n));
    if (a->ratio > 0) WB_TRY(zero(a, &a->dentries, n));
    return dev->entry_attention_backward(dev, &args, rows_of(a, &a->dout), rows_of(a, &a->dq),
                                         rows_of(a, &a->dkv), rows_of(a, &a->dentries), grads[w->sinks]);
}

/* Of normed = norm(raw), in place on d; w and grad NULL: the norm has no weights. */
static wb_status norm_backward(const wb_compressed *a, int64_t n, int64_t width, const float *w, wb_rows raw,
                               wb_rows d, float *grad) {
    const wb_model *m = a->model;
    return m->device->rmsnorm_backward(m->device, n, width, raw, (wb_norm){.w = w, .eps = m->config.norm_eps},
                                       d, d, grad);
}

/* Of a projection of x: grads (+=), and dx (+=, or = where it is the first). */
static wb_status projection_backward(const wb_compressed *a, int32_t weight, int64_t T, wb_rows x, wb_rows d,
                                     bool first, float *const *grads, wb_rows dx) {
    wb_device *dev = a->model->device;
    const wb_weight w = wb_model_weight(a->model, weight);
    const wb_matmul list[] = {wb_matmul_wgrad(T, w.cols, w.rows, d, x, grads[weight]),
                              wb_matmul_dgrad(T, d, w, dx, !first)};
    return dev->matmul(dev, 2, list);
}

/* dx (=) from dq. */
static wb_status queries_backward(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                                  wb_rows x, float *const *grads, wb_rows dx) {
    const wb_model *m = a->model;
    const int64_t T = pass->T, d = m->config.head_dim, rank = m->config.compressed.q_rank;
    const int32_t n_heads = m->config.n_heads;
    const wb_rows dq = rows_of(a, &a->dq), dlow = rows_of(a, &a->dlow);
    WB_TRY(wb_compressed_rotate(a, pass, n_heads, d, 0, true, dq));
    WB_TRY(norm_backward(a, T * n_heads, d, NULL, rows_of(a, &a->q_raw), dq, NULL));
    WB_TRY(projection_backward(a, w->q_b, T, rows_of(a, &a->low_normed), dq, true, grads, dlow));
    WB_TRY(norm_backward(a, T, rank, wb_model_vector(m, w->q_norm), rows_of(a, &a->low), dlow,
                         grads[w->q_norm]));
    return projection_backward(a, w->q_a, T, x, dlow, true, grads, dx);
}

/* dx (+=) from dkv. */
static wb_status keys_backward(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                               wb_rows x, float *const *grads, wb_rows dx) {
    const wb_model *m = a->model;
    const int64_t T = pass->T, d = m->config.head_dim;
    const wb_rows dkv = rows_of(a, &a->dkv);
    WB_TRY(wb_compressed_rotate(a, pass, 1, d, 0, true, dkv));
    WB_TRY(norm_backward(a, T, d, wb_model_vector(m, w->kv_norm), rows_of(a, &a->kv_raw), dkv,
                         grads[w->kv_norm]));
    return projection_backward(a, w->kv, T, x, dkv, false, grads, dx);
}

/* dx (+=) from dentries. */
static wb_status entries_backward(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                                  wb_rows x, float *const *grads, wb_rows dx) {
    const wb_model *m = a->model;
    const wb_compressor *c = &a->entry;
    const wb_rows d = rows_of(a, &a->dentries), dvalues = rows_of(a, &a->dvalues),
                  dgates = rows_of(a, &a->dgates);
    const wb_compress args = wb_compressor_args(a, c, &w->entry, pass, NULL, 0);
    WB_TRY(wb_compressed_rotate(a, pass, 1, c->width, a->ratio, true, d));
    WB_TRY(norm_backward(a, pass->T, c->width, wb_model_vector(m, w->entry.norm), rows_of(a, &c->raw), d,
                         grads[w->entry.norm]));
    WB_TRY(m->device->compress_backward(m->device, &args, d, dvalues, dgates, grads[w->entry.bias]));
    WB_TRY(projection_backward(a, w->entry.values, pass->T, x, dvalues, false, grads, dx));
    return projection_backward(a, w->entry.gates, pass->T, x, dgates, false, grads, dx);
}

wb_status wb_compressed_backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x,
                                 wb_rows dy, float *const *grads, wb_rows dx) {
    const wb_compressed *a = worker;
    const wb_compressed_weights *w = weights;
    WB_TRY(output_backward(a, w, pass, dy, grads));
    WB_TRY(attention_backward(a, w, pass, grads));
    WB_TRY(queries_backward(a, w, pass, x, grads, dx));
    WB_TRY(keys_backward(a, w, pass, x, grads, dx));
    return a->ratio > 0 ? entries_backward(a, w, pass, x, grads, dx) : WB_OK;
}
