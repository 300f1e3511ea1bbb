/* hf_passes.h - the training passes of hf_oracle: a forward by native routing, or by the reference's own
 * choices where these are forced, and a forced one with its backward, each compared with the reference.
 * Leaves the gradients with the trainer (hf_gradients.h). */
#ifndef HF_PASSES_H
#define HF_PASSES_H

#include "tools/hf_choices.h"

#include <string.h>

static void probe_native(void *ctx, int32_t layer, int64_t T, const float *logits, const float *weights) {
    rank_run *run = ctx;
    const reference *ref = run->ref;
    for (int64_t t = 0; t < T; t++) {
        const int64_t row = reference_row(run, t);
        see_result(run, ROUTER_LOGITS, ref->E, logits + t * ref->E, ref->layers[layer].logits + row * ref->E);
        see_weights(run, weights + t * ref->K, ref->layers[layer].weights + row * ref->K);
    }
}

/* `r`: where the choices come; forced: device [T], NULL where each row goes where it chooses. */
static wb_status native_forward(rank_run *run, packed *p, routes *r, const uint8_t *forced) {
    const reference *ref = run->ref;
    routes own;
    const wb_router_probe probe = {probe_native, run};
    wb_status status = routes_open(run, p->batch.T, &own);
    const wb_routing routing = {
        .ids = r->device_ids, .direction = forced, .native = forced ? own.device_ids : NULL};
    routes *const chosen = forced ? &own : r;
    if (status == WB_OK && forced) status = put_choices(run, r, false);
    if (status == WB_OK) status = wb_train_forward(run->train, &p->batch, &routing, &probe, p->logprobs);
    if (status == WB_OK) status = wb_train_logits(run->train, p->logits);
    if (status == WB_OK) status = routes_download(chosen);
    if (status == WB_OK) compare_logits(run, LOGITS, p->logits, ref->logits);
    if (status == WB_OK) see_routes(run, chosen);
    routes_close(&own);
    return status;
}

static void probe_forced(void *ctx, int32_t layer, int64_t T, const float *logits, const float *weights) {
    (void)logits;
    rank_run *run = ctx;
    const int64_t K = run->ref->K;
    for (int64_t t = 0; t < T; t++)
        see_result(run, FORCED_WEIGHTS, K, weights + t * K,
                   run->ref->layers[layer].forced_weights + reference_row(run, t) * K);
}

static wb_status forced_forward(rank_run *run, packed *p, routes *r, const uint8_t *forced) {
    const reference *ref = run->ref;
    const wb_routing routing = {.ids = r->device_ids, .direction = forced};
    const wb_router_probe probe = {probe_forced, run};
    wb_status status = wb_train_forward(run->train, &p->batch, &routing, &probe, p->logprobs);
    if (status == WB_OK) status = wb_train_logits(run->train, p->logits);
    if (status != WB_OK) return status;
    compare_logits(run, FORCED_LOGITS, p->logits, ref->forced_logits);
    const double n = (double)(ref->B * (ref->S - 1));
    for (int64_t t = 0; t < p->batch.T; t++) {
        if (p->targets[t] < 0) continue;
        const int64_t row = reference_row(run, t);
        see_result(run, FORCED_LOGPROBS, 1, &p->logprobs[t],
                   &ref->forced_logprobs[row / ref->S * (ref->S - 1) + row % ref->S]);
        run->loss -= (double)p->logprobs[t] / n;
        p->logprobs[t] = (float)(-1.0 / n); /* from here on dloss / dlogprob */
    }
    status = wb_train_backward(run->train, p->logprobs);
    return status == WB_OK ? wb_train_reduce_grads(run->train) : status;
}

static wb_status check_passes(rank_run *run, packed *p, routes *r, const uint8_t *forced) {
    WB_TRY(native_forward(run, p, r, run->ref->dtype == WB_F32 && !run->is_noise ? NULL : forced));
    WB_TRY(put_choices(run, r, true));
    return forced_forward(run, p, r, forced);
}

/* Native, then forced with its backward. */
static wb_status check_training(rank_run *run, packed *p, routes *r) {
    const size_t T = (size_t)p->batch.T;
    uint8_t *ones = allocate(T, 1);
    memset(ones, WB_ROW_FORCED, T);
    void *forced = NULL;
    wb_status status = run->device->mem_alloc(run->device, T, &forced);
    if (status == WB_OK) status = run->device->to_device(run->device, forced, ones, T);
    if (status == WB_OK) status = check_passes(run, p, r, forced);
    run->device->mem_free(run->device, forced);
    free(ones);
    return status;
}

#endif
