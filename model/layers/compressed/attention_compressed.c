/* attention_compressed.c - attention over a window and compressed entries as a mixer, in its three kinds: its
 * tensors, memory and forward. Refuses: which row of a table a position has; how entries are made
 * (compressed_entries.c). */
#include "config.h"
#include "layers/compressed/compressed.h"
#include "registry.h"

#include <stdio.h>

/* ---- declaration ----------------------------------------------------------------------------- */

/* Of a compressor whose names begin with `prefix`. */
static wb_compressor_weights declare_compressor(wb_registry *registry, int32_t l, const char *prefix,
                                                int64_t width, int64_t ratio, bool overlaps) {
    const int64_t H = registry->model->config.hidden_size, C = overlaps ? 2 * width : width;
    char name[WB_TENSOR_NAME_BYTES];
    wb_compressor_weights w;
    snprintf(name, sizeof name, "%s.kv_proj.weight", prefix);
    w.values = wb_registry_linear(registry, l, name, C, H);
    snprintf(name, sizeof name, "%s.gate_proj.weight", prefix);
    w.gates = wb_registry_linear(registry, l, name, C, H);
    w.bias = wb_registry_storage(registry, WB_F32, ratio, C);
    snprintf(name, sizeof name, "%s.position_bias", prefix);
    wb_registry_tensor(registry, l, -1, name, ratio, C, w.bias, 0);
    snprintf(name, sizeof name, "%s.kv_norm.weight", prefix);
    w.norm = wb_registry_vector(registry, l, name, width);
    return w;
}

static void declare_indexer(wb_registry *registry, int32_t l, wb_compressed_weights *w) {
    const wb_config *c = &registry->model->config;
    const wb_compressed_sizes *s = &c->compressed;
    const int32_t first = registry->n_tensors;
    w->index_column = 0;
    for (int32_t i = 0; i < l; i++) w->index_column += wb_config_is_sparse(c, i);
    w->index =
        declare_compressor(registry, l, "self_attn.compressor.indexer", s->index_dim, s->sparse_rate, true);
    w->index_q = wb_registry_linear(registry, l, "self_attn.compressor.indexer.q_b_proj.weight",
                                    (int64_t)s->index_heads * s->index_dim, s->q_rank);
    w->index_weights =
        wb_registry_linear(registry, l, "self_attn.compressor.indexer.scorer.weights_proj.weight",
                           s->index_heads, c->hidden_size);
    wb_registry_no_gradient(registry, first);
}

static void declare(wb_registry *registry, int32_t l, void *weights) {
    const wb_config *c = &registry->model->config;
    const wb_compressed_sizes *s = &c->compressed;
    const int64_t H = c->hidden_size, d = c->head_dim, q = c->n_heads * d,
                  o = (int64_t)s->o_groups * s->o_rank;
    const int32_t ratio = wb_config_compress_rate(c, l);
    wb_compressed_weights *w = weights;
    w->q_a = wb_registry_linear(registry, l, "self_attn.q_a_proj.weight", s->q_rank, H);
    w->q_norm = wb_registry_vector(registry, l, "self_attn.q_a_norm.weight", s->q_rank);
    w->q_b = wb_registry_linear(registry, l, "self_attn.q_b_proj.weight", q, s->q_rank);
    w->kv = wb_registry_linear(registry, l, "self_attn.kv_proj.weight", d, H);
    w->kv_norm = wb_registry_vector(registry, l, "self_attn.kv_norm.weight", d);
    w->o_a = wb_registry_matrix(registry, l, "self_attn.o_a_proj.weight", o, q / s->o_groups);
    w->o_b = wb_registry_linear(registry, l, "self_attn.o_b_proj.weight", H, o);
    w->sinks = wb_registry_vector(registry, l, "self_attn.sinks", c->n_heads);
    if (ratio == 0) return;
    w->entry = declare_compressor(registry, l, "self_attn.compressor", d, ratio, wb_config_is_sparse(c, l));
    if (wb_config_is_sparse(c, l)) declare_indexer(registry, l, w);
}

/* ---- state and memory ------------------------------------------------------------------------ */

static void window_state(const wb_config *c, wb_state_shape *shape_out) {
    *shape_out = (wb_state_shape){.n_tables = 1, .width = {[WB_COMPRESSED_KEYS] = c->head_dim}};
}

static void entry_state(const wb_config *c, int32_t ratio, bool sparse, wb_state_shape *shape_out) {
    const int64_t d = c->head_dim, index = sparse ? c->compressed.index_dim : 0;
    *shape_out = (wb_state_shape){.n_tables = WB_COMPRESSED_N_TABLES,
                                  .width = {[WB_COMPRESSED_KEYS] = d, [WB_COMPRESSED_ENTRIES] = d + index},
                                  .period = {[WB_COMPRESSED_ENTRIES] = ratio},
                                  .sequence_bytes = wb_compressed_sequence_bytes(d, index, sparse)};
}

