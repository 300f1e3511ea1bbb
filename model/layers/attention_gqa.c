/* attention_gqa.c - grouped-query attention with rotary positions:
 *   y = Wo attention(rope(clamp(norm(Wq x))), rope(clamp(norm(Wk x))), clamp(Wv x))
 *
 * Owns: q, k and v, and what a sequence leaves behind: its keys and values. Refuses: which row of the tables
 * a position has, the residual stream. */
#include "config.h"
#include "layers/layer.h"
#include "registry.h"

#include <math.h>

/* Parameters; -1: the model has none. */
typedef struct gqa_weights {
    int32_t q, k, v, o; /* [nh dh, H], [nkv dh, H], [nkv dh, H], [H, nh dh] */
    int32_t q_bias, k_bias, v_bias, o_bias;
    int32_t q_norm, k_norm; /* [dh] per head, [nh dh] and [nkv dh] whole */
    int32_t sinks;          /* [nh] */
    int32_t window;         /* no parameter: of the layer; 0: none */
} gqa_weights;

/* q, k or v on its way: projection (and bias), norm, clamp, rotation. A step that the model does not have
 * has no memory: its result is the next step's. Without a backward, which needs them, no step has: one op
 * makes all of them in `out`. */
typedef struct heads {
    wb_buffer projected, normed, out; /* [T, heads * dh] */
} heads;

typedef struct gqa {
    wb_model *model;
    bool keeps_steps; /* for a backward */

    /* Kept by a forward for its backward. */
    heads q, k, v;
    wb_buffer attn;     /* [T, nh * dh] */
    wb_buffer log_sums; /* f32 [T, nh] */

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
    w->q_norm = w->k_norm = w->sinks = -1;
    w->window = wb_config_window(c, l);
    w->q = wb_registry_matrix(registry, l, "self_attn.q_proj.weight", q, H);
    w->k = wb_registry_matrix(registry, l, "self_attn.k_proj.weight", kv, H);
    w->v = wb_registry_matrix(registry, l, "self_attn.v_proj.weight", kv, H);
    w->o = wb_registry_matrix(registry, l, "self_attn.o_proj.weight", H, q);
    if (c->attention_bias) {
        w->q_bias = wb_registry_vector(registry, l, "self_attn.q_proj.bias", q);
        w->k_bias = wb_registry_vector(registry, l, "self_attn.k_proj.bias", kv);
        w->v_bias = wb_registry_vector(registry, l, "self_attn.v_proj.bias", kv);
        if (!registry->model->family->no_output_bias)
            w->o_bias = wb_registry_vector(registry, l, "self_attn.o_proj.bias", H);
    }
    if (registry->model->family->sinks)
        w->sinks = wb_registry_vector(registry, l, "self_attn.sinks", c->n_heads);
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
    wb_rows projected, normed, out;
} stages;

static stages stages_of(const wb_model *model, heads_spec spec, const heads *h) {
    stages s;
    s.out = wb_activations(model, &h->out);
    s.normed = model->config.clip_qkv > 0 ? wb_activations(model, &h->normed) : s.out;
    s.projected = spec.norm >= 0 ? wb_activations(model, &h->projected) : s.normed;
    return s;
}

static int64_t width_of(const wb_model *model, heads_spec spec) {
    return (int64_t)spec.n_heads * model->config.head_dim;
}

static void heads_layout(const gqa *g, int64_t T, int64_t width, bool has_norm, heads *h, wb_arena *arena) {
    const wb_model *model = g->model;
    wb_place_activations(arena, model, &h->out, T, width);
    if (!g->keeps_steps) return;
    if (model->config.clip_qkv > 0) wb_place_activations(arena, model, &h->normed, T, width);
    if (has_norm) wb_place_activations(arena, model, &h->projected, T, width);
}

static void layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    gqa *g = worker;
    const gqa *other = sizes->scratch_of;
    const wb_config *c = &model->config;
    const int64_t T = sizes->tokens, q = (int64_t)c->n_heads * c->head_dim,
                  kv = (int64_t)c->n_kv_heads * c->head_dim;
    const bool has_norm = c->qk_norm != WB_QK_NORM_NONE;
    g->model = model;
    g->keeps_steps = sizes->backward;
    heads_layout(g, T, q, has_norm, &g->q, arena);
    heads_layout(g, T, kv, has_norm, &g->k, arena);
    heads_layout(g, T, kv, false, &g->v, arena);
    wb_place_activations(arena, model, &g->attn, T, q);
    if (!sizes->backward) return;
    wb_place(arena, &g->log_sums, T, c->n_heads, sizeof(float));
    wb_place_scratch(arena, model, &g->dattn, other ? &other->dattn : NULL, T, q);
    wb_place_scratch(arena, model, &g->dq, other ? &other->dq : NULL, T, q);
    wb_place_scratch(arena, model, &g->dk, other ? &other->dk : NULL, T, kv);
    wb_place_scratch(arena, model, &g->dv, other ? &other->dv : NULL, T, kv);
}

