/* rollout_weights.c - what the engine gets of the policy: its weights or, under --rollout-bits, a copy of
 * them in which each matrix of attention and of the experts holds what integers of so many bits with a scale
 * a row can say, as an engine with quantised weights has them. Refuses: computing with integers; the values
 * are those of a quantised model, and the products are the rollout's own. */
#include "grpo.h"
#include "open_sizes.h"
#include "wb_memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct rollout_weights {
    const options *o;
    wb_model *rounded; /* NULL without --rollout-bits */
    float *matrix;     /* host, of the largest tensor */
};

/* Embeddings, the output matrix and the router keep their bits, as they do in quantised checkpoints. */
static bool is_quantised(const wb_tensor *tensor) {
    return tensor->layer >= 0 && tensor->n_dims == 2 && !strstr(tensor->name, ".gate.weight");
}

/* To the nearest multiple of the row's largest value / levels. */
static void round_row(float *row, int64_t n, float levels) {
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(row[i]));
    const float scale = largest / levels;
    for (int64_t i = 0; i < n && scale > 0; i++) row[i] = rintf(row[i] / scale) * scale;
}

static wb_status round_tensor(rollout_weights *w, int32_t i) {
    const wb_tensor tensor = wb_model_tensor(w->rounded, i);
    wb_device *device = wb_model_device(w->rounded);
    const size_t bytes = (size_t)tensor.n * sizeof *w->matrix;
    const float levels = (float)((1 << (w->o->rollout_bits - 1)) - 1);
    if (!tensor.data || !is_quantised(&tensor)) return WB_OK;
    WB_TRY(device->to_host(device, w->matrix, tensor.data, bytes));
    for (int64_t row = 0; row < tensor.shape[0]; row++)
        round_row(w->matrix + row * tensor.shape[1], tensor.shape[1], levels);
    WB_TRY(device->to_device(device, tensor.data, w->matrix, bytes));
    return wb_model_fill_replicas(w->rounded, i);
}

static wb_status round_all(rollout_weights *w) {
    for (int32_t i = 0; i < wb_model_n_tensors(w->rounded); i++) WB_TRY(round_tensor(w, i));
    return WB_OK;
}

/* The engine's copy rounds to its own dtype afterwards. */
static wb_status open_rounded(const trainer *t, rollout_weights *w) {
    const wb_model_options model = sizes_rounded(t->device, t->comm, NULL);
    int64_t largest = 0;
    WB_TRY(wb_model_clone(t->model, &model, &w->rounded));
    for (int32_t i = 0; i < wb_model_n_tensors(w->rounded); i++) {
        const int64_t n = wb_model_tensor(w->rounded, i).n;
        largest = n > largest ? n : largest;
    }
    wb_status status = WB_NEW(w->matrix, (size_t)largest, "a matrix of --rollout-bits");
    if (status == WB_OK) status = wb_model_reserve_copy(w->rounded, t->model);
    return wb_comm_agree(t->comm, status);
}

wb_status rollout_weights_open(const trainer *t, rollout_weights **weights_out) {
    rollout_weights *w;
    WB_TRY(wb_comm_agree(t->comm, WB_NEW(w, 1, "weights of the rollout")));
    w->o = t->o;
    const wb_status status = t->o->rollout_bits > 0 ? open_rounded(t, w) : WB_OK;
    if (status == WB_OK)
        *weights_out = w;
    else
        rollout_weights_close(w);
    return status;
}

void rollout_weights_close(rollout_weights *w) {
    if (!w) return;
    wb_model_close(w->rounded);
    free(w->matrix);
    free(w);
}

wb_status rollout_weights_set(rollout_weights *w, const trainer *t, wb_engine *engine) {
    if (!w->rounded) return wb_engine_set_weights(engine, t->model, t->weight_version);
    WB_TRY(wb_model_copy_weights(w->rounded, t->model));
    WB_TRY(wb_comm_agree(t->comm, round_all(w)));
    return wb_engine_set_weights(engine, w->rounded, t->weight_version);
}
