/* hooks_gate.c - the router's gate of a foreign trainer, forward and backward, of rows of one layer. Owns:
 * zero weights and gradients of padding rows. Refuses: a backward without its forward, weights that are no
 * finite numbers. */
#include "hooks_internal.h"

#include <inttypes.h>

wb_status wb_hooks_reserve(wb_hooks *h, int64_t T) {
    wb_workspace *w = &h->workspace;
    const size_t most = (size_t)h->options.router.top_k * wb_dtype_size(h->dtype); /* of any layer */
    WB_TRY(wb_reserve(w, &h->ids, T, (int64_t)most, 1));
    WB_TRY(wb_reserve(w, &h->native, T, (int64_t)most, 1));
    WB_TRY(wb_reserve(w, &h->direction, T, 1, 1));
    WB_TRY(wb_reserve_host(w, &h->ids_host, T, most, "hooks: ids"));
    WB_TRY(wb_reserve_host(w, &h->native_host, T, most, "hooks: native ids"));
    WB_TRY(wb_reserve(w, &h->wide, T, h->options.router.top_k, sizeof(uint16_t)));
    return wb_reserve_host(w, &h->wide_host, T, (size_t)h->options.router.top_k * sizeof(uint16_t),
                           "hooks: the trainer's ids");
}

wb_status wb_hooks_start_call(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                              const char *what, gate_call *out) {
    if (!h || !h->in_step) return wb_fail(WB_INVALID_ARGUMENT, "hooks: %s outside of a step", what);
    if (T < 0 || T > UINT32_MAX || layer < 0 || layer >= h->n_layers)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hooks: %s: expected a MoE layer below %" PRId32
                       " and 0..2^32 rows, found layer %" PRId32 " and %" PRId64 " rows",
                       what, h->n_layers, layer, T);
    const wb_router *router = &h->options.router;
    gate_call c = {
        .micro_batch = micro_batch, .layer = layer, .row = row, .T = (uint32_t)T, .router = *router};
    if (h->options.replay)
        c.router.top_k = (int32_t)wb_route_layer_k(wb_replay_model(h->options.replay), (uint32_t)layer);
    c.layer_bytes = (size_t)c.router.top_k * wb_dtype_size(h->dtype);
    if (h->options.replay)
        WB_TRY(wb_replay_rows(h->options.replay, micro_batch, layer, row, c.T, &c.slice));
    else
        c.slice = (wb_replay_slice){.rows = c.T, .any_native = true};
    *out = c;
    return WB_OK;
}

static wb_status start_gate(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                            const float *logits, gate_call *out) {
    if (T > 0 && !logits) return wb_fail(WB_INVALID_ARGUMENT, "hooks: a gate: logits are NULL");
    WB_TRY(wb_hooks_start_call(h, micro_batch, layer, row, T, "a gate", out));
    out->logits = logits;
    return WB_OK;
}

/* A NaN among the logits would train on: the loss of one token takes the whole step with it. */
static wb_status check_weights(wb_hooks *h, const gate_call *c, const float *weights) {
    wb_route_check check = wb_hooks_route_check(c);
    check.weights = weights;
    return h->options.device->check_routes(h->options.device, &check);
}

/* The replay learns what rows chose and what they would have chosen; where they go is the dispatcher's. */
static wb_status keep_choices(wb_hooks *h, const gate_call *c) {
    if (!h->options.replay) return WB_OK;
    const void *chosen = c->slice.want_chosen ? h->ids_host.data : NULL;
    const void *native = c->slice.want_native ? h->native_host.data : NULL;
    const int64_t K = c->router.top_k;
    return wb_replay_choose(h->options.replay, c->micro_batch, c->layer, c->row, c->T, chosen, K, native, K);
}

wb_status wb_hooks_gate_forward(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                                const float *logits, wb_ids ids_out, float *weights_out) {
    gate_call c = {0};
    WB_TRY(start_gate(h, micro_batch, layer, row, T, logits, &c));
    WB_TRY(wb_hooks_check_ids(h, &c, ids_out, "ids_out"));
    hooks_batch *batch;
    WB_TRY(wb_hooks_find_resident(h, &c, &batch));
    if (batch) return wb_hooks_resident_forward(h, batch, &c, ids_out, weights_out);
    WB_TRY(wb_hooks_reserve(h, T));
    wb_device *dev = h->options.device;
    WB_TRY(wb_hooks_choose(h, &c, ids_out));
    const uint8_t *direction = c.slice.any_forced ? h->direction.data : NULL;
    WB_TRY(dev->gate_forward(dev, &c.router, T, logits, direction, hooks_ids(h, &c, &h->ids), weights_out));
    WB_TRY(check_weights(h, &c, weights_out));
    /* This changes the slice's directions in place, from native to forced; padding stays padding. */
    WB_TRY(keep_choices(h, &c));
    return dev->copy_ids(dev, T, c.router.top_k, hooks_ids(h, &c, &h->ids), ids_out);
}

wb_status wb_hooks_gate_backward(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                                 const float *logits, const float *dweights, float *dlogits_out) {
    gate_call c = {0};
    WB_TRY(start_gate(h, micro_batch, layer, row, T, logits, &c));
    hooks_batch *batch;
    WB_TRY(wb_hooks_find_resident(h, &c, &batch));
    if (batch) return wb_hooks_resident_backward(h, batch, &c, dweights, dlogits_out);
    wb_device *dev = h->options.device;
    if (c.slice.undecided)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hooks: micro-batch %" PRId32 ", MoE layer %" PRId32
                       ": backward of rows that no forward has routed",
                       micro_batch, layer);
    if (c.slice.any_native && h->options.router.type == WB_ROUTER_HASH)
        return wb_fail(WB_UNSUPPORTED, "hooks: backward of a hash router in mode off: the ids are the "
                                       "trainer's own, call the device's gate_backward");
    WB_TRY(wb_hooks_reserve(h, T));
    c.slice.want_chosen = c.slice.want_native = false;
    WB_TRY(wb_hooks_choose(h, &c, (wb_ids){0}));
    return dev->gate_backward(dev, &c.router, T, logits, c.slice.any_forced ? h->direction.data : NULL,
                              hooks_ids(h, &c, &h->ids), dweights, dlogits_out);
}