/* The four projections, and of each pair of positions, which are half of T * T, score and value. */
static double work(const wb_config *config, const wb_sizes *sizes) {
    const double T = (double)sizes->tokens, H = config->hidden_size,
                 q = (double)config->n_heads * config->head_dim,
                 kv = (double)config->n_kv_heads * config->head_dim;
    return T * H * (2 * q + 2 * kv) + T * T * q;
}

static wb_matmul heads_projection(const gqa *g, heads_spec spec, int64_t T, wb_rows x, const heads *h) {
    const wb_rows to =
        g->keeps_steps ? stages_of(g->model, spec, h).projected : wb_activations(g->model, &h->out);
    return wb_matmul_forward(T, x, wb_model_weight(g->model, spec.weight), to);
}

/* The rows that the query/key norm works on: a head each, or a token each. */
static int64_t norm_width(const wb_model *model, heads_spec spec) {
    return model->config.qk_norm == WB_QK_NORM_PER_HEAD ? model->config.head_dim : width_of(model, spec);
}

static wb_status rotate(const wb_model *model, heads_spec spec, const wb_pass *pass, bool inverse,
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

static wb_status add_bias(const wb_model *model, heads_spec spec, int64_t T, wb_rows x) {
    wb_device *dev = model->device;
    if (spec.bias < 0) return WB_OK;
    return dev->bias_forward(dev, T, width_of(model, spec), wb_model_vector(model, spec.bias), x);
}

/* Step by step, for a backward. */
static wb_status heads_forward(const wb_model *model, heads_spec spec, const wb_pass *pass, const heads *h) {
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, h);
    const int64_t n = pass->T * width_of(model, spec);
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

/* dout: in, of the result; out, of the projection. Then dx[T,H] (=, or += with `accumulate`). */
static wb_status heads_backward(const wb_model *model, heads_spec spec, const wb_pass *pass, const heads *h,
                                wb_rows x, float *const *grads, wb_rows dout, bool accumulate, wb_rows dx) {
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, h);
    const int64_t T = pass->T, H = config->hidden_size, width = width_of(model, spec), n = T * width;
    if (spec.rotate) WB_TRY(rotate(model, spec, pass, true, dout));
    if (config->clip_qkv > 0) WB_TRY(dev->clamp_backward(dev, n, config->clip_qkv, s.normed, dout));
    if (spec.norm >= 0) {
        const int64_t norm = norm_width(model, spec);
        WB_TRY(dev->rmsnorm_backward(dev, n / norm, norm, s.projected, wb_model_norm(model, spec.norm), dout,
                                     dout, grads[spec.norm]));
    }
    if (spec.bias >= 0) WB_TRY(dev->bias_backward(dev, T, width, dout, grads[spec.bias]));
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, width, dout, x, grads[spec.weight]),
                              wb_matmul_dgrad(T, dout, wb_model_weight(model, spec.weight), dx, accumulate)};
    return dev->matmul(dev, 2, list);
}

/* ---- forward --------------------------------------------------------------------------------- */

static wb_attention attention_args(const gqa *g, const gqa_weights *w, const wb_pass *pass,
                                   const wb_state *state) {
    const wb_model *model = g->model;
    const wb_config *config = &model->config;
    return (wb_attention){.T = pass->T,
                          .n_heads = config->n_heads,
                          .n_kv_heads = config->n_kv_heads,
                          .head_dim = config->head_dim,
                          .value_dim = config->head_dim,
                          .scale = (float)(1.0 / sqrt((double)config->head_dim)),
                          .window = w->window,
                          .sinks = w->sinks < 0 ? NULL : wb_model_vector(model, w->sinks),
                          .q = wb_activations(model, &g->q.out),
                          .k = state ? wb_state_rows(state, KEYS) : wb_activations(model, &g->k.out),
                          .v = state ? wb_state_rows(state, VALUES) : wb_activations(model, &g->v.out),
                          .seq = pass->seq,
                          .pos = pass->pos,
                          .blocks = pass->blocks,
                          .max_blocks = pass->max_blocks,
                          .block_size = pass->block_size,
                          .log_sums = g->log_sums.data,
                          .out = wb_activations(model, &g->attn)};
}

