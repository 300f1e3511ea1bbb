/* attention_gqa.c - grouped-query attention with rotary positions:
 *   y = Wo attention(rope(clamp(norm(Wq x))), rope(clamp(norm(Wk x))), clamp(Wv x))
 *
 * Owns: q, k and v, and what a sequence leaves behind: its keys and values. Refuses: which row of the tables
 * a position has, the residual stream. */
#include "layers/layer.h"
#include "registry.h"

#include <math.h>

/* Parameters; -1: the model has none. */
typedef struct gqa_weights {
    int32_t q, k, v, o; /* [nh dh, H], [nkv dh, H], [nkv dh, H], [H, nh dh] */
    int32_t q_bias, k_bias, v_bias, o_bias;
    int32_t q_norm, k_norm; /* [dh] per head, [nh dh] and [nkv dh] whole */
} gqa_weights;

/* q, k or v on its way: projection (and bias), norm, clamp, rotation. A step that the model does not have
 * has no memory: its result is the next step's. */
typedef struct heads {
    wb_buffer projected, normed, out; /* [T, heads * dh] */
} heads;

typedef struct gqa {
    wb_model *model;
    wb_workspace *memory; /* borrowed */

    /* Kept by a forward for its backward. */
    heads q, k, v;
    wb_buffer attn; /* [T, nh * dh] */

    wb_buffer dattn, dq, dk, dv; /* [T, heads * dh] */
} gqa;

/* The tables of a sequence's state. */
enum { KEYS, VALUES, N_TABLES };

/* ---- declaration ----------------------------------------------------------------------------- */

static void declare(wb_registry *registry, int32_t l, void *weights) {
    const wb_config *c = &registry->model->config;
    const int64_t H = c->hidden_size, q = (int64_t)c->n_heads * c->head_dim,
                  kv = (int64_t)c->n_kv_heads * c->head_dim;
    gqa_weights *w = weights;
    w->q_bias = w->k_bias = w->v_bias = w->o_bias = -1;
    w->q_norm = w->k_norm = -1;
    w->q = wb_registry_matrix(registry, l, "self_attn.q_proj.weight", q, H);
    w->k = wb_registry_matrix(registry, l, "self_attn.k_proj.weight", kv, H);
    w->v = wb_registry_matrix(registry, l, "self_attn.v_proj.weight", kv, H);
    w->o = wb_registry_matrix(registry, l, "self_attn.o_proj.weight", H, q);
    if (c->attention_bias) {
        w->q_bias = wb_registry_vector(registry, l, "self_attn.q_proj.bias", q);
        w->k_bias = wb_registry_vector(registry, l, "self_attn.k_proj.bias", kv);
        w->v_bias = wb_registry_vector(registry, l, "self_attn.v_proj.bias", kv);
        w->o_bias = wb_registry_vector(registry, l, "self_attn.o_proj.bias", H);
    }
    if (c->qk_norm != WB_QK_NORM_NONE) {
        const bool whole = c->qk_norm == WB_QK_NORM_WHOLE;
        w->q_norm = wb_registry_vector(registry, l, "self_attn.q_norm.weight", whole ? q : c->head_dim);
        w->k_norm = wb_registry_vector(registry, l, "self_attn.k_norm.weight", whole ? kv : c->head_dim);
    }
}

static void state_shape(const wb_config *config, wb_state_shape *shape_out) {
    const int64_t width = (int64_t)config->n_kv_heads * config->head_dim;
    *shape_out = (wb_state_shape){.n_tables = N_TABLES, .width = {[KEYS] = width, [VALUES] = width}};
}

static wb_status open(wb_model *model, wb_workspace *memory, void *worker) {
    gqa *g = worker;
    g->model = model;
    g->memory = memory;
    return WB_OK;
}

/* ---- q, k and v ------------------------------------------------------------------------------ */

/* What one of q, k, v goes through; parameters, -1: none. */
typedef struct heads_spec {
    int32_t weight, bias, norm, n_heads;
    bool rotate;
} heads_spec;

static heads_spec q_spec(const wb_model *model, const gqa_weights *w) {
    return (heads_spec){w->q, w->q_bias, w->q_norm, model->config.n_heads, true};
}
static heads_spec k_spec(const wb_model *model, const gqa_weights *w) {
    return (heads_spec){w->k, w->k_bias, w->k_norm, model->config.n_kv_heads, true};
}
static heads_spec v_spec(const wb_model *model, const gqa_weights *w) {
    return (heads_spec){w->v, w->v_bias, -1, model->config.n_kv_heads, false};
}

/* Where each step's result lies. */
typedef struct stages {
    float *projected, *normed, *out;
} stages;

static stages stages_of(const wb_model *model, heads_spec spec, const heads *h) {
    stages s;
    s.out = h->out.data;
    s.normed = model->config.clip_qkv > 0 ? h->normed.data : s.out;
    s.projected = spec.norm >= 0 ? h->projected.data : s.normed;
    return s;
}

