/* hooks_resident.c - the micro-batches of a step under record and replay. The plan of one is brought to the
 * device once; gates, backwards and dispatchers of it then run without the host: no copy, no wait, so that
 * they can be captured in a CUDA graph. What rows have chosen, what all would have chosen and what the device
 * found wrong is learned when the step ends. Refuses: mode OFF and hash routers (hooks_choose.c). */
#include "hooks_internal.h"

#include <inttypes.h>
#include <string.h>

/* In hooks_batch.noted: what calls of this step have done with a row in a layer. */
enum {
    SELECTED = 1, /* it has gone through a gate: the device has its ids, and what it would have chosen */
    TOLD = 2      /* its dispatcher was compared */
};

/* ---- the micro-batches of a step ---------------------------------------------------------------- */

wb_status wb_hooks_begin_batches(wb_hooks *h, int32_t n) {
    WB_TRY(WB_GROW(h->batches, (size_t)n, &h->batch_capacity, "hooks: micro-batches"));
    while (h->made_batches < (size_t)n) {
        WB_TRY(WB_OWN(&h->workspace.host, h->batches[h->made_batches], 1, "hooks: a micro-batch"));
        h->made_batches++;
    }
    h->n_batches = (size_t)n;
    for (size_t i = 0; i < h->n_batches; i++) h->batches[i]->resident = false;
    return WB_OK;
}

static size_t row_bytes(const wb_hooks *h) {
    return (size_t)h->row_ids * wb_dtype_size(h->dtype);
}

/* Bytes from the beginning of a route tensor to a row's ids in a layer. */
static size_t byte_of(const wb_hooks *h, uint32_t row, int32_t layer) {
    const size_t first = wb_route_layer_first(wb_replay_model(h->options.replay), (uint32_t)layer);
    return row * row_bytes(h) + first * wb_dtype_size(h->dtype);
}

static wb_status reserve(wb_hooks *h, hooks_batch *b, uint32_t T) {
    wb_workspace *w = &h->workspace;
    const int64_t cells = (int64_t)h->n_layers * T;
    WB_TRY(wb_reserve(w, &b->ids, T, 1, row_bytes(h)));
    WB_TRY(wb_reserve(w, &b->native, T, 1, row_bytes(h)));
    WB_TRY(wb_reserve(w, &b->direction, cells + T, 1, 1));
    WB_TRY(wb_reserve_host(w, &b->direction_host, cells + T, 1, "hooks: directions"));
    return wb_reserve_host(w, &b->noted, cells, 1, "hooks: rows seen");
}

/* The directions of each layer, and behind them those of rows that have all chosen. */
static wb_status read_directions(wb_hooks *h, int32_t index, uint32_t T, uint8_t *to) {
    int32_t first, n;
    wb_replay_slice slice = {0};
    wb_replay_stage(h->options.replay, &first, &n);
    memset(to, WB_ROW_FORCED, ((size_t)h->n_layers + 1) * T);
    for (int32_t l = first; l < first + n; l++) {
        WB_TRY(wb_replay_rows(h->options.replay, index, l, 0, T, &slice));
        memcpy(to + (size_t)l * T, slice.direction, T);
    }
    uint8_t *decided = to + (size_t)h->n_layers * T;
    for (uint32_t t = 0; n > 0 && t < T; t++)
        if (slice.direction[t] == WB_ROW_PADDING) decided[t] = WB_ROW_PADDING;
    return WB_OK;
}

/* Brings the plan as the replay has it now. */
static wb_status bring_plan(wb_hooks *h, int32_t index) {
    hooks_batch *b = h->batches[index];
    wb_device *dev = h->options.device;
    const uint32_t T = wb_replay_micro_batch_rows(h->options.replay, index);
    const size_t cells = (size_t)h->n_layers * T;
    wb_replay_slice all;
    WB_TRY(wb_replay_rows(h->options.replay, index, WB_ALL_LAYERS, 0, T, &all));
    WB_TRY(reserve(h, b, T));
    WB_TRY(read_directions(h, index, T, b->direction_host.data));
    if (T > 0) {
        WB_TRY(dev->to_device(dev, b->ids.data, all.ids, T * row_bytes(h)));
        WB_TRY(dev->to_device(dev, b->direction.data, b->direction_host.data, cells + T));
    }
    memset(b->noted.data, 0, cells);
    b->T = T;
    b->resident = true;
    return WB_OK;
}

static uint8_t *noted_at(const hooks_batch *b, const gate_call *c) {
    return (uint8_t *)b->noted.data + (size_t)c->layer * b->T + c->row;
}

/* Whether somebody else has told the replay what rows of the call choose since the plan was brought, as the
 * user of a table of ids does. */
static bool was_changed(const hooks_batch *b, const gate_call *c) {
    const uint8_t *brought = (const uint8_t *)b->direction_host.data + (size_t)c->layer * b->T + c->row;
    const uint8_t *noted = noted_at(b, c), *now = c->slice.direction;
    if (memcmp(brought, now, c->T) == 0) return false;
    for (uint32_t t = 0; t < c->T; t++)
        if (brought[t] != now[t] && (noted[t] & SELECTED) == 0) return true;
    return false;
}