/* All steps at once, keys and values into the pool among them, with the same bits. */
static wb_status prepare(const gqa *g, const gqa_weights *w, const wb_pass *pass, const wb_state *state) {
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
        args.k_cache = wb_state_rows(state, KEYS);
        args.v_cache = wb_state_rows(state, VALUES);
    }
    WB_TRY(add_bias(model, q_spec(model, w), pass->T, args.q));
    WB_TRY(add_bias(model, k_spec(model, w), pass->T, args.k));
    WB_TRY(add_bias(model, v_spec(model, w), pass->T, args.v));
    return dev->attention_prepare(dev, &args);
}

static wb_status project(gqa *g, const gqa_weights *w, const wb_pass *pass, const wb_state *state,
                         wb_rows x) {
    const wb_model *model = g->model;
    const int64_t T = pass->T;
    const heads_spec q = q_spec(model, w), k = k_spec(model, w), v = v_spec(model, w);
    const wb_matmul list[] = {heads_projection(g, q, T, x, &g->q), heads_projection(g, k, T, x, &g->k),
                              heads_projection(g, v, T, x, &g->v)};
    WB_TRY(model->device->matmul(model->device, 3, list));
    if (!g->keeps_steps) return prepare(g, w, pass, state);
    WB_TRY(heads_forward(model, q, pass, &g->q));
    WB_TRY(heads_forward(model, k, pass, &g->k));
    return heads_forward(model, v, pass, &g->v);
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    gqa *g = worker;
    const gqa_weights *w = weights;
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size;
    const wb_rows attn = wb_activations(model, &g->attn);
    WB_TRY(project(g, w, pass, state, x));
    const wb_attention args = attention_args(g, w, pass, state);
    WB_TRY(dev->attention_forward(dev, &args, attn));
    const wb_matmul o = wb_matmul_forward(T, attn, wb_model_weight(model, w->o), y);
    WB_TRY(dev->matmul(dev, 1, &o));
    return w->o_bias >= 0 ? dev->bias_forward(dev, T, H, wb_model_vector(model, w->o_bias), y) : WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* dattn from dy, then dq, dk and dv from it. */
static wb_status attention_backward(gqa *g, const gqa_weights *w, const wb_pass *pass, wb_rows dy,
                                    float *const *grads) {
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size, q_width = width_of(model, q_spec(model, w)),
                  kv_width = width_of(model, k_spec(model, w));
    const size_t kv_bytes = (size_t)(T * kv_width) * wb_dtype_size(model->activations);
    const wb_rows dattn = wb_activations(model, &g->dattn);

    if (w->o_bias >= 0) WB_TRY(dev->bias_backward(dev, T, H, dy, grads[w->o_bias]));
    const wb_matmul o[] = {wb_matmul_wgrad(T, q_width, H, dy, wb_activations(model, &g->attn), grads[w->o]),
                           wb_matmul_dgrad(T, dy, wb_model_weight(model, w->o), dattn, false)};
    WB_TRY(dev->matmul(dev, 2, o));
    const wb_attention args = attention_args(g, w, pass, NULL);
    WB_TRY(dev->zero(dev, g->dk.data, kv_bytes));
    WB_TRY(dev->zero(dev, g->dv.data, kv_bytes));
    return dev->attention_backward(dev, &args, dattn, wb_activations(model, &g->dq),
                                   wb_activations(model, &g->dk), wb_activations(model, &g->dv),
                                   w->sinks < 0 ? NULL : grads[w->sinks]);
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx) {
    gqa *g = worker;
    const gqa_weights *w = weights;
    const wb_model *model = g->model;
    WB_TRY(attention_backward(g, w, pass, dy, grads));
    const wb_rows dq = wb_activations(model, &g->dq), dk = wb_activations(model, &g->dk),
                  dv = wb_activations(model, &g->dv);
    WB_TRY(heads_backward(model, q_spec(model, w), pass, &g->q, x, grads, dq, false, dx));
    WB_TRY(heads_backward(model, k_spec(model, w), pass, &g->k, x, grads, dk, true, dx));
    return heads_backward(model, v_spec(model, w), pass, &g->v, x, grads, dv, true, dx);
}

const wb_layer_kind wb_layer_attention_gqa = {
    .weights_size = sizeof(gqa_weights),
    .worker_size = sizeof(gqa),
    .declare = declare,
    .state = state_shape,
    .layout = layout,
    .work = work,
    .forward = forward,
    .backward = backward,
};
