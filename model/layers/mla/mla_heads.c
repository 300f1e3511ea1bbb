/* mla_heads.c - what latent attention does head by head: products with a head's part of kv_b_proj, the
 * rotated part of a head, and attention itself. Refuses: in which order (attention_mla.c, mla_backward.c). */
#include "layers/mla/mla.h"
#include "packed_weights.h"

#include <math.h>

/* ---- parts of weights ------------------------------------------------------------------------ */

wb_status wb_mla_latent_weights(const wb_mla *m, const wb_mla_weights *w, wb_weight *c_out,
                                wb_weight *k_out) {
    const wb_mla_sizes *sizes = &m->model->config.mla;
    const wb_weight kv_a = wb_model_weight(m->model, w->kv_a);
    WB_TRY(wb_weight_rows(kv_a, 0, sizes->kv_rank, c_out));
    return wb_weight_rows(kv_a, sizes->kv_rank, sizes->rope_dim, k_out);
}

/* The rows of kv_b that are U_h or V_h. */
static wb_row_run rows_of_part(const wb_mla *m, wb_mla_part part, int64_t head) {
    const wb_mla_sizes *sizes = &m->model->config.mla;
    const int64_t first = head * (sizes->nope_dim + sizes->value_dim);
    return part == WB_MLA_KEYS ? (wb_row_run){first, sizes->nope_dim}
                               : (wb_row_run){first + sizes->nope_dim, sizes->value_dim};
}

/* ---- a product a head ------------------------------------------------------------------------ */

wb_mla_rows wb_mla_keys(const wb_mla *m, const wb_buffer *q, const wb_buffer *q_latent) {
    const wb_mla_widths width = wb_mla_widths_of(&m->model->config);
    return (wb_mla_rows){WB_MLA_KEYS, wb_activations(m->model, q), wb_activations(m->model, q_latent),
                         width.head, width.latent};
}

wb_mla_rows wb_mla_values(const wb_mla *m, const wb_buffer *values, const wb_buffer *mixed) {
    const wb_mla_sizes *sizes = &m->model->config.mla;
    return (wb_mla_rows){WB_MLA_VALUES, wb_activations(m->model, values), wb_activations(m->model, mixed),
                         sizes->value_dim, sizes->kv_rank};
}

typedef enum direction { TO_OUTER, TO_INNER, TO_WEIGHT } direction;

static wb_status product_of(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, direction to,
                            int64_t T, float *const *grads, int64_t head, wb_matmul *product_out) {
    const wb_row_run run = rows_of_part(m, rows->part, head);
    wb_weight weight;
    WB_TRY(wb_weight_rows(wb_model_weight(m->model, w->kv_b), run.start, run.n, &weight));
    const wb_rows outer = wb_rows_from(rows->outer, head * rows->outer_head),
                  inner = wb_rows_from(rows->inner, head * rows->inner_head);
    const int64_t n_heads = m->model->config.n_heads, outer_row = n_heads * rows->outer_head,
                  inner_row = n_heads * rows->inner_head;
    wb_matmul product;
    if (to == TO_OUTER) {
        product = wb_matmul_forward(T, inner, weight, outer);
        product.a_row = inner_row, product.ldc = outer_row;
    } else if (to == TO_INNER) {
        product = wb_matmul_dgrad(T, outer, weight, inner, false);
        product.a_row = outer_row, product.ldc = inner_row;
    } else {
        float *dw = grads[w->kv_b] + run.start * weight.cols;
        product = wb_matmul_wgrad(T, weight.cols, weight.rows, outer, inner, dw);
        product.a_col = outer_row, product.b_row = inner_row;
    }
    *product_out = product;
    return WB_OK;
}

/* Products of one call: ops have room for a few dozen. */
enum { HEADS_AT_ONCE = 32 };

