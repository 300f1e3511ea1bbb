/* architecture.c - what a model is built of: embedding, the family's layers, head; and the memory of all
 * weights. Refuses: values, files, where experts are (expert_placement.c). */
#include "layers/layer.h"
#include "registry.h"

/* ---- the walk -------------------------------------------------------------------------------- */

static void declare_part(wb_registry *registry, int32_t l, const wb_part *part) {
    part->kind->declare(registry, l, part->weights);
}

static void declare_all(wb_registry *registry) {
    wb_model *m = registry->model;
    const int64_t H = m->config.hidden_size, V = m->config.vocab_size;
    m->embed = wb_registry_matrix(registry, -1, "model.embed_tokens.weight", V, H);
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        wb_layer *layer = &m->layers[l];
        layer->mixer_norm = wb_registry_vector(registry, l, "input_layernorm.weight", H);
        declare_part(registry, l, &layer->mixer);
        layer->feed_forward_norm = wb_registry_vector(registry, l, "post_attention_layernorm.weight", H);
        declare_part(registry, l, &layer->feed_forward);
    }
    m->final_norm = wb_registry_vector(registry, -1, "model.norm.weight", H);
    m->lm_head =
        m->config.tie_word_embeddings ? m->embed : wb_registry_matrix(registry, -1, "lm_head.weight", V, H);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static wb_status make_part(wb_model *m, const wb_layer_kind *kind, wb_part *part) {
    part->kind = kind;
    return WB_OWN_ALLOC(&m->memory.host, part->weights, 1, kind->weights_size, "layers");
}

static wb_status make_layers(wb_model *m) {
    WB_TRY(WB_OWN(&m->memory.host, m->layers, (size_t)m->config.n_layers, "layers"));
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        const wb_layer_parts parts = m->family->layer(&m->config, l);
        WB_TRY(make_part(m, parts.mixer, &m->layers[l].mixer));
        WB_TRY(make_part(m, parts.feed_forward, &m->layers[l].feed_forward));
    }
    return WB_OK;
}

wb_status wb_architecture_build(wb_model *m) {
    WB_TRY(make_layers(m));
    wb_registry count = {.model = m, .fill = false};
    declare_all(&count);
    WB_TRY(WB_OWN(&m->memory.host, m->params, (size_t)count.n_params, "params"));
    WB_TRY(WB_OWN(&m->memory.host, m->tensors, (size_t)count.n_tensors, "tensors"));
    wb_registry fill = {.model = m, .fill = true};
    WB_TRY(WB_OWN_ALLOC(&m->memory.host, fill.names, (size_t)count.n_tensors, WB_TENSOR_NAME_BYTES,
                        "tensor names"));
    m->n_params = count.n_params;
    m->n_tensors = count.n_tensors;
    declare_all(&fill);
    return WB_OK;
}

void wb_architecture_layout(wb_model *m, wb_arena *arena) {
    for (int32_t i = 0; i < m->n_params; i++) {
        wb_param *param = &m->params[i];
        wb_place(arena, &param->memory, param->n, 1, wb_dtype_size(param->dtype));
    }
}
