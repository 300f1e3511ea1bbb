/* attention_mla.c - multi-head latent attention as a mixer: its tensors, memory and forward.
 *
 * Owns: q and the latents, and what a sequence leaves behind: its latents. Refuses: which row of the table a
 * position has, the residual stream; what is done head by head (mla_heads.c). */
#include "layers/mla/mla.h"
#include "registry.h"

/* ---- declaration ----------------------------------------------------------------------------- */

static void declare(wb_registry *registry, int32_t l, void *weights) {
    const wb_config *c = &registry->model->config;
    const wb_mla_sizes *m = &c->mla;
    const wb_mla_widths width = wb_mla_widths_of(c);
    const int64_t H = c->hidden_size, kv = (int64_t)c->n_heads * (m->nope_dim + m->value_dim);
    wb_mla_weights *w = weights;
    w->q_a = w->q_norm = -1;
    if (m->q_rank == 0) {
        w->q = wb_registry_linear(registry, l, "self_attn.q_proj.weight", width.q, H);
    } else {
        w->q_a = wb_registry_linear(registry, l, "self_attn.q_a_proj.weight", m->q_rank, H);
        w->q_norm = wb_registry_vector(registry, l, "self_attn.q_a_layernorm.weight", m->q_rank);
        w->q = wb_registry_linear(registry, l, "self_attn.q_b_proj.weight", width.q, m->q_rank);
    }
    w->kv_a = wb_registry_matrix(registry, l, "self_attn.kv_a_proj_with_mqa.weight", width.latent, H);
    w->kv_norm = wb_registry_vector(registry, l, "self_attn.kv_a_layernorm.weight", m->kv_rank);
    w->kv_b = wb_registry_matrix(registry, l, "self_attn.kv_b_proj.weight", kv, m->kv_rank);
    w->o = wb_registry_linear(registry, l, "self_attn.o_proj.weight", H, width.values);
}

static void state_shape(const wb_config *config, wb_state_shape *shape_out) {
    const int64_t width = wb_mla_widths_of(config).latent;
    *shape_out = (wb_state_shape){.n_tables = WB_MLA_N_TABLES, .width = {[WB_MLA_LATENTS] = width}};
}

static void layout_backward(wb_mla *m, const wb_mla *other, int64_t T, wb_arena *arena) {
    const wb_model *model = m->model;
    const wb_mla_widths width = wb_mla_widths_of(&model->config);
    const wb_mla_sizes *sizes = &model->config.mla;
    wb_place_activations(arena, model, &m->c_normed, T, sizes->kv_rank);
    if (sizes->q_rank > 0) {
        wb_place_activations(arena, model, &m->q_low_normed, T, sizes->q_rank);
        wb_place_scratch(arena, model, &m->dq_low, other ? &other->dq_low : NULL, T, sizes->q_rank);
    }
    wb_place_scratch(arena, model, &m->dq, other ? &other->dq : NULL, T, width.q);
    wb_place_scratch(arena, model, &m->dq_latent, other ? &other->dq_latent : NULL, T, width.q_latent);
    wb_place_scratch(arena, model, &m->dmixed, other ? &other->dmixed : NULL, T, width.mixed);
    wb_place_scratch(arena, model, &m->dvalues, other ? &other->dvalues : NULL, T, width.values);
    wb_place_scratch(arena, model, &m->dlatent, other ? &other->dlatent : NULL, T, width.latent);
    wb_place_scratch(arena, model, &m->dc, other ? &other->dc : NULL, T, sizes->kv_rank);
    wb_place_scratch(arena, model, &m->dc_of_keys, other ? &other->dc_of_keys : NULL, T, sizes->kv_rank);
}

static void layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    wb_mla *m = worker;
    const wb_mla_widths width = wb_mla_widths_of(&model->config);
    const int64_t T = sizes->tokens, q_rank = model->config.mla.q_rank;
    m->model = model;
    m->keeps_steps = sizes->backward;
    if (q_rank > 0) wb_place_activations(arena, model, &m->q_low, T, q_rank);
    wb_place_activations(arena, model, &m->c, T, model->config.mla.kv_rank);
    wb_place_activations(arena, model, &m->q, T, width.q);
    wb_place_activations(arena, model, &m->q_latent, T, width.q_latent);
    wb_place_activations(arena, model, &m->latent, T, width.latent);
    wb_place_activations(arena, model, &m->mixed, T, width.mixed);
    wb_place_activations(arena, model, &m->values, T, width.values);
    if (sizes->backward) layout_backward(m, sizes->scratch_of, T, arena);
}

/* The projections, kv_b's parts among them, and of each pair of positions, which are half of T * T, score
 * and value. */
