/* delta_net.c - gated delta net: a mixer whose memory of a sequence is a matrix a value head
 * (wb_gated_delta).
 *   u = [q | k | v] of all heads, z, b, a: projections of x
 *   y = Wo norm(o) * silu(z), o = delta rule of silu(convolution of u), b and a
 * The norm is over a head's values and has weights of its own.
 *
 * Owns: the projections and how they lie in files, and what a sequence leaves behind: the last tokens of u,
 * and the matrices. Refuses: which state a sequence has, the residual stream. */
#include "config.h"
#include "layers/layer.h"
#include "registry.h"

/* Parameters. With U = 2 nk dk + nv dv and Z = nv dv; -1: the family has the others. */
typedef struct delta_weights {
    int32_t qkv, z, b, a;              /* [U, H], [Z, H], [nv, H] twice */
    int32_t qkvz, ba;                  /* [U + Z, H], [2 nv, H], rows grouped by key head */
    int32_t conv, A_log, dt_bias, out; /* [U, W], [nv], [nv], [H, Z] */
    int32_t norm;                      /* [dv] */
} delta_weights;

typedef struct delta {
    wb_model *model;

    /* Kept by a forward for its backward. */
    wb_buffer u, qkv;      /* [T, U] before and behind the convolution */
    wb_buffer z, o;        /* [T, Z] */
    wb_buffer normed;      /* [T, Z]; without a backward it is o */
    wb_buffer b, a;        /* [T, nv] */
    wb_buffer checkpoints; /* f32 [wb_delta_checkpoint_floats] */

    wb_buffer grouped, grouped_ba; /* [T, U + Z], [T, 2 nv] as grouped projections give them, or their
                                    * gradients */
    wb_buffer dqkv, dnormed;       /* [T, U], [T, Z] */
    wb_buffer db, da;              /* [T, nv] */
} delta;

/* What of a layer's rows and states its sizes say. */
typedef struct widths {
    int64_t H, key, value, u, nk, nv, of_key_head; /* of_key_head: value heads */
} widths;

static widths widths_of(const wb_config *c) {
    const wb_delta_sizes *d = &c->delta;
    return (widths){.H = c->hidden_size,
                    .key = wb_delta_key_width(d),
                    .value = wb_delta_value_width(d),
                    .u = wb_delta_channels(d),
                    .nk = d->n_key_heads,
                    .nv = d->n_value_heads,
                    .of_key_head = d->n_value_heads / d->n_key_heads};
}

/* ---- declaration ----------------------------------------------------------------------------- */

static void declare_projections(wb_registry *registry, int32_t l, delta_weights *w) {
    const widths n = widths_of(&registry->model->config);
    w->qkv = w->z = w->b = w->a = w->qkvz = w->ba = -1;
    if (registry->model->family->grouped_delta) {
        w->qkvz = wb_registry_linear(registry, l, "linear_attn.in_proj_qkvz.weight", n.u + n.value, n.H);
        w->ba = wb_registry_linear(registry, l, "linear_attn.in_proj_ba.weight", 2 * n.nv, n.H);
        return;
    }
    w->qkv = wb_registry_linear(registry, l, "linear_attn.in_proj_qkv.weight", n.u, n.H);
    w->z = wb_registry_linear(registry, l, "linear_attn.in_proj_z.weight", n.value, n.H);
    w->b = wb_registry_linear(registry, l, "linear_attn.in_proj_b.weight", n.nv, n.H);
    w->a = wb_registry_linear(registry, l, "linear_attn.in_proj_a.weight", n.nv, n.H);
}

static void declare(wb_registry *registry, int32_t l, void *weights) {
    const wb_delta_sizes *d = &registry->model->config.delta;
    const widths n = widths_of(&registry->model->config);
    delta_weights *w = weights;
    w->dt_bias = wb_registry_vector(registry, l, "linear_attn.dt_bias", n.nv);
    w->A_log = wb_registry_vector(registry, l, "linear_attn.A_log", n.nv);
    w->conv = wb_registry_taps(registry, l, "linear_attn.conv1d.weight", n.u, d->conv_width);
    declare_projections(registry, l, w);
    w->norm = wb_registry_vector(registry, l, "linear_attn.norm.weight", d->value_dim);
    w->out = wb_registry_linear(registry, l, "linear_attn.out_proj.weight", n.H, n.value);
}

