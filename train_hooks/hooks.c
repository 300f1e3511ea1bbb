/* hooks.c - the handle of the hooks: opening, closing, and the beginning and end of a trainer's step. */
#include "hooks_internal.h"
#include "wb_options.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

WB_OPTIONS_END(wb_hooks_options, bias);
static const wb_hooks_options defaults = {.size = sizeof defaults};

void wb_hooks_options_init(wb_hooks_options *options_out, size_t size) {
    wb_options_init(options_out, size, &defaults, sizeof defaults);
}

static wb_status check_model(const wb_route_model *model, const wb_router *router) {
    if (model->num_experts != (uint32_t)router->n_experts || model->top_k != (uint32_t)router->top_k)
        return wb_fail(WB_MISMATCH,
                       "hooks: router: expected %" PRIu32 " experts and top %" PRIu32
                       " as the replay's model, found %" PRId32 " and %" PRId32,
                       model->num_experts, model->top_k, router->n_experts, router->top_k);
    if (strcmp(model->router, wb_router_name(router->type)) != 0)
        return wb_fail(WB_MISMATCH,
                       "hooks: router: expected type %s as the replay's model (%s), found %s: weights at the "
                       "forced ids would be those of another model",
                       model->router, model->name, wb_router_name(router->type));
    return WB_OK;
}

/* wb_router_check takes any finite scale. */
static wb_status check_router(const wb_router *router) {
    WB_TRY(wb_router_check(router));
    if (router->scale > 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "hooks: router.scale: expected more than 0 (1 where the model has none), found %g",
                   (double)router->scale);
}

static wb_status check_device(const wb_device *device) {
    static const wb_op needed[] = {WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_topk, WB_OP_gate_forward,
                                   WB_OP_gate_backward, WB_OP_copy_ids, WB_OP_check_routes};
    return wb_device_require(device, "hooks", needed, sizeof needed / sizeof needed[0]);
}

wb_status wb_hooks_open(const wb_hooks_options *options, wb_hooks **hooks_out) {
    wb_hooks_options o = defaults;
    WB_TRY(wb_options_read(&o, sizeof o, options, "hooks"));
    if (!o.device || !hooks_out)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: options, device or hooks_out is NULL");
    WB_TRY(check_router(&o.router));
    WB_TRY(check_device(o.device));
    const wb_route_model *model = o.replay ? wb_replay_model(o.replay) : NULL;
    if (model) WB_TRY(check_model(model, &o.router));
    wb_hooks *h;
    WB_TRY(WB_NEW(h, 1, "hooks"));
    h->options = o;
    h->workspace.device = o.device;
    h->dtype = wb_route_dtype((uint32_t)o.router.n_experts);
    h->row_ids = model ? (int64_t)wb_route_row_ids(model) : 0;
    h->n_layers = model ? (int32_t)model->n_moe_layers : INT32_MAX;
    *hooks_out = h;
    return WB_OK;
}

void wb_hooks_close(wb_hooks *h) {
    if (!h) return;
    wb_workspace_close(&h->workspace);
    free(h->batches);
    free(h);
}

/* With a replay, its step is what is open: two hooks of one replay have one plan. */
static wb_status begin_replay(wb_hooks *h, wb_replay_mode mode, int32_t n_micro_batches) {
    WB_TRY(wb_replay_begin(h->options.replay, mode, n_micro_batches));
    wb_status status = wb_hooks_begin_batches(h, n_micro_batches);
    if (status != WB_OK) wb_replay_abort(h->options.replay);
    return status;
}

wb_status wb_hooks_step_begin(wb_hooks *h, wb_replay_mode mode, int32_t n_micro_batches) {
    if (!h) return wb_fail(WB_INVALID_ARGUMENT, "hooks: handle is NULL");
    if (!h->options.replay && mode != WB_REPLAY_OFF)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: mode %s needs a replay", wb_replay_mode_name(mode));
    if (h->options.replay)
        WB_TRY(begin_replay(h, mode, n_micro_batches));
    else if (h->in_step)
        return wb_fail(WB_INVALID_ARGUMENT, "hooks: step_begin: a step is open: end or abort it first");
    h->in_step = true;
    h->refused = false;
    h->mode = mode;
    return WB_OK;
}

/* What the device has found in this step is nobody's any more: the next step must not be told of it. */
void wb_hooks_step_abort(wb_hooks *h) {
    if (!h || !h->in_step) return;
    WB_IGNORE(h->options.device->to_host(h->options.device, NULL, NULL, 0));
    h->in_step = false;
    if (h->options.replay) wb_replay_abort(h->options.replay);
}

wb_status wb_hooks_step_end(wb_hooks *h, wb_replay_metrics *metrics_out) {
    if (!h || !h->in_step) return wb_fail(WB_INVALID_ARGUMENT, "hooks: step_end without step_begin");
    wb_replay_metrics metrics = {0};
    WB_TRY(wb_hooks_settle(h));
    if (h->options.replay) {
        WB_TRY(wb_replay_end(h->options.replay));
        wb_replay_get_metrics(h->options.replay, &metrics, NULL);
    }
    h->in_step = false;
    if (metrics_out) *metrics_out = metrics;
    return WB_OK;
}
