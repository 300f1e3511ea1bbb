/* gqa_heads.c - queries, keys and values on their way from the residual stream to attention, and back.
 * Refuses: what attention makes of them (attention_gqa.c). */
#include "layers/gqa/gqa.h"

/* ---- steps ----------------------------------------------------------------------------------- */

/* Where each step's result lies. */
typedef struct stages {
    wb_rows projected, normed, out;
} stages;

static stages stages_of(const wb_model *model, wb_heads_spec spec, const wb_heads *h) {
    stages s;
    s.out = wb_activations(model, &h->out);
    s.normed = model->config.clip_qkv > 0 ? wb_activations(model, &h->normed) : s.out;
    s.projected = spec.norm >= 0 ? wb_activations(model, &h->projected) : s.normed;
    return s;
}

void wb_gqa_layout_heads(const wb_gqa *g, int64_t T, int64_t width, bool has_norm, wb_heads *h,
                         wb_arena *arena) {
    const wb_model *model = g->model;
    wb_place_activations(arena, model, &h->out, T, width);
    if (!g->keeps_steps) return;
    if (model->config.clip_qkv > 0) wb_place_activations(arena, model, &h->normed, T, width);
    if (has_norm) wb_place_activations(arena, model, &h->projected, T, width);
}

/* Where the first step finds what was projected. */
static wb_rows projected_of(const wb_gqa *g, wb_heads_spec spec, const wb_heads *h) {
    return g->keeps_steps ? stages_of(g->model, spec, h).projected : wb_activations(g->model, &h->out);
}

static wb_matmul heads_projection(const wb_gqa *g, wb_heads_spec spec, int64_t T, wb_rows x,
                                  const wb_heads *h) {
    const wb_rows to = spec.gated ? wb_activations(g->model, &g->q_gates) : projected_of(g, spec, h);
    return wb_matmul_forward(T, x, wb_model_weight(g->model, spec.weight), to);
}

/* The query of each head is taken from beside its gate; or its gradient is put there. */
static wb_status move_queries(const wb_gqa *g, int64_t T, wb_rows queries, bool back) {
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const int64_t n = T * model->config.n_heads, dh = model->config.head_dim;
    const wb_rows both = wb_activations(model, &g->q_gates);
    if (back) return dev->copy_columns(dev, n, dh, queries, dh, both, 2 * dh);
    return dev->copy_columns(dev, n, dh, both, 2 * dh, queries, dh);
}

/* The rows that the query/key norm works on: a head each, or a token each. */
static int64_t norm_width(const wb_model *model, wb_heads_spec spec) {
    return model->config.qk_norm == WB_QK_NORM_PER_HEAD ? model->config.head_dim : wb_gqa_width(model, spec);
}

static wb_status rotate(const wb_model *model, wb_heads_spec spec, const wb_pass *pass, bool inverse,
                        wb_rows x) {
    wb_device *dev = model->device;
    const int32_t head_dim = model->config.head_dim;
    const wb_rope args = {.T = pass->T,
                          .n_heads = spec.n_heads,
                          .head_dim = head_dim,
                          .rot_dim = wb_model_rotary_dim(model),
                          .inverse = inverse,
                          .pos = pass->pos,
                          .cos_table = model->cos_table.data,
                          .sin_table = model->sin_table.data,
                          .x = x};
    return dev->rope(dev, &args);
}

static wb_status add_bias(const wb_model *model, wb_heads_spec spec, int64_t T, wb_rows x) {
    wb_device *dev = model->device;
    if (spec.bias < 0) return WB_OK;
    return dev->bias_forward(dev, T, wb_gqa_width(model, spec), wb_model_vector(model, spec.bias), x);
}

/* Step by step, for a backward. */
static wb_status heads_forward(const wb_model *model, wb_heads_spec spec, const wb_pass *pass,
                               const wb_heads *h) {
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, h);
    const int64_t n = pass->T * wb_gqa_width(model, spec);
    WB_TRY(add_bias(model, spec, pass->T, s.projected));
    if (spec.norm >= 0) {
        const int64_t norm = norm_width(model, spec);
        WB_TRY(dev->rmsnorm_forward(dev, n / norm, norm, s.projected, wb_model_norm(model, spec.norm),
                                    s.normed));
    }
    if (config->clip_qkv > 0) {
        WB_TRY(dev->copy(dev, s.out.data, s.normed.data, (size_t)n * wb_dtype_size(s.out.dtype)));
        WB_TRY(dev->clamp(dev, n, config->clip_qkv, s.out));
    }
    return spec.rotate ? rotate(model, spec, pass, false, s.out) : WB_OK;
}