static double work(const wb_config *config, const wb_sizes *sizes) {
    const wb_mla_widths width = wb_mla_widths_of(config);
    const double T = (double)sizes->tokens, H = config->hidden_size, q = (double)width.q;
    const double low = config->mla.q_rank, rank = config->mla.kv_rank;
    const double of_q = low > 0 ? low * (H + q) : H * q;
    const double of_kv_b = (double)config->n_heads * (config->mla.nope_dim + config->mla.value_dim) * rank;
    return T * (of_q + H * (double)(width.latent + width.values) + of_kv_b) +
           T * T * (double)(width.q_latent + width.mixed) / 2;
}

/* ---- forward --------------------------------------------------------------------------------- */

/* The norm of `raw`, [T, width]. */
static wb_status norm(const wb_mla *m, int64_t T, int64_t width, int32_t weight, const wb_buffer *raw,
                      const wb_buffer *normed) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    return dev->rmsnorm_forward(dev, T, width, wb_activations(model, raw), wb_mla_norm(model, weight),
                                wb_activations(model, normed));
}

/* From x what the latents and q are made of, and q. */
static wb_status project(const wb_mla *m, const wb_mla_weights *w, int64_t T, wb_rows x) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const wb_mla_sizes *sizes = &model->config.mla;
    const bool low = sizes->q_rank > 0;
    const wb_buffer *normed = m->keeps_steps ? &m->q_low_normed : &m->q_low;
    const wb_rows latent = wb_activations(model, &m->latent), q = wb_activations(model, &m->q),
                  first = low ? wb_activations(model, &m->q_low) : q;
    wb_weight to_c, to_k;
    WB_TRY(wb_mla_latent_weights(m, w, &to_c, &to_k));
    wb_matmul list[] = {wb_matmul_forward(T, x, wb_model_weight(model, low ? w->q_a : w->q), first),
                        wb_matmul_forward(T, x, to_c, wb_activations(model, &m->c)),
                        wb_matmul_forward(T, x, to_k, wb_rows_from(latent, sizes->kv_rank))};
    list[2].ldc = sizes->kv_rank + sizes->rope_dim;
    WB_TRY(dev->matmul(dev, 3, list));
    if (!low) return WB_OK;
    WB_TRY(norm(m, T, sizes->q_rank, w->q_norm, &m->q_low, normed));
    const wb_matmul second =
        wb_matmul_forward(T, wb_activations(model, normed), wb_model_weight(model, w->q), q);
    return dev->matmul(dev, 1, &second);
}

static wb_status finish_latents(const wb_mla *m, const wb_mla_weights *w, const wb_pass *pass,
                                const wb_state *state) {
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, rank = model->config.mla.kv_rank, W = rank + model->config.mla.rope_dim;
    const wb_buffer *normed = m->keeps_steps ? &m->c_normed : &m->c;
    const wb_rows latent = wb_activations(model, &m->latent);
    WB_TRY(norm(m, T, rank, w->kv_norm, &m->c, normed));
    WB_TRY(dev->copy_columns(dev, T, rank, wb_activations(model, normed), rank, latent, W));
    WB_TRY(wb_mla_rotate(m, pass, 1, W, false, latent));
    if (!state) return WB_OK;
    return dev->kv_write(dev, T, W, latent, pass->state_rows, wb_state_rows(state, WB_MLA_LATENTS));
}

/* q as it meets latents. */
static wb_status finish_queries(const wb_mla *m, const wb_mla_weights *w, const wb_pass *pass) {
    const wb_model *model = m->model;
    const wb_mla_widths width = wb_mla_widths_of(&model->config);
    const wb_rows q = wb_activations(model, &m->q), q_latent = wb_activations(model, &m->q_latent);
    const wb_mla_rows rows = wb_mla_keys(m, &m->q, &m->q_latent);
    WB_TRY(wb_mla_rotate(m, pass, model->config.n_heads, width.head, false, q));
    WB_TRY(wb_mla_copy_rotated(m, pass->T, q, width.head, q_latent, width.latent));
    return wb_mla_to_inner(m, w, &rows, pass->T);
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    wb_mla *m = worker;
    const wb_mla_weights *w = weights;
    const wb_model *model = m->model;
    wb_device *dev = model->device;
    const wb_mla_rows rows = wb_mla_values(m, &m->values, &m->mixed);
    WB_TRY(project(m, w, pass->T, x));
    WB_TRY(finish_latents(m, w, pass, state));
    WB_TRY(finish_queries(m, w, pass));
    const wb_attention args = wb_mla_attention(m, pass, state);
    WB_TRY(dev->attention_forward(dev, &args, rows.inner));
    WB_TRY(wb_mla_to_outer(m, w, &rows, pass->T));
    const wb_matmul o = wb_matmul_forward(pass->T, rows.outer, wb_model_weight(model, w->o), y);
    return dev->matmul(dev, 1, &o);
}

const wb_layer_kind wb_layer_attention_mla = {
    .weights_size = sizeof(wb_mla_weights),
    .worker_size = sizeof(wb_mla),
    .declare = declare,
    .state = state_shape,
    .layout = layout,
    .work = work,
    .forward = forward,
    .backward = wb_mla_backward,
};
