/* config_check.c - whether a configuration can be a model: sizes that fit and divide, values that the forward
 * implements. Refuses: anything else, by key, with what was expected. */
#include "config.h"
#include "wb_check.h"

static wb_status check_sizes(const wb_config *c) {
    WB_TRY(wb_config_in_range("hidden_size", c->hidden_size, 1, INT32_MAX));
    WB_TRY(wb_config_in_range("num_hidden_layers", c->n_layers, 1, WB_MAX_LAYERS));
    WB_TRY(wb_config_in_range("num_nextn_predict_layers", c->n_mtp_layers, 0, WB_MAX_LAYERS));
    WB_TRY(wb_config_in_range("num_attention_heads", c->n_heads, 1, INT32_MAX));
    WB_TRY(wb_config_in_range("num_key_value_heads", c->n_kv_heads, 1, c->n_heads));
    if (c->n_heads % c->n_kv_heads != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "num_attention_heads: expected a multiple of num_key_value_heads %d, found %d",
                       c->n_kv_heads, c->n_heads);
    WB_TRY(wb_config_in_range("head_dim", c->head_dim, 2, INT32_MAX / c->n_heads));
    if (c->head_dim % 2 != 0 && c->mla.kv_rank == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "head_dim: expected an even number, found %d", c->head_dim);
    WB_TRY(wb_config_in_range("expert width", c->expert_width, 1, INT32_MAX / 2));
    WB_TRY(wb_config_in_range("vocab_size", c->vocab_size, 1, INT32_MAX));
    return wb_config_in_range("max_position_embeddings", c->max_positions, 1, INT32_MAX);
}

static wb_status check_layers(const wb_config *c, const wb_family_rules *rules) {
    for (int32_t l = c->n_layers; l < WB_MAX_LAYERS; l++)
        if (wb_config_is_moe(c, l))
            return wb_fail(WB_INVALID_ARGUMENT, "moe layers: expected < %d, found layer %d", c->n_layers, l);
    const int32_t n_moe = wb_config_n_moe(c);
    if (n_moe == 0) return wb_fail(WB_INVALID_ARGUMENT, "moe layers: expected at least one, found none");
    WB_TRY(wb_config_check_moe_layers(c, rules));
    WB_TRY(wb_config_check_windows(c, rules));
    if ((rules->swiglu_limit > 0) != (c->swiglu_limit > 0))
        return wb_fail(WB_INVALID_ARGUMENT, "swiglu_limit: expected %s for %s, found %g",
                       rules->swiglu_limit > 0 ? "a number above 0" : "0", rules->model_type,
                       (double)c->swiglu_limit);
    if (rules->check) WB_TRY(rules->check(c));
    WB_TRY(wb_config_in_range("shared experts: width", c->shared_width, 0, INT32_MAX / 2));
    const int32_t min = n_moe < c->n_layers ? 1 : 0; /* a dense layer has a width */
    return wb_config_in_range("intermediate_size", c->dense_width, min, INT32_MAX / 2);
}

/* A table has router.top_k ids for each token. */
static wb_status check_hash_top_k(const wb_config *c) {
    for (int32_t l = 0, moe = 0; l < c->n_layers; l++) {
        if (wb_config_is_hash(c, l))
            WB_TRY(wb_config_in_range("layer_top_k of a hash-routed layer", c->layer_top_k[moe],
                                      c->router.top_k, c->router.top_k));
        moe += wb_config_is_moe(c, l);
    }
    return WB_OK;
}

/* A K for each MoE layer, or none for any. */
static wb_status check_layer_top_k(const wb_config *c) {
    const int32_t n = wb_config_n_moe(c);
    int64_t most = 0;
    if (c->layer_top_k[0] == 0) return WB_OK;
    for (int32_t l = 0; l < n; l++) {
        WB_TRY(wb_config_in_range("layer_top_k", c->layer_top_k[l], 1, c->router.top_k));
        if (c->layer_top_k[l] > most) most = c->layer_top_k[l];
    }
    WB_TRY(check_hash_top_k(c));
    return wb_config_in_range("layer_top_k, the largest", most, c->router.top_k, c->router.top_k);
}

