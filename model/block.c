/* block.c - one layer: attention, then a dense or MoE feed-forward part, each on the residual stream.
 *
 * Owns: the order of steps inside a layer, forward and backward, the same for inference and training.
 * Refuses: which tokens, which memory holds the keys (wb_block_tokens, wb_kv_pool), experts (moe.c).
 *
 *   mid = x + Wo attention(rope(clamp(norm(Wq h))), ...)   with h = norm(x)
 *   y = mid + mlp(norm(mid)) */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "forward_internal.h"
#include "wb_memory.h"

/* ---- workspace ----------------------------------------------------------------------------------- */

wb_status wb_block_open(wb_model *model, wb_workspace *memory, wb_block *block) {
    memset(block, 0, sizeof *block);
    block->model = model;
    block->memory = memory;
    return wb_moe_open(model, memory, &block->moe);
}

/* ---- q, k and v ---------------------------------------------------------------------------------- */

/* What one of q, k, v goes through. Indices into wb_model.params, -1: none. */
typedef struct heads_spec {
    int32_t weight, bias, norm, n_heads;
    bool rotate;
} heads_spec;

static heads_spec q_spec(const wb_model *model, const wb_layer *layer) {
    return (heads_spec){layer->q, layer->q_bias, layer->q_norm, model->config.n_heads, true};
}
static heads_spec k_spec(const wb_model *model, const wb_layer *layer) {
    return (heads_spec){layer->k, layer->k_bias, layer->k_norm, model->config.n_kv_heads, true};
}
static heads_spec v_spec(const wb_model *model, const wb_layer *layer) {
    return (heads_spec){layer->v, layer->v_bias, -1, model->config.n_kv_heads, false};
}

/* Where each step's result lies; a step that is absent has the memory of the next. */
typedef struct stages {
    float *projected, *normed, *out;
} stages;

static stages stages_of(const wb_model *model, heads_spec spec, const wb_heads *heads) {
    stages s;
    s.out = heads->out.data;
    s.normed = model->config.clip_qkv > 0 ? heads->normed.data : s.out;
    s.projected = spec.norm >= 0 ? heads->projected.data : s.normed;
    return s;
}

static int64_t width_of(const wb_model *model, heads_spec spec) {
    return (int64_t)spec.n_heads * model->config.head_dim;
}

static wb_status heads_reserve(wb_block *block, heads_spec spec, int64_t T, wb_heads *heads) {
    const wb_model *model = block->model;
    const int64_t width = width_of(model, spec);
    WB_TRY(wb_reserve(block->memory, &heads->out, T, width, sizeof(float)));
    if (model->config.clip_qkv > 0)
        WB_TRY(wb_reserve(block->memory, &heads->normed, T, width, sizeof(float)));
    if (spec.norm >= 0) WB_TRY(wb_reserve(block->memory, &heads->projected, T, width, sizeof(float)));
    return WB_OK;
}

static wb_matmul heads_projection(const wb_model *model, heads_spec spec, int64_t T, const float *x,
                                  wb_heads *heads) {
    return wb_matmul_forward(T, model->config.hidden_size, width_of(model, spec), x,
                             wb_param_data(model, spec.weight), model->params[spec.weight].dtype,
                             stages_of(model, spec, heads).projected);
}

/* The rows that the query/key norm works on: a head each, or a token each. */
static int64_t norm_width(const wb_model *model, heads_spec spec) {
    return model->config.qk_norm == WB_QK_NORM_PER_HEAD ? model->config.head_dim : width_of(model, spec);
}

static wb_status heads_forward(const wb_model *model, heads_spec spec, const wb_block_tokens *tokens,
                               wb_heads *heads) {
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, heads);
    const int64_t width = width_of(model, spec), n = tokens->T * width;
    if (spec.bias >= 0)
        WB_TRY(dev->bias_forward(dev, tokens->T, width, wb_param_data(model, spec.bias), s.projected));
    if (spec.norm >= 0) {
        const int64_t norm = norm_width(model, spec);
        WB_TRY(dev->rmsnorm_forward(dev, n / norm, norm, s.projected, wb_param_data(model, spec.norm),
                                    config->norm_eps, s.normed));
    }
    if (config->clip_qkv > 0) {
        WB_TRY(dev->copy(dev, s.out, s.normed, (size_t)n * sizeof(float)));
        WB_TRY(dev->clamp(dev, n, config->clip_qkv, s.out));
    }
    if (!spec.rotate) return WB_OK;
    return dev->rope(dev, tokens->T, spec.n_heads, config->head_dim, config->head_dim, tokens->pos,
                     model->cos_table, model->sin_table, false, s.out);
}