wb_status wb_gqa_heads_backward(const wb_gqa *g, wb_heads_spec spec, const wb_pass *pass, const wb_heads *h,
                                wb_rows x, float *const *grads, wb_rows dout, bool accumulate, wb_rows dx) {
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, h);
    const int64_t T = pass->T, H = config->hidden_size, width = wb_gqa_width(model, spec), n = T * width;
    if (spec.rotate) WB_TRY(rotate(model, spec, pass, true, dout));
    if (config->clip_qkv > 0) WB_TRY(dev->clamp_backward(dev, n, config->clip_qkv, s.normed, dout));
    if (spec.norm >= 0) {
        const int64_t norm = norm_width(model, spec);
        WB_TRY(dev->rmsnorm_backward(dev, n / norm, norm, s.projected, wb_model_norm(model, spec.norm), dout,
                                     dout, grads[spec.norm]));
    }
    if (spec.bias >= 0) WB_TRY(dev->bias_backward(dev, T, width, dout, grads[spec.bias]));
    if (spec.gated) WB_TRY(move_queries(g, T, dout, true));
    const wb_weight w = wb_model_weight(model, spec.weight);
    const wb_rows dprojected = spec.gated ? wb_activations(model, &g->q_gates) : dout;
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, w.rows, dprojected, x, grads[spec.weight]),
                              wb_matmul_dgrad(T, dprojected, w, dx, accumulate)};
    return dev->matmul(dev, 2, list);
}

/* ---- all of it ------------------------------------------------------------------------------- */

/* All steps at once, keys and values into the pool among them, with the same bits. */
static wb_status prepare(const wb_gqa *g, const wb_gqa_weights *w, const wb_pass *pass,
                         const wb_state *state) {
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    wb_attention_inputs args = {.T = pass->T,
                                .n_heads = config->n_heads,
                                .n_kv_heads = config->n_kv_heads,
                                .head_dim = config->head_dim,
                                .rot_dim = wb_model_rotary_dim(model),
                                .q = wb_activations(model, &g->q.out),
                                .k = wb_activations(model, &g->k.out),
                                .v = wb_activations(model, &g->v.out),
                                .norm_whole = config->qk_norm == WB_QK_NORM_WHOLE,
                                .clip = config->clip_qkv,
                                .pos = pass->pos,
                                .cos_table = model->cos_table.data,
                                .sin_table = model->sin_table.data};
    if (w->q_norm >= 0) {
        args.q_norm = wb_model_norm(model, w->q_norm);
        args.k_norm = wb_model_norm(model, w->k_norm);
    }
    if (state) {
        args.rows = pass->state_rows;
        args.k_cache = wb_state_rows(state, WB_GQA_KEYS);
        args.v_cache = wb_state_rows(state, WB_GQA_VALUES);
    }
    WB_TRY(add_bias(model, wb_gqa_q(model, w), pass->T, args.q));
    WB_TRY(add_bias(model, wb_gqa_k(model, w), pass->T, args.k));
    WB_TRY(add_bias(model, wb_gqa_v(model, w), pass->T, args.v));
    return dev->attention_prepare(dev, &args);
}

wb_status wb_gqa_project(wb_gqa *g, const wb_gqa_weights *w, const wb_pass *pass, const wb_state *state,
                         wb_rows x) {
    const wb_model *model = g->model;
    const int64_t T = pass->T;
    const wb_heads_spec q = wb_gqa_q(model, w), k = wb_gqa_k(model, w), v = wb_gqa_v(model, w);
    const wb_matmul list[] = {heads_projection(g, q, T, x, &g->q), heads_projection(g, k, T, x, &g->k),
                              heads_projection(g, v, T, x, &g->v)};
    WB_TRY(model->device->matmul(model->device, 3, list));
    if (q.gated) WB_TRY(move_queries(g, T, projected_of(g, q, &g->q), false));
    if (!g->keeps_steps) return prepare(g, w, pass, state);
    WB_TRY(heads_forward(model, q, pass, &g->q));
    WB_TRY(heads_forward(model, k, pass, &g->k));
    return heads_forward(model, v, pass, &g->v);
}
