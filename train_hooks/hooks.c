/* hooks.c - the router's gate of a foreign trainer under off, record and replay.
 *
 * Owns: moving the plan's ids to the device and what was chosen back, zero weights and gradients of
 * padding rows. Refuses: choosing by itself (the device's topk does), a backward without its forward.
 * Buffers only grow: in the steady state a call allocates nothing. */
#include "wb_check.h"
#include "wb_device.h"
#include "wb_memory.h"
#include "wb_train_hooks.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct buffer {
    void *data;
    size_t bytes;
} buffer;

struct wb_hooks {
    wb_hooks_options options;
    wb_dtype dtype;     /* of ids in the plan and in all buffers but wide_host */
    size_t layer_bytes; /* K ids */
    int32_t n_layers;   /* L; INT32_MAX without a replay */
    wb_replay_mode mode;
    bool in_step;
    buffer ids, native, keep;                           /* device: [T][K], [T][K], [T] */
    buffer ids_host, native_host, keep_host, wide_host; /* the same on the host; ids widened for ids_out */
};

const char *wb_replay_mode_name(wb_replay_mode mode) {
    static const char *const names[] = {"off", "record", "rollout"};
    return (size_t)mode < sizeof names / sizeof names[0] ? names[mode] : "unknown";
}

/* ---- the handle ------------------------------------------------------------------------------ */

static wb_status check_model(const wb_route_model *model, const wb_router *router) {
    if (model->num_experts != (uint32_t)router->n_experts || model->top_k != (uint32_t)router->top_k)
        return wb_fail(WB_MISMATCH,
                       "hooks: router: expected %" PRIu32 " experts and top %" PRIu32
                       " as the replay's model, found %" PRId32 " and %" PRId32,
                       model->num_experts, model->top_k, router->n_experts, router->top_k);
    return WB_OK;
}

static wb_status check_device(const wb_device *device) {
    static const wb_op needed[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_topk, WB_OP_gate_forward,
                                   WB_OP_gate_backward};
    return wb_device_require(device, "hooks", needed, sizeof needed / sizeof needed[0]);
}

wb_status wb_hooks_open(const wb_hooks_options *options, wb_hooks **hooks_out) {
    if (!options || !options->device || !hooks_out)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: options, device or hooks_out is NULL");
    WB_TRY(wb_router_check(&options->router));
    WB_TRY(check_device(options->device));
    const wb_route_model *model = options->replay ? wb_replay_model(options->replay) : NULL;
    if (model) WB_TRY(check_model(model, &options->router));
    wb_hooks *h;
    WB_TRY(WB_NEW(h, 1, "hooks"));
    h->options = *options;
    h->dtype = wb_route_dtype((uint32_t)options->router.n_experts);
    h->layer_bytes = (size_t)options->router.top_k * wb_dtype_size(h->dtype);
    h->n_layers = model ? (int32_t)model->n_moe_layers : INT32_MAX;
    *hooks_out = h;
    return WB_OK;
}

void wb_hooks_close(wb_hooks *h) {
    if (!h) return;
    wb_device *dev = h->options.device;
    dev->mem_free(dev, h->ids.data);
    dev->mem_free(dev, h->native.data);
    dev->mem_free(dev, h->keep.data);
    free(h->ids_host.data);
    free(h->native_host.data);
    free(h->keep_host.data);
    free(h->wide_host.data);
    free(h);
}

wb_status wb_hooks_step_begin(wb_hooks *h, wb_replay_mode mode, int32_t n_micro_batches) {
    if (!h) return wb_fail(WB_INVALID_ARGUMENT, "hooks: handle is NULL");
    if ((unsigned)mode > WB_REPLAY_ROLLOUT)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: %d is none of wb_replay_mode", (int)mode);
    if (!h->options.replay && mode != WB_REPLAY_OFF)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: mode %s needs a replay", wb_replay_mode_name(mode));
    if (h->options.replay) WB_TRY(wb_replay_begin(h->options.replay, n_micro_batches));
    h->mode = mode;
    h->in_step = true;
    return WB_OK;
}

wb_status wb_hooks_step_end(wb_hooks *h, wb_replay_metrics *metrics_out) {
    if (!h || !h->in_step) return wb_fail(WB_INVALID_ARGUMENT, "hooks: step_end without step_begin");
    h->in_step = false;
    if (h->mode != WB_REPLAY_OFF) WB_TRY(wb_replay_end(h->options.replay));
    if (!metrics_out) return WB_OK;
    *metrics_out = (wb_replay_metrics){0};
    if (h->options.replay) wb_replay_get_metrics(h->options.replay, metrics_out, NULL);
    return WB_OK;
}

/* ---- buffers --------------------------------------------------------------------------------- */

