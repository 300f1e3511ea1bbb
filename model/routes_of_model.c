/* routes_of_model.c - what the records of a model say about it: its MoE layers, E, K and the fingerprint. */
#include "config.h"
#include "model_weights.h"
#include "wb_check.h"
#include "wb_hash.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* Whether the router type looks at wb_router.normalize. */
static bool looks_at_normalize(wb_router_type type) {
    return type == WB_ROUTER_SIGMOID || type == WB_ROUTER_SQRTSOFTPLUS || type == WB_ROUTER_HASH;
}

/* Text that grows; what does not fit is cut, which sizes here do not bring about: three bytes of K for
 * each of 1024 layers, six masks of 272 bytes, and less than 2048 bytes of numbers. */
typedef struct text {
    char text[8192];
    size_t used;
} text;

__attribute__((format(printf, 2, 3))) static void add(text *t, const char *format, ...) {
    const size_t room = sizeof t->text - t->used;
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(t->text + t->used, room, format, args);
    va_end(args);
    if (n > 0) t->used += (size_t)n < room ? (size_t)n : room - 1;
}

static void add_mask(text *t, const char *name, const uint64_t *mask) {
    add(t, "\n%s", name);
    for (size_t i = 0; i < 16; i++) add(t, " %016" PRIx64, mask[i]);
}

/* Of models with hyper-connections, which have compressed attention too. */
static void add_compressed(const wb_config *c, text *t) {
    const wb_compressed_sizes *s = &c->compressed;
    if (c->hyper.n_streams == 0) return;
    add(t, "\nhyper %d %d %.9g", c->hyper.n_streams, c->hyper.iterations, (double)c->hyper.eps);
    add(t, "\ncompressed %d %d %d %d %d %d %d %d %.17g", s->q_rank, s->o_groups, s->o_rank, s->sparse_rate,
        s->heavy_rate, s->index_heads, s->index_dim, s->index_top_k, s->rope_theta);
    add_mask(t, "sparse", s->sparse_layer_mask);
    add_mask(t, "heavy", s->heavy_layer_mask);
    add_mask(t, "hash", c->hash_layer_mask);
}

/* Named only where they change a choice, a weight or the function: models without them keep their
 * fingerprints. */
static void add_options(const wb_config *c, text *t) {
    const wb_router *r = &c->router;
    const wb_rope_scaling *s = &c->rope_scaling;
    const wb_mla_sizes *m = &c->mla;
    const wb_delta_sizes *d = &c->delta;
    if (r->n_group > 1) add(t, "\ngroups %d %d", r->n_group, r->topk_group);
    if (r->normalize && looks_at_normalize(r->type)) add(t, "\nnormalized");
    if (c->shared_width > 0) add(t, "\nshared_width %d", c->shared_width);
    if (m->kv_rank > 0)
        add(t, "\nmla %d %d %d %d %d %d", m->kv_rank, m->q_rank, m->nope_dim, m->rope_dim, m->value_dim,
            m->interleaved);
    if (d->n_key_heads > 0) {
        add(t, "\ndelta %d %d %d %d %d", d->n_key_heads, d->n_value_heads, d->key_dim, d->value_dim,
            d->conv_width);
        for (size_t i = 0; i < 16; i++) add(t, " %016" PRIx64, d->layer_mask[i]);
    }
    if (c->rotary_dim > 0) add(t, "\nrotary_dim %d", c->rotary_dim);
    if (c->swiglu_limit > 0) add(t, "\nswiglu_limit %.9g", (double)c->swiglu_limit);
    if (c->n_weightless > 0) add(t, "\nweightless %d", c->n_weightless);
    for (int32_t l = 0, n = wb_config_n_moe(c); c->layer_top_k[0] > 0 && l < n; l++)
        add(t, l ? " %" PRIu32 : "\nlayer_top_k %" PRIu32, c->layer_top_k[l]);
    if (c->window > 0) {
        add(t, "\nwindow %d", c->window);
        for (size_t i = 0; i < 16; i++) add(t, " %016" PRIx64, c->window_layer_mask[i]);
    }
    add_compressed(c, t);
    if (s->type != WB_ROPE_PLAIN)
        add(t, "\nrope %d %.17g %.17g %.17g %d %.17g %.17g %.17g %d", (int)s->type, s->factor, s->beta_fast,
            s->beta_slow, s->original_positions, s->attention_factor, s->mscale, s->mscale_all_dim,
            s->truncate);
}