/* The last tokens of u, which the matrices lie behind. */
static int64_t conv_bytes(const wb_delta_sizes *d) {
    const int64_t alignment = WB_ARENA_ALIGNMENT,
                  bytes = (d->conv_width - 1) * wb_delta_channels(d) * (int64_t)sizeof(float);
    return (bytes + alignment - 1) / alignment * alignment;
}

static void state_shape(const wb_config *config, wb_state_shape *shape_out) {
    const wb_delta_sizes *d = &config->delta;
    shape_out->sequence_bytes = conv_bytes(d) + wb_delta_value_width(d) * d->key_dim * (int64_t)sizeof(float);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static wb_delta_heads heads_of(const wb_delta_sizes *d) {
    return (wb_delta_heads){d->n_key_heads, d->n_value_heads, d->key_dim, d->value_dim};
}

static void layout_backward(delta *d, const delta *other, int64_t T, wb_arena *arena) {
    wb_model *model = d->model;
    const widths n = widths_of(&model->config);
    wb_place_activations(arena, model, &d->normed, T, n.value);
    wb_place(arena, &d->checkpoints, wb_delta_checkpoint_floats(T, heads_of(&model->config.delta)), 1,
             sizeof(float));
    wb_place_scratch(arena, model, &d->dqkv, other ? &other->dqkv : NULL, T, n.u);
    wb_place_scratch(arena, model, &d->dnormed, other ? &other->dnormed : NULL, T, n.value);
    wb_place_scratch(arena, model, &d->db, other ? &other->db : NULL, T, n.nv);
    wb_place_scratch(arena, model, &d->da, other ? &other->da : NULL, T, n.nv);
}

static void layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    delta *d = worker;
    const delta *other = sizes->scratch_of;
    const widths n = widths_of(&model->config);
    const int64_t T = sizes->tokens;
    d->model = model;
    wb_place_activations(arena, model, &d->u, T, n.u);
    wb_place_activations(arena, model, &d->qkv, T, n.u);
    wb_place_activations(arena, model, &d->z, T, n.value);
    wb_place_activations(arena, model, &d->o, T, n.value);
    wb_place_activations(arena, model, &d->b, T, n.nv);
    wb_place_activations(arena, model, &d->a, T, n.nv);
    if (model->family->grouped_delta) {
        wb_place_scratch(arena, model, &d->grouped, other ? &other->grouped : NULL, T, n.u + n.value);
        wb_place_scratch(arena, model, &d->grouped_ba, other ? &other->grouped_ba : NULL, T, 2 * n.nv);
    }
    if (sizes->backward)
        layout_backward(d, other, T, arena);
    else
        d->normed = d->o;
}

/* The projections, the taps, and of each element of a matrix what is read, taken away and added. */
static double work(const wb_config *config, const wb_sizes *sizes) {
    const widths n = widths_of(config);
    const double projected = (double)(n.u + 2 * n.value + 2 * n.nv) * (double)n.H,
                 taps = (double)n.u * config->delta.conv_width,
                 rule = 3 * (double)n.value * config->delta.key_dim;
    return (double)sizes->tokens * (projected + taps + rule);
}

/* ---- grouped projections --------------------------------------------------------------------- */

/* A part of the row of each key head: where it begins there, how long it is, and where it lies apart. */
typedef struct part {
    wb_rows grouped, apart;
    int64_t first, width, group, row;
} part;

/* What a projection gives, put apart; or gradients, put back. */
static wb_status move_part(const wb_model *model, int64_t T, part p, bool back) {
    wb_device *dev = model->device;
    const int64_t nk = model->config.delta.n_key_heads;
    const wb_rows grouped = wb_rows_from(p.grouped, p.first);
    const wb_copy_heads apart = {T, nk, p.width, grouped, nk * p.group, p.group, p.apart, p.row, p.width},
                        together = {T, nk, p.width, p.apart, p.row, p.width, grouped, nk * p.group, p.group};
    return dev->copy_heads(dev, back ? &together : &apart);
}