static wb_status reserve_device(wb_device *dev, buffer *b, size_t bytes) {
    if (bytes <= b->bytes && b->data) return WB_OK;
    void *data;
    WB_TRY(dev->mem_alloc(dev, bytes, &data));
    dev->mem_free(dev, b->data);
    *b = (buffer){data, bytes};
    return WB_OK;
}

static wb_status reserve_host(buffer *b, size_t bytes) {
    if (bytes <= b->bytes && b->data) return WB_OK;
    void *data;
    WB_TRY(WB_ALLOC(data, bytes, 1, "hooks: host copy of ids"));
    free(b->data);
    *b = (buffer){data, bytes};
    return WB_OK;
}

static wb_status reserve(wb_hooks *h, size_t T) {
    wb_device *dev = h->options.device;
    WB_TRY(reserve_device(dev, &h->ids, T * h->layer_bytes));
    WB_TRY(reserve_device(dev, &h->native, T * h->layer_bytes));
    WB_TRY(reserve_device(dev, &h->keep, T));
    WB_TRY(reserve_host(&h->ids_host, T * h->layer_bytes));
    WB_TRY(reserve_host(&h->native_host, T * h->layer_bytes));
    WB_TRY(reserve_host(&h->keep_host, T));
    return reserve_host(&h->wide_host, T * (size_t)h->options.router.top_k * sizeof(uint16_t));
}

/* ---- one call -------------------------------------------------------------------------------- */

/* Rows of a (micro-batch, layer), and what the plan says of them. */
typedef struct gate_call {
    int32_t micro_batch, layer;
    uint32_t row, T;
    const float *logits;
    const uint8_t *state;    /* host [T] WB_ROW_*; NULL: no plan, which only OFF allows */
    const uint8_t *plan_ids; /* host, rows L * K ids apart */
    const uint8_t *keep;     /* host [T] non-zero: the row is routed as planned; NULL: none is */
    bool any_open;           /* some row is not kept: it chooses by its logits */
} gate_call;

static void fill_keep(wb_hooks *h, gate_call *c) {
    uint8_t *keep = h->keep_host.data;
    c->any_open = !c->state;
    if (!c->state) return;
    c->keep = keep;
    for (uint32_t t = 0; t < c->T; t++) {
        keep[t] = h->mode == WB_REPLAY_OFF ? c->state[t] == WB_ROW_PADDING : c->state[t];
        c->any_open |= keep[t] == 0;
    }
}

static wb_status start_call(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                            const float *logits, gate_call *out) {
    if (!h || !h->in_step) return wb_fail(WB_INVALID_ARGUMENT, "hooks: a gate was called outside of a step");
    if (T < 0 || T > UINT32_MAX || layer < 0 || layer >= h->n_layers || (T > 0 && !logits))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hooks: expected a MoE layer below %" PRId32 " and logits of 0..2^32 rows, found "
                       "layer %" PRId32 ", %" PRId64 " rows%s",
                       h->n_layers, layer, T, logits ? "" : ", NULL");
    gate_call c = {
        .micro_batch = micro_batch, .layer = layer, .row = row, .T = (uint32_t)T, .logits = logits};
    if (h->mode != WB_REPLAY_OFF || wb_replay_planned(h->options.replay, micro_batch)) {
        const void *ids;
        WB_TRY(wb_replay_layer(h->options.replay, micro_batch, layer, row, c.T, &ids, &c.state));
        c.plan_ids = ids;
    }
    WB_TRY(reserve(h, c.T));
    fill_keep(h, &c);
    *out = c;
    return WB_OK;
}

/* ---- choosing -------------------------------------------------------------------------------- */

static void gather_plan(wb_hooks *h, const gate_call *c) {
    uint8_t *to = h->ids_host.data;
    size_t row_bytes = (size_t)h->n_layers * h->layer_bytes;
    for (size_t t = 0; t < c->T; t++)
        memcpy(to + t * h->layer_bytes, c->plan_ids + t * row_bytes, h->layer_bytes);
}

static wb_ids view(const wb_hooks *h, const buffer *b) {
    return (wb_ids){b->data, h->dtype, h->options.router.top_k};
}

static wb_status upload_ids(wb_hooks *h, const gate_call *c) {
    wb_device *dev = h->options.device;
    return dev->to_device(dev, h->ids.data, h->ids_host.data, c->T * h->layer_bytes);
}

/* The device's ids [T][K] of the open rows, and what every row would choose where `native` is wanted. */
static wb_status select_ids(wb_hooks *h, const gate_call *c, bool want_native) {
    wb_device *dev = h->options.device;
    if (c->keep) WB_TRY(dev->to_device(dev, h->keep.data, c->keep, c->T));
    wb_topk args = {.router = h->options.router,
                    .T = c->T,
                    .logits = c->logits,
                    .bias = h->options.bias ? h->options.bias[c->layer] : NULL,
                    .forced = c->keep ? h->keep.data : NULL,
                    .ids = view(h, &h->ids)};
    if (want_native) args.native = view(h, &h->native);
    return dev->topk(dev, &args);
}

