/* attention_gqa.c - the kind of layer: grouped-query attention with rotary positions (gqa.h).
 *
 * Owns: what a sequence leaves behind: its keys and values. Refuses: which row of the tables a position has,
 * the residual stream. */
#include "config.h"
#include "layers/gqa/gqa.h"
#include "registry.h"

#include <math.h>

/* ---- declaration ----------------------------------------------------------------------------- */

static void declare(wb_registry *registry, int32_t l, void *weights) {
    const wb_config *c = &registry->model->config;
    const int64_t H = c->hidden_size, q = (int64_t)c->n_heads * c->head_dim,
                  kv = (int64_t)c->n_kv_heads * c->head_dim;
    wb_gqa_weights *w = weights;
    w->q_bias = w->k_bias = w->v_bias = w->o_bias = -1;
    w->q_norm = w->k_norm = w->sinks = -1;
    w->window = wb_config_window(c, l);
    w->q = wb_registry_linear(registry, l, "self_attn.q_proj.weight",
                              registry->model->family->query_gate ? 2 * q : q, H);
    w->k = wb_registry_linear(registry, l, "self_attn.k_proj.weight", kv, H);
    w->v = wb_registry_linear(registry, l, "self_attn.v_proj.weight", kv, H);
    w->o = wb_registry_linear(registry, l, "self_attn.o_proj.weight", H, q);
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
    *shape_out = (wb_state_shape){.n_tables = WB_GQA_N_TABLES,
                                  .width = {[WB_GQA_KEYS] = width, [WB_GQA_VALUES] = width}};
}

/* ---- layout ---------------------------------------------------------------------------------- */

static void layout_gates(wb_gqa *g, const wb_sizes *sizes, int64_t q, wb_arena *arena) {
    wb_place_activations(arena, g->model, &g->q_gates, sizes->tokens, 2 * q);
    if (sizes->backward)
        wb_place_activations(arena, g->model, &g->gated, sizes->tokens, q);
    else
        g->gated = g->attn;
}

static void layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    wb_gqa *g = worker;
    const wb_gqa *other = sizes->scratch_of;
    const wb_config *c = &model->config;
    const int64_t T = sizes->tokens, q = (int64_t)c->n_heads * c->head_dim,
                  kv = (int64_t)c->n_kv_heads * c->head_dim;
    const bool has_norm = c->qk_norm != WB_QK_NORM_NONE;
    g->model = model;
    g->keeps_steps = sizes->backward;
    wb_gqa_layout_heads(g, T, q, has_norm, &g->q, arena);
    wb_gqa_layout_heads(g, T, kv, has_norm, &g->k, arena);
    wb_gqa_layout_heads(g, T, kv, false, &g->v, arena);
    wb_place_activations(arena, model, &g->attn, T, q);
    if (model->family->query_gate) layout_gates(g, sizes, q, arena);
    if (!sizes->backward) return;
    wb_place(arena, &g->log_sums, T, c->n_heads, sizeof(float));
    wb_place_scratch(arena, model, &g->dattn, other ? &other->dattn : NULL, T, q);
    wb_place_scratch(arena, model, &g->dq, other ? &other->dq : NULL, T, q);
    wb_place_scratch(arena, model, &g->dk, other ? &other->dk : NULL, T, kv);
    wb_place_scratch(arena, model, &g->dv, other ? &other->dv : NULL, T, kv);
}

/* The four projections, that of q with its gates, and of each pair of positions, which are half of T * T,
 * score and value. */
static double work(const wb_config *config, const wb_sizes *sizes) {
    const double T = (double)sizes->tokens, H = config->hidden_size,
                 q = (double)config->n_heads * config->head_dim,
                 kv = (double)config->n_kv_heads * config->head_dim;
    const double gates = wb_family_rules_of(config->family)->query_gate ? q : 0;
    return T * H * (2 * q + gates + 2 * kv) + T * T * q;
}

/* ---- forward --------------------------------------------------------------------------------- */

static wb_attention attention_args(const wb_gqa *g, const wb_gqa_weights *w, const wb_pass *pass,
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
                          .k = state ? wb_state_rows(state, WB_GQA_KEYS) : wb_activations(model, &g->k.out),
                          .v = state ? wb_state_rows(state, WB_GQA_VALUES) : wb_activations(model, &g->v.out),
                          .seq = pass->seq,
                          .pos = pass->pos,
                          .blocks = pass->blocks,
                          .max_blocks = pass->max_blocks,
                          .block_size = pass->block_size,
                          .one_a_sequence = pass->one_a_sequence,
                          .log_sums = g->log_sums.data,
                          .out = wb_activations(model, &g->attn)};
}

