/* lists.c - --replay-indexer: which entries the indexers of a model choose in the forwards over a packed
 * batch, as a replay says. Refuses: the experts' routes (passes.c), the policies, which are wb_replay's. */
#include "train_step.h"
#include "wb_memory.h"

/* ---- memory ---------------------------------------------------------------------------------- */

wb_status lists_check(const options *o, const wb_config *config) {
    if (!o->replay_indexer || wb_config_n_indexers(config) > 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "--replay-indexer: expected a model whose layers have indexers, found one that has none");
}

wb_status lists_open(const trainer *t, packed_batch *p) {
    const wb_route_model *model = wb_model_routes(t->model);
    wb_workspace *w = &p->workspace;
    packed_lists *l = &p->lists;
    if (!t->o->replay_indexer) return WB_OK;
    l->columns = (int64_t)wb_indexer_columns(model);
    l->k = model->indexer_k;
    const int64_t n = l->columns * p->largest;
    WB_TRY(wb_reserve(w, &l->listed, n, l->k, sizeof(int32_t)));
    WB_TRY(wb_reserve(w, &l->native, n, l->k, sizeof(int32_t)));
    WB_TRY(wb_reserve(w, &l->direction, n, 1, 1));
    WB_TRY(WB_OWN(&w->host, l->metrics, model->n_indexer_layers, "indexer metrics"));
    WB_TRY(WB_OWN(&w->host, l->host_listed, (size_t)(n * l->k), "indexer lists"));
    WB_TRY(WB_OWN(&w->host, l->host_native, (size_t)(n * l->k), "indexer lists"));
    return WB_OWN(&w->host, l->host_direction, (size_t)n, "indexer lists");
}

/* ---- a forward ------------------------------------------------------------------------------- */

wb_status lists_ask(const trainer *t, wb_replay *replay, packed_batch *p, int32_t m, wb_routing *routing) {
    packed_lists *l = &p->lists;
    const wb_route_model *model = wb_model_routes(t->model);
    const int64_t T = p->list[m].T;
    int32_t *listed = l->host_listed;
    uint8_t *direction = l->host_direction;
    bool any_forced = false;
    l->want_native = false;
    if (l->columns == 0) return WB_OK;
    for (uint32_t column = 0; column < l->columns; column++) {
        const uint32_t i = wb_indexer_layer(model, column);
        wb_replay_indexer_slice slice;
        WB_TRY(wb_replay_indexer_rows(replay, m, i, 0, (uint32_t)T, listed, direction, &slice));
        any_forced |= slice.any_forced;
        l->want_native |= slice.want_native;
        listed += T * l->k;
        direction += T;
    }
    const size_t n = (size_t)(l->columns * T);
    routing->listed = l->listed.data;
    if (l->want_native) routing->listed_native = l->native.data;
    if (!any_forced) return WB_OK;
    routing->listed_direction = l->direction.data;
    WB_TRY(t->device->to_device(t->device, l->direction.data, l->host_direction, n));
    return t->device->to_device(t->device, l->listed.data, l->host_listed,
                                n * (size_t)l->k * sizeof *l->host_listed);
}

wb_status lists_store(const trainer *t, wb_replay *replay, packed_batch *p, int32_t m) {
    packed_lists *l = &p->lists;
    const wb_route_model *model = wb_model_routes(t->model);
    const int64_t T = p->list[m].T;
    const size_t bytes = (size_t)(l->columns * T * l->k) * sizeof *l->host_listed;
    int64_t at = 0;
    if (l->columns == 0) return WB_OK;
    WB_TRY(t->device->to_host(t->device, l->host_listed, l->listed.data, bytes));
    if (l->want_native) WB_TRY(t->device->to_host(t->device, l->host_native, l->native.data, bytes));
    for (uint32_t column = 0; column < l->columns; column++, at += T * l->k)
        WB_TRY(wb_replay_indexer_store(replay, m, wb_indexer_layer(model, column), 0, (uint32_t)T,
                                       l->host_listed + at, l->want_native ? l->host_native + at : NULL));
    return WB_OK;
}

/* ---- what came of it -------------------------------------------------------------------------- */

void lists_count(const trainer *t, const packed_batch *p, const micro_batch *mb, row_count *count) {
    const packed_lists *l = &p->lists;
    const wb_route_model *model = wb_model_routes(t->model);
    for (int64_t s = 0; s < mb->n_seqs; s++) {
        const wb_record *record = record_of(mb->samples[s]);
        for (int64_t row = mb->seq_start[s]; row < mb->seq_start[s + 1]; row++)
            for (int64_t column = 0; column < l->columns; column++) {
                const uint32_t position = (uint32_t)(row - mb->seq_start[s]);
                wb_indexer_choice choice;
                if (!wb_indexer_at(model, record->indexer, position, (uint32_t)column, &choice)) continue;
                const int32_t *list = l->host_listed + (column * mb->T + row) * l->k;
                count->rows += 1;
                count->differ += !wb_indexer_same(wb_indexer_of_list(list, (uint32_t)l->k), choice);
            }
    }
}

void lists_metrics(const trainer *t, const wb_replay *replay, packed_batch *p, list_metrics *out) {
    const wb_route_model *model = wb_model_routes(t->model);
    wb_replay_indexer_metrics *layers = p->lists.metrics;
    wb_replay_metrics rows;
    double fallback, tokens = 0, differ = 0;
    if (!t->o->replay_indexer) return;
    wb_replay_get_indexer_metrics(replay, &fallback, layers);
    wb_replay_get_metrics(replay, &rows, NULL);
    for (uint32_t column = 0; column < wb_indexer_columns(model); column++) {
        const uint32_t i = wb_indexer_layer(model, column);
        tokens += layers[i].tokens;
        differ += layers[i].tokens * layers[i].differ;
    }
    out->native_differ = tokens > 0 ? differ / tokens : 0;
    const double n = rows.rows - rows.padding_rows;
    out->fallback_share = n > 0 ? fallback / n : 0;
}