static wb_status multiply(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, direction to,
                          int64_t T, float *const *grads) {
    wb_device *dev = m->model->device;
    const int32_t n_heads = m->model->config.n_heads;
    wb_matmul list[HEADS_AT_ONCE];
    for (int32_t first = 0; first < n_heads; first += HEADS_AT_ONCE) {
        const int32_t left = n_heads - first, n = left < HEADS_AT_ONCE ? left : HEADS_AT_ONCE;
        for (int32_t i = 0; i < n; i++) WB_TRY(product_of(m, w, rows, to, T, grads, first + i, &list[i]));
        WB_TRY(dev->matmul(dev, n, list));
    }
    return WB_OK;
}

wb_status wb_mla_to_outer(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, int64_t T) {
    return multiply(m, w, rows, TO_OUTER, T, NULL);
}

wb_status wb_mla_to_inner(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, int64_t T) {
    return multiply(m, w, rows, TO_INNER, T, NULL);
}

wb_status wb_mla_to_weight(const wb_mla *m, const wb_mla_weights *w, const wb_mla_rows *rows, int64_t T,
                           float *const *grads) {
    return multiply(m, w, rows, TO_WEIGHT, T, grads);
}

/* ---- the rotated part of a head -------------------------------------------------------------- */

wb_status wb_mla_rotate(const wb_mla *m, const wb_pass *pass, int32_t n_heads, int64_t head, bool inverse,
                        wb_rows x) {
    const wb_model *model = m->model;
    const wb_mla_sizes *sizes = &model->config.mla;
    const wb_rope args = {.T = pass->T,
                          .n_heads = n_heads,
                          .head_dim = (int32_t)head,
                          .first = (int32_t)head - sizes->rope_dim,
                          .rot_dim = sizes->rope_dim,
                          .interleaved = sizes->interleaved,
                          .inverse = inverse,
                          .pos = pass->pos,
                          .cos_table = model->cos_table.data,
                          .sin_table = model->sin_table.data,
                          .x = x};
    return model->device->rope(model->device, &args);
}

wb_status wb_mla_copy_rotated(const wb_mla *m, int64_t T, wb_rows from, int64_t from_head, wb_rows to,
                              int64_t to_head) {
    wb_device *dev = m->model->device;
    const wb_config *config = &m->model->config;
    const int64_t rope = config->mla.rope_dim;
    return dev->copy_columns(dev, T * config->n_heads, rope, wb_rows_from(from, from_head - rope), from_head,
                             wb_rows_from(to, to_head - rope), to_head);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* 1 / sqrt(a head's width), and where YaRN scales the rotary embedding the square of its magnitude. */
static float scale_of(const wb_config *config) {
    const wb_rope_scaling *s = &config->rope_scaling;
    const double scale = 1.0 / sqrt((double)config->head_dim);
    if (s->type != WB_ROPE_YARN || s->mscale_all_dim == 0) return (float)scale;
    const double magnitude = wb_rope_magnitude(s->factor, s->mscale_all_dim);
    return (float)(scale * magnitude * magnitude);
}

/* One kv head, whose keys are the latents and whose values the first kv_rank elements of them. */
wb_attention wb_mla_attention(const wb_mla *m, const wb_pass *pass, const wb_state *state) {
    const wb_model *model = m->model;
    const wb_config *config = &model->config;
    const wb_rows latents = state ? wb_state_rows(state, WB_MLA_LATENTS) : wb_activations(model, &m->latent);
    return (wb_attention){.T = pass->T,
                          .n_heads = config->n_heads,
                          .n_kv_heads = 1,
                          .head_dim = config->mla.kv_rank + config->mla.rope_dim,
                          .value_dim = config->mla.kv_rank,
                          .scale = scale_of(config),
                          .q = wb_activations(model, &m->q_latent),
                          .k = latents,
                          .v = latents,
                          .seq = pass->seq,
                          .pos = pass->pos,
                          .blocks = pass->blocks,
                          .max_blocks = pass->max_blocks,
                          .block_size = pass->block_size,
                          .one_a_sequence = pass->one_a_sequence};
}
