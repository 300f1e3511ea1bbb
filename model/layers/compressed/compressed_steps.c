/* compressed_steps.c - what the forward and the backward of attention over compressed entries have in common:
 * rotation, norms, attention itself, and the first factor of the output, group by group.
 * Refuses: in which order (attention_compressed.c, compressed_backward.c). */
#include "config.h"
#include "layers/compressed/compressed.h"
#include "packed_weights.h"

#include <math.h>

static wb_rows rows_of(const wb_compressed *a, const wb_buffer *buffer) {
    return wb_activations(a->model, buffer);
}

/* ---- rotation and norms ----------------------------------------------------------------------- */

wb_status wb_compressed_rotate(const wb_compressed *a, const wb_pass *pass, int32_t n, int64_t head,
                               int32_t ratio, bool inverse, wb_rows x) {
    const wb_model *m = a->model;
    const int32_t turned = wb_model_rotary_dim(m);
    const bool entries = a->ratio > 0;
    const wb_rope args = {.T = pass->T,
                          .n_heads = n,
                          .head_dim = (int32_t)head,
                          .first = (int32_t)head - turned,
                          .rot_dim = turned,
                          .interleaved = true,
                          .inverse = inverse,
                          .ratio = ratio,
                          .pos = pass->pos,
                          .cos_table = (entries ? &m->entry_cos_table : &m->cos_table)->data,
                          .sin_table = (entries ? &m->entry_sin_table : &m->sin_table)->data,
                          .x = x};
    return m->device->rope(m->device, &args);
}

wb_status wb_compressed_norm(const wb_compressed *a, int64_t n, int64_t width, const float *w, wb_rows raw,
                             wb_rows normed) {
    const wb_model *m = a->model;
    return m->device->rmsnorm_forward(m->device, n, width, raw, (wb_norm){.w = w, .eps = m->config.norm_eps},
                                      normed);
}

/* ---- attention ------------------------------------------------------------------------------- */

static wb_entries entries_of(const wb_compressed *a, const wb_state *state) {
    const int64_t d = a->model->config.head_dim;
    if (a->ratio == 0) return (wb_entries){0};
    if (!state) return (wb_entries){a->ratio, rows_of(a, &a->entry.entries), d};
    return (wb_entries){a->ratio, wb_state_rows(state, WB_COMPRESSED_ENTRIES), d + a->index.width};
}

int32_t *wb_compressed_listed(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass) {
    const wb_routing *routing = pass->routing;
    if (!routing || !routing->listed) return a->listed.data;
    return routing->listed + wb_compressed_first_list(w, pass) * a->model->config.compressed.index_top_k;
}

wb_entry_attention wb_compressed_attention(const wb_compressed *a, const wb_compressed_weights *w,
                                           const wb_pass *pass, const wb_state *state) {
    const wb_model *m = a->model;
    const wb_config *c = &m->config;
    const wb_rows keys = state ? wb_state_rows(state, WB_COMPRESSED_KEYS) : rows_of(a, &a->kv);
    return (wb_entry_attention){.raw = {.T = pass->T,
                                        .n_heads = c->n_heads,
                                        .n_kv_heads = 1,
                                        .head_dim = c->head_dim,
                                        .value_dim = c->head_dim,
                                        .scale = (float)(1.0 / sqrt((double)c->head_dim)),
                                        .window = c->window,
                                        .sinks = wb_model_vector(m, w->sinks),
                                        .q = rows_of(a, &a->q),
                                        .k = keys,
                                        .v = keys,
                                        .seq = pass->seq,
                                        .pos = pass->pos,
                                        .blocks = pass->blocks,
                                        .max_blocks = pass->max_blocks,
                                        .block_size = pass->block_size},
                                .entries = entries_of(a, state),
                                .listed = a->sparse ? wb_compressed_listed(a, w, pass) : NULL,
                                .max_listed = a->sparse ? c->compressed.index_top_k : 0};
}

/* ---- groups of heads ------------------------------------------------------------------------- */

/* Products of one call: ops have room for a few dozen. */
enum { GROUPS_AT_ONCE = 16 };

/* A group's rows of Woa, and its columns of what lies on both sides. */
typedef struct group {
    wb_weight weight; /* [o_rank, heads of a group * d] */
    int64_t first_out, first_mid;
    int64_t out_row, mid_row; /* elements of a token */
} group;

static wb_status group_of(const wb_compressed *a, const wb_compressed_weights *w, int64_t g,
                          group *group_out) {
    const wb_config *c = &a->model->config;
    const wb_weight all = wb_model_weight(a->model, w->o_a);
    const int64_t rank = c->compressed.o_rank;
    *group_out = (group){.first_out = g * all.cols,
                         .first_mid = g * rank,
                         .out_row = (int64_t)c->n_heads * c->head_dim,
                         .mid_row = c->compressed.o_groups * rank};
    return wb_weight_rows(all, g * rank, rank, &group_out->weight);
}

wb_status wb_compressed_groups(const wb_compressed *a, const wb_compressed_weights *w, int64_t T) {
    wb_device *dev = a->model->device;
    const int32_t n_groups = a->model->config.compressed.o_groups;
    wb_matmul list[GROUPS_AT_ONCE];
    for (int32_t first = 0; first < n_groups; first += GROUPS_AT_ONCE) {
        const int32_t left = n_groups - first, n = left < GROUPS_AT_ONCE ? left : GROUPS_AT_ONCE;
        for (int32_t i = 0; i < n; i++) {
            group g;
            WB_TRY(group_of(a, w, first + i, &g));
            list[i] = wb_matmul_forward(T, wb_rows_from(rows_of(a, &a->out), g.first_out), g.weight,
                                        wb_rows_from(rows_of(a, &a->mid), g.first_mid));
            list[i].a_row = g.out_row, list[i].ldc = g.mid_row;
        }
        WB_TRY(dev->matmul(dev, n, list));
    }
    return WB_OK;
}

wb_status wb_compressed_groups_backward(const wb_compressed *a, const wb_compressed_weights *w, int64_t T,
                                        float *const *grads) {
    wb_device *dev = a->model->device;
    const int32_t n_groups = a->model->config.compressed.o_groups;
    wb_matmul list[2 * GROUPS_AT_ONCE];
    for (int32_t first = 0; first < n_groups; first += GROUPS_AT_ONCE) {
        const int32_t left = n_groups - first, n = left < GROUPS_AT_ONCE ? left : GROUPS_AT_ONCE;
        for (int32_t i = 0; i < n; i++) {
            group g;
            WB_TRY(group_of(a, w, first + i, &g));
            const wb_rows dmid = wb_rows_from(rows_of(a, &a->dmid), g.first_mid);
            float *dw = grads[w->o_a] + (first + i) * g.weight.rows * g.weight.cols;
            wb_matmul *to_weight = &list[2 * i], *to_out = &list[2 * i + 1];
            *to_weight = wb_matmul_wgrad(T, g.weight.cols, g.weight.rows, dmid,
                                         wb_rows_from(rows_of(a, &a->out), g.first_out), dw);
            to_weight->a_col = g.mid_row, to_weight->b_row = g.out_row;
            *to_out =
                wb_matmul_dgrad(T, dmid, g.weight, wb_rows_from(rows_of(a, &a->dout), g.first_out), false);
            to_out->a_row = g.mid_row, to_out->ldc = g.out_row;
        }
        WB_TRY(dev->matmul(dev, 2 * n, list));
    }
    return WB_OK;
}
