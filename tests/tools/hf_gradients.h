/* hf_gradients.h - every gradient of the trainer beside the reference's, by the name of its tensor.
 * Refuses: a gradient that one side has and the other has not. */
#ifndef HF_GRADIENTS_H
#define HF_GRADIENTS_H

#include "tools/hf_rank.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool without_grad(const reference *ref, const char *name) {
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(ref->meta, "params_without_grad"), i, entry) {
        const char *listed = json_string_value(entry);
        if (listed && strcmp(listed, name) == 0) return true;
    }
    return false;
}

/* Error of a gradient relative to the largest entry of its tensor; in bf16 that of root mean squares. A
 * tensor of nothing but rounding noise (a router whose weights are always 1, an expert that no token chose)
 * must be noise here too: below a millionth of the model's largest. `beside`: what it is measured beside at
 * the least, in that measure. *size_out: its own. */
static double gradient_error(const reference *ref, int64_t n, const float *expected, const float *found,
                             double beside, double *size_out) {
    double largest = 0, difference = 0, squares = 0, squares_off = 0;
    for (int64_t i = 0; i < n; i++) {
        const double value = (double)expected[i];
        const double d = fabs((double)found[i] - value);
        if (isnan(d)) return INFINITY;
        largest = fmax(largest, fabs(value));
        difference = fmax(difference, d);
        squares += value * value;
        squares_off += d * d;
    }
    const bool noise = largest < 1e-6 * ref->largest_grad, rms = ref->dtype != WB_F32 && !noise;
    *size_out = rms ? sqrt(squares / (double)n) : largest;
    if (difference == 0) return 0;
    if (rms) return sqrt(squares_off / (double)n) / fmax(*size_out, beside);
    return difference / fmax(noise ? 1e-2 * ref->largest_grad : largest, beside);
}

/* A scale of hyper-connections is a sum over all tokens and streams of the terms of the bias before it in the
 * list, each times a number near 1. The sum may cancel to nearly nothing, which what it is off by does not:
 * it is measured beside the bias. */
static bool is_beside_bias(const char *name) {
    return strstr(name, "hc_") && strstr(name, "_scale");
}

/* A buffer, in whose place the reference has its value: it only selects, and has no gradient. */
static bool is_selection_bias(const char *name) {
    return strstr(name, "e_score_correction_bias") || strstr(name, "ffn.gate.bias");
}

/* Where the reference has an expert's gradient in one tensor with those of all experts of the layer, as
 * gpt_oss does: [E, inputs, outputs], or [E, outputs] of a bias, outputs of gate and up in turn. Writes
 * its name. */
static void fused_name(const char *name, char out[256]) {
    const char *experts = strstr(name, ".experts.");
    if (!experts) {
        snprintf(out, 256, "%s", name);
        return;
    }
    snprintf(out, 256, "%.*s.experts.%s%s", (int)(experts - name), name,
             strstr(experts, ".down_proj.") ? "down_proj" : "gate_up_proj",
             strstr(experts, ".bias") ? "_bias" : "");
}

/* The elements of such an expert's tensor in its own order. */
static bool read_fused(const reference *ref, const wb_tensor *tensor, float *values) {
    char name[256];
    wb_tensor_view view;
    fused_name(tensor->name, name);
    if (tensor->expert < 0 || wb_safetensors_find(ref->grads, name, &view) != WB_OK) return false;
    const bool down = strstr(tensor->name, ".down_proj.");
    const int64_t turns = down ? 1 : 2, first = strstr(tensor->name, ".up_proj.") ? 1 : 0;
    const int64_t outputs = tensor->shape[0], inputs = tensor->n_dims == 2 ? tensor->shape[1] : 1;
    if (elements(&view) != ref->E * turns * tensor->n) return false;
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
            values[o * inputs + i] =
                float_at(&view, (tensor->expert * inputs + i) * turns * outputs + turns * o + first);
    return true;
}

