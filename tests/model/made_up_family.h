/* made_up_family.h - a family and two layer kinds that Waybill does not have, as somebody would add them:
 * nothing outside of this file knows them. The family spells keys and tensors in its own way; the state of
 * one kind is a table that is not keys or values, that of the other one has a fixed size. */
#ifndef MADE_UP_FAMILY_H
#define MADE_UP_FAMILY_H

#include "config.h"
#include "layers/layer.h"
#include "registry.h"
#include "wb_json.h"

#include <string.h>

/* ---- a kind with state by position ----------------------------------------------------------------- */

/* y[t] = gain * (x[t] + x[t - 1]), the token before being one of the same sequence. On the CPU only. */

typedef struct shift_weights {
    int32_t gain; /* [H] */
} shift_weights;

typedef struct shift {
    wb_model *model;
    wb_buffer sums; /* [T, H] x[t] + x[t - 1] */
} shift;

static void shift_declare(wb_registry *registry, int32_t l, void *weights) {
    ((shift_weights *)weights)->gain =
        wb_registry_vector(registry, l, "shift.gain", registry->model->config.hidden_size);
}

/* One table: the x of each position. */
static void shift_state(const wb_config *config, wb_state_shape *shape_out) {
    *shape_out = (wb_state_shape){.n_tables = 1, .width = {config->hidden_size}};
}

static void shift_layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    shift *s = worker;
    s->model = model;
    wb_place_activations(arena, model, &s->sums, sizes->tokens, model->config.hidden_size);
}

static double shift_work(const wb_config *config, const wb_sizes *sizes) {
    return (double)sizes->tokens * config->hidden_size;
}

/* The x of the token before t, or NULL at a sequence's start. */
static const float *previous(const wb_pass *pass, const wb_state *state, const float *x, int64_t H,
                             int64_t t) {
    const int32_t pos = pass->pos[t] - 1;
    if (pos < 0) return NULL;
    const float *rows = state ? state->tables[0] : x;
    const int32_t block = pass->blocks[(int64_t)pass->seq[t] * pass->max_blocks + pos / pass->block_size];
    return rows + ((int64_t)block * pass->block_size + pos % pass->block_size) * H;
}

static wb_status shift_forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                               wb_rows x_rows, wb_rows y_rows) {
    shift *s = worker;
    const float *x = x_rows.data;
    float *y = y_rows.data;
    wb_device *dev = s->model->device;
    const int64_t T = pass->T, H = s->model->config.hidden_size;
    const float *gain = wb_model_vector(s->model, ((const shift_weights *)weights)->gain);
    if (state) WB_TRY(dev->kv_write(dev, T, H, x_rows, pass->state_rows, wb_state_rows(state, 0)));
    float *sums = s->sums.data;
    for (int64_t t = 0; t < T; t++) {
        const float *before = previous(pass, state, x, H, t);
        for (int64_t i = 0; i < H; i++) {
            sums[t * H + i] = x[t * H + i] + (before ? before[i] : 0);
            y[t * H + i] = gain[i] * sums[t * H + i];
        }
    }
    return WB_OK;
}

static wb_status shift_backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x,
                                wb_rows dy_rows, float *const *grads, wb_rows dx_rows) {
    const shift *s = worker;
    const float *dy = dy_rows.data;
    float *dx = dx_rows.data;
    const int64_t T = pass->T, H = s->model->config.hidden_size;
    const int32_t param = ((const shift_weights *)weights)->gain;
    const float *gain = wb_model_vector(s->model, param), *sums = s->sums.data;
    (void)x;
    for (int64_t t = 0; t < T; t++) {
        const bool followed = t + 1 < T && pass->pos[t + 1] > 0;
        for (int64_t i = 0; i < H; i++) {
            const float next = followed ? dy[(t + 1) * H + i] : 0;
            dx[t * H + i] = gain[i] * (dy[t * H + i] + next);
            grads[param][i] += dy[t * H + i] * sums[t * H + i];
        }
    }
    return WB_OK;
}

static const wb_layer_kind layer_shift = {
    .weights_size = sizeof(shift_weights),
    .worker_size = sizeof(shift),
    .declare = shift_declare,
    .state = shift_state,
    .layout = shift_layout,
    .work = shift_work,
    .forward = shift_forward,
    .backward = shift_backward,
};