static void heavy_state(const wb_config *c, wb_state_shape *shape_out) {
    entry_state(c, c->compressed.heavy_rate, false, shape_out);
}

static void sparse_state(const wb_config *c, wb_state_shape *shape_out) {
    entry_state(c, c->compressed.sparse_rate, true, shape_out);
}

static void layout_backward(wb_compressed *a, const wb_compressed *other, int64_t T, wb_arena *arena) {
    const wb_model *m = a->model;
    const wb_config *c = &m->config;
    const int64_t d = c->head_dim, q = c->n_heads * d,
                  o = (int64_t)c->compressed.o_groups * c->compressed.o_rank, C = a->sparse ? 2 * d : d;
    wb_place_scratch(arena, m, &a->dlow, other ? &other->dlow : NULL, T, c->compressed.q_rank);
    wb_place_scratch(arena, m, &a->dq, other ? &other->dq : NULL, T, q);
    wb_place_scratch(arena, m, &a->dkv, other ? &other->dkv : NULL, T, d);
    wb_place_scratch(arena, m, &a->dout, other ? &other->dout : NULL, T, q);
    wb_place_scratch(arena, m, &a->dmid, other ? &other->dmid : NULL, T, o);
    if (a->ratio == 0) return;
    wb_place_scratch(arena, m, &a->dentries, other ? &other->dentries : NULL, T, d);
    wb_place_scratch(arena, m, &a->dvalues, other ? &other->dvalues : NULL, T, C);
    wb_place_scratch(arena, m, &a->dgates, other ? &other->dgates : NULL, T, C);
}

/* Of a sparse layer. */
static void layout_indexer(wb_compressed *a, const wb_compressed *other, const wb_sizes *sizes,
                           wb_arena *arena) {
    const wb_model *m = a->model;
    const wb_compressed_sizes *s = &m->config.compressed;
    const int64_t T = sizes->tokens;
    wb_place(arena, &a->listed, T, s->index_top_k, sizeof(int32_t));
    if (other) {
        a->index = other->index;
        a->index_q = other->index_q;
        a->index_weights = other->index_weights;
        return;
    }
    wb_compressor_layout(&a->index, m, s->index_dim, true, T, false, arena);
    wb_place_activations(arena, m, &a->index_q, T, (int64_t)s->index_heads * s->index_dim);
    wb_place(arena, &a->index_weights, T, s->index_heads, sizeof(float));
    if (!sizes->backward) wb_place_activations(arena, m, &a->joined, T, m->config.head_dim + s->index_dim);
}

static void layout(wb_compressed *a, wb_model *m, const wb_sizes *sizes, int32_t ratio, bool sparse,
                   wb_arena *arena) {
    const wb_config *c = &m->config;
    const wb_compressed *other = sizes->scratch_of;
    const int64_t T = sizes->tokens, d = c->head_dim, q = c->n_heads * d;
    a->model = m;
    a->ratio = ratio;
    a->sparse = sparse;
    wb_place_activations(arena, m, &a->low, T, c->compressed.q_rank);
    wb_place_activations(arena, m, &a->q, T, q);
    wb_place_activations(arena, m, &a->kv, T, d);
    a->low_normed = a->low;
    a->q_raw = a->q;
    a->kv_raw = a->kv;
    if (sizes->backward) {
        wb_place_activations(arena, m, &a->low_normed, T, c->compressed.q_rank);
        wb_place_activations(arena, m, &a->q_raw, T, q);
        wb_place_activations(arena, m, &a->kv_raw, T, d);
    }
    if (ratio > 0) wb_compressor_layout(&a->entry, m, d, sparse, T, sizes->backward, arena);
    if (sparse) layout_indexer(a, other, sizes, arena);
    wb_place_activations(arena, m, &a->out, T, q);
    wb_place_activations(arena, m, &a->mid, T, (int64_t)c->compressed.o_groups * c->compressed.o_rank);
    if (sizes->backward) layout_backward(a, other, T, arena);
}

static void window_layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    layout(worker, model, sizes, 0, false, arena);
}

static void heavy_layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    layout(worker, model, sizes, model->config.compressed.heavy_rate, false, arena);
}

static void sparse_layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    layout(worker, model, sizes, model->config.compressed.sparse_rate, true, arena);
}

/* ---- work ------------------------------------------------------------------------------------ */

/* The projections, and for each query a score and a value of so many keys and entries. */
static double work_of(const wb_config *c, const wb_sizes *sizes, double per_token, double entries_seen) {
    const wb_compressed_sizes *s = &c->compressed;
    const double T = (double)sizes->tokens, H = c->hidden_size, d = c->head_dim, q = (double)c->n_heads * d;
    const double keys = T < c->window ? T / 2 : c->window;
    const double projections =
        s->q_rank * (H + q) + H * d + q * s->o_rank + (double)s->o_groups * s->o_rank * H;
    return T * (projections + per_token + 2 * q * (keys + entries_seen));
}

static double window_work(const wb_config *c, const wb_sizes *sizes) {
    return work_of(c, sizes, 0, 0);
}

