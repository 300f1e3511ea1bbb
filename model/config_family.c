/* config_family.c - a configuration from its sizes: the rest as the family has it where keys are absent.
 * Refuses: sizes. */
#include "config.h"
#include "wb_check.h"

static void set_layers(wb_config *c, const wb_family_rules *rules) {
    const int32_t first = rules->moe_layers == WB_MOE_FROM_LAYER ? rules->first_dense : 0;
    const bool all = rules->windows == WB_WINDOW_ALL_KINDS,
               alternate = rules->windows == WB_WINDOW_LAYER_TYPES;
    for (int32_t l = 0; l < c->n_layers; l++) {
        const uint64_t bit = UINT64_C(1) << (l % 64);
        if (l >= first) c->moe_layer_mask[l / 64] |= bit;
        if (all || (alternate && l % 2 == 0)) c->window_layer_mask[l / 64] |= bit;
    }
    c->window = all || alternate ? rules->window : 0;
}

/* Half of a head is rotated, and a latent is as wide as two heads. */
static void set_mla(wb_config *c) {
    const int32_t rope = c->head_dim / 4 * 2;
    c->n_kv_heads = c->n_heads;
    if (c->mla.kv_rank == 0)
        c->mla = (wb_mla_sizes){.kv_rank = 2 * c->head_dim,
                                .nope_dim = c->head_dim - rope,
                                .rope_dim = rope,
                                .value_dim = c->head_dim,
                                .interleaved = true};
    c->head_dim = c->mla.nope_dim + c->mla.rope_dim;
}

/* Heads as those of attention, and every fourth layer has that. */
static void set_delta(wb_config *c) {
    if (c->delta.n_key_heads > 0) return;
    c->delta = (wb_delta_sizes){.n_key_heads = c->n_kv_heads,
                                .n_value_heads = c->n_heads,
                                .key_dim = c->head_dim,
                                .value_dim = c->head_dim,
                                .conv_width = 4};
    wb_config_set_delta_layers(WB_DELTA_INTERVAL, c);
}

/* The family's groups, where the experts can be shared out among them and those that stay are enough to
 * choose from; else one group. */
static void set_groups(wb_router *router, const wb_family_rules *rules) {
    router->n_group = router->topk_group = 1;
    router->scale = 1;
    if (rules->router_scale == 0) return;
    router->scale = (float)rules->router_scale;
    const int32_t n = rules->n_group;
    if (router->n_experts % n != 0 || router->top_k > router->n_experts / n * rules->topk_group) return;
    router->n_group = n;
    router->topk_group = rules->topk_group;
}

/* The family's rates and layers; other sizes go by a head's width. */
static void set_compressed(wb_config *c) {
    wb_compressed_sizes *s = &c->compressed;
    c->n_kv_heads = 1;
    if (c->rotary_dim < 2) c->rotary_dim = 2;
    if (s->q_rank == 0)
        *s = (wb_compressed_sizes){.q_rank = 2 * c->head_dim,
                                   .o_groups = c->n_heads % 2 == 0 ? 2 : 1,
                                   .o_rank = c->head_dim,
                                   .index_heads = c->n_heads,
                                   .index_dim = c->head_dim,
                                   .index_top_k = 512};
    if (c->hyper.n_streams == 0) c->hyper = (wb_hyper_sizes){.n_streams = 4, .iterations = 20, .eps = 1e-6F};
    wb_config_usual_compressed(c);
}

wb_status wb_config_complete(wb_config *config) {
    const wb_family_rules *rules = wb_family_rules_of(config->family);
    if (!rules)
        return wb_fail(WB_INVALID_ARGUMENT, "family: expected 0..%d, found %d", WB_N_FAMILIES - 1,
                       (int)config->family);
    WB_TRY(wb_config_in_range("num_hidden_layers", config->n_layers, 1, WB_MAX_LAYERS));
    wb_config c = {.family = config->family,
                   .hidden_size = config->hidden_size,
                   .n_layers = config->n_layers,
                   .n_heads = config->n_heads,
                   .n_kv_heads = config->n_kv_heads,
                   .head_dim = config->head_dim,
                   .expert_width = config->expert_width,
                   .dense_width = config->dense_width,
                   .vocab_size = config->vocab_size,
                   .max_positions = config->max_positions,
                   .norm_eps = (float)rules->norm_eps,
                   .rope_theta = rules->rope_theta,
                   .tie_word_embeddings = rules->tie_word_embeddings,
                   .attention_bias = rules->attention_bias,
                   .qk_norm = rules->qk_norm,
                   .router = {.type = rules->router_types[rules->norm_topk_prob],
                              .n_experts = config->router.n_experts,
                              .top_k = config->router.top_k,
                              .normalize = rules->norm_topk_prob},
                   .shared_width = rules->n_shared * config->expert_width,
                   .rotary_dim = (int32_t)(config->head_dim * rules->rotary_factor) / 2 * 2,
                   .rope_scaling = rules->rope_scaling,
                   .swiglu_limit = rules->swiglu_limit,
                   .n_mtp_layers = config->n_mtp_layers,
                   .mla = config->mla,
                   .delta = config->delta,
                   .compressed = config->compressed,
                   .hyper = config->hyper};
    if (rules->latent_attention) set_mla(&c);
    if (rules->delta_net) set_delta(&c);
    if (rules->compressed) set_compressed(&c);
    set_groups(&c.router, rules);
    set_layers(&c, rules);
    *config = c;
    return WB_OK;
}