/* u[T,U], z[T,Z], b and a[T,nv]. */
static wb_status move_grouped(const delta *d, int64_t T, wb_rows u, wb_rows z, wb_rows b, wb_rows a,
                              bool back) {
    const wb_model *model = d->model;
    const widths n = widths_of(&model->config);
    const int64_t dk = model->config.delta.key_dim, v = n.of_key_head * model->config.delta.value_dim,
                  group = 2 * (dk + v), r = n.of_key_head;
    const wb_rows qkvz = wb_activations(model, &d->grouped), ba = wb_activations(model, &d->grouped_ba);
    const part parts[] = {{qkvz, u, 0, dk, group, n.u},
                          {qkvz, wb_rows_from(u, n.key), dk, dk, group, n.u},
                          {qkvz, wb_rows_from(u, 2 * n.key), 2 * dk, v, group, n.u},
                          {qkvz, z, 2 * dk + v, v, group, n.value},
                          {ba, b, 0, r, 2 * r, n.nv},
                          {ba, a, r, r, 2 * r, n.nv}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) WB_TRY(move_part(model, T, parts[i], back));
    return WB_OK;
}

/* ---- forward --------------------------------------------------------------------------------- */

static wb_status project(const delta *d, const delta_weights *w, int64_t T, wb_rows x) {
    const wb_model *model = d->model;
    wb_device *dev = model->device;
    const wb_rows u = wb_activations(model, &d->u), z = wb_activations(model, &d->z),
                  b = wb_activations(model, &d->b), a = wb_activations(model, &d->a);
    if (!model->family->grouped_delta) {
        const wb_matmul list[] = {wb_matmul_forward(T, x, wb_model_weight(model, w->qkv), u),
                                  wb_matmul_forward(T, x, wb_model_weight(model, w->z), z),
                                  wb_matmul_forward(T, x, wb_model_weight(model, w->b), b),
                                  wb_matmul_forward(T, x, wb_model_weight(model, w->a), a)};
        return dev->matmul(dev, 4, list);
    }
    const wb_matmul list[] = {
        wb_matmul_forward(T, x, wb_model_weight(model, w->qkvz), wb_activations(model, &d->grouped)),
        wb_matmul_forward(T, x, wb_model_weight(model, w->ba), wb_activations(model, &d->grouped_ba))};
    WB_TRY(dev->matmul(dev, 2, list));
    return move_grouped(d, T, u, z, b, a, false);
}

/* Of a part of the states that begins so many bytes behind their beginning. */
static wb_sequences sequences_of(const wb_pass *pass, const wb_state *state, int64_t offset) {
    return (wb_sequences){.T = pass->T,
                          .n_runs = pass->n_runs,
                          .runs = pass->runs,
                          .states = state ? state->sequences + offset : NULL,
                          .state_stride = state ? state->sequence_stride : 0};
}

static wb_short_conv conv_args(const delta *d, const delta_weights *w, const wb_pass *pass,
                               const wb_state *state) {
    const wb_model *model = d->model;
    return (wb_short_conv){.of = sequences_of(pass, state, 0),
                           .channels = (int32_t)wb_delta_channels(&model->config.delta),
                           .width = model->config.delta.conv_width,
                           .w = wb_model_vector(model, w->conv),
                           .x = wb_activations(model, &d->u)};
}

static wb_gated_delta rule_args(const delta *d, const delta_weights *w, const wb_pass *pass,
                                const wb_state *state) {
    const wb_model *model = d->model;
    return (wb_gated_delta){.of = sequences_of(pass, state, conv_bytes(&model->config.delta)),
                            .heads = heads_of(&model->config.delta),
                            .qkv = wb_activations(model, &d->qkv),
                            .b = wb_activations(model, &d->b),
                            .a = wb_activations(model, &d->a),
                            .A_log = wb_model_vector(model, w->A_log),
                            .dt_bias = wb_model_vector(model, w->dt_bias),
                            .checkpoints = d->checkpoints.data};
}