/* dout: in, of the result; out, of the projection. Then dx[T,H] (=, or += with `accumulate`). */
static wb_status heads_backward(const wb_model *model, heads_spec spec, const wb_block_tokens *tokens,
                                const wb_heads *heads, const float *x, float *const *grads, float *dout,
                                bool accumulate, float *dx) {
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const stages s = stages_of(model, spec, heads);
    const int64_t T = tokens->T, H = config->hidden_size, width = width_of(model, spec), n = T * width;
    if (spec.rotate)
        WB_TRY(dev->rope(dev, T, spec.n_heads, config->head_dim, config->head_dim, tokens->pos,
                         model->cos_table, model->sin_table, true, dout));
    if (config->clip_qkv > 0) WB_TRY(dev->clamp_backward(dev, n, config->clip_qkv, s.normed, dout));
    if (spec.norm >= 0) {
        const int64_t norm = norm_width(model, spec);
        WB_TRY(dev->rmsnorm_backward(dev, n / norm, norm, s.projected, wb_param_data(model, spec.norm),
                                     config->norm_eps, dout, dout, grads[spec.norm]));
    }
    if (spec.bias >= 0) WB_TRY(dev->bias_backward(dev, T, width, dout, grads[spec.bias]));
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, width, dout, x, grads[spec.weight]),
                              wb_matmul_dgrad(T, H, width, dout, wb_param_data(model, spec.weight),
                                              model->params[spec.weight].dtype, dx, accumulate)};
    return dev->matmul(dev, 2, list);
}

/* ---- attention ----------------------------------------------------------------------------------- */

static wb_attention attention_args(const wb_block *block, const wb_block_tokens *tokens,
                                   const wb_kv_pool *pool) {
    const wb_config *config = &block->model->config;
    return (wb_attention){.T = tokens->T,
                          .n_heads = config->n_heads,
                          .n_kv_heads = config->n_kv_heads,
                          .head_dim = config->head_dim,
                          .scale = (float)(1.0 / sqrt((double)config->head_dim)),
                          .q = block->q.out.data,
                          .k = pool != NULL ? pool->k : block->k.out.data,
                          .v = pool != NULL ? pool->v : block->v.out.data,
                          .kv_dtype = pool != NULL ? pool->dtype : WB_F32,
                          .seq = tokens->seq,
                          .pos = tokens->pos,
                          .blocks = tokens->blocks,
                          .max_blocks = tokens->max_blocks,
                          .block_size = tokens->block_size};
}

/* block->mid := x + attention part. */
static wb_status attention_forward(wb_block *block, const wb_layer *layer, const wb_block_tokens *tokens,
                                   const wb_kv_pool *pool, const float *x) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const int64_t T = tokens->T, H = config->hidden_size;
    const heads_spec q = q_spec(model, layer), k = k_spec(model, layer), v = v_spec(model, layer);
    WB_TRY(wb_reserve(block->memory, &block->attn_norm, T, H, sizeof(float)));
    WB_TRY(wb_reserve(block->memory, &block->mid, T, H, sizeof(float)));
    WB_TRY(wb_reserve(block->memory, &block->attn, T, width_of(model, q), sizeof(float)));
    WB_TRY(heads_reserve(block, q, T, &block->q));
    WB_TRY(heads_reserve(block, k, T, &block->k));
    WB_TRY(heads_reserve(block, v, T, &block->v));

    const float *h = block->attn_norm.data;
    WB_TRY(dev->rmsnorm_forward(dev, T, H, x, wb_param_data(model, layer->input_norm), config->norm_eps,
                                block->attn_norm.data));
    const wb_matmul list[] = {heads_projection(model, q, T, h, &block->q),
                              heads_projection(model, k, T, h, &block->k),
                              heads_projection(model, v, T, h, &block->v)};
    WB_TRY(dev->matmul(dev, 3, list));
    WB_TRY(heads_forward(model, q, tokens, &block->q));
    WB_TRY(heads_forward(model, k, tokens, &block->k));
    WB_TRY(heads_forward(model, v, tokens, &block->v));
    if (pool != NULL) {
        WB_TRY(
            dev->kv_write(dev, T, width_of(model, k), block->k.out.data, pool->rows, pool->k, pool->dtype));
        WB_TRY(
            dev->kv_write(dev, T, width_of(model, v), block->v.out.data, pool->rows, pool->v, pool->dtype));
    }
    const wb_attention args = attention_args(block, tokens, pool);
    WB_TRY(dev->attention_forward(dev, &args, block->attn.data));

    float *mid = block->mid.data;
    const wb_matmul o = wb_matmul_forward(T, width_of(model, q), H, block->attn.data,
                                          wb_param_data(model, layer->o), model->params[layer->o].dtype, mid);
    WB_TRY(dev->matmul(dev, 1, &o));
    if (layer->o_bias >= 0) WB_TRY(dev->bias_forward(dev, T, H, wb_param_data(model, layer->o_bias), mid));
    return dev->add(dev, T * H, x, mid);
}