/* Of tensor i in the reference: by itself, or among those of all experts. */
static bool read_expected(const reference *ref, const wb_tensor *tensor, int32_t i, float *values) {
    wb_tensor_view view;
    if (ref->kept_grads) {
        memcpy(values, ref->kept_grads[i], (size_t)tensor->n * sizeof *values);
        return true;
    }
    if (wb_safetensors_find(ref->grads, tensor->name, &view) != WB_OK) return read_fused(ref, tensor, values);
    if (elements(&view) != tensor->n) return false;
    for (int64_t j = 0; j < tensor->n; j++) values[j] = float_at(&view, j);
    return true;
}

static void compare_gradient(rank_run *run, const wb_tensor *tensor, const float *expected,
                             const float *found) {
    const double beside = is_beside_bias(tensor->name) ? run->last_gradient : 0;
    const double error = gradient_error(run->ref, tensor->n, expected, found, beside, &run->last_gradient);
    if (!(error <= run->bounds[GRADIENTS]))
        fprintf(stderr, "gradient off by %.3g: %s\n", error, tensor->name);
    see_error(&run->outcomes[GRADIENTS], error);
    const bool counts = tensor->expert >= 0 || wb_comm_rank(run->comm) == 0; /* others are every rank's */
    run->n_tensors += counts;
    run->outcomes[GRADIENTS].compared += counts ? tensor->n : 0;
}

static wb_status download_gradient(const rank_run *run, const wb_tensor *tensor, float *values) {
    return run->device->to_host(run->device, values, wb_train_grad(run->train, tensor),
                                (size_t)tensor->n * sizeof(float));
}

static wb_status check_gradient(rank_run *run, const wb_tensor *tensor, int32_t i) {
    const reference *ref = run->ref;
    if (without_grad(ref, tensor->name) || is_selection_bias(tensor->name)) return WB_OK;
    run->n_tensors_expected += tensor->expert >= 0 ? !!tensor->data : wb_comm_rank(run->comm) == 0;
    if (!tensor->data) return WB_OK;
    if (run->keeps) {
        ref->kept_grads[i] = allocate((size_t)tensor->n, sizeof(float));
        return download_gradient(run, tensor, ref->kept_grads[i]);
    }
    float *expected = allocate((size_t)tensor->n, sizeof(float)),
          *found = allocate((size_t)tensor->n, sizeof(float));
    wb_status status = WB_OK;
    if (read_expected(ref, tensor, i, expected)) {
        status = download_gradient(run, tensor, found);
        if (status == WB_OK) compare_gradient(run, tensor, expected, found);
    } else {
        fprintf(stderr, "no gradient of %" PRId64 " elements in the reference: %s\n", tensor->n,
                tensor->name);
        see_error(&run->outcomes[GRADIENTS], INFINITY);
    }
    free(expected);
    free(found);
    return status;
}

/* The reference must name no gradient that the registry does not have. */
static void check_surplus(rank_run *run) {
    const reference *ref = run->ref;
    for (size_t i = 0; i < wb_safetensors_count(ref->grads); i++) {
        wb_tensor_view view;
        if (wb_safetensors_get(ref->grads, i, &view) != WB_OK) die("%s", wb_error_message());
        bool known = without_grad(ref, view.name) || view.dtype == WB_I64; /* a table is no weight */
        for (int32_t j = 0; j < wb_model_n_tensors(run->model) && !known; j++) {
            char fused[256];
            const char *name = wb_model_tensor(run->model, j).name;
            fused_name(name, fused);
            known = strcmp(name, view.name) == 0 || strcmp(fused, view.name) == 0;
        }
        if (known) continue;
        fprintf(stderr, "gradient of a tensor that the model lacks: %s\n", view.name);
        see_error(&run->outcomes[GRADIENTS], INFINITY);
    }
}

static wb_status check_gradients(rank_run *run) {
    for (int32_t i = 0; i < wb_model_n_tensors(run->model); i++) {
        const wb_tensor tensor = wb_model_tensor(run->model, i);
        WB_TRY(check_gradient(run, &tensor, i));
    }
    if (wb_comm_rank(run->comm) == 0 && !run->is_noise) check_surplus(run);
    return WB_OK;
}

#endif