static wb_norm norm_of(const delta *d, const delta_weights *w) {
    return (wb_norm){wb_model_vector(d->model, w->norm), d->model->config.norm_eps, false};
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    delta *d = worker;
    const delta_weights *w = weights;
    const wb_model *model = d->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, dv = model->config.delta.value_dim, nv = model->config.delta.n_value_heads;
    const wb_rows o = wb_activations(model, &d->o), normed = wb_activations(model, &d->normed);
    WB_TRY(project(d, w, T, x));
    const wb_short_conv conv = conv_args(d, w, pass, state);
    WB_TRY(dev->short_conv_forward(dev, &conv, wb_activations(model, &d->qkv)));
    const wb_gated_delta rule = rule_args(d, w, pass, state);
    WB_TRY(dev->gated_delta_forward(dev, &rule, o));
    WB_TRY(
        dev->gated_rmsnorm_forward(dev, T * nv, dv, o, norm_of(d, w), wb_activations(model, &d->z), normed));
    const wb_matmul out = wb_matmul_forward(T, normed, wb_model_weight(model, w->out), y);
    return dev->matmul(dev, 1, &out);
}

/* ---- backward -------------------------------------------------------------------------------- */

/* dx[T,H] (=, or += with `accumulate`) from the gradient of what x was projected to. */
static wb_status projection_backward(const wb_model *model, int32_t weight, int64_t T, wb_rows x, wb_rows dy,
                                     float *const *grads, bool accumulate, wb_rows dx) {
    const wb_weight w = wb_model_weight(model, weight);
    const wb_matmul list[] = {wb_matmul_wgrad(T, w.cols, w.rows, dy, x, grads[weight]),
                              wb_matmul_dgrad(T, dy, w, dx, accumulate)};
    return model->device->matmul(model->device, 2, list);
}

static wb_status project_backward(const delta *d, const delta_weights *w, int64_t T, wb_rows x, wb_rows du,
                                  wb_rows dz, wb_rows db, wb_rows da, float *const *grads, wb_rows dx) {
    const wb_model *model = d->model;
    if (!model->family->grouped_delta) {
        WB_TRY(projection_backward(model, w->qkv, T, x, du, grads, false, dx));
        WB_TRY(projection_backward(model, w->z, T, x, dz, grads, true, dx));
        WB_TRY(projection_backward(model, w->b, T, x, db, grads, true, dx));
        return projection_backward(model, w->a, T, x, da, grads, true, dx);
    }
    WB_TRY(move_grouped(d, T, du, dz, db, da, true));
    WB_TRY(projection_backward(model, w->qkvz, T, x, wb_activations(model, &d->grouped), grads, false, dx));
    return projection_backward(model, w->ba, T, x, wb_activations(model, &d->grouped_ba), grads, true, dx);
}

/* The gradients of z and u take the places of z and qkv, which nobody reads any more then. */
static wb_status backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx) {
    delta *d = worker;
    const delta_weights *w = weights;
    const wb_model *model = d->model;
    wb_device *dev = model->device;
    const int64_t T = pass->T, dv = model->config.delta.value_dim, nv = model->config.delta.n_value_heads;
    const wb_rows z = wb_activations(model, &d->z), qkv = wb_activations(model, &d->qkv),
                  d_o = wb_activations(model, &d->dnormed), dqkv = wb_activations(model, &d->dqkv),
                  db = wb_activations(model, &d->db), da = wb_activations(model, &d->da);
    WB_TRY(projection_backward(model, w->out, T, wb_activations(model, &d->normed), dy, grads, false, d_o));
    WB_TRY(dev->gated_rmsnorm_backward(dev, T * nv, dv, wb_activations(model, &d->o), norm_of(d, w), z, d_o,
                                       d_o, z, grads[w->norm]));
    const wb_gated_delta rule = rule_args(d, w, pass, NULL);
    WB_TRY(dev->gated_delta_backward(dev, &rule, d_o, dqkv, db, da, grads[w->A_log], grads[w->dt_bias]));
    const wb_short_conv conv = conv_args(d, w, pass, NULL);
    WB_TRY(dev->short_conv_backward(dev, &conv, dqkv, qkv, grads[w->conv]));
    return project_backward(d, w, T, x, qkv, z, db, da, grads, dx);
}

const wb_layer_kind wb_layer_delta_net = {
    .weights_size = sizeof(delta_weights),
    .worker_size = sizeof(delta),
    .declare = declare,
    .state = state_shape,
    .layout = layout,
    .work = work,
    .forward = forward,
    .backward = backward,
};