static wb_status check_router(const wb_config *c, const wb_family_rules *rules) {
    const wb_router *r = &c->router;
    WB_TRY(wb_config_in_range("num_experts", r->n_experts, 1, 65536));
    WB_TRY(wb_config_in_range("num_experts_per_tok", r->top_k, 1, r->n_experts < 64 ? r->n_experts : 64));
    WB_TRY(wb_config_in_range("experts without weights", c->n_weightless, 0, r->n_experts - 1));
    WB_TRY(check_layer_top_k(c));
    const wb_router_type *types = rules->router_types;
    if (r->type != types[0] && r->type != types[1])
        return wb_fail(WB_UNSUPPORTED, "router: expected %s or %s, found type %d", wb_router_name(types[0]),
                       wb_router_name(types[1]), (int)r->type);
    if (rules->router_scale == 0 && (r->n_group > 1 || r->scale != 1.0f))
        return wb_fail(WB_UNSUPPORTED, "router: expected no groups and scale 1, found %d groups and scale %g",
                       r->n_group, (double)r->scale);
    return wb_router_check(r);
}

/* Element counts are products of up to four 31-bit factors: exact enough as doubles to keep them below 2^60,
 * so that no product of sizes overflows anywhere else. */
static wb_status check_total(const wb_config *c) {
    double H = c->hidden_size, q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    double moe = (double)c->router.n_experts * H + (double)wb_config_weighted(c) * 3 * H * c->expert_width;
    double dense = 3 * H * ((double)c->dense_width + c->shared_width);
    double latent = ((double)c->mla.kv_rank + c->mla.rope_dim) * (H + 2.0 * c->n_heads);
    latent += (double)c->mla.q_rank * (H + q) +
              (double)c->mla.kv_rank * (2 * q + c->n_heads * (double)c->mla.value_dim);
    const wb_delta_sizes *d = &c->delta;
    double delta = (H + d->conv_width) * (double)(wb_delta_channels(d) + 2 * wb_delta_value_width(d));
    const wb_compressed_sizes *s = &c->compressed;
    const double entry = 4.0 * (c->head_dim + s->index_dim), rates = (double)s->sparse_rate + s->heavy_rate;
    double compressed =
        (double)s->q_rank * (H + q + (double)s->index_heads * s->index_dim) + entry * (H + rates);
    compressed += s->o_rank * (q + H * s->o_groups) + H * s->index_heads;
    const double streams = c->hyper.n_streams, hyper = 2 * (streams + 2) * streams * (streams * H + 2);
    const double tables = (double)c->vocab_size * c->router.top_k;
    double layer = compressed + delta + hyper + tables + 3 * H * q + 2 * H * kv + 4 * (H + q + kv) + moe +
                   dense + latent;
    double all = layer * ((double)c->n_layers + c->n_mtp_layers) + 2 * H * c->vocab_size + H +
                 (double)c->max_positions * c->head_dim;
    if (all < 0x1p60) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "sizes: expected fewer than 2^60 elements in all, found %g", all);
}

static wb_status check_heads_by(const wb_config *c, const wb_family_rules *rules) {
    const bool may_vary = rules->qk_norm_varies && c->qk_norm == WB_QK_NORM_PER_HEAD;
    if (c->qk_norm != rules->qk_norm && !may_vary)
        return wb_fail(WB_INVALID_ARGUMENT, "qk_norm: expected %d for %s, found %d", (int)rules->qk_norm,
                       rules->model_type, (int)c->qk_norm);
    /* A norm over all heads is hidden_size wide in every checkpoint of this kind. */
    if (c->qk_norm == WB_QK_NORM_WHOLE && (int64_t)c->n_heads * c->head_dim != c->hidden_size)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "head_dim: expected hidden_size %d / num_attention_heads %d for %s, found %d",
                       c->hidden_size, c->n_heads, rules->model_type, c->head_dim);
    if (c->clip_qkv == 0.0f) return WB_OK;
    WB_TRY(wb_config_positive("clip_qkv", (double)c->clip_qkv));
    if (!rules->clips)
        return wb_fail(WB_INVALID_ARGUMENT, "clip_qkv: expected none for %s, found %g", rules->model_type,
                       (double)c->clip_qkv);
    return WB_OK;
}

wb_status wb_config_check_by(const wb_config *c, const wb_family_rules *rules) {
    WB_TRY(check_sizes(c));
    WB_TRY(wb_config_positive("rms_norm_eps", (double)c->norm_eps));
    WB_TRY(wb_config_check_rope(c, rules));
    WB_TRY(wb_config_check_mla(c, rules));
    WB_TRY(wb_config_check_delta(c, rules));
    WB_TRY(wb_config_check_compressed(c, rules));
    WB_TRY(check_heads_by(c, rules));
    WB_TRY(check_layers(c, rules));
    WB_TRY(check_router(c, rules));
    return check_total(c);
}

wb_status wb_config_check(const wb_config *config) {
    const wb_family_rules *rules = wb_family_rules_of(config->family);
    if (!rules)
        return wb_fail(WB_INVALID_ARGUMENT, "family: expected 0..%d, found %d", WB_N_FAMILIES - 1,
                       (int)config->family);
    return wb_config_check_by(config, rules);
}