wb_status wb_hooks_find_resident(wb_hooks *h, const gate_call *c, hooks_batch **batch_out) {
    *batch_out = NULL;
    if (h->mode == WB_REPLAY_OFF || h->options.router.type == WB_ROUTER_HASH) return WB_OK;
    hooks_batch *b = h->batches[c->micro_batch];
    if (b->resident && was_changed(b, c)) {
        WB_TRY(wb_hooks_settle(h));
        b->resident = false;
    }
    if (!b->resident) WB_TRY(bring_plan(h, c->micro_batch));
    *batch_out = b;
    return WB_OK;
}

/* ---- calls ---------------------------------------------------------------------------------- */

/* The rows of a call in a route tensor of its micro-batch. */
static wb_ids ids_at(const wb_hooks *h, const wb_buffer *tensor, const gate_call *c) {
    return (wb_ids){(char *)tensor->data + byte_of(h, c->row, c->layer), h->dtype, h->row_ids};
}

/* Directions of the call's rows: before they have chosen, or after it. */
static const uint8_t *directions_at(const wb_hooks *h, const hooks_batch *b, const gate_call *c,
                                    bool chosen) {
    const size_t layer = (size_t)(chosen ? h->n_layers : c->layer);
    return (const uint8_t *)b->direction.data + layer * b->T + c->row;
}

/* Of rows that go through a gate for the first time: what those that choose go to, and what all would have
 * chosen. */
static wb_status select_rows(wb_hooks *h, const hooks_batch *b, const gate_call *c) {
    wb_device *dev = h->options.device;
    const wb_topk args = {.router = c->router,
                          .T = c->T,
                          .logits = c->logits,
                          .bias = h->options.bias ? h->options.bias[c->layer] : NULL,
                          .direction = directions_at(h, b, c, false),
                          .ids = ids_at(h, &b->ids, c),
                          .native = ids_at(h, &b->native, c)};
    return dev->topk(dev, &args);
}

/* Run by run of rows, for a recompute may come in other slices than the forward. */
static wb_status select_new(wb_hooks *h, const hooks_batch *b, const gate_call *c) {
    const uint8_t *noted = noted_at(b, c);
    const size_t E = (size_t)c->router.n_experts;
    for (uint32_t begin = 0, end; begin < c->T; begin = end) {
        gate_call run = *c;
        for (end = begin + 1; end < c->T && ((noted[end] ^ noted[begin]) & SELECTED) == 0; end++) continue;
        run.row += begin;
        run.T = end - begin;
        run.logits += begin * E;
        if ((noted[begin] & SELECTED) == 0) WB_TRY(select_rows(h, b, &run));
    }
    return WB_OK;
}

wb_status wb_hooks_resident_forward(wb_hooks *h, const hooks_batch *b, const gate_call *c, wb_ids ids_out,
                                    float *weights_out) {
    wb_device *dev = h->options.device;
    const wb_ids planned = ids_at(h, &b->ids, c);
    wb_route_check check = wb_hooks_route_check(c);
    check.weights = weights_out;
    WB_TRY(select_new(h, b, c));
    WB_TRY(dev->gate_forward(dev, &c->router, c->T, c->logits, directions_at(h, b, c, true), planned,
                             weights_out));
    WB_TRY(dev->check_routes(dev, &check));
    WB_TRY(dev->copy_ids(dev, c->T, c->router.top_k, planned, ids_out));
    for (uint32_t t = 0; t < c->T; t++) noted_at(b, c)[t] |= SELECTED;
    return WB_OK;
}

/* Whether each row of the call has its ids: forced ones from the start, others once a gate has seen them. */
static bool are_decided(const hooks_batch *b, const gate_call *c) {
    const uint8_t *noted = noted_at(b, c), *direction = c->slice.direction;
    for (uint32_t t = 0; t < c->T; t++)
        if (direction[t] == WB_ROW_NATIVE && (noted[t] & SELECTED) == 0) return false;
    return true;
}

static wb_status check_decided(const hooks_batch *b, const gate_call *c, const char *what) {
    if (are_decided(b, c)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "hooks: micro-batch %" PRId32 ", MoE layer %" PRId32
                   ": %s rows that no forward has routed",
                   c->micro_batch, c->layer, what);
}

wb_status wb_hooks_resident_backward(wb_hooks *h, const hooks_batch *b, const gate_call *c,
                                     const float *dweights, float *dlogits_out) {
    wb_device *dev = h->options.device;
    WB_TRY(check_decided(b, c, "backward of"));
    return dev->gate_backward(dev, &c->router, c->T, c->logits, directions_at(h, b, c, true),
                              ids_at(h, &b->ids, c), dweights, dlogits_out);
}