/* The one place where choices cross to the host: of rows that nobody forced, and for the metrics. */
static wb_status bring_back(wb_hooks *h, const gate_call *c, bool want_used, bool want_native) {
    wb_device *dev = h->options.device;
    size_t bytes = c->T * h->layer_bytes;
    if (want_used) WB_TRY(dev->to_host(dev, h->ids_host.data, h->ids.data, bytes));
    if (want_native) WB_TRY(dev->to_host(dev, h->native_host.data, h->native.data, bytes));
    return WB_OK;
}

static uint32_t get_id(const void *ids, wb_dtype dtype, size_t i) {
    return dtype == WB_U8 ? ((const uint8_t *)ids)[i] : ((const uint16_t *)ids)[i];
}

static void set_id(void *ids, wb_dtype dtype, size_t i, uint32_t id) {
    if (dtype == WB_U8)
        ((uint8_t *)ids)[i] = (uint8_t)id;
    else
        ((uint16_t *)ids)[i] = (uint16_t)id;
}

/* HASH: what the trainer's table says, given in ids_out, is the native choice. Reads it to native_host. */
static wb_status read_table_ids(wb_hooks *h, const gate_call *c, wb_ids given) {
    wb_device *dev = h->options.device;
    size_t K = (size_t)h->options.router.top_k, id_bytes = wb_dtype_size(given.dtype);
    uint8_t *wide = h->wide_host.data;
    size_t rows_at_once = given.stride == (int64_t)K ? c->T : 1;
    for (size_t t = 0; t < c->T; t += rows_at_once)
        WB_TRY(dev->to_host(dev, wide + t * K * id_bytes,
                            (const uint8_t *)given.data + t * (size_t)given.stride * id_bytes,
                            rows_at_once * K * id_bytes));
    for (size_t i = 0; i < c->T * K; i++) {
        uint32_t id = get_id(wide, given.dtype, i);
        if (id >= (uint32_t)h->options.router.n_experts)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "hooks: micro-batch %" PRId32 ", MoE layer %" PRId32 ", row %zu: expert %" PRIu32
                           " of the hash table is out of range",
                           c->micro_batch, c->layer, c->row + i / K, id);
        set_id(h->native_host.data, h->dtype, i, id);
    }
    return WB_OK;
}

static void take_table_ids(wb_hooks *h, const gate_call *c) {
    for (size_t t = 0; t < c->T; t++) {
        if (c->keep && c->keep[t]) continue;
        memcpy((uint8_t *)h->ids_host.data + t * h->layer_bytes,
               (const uint8_t *)h->native_host.data + t * h->layer_bytes, h->layer_bytes);
    }
}