/* dx[T,H] := gradient of x, from dmid; the residual included. Uses up block->dnorm. */
static wb_status attention_backward(wb_block *block, const wb_layer *layer, const wb_block_tokens *tokens,
                                    const float *x, const float *dmid, float *const *grads, float *dx) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const wb_config *config = &model->config;
    const int64_t T = tokens->T, H = config->hidden_size;
    const heads_spec q = q_spec(model, layer), k = k_spec(model, layer), v = v_spec(model, layer);
    const int64_t q_width = width_of(model, q), kv_width = width_of(model, k);
    const size_t kv_bytes = (size_t)(T * kv_width) * sizeof(float);
    WB_TRY(wb_reserve(block->memory, &block->dattn, T, q_width, sizeof(float)));
    WB_TRY(wb_reserve(block->memory, &block->dq, T, q_width, sizeof(float)));
    WB_TRY(wb_reserve(block->memory, &block->dk, T, kv_width, sizeof(float)));
    WB_TRY(wb_reserve(block->memory, &block->dv, T, kv_width, sizeof(float)));

    if (layer->o_bias >= 0) WB_TRY(dev->bias_backward(dev, T, H, dmid, grads[layer->o_bias]));
    const wb_matmul o[] = {wb_matmul_wgrad(T, q_width, H, dmid, block->attn.data, grads[layer->o]),
                           wb_matmul_dgrad(T, q_width, H, dmid, wb_param_data(model, layer->o),
                                           model->params[layer->o].dtype, block->dattn.data, false)};
    WB_TRY(dev->matmul(dev, 2, o));

    const wb_attention args = attention_args(block, tokens, NULL);
    WB_TRY(dev->zero(dev, block->dk.data, kv_bytes));
    WB_TRY(dev->zero(dev, block->dv.data, kv_bytes));
    WB_TRY(dev->attention_backward(dev, &args, block->dattn.data, block->dq.data, block->dk.data,
                                   block->dv.data));

    const float *h = block->attn_norm.data;
    float *dh = block->dnorm.data;
    WB_TRY(heads_backward(model, q, tokens, &block->q, h, grads, block->dq.data, false, dh));
    WB_TRY(heads_backward(model, k, tokens, &block->k, h, grads, block->dk.data, true, dh));
    WB_TRY(heads_backward(model, v, tokens, &block->v, h, grads, block->dv.data, true, dh));
    WB_TRY(dev->rmsnorm_backward(dev, T, H, x, wb_param_data(model, layer->input_norm), config->norm_eps, dh,
                                 dx, grads[layer->input_norm]));
    return dev->add(dev, T * H, dmid, dx);
}

/* ---- dense feed-forward -------------------------------------------------------------------------- */

static wb_status dense_forward(wb_block *block, const wb_layer *layer, int64_t T, const float *x, float *y) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size, width = model->config.dense_width;
    WB_TRY(wb_reserve(block->memory, &block->gate_up, T, 2 * width, sizeof(float)));
    WB_TRY(wb_reserve(block->memory, &block->act, T, width, sizeof(float)));
    const wb_matmul gate_up = wb_matmul_forward(T, H, 2 * width, x, wb_param_data(model, layer->gate_up),
                                                model->params[layer->gate_up].dtype, block->gate_up.data);
    WB_TRY(dev->matmul(dev, 1, &gate_up));
    WB_TRY(dev->swiglu_forward(dev, T, width, block->gate_up.data, block->act.data));
    const wb_matmul down = wb_matmul_forward(T, width, H, block->act.data, wb_param_data(model, layer->down),
                                             model->params[layer->down].dtype, y);
    return dev->matmul(dev, 1, &down);
}

