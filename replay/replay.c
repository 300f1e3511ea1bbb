/* replay.c - the replay handle: its options, opening and closing. */
#include "replay_state.h"
#include "wb_options.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

WB_OPTIONS_END(wb_replay_options, hash);
static const wb_replay_options defaults = {.size = sizeof defaults, .n_ranks = 1};

void wb_replay_options_init(wb_replay_options *options_out, size_t size) {
    wb_options_init(options_out, size, &defaults, sizeof defaults);
}

const char *wb_replay_mode_name(wb_replay_mode mode) {
    static const char *const names[] = {"off", "record", "rollout"};
    return (size_t)mode < sizeof names / sizeof names[0] ? names[mode] : "unknown";
}

static wb_status options_check(const wb_route_model *model, const wb_replay_options *o) {
    if ((unsigned)o->missing > WB_MISSING_DROP)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: missing: %d is none of wb_missing_policy",
                       (int)o->missing);
    if (o->n_ranks < 1)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: n_ranks: expected 1 or more, found %" PRId32,
                       o->n_ranks);
    if (o->first_layer < 0 || o->n_layers < 0 ||
        (int64_t)o->first_layer + o->n_layers > (int64_t)model->n_moe_layers ||
        (uint32_t)o->first_layer >= model->n_moe_layers)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: stage of %" PRId32 " MoE layers from %" PRId32
                       ": expected inside the model's %" PRIu32,
                       o->n_layers, o->first_layer, model->n_moe_layers);
    for (uint32_t i = 0; o->hash && i < o->hash->n_layers; i++)
        if (o->hash->moe_layers[i] >= model->n_moe_layers)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "replay: hash: expected MoE layers below %" PRIu32 ", found %" PRIu32,
                           model->n_moe_layers, o->hash->moe_layers[i]);
    return WB_OK;
}

static wb_status open_arrays(wb_replay *r, const wb_route_model *model) {
    uint32_t E = model->num_experts, L = model->n_moe_layers;
    WB_TRY(WB_OWN(&r->memory, r->moe_layers, L, "replay: layers"));
    WB_TRY(WB_OWN(&r->memory, r->marks, E, "replay: experts"));
    WB_TRY(WB_OWN(&r->memory, r->sums, wb_replay_sums_count(r), "replay: metrics"));
    memcpy(r->moe_layers, model->moe_layers, L * sizeof *r->moe_layers);
    r->model.moe_layers = r->moe_layers;
    WB_TRY(wb_replay_open_placement(r));
    WB_TRY(wb_replay_open_padding(r));
    return wb_replay_open_dispatch(r);
}

wb_status wb_replay_open(const wb_route_model *model, const wb_replay_options *options,
                         wb_replay **replay_out) {
    if (!model || !replay_out) return wb_fail(WB_INVALID_ARGUMENT, "replay: model or replay_out is NULL");
    wb_replay_options o = defaults;
    WB_TRY(wb_options_read(&o, sizeof o, options, "replay"));
    WB_TRY(wb_options_check_reserved(o.reserved, sizeof o.reserved, "replay"));
    WB_TRY(wb_route_model_check(model));
    WB_TRY(options_check(model, &o));
    wb_replay *r;
    WB_TRY(WB_NEW(r, 1, "replay"));
    if (o.n_layers == 0) o.n_layers = (int32_t)model->n_moe_layers - o.first_layer;
    r->model = *model;
    r->options = o;
    r->dtype = wb_route_dtype(model->num_experts);
    r->layer_bytes = model->top_k * wb_dtype_size(r->dtype);
    r->row_bytes = wb_route_row_bytes(model);
    wb_status status = open_arrays(r, model);
    if (status != WB_OK) {
        wb_replay_close(r);
        return status;
    }
    wb_replay_order_padding(r);
    *replay_out = r;
    return WB_OK;
}

void wb_replay_close(wb_replay *r) {
    if (!r) return;
    free(r->micro_batches);
    free(r->records);
    wb_string_table_free(&r->rids);
    wb_owner_close(&r->memory);
    free(r);
}

const wb_route_model *wb_replay_model(const wb_replay *r) {
    return &r->model;
}