/* Leaves the ids to route by in h->ids; the host copies of used and native ids where they are needed. */
static wb_status choose(wb_hooks *h, const gate_call *c, wb_ids given, bool want_used, bool want_native) {
    bool hash = h->options.router.type == WB_ROUTER_HASH, choosing = c->any_open || want_native;
    if (c->keep) gather_plan(h, c);
    if (hash && choosing) {
        WB_TRY(read_table_ids(h, c, given));
        take_table_ids(h, c);
    }
    if (c->keep || hash) WB_TRY(upload_ids(h, c));
    if (hash || !choosing) return WB_OK;
    WB_TRY(select_ids(h, c, want_native));
    return bring_back(h, c, want_used, want_native);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* `data`'s rows of padding, `width` floats each, to zero. */
static wb_status zero_padding(wb_hooks *h, const gate_call *c, float *data, size_t width) {
    wb_device *dev = h->options.device;
    for (size_t t = 0, end; c->state && t < c->T; t = end) {
        end = t + 1;
        if (c->state[t] != WB_ROW_PADDING) continue;
        while (end < c->T && c->state[end] == WB_ROW_PADDING) end++;
        WB_TRY(dev->zero(dev, data + t * width, (end - t) * width * sizeof *data));
    }
    return WB_OK;
}

static wb_status check_ids_out(const wb_hooks *h, int64_t T, wb_ids ids_out) {
    bool fits = ids_out.dtype == WB_U16 || (ids_out.dtype == WB_U8 && h->dtype == WB_U8);
    if (fits && ids_out.stride >= h->options.router.top_k && (T == 0 || ids_out.data)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "hooks: ids_out: expected %s of stride %" PRId32 " or more, found %s of %" PRId64 "%s",
                   h->dtype == WB_U8 ? "u8 or u16" : "u16", h->options.router.top_k,
                   wb_dtype_name(ids_out.dtype), ids_out.stride, ids_out.data ? "" : ", NULL");
}

/* R2 under the rollout's routes would be R3 unseen. */
static wb_status check_mode(const wb_hooks *h) {
    if (h->mode != WB_REPLAY_RECORD) return WB_OK;
    wb_replay_metrics metrics;
    wb_replay_get_metrics(h->options.replay, &metrics, NULL);
    if (metrics.forced_rows > 0)
        return wb_fail(WB_MISMATCH, "hooks: mode record, but the plan has %.0f rows of REPLAY segments",
                       metrics.forced_rows);
    return WB_OK;
}

/* The plan learns what was chosen; under OFF only its metrics do. */
static wb_status report(wb_hooks *h, const gate_call *c, bool want_used, bool want_native) {
    const void *used = want_used ? h->ids_host.data : NULL;
    const void *native = want_native ? h->native_host.data : NULL;
    int64_t K = h->options.router.top_k;
    wb_replay *replay = h->options.replay;
    if (h->mode != WB_REPLAY_OFF)
        return wb_replay_store(replay, c->micro_batch, c->layer, c->row, c->T, used, K, native, K);
    if (!native) return WB_OK;
    return wb_replay_measure(replay, c->micro_batch, c->layer, c->row, c->T, native, K);
}

static wb_status write_ids_widened(wb_hooks *h, const gate_call *c, wb_ids out) {
    wb_device *dev = h->options.device;
    size_t K = (size_t)h->options.router.top_k, row_bytes = K * sizeof(uint16_t);
    WB_TRY(dev->to_host(dev, h->ids_host.data, h->ids.data, c->T * h->layer_bytes));
    for (size_t i = 0; i < c->T * K; i++)
        set_id(h->wide_host.data, WB_U16, i, get_id(h->ids_host.data, h->dtype, i));
    size_t rows_at_once = out.stride == (int64_t)K ? c->T : 1;
    for (size_t t = 0; t < c->T; t += rows_at_once)
        WB_TRY(dev->to_device(dev, (uint16_t *)out.data + t * (size_t)out.stride,
                              (const uint8_t *)h->wide_host.data + t * row_bytes, rows_at_once * row_bytes));
    return WB_OK;
}

static wb_status write_ids(wb_hooks *h, const gate_call *c, wb_ids out) {
    wb_device *dev = h->options.device;
    if (out.dtype != h->dtype) return write_ids_widened(h, c, out);
    size_t rows_at_once = out.stride == h->options.router.top_k ? c->T : 1;
    size_t out_bytes = (size_t)out.stride * wb_dtype_size(out.dtype);
    for (size_t t = 0; t < c->T; t += rows_at_once)
        WB_TRY(dev->copy(dev, (uint8_t *)out.data + t * out_bytes,
                         (const uint8_t *)h->ids.data + t * h->layer_bytes, rows_at_once * h->layer_bytes));
    return WB_OK;
}

wb_status wb_hooks_gate_forward(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                                const float *logits, wb_ids ids_out, float *weights_out) {
    gate_call c = {0};
    WB_TRY(start_call(h, micro_batch, layer, row, T, logits, &c));
    WB_TRY(check_ids_out(h, T, ids_out));
    WB_TRY(check_mode(h));
    wb_device *dev = h->options.device;
    bool want_used = h->mode != WB_REPLAY_OFF && c.any_open;
    bool want_native = wb_replay_wants_native(h->options.replay, micro_batch, layer, row, c.T);
    WB_TRY(choose(h, &c, ids_out, want_used, want_native));
    WB_TRY(report(h, &c, want_used, want_native));
    WB_TRY(dev->gate_forward(dev, &h->options.router, T, logits, view(h, &h->ids), weights_out));
    WB_TRY(zero_padding(h, &c, weights_out, (size_t)h->options.router.top_k));
    return write_ids(h, &c, ids_out);
}

/* ---- backward -------------------------------------------------------------------------------- */

wb_status wb_hooks_gate_backward(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                                 const float *logits, const float *dweights, float *dlogits_out) {
    gate_call c = {0};
    WB_TRY(start_call(h, micro_batch, layer, row, T, logits, &c));
    wb_device *dev = h->options.device;
    if (h->mode != WB_REPLAY_OFF && c.any_open)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hooks: micro-batch %" PRId32 ", MoE layer %" PRId32
                       ": backward of rows that no forward has routed",
                       micro_batch, layer);
    if (c.any_open && h->options.router.type == WB_ROUTER_HASH)
        return wb_fail(WB_UNSUPPORTED, "hooks: backward of a hash router in mode off: the ids are the "
                                       "trainer's own, call the device's gate_backward");
    WB_TRY(choose(h, &c, (wb_ids){0}, false, false));
    WB_TRY(dev->gate_backward(dev, &h->options.router, T, logits, view(h, &h->ids), dweights, dlogits_out));
    return zero_padding(h, &c, dlogits_out, (size_t)h->options.router.n_experts);
}
