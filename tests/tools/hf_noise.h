/* hf_noise.h - weights that are moved at random by a part of themselves: by a rounding, which says how
 * exact a model's results can be, or by so much that a comparison has to see it.
 *
 * A bound of f32 that follows from the model. Two programs that compute the same in f32 round otherwise,
 * and what that comes to at the end depends on the model: some forget it, in others each layer makes it
 * larger, as where attention is sharp, a state lasts or a norm divides by little. So the limit of a check is
 * the larger one of LEAST_BOUND and NOISE_FACTOR times what the model's own result changes by where each of
 * its weights is rounded once more, to the f32 above or below it: the largest change of NOISE_RUNS such runs.
 * Sums of products round as often as there are weights, but mostly smaller numbers, which is why a program is
 * off by no more than that; two programs are NOISE_FACTOR. Of make_oracle.py's models transformers and this
 * engine are half of one apart. An error of a thousandth of one layer's weights is ten thousand times as
 * large (--plant).
 *
 * In bf16, whose limits count roundings and hold where no part makes an error larger than it came
 * (hf_bounds.h), the same runs tell whether the model is such a one: two of them are off by a limit each, so
 * where they differ by more than NOISE_FACTOR of it, bf16 has none.
 *
 * Refuses: what is compared (hf_limits.h). */
#ifndef HF_NOISE_H
#define HF_NOISE_H

#include "wb_check.h"
#include "wb_device.h"
#include "wb_exact_math.h"
#include "wb_model.h"
#include "wb_random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LEAST_BOUND 1e-4
#define MOST_BOUND 1e-2
/* Of what is rounded to f32, relative. */
#define F32_ROUNDING 0x1p-24

enum { NOISE_FACTOR = 2, NOISE_RUNS = 4 };

/* Where noise is larger, or no number, nothing can be compared, and what is off by more than MOST_BOUND is
 * said to be. */
static inline double noise_bound(double noise) {
    return fmin(MOST_BOUND, fmax(LEAST_BOUND, NOISE_FACTOR * noise));
}

/* A number up or down by `amount` of itself. */
static inline float scatter(uint64_t seed, int64_t i, double amount, float value) {
    return (float)((double)value * (1 + (wb_random_at(seed, (uint64_t)i) & 1 ? amount : -amount)));
}

static inline void scatter_values(uint64_t seed, double amount, wb_dtype dtype, int64_t n, void *values) {
    float *wide = values;
    uint16_t *narrow = values;
    for (int64_t i = 0; i < n; i++)
        if (dtype == WB_F32)
            wide[i] = scatter(seed, i, amount, wide[i]);
        else
            narrow[i] = wb_f32_to_bf16(scatter(seed, i, amount, wb_bf16_to_f32(narrow[i])));
}

static inline wb_status scatter_tensor(wb_device *device, const wb_tensor *t, uint64_t seed, double amount) {
    const size_t bytes = (size_t)t->n * wb_dtype_size(t->dtype);
    void *values = malloc(bytes);
    if (!values) return wb_fail(WB_OUT_OF_MEMORY, "%s", t->name);
    wb_status status = device->to_host(device, values, t->data, bytes);
    if (status == WB_OK) scatter_values(seed, amount, t->dtype, t->n, values);
    if (status == WB_OK) status = device->to_device(device, t->data, values, bytes);
    free(values);
    return status;
}

/* The decoder's weights that live here, of one layer or of all (-1): the same on all ranks. */
static inline wb_status scatter_weights(wb_model *model, wb_device *device, int32_t layer, uint64_t seed,
                                        double amount) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor t = wb_model_tensor(model, i);
        if (!t.data || (layer >= 0 && t.layer != layer)) continue;
        WB_TRY(scatter_tensor(device, &t, wb_random_at(seed, (uint64_t)i), amount));
    }
    return WB_OK;
}

/* Room for these weights, one tensor behind the other. */
static inline size_t weight_bytes(const wb_model *model) {
    size_t bytes = 0;
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor t = wb_model_tensor(model, i);
        bytes += (size_t)t.n * wb_dtype_size(t.dtype);
    }
    return bytes;
}

/* Out of the model into `kept`, or back. */
static inline wb_status copy_weights(wb_model *model, wb_device *device, bool back, uint8_t *kept) {
    for (int32_t i = 0; i < wb_model_n_tensors(model); i++) {
        const wb_tensor t = wb_model_tensor(model, i);
        const size_t bytes = (size_t)t.n * wb_dtype_size(t.dtype);
        if (t.data)
            WB_TRY(back ? device->to_device(device, t.data, kept, bytes)
                        : device->to_host(device, kept, t.data, bytes));
        kept += bytes;
    }
    return WB_OK;
}

#endif
