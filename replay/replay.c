/* replay.c - the replay handle: opening, the records it knows and finding them by request id.
 * Refuses: records of another model, malformed records, a rid twice. */
#include "replay_internal.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

wb_replay_options wb_replay_options_default(void) {
    wb_replay_options options = {WB_MISSING_STRICT, 1, 0, 0};
    return options;
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
    return WB_OK;
}

/* Rank r owns experts [E*r/R, E*(r+1)/R). Takes one expert of each rank in turn, so that any run of slots
 * spreads over the ranks; where R does not divide E, the ranks with one expert more have the last turn to
 * themselves. */
static void order_padding(uint32_t *order, uint64_t E, uint64_t R) {
    size_t n = 0;
    for (uint64_t turn = 0; n < E; turn++)
        for (uint64_t r = 0; r < R; r++) {
            uint64_t expert = E * r / R + turn;
            if (expert < E * (r + 1) / R) order[n++] = (uint32_t)expert;
        }
}

static wb_status open_arrays(wb_replay *r, const wb_route_model *model) {
    uint32_t E = model->num_experts, L = model->n_moe_layers;
    WB_TRY(WB_NEW(r->moe_layers, L, "replay: layers"));
    WB_TRY(WB_NEW(r->padding_order, E, "replay: experts"));
    WB_TRY(WB_NEW(r->marks, E, "replay: experts"));
    WB_TRY(WB_NEW(r->sums, wb_replay_sums_count(r), "replay: metrics"));
    memcpy(r->moe_layers, model->moe_layers, L * sizeof *r->moe_layers);
    r->model.moe_layers = r->moe_layers;
    /* More ranks than experts: those without an expert take no part, the others have one each. */
    uint32_t R = (uint32_t)r->options.n_ranks;
    order_padding(r->padding_order, E, R < E ? R : E);
    return WB_OK;
}

wb_status wb_replay_open(const wb_route_model *model, const wb_replay_options *options,
                         wb_replay **replay_out) {
    if (!model || !replay_out) return wb_fail(WB_INVALID_ARGUMENT, "replay: model or replay_out is NULL");
    wb_replay_options o = options ? *options : wb_replay_options_default();
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
    *replay_out = r;
    return WB_OK;
}

void wb_replay_close(wb_replay *r) {
    if (!r) return;
    for (int32_t i = 0; i < r->micro_batch_capacity; i++) wb_replay_free_micro_batch(&r->micro_batches[i]);
    free(r->micro_batches);
    free(r->records);
    wb_string_table_free(&r->rids);
    free(r->moe_layers);
    free(r->padding_order);
    free(r->marks);
    free(r->sums);
    free(r);
}

const wb_route_model *wb_replay_model(const wb_replay *r) {
    return &r->model;
}

/* ---- records ------------------------------------------------------------------------------------- */

wb_status wb_replay_add(wb_replay *r, const wb_route_model *from, const wb_record *record) {
    if (!r || !from || !record)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: handle, model or record is NULL");
    WB_TRY(wb_route_model_check(from));
    if (wb_route_model_match(&r->model, from) != WB_OK)
        return wb_fail_context(WB_MISMATCH, "replay: record %s", record->rid ? record->rid : "(no rid)");
    WB_TRY(wb_record_check(&r->model, record, true));
    uint64_t before;
    size_t length = strlen(record->rid);
    if (wb_string_table_find(&r->rids, record->rid, length, &before))
        return wb_fail(WB_INVALID_ARGUMENT, "replay: record %s was added before", record->rid);
    WB_TRY(WB_GROW(r->records, r->n_records + 1, &r->record_capacity, "replay: records"));
    WB_TRY(wb_string_table_add(&r->rids, record->rid, length, r->n_records, NULL));
    r->records[r->n_records++] = *record;
    return WB_OK;
}

const wb_record *wb_replay_find_record(const wb_replay *r, const char *rid) {
    uint64_t i;
    return wb_string_table_find(&r->rids, rid, strlen(rid), &i) ? &r->records[i] : NULL;
}

void wb_replay_clear(wb_replay *r) {
    wb_string_table_free(&r->rids);
    r->n_records = 0;
    wb_replay_drop_plan(r);
    wb_replay_clear_sums(r);
}