static double heavy_work(const wb_config *c, const wb_sizes *sizes) {
    return work_of(c, sizes, 2.0 * c->hidden_size * c->head_dim,
                   (double)sizes->tokens / c->compressed.heavy_rate / 2);
}

static double sparse_work(const wb_config *c, const wb_sizes *sizes) {
    const wb_compressed_sizes *s = &c->compressed;
    const double entries = (double)sizes->tokens / s->sparse_rate / 2, H = c->hidden_size,
                 q = (double)s->index_heads * s->index_dim;
    const double indexer = q * (s->q_rank + entries) + H * (4.0 * s->index_dim + s->index_heads);
    return work_of(c, sizes, 4.0 * H * c->head_dim + indexer,
                   entries < s->index_top_k ? entries : s->index_top_k);
}

/* ---- forward --------------------------------------------------------------------------------- */

static wb_rows rows_of(const wb_compressed *a, const wb_buffer *buffer) {
    return wb_activations(a->model, buffer);
}

/* All that is made of x, and low's norm. */
static wb_status project(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                         wb_rows x) {
    const wb_model *m = a->model;
    wb_device *dev = m->device;
    const int64_t T = pass->T;
    const bool chooses = wb_compressed_chooses(a, pass);
    wb_matmul list[8];
    int n = 0;
    list[n++] = wb_matmul_forward(T, x, wb_model_weight(m, w->q_a), rows_of(a, &a->low));
    list[n++] = wb_matmul_forward(T, x, wb_model_weight(m, w->kv), rows_of(a, &a->kv_raw));
    if (a->ratio > 0) n += wb_compressor_products(a, &a->entry, &w->entry, T, x, list + n);
    if (chooses) n += wb_compressor_products(a, &a->index, &w->index, T, x, list + n);
    if (chooses)
        list[n++] =
            wb_matmul_forward(T, x, wb_model_weight(m, w->index_weights), wb_f32_rows(a->index_weights.data));
    WB_TRY(dev->matmul(dev, n, list));
    return wb_compressed_norm(a, T, m->config.compressed.q_rank, wb_model_vector(m, w->q_norm),
                              rows_of(a, &a->low), rows_of(a, &a->low_normed));
}

/* Queries, and keys into the table of `state` where there is one. */
static wb_status queries_and_keys(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                                  const wb_state *state) {
    const wb_model *m = a->model;
    wb_device *dev = m->device;
    const int64_t T = pass->T, d = m->config.head_dim;
    const int32_t n_heads = m->config.n_heads;
    const wb_rows q = rows_of(a, &a->q), kv = rows_of(a, &a->kv);
    const wb_matmul product =
        wb_matmul_forward(T, rows_of(a, &a->low_normed), wb_model_weight(m, w->q_b), rows_of(a, &a->q_raw));
    WB_TRY(dev->matmul(dev, 1, &product));
    WB_TRY(wb_compressed_norm(a, T * n_heads, d, NULL, rows_of(a, &a->q_raw), q));
    WB_TRY(wb_compressed_rotate(a, pass, n_heads, d, 0, false, q));
    WB_TRY(wb_compressed_norm(a, T, d, wb_model_vector(m, w->kv_norm), rows_of(a, &a->kv_raw), kv));
    WB_TRY(wb_compressed_rotate(a, pass, 1, d, 0, false, kv));
    if (!state) return WB_OK;
    return dev->kv_write(dev, T, d, kv, pass->state_rows, wb_state_rows(state, WB_COMPRESSED_KEYS));
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    const wb_compressed *a = worker;
    const wb_compressed_weights *w = weights;
    const wb_model *m = a->model;
    wb_device *dev = m->device;
    const wb_rows out = rows_of(a, &a->out);
    WB_TRY(project(a, w, pass, x));
    WB_TRY(queries_and_keys(a, w, pass, state));
    if (a->ratio > 0) WB_TRY(wb_compressed_entries(a, w, pass, state));
    const wb_entry_attention attention = wb_compressed_attention(a, w, pass, state);
    WB_TRY(dev->entry_attention_forward(dev, &attention, out));
    WB_TRY(wb_compressed_rotate(a, pass, m->config.n_heads, m->config.head_dim, 0, true, out));
    WB_TRY(wb_compressed_groups(a, w, pass->T));
    const wb_matmul product = wb_matmul_forward(pass->T, rows_of(a, &a->mid), wb_model_weight(m, w->o_b), y);
    return dev->matmul(dev, 1, &product);
}

#define KIND(kind)                                     \
    const wb_layer_kind wb_layer_attention_##kind = {  \
        .weights_size = sizeof(wb_compressed_weights), \
        .worker_size = sizeof(wb_compressed),          \
        .declare = declare,                            \
        .state = kind##_state,                         \
        .layout = kind##_layout,                       \
        .work = kind##_work,                           \
        .forward = forward,                            \
        .backward = wb_compressed_backward,            \
    }

KIND(window);
KIND(heavy);
KIND(sparse);
