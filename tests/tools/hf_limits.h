/* hf_limits.h - how far each check of hf_oracle may be off. In bf16 limits count roundings (hf_bounds.h);
 * in f32 they are LEAST_BOUND, or what one more rounding of each weight changes (hf_noise.h), for which the
 * passes are made again. The same runs tell whether bf16 has a limit. */
#ifndef HF_LIMITS_H
#define HF_LIMITS_H

#include "tools/hf_bounds.h"
#include "tools/hf_gradients.h"
#include "tools/hf_noise.h"
#include "tools/hf_passes.h"

#include <math.h>
#include <stdlib.h>

/* The limits of f32, or those that follow from the sizes of what is rounded. */
static void find_bounds(reference *ref) {
    for (int i = 0; i < N_CHECKS; i++) ref->bounds[i] = checks[i].limit;
    if (ref->dtype == WB_F32) return;
    const int64_t T = ref->B * ref->S;
    double router = 0;
    for (int64_t l = 0; l < ref->L; l++) router = fmax(router, largest_row(T, ref->E, ref->layers[l].logits));
    const double bound = rounding_bound(&ref->config, largest_row(T, ref->V, ref->logits));
    ref->bounds[LOGITS] = ref->bounds[FORCED_LOGITS] = bound;
    ref->bounds[FORCED_LOGPROBS] = ref->bounds[FORCED_LOSS] = 2 * bound;
    ref->bounds[ROUTER_LOGITS] = rounding_bound(&ref->config, router);
    ref->bounds[ROUTER_WEIGHTS] = ref->bounds[FORCED_WEIGHTS] = ref->bounds[ROUTER_LOGITS] / 2;
    ref->bounds[GRADIENTS] = 2 * rounding_bound(&ref->config, 1);
    ref->bounds[ENGINE_LOGPROBS] = 0;
}

static float *room_like(int64_t n) {
    return allocate((size_t)n, sizeof(float));
}

/* A reference of the same choices, with room for this model's own results. */
static reference own_open(const rank_run *run) {
    reference own = *run->ref;
    const int64_t T = own.B * own.S;
    own.logits = room_like(T * own.V);
    own.forced_logits = room_like(T * own.V);
    own.forced_logprobs = room_like(own.B * (own.S - 1));
    own.layers = allocate((size_t)own.L, sizeof *own.layers);
    own.kept_grads = allocate((size_t)wb_model_n_tensors(run->model), sizeof *own.kept_grads);
    for (int64_t l = 0; l < own.L; l++) {
        own.layers[l] = run->ref->layers[l];
        own.layers[l].logits = room_like(T * own.E);
        own.layers[l].weights = room_like(T * own.K);
        own.layers[l].forced_weights = room_like(T * own.K);
    }
    return own;
}

static void own_close(const rank_run *run, reference *own) {
    for (int64_t l = 0; l < own->L; l++) {
        free(own->layers[l].logits);
        free(own->layers[l].weights);
        free(own->layers[l].forced_weights);
    }
    for (int32_t i = 0; i < wb_model_n_tensors(run->model); i++) free(own->kept_grads[i]);
    free(own->kept_grads);
    free(own->layers);
    free(own->forced_logprobs);
    free(own->forced_logits);
    free(own->logits);
}

static wb_status noise_pass(rank_run *noise, packed *p, routes *r) {
    WB_TRY(check_training(noise, p, r));
    WB_TRY(check_gradients(noise));
    return wb_train_zero_grads(noise->train);
}

/* Forward and backward by the weights as they are, which are kept, and by weights that were rounded once
 * more. */
static wb_status noise_passes(rank_run *noise, packed *p, routes *r, uint8_t *weights) {
    const double rounding = noise->ref->dtype == WB_F32 ? F32_ROUNDING : UNIT;
    noise->keeps = true;
    WB_TRY(noise_pass(noise, p, r));
    noise->keeps = false;
    WB_TRY(copy_weights(noise->model, noise->device, false, weights));
    for (uint64_t seed = 1; seed <= NOISE_RUNS; seed++) {
        WB_TRY(scatter_weights(noise->model, noise->device, -1, seed, rounding));
        WB_TRY(noise_pass(noise, p, r));
        WB_TRY(copy_weights(noise->model, noise->device, true, weights));
    }
    return WB_OK;
}

static void see_noise(rank_run *run, check_id id, double noise) {
    if (run->ref->dtype == WB_F32)
        run->bounds[id] = noise_bound(noise);
    else if (!(noise <= NOISE_FACTOR * run->bounds[id]))
        run->has_no_limit = true;
}

/* The limits of this rank's checks (hf_noise.h). */
static wb_status find_noise(rank_run *run, packed *p, routes *r) {
    static const check_id moved[] = {LOGITS,        ROUTER_LOGITS,   ROUTER_WEIGHTS, FORCED_WEIGHTS,
                                     FORCED_LOGITS, FORCED_LOGPROBS, GRADIENTS};
    reference own = own_open(run);
    uint8_t *weights = allocate(weight_bytes(run->model), 1);
    rank_run noise = *run;
    noise.ref = &own;
    noise.is_noise = true;
    for (int i = 0; i < N_CHECKS; i++) noise.bounds[i] = INFINITY;
    const wb_status status = noise_passes(&noise, p, r, weights);
    for (size_t i = 0; i < sizeof moved / sizeof moved[0]; i++)
        see_noise(run, moved[i], noise.outcomes[moved[i]].error);
    free(weights);
    own_close(run, &own);
    return status;
}

#endif