/* ---- a kind with state by sequence ----------------------------------------------------------------- */

/* y[t] = gain * m[t] / n[t], an average in which a token counts half as much as the one behind it:
 * m[t] = m[t - 1] / 2 + x[t], n[t] = n[t - 1] / 2 + 1, both zero before a sequence's first token. On the CPU
 * only. The state is m[H] and n. */

typedef struct decay_weights {
    int32_t gain; /* [H] */
} decay_weights;

typedef struct decay {
    wb_model *model;
    wb_buffer sums; /* [T, H + 1] f32 m and n behind each token */
} decay;

static void decay_declare(wb_registry *registry, int32_t l, void *weights) {
    ((decay_weights *)weights)->gain =
        wb_registry_vector(registry, l, "decay.gain", registry->model->config.hidden_size);
}

static void decay_state(const wb_config *config, wb_state_shape *shape_out) {
    shape_out->sequence_bytes = (int64_t)sizeof(float) * (config->hidden_size + 1);
}

static void decay_layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    decay *d = worker;
    d->model = model;
    wb_place(arena, &d->sums, sizes->tokens, model->config.hidden_size + 1, sizeof(float));
}

static double decay_work(const wb_config *config, const wb_sizes *sizes) {
    return 3 * (double)sizes->tokens * config->hidden_size;
}

/* m and n behind a token, from those before it; NULL: zeros. */
static void decay_step(int64_t H, const float *before, const float *x, float *after) {
    for (int64_t i = 0; i <= H; i++) after[i] = (before ? before[i] / 2 : 0) + (i < H ? x[i] : 1);
}

static wb_status decay_forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                               wb_rows x_rows, wb_rows y_rows) {
    decay *d = worker;
    const float *x = x_rows.data;
    float *y = y_rows.data, *sums = d->sums.data;
    const int64_t H = d->model->config.hidden_size;
    const float *gain = wb_model_vector(d->model, ((const decay_weights *)weights)->gain);
    for (const wb_sequence_run *run = pass->runs; run < pass->runs + pass->n_runs; run++) {
        float *kept = state ? wb_sequence_state(state, run->state) : NULL;
        const float *before = kept;
        for (int64_t t = run->start; t < run->start + run->n; t++) {
            float *after = sums + t * (H + 1);
            decay_step(H, before, x + t * H, after);
            for (int64_t i = 0; i < H; i++) y[t * H + i] = gain[i] * (after[i] / after[H]);
            before = after;
        }
        if (kept) memcpy(kept, before, (size_t)(H + 1) * sizeof(float));
    }
    for (int64_t t = pass->T; t > 0 && pass->seq[t - 1] < 0; t--)
        memset(y + (t - 1) * H, 0, (size_t)H * sizeof(float));
    return WB_OK;
}

static wb_status decay_backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x,
                                wb_rows dy_rows, float *const *grads, wb_rows dx_rows) {
    const decay *d = worker;
    const float *dy = dy_rows.data, *sums = d->sums.data;
    float *dx = dx_rows.data;
    const int64_t H = d->model->config.hidden_size;
    const int32_t param = ((const decay_weights *)weights)->gain;
    const float *gain = wb_model_vector(d->model, param);
    (void)x;
    for (const wb_sequence_run *run = pass->runs; run < pass->runs + pass->n_runs; run++) {
        const int64_t last = run->start + run->n - 1;
        for (int64_t t = last; t >= run->start; t--) {
            const float *m = sums + t * (H + 1), n = m[H];
            for (int64_t i = 0; i < H; i++) {
                const float next = t < last ? dx[(t + 1) * H + i] / 2 : 0;
                dx[t * H + i] = gain[i] * dy[t * H + i] / n + next;
                grads[param][i] += dy[t * H + i] * (m[i] / n);
            }
        }
    }
    return WB_OK;
}

static const wb_layer_kind layer_decay = {
    .weights_size = sizeof(decay_weights),
    .worker_size = sizeof(decay),
    .declare = decay_declare,
    .state = decay_state,
    .layout = decay_layout,
    .work = decay_work,
    .forward = decay_forward,
    .backward = decay_backward,
};

/* ---- the family ----------------------------------------------------------------------------------- */

