/* op_sizes.c - see op_sizes.h. Refuses: what an op makes of its sizes. */
#include "op_sizes.h"
#include "config.h"
#include "model_dispatch.h"

/* Elements of the largest gradient, of whose squares an optimizer takes the sum. */
static int64_t largest_param(const wb_model *model) {
    int64_t n = 0;
    for (int32_t i = 0; i < model->n_params; i++)
        if (model->params[i].n > n) n = model->params[i].n;
    return n;
}

/* The widest heads of attention: as latents meet them, or as they are. */
static wb_attention heads_of(const wb_config *config) {
    const wb_mla_sizes *mla = &config->mla;
    if (mla->kv_rank == 0)
        return (wb_attention){
            .n_kv_heads = config->n_kv_heads, .head_dim = config->head_dim, .value_dim = config->head_dim};
    return (wb_attention){
        .n_kv_heads = 1, .head_dim = mla->kv_rank + mla->rope_dim, .value_dim = mla->kv_rank};
}

/* Of the rows of dense parts, and of mixers beside queries, keys and values of attention. */
static int64_t widest_of(const wb_model *model) {
    const wb_config *c = &model->config;
    const int64_t q = (int64_t)c->n_heads * c->head_dim,
                  rows[] = {c->dense_width, c->shared_width, model->family->query_gate ? 2 * q : 0,
                            wb_delta_channels(&c->delta) + wb_delta_value_width(&c->delta)};
    int64_t widest = 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i] > widest) widest = rows[i];
    return widest;
}

/* What a query of a model with compressed entries sees at most, of so many positions: a window, and all
 * entries of a heavy layer or those that an indexer chose. Such a model has no attention without entries. The
 * tokens of a call have most entries where a layer makes one of the fewest positions, of either kind. */
static void add_entries(const wb_config *c, int64_t keys, wb_op_sizes *most) {
    const wb_compressed_sizes *s = &c->compressed;
    if (s->q_rank == 0) return;
    const int32_t least_rate = s->sparse_rate < s->heavy_rate ? s->sparse_rate : s->heavy_rate;
    const int64_t window = c->window < keys ? c->window : keys, heavy = keys / s->heavy_rate,
                  sparse = keys / s->sparse_rate, chosen = sparse < s->index_top_k ? sparse : s->index_top_k;
    most->keys = 0;
    most->entry_keys = window + (heavy > chosen ? heavy : chosen);
    most->ranked_entries = sparse;
    most->call_entries = most->tokens / least_rate;
    most->index_heads = s->index_heads;
    most->index_dim = s->index_dim;
    most->compress_channels = 2 * (c->head_dim > s->index_dim ? c->head_dim : s->index_dim);
    most->n_streams = c->hyper.n_streams;
}

wb_op_sizes wb_largest_ops(const wb_model *model, const wb_sizes *sizes, int64_t keys, int64_t head_rows) {
    const wb_config *config = &model->config;
    const wb_attention heads = heads_of(config);
    const wb_delta_sizes *d = &config->delta;
    wb_op_sizes most = {.tokens = sizes->tokens,
                        .expert_rows = sizes->expert_rows,
                        .hidden = config->hidden_size,
                        .dense_width = widest_of(model),
                        .expert_width = config->expert_width,
                        .n_heads = config->n_heads,
                        .n_kv_heads = heads.n_kv_heads,
                        .head_dim = heads.head_dim,
                        .value_dim = heads.value_dim,
                        .keys = keys,
                        .delta = {d->n_key_heads, d->n_value_heads, d->key_dim, d->value_dim},
                        .router = config->router,
                        .n_sources = model->n_ranks,
                        .n_slots = wb_model_n_slots(model),
                        .n_groups = (int32_t)wb_model_local_slots(model),
                        .vocab_size = config->vocab_size,
                        .head_rows = head_rows,
                        .summed = sizes->backward ? largest_param(model) : 0,
                        .dtype = model->activations,
                        .backward = sizes->backward};
    add_entries(config, keys, &most);
    return most;
}