static wb_status dense_backward(wb_block *block, const wb_layer *layer, int64_t T, const float *x,
                                const float *dy, float *const *grads, float *dx) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const int64_t H = model->config.hidden_size, width = model->config.dense_width;
    WB_TRY(wb_reserve(block->memory, &block->dact, T, width, sizeof(float)));
    const wb_matmul down[] = {wb_matmul_wgrad(T, width, H, dy, block->act.data, grads[layer->down]),
                              wb_matmul_dgrad(T, width, H, dy, wb_param_data(model, layer->down),
                                              model->params[layer->down].dtype, block->dact.data, false)};
    WB_TRY(dev->matmul(dev, 2, down));
    float *dgate_up = block->gate_up.data;
    WB_TRY(dev->swiglu_backward(dev, T, width, block->gate_up.data, block->dact.data, dgate_up));
    const wb_matmul gate_up[] = {wb_matmul_wgrad(T, H, 2 * width, dgate_up, x, grads[layer->gate_up]),
                                 wb_matmul_dgrad(T, H, 2 * width, dgate_up,
                                                 wb_param_data(model, layer->gate_up),
                                                 model->params[layer->gate_up].dtype, dx, false)};
    return dev->matmul(dev, 2, gate_up);
}

/* ---- the layer ----------------------------------------------------------------------------------- */

static wb_status block_forward(wb_block *block, const wb_layer *layer, const wb_block_tokens *tokens,
                               const wb_kv_pool *pool, const wb_routing *routing, bool follow, const float *x,
                               float *y) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const int64_t T = tokens->T, H = model->config.hidden_size;
    WB_TRY(attention_forward(block, layer, tokens, pool, x));
    WB_TRY(wb_reserve(block->memory, &block->mlp_norm, T, H, sizeof(float)));
    float *h = block->mlp_norm.data;
    WB_TRY(dev->rmsnorm_forward(dev, T, H, block->mid.data, wb_param_data(model, layer->post_norm),
                                model->config.norm_eps, h));
    if (layer->moe_index >= 0)
        WB_TRY(wb_moe_forward(&block->moe, layer, T, h, routing, follow, y));
    else
        WB_TRY(dense_forward(block, layer, T, h, y));
    return dev->add(dev, T * H, block->mid.data, y);
}

static wb_status block_backward(wb_block *block, const wb_layer *layer, const wb_block_tokens *tokens,
                                const wb_routing *routing, const float *x, float *const *grads, float *dx) {
    const wb_model *model = block->model;
    wb_device *dev = model->device;
    const int64_t T = tokens->T, H = model->config.hidden_size;
    WB_TRY(wb_reserve(block->memory, &block->dmid, T, H, sizeof(float)));
    WB_TRY(wb_reserve(block->memory, &block->dnorm, T, H, sizeof(float)));
    const float *h = block->mlp_norm.data;
    float *dh = block->dnorm.data, *dmid = block->dmid.data;
    if (layer->moe_index >= 0)
        WB_TRY(wb_moe_backward(&block->moe, layer, h, routing, dx, grads, dh));
    else
        WB_TRY(dense_backward(block, layer, T, h, dx, grads, dh));
    WB_TRY(dev->rmsnorm_backward(dev, T, H, block->mid.data, wb_param_data(model, layer->post_norm),
                                 model->config.norm_eps, dh, dmid, grads[layer->post_norm]));
    WB_TRY(dev->add(dev, T * H, dx, dmid));
    return attention_backward(block, layer, tokens, x, dmid, grads, dx);
}

wb_status wb_block_forward(wb_block *block, int32_t l, const wb_block_tokens *tokens, const wb_kv_pool *pool,
                           const wb_routing *routing, bool follow, const float *x, float *y) {
    const wb_status status =
        block_forward(block, &block->model->layers[l], tokens, pool, routing, follow, x, y);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "layer %d", l);
}

wb_status wb_block_backward(wb_block *block, int32_t l, const wb_block_tokens *tokens,
                            const wb_routing *routing, const float *x, float *const *grads, float *dx) {
    const wb_status status = block_backward(block, &block->model->layers[l], tokens, routing, x, grads, dx);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "backward of layer %d", l);
}
