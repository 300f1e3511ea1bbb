/* replay.c - the replay handle: its options, opening and closing. */
#include "replay_state.h"
#include "wb_options.h"
#include "wb_route_model.h"

#include <inttypes.h>
#include <stdlib.h>

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
    for (uint32_t i = 0; o->hash && i < o->hash->n_hash_layers; i++)
        if (o->hash->hash_layers[i] >= model->n_moe_layers)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "replay: hash: expected MoE layers below %" PRIu32 ", found %" PRIu32,
                           model->n_moe_layers, o->hash->hash_layers[i]);
    if (o->indexer && model->n_indexer_layers == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: indexer: the model has no layer with an indexer");
    return WB_OK;
}

static wb_status open_arrays(wb_replay *r, const wb_route_model *model) {
    WB_TRY(wb_route_model_copy(&r->memory, model, "replay: layers", &r->model));
    WB_TRY(WB_OWN(&r->memory, r->layer_at, (size_t)model->n_moe_layers + 1, "replay: layers"));
    for (uint32_t l = 0; l < model->n_moe_layers; l++)
        r->layer_at[l + 1] = r->layer_at[l] + wb_route_layer_k(model, l) * wb_dtype_size(r->dtype);
    WB_TRY(WB_OWN(&r->memory, r->marks, model->num_experts, "replay: experts"));
    WB_TRY(WB_OWN(&r->memory, r->sums, wb_replay_sums_count(r), "replay: metrics"));
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
    r->n_columns = o.indexer ? wb_indexer_columns(model) : 0;
    r->dtype = wb_route_dtype(model->num_experts);
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
    for (size_t i = 0; i < r->micro_batch_capacity; i++) free(r->micro_batches[i].kept);
    free(r->micro_batches);
    free(r->records);
    wb_string_table_free(&r->rids);
    wb_owner_close(&r->memory);
    free(r);
}

const wb_route_model *wb_replay_model(const wb_replay *r) {
    return &r->model;
}
