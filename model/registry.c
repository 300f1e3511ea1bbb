/* registry.c - which tensors a checkpoint has, how they lie in this rank's storages, which rank holds
 * which expert. Refuses: memory of weights, files. */
#include "checkpoint.h"
#include "wb_memory.h"

#include <stdio.h>
#include <stdlib.h>

#define NAME_BYTES 72 /* "model.layers.1023.mlp.experts.65535.gate_proj.weight" is the longest */

/* The tensors in checkpoint order. The same walk counts (arrays are NULL) and fills. */
typedef struct walk {
    wb_model *model;
    bool fill;
    int32_t n_params, n_tensors;
} walk;

static int32_t add_param(walk *w, wb_dtype dtype, int64_t n, bool sharded) {
    if (w->fill) w->model->params[w->n_params] = (wb_param){NULL, dtype, n, sharded};
    return w->n_params++;
}

/* A tensor [rows, cols] of `param` from `offset`; cols 0: a vector [rows]. */
static void add_tensor(walk *w, int32_t layer, int32_t expert, const char *name, int64_t rows, int64_t cols,
                       int32_t param, int64_t offset) {
    int32_t i = w->n_tensors++;
    if (!w->fill) return;
    char *full = w->model->names + (size_t)i * NAME_BYTES;
    if (expert >= 0)
        snprintf(full, NAME_BYTES, "model.layers.%d.mlp.experts.%d.%s", layer, expert, name);
    else if (layer >= 0)
        snprintf(full, NAME_BYTES, "model.layers.%d.%s", layer, name);
    else
        snprintf(full, NAME_BYTES, "%s", name);
    w->model->tensors[i] = (wb_tensor){.name = full,
                                       .layer = layer,
                                       .expert = expert,
                                       .n_dims = cols > 0 ? 2 : 1,
                                       .shape = {rows, cols > 0 ? cols : 1},
                                       .n = rows * (cols > 0 ? cols : 1),
                                       .dtype = w->model->params[param].dtype,
                                       .data = NULL,
                                       .param = param,
                                       .offset = offset};
}

static int32_t add_matrix(walk *w, int32_t layer, const char *name, int64_t rows, int64_t cols) {
    int32_t param = add_param(w, w->model->dtype, rows * cols, false);
    add_tensor(w, layer, -1, name, rows, cols, param, 0);
    return param;
}

static int32_t add_vector(walk *w, int32_t layer, const char *name, int64_t n) {
    int32_t param = add_param(w, WB_F32, n, false);
    add_tensor(w, layer, -1, name, n, 0, param, 0);
    return param;
}

/* ---- a layer ------------------------------------------------------------------------------------- */

static void add_attention(walk *w, int32_t l, wb_layer *layer) {
    const wb_config *c = &w->model->config;
    int64_t H = c->hidden_size, q = (int64_t)c->n_heads * c->head_dim,
            kv = (int64_t)c->n_kv_heads * c->head_dim;
    layer->q_bias = layer->k_bias = layer->v_bias = layer->o_bias = -1;
    layer->q_norm = layer->k_norm = -1;
    layer->q = add_matrix(w, l, "self_attn.q_proj.weight", q, H);
    layer->k = add_matrix(w, l, "self_attn.k_proj.weight", kv, H);
    layer->v = add_matrix(w, l, "self_attn.v_proj.weight", kv, H);
    layer->o = add_matrix(w, l, "self_attn.o_proj.weight", H, q);
    if (c->attention_bias) {
        layer->q_bias = add_vector(w, l, "self_attn.q_proj.bias", q);
        layer->k_bias = add_vector(w, l, "self_attn.k_proj.bias", kv);
        layer->v_bias = add_vector(w, l, "self_attn.v_proj.bias", kv);
        layer->o_bias = add_vector(w, l, "self_attn.o_proj.bias", H);
    }
    if (c->qk_norm != WB_QK_NORM_NONE) {
        bool whole = c->qk_norm == WB_QK_NORM_WHOLE;
        layer->q_norm = add_vector(w, l, "self_attn.q_norm.weight", whole ? q : c->head_dim);
        layer->k_norm = add_vector(w, l, "self_attn.k_norm.weight", whole ? kv : c->head_dim);
    }
}

