/* compressed_entries.c - the entries of a layer and which of them a token is to see. Refuses: attention over
 * them (compressed_steps.c), backward. */
#include "layers/compressed/compressed.h"

static wb_rows rows_of(const wb_compressed *a, const wb_buffer *buffer) {
    return wb_activations(a->model, buffer);
}

void wb_compressor_layout(wb_compressor *c, const wb_model *model, int64_t width, bool overlaps, int64_t T,
                          bool keeps_steps, wb_arena *arena) {
    const int64_t C = overlaps ? 2 * width : width;
    c->width = width;
    c->overlaps = overlaps;
    wb_place_activations(arena, model, &c->values, T, C);
    wb_place_activations(arena, model, &c->gates, T, C);
    wb_place_activations(arena, model, &c->entries, T, width);
    c->raw = c->entries;
    if (keeps_steps) wb_place_activations(arena, model, &c->raw, T, width);
}

int wb_compressor_products(const wb_compressed *a, const wb_compressor *c, const wb_compressor_weights *w,
                           int64_t T, wb_rows x, wb_matmul *list) {
    const wb_model *m = a->model;
    list[0] = wb_matmul_forward(T, x, wb_model_weight(m, w->values), rows_of(a, &c->values));
    list[1] = wb_matmul_forward(T, x, wb_model_weight(m, w->gates), rows_of(a, &c->gates));
    return 2;
}

wb_compress wb_compressor_args(const wb_compressed *a, const wb_compressor *c, const wb_compressor_weights *w,
                               const wb_pass *pass, char *states, int64_t stride) {
    return (wb_compress){.of = {pass->T, pass->n_runs, pass->runs, states, stride},
                         .width = c->width,
                         .ratio = a->ratio,
                         .overlaps = c->overlaps,
                         .values = rows_of(a, &c->values),
                         .gates = rows_of(a, &c->gates),
                         .bias = a->model->params[w->bias].memory.data,
                         .pos = pass->pos};
}

/* offset: of the compressor's part of a sequence's state. */
static wb_status make_entries(const wb_compressed *a, const wb_compressor *c, const wb_compressor_weights *w,
                              const wb_pass *pass, const wb_state *state, int64_t offset) {
    const wb_model *m = a->model;
    const wb_rows entries = rows_of(a, &c->entries), raw = rows_of(a, &c->raw);
    const wb_compress args = wb_compressor_args(a, c, w, pass, state ? state->sequences + offset : NULL,
                                                state ? state->sequence_stride : 0);
    WB_TRY(m->device->compress_forward(m->device, &args, raw));
    WB_TRY(wb_compressed_norm(a, pass->T, c->width, wb_model_vector(m, w->norm), raw, entries));
    return wb_compressed_rotate(a, pass, 1, c->width, a->ratio, false, entries);
}

/* An entry that ends at a token goes into the table, and behind it the indexer's key. */
static wb_status write_entries(const wb_compressed *a, const wb_pass *pass, const wb_state *state) {
    wb_device *dev = a->model->device;
    const int64_t T = pass->T, d = a->entry.width, index = a->index.width;
    const int64_t *rows = wb_pass_rows(pass, a->ratio);
    const wb_rows table = wb_state_rows(state, WB_COMPRESSED_ENTRIES),
                  entries = rows_of(a, &a->entry.entries);
    if (!a->sparse) return dev->kv_write(dev, T, d, entries, rows, table);
    const wb_rows joined = rows_of(a, &a->joined);
    WB_TRY(dev->copy_columns(dev, T, d, entries, d, joined, d + index));
    WB_TRY(dev->copy_columns(dev, T, index, rows_of(a, &a->index.entries), index, wb_rows_from(joined, d),
                             d + index));
    return dev->kv_write(dev, T, d + index, joined, rows, table);
}

static wb_entries index_keys(const wb_compressed *a, const wb_state *state) {
    const int64_t d = a->entry.width, index = a->index.width;
    if (!state) return (wb_entries){a->ratio, rows_of(a, &a->index.entries), index};
    return (wb_entries){a->ratio, wb_rows_from(wb_state_rows(state, WB_COMPRESSED_ENTRIES), d), d + index};
}

/* Who chooses, and where what all would choose is wanted. */
static void follow_routing(const wb_compressed_weights *w, const wb_pass *pass, wb_indexer *args) {
    const wb_routing *routing = pass->routing;
    if (!routing) return;
    if (routing->listed_direction)
        args->direction = routing->listed_direction + wb_compressed_first_list(w, pass);
    if (routing->listed_native)
        args->native = routing->listed_native + wb_compressed_first_list(w, pass) * args->top_k;
}

/* The scale of scores is left out: it is one for all, and no choice depends on it. */
static wb_status choose_entries(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                                const wb_state *state) {
    const wb_model *m = a->model;
    wb_device *dev = m->device;
    const wb_compressed_sizes *s = &m->config.compressed;
    const wb_rows q = rows_of(a, &a->index_q);
    const int64_t positions = state ? (int64_t)pass->max_blocks * pass->block_size : pass->T;
    const wb_matmul product =
        wb_matmul_forward(pass->T, rows_of(a, &a->low_normed), wb_model_weight(m, w->index_q), q);
    WB_TRY(dev->matmul(dev, 1, &product));
    WB_TRY(wb_compressed_rotate(a, pass, s->index_heads, s->index_dim, 0, false, q));
    wb_indexer args = {.T = pass->T,
                       .n_heads = s->index_heads,
                       .head_dim = s->index_dim,
                       .top_k = s->index_top_k,
                       .q = q,
                       .weights = a->index_weights.data,
                       .keys = index_keys(a, state),
                       .seq = pass->seq,
                       .pos = pass->pos,
                       .blocks = pass->blocks,
                       .max_blocks = pass->max_blocks,
                       .block_size = pass->block_size,
                       .max_entries = positions / a->ratio,
                       .listed = wb_compressed_listed(a, w, pass)};
    follow_routing(w, pass, &args);
    return dev->indexer_topk(dev, &args);
}

wb_status wb_compressed_entries(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                                const wb_state *state) {
    WB_TRY(make_entries(a, &a->entry, &w->entry, pass, state, 0));
    if (wb_compressed_chooses(a, pass))
        WB_TRY(make_entries(a, &a->index, &w->index, pass, state,
                            wb_compress_state_bytes(a->entry.width, a->entry.overlaps)));
    if (state) WB_TRY(write_entries(a, pass, state));
    return wb_compressed_chooses(a, pass) ? choose_entries(a, w, pass, state) : WB_OK;
}