/* What Wo gets. */
static wb_rows gated_of(const wb_gqa *g) {
    return wb_activations(g->model, g->model->family->query_gate ? &g->gated : &g->attn);
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    wb_gqa *g = worker;
    const wb_gqa_weights *w = weights;
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size, dh = model->config.head_dim;
    const wb_rows attn = wb_activations(model, &g->attn);
    WB_TRY(wb_gqa_project(g, w, pass, state, x));
    const wb_attention args = attention_args(g, w, pass, state);
    WB_TRY(dev->attention_forward(dev, &args, attn));
    if (model->family->query_gate)
        WB_TRY(dev->sigmoid_gate_forward(dev, T * model->config.n_heads, dh, attn, wb_gqa_gates(g), 2 * dh,
                                         gated_of(g)));
    const wb_matmul o = wb_matmul_forward(T, gated_of(g), wb_model_weight(model, w->o), y);
    WB_TRY(dev->matmul(dev, 1, &o));
    return w->o_bias >= 0 ? dev->bias_forward(dev, T, H, wb_model_vector(model, w->o_bias), y) : WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* dattn from dy, then dq, dk and dv from it. The gradients of gates take their place. */
static wb_status attention_backward(wb_gqa *g, const wb_gqa_weights *w, const wb_pass *pass, wb_rows dy,
                                    float *const *grads) {
    const wb_model *model = g->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, H = model->config.hidden_size, dh = model->config.head_dim,
                  q_width = wb_gqa_width(model, wb_gqa_q(model, w)),
                  kv_width = wb_gqa_width(model, wb_gqa_k(model, w));
    const size_t kv_bytes = (size_t)(T * kv_width) * wb_dtype_size(model->activations);
    const wb_rows dattn = wb_activations(model, &g->dattn);

    if (w->o_bias >= 0) WB_TRY(dev->bias_backward(dev, T, H, dy, grads[w->o_bias]));
    const wb_matmul o[] = {wb_matmul_wgrad(T, q_width, H, dy, gated_of(g), grads[w->o]),
                           wb_matmul_dgrad(T, dy, wb_model_weight(model, w->o), dattn, false)};
    WB_TRY(dev->matmul(dev, 2, o));
    if (model->family->query_gate)
        WB_TRY(dev->sigmoid_gate_backward(dev, T * model->config.n_heads, dh, wb_activations(model, &g->attn),
                                          wb_gqa_gates(g), 2 * dh, dattn, dattn, wb_gqa_gates(g)));
    const wb_attention args = attention_args(g, w, pass, NULL);
    WB_TRY(dev->zero(dev, g->dk.data, kv_bytes));
    WB_TRY(dev->zero(dev, g->dv.data, kv_bytes));
    return dev->attention_backward(dev, &args, dattn, wb_activations(model, &g->dq),
                                   wb_activations(model, &g->dk), wb_activations(model, &g->dv),
                                   w->sinks < 0 ? NULL : grads[w->sinks]);
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx) {
    wb_gqa *g = worker;
    const wb_gqa_weights *w = weights;
    const wb_model *model = g->model;
    WB_TRY(attention_backward(g, w, pass, dy, grads));
    const wb_rows dq = wb_activations(model, &g->dq), dk = wb_activations(model, &g->dk),
                  dv = wb_activations(model, &g->dv);
    WB_TRY(wb_gqa_heads_backward(g, wb_gqa_q(model, w), pass, &g->q, x, grads, dq, false, dx));
    WB_TRY(wb_gqa_heads_backward(g, wb_gqa_k(model, w), pass, &g->k, x, grads, dk, true, dx));
    return wb_gqa_heads_backward(g, wb_gqa_v(model, w), pass, &g->v, x, grads, dv, true, dx);
}

const wb_layer_kind wb_layer_attention_gqa = {
    .weights_size = sizeof(wb_gqa_weights),
    .worker_size = sizeof(wb_gqa),
    .declare = declare,
    .state = state_shape,
    .layout = layout,
    .work = work,
    .forward = forward,
    .backward = backward,
};