static void add_dense(walk *w, int32_t l, wb_layer *layer) {
    int64_t H = w->model->config.hidden_size, I = w->model->config.dense_width;
    layer->moe_index = layer->router = -1;
    layer->gate_up = add_param(w, w->model->dtype, 2 * I * H, false);
    add_tensor(w, l, -1, "mlp.gate_proj.weight", I, H, layer->gate_up, 0);
    add_tensor(w, l, -1, "mlp.up_proj.weight", I, H, layer->gate_up, I * H);
    layer->down = add_matrix(w, l, "mlp.down_proj.weight", H, I);
}

static void add_moe(walk *w, int32_t l, wb_layer *layer) {
    const wb_model *m = w->model;
    int64_t H = m->config.hidden_size, F = m->config.expert_width, local = m->n_local_experts;
    layer->router = add_matrix(w, l, "mlp.gate.weight", m->config.router.n_experts, H);
    layer->gate_up = add_param(w, m->dtype, local * 2 * F * H, true);
    layer->down = add_param(w, m->dtype, local * H * F, true);
    for (int32_t e = 0; e < m->config.router.n_experts; e++) {
        int64_t slot = m->expert_rank[e] == wb_comm_rank(m->comm) ? m->expert_slot[e] : 0;
        add_tensor(w, l, e, "gate_proj.weight", F, H, layer->gate_up, slot * 2 * F * H);
        add_tensor(w, l, e, "up_proj.weight", F, H, layer->gate_up, slot * 2 * F * H + F * H);
        add_tensor(w, l, e, "down_proj.weight", H, F, layer->down, slot * H * F);
    }
}

static void add_all(walk *w) {
    wb_model *m = w->model;
    int64_t H = m->config.hidden_size, V = m->config.vocab_size;
    int32_t moe_index = 0;
    m->embed = add_matrix(w, -1, "model.embed_tokens.weight", V, H);
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        wb_layer *layer = &m->layers[l];
        layer->input_norm = add_vector(w, l, "input_layernorm.weight", H);
        add_attention(w, l, layer);
        layer->post_norm = add_vector(w, l, "post_attention_layernorm.weight", H);
        if (wb_config_is_moe(&m->config, l)) {
            layer->moe_index = moe_index++;
            add_moe(w, l, layer);
        } else {
            add_dense(w, l, layer);
        }
    }
    m->final_norm = add_vector(w, -1, "model.norm.weight", H);
    m->lm_head = m->config.tie_word_embeddings ? m->embed : add_matrix(w, -1, "lm_head.weight", V, H);
}

/* ---- the whole ----------------------------------------------------------------------------------- */

/* Contiguous blocks: rank r has the experts [E r / R, E (r + 1) / R). */
static wb_status place_experts(wb_model *m) {
    int64_t E = m->config.router.n_experts, R = wb_comm_size(m->comm);
    WB_TRY(WB_NEW(m->expert_rank, (size_t)E, "expert ranks"));
    WB_TRY(WB_NEW(m->expert_slot, (size_t)E, "expert slots"));
    for (int64_t r = 0; r < R; r++) {
        int64_t first = E * r / R, end = E * (r + 1) / R;
        for (int64_t e = first; e < end; e++) {
            m->expert_rank[e] = (int32_t)r;
            m->expert_slot[e] = (int32_t)(e - first);
        }
        if (r == wb_comm_rank(m->comm)) {
            m->first_local_expert = (int32_t)first;
            m->n_local_experts = (int32_t)(end - first);
        }
    }
    return WB_OK;
}

wb_status wb_registry_build(wb_model *m) {
    WB_TRY(WB_NEW(m->layers, (size_t)m->config.n_layers, "layers"));
    WB_TRY(place_experts(m));
    walk count = {.model = m, .fill = false};
    add_all(&count);
    WB_TRY(WB_NEW(m->params, (size_t)count.n_params, "params"));
    m->n_params = count.n_params;
    WB_TRY(WB_NEW(m->tensors, (size_t)count.n_tensors, "tensors"));
    WB_TRY(WB_ALLOC(m->names, (size_t)count.n_tensors, NAME_BYTES, "tensor names"));
    m->n_tensors = count.n_tensors;
    walk fill = {.model = m, .fill = true};
    add_all(&fill);
    return WB_OK;
}

int32_t wb_model_n_tensors(const wb_model *model) {
    return model->n_tensors;
}

wb_tensor wb_model_tensor(const wb_model *model, int32_t i) {
    wb_tensor tensor = model->tensors[i];
    bool here = tensor.expert < 0 || model->expert_rank[tensor.expert] == wb_comm_rank(model->comm);
    if (here)
        tensor.data =
            (char *)model->params[tensor.param].data + (size_t)tensor.offset * wb_dtype_size(tensor.dtype);
    return tensor;
}