/* Everything that changes the function or the meaning of a route; nothing that a training step or a
 * machine changes (weights, dtype, max_positions). */
static void set_fingerprint(const wb_config *c, wb_route_model *routes) {
    text t = {.used = 0};
    const wb_router *r = &c->router;
    bool dense = routes->n_moe_layers < routes->num_hidden_layers;
    add(&t,
        "waybill model 1\nfamily %s\nhidden %d\nlayers %d\nheads %d %d %d\nexpert_width %d\n"
        "dense_width %d\nvocab %d\neps %.9g\nrope_theta %.17g\ntied %d\nbias %d\nqk_norm %d\n"
        "clip %.9g\nrouter %s\nexperts %d\ntop_k %d\nscale %.9g\nmoe_layers",
        routes->name, c->hidden_size, c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim, c->expert_width,
        dense ? c->dense_width : 0, c->vocab_size, (double)c->norm_eps, c->rope_theta, c->tie_word_embeddings,
        c->attention_bias, (int)c->qk_norm, (double)c->clip_qkv, routes->router, r->n_experts, r->top_k,
        (double)r->scale);
    for (size_t i = 0; i < 16; i++) add(&t, " %016" PRIx64, c->moe_layer_mask[i]);
    add_options(c, &t);
    wb_hash128_hex(t.text, t.used, routes->fingerprint);
}

void wb_config_describe_indexers(const wb_config *config, uint32_t *layers, wb_route_model *routes) {
    uint32_t n = 0;
    for (int32_t l = 0; l < config->n_layers; l++)
        if (wb_config_is_sparse(config, l)) layers[n++] = (uint32_t)l;
    if (n == 0) return;
    routes->n_indexer_layers = n;
    routes->indexer_k = (uint32_t)config->compressed.index_top_k;
    routes->indexer_rate = (uint32_t)config->compressed.sparse_rate;
    routes->indexer_layers = routes->indexer_source = layers;
}

/* moe_layers: [3 * n_layers], the second part for those of them that are hash-routed, the third for layers
 * with an indexer. */
static wb_status describe(const wb_config *config, const wb_family_rules *family, uint32_t *moe_layers,
                          wb_route_model *routes) {
    uint32_t *hash_layers = moe_layers + config->n_layers, n = 0, n_hash = 0;
    for (int32_t l = 0; l < config->n_layers; l++) {
        if (!wb_config_is_moe(config, l)) continue;
        if (wb_config_is_hash(config, l)) hash_layers[n_hash++] = n;
        moe_layers[n++] = (uint32_t)l;
    }
    snprintf(routes->name, sizeof routes->name, "%s", family->model_type);
    snprintf(routes->router, sizeof routes->router, "%s", wb_router_name(config->router.type));
    routes->num_hidden_layers = (uint32_t)config->n_layers;
    routes->n_moe_layers = n;
    routes->moe_layers = moe_layers;
    routes->n_hash_layers = n_hash;
    if (n_hash > 0) routes->hash_layers = hash_layers;
    routes->num_experts = (uint32_t)config->router.n_experts;
    routes->n_weightless = (uint32_t)config->n_weightless;
    if (config->layer_top_k[0] > 0) routes->layer_top_k = config->layer_top_k;
    routes->top_k = (uint32_t)config->router.top_k;
    wb_config_describe_indexers(config, hash_layers + config->n_layers, routes);
    set_fingerprint(config, routes);
    return wb_route_model_check(routes);
}

wb_status wb_model_describe_routes(wb_model *m) {
    uint32_t *moe_layers = NULL;
    WB_TRY(WB_OWN(&m->memory.host, moe_layers, 3 * (size_t)m->config.n_layers, "moe layers"));
    return describe(&m->config, m->family, moe_layers, &m->route_model);
}

wb_status wb_config_routes(const wb_config *config, uint32_t *moe_layers_out, wb_route_model *model_out) {
    wb_route_model routes = {0};
    WB_TRY(wb_config_check(config));
    WB_TRY(describe(config, wb_family_rules_of(config->family), moe_layers_out, &routes));
    *model_out = routes;
    return WB_OK;
}