/* "experts_by_layer": the K of each MoE layer, of which num_experts_per_tok is the largest. */
static wb_status made_up_read_top_k(const json_t *root, wb_config *config) {
    const json_t *list = json_object_get(root, "experts_by_layer");
    if (!list) return WB_OK;
    if (json_array_size(list) != (size_t)wb_config_n_moe(config))
        return wb_fail(WB_INVALID_ARGUMENT, "experts_by_layer: expected a number for each MoE layer");
    for (size_t l = 0; l < json_array_size(list); l++)
        config->layer_top_k[l] = (uint32_t)json_integer_value(json_array_get(list, l));
    return WB_OK;
}

/* Layers from "first_sparse" on are MoE; "zero_experts" come after the num_experts that have weights. */
static wb_status made_up_read(const json_t *root, wb_config *config) {
    int32_t first = 0;
    WB_TRY(wb_json_int(root, "zero_experts", 0, &config->n_weightless));
    config->router.n_experts += config->n_weightless;
    WB_TRY(wb_json_int(root, "first_sparse", WB_JSON_REQUIRED, &first));
    for (int32_t l = 0; l < first; l++) config->moe_layer_mask[l / 64] &= ~(UINT64_C(1) << (l % 64));
    WB_TRY(made_up_read_top_k(root, config));
    return wb_json_int(root, "dense_size", 0, &config->dense_width);
}

static int made_up_write(const wb_config *config, json_t *root) {
    json_t *list = json_array();
    int failed = json_object_set_new(root, "num_experts", json_integer(wb_config_weighted(config))) ||
                 json_object_set_new(root, "zero_experts", json_integer(config->n_weightless));
    for (int32_t l = 0; config->layer_top_k[0] > 0 && l < wb_config_n_moe(config); l++)
        failed |= json_array_append_new(list, json_integer(config->layer_top_k[l]));
    failed |= config->layer_top_k[0] > 0 ? json_object_set(root, "experts_by_layer", list) : 0;
    json_decref(list);
    return failed ||
           json_object_set_new(root, "first_sparse",
                               json_integer(config->n_layers - wb_config_n_moe(config))) ||
           json_object_set_new(root, "dense_size", json_integer(config->dense_width));
}

static wb_layer_parts made_up_layer(const wb_config *config, int32_t l) {
    static const wb_layer_kind *const mixers[] = {&layer_shift, &wb_layer_attention_gqa, &layer_decay,
                                                  &layer_decay};
    return (wb_layer_parts){mixers[l % 4], wb_config_is_moe(config, l) ? &wb_layer_moe : &wb_layer_mlp};
}

static const wb_rename made_up_renames[] = {
    {"model.layers", "transformer.h"},        {"model.embed_tokens.weight", "wte.weight"},
    {"mlp.gate.weight", "moe.router.weight"}, {"mlp.experts", "moe.experts"},
    {"gate_proj.weight", "w1.weight"},        {"up_proj.weight", "w3.weight"},
    {"down_proj.weight", "w2.weight"},        {NULL, NULL},
};

static const wb_family_rules made_up_family = {
    .model_type = "made_up",
    .architecture = "MadeUpForCausalLM",
    .expert_width_key = "expert_size",
    .qk_norm = WB_QK_NORM_NONE,
    .norm_eps = 1e-5,
    .rope_theta = 5000.0,
    .max_positions = 64,
    .n_kv_heads = 2,
    .router_types = {WB_ROUTER_SOFTMAX_NORM, WB_ROUTER_SOFTMAX_NORM},
    .moe_layers = WB_MOE_FROM_LAYER,
    .layer_choices = true,
    .read = made_up_read,
    .write = made_up_write,
    .layer = made_up_layer,
    .renames = made_up_renames,
};

/* A small one of it, with two experts without weights and a K of its own in each MoE layer. */
static inline wb_status made_up_config(wb_config *config_out) {
    static const char text[] =
        "{\"hidden_size\":16,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"expert_size\":8,"
        "\"vocab_size\":31,\"num_experts\":6,\"zero_experts\":2,\"num_experts_per_tok\":3,"
        "\"experts_by_layer\":[2,3,1],\"first_sparse\":1,\"dense_size\":12}";
    json_t *root;
    *config_out = (wb_config){0};
    WB_TRY(wb_json_parse(text, sizeof text - 1, "test", &root));
    const wb_status status = wb_config_parse(root, &made_up_family, config_out);
    json_decref(root);
    return status;
}

#endif
