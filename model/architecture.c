/* architecture.c - what a model is built of: embedding, the family's layers, head; what its MTP layers are
 * built of; and the memory of all weights. Refuses: values, files, where experts are (expert_placement.c). */
#include "config.h"
#include "layers/hyper.h"
#include "layers/layer.h"
#include "model_mtp.h"
#include "registry.h"

/* ---- the walk -------------------------------------------------------------------------------- */

static void declare_part(wb_registry *registry, int32_t l, const wb_part *part) {
    part->kind->declare(registry, l, part->weights);
}

static void declare_layer(wb_registry *registry, int32_t l) {
    wb_layer *layer = &registry->model->layers[l];
    const int64_t H = registry->model->config.hidden_size;
    const int32_t iterations = registry->model->config.hyper.iterations;
    layer->mixer_norm = wb_registry_vector(registry, l, "input_layernorm.weight", H);
    layer->mixer_hyper =
        wb_hyper_declare(registry, l, "attn_hc.fn", "attn_hc.base", "attn_hc.scale", iterations);
    declare_part(registry, l, &layer->mixer);
    layer->feed_forward_norm = wb_registry_vector(registry, l, "post_attention_layernorm.weight", H);
    layer->feed_forward_hyper =
        wb_hyper_declare(registry, l, "ffn_hc.fn", "ffn_hc.base", "ffn_hc.scale", iterations);
    declare_part(registry, l, &layer->feed_forward);
}

/* Each layer names embedding and head, which are the decoder's. */
static void declare_numbered_mtp(wb_registry *registry) {
    wb_model *m = registry->model;
    const int64_t H = m->config.hidden_size, V = m->config.vocab_size;
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        wb_mtp_layer *layer = &m->mtp_layers[l];
        wb_registry_tensor(registry, l, -1, "embed_tokens.weight", V, H, m->embed, 0);
        layer->enorm = wb_registry_vector(registry, l, "enorm.weight", H);
        layer->hnorm = wb_registry_vector(registry, l, "hnorm.weight", H);
        layer->eh_proj = wb_registry_matrix(registry, l, "eh_proj.weight", H, 2 * H);
        declare_layer(registry, l);
        layer->norm = wb_registry_vector(registry, l, "shared_head.norm.weight", H);
        wb_registry_tensor(registry, l, -1, "shared_head.head.weight", V, H, m->lm_head, 0);
    }
}

/* All layers have these. */
static void declare_named_mtp(wb_registry *registry) {
    wb_model *m = registry->model;
    const int64_t H = m->config.hidden_size;
    const wb_mtp_layer all = {.enorm =
                                  wb_registry_vector(registry, -1, "mtp.pre_fc_norm_embedding.weight", H),
                              .hnorm = wb_registry_vector(registry, -1, "mtp.pre_fc_norm_hidden.weight", H),
                              .eh_proj = wb_registry_matrix(registry, -1, "mtp.fc.weight", H, 2 * H),
                              .norm = wb_registry_vector(registry, -1, "mtp.norm.weight", H)};
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        m->mtp_layers[l] = all;
        declare_layer(registry, l);
    }
}

/* The norm before the head is the layer's, and the model's that of the layer that drafts (model_mtp.h). */
static void declare_mtp(wb_registry *registry) {
    wb_model *m = registry->model;
    m->embed = wb_registry_shared(registry, m->decoder->embed);
    m->lm_head = wb_registry_shared(registry, m->decoder->lm_head);
    if (m->family->own_mtp_names)
        declare_named_mtp(registry);
    else
        declare_numbered_mtp(registry);
    m->final_norm = m->mtp_layers[0].norm;
}

static void declare_decoder(wb_registry *registry) {
    wb_model *m = registry->model;
    const int64_t H = m->config.hidden_size, V = m->config.vocab_size;
    m->embed = wb_registry_matrix(registry, -1, "model.embed_tokens.weight", V, H);
    for (int32_t l = 0; l < m->config.n_layers; l++) declare_layer(registry, l);
    m->final_norm = wb_registry_vector(registry, -1, "model.norm.weight", H);
    m->end = wb_hyper_declare(registry, -1, "model.hc_head.hc_fn", "model.hc_head.hc_base",
                              "model.hc_head.hc_scale", 0);
    m->lm_head =
        m->config.tie_word_embeddings ? m->embed : wb_registry_linear(registry, -1, "lm_head.weight", V, H);
}

static void declare_all(wb_registry *registry) {
    if (registry->model->decoder)
        declare_mtp(registry);
    else
        declare_decoder(registry);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static wb_status make_part(wb_model *m, const wb_layer_kind *kind, wb_part *part) {
    part->kind = kind;
    return WB_OWN_ALLOC(&m->memory.host, part->weights, 1, kind->weights_size, "layers");
}

static wb_layer_parts parts_of(const wb_model *m, int32_t l) {
    const wb_family_rules *rules = m->family;
    if (rules->layer) return rules->layer(&m->config, l);
    return (wb_layer_parts){wb_config_has_delta(&m->config, l) ? &wb_layer_delta_net
                            : rules->latent_attention          ? &wb_layer_attention_mla
                                                               : &wb_layer_attention_gqa,
                            wb_config_is_moe(&m->config, l) ? &wb_layer_moe : &wb_layer_mlp};
}

static wb_status make_layers(wb_model *m) {
    WB_TRY(WB_OWN(&m->memory.host, m->layers, (size_t)m->config.n_layers, "layers"));
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        const wb_layer_parts parts = parts_of(m, l);
        WB_TRY(make_part(m, parts.mixer, &m->layers[l].mixer));
        WB_TRY(make_part(m, parts.feed_forward, &m->layers[l].feed_forward));
    }
    return WB_OK;
}

wb_status wb_architecture_build(wb_model *m) {
    WB_TRY(make_layers(m));
    if (m->decoder) WB_TRY(WB_OWN(&m->memory.host, m->mtp_layers, (size_t)m->config.n_layers, "MTP layers"));
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
        if (param->shared)
            param->memory = param->shared->memory;
        else
            wb_place(arena, &param->memory, param->n, 1, wb_dtype_size(param->dtype));
    }
}