wb_status wb_hooks_resident_dispatched(wb_hooks *h, const hooks_batch *b, const gate_call *c, wb_ids ids) {
    wb_device *dev = h->options.device;
    wb_route_check check = wb_hooks_route_check(c);
    check.planned = ids_at(h, &b->ids, c);
    check.taken = ids;
    WB_TRY(check_decided(b, c, "dispatched"));
    WB_TRY(dev->check_routes(dev, &check));
    for (uint32_t t = 0; t < c->T; t++) noted_at(b, c)[t] |= TOLD;
    return WB_OK;
}

/* ---- the end of a step ------------------------------------------------------------------------- */

/* Tells the replay what became of rows [row, row + rows) of a layer, which have the same in `noted`. */
static wb_status tell_rows(wb_hooks *h, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                           int noted) {
    wb_replay *r = h->options.replay;
    const size_t at = byte_of(h, row, layer);
    const uint8_t *ids = (const uint8_t *)h->ids_host.data + at;
    const uint8_t *native = (const uint8_t *)h->native_host.data + at;
    const int64_t stride = h->row_ids;
    if (noted & SELECTED) WB_TRY(wb_replay_choose(r, index, layer, row, rows, ids, stride, native, stride));
    if (noted & TOLD) WB_TRY(wb_replay_store(r, index, layer, row, rows, ids, stride, NULL, 0));
    return WB_OK;
}

static wb_status tell_layer(wb_hooks *h, int32_t index, int32_t layer) {
    const hooks_batch *b = h->batches[index];
    const uint8_t *noted = (const uint8_t *)b->noted.data + (size_t)layer * b->T;
    for (uint32_t begin = 0, end; begin < b->T; begin = end) {
        for (end = begin + 1; end < b->T && noted[end] == noted[begin]; end++) continue;
        WB_TRY(tell_rows(h, index, layer, begin, end - begin, noted[begin]));
    }
    return WB_OK;
}

static wb_status settle_batch(wb_hooks *h, int32_t index) {
    const hooks_batch *b = h->batches[index];
    wb_device *dev = h->options.device;
    const size_t bytes = b->T * row_bytes(h);
    if (!b->resident || bytes == 0) return WB_OK;
    WB_TRY(wb_reserve_host(&h->workspace, &h->ids_host, b->T, row_bytes(h), "hooks: ids"));
    WB_TRY(wb_reserve_host(&h->workspace, &h->native_host, b->T, row_bytes(h), "hooks: native ids"));
    WB_TRY(dev->to_host(dev, h->ids_host.data, b->ids.data, bytes));
    WB_TRY(dev->to_host(dev, h->native_host.data, b->native.data, bytes));
    for (int32_t l = 0; l < h->n_layers; l++) WB_TRY(tell_layer(h, index, l));
    return WB_OK;
}

/* Also where no micro-batch has its plan on the device: the device may have found something all the same. */
static wb_status settle_all(wb_hooks *h) {
    wb_device *dev = h->options.device;
    for (size_t i = 0; i < h->n_batches; i++) WB_TRY(settle_batch(h, (int32_t)i));
    return dev->to_host(dev, NULL, NULL, 0);
}

/* The device tells what it has found once; the step is of no use after that, however often it is ended. */
wb_status wb_hooks_settle(wb_hooks *h) {
    if (!h || !h->in_step) return wb_fail(WB_INVALID_ARGUMENT, "hooks: settle outside of a step");
    if (h->refused) return wb_fail(WB_INVALID_ARGUMENT, "hooks: the step was refused before: abort it");
    const wb_status status = settle_all(h);
    h->refused = status != WB_OK && status != WB_OUT_OF_MEMORY;
    return status;
}

/* ---- graphs ------------------------------------------------------------------------------------- */

static wb_status check_micro_batch(const wb_hooks *h, int32_t index, const char *what) {
    if (!h || !h->in_step || h->mode == WB_REPLAY_OFF)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: %s outside of a step of record or replay", what);
    if (h->options.router.type == WB_ROUTER_HASH)
        return wb_fail(WB_UNSUPPORTED, "hooks: %s: the ids of a hash router come from the host", what);
    if (wb_replay_planned(h->options.replay, index)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "hooks: %s: micro-batch %" PRId32 " was not planned", what, index);
}

wb_status wb_hooks_upload(wb_hooks *h, int32_t index) {
    WB_TRY(check_micro_batch(h, index, "upload"));
    return bring_plan(h, index);
}

wb_status wb_hooks_launched(wb_hooks *h, int32_t index) {
    WB_TRY(check_micro_batch(h, index, "launched"));
    const hooks_batch *b = h->batches[index];
    if (!b->resident)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: launched: micro-batch %" PRId32 " was not uploaded",
                       index);
    int32_t first, n;
    wb_replay_stage(h->options.replay, &first, &n);
    memset((uint8_t *)b->noted.data + (size_t)first * b->T, SELECTED | TOLD, (size_t)n * b->T);
    return WB_OK;
}