static int64_t width_of(const wb_model *model, heads_spec spec) {
    return (int64_t)spec.n_heads * model->config.head_dim;
}

static wb_status heads_reserve(gqa *g, heads_spec spec, int64_t T, heads *h) {
    const int64_t width = width_of(g->model, spec);
    WB_TRY(wb_reserve(g->memory, &h->out, T, width, sizeof(float)));
    if (g->model->config.clip_qkv > 0) WB_TRY(wb_reserve(g->memory, &h->normed, T, width, sizeof(float)));
    if (spec.norm >= 0) WB_TRY(wb_reserve(g->memory, &h->projected, T, width, sizeof(float)));
    return WB_OK;
}

static wb_status reserve(void *worker, const void *weights, int64_t T, bool backward) {
    gqa *g = worker;
    const heads_spec q = q_spec(g->model, weights), k = k_spec(g->model, weights),
                     v = v_spec(g->model, weights);
    const int64_t q_width = width_of(g->model, q), kv_width = width_of(g->model, k);
    WB_TRY(heads_reserve(g, q, T, &g->q));
    WB_TRY(heads_reserve(g, k, T, &g->k));
    WB_TRY(heads_reserve(g, v, T, &g->v));
    WB_TRY(wb_reserve(g->memory, &g->attn, T, q_width, sizeof(float)));
    if (!backward) return WB_OK;
    WB_TRY(wb_reserve(g->memory, &g->dattn, T, q_width, sizeof(float)));
    WB_TRY(wb_reserve(g->memory, &g->dq, T, q_width, sizeof(float)));
    WB_TRY(wb_reserve(g->memory, &g->dk, T, kv_width, sizeof(float)));
    return wb_reserve(g->memory, &g->dv, T, kv_width, sizeof(float));
}

static wb_matmul heads_projection(const wb_model *model, heads_spec spec, int64_t T, const float *x,
                                  const heads *h) {
    return wb_param_forward(model, spec.weight, T, model->config.hidden_size, width_of(model, spec), x,
                            stages_of(model, spec, h).projected);
}

/* The rows that the query/key norm works on: a head each, or a token each. */
static int64_t norm_width(const wb_model *model, heads_spec spec) {
    return model->config.qk_norm == WB_QK_NORM_PER_HEAD ? model->config.head_dim : width_of(model, spec);
}

static wb_status rotate(const wb_model *model, heads_spec spec, const wb_pass *pass, bool inverse, float *x) {
    wb_device *dev = model->device;
    const int32_t head_dim = model->config.head_dim;
    return dev->rope(dev, pass->T, spec.n_heads, head_dim, head_dim, pass->pos, model->cos_table.data,
                     model->sin_table.data, inverse, x);
}

static wb_status heads_forward(const wb_model *model, heads_spec spec, const wb_pass *pass, const heads *h) {
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, h);
    const int64_t width = width_of(model, spec), n = pass->T * width;
    if (spec.bias >= 0)
        WB_TRY(dev->bias_forward(dev, pass->T, width, wb_param_data(model, spec.bias), s.projected));
    if (spec.norm >= 0) {
        const int64_t norm = norm_width(model, spec);
        WB_TRY(dev->rmsnorm_forward(dev, n / norm, norm, s.projected, wb_param_data(model, spec.norm),
                                    config->norm_eps, s.normed));
    }
    if (config->clip_qkv > 0) {
        WB_TRY(dev->copy(dev, s.out, s.normed, (size_t)n * sizeof(float)));
        WB_TRY(dev->clamp(dev, n, config->clip_qkv, s.out));
    }
    return spec.rotate ? rotate(model, spec, pass, false, s.out) : WB_OK;
}

/* dout: in, of the result; out, of the projection. Then dx[T,H] (=, or += with `accumulate`). */
static wb_status heads_backward(const wb_model *model, heads_spec spec, const wb_pass *pass, const heads *h,
                                const float *x, float *const *grads, float *dout, bool accumulate,
                                float *dx) {
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, h);
    const int64_t T = pass->T, H = config->hidden_size, width = width_of(model, spec), n = T * width;
    if (spec.rotate) WB_TRY(rotate(model, spec, pass, true, dout));
    if (config->clip_qkv > 0) WB_TRY(dev->clamp_backward(dev, n, config->clip_qkv, s.normed, dout));
    if (spec.norm >= 0) {
        const int64_t norm = norm_width(model, spec);
        WB_TRY(dev->rmsnorm_backward(dev, n / norm, norm, s.projected, wb_param_data(model, spec.norm),
                                     config->norm_eps, dout, dout, grads[spec.norm]));
    }
    if (spec.bias >= 0) WB_TRY(dev->bias_backward(dev, T, width, dout, grads[spec.bias]));
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, width, dout, x, grads[spec.weight]),
                              wb_param_dgrad(model, spec.weight, T, H, width, dout, dx, accumulate)};
    return dev->matmul(dev, 2, list);
}

/* ---- forward --------------------------------------------------------------------------------- */

static wb_attention attention_args(const gqa *g, const wb_pass *pass, const wb_state *state) {
    const wb_config *config = &g->model->config;
    return (wb_attention){.T = pass->T,
                          .n_heads = config->n_heads,
                          .n_kv_heads = config->n_kv_heads,
                          .head_dim = config->head_dim,
                          .scale = (float)(1.0 / sqrt((double)config->head_dim)),
                          .q = g->q.out.data,
                          .k = state ? state->tables[KEYS] : g->k.out.data,
                          .v = state ? state->tables[VALUES] : g->v.out.data,
                          .kv_dtype = state ? state->dtype : WB_F32,
                          .seq = pass->seq,
                          .pos = pass->pos,
                          .blocks = pass->blocks,
                          .max_blocks = pass->max_blocks,
                          .block_size = pass->block_size};
}

static wb_status project(gqa *g, const gqa_weights *w, const wb_pass *pass, const float *x) {
    const wb_model *model = g->model;
    const int64_t T = pass->T;
    const heads_spec q = q_spec(model, w), k = k_spec(model, w), v = v_spec(model, w);
    const wb_matmul list[] = {heads_projection(model, q, T, x, &g->q),
                              heads_projection(model, k, T, x, &g->k),
                              heads_projection(model, v, T, x, &g->v)};
    WB_TRY(model->device->matmul(model->device, 3, list));
    WB_TRY(heads_forward(model, q, pass, &g->q));
    WB_TRY(heads_forward(model, k, pass, &g->k));
    return heads_forward(model, v, pass, &g->v);
}

static wb_status remember(const gqa *g, const wb_pass *pass, const wb_state *state) {
    wb_device *dev = g->model->device;
    const int64_t width = (int64_t)g->model->config.n_kv_heads * g->model->config.head_dim;
    WB_TRY(dev->kv_write(dev, pass->T, width, g->k.out.data, pass->state_rows, state->tables[KEYS],
                         state->dtype));
    return dev->kv_write(dev, pass->T, width, g->v.out.data, pass->state_rows, state->tables[VALUES],
                         state->dtype);
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         const float *x, float *y) {
    gqa *g = worker;
    const gqa_weights *w = weights;
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size, width = width_of(model, q_spec(model, w));
    WB_TRY(project(g, w, pass, x));
    if (state) WB_TRY(remember(g, pass, state));
    const wb_attention args = attention_args(g, pass, state);
    WB_TRY(dev->attention_forward(dev, &args, g->attn.data));
    const wb_matmul o = wb_param_forward(model, w->o, T, width, H, g->attn.data, y);
    WB_TRY(dev->matmul(dev, 1, &o));
    return w->o_bias >= 0 ? dev->bias_forward(dev, T, H, wb_param_data(model, w->o_bias), y) : WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* dattn from dy, then dq, dk and dv from it. */
static wb_status attention_backward(gqa *g, const gqa_weights *w, const wb_pass *pass, const float *dy,
                                    float *const *grads) {
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size, q_width = width_of(model, q_spec(model, w)),
                  kv_width = width_of(model, k_spec(model, w));
    const size_t kv_bytes = (size_t)(T * kv_width) * sizeof(float);

    if (w->o_bias >= 0) WB_TRY(dev->bias_backward(dev, T, H, dy, grads[w->o_bias]));
    const wb_matmul o[] = {wb_matmul_wgrad(T, q_width, H, dy, g->attn.data, grads[w->o]),
                           wb_param_dgrad(model, w->o, T, q_width, H, dy, g->dattn.data, false)};
    WB_TRY(dev->matmul(dev, 2, o));
    const wb_attention args = attention_args(g, pass, NULL);
    WB_TRY(dev->zero(dev, g->dk.data, kv_bytes));
    WB_TRY(dev->zero(dev, g->dv.data, kv_bytes));
    return dev->attention_backward(dev, &args, g->dattn.data, g->dq.data, g->dk.data, g->dv.data);
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, const float *x,
                          const float *dy, float *const *grads, float *dx) {
    gqa *g = worker;
    const gqa_weights *w = weights;
    const wb_model *model = g->model;
    WB_TRY(attention_backward(g, w, pass, dy, grads));
    WB_TRY(heads_backward(model, q_spec(model, w), pass, &g->q, x, grads, g->dq.data, false, dx));
    WB_TRY(heads_backward(model, k_spec(model, w), pass, &g->k, x, grads, g->dk.data, true, dx));
    return heads_backward(model, v_spec(model, w), pass, &g->v, x, grads, g->dv.data, true, dx);
}

const wb_layer_kind wb_layer_attention_gqa = {
    .weights_size = sizeof(gqa_weights),
    .worker_size = sizeof(gqa),
    .declare = declare,
    .state = state_shape,
    .open = open,
    .reserve = reserve,
    .forward = forward,
    .backward = backward,
};
